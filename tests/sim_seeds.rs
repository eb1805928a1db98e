//! The seed sweep: small enough for every change, and the only judge when the
//! core is mutated (`sim/MUTANTS.md`). `cargo sim run --seeds 0..2000` is the
//! long one.

use midflight_sim::choices::Ratio;
use midflight_sim::crash::{at_every_store, short_migration, short_run};
use midflight_sim::memory::Arena;
use midflight_sim::profile::{Policy, Profile};
use midflight_sim::run::{Sum, run, run_profile};
use midflight_sim::world::{Options, Stats, Story};

/// Seeds of each story: more where a build is quick enough for them.
fn seeds() -> u64 {
    std::env::var("SWEEP_SEEDS").map_or(400, |seeds| seeds.parse().expect("a number of seeds"))
}

/// Run seeds until one fails: whoever breaks the core hears of it at once.
fn sweep(story: Story, seeds: u64) -> Stats {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    let options = Options { story, ..Options::default() };
    for seed in 0..seeds {
        sum.add(seed, &run(&mut arena, seed, &options));
        assert_eq!(sum.failures, [], "{story:?}");
    }
    sum.stats
}

#[test]
fn sim_seeds_keep_every_promise_through_kills_pauses_and_lost_connections() {
    let s = sweep(Story::Mixed, seeds());
    // A sweep in which nothing happens would pass as well.
    assert!(s.requests > 20_000, "{s:?}");
    assert!(s.kills > 500 && s.recoveries > 500 && s.resubmitted > 2_000, "{s:?}");
    assert!(s.pauses > 50 && s.breaks > 30 && s.shutdowns > 50, "{s:?}");
    assert!(s.largest_batch > 4, "{s:?}");
}

#[test]
fn sim_seeds_with_migrations_keep_every_promise_through_kills_and_aborts() {
    let s = sweep(Story::Migration(None), seeds() * 3 / 4);
    assert!(s.arrivals > 600 && s.broken_off > 50, "{s:?}");
    assert!(s.carried > 200 && s.suspended > 300 && s.cancelled > 200, "{s:?}");
    assert!(s.kills > 300 && s.resubmitted > 1_000, "{s:?}");
    assert_eq!(s.landings, 0, "{s:?}");
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
        let report = at_every_store(&mut arena, 1, &profile, |_, _| {});
        assert_eq!(report.failures, []);
        assert!(report.recoveries > 0 && report.resubmitted > 0);
    }
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
