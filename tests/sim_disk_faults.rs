//! Runs on disks with faults of every family: what was injected is excused, and
//! everything else still has to hold.

use midflight_sim::choices::{Component, Ratio, Stream};
use midflight_sim::disk::faults::{Family, FaultPlan, draw, draw_timed};
use midflight_sim::memory::Arena;
use midflight_sim::profile::Profile;
use midflight_sim::run::{Sum, run_profile};
use midflight_sim::world::{Options, Outcome};

/// A run of this seed with these families, each there or not.
fn run(arena: &mut Arena, seed: u64, migrates: bool, families: &[Family]) -> Outcome {
    let base = if migrates { Profile::draw_migration(seed, None) } else { Profile::draw(seed) };
    let mut s = Stream::new(!seed, Component::DiskFaults);
    let strength = *s.pick("strength", &[Ratio::new(1, 50), Ratio::new(1, 10)]);
    let on = draw(&mut s, families, strength, base.requests);
    let at = draw_timed(&mut s, families, strength, 8_000);
    let profile = Profile { disk_faults: FaultPlan::new(on, at), ..base };
    run_profile(arena, seed, profile, &Options::default())
}

fn sweep(seeds: std::ops::Range<u64>, migrates: bool, families: &[Family]) -> Sum {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    for seed in seeds {
        sum.add(seed, &run(&mut arena, seed, migrates, families));
    }
    println!("{} seeds: {}", sum.seeds, sum.stats.disk_faults);
    println!(
        "{} second reports dropped, {} sectors lost, {} kills",
        sum.stats.late_completions, sum.stats.sectors_lost, sum.stats.kills
    );
    assert_eq!(sum.failures.first(), None, "{} of {} failed", sum.failures.len(), sum.seeds);
    for family in families {
        assert!(sum.stats.disk_faults.of(*family) > 0, "{} never struck", family.name());
    }
    sum
}

#[test]
fn disk_faults_of_every_family_are_excused_and_nothing_else_breaks() {
    sweep(0..300, false, &Family::ALL);
}

#[test]
fn disk_faults_of_every_family_do_not_disturb_migrations() {
    sweep(0..200, true, &Family::ALL);
}
