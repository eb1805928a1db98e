//! A vring begins to run: its place is checked, what a predecessor left is
//! taken over, and the ring is looked at once without being asked.

use super::vring::Run;
use super::{Backend, Event, FrontendFault, Output};
use crate::bugs::{self, Bug};
use crate::dirty::RingLog;
use crate::inflight::{Recovery, RingState, SplitRegion};
use crate::marks::{self, Mark};
use crate::time::Instant;
use crate::vring::SplitRing;
use crate::wire::features::virtio;
use vm_memory::GuestMemory;

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
            self.take_up(now, vring)?;
        }
        // A kick before this moment was not looked at, and a front-end need not
        // kick at all.
        if !bugs::on(Bug::KickRequired) {
            self.fetch(now, vring);
        }
        Ok(())
    }

    fn take_up(&mut self, now: Instant, vring: u16) -> Result<(), FrontendFault> {
        if self.postcopy.holds_fetching() {
            return Err(FrontendFault::MemoryNotAcknowledged { vring });
        }
        let v = &self.vrings[usize::from(vring)];
        let at = v.place(vring, &self.table)?;
        let unmapped = || FrontendFault::VringUnmapped { vring };
        let mem = self.memory.as_ref().ok_or_else(unmapped)?;
        let event_idx = self.session.features & virtio::EVENT_IDX != 0;
        let mut ring = SplitRing::new(mem, v.size, at, event_idx).map_err(|_| unmapped())?;

        let used = ring.used_idx();
        let avail_idx = ring.avail_idx(mem).map_err(|_| unmapped())?;
        let state = RingState { size: v.size, used_idx: used, avail_idx };
        let (region, recovery) = match &self.inflight {
            Some(i) => {
                let (region, recovery) = SplitRegion::attach(&i.memory, &i.shape, vring, state)?;
                (Some(region), recovery)
            }
            None => (None, Recovery { fresh: true, ..Recovery::default() }),
        };

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
        self.vrings[usize::from(vring)].run = Some(Run {
            ring,
            region,
            taken: vec![false; usize::from(size)],
            at_disk: 0,
            batch: Vec::with_capacity(usize::from(size)),
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
        Ok(())
    }
}
