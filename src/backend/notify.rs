//! How a vring is kicked, and how its guest is called: by descriptor, by
//! message, or not at all.
//!
//! | the front-end has said | kick | call, err |
//! |---|---|---|
//! | a descriptor | the descriptor, and VRING_KICK too | the descriptor |
//! | NOFD | the ring is looked at by the clock | none: the guest looks |
//! | nothing, in-band notifications in force | VRING_KICK | VRING_CALL, VRING_ERR |
//! | nothing else | none | none |
//!
//! In-band notifications are for peers that cannot share descriptors. A call by
//! message is answered, and there is one at a time for each vring: what has to be
//! called for meanwhile is one more call after the answer. So a front-end that is
//! slow is not flooded, and a channel that is lost loses no call: it is sent on
//! the next one.
// spec: vhost-user, "In-band notifications"

use super::answer::Reply;
use super::channel::Asked;
use super::{Backend, FrontendFault, Output};
use crate::time::Instant;
use crate::wire::features::protocol;
use crate::wire::{BackendRequest, VringState};
use vm_memory::GuestMemory;

/// What in-band notifications take besides their own bit.
const NEEDED: u64 = protocol::REPLY_ACK | protocol::BACKEND_REQ;

impl<M: GuestMemory> Backend<M> {
    /// Protocol features that make no sense together.
    pub(super) fn check_inband(protocol: u64) -> Result<(), FrontendFault> {
        let missing = NEEDED & !protocol;
        if protocol & protocol::INBAND_NOTIFICATIONS != 0 && missing != 0 {
            return Err(FrontendFault::FeaturesMissing {
                feature: "INBAND_NOTIFICATIONS",
                got: protocol,
                needed: NEEDED,
            });
        }
        Ok(())
    }

    fn is_inband(&self) -> bool {
        self.session.protocol & protocol::INBAND_NOTIFICATIONS != 0
    }

    /// VRING_KICK: starts a vring that is stopped, and has one that runs looked
    /// at.
    // spec: vhost-user, VHOST_USER_VRING_KICK
    pub(super) fn vring_kick(
        &mut self,
        now: Instant,
        state: VringState,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        self.need(protocol::INBAND_NOTIFICATIONS, "INBAND_NOTIFICATIONS", reply)?;
        let vring = self.vring_index(state.index, reply)?;
        self.kicked(now, vring)
    }

    /// Tell the guest that there are used entries.
    pub(super) fn call(&mut self, vring: u16) {
        let inband = self.is_inband();
        let v = &mut self.vrings[usize::from(vring)];
        match v.call {
            Some(handle) => self.out.push_back(Output::Call { vring, handle }),
            None if v.call_polled || !inband => {}
            None => {
                v.call_due = true;
                self.call_inband(vring);
            }
        }
    }

    /// Send a call that is due, unless one is on its way or there is no way.
    pub(super) fn call_inband(&mut self, vring: u16) {
        let v = &self.vrings[usize::from(vring)];
        let due = v.call_due && v.run.is_some();
        if due && self.has_channel() && !self.is_due(Asked::Call(vring)) {
            self.send_call(vring);
        }
    }

    fn send_call(&mut self, vring: u16) {
        self.vrings[usize::from(vring)].call_due = false;
        let state = VringState { index: u32::from(vring), num: 0 };
        self.ask(BackendRequest::VringCall(state), Asked::Call(vring));
    }

    /// A vring is about to be at rest, and then nothing is said for it any more.
    pub(super) fn call_last(&mut self, vring: u16) {
        if self.vrings[usize::from(vring)].call_due && self.has_channel() {
            self.send_call(vring);
        }
    }

    /// What could not be said for want of a channel.
    pub(super) fn channel_opened(&mut self) {
        for vring in 0..self.config.num_queues {
            self.call_inband(vring);
        }
    }

    /// Tell the front-end that a vring is broken.
    pub(super) fn err(&mut self, vring: u16) {
        let v = &self.vrings[usize::from(vring)];
        match v.err {
            Some(handle) => self.out.push_back(Output::Err { vring, handle }),
            None if v.err_polled || !self.is_inband() => {}
            None => {
                let state = VringState { index: u32::from(vring), num: 0 };
                self.ask(BackendRequest::VringErr(state), Asked::Err);
            }
        }
    }
}
