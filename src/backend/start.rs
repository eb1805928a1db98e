//! A vring begins to run: its place is checked, what a predecessor left is
//! taken over, and the ring is looked at once without being asked.

use super::in_order::InOrder;
use super::vring::{Run, Vring};
use super::{Backend, Event, FrontendFault, Output};
use crate::bugs::{self, Bug};
use crate::dirty::RingLog;
use crate::inflight::{Recovery, RingState, SplitRegion};
use crate::marks::{self, Mark};
use crate::time::Instant;
use crate::vring::SplitRing;
use crate::wire::features::virtio;
use vm_memory::GuestMemory;

/// A ring whose place was checked, with what a predecessor left in it.
struct Taken {
    ring: SplitRing,
    region: Option<SplitRegion>,
    recovery: Recovery,
    /// Used index.
    used: u16,
    avail_idx: u16,
}

impl<M: GuestMemory> Backend<M> {
    /// To be called when a vring has become started or enabled. Does nothing
    /// unless it is both. A fault leaves the vring as it was.
    // spec: vhost-user, "Ring states"
    pub(super) fn start_vring(&mut self, now: Instant, vring: u16) -> Result<(), FrontendFault> {
        let v = &self.vrings[usize::from(vring)];
        if !v.started || !v.enabled {
            return Ok(());
        }
        if v.run.is_none() {
            let taken = self.take_up(vring)?;
            self.begin(now, vring, taken);
        }
        // A kick before this moment was not looked at, and a front-end need not
        // kick at all.
        if !bugs::on(Bug::KickRequired) {
            self.fetch(now, vring);
        }
        Ok(())
    }

    /// A front-end without protocol features has no message to enable vrings;
    /// they are enabled with its features. All of them start or none does: a
    /// refusal takes the features back, and no ring may run by features that
    /// are not in force.
    // spec: vhost-user, "Ring states"
    pub(super) fn enable_all(&mut self, now: Instant) -> Result<(), FrontendFault> {
        let mut ready = Vec::new();
        for (vring, v) in (0..).zip(&self.vrings) {
            if v.started && v.run.is_none() {
                ready.push((vring, self.take_up(vring)?));
            }
        }
        self.vrings.iter_mut().for_each(|v| v.enabled = true);
        for (vring, taken) in ready {
            self.begin(now, vring, taken);
        }
        for vring in 0..self.config.num_queues {
            self.fetch(now, vring);
        }
        Ok(())
    }

    /// Everything that can be refused. What is stored into the inflight region
    /// here is recovery, which may be done any number of times.
    fn take_up(&self, vring: u16) -> Result<Taken, FrontendFault> {
        if self.is_transferring() {
            return Err(FrontendFault::Transferring { message: "a start" });
        }
        let v = &self.vrings[usize::from(vring)];
        let at = v.place(vring, &self.table)?;
        let unmapped = || FrontendFault::VringUnmapped { vring };
        let mem = self.memory.as_ref().ok_or_else(unmapped)?;
        let event_idx = self.session.features & virtio::EVENT_IDX != 0;
        let ring = SplitRing::new(mem, v.size, at, event_idx).map_err(|_| unmapped())?;

        let used = ring.used_idx();
        let avail_idx = ring.avail_idx(mem).map_err(|_| unmapped())?;
        let state = RingState { size: v.size, used_idx: used, avail_idx };
        let (region, recovery) = match &self.inflight {
            Some(i) => {
                if self.was_reset(v) {
                    i.shape.forget(&i.memory, vring)?;
                }
                let (region, recovery) = SplitRegion::attach(&i.memory, &i.shape, vring, state)?;
                (Some(region), recovery)
            }
            None => (None, Recovery { fresh: true, ..Recovery::default() }),
        };
        Ok(Taken { ring, region, recovery, used, avail_idx })
    }

    /// True if the guest has reset this vring alone: it is started again on the
    /// region it was stopped with, and not where it was stopped. Nothing of what
    /// was in flight then belongs to the ring that starts now.
    // spec: virtio 1.2, "Virtqueue Reset"
    fn was_reset(&self, v: &Vring) -> bool {
        let agreed = self.session.features & virtio::RING_RESET != 0;
        agreed && v.told.is_some_and(|told| told != v.base)
    }

    fn begin(&mut self, now: Instant, vring: u16, taken: Taken) {
        let Taken { mut ring, region, recovery, used, avail_idx } = taken;
        let v = &self.vrings[usize::from(vring)];

        // What the base means depends on how the front-end came by it: after a
        // stop it counts the requests in flight, after a crash it does not. The
        // region knows, so the base is only a check, except where nobody has
        // tracked anything.
        let inflight = recovery.resubmit.len() as u16;
        let next = match () {
            () if recovery.fresh || bugs::on_when(Bug::BaseTrusted, || inflight > 0) => v.base,
            () if bugs::on_when(Bug::BasePlusInflight, || inflight > 0) => {
                v.base.wrapping_add(inflight)
            }
            () if bugs::on(Bug::UnfinishedSkipped) => avail_idx,
            () => used.wrapping_add(inflight),
        };
        marks::hit_when(Mark::BaseAfterCrash, || inflight > 0 && v.base == used);
        marks::hit_when(Mark::BaseAfterStop, || inflight > 0 && v.base == next);
        let plausible = v.base == used || v.base == used.wrapping_add(inflight);
        let base = v.base;
        ring.set_next_avail(next);
        // What a predecessor stored and did not live to mark. Data and status
        // need no such care: what it had not published is written again.
        let log = self.session.log_in_force(&self.log);
        if let Some((log, at)) = log.zip(v.used_log())
            && !bugs::on(Bug::LogNotMended)
        {
            marks::hit(Mark::LogMended);
            ring.log_all(&RingLog::new(log, at));
            log.published();
        }

        let size = v.size;
        let in_order = self.session.features & virtio::IN_ORDER != 0;
        self.vrings[usize::from(vring)].run = Some(Run {
            ring,
            region,
            taken: vec![false; usize::from(size)],
            at_disk: 0,
            batch: Vec::with_capacity(usize::from(size)),
            in_order: in_order.then(|| InOrder::new(size)),
            stopping: false,
            suspending: false,
            broken: false,
            more: false,
            poll_at: Instant::ZERO,
        });
        if !plausible {
            self.event(Event::BaseContradicted { vring, base, used, inflight });
        }
        self.event(Event::VringRunning {
            vring,
            size,
            next_avail: next,
            used,
            resubmitted: inflight,
        });
        // A stop is over when a vring starts; the next one has its own grace.
        self.cancel_at = None;
        if !self.store {
            self.store = true;
            self.out.push_back(Output::AcquireStore);
        }
        if bugs::on(Bug::ResubmitAfterFetch) {
            self.fetch(now, vring);
        }
        // Resubmission is complete before anything new is fetched.
        self.resubmit(vring, &recovery.resubmit);
        // A predecessor may have died between publishing and calling.
        if let Some(handle) = self.vrings[usize::from(vring)].call
            && !bugs::on(Bug::NoCallAfterRecovery)
        {
            self.out.push_back(Output::Call { vring, handle });
        }
    }
}
