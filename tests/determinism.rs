//! A seed means one run, always and everywhere.
//!
//! A change of the core, of a message sequence or of the simulator changes
//! what happens in a run, and with it these hashes. After a change on purpose
//! print the new ones with `cargo sim hashes --seeds 0..8` (`--migrate --seeds 0..6`), and raise
//! `midflight_sim::choices::SCHEMA` if old seeds now draw another run.

use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::run::{Sum, run};
use midflight_sim::world::{Options, Story};

/// Seed and trace hash; the same in debug and release and on any machine.
const PINNED: [(u64, u64); 8] = [
    (0, 0xe6c8_a34a_0327_fbc0),
    (1, 0xbd67_3ed2_6077_04e5),
    (2, 0x7eaf_b2a3_1467_88e7),
    (3, 0x090d_c490_8d44_38e9),
    (4, 0x1d86_5224_123c_d7f5),
    (5, 0x4a4b_691e_db8b_b9ec),
    (6, 0xbc9f_5488_f70e_d5fc),
    (7, 0x3dd7_ad36_0d82_00a0),
];

/// The same for runs in which the guest migrates.
const PINNED_MIGRATIONS: [(u64, u64); 6] = [
    (0, 0x7259_035e_2ec8_35aa),
    (1, 0x1bcd_e463_c216_c9a5),
    (2, 0x134a_5de9_15cd_2e10),
    (3, 0x22c6_389e_e443_602d),
    (4, 0xab12_01ea_21cf_d4b1),
    (5, 0x90a3_6102_31a3_6128),
];

const MIGRATES: Options = Options {
    trace: false,
    judges: Judges { region: true, late: true, excuses: true },
    kill_at: None,
    shapes: false,
    story: Story::Migration(None),
    slip: false,
};

#[test]
fn determinism_hashes_of_a_handful_of_migrations_are_pinned() {
    let mut arena = Arena::new();
    let got = PINNED_MIGRATIONS.map(|(seed, _)| (seed, run(&mut arena, seed, &MIGRATES).hash));
    let show = |(seed, hash): (u64, u64)| format!("({seed}, {hash:#018x})");
    assert_eq!(got.map(show), PINNED_MIGRATIONS.map(show), "see the head of this file");
}

#[test]
fn determinism_a_migration_twice_is_the_same_run_and_looking_does_not_change_it() {
    let (mut one, mut other) = (Arena::new(), Arena::new());
    for seed in 100..130 {
        let first = run(&mut one, seed, &MIGRATES);
        let second = run(&mut other, seed, &Options { trace: true, shapes: true, ..MIGRATES });
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
    }
}

#[test]
fn determinism_hashes_of_a_handful_of_seeds_are_pinned() {
    let mut arena = Arena::new();
    let got = PINNED.map(|(seed, _)| (seed, run(&mut arena, seed, &Options::default()).hash));
    let show = |(seed, hash): (u64, u64)| format!("({seed}, {hash:#018x})");
    assert_eq!(got.map(show), PINNED.map(show), "see the head of this file");
}

#[test]
fn determinism_the_same_seed_twice_is_the_same_run() {
    let (mut one, mut other) = (Arena::new(), Arena::new());
    for seed in 100..140 {
        let first = run(&mut one, seed, &Options::default());
        let second = run(&mut other, seed, &Options::default());
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
    }
}

#[test]
fn determinism_neither_order_nor_memory_of_earlier_runs_matters() {
    let mut arena = Arena::new();
    let forward: Vec<u64> =
        (0..20).map(|seed| run(&mut arena, seed, &Options::default()).hash).collect();
    let mut backward: Vec<u64> =
        (0..20).rev().map(|seed| run(&mut arena, seed, &Options::default()).hash).collect();
    backward.reverse();
    assert_eq!(forward, backward);
}

#[test]
fn determinism_looking_at_a_run_does_not_change_it() {
    let mut arena = Arena::new();
    for seed in 0..20 {
        let blind = run(&mut arena, seed, &Options::default());
        let options = Options { trace: true, shapes: true, ..Options::default() };
        let watched = run(&mut arena, seed, &options);
        assert_eq!(blind.hash, watched.hash, "seed {seed}");
        assert!(!watched.trace.events().is_empty());
        assert!(blind.trace.events().is_empty());
    }
}

#[test]
fn determinism_different_seeds_are_different_runs() {
    let mut arena = Arena::new();
    let mut hashes: Vec<u64> =
        (0..50).map(|seed| run(&mut arena, seed, &Options::default()).hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 50);
    let sum_of = |seeds: [u64; 2]| {
        let mut sum = Sum::default();
        for seed in seeds {
            sum.add(seed, &run(&mut Arena::new(), seed, &Options::default()));
        }
        sum.hash()
    };
    assert_ne!(sum_of([1, 2]), sum_of([2, 1]));
}
