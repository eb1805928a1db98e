//! Everything that ends: one vring, all of them, a connection, the program.

use super::session::Reply;
use super::setup::Pending;
use super::vring::Vring;
use super::{Backend, CloseReason, Event, FrontendFault, Link, Output};
use crate::wire::{FrontendReplyBody, VringState};
use vm_memory::GuestMemory;

impl<M: GuestMemory> Backend<M> {
    /// GET_VRING_BASE: fetch no more, wait for what is in flight, answer.
    // spec: vhost-user, VHOST_USER_GET_VRING_BASE
    pub(super) fn get_vring_base(&mut self, vring: u16, reply: Reply) {
        if let Some(run) = &mut self.vrings[usize::from(vring)].run {
            run.draining = true;
            let inflight = run.at_disk;
            if inflight > 0 {
                self.event(Event::Draining { vring, inflight });
            }
        }
        self.pending = Pending::Drain(vring, reply);
    }

    /// RESET_DEVICE: all vrings back to where they began. What is in flight is
    /// never completed: the guest that asked for it is gone, and its memory
    /// may be something else by now.
    // spec: vhost-user, VHOST_USER_RESET_DEVICE
    pub(super) fn reset_device(&mut self, reply: Reply) {
        self.requests.orphan_all();
        self.pending = Pending::Reset(reply);
    }

    /// Whatever waited for the disk and does so no longer.
    pub(super) fn finish_waits(&mut self) {
        match self.pending.take() {
            Pending::Drain(vring, reply) if self.drained(vring) => {
                let base = self.stop_vring(vring);
                let state = VringState { index: u32::from(vring), num: u32::from(base) };
                self.answer(reply, FrontendReplyBody::VringState(state));
            }
            Pending::Reset(reply) if self.requests.is_empty() => {
                self.reset_vrings();
                self.answer_ok(reply);
            }
            Pending::Quiesce(change) if self.requests.is_empty() => self.map(change),
            other => self.pending = other,
        }
        if self.shutdown && self.link == Link::Connected && self.requests.is_empty() {
            self.out.push_back(Output::Close(CloseReason::Shutdown));
            self.disconnect();
        }
        if self.link == Link::Leaving && self.requests.is_empty() {
            self.left();
        }
    }

    fn drained(&self, vring: u16) -> bool {
        self.vrings[usize::from(vring)].run.as_ref().is_none_or(|r| r.at_disk == 0)
    }

    /// Stop a vring that has nothing in flight; its base.
    fn stop_vring(&mut self, vring: u16) -> u16 {
        let v = &mut self.vrings[usize::from(vring)];
        if let Some(run) = v.run.take() {
            v.base = run.ring.next_avail();
            let base = v.base;
            self.out.push_back(Output::Event(Event::VringStopped { vring, base }));
        }
        v.started = false;
        v.polled = false;
        // A stopped vring has no right to its kick descriptor; call and err
        // stay, since not every front-end sends them again.
        if let Some(kick) = v.kick.take() {
            self.out.push_back(Output::WatchKick { vring, handle: None });
            self.out.push_back(Output::Release(kick));
        }
        v.base
    }

    /// Connection, protocol features and memory stay; call and err as well,
    /// since they are not sent again after a reset.
    fn reset_vrings(&mut self) {
        for vring in 0..self.config.num_queues {
            self.stop_vring(vring);
            let size = self.config.queue_size_max;
            let v = &mut self.vrings[usize::from(vring)];
            *v = Vring { call: v.call, err: v.err, ..Vring::new(size) };
        }
        self.session.features = 0;
        self.inflight = None;
        self.writeback = true;
    }

    /// The front-end broke the protocol in a way it cannot be told.
    pub(super) fn close(&mut self, fault: FrontendFault) {
        if self.link == Link::Connected {
            self.out.push_back(Output::Close(CloseReason::FrontendMisbehaved(fault)));
            self.disconnect();
        }
    }

    /// The connection is gone. From here on nothing is written to the guest's
    /// memory: whoever takes over decides by ring and region, and may be
    /// looking already.
    pub(super) fn disconnect(&mut self) {
        self.link = Link::Leaving;
        self.requests.orphan_all();
        let waiting = match self.pending.take() {
            Pending::Quiesce(change) | Pending::Map(change) => change.into_new(),
            Pending::MapInflight(_, handle, _) => vec![handle],
            _ => Vec::new(),
        };
        self.release(waiting);
        let undelivered = self.decoder.drain_handles();
        self.release(undelivered);
        for vring in 0..self.config.num_queues {
            let v = &mut self.vrings[usize::from(vring)];
            let Vring { kick, call, err, .. } =
                core::mem::replace(v, Vring::new(self.config.queue_size_max));
            if kick.is_some() {
                self.out.push_back(Output::WatchKick { vring, handle: None });
            }
            self.release([kick, call, err].into_iter().flatten());
        }
        self.inflight = None;
        self.writeback = true;
    }

    /// A session begins. QEMU may begin a second one over the same connection,
    /// when the device is unplugged and another is plugged in on its socket:
    /// memory is then sent once more, without having been removed.
    // spec: vhost-user, VHOST_USER_SET_OWNER
    pub(super) fn set_owner(&mut self) {
        if self.requests.is_empty() && self.vrings.iter().all(|v| v.run.is_none()) {
            self.forget_memory();
            self.inflight = None;
        }
    }

    /// The disk is done with the front-end that left.
    fn left(&mut self) {
        self.link = Link::Idle;
        self.forget_memory();
    }

    fn forget_memory(&mut self) {
        let table = core::mem::take(&mut self.table);
        if self.memory.take().is_some() {
            self.out.push_back(Output::Unmap);
        }
        self.release(table.regions().iter().map(|r| r.handle));
    }
}
