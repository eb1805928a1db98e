//! What a front-end changes while the vrings run: each change is a message
//! that races the requests, and none of them may be lost for it.

use super::objects::{Counter, Object};
use super::{Event, Migrating, World};
use crate::oracle::Violation;
use crate::scenario::Control;
use crate::trace::{Lane, What};
use bytes::Bytes;
use midflight::Handle;
use midflight::frontend::Command;
use midflight::wire::{
    FrontendReply, FrontendReplyBody, FrontendRequest, LogDescription, MemRegion, VringFile,
    VringState,
};

/// Where memory is plugged in, by guest-physical and by user address.
const PLUGGED: (u64, u64) = (1 << 20, 0x7f30_0000_0000);
const PLUGGED_SIZE: u64 = 8192;
/// Offset of the write cache byte in the configuration space.
// spec: virtio 1.2, "Block Device", "Device configuration layout"
const WRITEBACK: u32 = 32;

impl World<'_> {
    pub(super) fn plan_control(&mut self) {
        if let Some((after, _)) = self.controls.front() {
            self.schedule(1_000 * after, Event::Control);
        }
    }

    /// The next change, where there is somebody to make it.
    pub(super) fn control(&mut self) -> Result<(), Violation> {
        let Some((_, control)) = self.controls.pop_front() else { return Ok(()) };
        self.focus(self.guest_at);
        let front = &self.here.front;
        let moving = self.migration.as_ref().is_some_and(|m| !Migrating::is_idle(m));
        if front.goes_on() && !self.guest.borrow().is_paused() && !moving {
            self.change(control)?;
        }
        self.plan_control();
        Ok(())
    }

    fn change(&mut self, control: Control) -> Result<(), Violation> {
        self.stats.controls += 1;
        self.trace.say(Lane::Front, What::Changed { control });
        match control {
            Control::Call(vring) => {
                let handle = self.open(Object::Call(vring));
                let old = std::mem::replace(&mut self.here.front.calls[usize::from(vring)], handle);
                self.deafen(old);
                self.raw(FrontendRequest::SetVringCall(file(vring, handle)), true)
            }
            // Where vrings are polled there is none.
            Control::Kick(_) if self.topology.polled => Ok(()),
            Control::Kick(vring) => {
                let handle = self.open(Object::Kick(vring));
                let old = std::mem::replace(&mut self.here.front.kicks[usize::from(vring)], handle);
                self.deafen(old);
                let waking = self.here.kicks[usize::from(vring)].waking;
                self.here.kicks[usize::from(vring)] = Counter { count: 0, waking };
                self.raw(FrontendRequest::SetVringKick(file(vring, handle)), true)
            }
            Control::Err(vring) => {
                let handle = self.open(Object::Err);
                self.raw(FrontendRequest::SetVringErr(file(vring, handle)), true)
            }
            Control::Disable { vring, us } => {
                let conn = self.here.front.conn.unwrap_or(0);
                self.schedule(1_000 * us, Event::Enable(conn, vring));
                self.raw(enable(vring, false), true)
            }
            Control::Memory => {
                let mut regions = self.here.front.memory.clone();
                if !std::mem::replace(&mut self.here.front.plugged, false) {
                    self.here.front.plugged = true;
                    let id = self.arena.region(PLUGGED_SIZE);
                    let (guest_addr, user_addr) = PLUGGED;
                    let region =
                        MemRegion { guest_addr, size: PLUGGED_SIZE, user_addr, mmap_offset: 0 };
                    regions.push((region, self.open(Object::Memory(id))));
                }
                self.front_command(Command::SetMemory(regions))
            }
            Control::Log => {
                self.here.front.own_logs += 1;
                let (log, handle) = self.new_log();
                self.front_command(Command::LogOn { log, handle })
            }
            Control::NoLog => {
                self.here.front.own_logs += 1;
                self.front_command(Command::LogOff)
            }
            Control::Cache(on) => {
                if on && self.cache_means {
                    self.oracle.borrow_mut().cache_on();
                }
                self.here.front.cache_writes.push_back(on);
                let data = Bytes::copy_from_slice(&[u8::from(on)]);
                self.front_command(Command::WriteConfig { offset: WRITEBACK, flags: 0, data })
            }
            Control::Reset => self.begin_reset(),
            // Without acknowledgements a refusal is the end of a connection.
            Control::Refused if !self.topology.reply_ack => Ok(()),
            Control::Refused => {
                self.here.front.asks_in_vain = true;
                let state = VringState { index: 0, num: u32::from(self.topology.ring_size) };
                self.raw(FrontendRequest::SetVringNum(state), false)
            }
        }
    }

    /// The answer to a write of the write cache byte; none that means anything
    /// without acknowledgements.
    pub(super) fn cache_written(&mut self, taken: bool) -> Result<(), Violation> {
        let written = self.here.front.cache_writes.pop_front();
        let off = written == Some(false) && taken && self.topology.reply_ack;
        // What the guest has said since then counts.
        let last = !self.here.front.cache_writes.contains(&true);
        if off && last && self.cache_means && self.here.id == self.guest_at {
            self.oracle.borrow_mut().cache_off(self.disk.image())?;
        }
        Ok(())
    }

    /// A vring was disabled long enough.
    pub(super) fn enable_again(&mut self, conn: u32, vring: u16) -> Result<(), Violation> {
        let front = &self.here.front;
        if front.conn != Some(conn) || !front.goes_on() {
            return Ok(());
        }
        self.raw(enable(vring, true), true)
    }

    /// The answer to a change.
    pub(super) fn changed(&mut self, reply: &FrontendReply<Handle>) -> Result<(), Violation> {
        let Some(expected) = self.here.front.changes.pop_front() else { return Ok(()) };
        let taken = matches!(reply.body, FrontendReplyBody::U64(0));
        if taken == expected {
            return Ok(());
        }
        let message = format!("a change while vrings run is answered by {:?}", reply.body);
        Err(Violation::new("session", message))
    }

    fn raw(&mut self, request: FrontendRequest<Handle>, good: bool) -> Result<(), Violation> {
        let need_reply = self.topology.reply_ack;
        if need_reply {
            self.here.front.changes.push_back(good);
        }
        self.front_command(Command::Raw { request, need_reply })
    }

    fn new_log(&mut self) -> (LogDescription, Handle) {
        let log = self.arena.region(super::migrate::LOG_SIZE);
        let handle = self.open(Object::Memory(log));
        self.here.check.logs.push(log);
        (LogDescription { size: super::migrate::LOG_SIZE, offset: 0 }, handle)
    }

    fn open(&mut self, object: Object) -> Handle {
        let object = self.objects.add(object);
        self.here.front.handles.open(object)
    }

    /// Nobody listens to it from here on, whoever signals it.
    fn deafen(&mut self, handle: Handle) {
        if let Some(object) = self.here.front.handles.get(handle) {
            self.objects.deafen(object);
        }
    }
}

fn file(vring: u16, handle: Handle) -> VringFile<Handle> {
    VringFile { index: vring as u8, handle: Some(handle) }
}

fn enable(vring: u16, on: bool) -> FrontendRequest<Handle> {
    let state = VringState { index: vring.into(), num: u32::from(on) };
    FrontendRequest::SetVringEnable(state)
}
