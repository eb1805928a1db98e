//! A seed means one run, always and everywhere.
//!
//! A change of the core, of a message sequence or of the simulator changes
//! what happens in a run, and with it these hashes. After a change on purpose
//! print the new ones with `cargo sim hashes --seeds 0..8` (`--profile migration --seeds 0..6`), and raise
//! `midflight_sim::choices::SCHEMA` if old seeds now draw another run.

use midflight_sim::memory::Arena;
use midflight_sim::profile::{ProfileName, SeedId};
use midflight_sim::run::{Sum, run};
use midflight_sim::scenario::Scenario;
use midflight_sim::world::{Options, Outcome};

fn mixed(number: u64) -> Scenario {
    Scenario::of_seed(SeedId { profile: ProfileName::Mixed, number })
}

fn migration(number: u64) -> Scenario {
    Scenario::of_seed(SeedId { profile: ProfileName::Migration, number })
}

fn blind(arena: &mut Arena, scenario: &Scenario) -> Outcome {
    run(arena, scenario, &Options::default())
}

/// Everything that can be looked at is looked at.
fn watched(arena: &mut Arena, scenario: &Scenario) -> Outcome {
    let options = Options { trace: true, shapes: true, keep_choices: true, ..Options::default() };
    run(arena, scenario, &options)
}

/// Seed and trace hash; the same in debug and release and on any machine.
const PINNED: [(u64, u64); 8] = [
    (0, 0xbe6a_2330_9a9e_37f3),
    (1, 0x7cb6_653a_912d_2bd0),
    (2, 0x017a_428f_6ef8_5293),
    (3, 0x72bf_e333_6a9b_a696),
    (4, 0xb6fa_bdaa_12bb_d781),
    (5, 0x3093_1f21_9658_5109),
    (6, 0xb4ed_b31b_7112_8108),
    (7, 0x32ca_0d80_8442_a1cc),
];

/// The same for runs in which the guest migrates.
const PINNED_MIGRATIONS: [(u64, u64); 6] = [
    (0, 0x3c2e_9b7b_1e0e_2c48),
    (1, 0x8b45_0370_09f7_5090),
    (2, 0xfc25_fb9e_a0b8_1ca3),
    (3, 0xbca7_f5b9_507e_7f28),
    (4, 0x6b94_7832_410b_ca8f),
    (5, 0x67ed_2681_dbc6_c4aa),
];

#[test]
fn determinism_hashes_of_a_handful_of_migrations_are_pinned() {
    let mut arena = Arena::new();
    let got = PINNED_MIGRATIONS.map(|(seed, _)| (seed, blind(&mut arena, &migration(seed)).hash));
    let show = |(seed, hash): (u64, u64)| format!("({seed}, {hash:#018x})");
    assert_eq!(got.map(show), PINNED_MIGRATIONS.map(show), "see the head of this file");
}

#[test]
fn determinism_a_migration_twice_is_the_same_run_and_looking_does_not_change_it() {
    let (mut one, mut other) = (Arena::new(), Arena::new());
    for seed in 100..130 {
        let first = blind(&mut one, &migration(seed));
        let second = watched(&mut other, &migration(seed));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
    }
}

#[test]
fn determinism_hashes_of_a_handful_of_seeds_are_pinned() {
    let mut arena = Arena::new();
    let got = PINNED.map(|(seed, _)| (seed, blind(&mut arena, &mixed(seed)).hash));
    let show = |(seed, hash): (u64, u64)| format!("({seed}, {hash:#018x})");
    assert_eq!(got.map(show), PINNED.map(show), "see the head of this file");
}

#[test]
fn determinism_the_same_seed_twice_is_the_same_run() {
    let (mut one, mut other) = (Arena::new(), Arena::new());
    for seed in 100..140 {
        let first = blind(&mut one, &mixed(seed));
        let second = blind(&mut other, &mixed(seed));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
    }
}

#[test]
fn determinism_neither_order_nor_memory_of_earlier_runs_matters() {
    let mut arena = Arena::new();
    let forward: Vec<u64> = (0..20).map(|seed| blind(&mut arena, &mixed(seed)).hash).collect();
    let mut backward: Vec<u64> =
        (0..20).rev().map(|seed| blind(&mut arena, &mixed(seed)).hash).collect();
    backward.reverse();
    assert_eq!(forward, backward);
}

#[test]
fn determinism_looking_at_a_run_does_not_change_it() {
    let mut arena = Arena::new();
    for seed in 0..20 {
        let blind = blind(&mut arena, &mixed(seed));
        let watched = watched(&mut arena, &mixed(seed));
        assert_eq!(blind.hash, watched.hash, "seed {seed}");
        assert!(!watched.trace.events().is_empty());
        assert!(blind.trace.events().is_empty());
    }
}

#[test]
fn determinism_different_seeds_are_different_runs() {
    let mut arena = Arena::new();
    let mut hashes: Vec<u64> = (0..50).map(|seed| blind(&mut arena, &mixed(seed)).hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 50);
    let sum_of = |seeds: [u64; 2]| {
        let mut sum = Sum::default();
        for seed in seeds {
            sum.add(seed, &blind(&mut Arena::new(), &mixed(seed)));
        }
        sum.hash()
    };
    assert_eq!(sum_of([1, 2]), sum_of([2, 1]), "shards come back in any order");
    assert_ne!(sum_of([1, 2]), sum_of([1, 3]));
}
