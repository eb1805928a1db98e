//! Runs on disks with faults of every family: what was injected is excused, and
//! everything else still has to hold.

use midflight_sim::choices::{Component, Ratio, Stream};
use midflight_sim::disk::faults::{Family, FaultPlan, draw, draw_timed};
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::profile::Profile;
use midflight_sim::run::{Sum, run_profile};
use midflight_sim::world::{Options, Outcome};
use std::collections::BTreeSet;
use std::ops::Range;

/// A run of this seed with these families, each there or not. `told`: the oracles
/// hear what was injected.
fn run(arena: &mut Arena, seed: u64, migrates: bool, families: &[Family], told: bool) -> Outcome {
    let base = if migrates { Profile::draw_migration(seed, None) } else { Profile::draw(seed) };
    let mut s = Stream::new(!seed, Component::DiskFaults);
    let strength = *s.pick("strength", &[Ratio::new(1, 50), Ratio::new(1, 10)]);
    let on = draw(&mut s, families, strength, base.requests);
    let at = draw_timed(&mut s, families, strength, 8_000);
    // Errors that a profile draws need an excuse of their own.
    let disk_errors = if told { base.disk_errors } else { Ratio::NEVER };
    let profile = Profile { disk_faults: FaultPlan::new(on, at), disk_errors, ..base };
    let judges = Judges { excuses: told, ..Judges::default() };
    run_profile(arena, seed, profile, &Options { judges, ..Options::default() })
}

fn sweep(seeds: Range<u64>, migrates: bool, families: &[Family]) -> Sum {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    for seed in seeds {
        sum.add(seed, &run(&mut arena, seed, migrates, families, true));
    }
    println!("{} seeds: {}", sum.seeds, sum.stats.disk_faults);
    assert_eq!(sum.failures.first(), None, "{} of {} failed", sum.failures.len(), sum.seeds);
    for family in families {
        assert!(sum.stats.disk_faults.of(*family) > 0, "{} never struck", family.name());
    }
    sum
}

#[test]
fn disk_faults_of_every_family_are_excused_and_nothing_else_breaks() {
    let sum = sweep(0..300, false, &Family::ALL);
    assert!(sum.stats.sectors_lost > 0 && sum.stats.late_completions > 0);
}

#[test]
fn disk_faults_of_every_family_do_not_disturb_migrations() {
    sweep(0..100, true, &Family::ALL);
}

#[test]
fn disk_faults_of_each_family_alone_pass() {
    for family in Family::ALL {
        let sum = sweep(0..40, false, &[family]);
        assert_eq!(sum.stats.disk_faults.sum(), sum.stats.disk_faults.of(family));
    }
}

/// Which oracles see a fault that nobody told them of; none where no promise is
/// suspended.
fn noticed_by(family: Family) -> &'static [&'static str] {
    match family {
        Family::ReadError | Family::WriteError | Family::Short => &["injection"],
        // The error, or if its back-end is killed before it comes, what is not
        // durable after the next flush.
        Family::FailedFlush => &["durability", "injection"],
        Family::Corrupt
        | Family::MisdirectedRead
        | Family::MisdirectedWrite
        | Family::LostWrite => &["sectors"],
        // Older content, or that a flush has nothing of what went back.
        Family::PowerLoss => &["durability", "sectors"],
        Family::LyingFlush => &["durability"],
        Family::Duplicate | Family::Stall | Family::Throttle => &[],
    }
}

#[test]
fn disk_faults_that_the_oracles_were_not_told_of_are_caught() {
    let mut arena = Arena::new();
    for family in Family::ALL {
        let mut noticed = BTreeSet::new();
        for seed in 0..200 {
            let outcome = run(&mut arena, seed, false, &[family], false);
            noticed.extend(outcome.verdict.err().map(|violation| violation.oracle));
        }
        println!("{}: {noticed:?}", family.name());
        let expected = noticed_by(family).iter().copied().collect();
        assert_eq!(noticed, expected, "{}", family.name());
    }
}

#[test]
fn disk_faults_leave_a_run_the_same_twice_and_looked_at() {
    let (mut one, mut other) = (Arena::new(), Arena::new());
    for seed in 0..30 {
        let first = run(&mut one, seed, seed % 2 == 1, &Family::ALL, true);
        let second = run(&mut other, seed, seed % 2 == 1, &Family::ALL, true);
        assert_eq!((first.hash, first.stats), (second.hash, second.stats), "seed {seed}");
        let options = Options { trace: true, ..Options::default() };
        let watched = run_profile(&mut one, seed, first.profile, &options);
        assert_eq!(first.hash, watched.hash, "seed {seed}");
    }
}

#[test]
fn disk_faults_are_in_the_design_with_the_promise_each_suspends() {
    let design = include_str!("../DESIGN.md");
    for family in Family::ALL {
        let about = family.describe();
        let row = format!("| {} | {} | {} |", family.name(), about.what, about.suspends);
        assert!(design.contains(&row), "expected this row in DESIGN.md:\n{row}");
    }
}
