//! What a front-end says before it breaks a connection, sometimes: that the
//! device is to be reset, that a new session begins, that one vring stops or is
//! disabled while the guest goes on, or something that it must not say. Whatever
//! it was, who connects next finds everything as after any other break.

use super::objects::Object;
use super::vows::vow;
use super::{Event, Migrating, World};
use crate::guest::memory::user;
use crate::oracle::Violation;
use midflight::Handle;
use midflight::backend::FrontendFault;
use midflight::frontend::{Command, Phase};
use midflight::inflight::InflightFault;
use midflight::wire::{
    FrontendReply, FrontendReplyBody, FrontendRequest, InflightDescription, VringAddr, VringState,
};

/// What was said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// RESET_DEVICE.
    Reset,
    /// SET_OWNER, with vrings that run or at rest.
    Owner { running: bool },
    /// SET_INFLIGHT_FD with a region that cannot be taken, vrings at rest.
    Forged,
    /// GET_VRING_BASE for this vring.
    Stop(u16),
    /// SET_VRING_ENABLE 0 for this vring.
    Disable(u16),
    /// Addresses that no ring can have.
    Nonsense,
}

/// A vring that may fetch nothing any more, and what it has fetched.
pub(super) type Frozen = (u16, u64);

impl World<'_> {
    /// The front-end is about to break its connection. True if it has something
    /// to say before.
    pub(super) fn part(&mut self) -> Result<bool, Violation> {
        let quiet = self.migration.as_ref().is_none_or(Migrating::is_idle);
        if !quiet
            || self.here.id != self.guest_at
            || self.here.front.phase() != Phase::Running
            || self.here.front.parting.is_some()
            || self.here.front.has_more_to_say()
            || self.guest.borrow().is_paused()
        {
            return Ok(false);
        }
        // Without acknowledgements there is less to wait for.
        let kinds = if self.topology.reply_ack { 7 } else { 3 };
        let kind = self.front_stream.below("parting", kinds);
        let vring = self.front_stream.below("parting.vring", self.topology.queues.into()) as u16;
        let (parting, request) = match kind {
            1 => (Parting::Nonsense, FrontendRequest::SetVringAddr(self.nonsense(vring))),
            2 => {
                let plan = self.topology.migration.as_ref();
                self.here.front.may_leave = plan.is_some_and(|plan| !plan.by_message);
                let state = VringState { index: vring.into(), num: 0 };
                (Parting::Stop(vring), FrontendRequest::GetVringBase(state))
            }
            3 => {
                let state = VringState { index: vring.into(), num: 0 };
                (Parting::Disable(vring), FrontendRequest::SetVringEnable(state))
            }
            4 => (Parting::Owner { running: true }, FrontendRequest::SetOwner),
            5 | 6 => {
                // Without a stop before it: what is in flight stays in the region.
                self.here.front.may_leave = true;
                (Parting::Reset, FrontendRequest::ResetDevice)
            }
            _ => return Ok(false),
        };
        self.say_parting(parting, request)?;
        Ok(true)
    }

    /// Addresses of which one is not aligned.
    // spec: virtio 1.2, "Split Virtqueues"
    fn nonsense(&mut self, vring: u16) -> VringAddr {
        let layout = self.guest.borrow().layout(vring);
        let mut addr = VringAddr {
            index: vring.into(),
            flags: 0,
            desc: user(layout.desc),
            used: user(layout.used),
            avail: user(layout.avail),
            log: 0,
        };
        match self.front_stream.below("parting.part", 3) {
            0 => addr.desc += 8,
            1 => addr.avail += 1,
            _ => addr.used += 2,
        }
        addr
    }

    fn say_parting(
        &mut self,
        parting: Parting,
        request: FrontendRequest<Handle>,
    ) -> Result<(), Violation> {
        self.here.front.parting = Some(parting);
        if parting == Parting::Nonsense {
            self.here.front.nonsense_on = self.here.front.conn;
        }
        self.here.front.frozen = None;
        let need_reply = self.topology.reply_ack && !matches!(parting, Parting::Stop(_));
        self.front_command(Command::Raw { request, need_reply })
    }

    /// The answer to it.
    pub(super) fn parted(&mut self, reply: &FrontendReply<Handle>) -> Result<(), Violation> {
        // The connection broke before this was read.
        let Some(parting) = self.here.front.parting else { return Ok(()) };
        let taken = match parting {
            Parting::Stop(_) => matches!(reply.body, FrontendReplyBody::VringState(_)),
            Parting::Nonsense | Parting::Forged => !matches!(reply.body, FrontendReplyBody::U64(0)),
            _ => matches!(reply.body, FrontendReplyBody::U64(0)),
        };
        if !taken {
            return Err(vow(format!("{parting:?} is answered by {:?}", reply.body)));
        }
        match parting {
            Parting::Reset if self.front_stream.below("parting.forged", 2) == 1 => {
                return self.say_forged();
            }
            Parting::Reset => {
                let parting = Parting::Owner { running: false };
                return self.say_parting(parting, FrontendRequest::SetOwner);
            }
            Parting::Owner { running } => {
                // The one that answered may be dead.
                let conn = self.here.front.conn;
                let back = self.here.back.as_ref().filter(|back| back.conn == conn);
                if back.is_some_and(|back| back.mapped != running) {
                    return Err(vow(format!("after {parting:?}, memory is mapped: {}", !running)));
                }
            }
            Parting::Disable(_) => {
                // The guest goes on for a while.
                let conn = self.here.front.conn.unwrap_or(0);
                let wait = 1_000 * self.front_stream.range("parting.wait", 1, 300);
                self.schedule(wait, Event::Parted(conn));
                return Ok(());
            }
            Parting::Stop(_) | Parting::Nonsense | Parting::Forged => {}
        }
        self.go()
    }

    /// A region of another version.
    fn say_forged(&mut self) -> Result<(), Violation> {
        let Some(old) = self.here.check.inflight else { return self.go() };
        let bytes = self.arena.with_image(old, <[u8]>::to_vec);
        let queues = u64::from(self.topology.queues);
        let vring = self.front_stream.below("parting.vring", queues);
        let region = self.arena.region(bytes.len() as u64);
        self.arena.put(region, 0, &bytes);
        self.arena.put(region, bytes.len() as u64 / queues * vring + 8, &[2, 0]);
        self.here.front.forged = Some(region);
        let object = self.objects.add(Object::Memory(region));
        let handle = self.here.front.handles.open(object);
        let description = InflightDescription {
            mmap_size: bytes.len() as u64,
            mmap_offset: 0,
            num_queues: self.topology.queues,
            queue_size: self.topology.region_size,
        };
        self.say_parting(Parting::Forged, FrontendRequest::SetInflightFd(description, handle))
    }

    /// The guest went on for long enough.
    pub(super) fn parted_at(&mut self, conn: u32) -> Result<(), Violation> {
        if self.here.front.conn != Some(conn) {
            return Ok(());
        }
        self.go()
    }

    /// Break the connection, everything is said.
    fn go(&mut self) -> Result<(), Violation> {
        if let Some((vring, fetched)) = self.here.front.frozen.take() {
            let conn = self.here.front.conn;
            let same = self.here.back.as_ref().is_some_and(|back| back.conn == conn);
            let now = self.fetched(vring).filter(|_| same).unwrap_or(fetched);
            if now != fetched {
                return Err(vow(format!(
                    "vring {vring} may fetch nothing any more, and fetches {} chains",
                    now - fetched
                )));
            }
        }
        self.here.front.parting = None;
        self.here.front.leaves = self.here.front.conn;
        if let Some(conn) = self.here.front.conn {
            self.stats.breaks += 1;
            self.break_connection(conn, 0, false);
        }
        Ok(())
    }

    /// The back-end has read something. After RESET_DEVICE it does nothing any
    /// more for the guest that was there; of a vring that stops or is disabled
    /// it fetches nothing.
    // spec: vhost-user, VHOST_USER_RESET_DEVICE, "Ring states"
    pub(super) fn note_parting(&mut self) {
        let read = self.here.back.as_ref().is_some_and(|back| back.inbox.is_empty());
        if !read || !self.here.to_back.is_past(self.scheduler.now()) {
            return;
        }
        match self.here.front.parting {
            Some(Parting::Reset) => self.here.check.resets(),
            Some(Parting::Stop(vring) | Parting::Disable(vring))
                if self.here.front.frozen.is_none() =>
            {
                self.here.front.frozen = self.fetched(vring).map(|fetched| (vring, fetched));
            }
            // Some do not wait until the region is mapped.
            Some(Parting::Forged) if self.front_stream.below("parting.hasty", 2) == 1 => {
                if let Some(conn) = self.here.front.conn {
                    self.break_connection(conn, 0, false);
                }
            }
            _ => {}
        }
    }

    /// A refusal that is as it should be.
    pub(super) fn expects(&self, fault: &FrontendFault) -> bool {
        let back = self.here.back.as_ref().and_then(|back| back.conn);
        if self.here.front.asks_in_vain
            && matches!(fault, FrontendFault::VringRunning { message: "SET_VRING_NUM", .. })
        {
            return true;
        }
        match self.here.front.parting {
            Some(Parting::Nonsense) => matches!(fault, FrontendFault::VringAlign { .. }),
            // It was gone before this was read.
            _ if self.here.front.nonsense_on.is_some_and(|conn| back.is_none_or(|b| b == conn)) => {
                matches!(fault, FrontendFault::VringAlign { .. })
            }
            _ => {
                self.here.front.forged.is_some()
                    && matches!(fault, FrontendFault::Inflight(InflightFault::Version { .. }))
            }
        }
    }
}
