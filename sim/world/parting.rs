//! What a front-end says before it breaks a connection, sometimes: that the
//! device is to be reset, that a new session begins, or something that it must
//! not say. Whatever it was, who connects next finds everything as after any
//! other break.

use super::vows::vow;
use super::{Migrating, World};
use crate::guest::memory::REGIONS;
use crate::oracle::Violation;
use midflight::backend::FrontendFault;
use midflight::frontend::{Command, Phase};
use midflight::wire::{FrontendReply, FrontendReplyBody, FrontendRequest, VringAddr};

/// What was said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// RESET_DEVICE.
    Reset,
    /// SET_OWNER, with vrings that run or at rest.
    Owner { running: bool },
    /// Addresses that no ring can have.
    Nonsense,
}

impl World<'_> {
    /// The front-end is about to break its connection. True if it has something
    /// to say before.
    pub(super) fn part(&mut self) -> Result<bool, Violation> {
        let quiet = self.migration.as_ref().is_none_or(Migrating::is_idle);
        if !quiet
            || self.here.id != self.guest_at
            || self.here.front.phase() != Phase::Running
            || self.here.front.parting.is_some()
            || self.guest.borrow().is_paused()
            || !self.topology.reply_ack
        {
            return Ok(false);
        }
        match self.front_stream.below("parting", 5) {
            // Without a stop before it: what is in flight stays in the region.
            1 | 2 => {
                self.here.front.may_leave = true;
                self.say_parting(Parting::Reset, FrontendRequest::ResetDevice)?;
            }
            3 => {
                let parting = Parting::Owner { running: true };
                self.say_parting(parting, FrontendRequest::SetOwner)?;
            }
            4 => {
                let vring = self.front_stream.below("parting.vring", self.topology.queues.into());
                let layout = self.guest.borrow().layout(vring as u16);
                let user = REGIONS[0].user;
                let mut addr = VringAddr {
                    index: vring as u32,
                    flags: 0,
                    desc: user + layout.desc,
                    used: user + layout.used,
                    avail: user + layout.avail,
                    log: 0,
                };
                match self.front_stream.below("parting.part", 3) {
                    0 => addr.desc += 8,
                    1 => addr.avail += 1,
                    _ => addr.used += 2,
                }
                self.say_parting(Parting::Nonsense, FrontendRequest::SetVringAddr(addr))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn say_parting(
        &mut self,
        parting: Parting,
        request: FrontendRequest<midflight::Handle>,
    ) -> Result<(), Violation> {
        self.here.front.parting = Some(parting);
        self.front_command(Command::Raw { request, need_reply: true })
    }

    /// The answer to it.
    pub(super) fn parted(
        &mut self,
        reply: &FrontendReply<midflight::Handle>,
    ) -> Result<(), Violation> {
        // The connection broke before this was read.
        let Some(parting) = self.here.front.parting else { return Ok(()) };
        let refused = !matches!(reply.body, FrontendReplyBody::U64(0));
        if refused != (parting == Parting::Nonsense) {
            return Err(vow(format!("{parting:?} is answered by {:?}", reply.body)));
        }
        match parting {
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
            Parting::Nonsense => {}
        }
        self.here.front.parting = None;
        if let Some(conn) = self.here.front.conn {
            self.stats.breaks += 1;
            self.break_connection(conn, 0, false);
        }
        Ok(())
    }

    /// The back-end has read something: after RESET_DEVICE it does nothing any
    /// more for the guest that was there.
    // spec: vhost-user, VHOST_USER_RESET_DEVICE
    pub(super) fn note_reset(&mut self) {
        let read = self.here.back.as_ref().is_some_and(|back| back.inbox.is_empty());
        if self.here.front.parting == Some(Parting::Reset)
            && read
            && self.here.to_back.is_past(self.scheduler.now())
        {
            self.here.check.quiet.fill(true);
        }
    }

    /// A refusal that is as it should be.
    pub(super) fn expects(&self, fault: &FrontendFault) -> bool {
        self.here.front.parting == Some(Parting::Nonsense)
            && matches!(fault, FrontendFault::VringAlign { .. })
    }
}
