//! A guest moves between two simulated hosts; the seeds of that are in
//! `tests/sim_seeds.rs`.

use midflight_sim::choices::Ratio;
use midflight_sim::compare::downtime;
use midflight_sim::crash::{at_every_store, short_migration};
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::profile::{Profile, ProfileName, Rates};
use midflight_sim::run::run;
use midflight_sim::scenario::{LATE_WRITE, Scenario};
use midflight_sim::topology::{Migration, Policy};
use midflight_sim::trace::late_writes;
use midflight_sim::world::Options;

#[test]
fn migration_without_faults_moves_there_and_back_under_each_policy() {
    let mut arena = Arena::new();
    for policy in [Policy::Drain, Policy::Suspend] {
        let mut carried = 0;
        for seed in 0..40 {
            let drawn = Profile::draw(ProfileName::Migration, seed);
            let (rates, mut topology) = (drawn.rates, drawn.topology);
            let times = rates.migrations;
            let rates = Rates { kills: 0, breaks: 0, pauses: 0, aborts: Ratio::NEVER, ..rates };
            topology.migration = topology.migration.map(|m| Migration { policy, ..m });
            let scenario = Scenario::of_profile(&Profile { topology, rates }, seed);
            let outcome = run(&mut arena, &scenario, &Options::default());
            assert_eq!(outcome.verdict, Ok(()), "seed {seed}");
            assert_eq!(outcome.stats.arrivals, times, "seed {seed}");
            carried += outcome.stats.carried;
        }
        // A drained vring has nothing in flight, a suspended one may.
        assert_eq!(carried > 0, policy == Policy::Suspend, "{carried} under {policy:?}");
    }
}

#[test]
fn migration_kill_of_either_back_end_at_every_store_completes_each_request_once() {
    let mut arena = Arena::new();
    let mut points = 0;
    for policy in [Policy::Drain, Policy::Suspend] {
        let scenario = Scenario::of_profile(&short_migration(1, policy, 2), 1);
        let report = at_every_store(&mut arena, &scenario, |_, _| {});
        for (point, violation) in &report.failures {
            println!("{policy:?}, {point:?}: {violation}");
        }
        assert_eq!(report.failures.len(), 0);
        assert!(report.recoveries > 0 && report.resubmitted > 0);
        points += report.points();
    }
    println!("{points} crash points explored");
    assert!(points > 500);
}

#[test]
fn migration_drained_downtime_grows_with_the_disk_and_suspended_does_not() {
    let mut arena = Arena::new();
    let mut measure = |policy, latency| downtime(&mut arena, 1, policy, latency, 16).unwrap();
    let [fast, slow] = [1_000, 50_000].map(|us| measure(Policy::Suspend, us));
    assert!(slow.mean < fast.mean + 2_000_000, "{fast:?} {slow:?}");
    assert!(slow.carried_tenths > 50, "{slow:?}");
    let [fast, slow] = [1_000, 50_000].map(|us| measure(Policy::Drain, us));
    assert!(slow.mean > fast.mean + 20_000_000, "{fast:?} {slow:?}");
    assert_eq!(slow.carried_tenths, 0);
}

/// A driver that says of a request that it is over while it is at the store.
#[test]
fn migration_late_write_corrupts_on_purpose_and_not_under_suspend() {
    let mut arena = Arena::new();
    let mut scenario: Scenario = LATE_WRITE.parse().unwrap();
    let judges = Judges { late: false, ..Judges::default() };
    let options = Options { judges, trace: true, ..Options::default() };
    let outcome = run(&mut arena, &scenario, &options);
    let violation = outcome.verdict.expect_err("an old write covers a new one");
    assert!(["sectors", "durability"].contains(&violation.oracle), "{violation}");
    assert!(!late_writes(outcome.trace.events()).is_empty());

    scenario.topology.change("migration.policy", "suspend").unwrap();
    assert_eq!(run(&mut arena, &scenario, &Options::default()).verdict, Ok(()));
}
