//! Crash at every store of a short run.
//!
//! The run is done once, and what each step of the back-end stored and wished
//! is noted. Then it is done again for every moment at which the process could
//! have died: between any two stores, inside every store that a processor may
//! cut, and between any two wishes. Up to that moment the runs are the same.

use crate::choices::Ratio;
use crate::disk::Pace;
use crate::disk::faults::FaultPlan;
use crate::memory::Arena;
use crate::oracle::Violation;
use crate::profile::{Migration, Policy, Profile};
use crate::run::run_profile;
use crate::world::{CrashPoint, Options, StepShape};

/// What was explored.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Stores of the back-end in the run without a crash.
    pub stores: u64,
    /// Most requests published by one store of the used index in that run.
    pub batch: u64,
    /// Moments between two stores, before the first and after the last of each
    /// step included.
    pub between_stores: u64,
    /// Moments inside a store.
    pub inside_stores: u64,
    /// Moments between two wishes, after the stores of their step.
    pub between_outputs: u64,
    /// Crashes that left requests for a successor to resubmit.
    pub recoveries: u64,
    /// Requests resubmitted in all of them.
    pub resubmitted: u64,
    /// What went wrong.
    pub failures: Vec<(CrashPoint, Violation)>,
}

impl Report {
    /// Moments explored.
    pub fn points(&self) -> u64 {
        self.between_stores + self.inside_stores + self.between_outputs
    }

    /// Add another report.
    pub fn add(&mut self, other: Self) {
        self.stores += other.stores;
        self.batch = self.batch.max(other.batch);
        self.between_stores += other.between_stores;
        self.inside_stores += other.inside_stores;
        self.between_outputs += other.between_outputs;
        self.recoveries += other.recoveries;
        self.resubmitted += other.resubmitted;
        self.failures.extend(other.failures);
    }
}

/// A short run of one split ring in which requests come and go in batches of
/// `batch`. The ring was used before and its region is fresh.
pub fn short_run(batch: u64, event_idx: bool) -> Profile {
    Profile {
        queues: 1,
        ring_size: 16,
        region_size: 16,
        first_index: 5,
        event_idx,
        indirect: true,
        flush: true,
        sectors: 64,
        requests: 4 + 3 * batch,
        depth: batch,
        batch,
        max_sectors: 2,
        hot_sectors: 4,
        bad: Ratio::new(1, 6),
        pace: Pace::Quick,
        gather: if batch == 1 { 0 } else { 200 },
        disk_errors: Ratio::NEVER,
        disk_faults: FaultPlan::default(),
        reply_ack: true,
        mem_slots: true,
        split: Ratio::NEVER,
        kills: 0,
        kill_stores: 0,
        kill_idle: Ratio::NEVER,
        gentle: Ratio::NEVER,
        races: Ratio::NEVER,
        first_kick: true,
        polled: false,
        pauses: 0,
        breaks: 0,
        migration: None,
    }
}

/// A short run in which a guest with requests in flight moves to another host,
/// and back if `times` is 2.
pub fn short_migration(batch: u64, policy: Policy, times: u64) -> Profile {
    Profile {
        requests: 6 + 6 * batch,
        depth: 2 * batch,
        pace: Pace::Spread,
        bad: Ratio::NEVER,
        gather: if batch == 1 { 0 } else { 20 },
        migration: Some(Migration {
            policy,
            by_message: batch.is_multiple_of(2),
            grace: 0,
            cancel: Some(10),
            times,
            apart: 100,
            page_ns: 200,
            latency: 5,
            rounds: 2,
            few_pages: 4,
            aborts: Ratio::NEVER,
        }),
        ..short_run(batch, !batch.is_multiple_of(2))
    }
}

/// Crash at every store of the run that `seed` and `profile` make. `each` is
/// told how many moments are behind and how many there are.
pub fn at_every_store(
    arena: &mut Arena,
    seed: u64,
    profile: &Profile,
    mut each: impl FnMut(u64, u64),
) -> Report {
    let options = Options { shapes: true, ..Options::default() };
    let base = run_profile(arena, seed, profile.clone(), &options);
    let mut report =
        Report { stores: base.stats.stores, batch: base.stats.largest_batch, ..Report::default() };
    if let Err(violation) = base.verdict {
        let never = CrashPoint { step: u64::MAX, kept: 0, cut: 0, outputs: 0 };
        report.failures.push((never, violation));
        return report;
    }
    let points: Vec<_> = (0u64..).zip(&base.shapes).flat_map(points_of).collect();
    let all = points.len() as u64;
    for (behind, (kind, point)) in (1u64..).zip(points) {
        let options = Options { kill_at: Some(point), ..Options::default() };
        let outcome = run_profile(arena, seed, profile.clone(), &options);
        match kind {
            Kind::BetweenStores => report.between_stores += 1,
            Kind::InsideStore => report.inside_stores += 1,
            Kind::BetweenOutputs => report.between_outputs += 1,
        }
        report.recoveries += outcome.stats.recoveries;
        report.resubmitted += outcome.stats.resubmitted;
        let killed = match outcome.stats.kills {
            1 => Ok(()),
            n => Err(Violation::new("crash", format!("{n} kills happened, expected 1"))),
        };
        if let Err(violation) = outcome.verdict.and(killed) {
            report.failures.push((point, violation));
        }
        each(behind, all);
    }
    report
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BetweenStores,
    InsideStore,
    BetweenOutputs,
}

/// Every moment of one step, in order.
fn points_of((step, shape): (u64, &StepShape)) -> Vec<(Kind, CrashPoint)> {
    let mut points = Vec::new();
    let point = |kept, cut, outputs| CrashPoint { step, kept, cut, outputs };
    for (kept, len) in (0u64..).zip(&shape.stores) {
        points.push((Kind::BetweenStores, point(kept, 0, 0)));
        points.extend((1..*len).map(|cut| (Kind::InsideStore, point(kept, cut, 0))));
    }
    let kept = shape.stores.len() as u64;
    points.push((Kind::BetweenStores, point(kept, 0, 0)));
    points.extend((1..=shape.outputs).map(|n| (Kind::BetweenOutputs, point(kept, 0, n))));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_points_of_a_step_cover_stores_cuts_and_wishes() {
        let shape = StepShape { stores: vec![0, 4], outputs: 2 };
        let points: Vec<_> = points_of((7, &shape))
            .iter()
            .map(|(_, p)| (p.step, p.kept, p.cut, p.outputs))
            .collect();
        let want = [
            (7, 0, 0, 0),
            (7, 1, 0, 0),
            (7, 1, 1, 0),
            (7, 1, 2, 0),
            (7, 1, 3, 0),
            (7, 2, 0, 0),
            (7, 2, 0, 1),
            (7, 2, 0, 2),
        ];
        assert_eq!(points, want);
    }
}
