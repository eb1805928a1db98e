//! One scenario, one run; many seeds, one sum.

mod panics;

use crate::memory::Arena;
use crate::oracle::Violation;
use crate::report::seed_hash;
use crate::scenario::Scenario;
use crate::topology::Topology;
use crate::trace::Trace;
use crate::world::{Options, Outcome, Stats, World};

/// Run a scenario.
///
/// A panic of the core is a broken promise like any other, and must not hide
/// which seed it was.
pub fn run(arena: &mut Arena, scenario: &Scenario, options: &Options) -> Outcome {
    let world = || match World::new(arena, scenario, options) {
        Ok(world) => world.run(),
        Err(violation) => nothing(scenario.topology.clone(), violation),
    };
    match panics::caught(world) {
        Ok(outcome) => outcome,
        Err(text) => {
            // Whatever state the memory is in, nobody uses it again.
            *arena = Arena::new();
            nothing(scenario.topology.clone(), Violation::new("panic", text))
        }
    }
}

fn nothing(topology: Topology, violation: Violation) -> Outcome {
    Outcome {
        topology,
        made: Vec::new(),
        verdict: Err(violation),
        hash: 0,
        stats: Stats::default(),
        at: 0,
        trace: Trace::new(false),
        excuses: Vec::new(),
        shapes: Vec::new(),
    }
}

/// The sum over many runs.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Runs.
    pub seeds: u64,
    /// Their counters together; the largest of the largest batches.
    pub stats: Stats,
    /// Virtual nanoseconds of all runs.
    pub at: u64,
    /// Numbers that failed, and why.
    pub failures: Vec<(u64, Violation)>,
    hash: u64,
}

impl Sum {
    /// Add a run.
    pub fn add(&mut self, number: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.stats.add(&outcome.stats);
        self.at += outcome.at;
        self.hash = self.hash.wrapping_add(seed_hash(number, outcome.hash));
        if let Err(violation) = &outcome.verdict {
            self.failures.push((number, violation.clone()));
        }
    }

    /// Hash over all hashes of the runs, in whatever order they were added.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
