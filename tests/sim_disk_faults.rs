//! Runs on disks with faults of every family: what was injected is excused, and
//! everything else still has to hold.

use midflight_sim::choices::{Component, Ratio, Stream};
use midflight_sim::disk::faults::{Family, draw, draw_timed};
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::profile::{Profile, ProfileName, SeedId};
use midflight_sim::run::{Sum, run};
use midflight_sim::scenario::{Action, Scenario};
use midflight_sim::shrink::{RUNS, shrink};
use midflight_sim::world::Options;
use std::collections::BTreeSet;
use std::ops::Range;

/// The scenario of a number with these families, each there or not.
fn scenario(number: u64, migrates: bool, families: &[Family]) -> Scenario {
    let name = if migrates { ProfileName::Migration } else { ProfileName::Mixed };
    let mut profile = Profile::draw(name, number);
    // Errors that a profile draws need an excuse of their own.
    profile.topology.disk_errors = Ratio::NEVER;
    let mut scenario = Scenario::of_profile(&profile, number);
    let mut s = Stream::new(number, Component::Power);
    let strength = *s.pick("strength", &[Ratio::new(1, 50), Ratio::new(1, 10)]);
    let on = draw(&mut s, families, strength, profile.rates.requests);
    let at = draw_timed(&mut s, families, strength, 8_000);
    scenario.actions.extend(on.into_iter().map(|(nth, fault)| Action::Fault { nth, fault }));
    let timed = at.into_iter().map(|(after, fault)| Action::TimedFault { after, fault });
    scenario.actions.extend(timed);
    scenario
}

fn sweep(seeds: Range<u64>, migrates: bool, families: &[Family]) -> Sum {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    for seed in seeds {
        let scenario = scenario(seed, migrates, families);
        sum.add(seed, &run(&mut arena, &scenario, &Options::default()));
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

/// Which oracles see a fault that nobody told them of, the one that has to first;
/// none where no promise is suspended.
fn noticed_by(family: Family) -> &'static [&'static str] {
    match family {
        Family::ReadError | Family::WriteError | Family::Short => &["injection"],
        // The error, or if its back-end is killed before it comes, what is not
        // durable after the next flush.
        Family::FailedFlush => &["injection", "durability"],
        Family::Corrupt
        | Family::MisdirectedRead
        | Family::MisdirectedWrite
        | Family::LostWrite => &["sectors"],
        // Older content, or that a flush has nothing of what went back.
        Family::PowerLoss => &["sectors", "durability"],
        Family::LyingFlush => &["durability"],
        Family::Duplicate | Family::Stall | Family::Throttle => &[],
    }
}

#[test]
fn disk_faults_that_the_oracles_were_not_told_of_are_caught() {
    let mut arena = Arena::new();
    let judges = Judges { excuses: false, ..Judges::default() };
    let deaf = Options { judges, ..Options::default() };
    for family in Family::ALL {
        let mut noticed = BTreeSet::new();
        for seed in 0..200 {
            let outcome = run(&mut arena, &scenario(seed, false, &[family]), &deaf);
            noticed.extend(outcome.verdict.err().map(|violation| violation.oracle));
        }
        println!("{}: {noticed:?}", family.name());
        let able = noticed_by(family);
        assert!(noticed.iter().all(|oracle| able.contains(oracle)), "{}", family.name());
        assert!(able.first().is_none_or(|first| noticed.contains(first)), "{}", family.name());
    }
}

#[test]
fn disk_faults_shrink_to_the_one_that_matters() {
    let mut arena = Arena::new();
    let judges = Judges { excuses: false, ..Judges::default() };
    let deaf = Options { judges, ..Options::default() };
    for family in [Family::Corrupt, Family::LyingFlush] {
        let all = [family, Family::Duplicate, Family::Stall, Family::Throttle];
        let fails = |number: &u64| {
            run(&mut Arena::new(), &scenario(*number, false, &all), &deaf).verdict.is_err()
        };
        let number = (0..200).find(fails).expect("it is caught");
        let failing = scenario(number, false, &all);
        let small = shrink(&mut arena, &failing, &deaf, RUNS).expect("it fails").scenario;
        let faults = small
            .actions
            .iter()
            .filter(|action| matches!(action, Action::Fault { .. } | Action::TimedFault { .. }));
        assert_eq!(faults.count(), 1, "{small}");
        assert!(small.actions.len() <= 6, "{small}");
    }
}

#[test]
fn disk_faults_leave_a_run_the_same_twice_and_looked_at() {
    let (mut one, mut other) = (Arena::new(), Arena::new());
    for seed in 0..30 {
        let scenario = scenario(seed, seed % 2 == 1, &Family::ALL);
        let first = run(&mut one, &scenario, &Options::default());
        let second = run(&mut other, &scenario, &Options::default());
        assert_eq!((first.hash, first.stats), (second.hash, second.stats), "seed {seed}");
        let looked_at = Options { trace: true, keep_choices: true, ..Options::default() };
        assert_eq!(first.hash, run(&mut one, &scenario, &looked_at).hash, "seed {seed}");
        // And so does its document.
        let read: Scenario = scenario.to_string().parse().unwrap();
        assert_eq!(read.actions, scenario.actions);
        assert_eq!(first.hash, run(&mut one, &read, &Options::default()).hash, "seed {seed}");
    }
}

#[test]
fn disk_faults_are_part_of_a_storm() {
    let (mut arena, mut sum) = (Arena::new(), Sum::default());
    for number in 0..150 {
        let seed = SeedId { profile: ProfileName::Storm, number };
        sum.add(number, &run(&mut arena, &Scenario::of_seed(seed), &Options::default()));
    }
    println!("{} storms: {}", sum.seeds, sum.stats.disk_faults);
    assert_eq!(sum.failures, []);
    for family in Family::DRAWN {
        assert!(sum.stats.disk_faults.of(family) > 0, "{} never struck", family.name());
    }
    assert_eq!(sum.stats.disk_faults.of(Family::LyingFlush), 0);
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
