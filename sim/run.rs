//! One seed, one run.

use crate::memory::Arena;
use crate::profile::Profile;
use crate::trace::Trace;
use crate::world::{Options, Outcome, Stats, World};

/// Run a seed.
pub fn run(arena: &mut Arena, seed: u64, options: &Options) -> Outcome {
    run_profile(arena, seed, Profile::draw(seed), options)
}

/// Run a seed with a profile of one's own.
pub fn run_profile(arena: &mut Arena, seed: u64, profile: Profile, options: &Options) -> Outcome {
    match World::new(arena, seed, profile.clone(), options) {
        Ok(world) => world.run(),
        Err(violation) => Outcome {
            profile,
            verdict: Err(violation),
            hash: 0,
            stats: Stats::default(),
            at: 0,
            trace: Trace::new(false),
        },
    }
}
