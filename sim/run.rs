//! One seed, one run; many seeds, one sum.

use crate::hash::Rolling;
use crate::memory::Arena;
use crate::oracle::Violation;
use crate::profile::Profile;
use crate::trace::Trace;
use crate::world::{Options, Outcome, Stats, World};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Run a seed.
pub fn run(arena: &mut Arena, seed: u64, options: &Options) -> Outcome {
    run_profile(arena, seed, options.story.draw(seed), options)
}

/// Run a seed with a profile of one's own.
///
/// A panic of the core is a broken promise like any other, and must not hide
/// which seed it was.
pub fn run_profile(arena: &mut Arena, seed: u64, profile: Profile, options: &Options) -> Outcome {
    let world = || match World::new(arena, seed, profile.clone(), options) {
        Ok(world) => world.run(),
        Err(violation) => nothing(profile.clone(), violation),
    };
    match catch_unwind(AssertUnwindSafe(world)) {
        Ok(outcome) => outcome,
        Err(cause) => {
            // Whatever state the memory is in, nobody uses it again.
            *arena = Arena::new();
            let text = cause
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).into()))
                .unwrap_or_else(|| "no message".into());
            nothing(profile, Violation::new("panic", text))
        }
    }
}

fn nothing(profile: Profile, violation: Violation) -> Outcome {
    Outcome {
        profile,
        verdict: Err(violation),
        hash: 0,
        stats: Stats::default(),
        at: 0,
        trace: Trace::new(false),
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
    /// Seeds that failed, and why.
    pub failures: Vec<(u64, Violation)>,
    hash: Rolling,
}

impl Sum {
    /// Add a run.
    pub fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.stats.add(&outcome.stats);
        self.at += outcome.at;
        self.hash.u64(seed);
        self.hash.u64(outcome.hash);
        if let Err(violation) = &outcome.verdict {
            self.failures.push((seed, violation.clone()));
        }
    }

    /// Hash over all hashes of the runs.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }
}
