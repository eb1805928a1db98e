//! The seed sweep: small enough for every change, and the only judge when the
//! core is mutated (`sim/MUTANTS.md`). `cargo sim run --seeds 0..2000` is the
//! long one.

// How many seeds is for who runs it to say.
#![allow(clippy::disallowed_methods)]

use midflight_sim::crash::{at_every_store, short_migration, short_run};
use midflight_sim::memory::Arena;
use midflight_sim::profile::ProfileName;
use midflight_sim::run::{Sum, run};
use midflight_sim::scenario::{Action, Scenario, Story};
use midflight_sim::topology::Policy;
use midflight_sim::world::{Options, Stats};

/// Seeds of each profile: more where a build is quick enough for them.
fn seeds() -> u64 {
    std::env::var("SWEEP_SEEDS").map_or(400, |seeds| seeds.parse().expect("a number of seeds"))
}

/// Run seeds until one fails: whoever breaks the core hears of it at once.
fn sweep(profile: ProfileName, seeds: u64) -> Stats {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    for number in 0..seeds {
        let scenario = Story::of(profile).scenario(number).expect("nothing is given");
        sum.add(number, &run(&mut arena, &scenario, &Options::default()));
        assert_eq!(sum.failures, [], "{profile:?}");
    }
    sum.stats
}

#[test]
fn sim_seeds_keep_every_promise_through_kills_pauses_and_lost_connections() {
    let s = sweep(ProfileName::Mixed, seeds());
    // A sweep in which nothing happens would pass as well.
    assert!(s.requests > 20_000, "{s:?}");
    assert!(s.kills > 500 && s.recoveries > 500 && s.resubmitted > 2_000, "{s:?}");
    assert!(s.pauses > 50 && s.breaks > 30 && s.shutdowns > 50, "{s:?}");
    assert!(s.largest_batch > 4, "{s:?}");
}

#[test]
fn sim_seeds_with_migrations_keep_every_promise_through_kills_and_aborts() {
    let s = sweep(ProfileName::Migration, seeds() * 3 / 4);
    assert!(s.arrivals > 600 && s.broken_off > 50, "{s:?}");
    assert!(s.carried > 200 && s.suspended > 300 && s.cancelled > 200, "{s:?}");
    assert!(s.kills > 300 && s.resubmitted > 1_000, "{s:?}");
    assert_eq!(s.landings, 0, "{s:?}");
}

#[test]
fn sim_seeds_with_everything_that_can_go_wrong_keep_every_promise() {
    let s = sweep(ProfileName::Storm, seeds() / 2);
    assert!(s.kills > 500 && s.pauses > 100 && s.breaks > 100, "{s:?}");
}

#[test]
fn sim_seeds_with_changes_while_vrings_run_keep_every_promise() {
    let s = sweep(ProfileName::Control, seeds() / 2);
    assert!(s.controls > 1_000 && s.resets > 50 && s.kills > 50, "{s:?}");
}

#[test]
fn sim_seeds_with_in_order_use_keep_it_through_kills_stops_and_migrations() {
    let mut arena = Arena::new();
    for profile in [ProfileName::Mixed, ProfileName::Migration, ProfileName::Storm] {
        let mut sum = Sum::default();
        // A third of them with packed rings.
        for number in 0..seeds() / 4 {
            let story = Story::of(profile).with("in_order", "on");
            let scenario = story.scenario(number).expect("it exists");
            sum.add(number, &run(&mut arena, &scenario, &Options::default()));
            assert_eq!(sum.failures, [], "{profile:?}");
        }
        let s = sum.stats;
        assert!(s.kills > 50 && s.resubmitted > 200 && s.largest_batch > 4, "{profile:?} {s:?}");
    }
}

#[test]
fn sim_kill_at_every_store_of_short_runs_completes_each_request_once() {
    let mut arena = Arena::new();
    let short = [
        short_run(1, true),
        short_run(3, false),
        short_migration(1, Policy::Drain, 1),
        short_migration(2, Policy::Suspend, 2),
    ];
    for profile in short {
        let scenario = Scenario::of_profile(&profile, 1);
        let report = at_every_store(&mut arena, &scenario, |_, _| {});
        assert_eq!(report.failures, []);
        assert!(report.recoveries > 0 && report.resubmitted > 0);
    }
}

#[test]
fn sim_quiet_profile_completes_without_any_recovery() {
    let mut arena = Arena::new();
    for number in 0..30 {
        let scenario = Story::of(ProfileName::Quiet).scenario(number).expect("nothing is given");
        let outcome = run(&mut arena, &scenario, &Options::default());
        assert_eq!(outcome.verdict, Ok(()), "seed {number}");
        assert_eq!((outcome.stats.kills, outcome.stats.resubmitted), (0, 0), "seed {number}");
        let asked = scenario.actions.iter().filter(|a| matches!(a, Action::Request(_)));
        assert_eq!(outcome.stats.requests, asked.count() as u64);
    }
}
