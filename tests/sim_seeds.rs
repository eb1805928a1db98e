//! A sweep small enough for every change; `cargo sim run --seeds 0..2000` is
//! the long one.

use midflight_sim::choices::Ratio;
use midflight_sim::memory::Arena;
use midflight_sim::profile::Profile;
use midflight_sim::run::{Sum, run, run_profile};
use midflight_sim::world::Options;

#[test]
fn sim_seeds_keep_every_promise_through_kills_pauses_and_lost_connections() {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    for seed in 0..400 {
        sum.add(seed, &run(&mut arena, seed, &Options::default()));
    }
    for (seed, violation) in &sum.failures {
        println!("seed {seed}: {violation}");
    }
    assert_eq!(sum.failures.len(), 0);
    // A sweep in which nothing happens would pass as well.
    let s = sum.stats;
    assert!(s.requests > 20_000, "{s:?}");
    assert!(s.kills > 500 && s.recoveries > 500 && s.resubmitted > 2_000, "{s:?}");
    assert!(s.pauses > 50 && s.breaks > 30 && s.shutdowns > 50, "{s:?}");
    assert!(s.largest_batch > 4, "{s:?}");
}

#[test]
fn sim_quiet_profile_completes_without_any_recovery() {
    let mut arena = Arena::new();
    for seed in 0..30 {
        let quiet = Profile {
            kills: 0,
            pauses: 0,
            breaks: 0,
            disk_errors: Ratio::NEVER,
            split: Ratio::NEVER,
            ..Profile::draw(seed)
        };
        let outcome = run_profile(&mut arena, seed, quiet, &Options::default());
        assert_eq!(outcome.verdict, Ok(()), "seed {seed}");
        assert_eq!((outcome.stats.kills, outcome.stats.resubmitted), (0, 0), "seed {seed}");
        assert_eq!(outcome.stats.requests, outcome.profile.requests);
    }
}
