//! Everything that ends: one vring, all of them, a connection, the program.

use super::answer::Reply;
use super::cache::WriteCache;
use super::in_order::InOrder;
use super::policy::Stop;
use super::setup::{Pending, Stopping};
use super::vring::{Run, Vring};
use super::{Backend, CloseReason, Event, FrontendFault, Link, Output};
use crate::bugs::{self, Bug};
use crate::marks::{self, Mark};
use crate::time::Instant;
use crate::wire::features::virtio;
use crate::wire::{FrontendReplyBody, VringState};
use vm_memory::GuestMemory;

impl<M: GuestMemory> Backend<M> {
    /// GET_VRING_BASE: fetch no more, wait until the disk does nothing for this
    /// vring any more, answer. A suspend first waits for a while, then helps.
    // spec: vhost-user, VHOST_USER_GET_VRING_BASE
    pub(super) fn get_vring_base(&mut self, now: Instant, vring: u16, stop: Stop, reply: Reply) {
        let mut cancel_at = None;
        marks::hit_when(Mark::StopOneOfMany, || {
            (0u16..).zip(&self.vrings).any(|(i, v)| i != vring && v.run.is_some())
        });
        if let Some(run) = &mut self.vrings[usize::from(vring)].run {
            run.stopping = true;
            let inflight = run.at_disk;
            let policy = self.suspend.filter(|_| stop == Stop::Suspend && run.region.is_some());
            match policy {
                _ if inflight == 0 => marks::hit(Mark::StopIdle),
                Some(policy) => {
                    marks::hit(Mark::StopSuspends);
                    let at = *self.cancel_at.get_or_insert(now + policy.grace);
                    cancel_at = Some(at);
                    self.event(Event::Suspending { vring, inflight });
                }
                None => {
                    marks::hit(Mark::StopDrains);
                    self.event(Event::Draining { vring, inflight });
                }
            }
        }
        if bugs::on_when(Bug::LogOffAtStop, || self.log.is_some()) {
            self.session.features &= !virtio::LOG_ALL;
        }
        self.pending = Pending::Stop(Stopping { vring, cancel_at, reply });
    }

    /// A vring's time is up: what it has in flight is to be over soon, one way
    /// or the other.
    fn cancel(&mut self, vring: u16) {
        let Some(run) = &mut self.vrings[usize::from(vring)].run else { return };
        if run.in_order.as_ref().is_some_and(InOrder::has_what_runs_once) {
            return;
        }
        marks::hit(Mark::SuspendCancels);
        run.suspending = true;
        if bugs::on(Bug::ReplyBeforeCancelled) {
            run.at_disk = 0;
            self.requests.orphan(vring);
            return;
        }
        self.out.extend(self.requests.cancellable(vring).map(Output::Cancel));
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
    pub(super) fn finish_waits(&mut self, now: Instant) {
        match self.pending.take() {
            Pending::Stop(stopping) => self.go_on_stopping(now, stopping),
            Pending::Settle(settling) => self.go_on_settling(now, settling),
            Pending::Reset(reply) if self.requests.is_empty() => {
                self.reset_vrings();
                self.answer_ok(reply);
            }
            Pending::Invalidate(range, reply) if !self.is_used(range) => {
                self.let_go();
                self.answer(reply, FrontendReplyBody::U64(0));
            }
            Pending::Vacate(vacating) => self.go_on_vacating(vacating),
            other => self.pending = other,
        }
        if self.shutdown && self.link == Link::Connected && self.requests.is_empty() {
            self.out.push_back(Output::Close(CloseReason::Shutdown));
            self.disconnect();
        }
        if self.link == Link::Leaving && self.requests.is_empty() {
            self.left();
        }
        self.release_store();
    }

    /// The answer is the last thing that happens: until then the vring's memory
    /// may be written, afterwards nothing of it is touched.
    fn go_on_stopping(&mut self, now: Instant, mut stopping: Stopping) {
        let vring = stopping.vring;
        if !self.at_rest(vring) && stopping.cancel_at.is_some_and(|at| at <= now) {
            stopping.cancel_at = None;
            self.cancel(vring);
        }
        if !self.at_rest(vring) && !bugs::on(Bug::ReplyBeforeDrained) {
            self.pending = Pending::Stop(stopping);
            return;
        }
        marks::hit_when(Mark::SuspendInGrace, || stopping.cancel_at.is_some());
        let base = self.stop_vring(vring);
        self.vrings[usize::from(vring)].told = Some(base);
        let base = if bugs::on_when(Bug::BaseZero, || base != 0) { 0 } else { base };
        let state = VringState { index: u32::from(vring), num: base };
        // Whoever hears the answer may start the device elsewhere.
        self.release_store();
        self.answer(stopping.reply, FrontendReplyBody::VringState(state));
    }

    /// True if the disk does nothing for this vring.
    fn at_rest(&self, vring: u16) -> bool {
        let vring = if bugs::on_when(Bug::WaitsForFirstVring, || vring != 0) { 0 } else { vring };
        self.vrings[usize::from(vring)].run.as_ref().is_none_or(|r| r.at_disk == 0)
    }

    /// Let another owner have the store, if nothing here needs it.
    fn release_store(&mut self) {
        if !self.store || !self.requests.is_empty() {
            return;
        }
        if self.running_vring().is_none() && !bugs::on(Bug::StoreKept) {
            self.store = false;
            self.out.push_back(Output::ReleaseStore);
        }
    }

    /// Stop a vring that the disk does nothing for; its base.
    pub(super) fn stop_vring(&mut self, vring: u16) -> u32 {
        self.call_last(vring);
        let format = self.session.ring_format();
        let v = &mut self.vrings[usize::from(vring)];
        if let Some(run) = v.run.take() {
            self.cache.vring_stopped();
            let inflight = run.in_flight();
            // What was fetched is published or in flight. A head that broke the
            // ring before it got into the region is neither, and is fetched
            // again by whoever starts next.
            let base = match run.region {
                Some(_) if bugs::on_when(Bug::BaseWithoutInflight, || inflight > 0) => {
                    run.ring.base_with([].into_iter())
                }
                Some(_) => run.ring.base_with(run.taken_slots()),
                None => run.ring.base(),
            };
            v.base = Some(base);
            if run.suspending {
                self.out.push_back(Output::Event(Event::Suspended { vring, inflight }));
            }
            self.out.push_back(Output::Event(Event::VringStopped { vring, base }));
            if bugs::on(Bug::RunsAfterReply) {
                v.run = Some(Run { stopping: false, ..run });
            }
        }
        v.started = false;
        v.polled = false;
        let base = v.base;
        // A stopped vring has no right to its kick descriptor; call and err
        // stay, since not every front-end sends them again.
        if let Some(kick) = v.kick.take() {
            self.out.push_back(Output::WatchKick { vring, handle: None });
            self.out.push_back(Output::Release(kick));
        }
        self.forget_translations(vring);
        base.unwrap_or(format.first_base())
    }

    /// Connection, protocol features and memory stay; call and err as well,
    /// since they are not sent again after a reset.
    fn reset_vrings(&mut self) {
        for vring in 0..self.config.num_queues {
            self.stop_vring(vring);
            let size = self.config.queue_size_max;
            let v = &mut self.vrings[usize::from(vring)];
            let (call_polled, err_polled) = (v.call_polled, v.err_polled);
            *v = Vring { call: v.call, call_polled, err: v.err, err_polled, ..Vring::new(size) };
        }
        self.end_transfer();
        self.session.features = 0;
        self.session.status = 0;
        self.inflight = None;
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
        marks::hit_when(Mark::LeftInFlight, || !self.requests.is_empty());
        marks::hit_when(Mark::LeftWaiting, || !self.pending.is_none());
        self.link = Link::Leaving;
        self.drop_channel();
        self.requests.orphan_all();
        let waiting = match self.pending.take() {
            Pending::Map(change) | Pending::MapMissing(change) => change.into_new(),
            Pending::Vacate(vacating) => vacating.into_gone(),
            Pending::MapInflight(_, handle, _) | Pending::MapLog(_, handle, _) => vec![handle],
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
        self.log = None;
        self.close_faults(false);
        self.vacated = None;
        self.end_transfer();
        self.cancel_at = None;
        self.cache = WriteCache::default();
        self.iommu.clear();
        self.iommu.channel_given = false;
    }

    /// A session begins. QEMU may begin a second one over the same connection,
    /// when the device is unplugged and another is plugged in on its socket:
    /// memory is then sent once more, without having been removed.
    // spec: vhost-user, VHOST_USER_SET_OWNER
    pub(super) fn set_owner(&mut self) {
        if self.requests.is_empty() && self.running_vring().is_none() {
            self.close_faults(false);
            self.forget_memory();
            self.inflight = None;
            self.log = None;
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
