//! Crash at every store of a short run.
//!
//! The run is done once, and what each step of the back-end stored and wished
//! is noted. Then it is done again for every moment at which the process could
//! have died: between any two stores, inside every store that a processor may
//! cut, and between any two wishes. Up to that moment the runs are the same.

use crate::choices::Ratio;
use crate::disk::Pace;
use crate::memory::Arena;
use crate::oracle::Violation;
use crate::profile::{Profile, Rates};
use crate::run::run;
use crate::scenario::Scenario;
use crate::topology::{Migration, Policy, Ring, Topology};
use crate::world::{CrashPoint, Options, Outcome, StepShape};

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
    /// What went wrong, and the crashes that led to it.
    pub failures: Vec<(Vec<CrashPoint>, Violation)>,
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
    let topology = Topology {
        first_index: 5,
        event_idx,
        indirect: true,
        depth: batch,
        batch,
        max_sectors: 2,
        gather: if batch == 1 { 0 } else { 200 },
        ..Topology::plain()
    };
    let rates = Rates { hot_sectors: 4, bad: Ratio::new(1, 6), ..Rates::quiet(4 + 3 * batch) };
    Profile { topology, rates }
}

/// The same with packed rings that soon come to their end, of a size that is no
/// power of two. `indirect`: half of the chains have one descriptor, else each
/// has several.
#[must_use]
pub fn packed(Profile { topology, rates }: Profile, indirect: bool) -> Profile {
    let ring_size = 5 * topology.depth as u16 + 2;
    let topology = Topology {
        ring: Ring::Packed,
        ring_size,
        region_size: ring_size,
        first_index: ring_size - 2,
        indirect,
        ..topology
    };
    Profile { topology, rates }
}

/// A short run in which a guest with requests in flight moves to another host,
/// and back if `times` is 2.
pub fn short_migration(batch: u64, policy: Policy, times: u64) -> Profile {
    let Profile { topology, rates } = short_run(batch, !batch.is_multiple_of(2));
    let migration = Migration {
        policy,
        by_message: batch.is_multiple_of(2),
        cancel: Some(10),
        latency: 5,
        few_pages: 4,
        ..Migration::default()
    };
    let topology = Topology {
        depth: 2 * batch,
        pace: Pace::Spread,
        gather: if batch == 1 { 0 } else { 20 },
        migration: Some(migration),
        ..topology
    };
    let rates = Rates {
        requests: 6 + 6 * batch,
        bad: Ratio::NEVER,
        migrations: times,
        apart: 100,
        ..rates
    };
    Profile { topology, rates }
}

/// Crash at every store of a run. `each` is told how many moments are behind
/// and how many there are.
pub fn at_every_store(
    arena: &mut Arena,
    scenario: &Scenario,
    mut each: impl FnMut(u64, u64),
) -> Report {
    let mut report = Report::default();
    let Some(points) = report.base(arena, scenario) else { return report };
    let all = points.len() as u64;
    for (behind, (kind, point)) in (1u64..).zip(points) {
        report.explore(arena, scenario, kind, vec![point]);
        each(behind, all);
    }
    report
}

/// Crash at every moment of a run, and once more at every moment of what comes
/// of it: the report counts second crashes.
pub fn at_every_pair(
    arena: &mut Arena,
    scenario: &Scenario,
    mut each: impl FnMut(u64, u64),
) -> Report {
    let mut report = Report::default();
    let Some(points) = report.base(arena, scenario) else { return report };
    let all = points.len() as u64;
    for (behind, (_, first)) in (1u64..).zip(points) {
        let options = Options { shapes: true, kill_at: vec![first], ..Options::default() };
        let once = run(arena, scenario, &options);
        for (kind, second) in points_after(&once.shapes, first.step) {
            report.explore(arena, scenario, kind, vec![first, second]);
        }
        report.judge(&options, once);
        each(behind, all);
    }
    report
}

impl Report {
    /// The run without a crash, and every moment of it.
    fn base(&mut self, arena: &mut Arena, scenario: &Scenario) -> Option<Vec<(Kind, CrashPoint)>> {
        let options = Options { shapes: true, ..Options::default() };
        let base = run(arena, scenario, &options);
        (self.stores, self.batch) = (base.stats.stores, base.stats.largest_batch);
        match base.verdict {
            Ok(()) => Some((0u64..).zip(&base.shapes).flat_map(points_of).collect()),
            Err(violation) => {
                self.failures.push((Vec::new(), violation));
                None
            }
        }
    }

    /// Run with these crashes; the last of them is the one that is explored.
    fn explore(
        &mut self,
        arena: &mut Arena,
        scenario: &Scenario,
        kind: Kind,
        kill_at: Vec<CrashPoint>,
    ) {
        match kind {
            Kind::BetweenStores => self.between_stores += 1,
            Kind::InsideStore => self.inside_stores += 1,
            Kind::BetweenOutputs => self.between_outputs += 1,
        }
        let options = Options { kill_at, ..Options::default() };
        let outcome = run(arena, scenario, &options);
        self.judge(&options, outcome);
    }

    fn judge(&mut self, options: &Options, outcome: Outcome) {
        self.recoveries += outcome.stats.recoveries;
        self.resubmitted += outcome.stats.resubmitted;
        let wanted = options.kill_at.len() as u64;
        let killed = match outcome.stats.kills {
            n if n == wanted => Ok(()),
            n => Err(Violation::new("crash", format!("{n} kills happened, expected {wanted}"))),
        };
        if let Err(violation) = outcome.verdict.and(killed) {
            self.failures.push((options.kill_at.clone(), violation));
        }
    }
}

fn points_after(shapes: &[StepShape], step: u64) -> Vec<(Kind, CrashPoint)> {
    (0u64..).zip(shapes).filter(|(at, _)| *at > step).flat_map(points_of).collect()
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
