//! A sweep small enough for every change; `cargo sim run --seeds 0..2000` is
//! the long one.

use midflight_sim::memory::Arena;
use midflight_sim::profile::ProfileName;
use midflight_sim::run::{Sum, run};
use midflight_sim::scenario::{Action, Story};
use midflight_sim::world::Options;

#[test]
fn sim_seeds_keep_every_promise_through_kills_pauses_and_lost_connections() {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    for number in 0..400 {
        let scenario = Story::of(ProfileName::Mixed).scenario(number).unwrap();
        sum.add(number, &run(&mut arena, &scenario, &Options::default()));
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
    for number in 0..30 {
        let scenario = Story::of(ProfileName::Quiet).scenario(number).unwrap();
        let outcome = run(&mut arena, &scenario, &Options::default());
        assert_eq!(outcome.verdict, Ok(()), "seed {number}");
        assert_eq!((outcome.stats.kills, outcome.stats.resubmitted), (0, 0), "seed {number}");
        let asked = scenario.actions.iter().filter(|a| matches!(a, Action::Request(_)));
        assert_eq!(outcome.stats.requests, asked.count() as u64);
    }
}
