//! The disk with its faults. A flawless one is asked once a request whether it
//! has any.

use super::faults::{Counts, DiskFault, FaultPlan, Faults, Injected, Struck, Try};
use super::{Disk, Job, Pending, SECTOR};
use crate::choices::Stream;
use midflight::blk::Completion;

type Old = Vec<(u64, Box<[u8; SECTOR as usize]>)>;

impl Disk {
    /// The same disk with these faults. Only right while nothing was asked of it.
    #[must_use]
    pub fn with_faults(mut self, plan: &FaultPlan, stream: Stream) -> Self {
        if !plan.is_empty() {
            self.faults = Some(Box::new(Faults::new(plan, stream)));
            self.image.keep_versions();
        }
        self
    }

    /// How often each family of faults has taken effect.
    pub fn fault_counts(&self) -> Counts {
        self.faults.as_ref().map_or_else(Counts::default, |faults| faults.counts)
    }

    /// The decisions of a disk with faults so far.
    pub fn fault_stream(&self) -> Option<&Stream> {
        self.faults.as_ref().map(|faults| &faults.stream)
    }

    /// Whether something took effect that nobody was told.
    pub fn has_news(&self) -> bool {
        !self.told.is_empty()
    }

    /// What took effect since the last call, in order.
    pub fn take_news(&mut self) -> Vec<Injected> {
        std::mem::take(&mut self.told)
    }

    /// No fault strikes from now on, and what cannot be read or written can be.
    /// Wrong content stays until it is written over.
    pub fn heal(&mut self) {
        if let Some(faults) = &mut self.faults {
            faults.heal();
        }
    }

    /// A completion is due: the time at which it may come, if it is held back.
    pub fn hold_back(&mut self, now: u64, key: u64) -> Option<u64> {
        let faults = self.faults.as_mut()?;
        let pending = self.pending.get_mut(key)?;
        if pending.held_back {
            return None;
        }
        let (until, turn) = faults.hold(now)?;
        pending.held_back = turn;
        Some(until)
    }

    /// The node with the disk loses power. What nobody has killed before is gone
    /// as well, and of each sector in the cache any content since the durable one
    /// is left. How many sectors went back.
    pub fn power_loss(&mut self) -> u64 {
        self.pending.clear();
        self.lanes.fill(0);
        let Some(faults) = &mut self.faults else { return 0 };
        faults.counts.note(super::faults::Family::PowerLoss);
        self.image.lose_cache(|n| faults.stream.below("left", n))
    }

    /// A request is about to move `limit` bytes: how many it does move.
    pub(super) fn strike(&mut self, pending: &mut Pending, limit: u64) -> u64 {
        let of = Try::from(&pending.job);
        if pending.result.is_err() {
            self.told.push(Injected::Fails { of, sector: None, by: None });
        }
        let Some(faults) = &mut self.faults else { return limit };
        let Pending { ref job, fault, mark, .. } = *pending;
        let Struck { limit: reach, result, blame: (sector, by) } =
            faults.strike(job, fault, &mut self.image, mark, &mut self.told);
        if result.is_err() {
            self.told.push(Injected::Fails { of, sector, by });
        }
        pending.result = pending.result.and(result);
        limit.min(reach)
    }

    /// How many of `limit` bytes come before a sector that cannot do it.
    pub(super) fn reach(&self, job: &Job, limit: u64) -> u64 {
        let bad = self.faults.as_ref().and_then(|faults| faults.reach(job));
        bad.map_or(limit, |(reach, ..)| reach.min(limit))
    }

    pub(super) fn before_write(&self, pending: &Pending, len: u64) -> Old {
        self.faults.as_ref().map_or_else(Vec::new, |faults| {
            faults.before_write(pending.fault, &self.image, pending.job.offset, len)
        })
    }

    pub(super) fn after_write(&mut self, pending: &Pending, len: u64, old: Old) {
        if let Some(faults) = &mut self.faults {
            let place = (pending.job.offset, len);
            faults.after_write(pending.fault, &self.image, place, old, &mut self.told);
        }
    }

    /// Zeroes from the start of a job on.
    pub(super) fn zero(&mut self, pending: &Pending, len: u64) {
        self.image.zero(pending.job.offset, len, pending.job.durable);
        self.after_write(pending, len, Vec::new());
    }

    /// The request is over; maybe not for the last time.
    pub(super) fn report_again(&mut self, pending: &Pending) {
        let Some(DiskFault::Duplicate { after_us }) = pending.fault else { return };
        let id = pending.job.id;
        if let Some(faults) = &mut self.faults {
            faults.counts.note(super::faults::Family::Duplicate);
        }
        let completion = Completion { id, result: pending.result };
        let after = 1_000 * u64::from(after_us);
        self.told.push(Injected::Again { of: Try::from(&pending.job), completion, after });
    }
}
