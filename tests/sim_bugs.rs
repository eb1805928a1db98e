//! The simulator finds each deliberate mistake in the inflight code, with every
//! oracle and also without the one that reads the inflight region.
#![cfg(feature = "bugs")]

use midflight::bugs::{Bug, set};
use midflight_sim::memory::Arena;
use midflight_sim::oracle::{Judges, Violation};
use midflight_sim::run::run;
use midflight_sim::world::Options;

const LIMIT: u64 = 1_000;

fn hunt(bug: Option<Bug>, judges: Judges, limit: u64) -> Option<(u64, Violation)> {
    let mut arena = Arena::new();
    let options = Options { judges, ..Options::default() };
    set(bug);
    let found = (0..limit).find_map(|seed| {
        let verdict = run(&mut arena, seed, &options).verdict;
        Some((seed, verdict.err()?))
    });
    set(None);
    found
}

fn caught(bug: Bug, by: &str) {
    let (seed, violation) = found(bug, Judges::default());
    println!("{bug:?}: seed {seed}, {violation}");
    assert_eq!(violation.oracle, by, "{violation}");
    // Whatever a guest, a disk or a front-end can notice must do as well.
    let (seed, violation) = found(bug, Judges { region: false });
    println!("{bug:?} without the region oracle: seed {seed}, {violation}");
    assert_ne!(violation.oracle, "region");
}

fn found(bug: Bug, judges: Judges) -> (u64, Violation) {
    hunt(Some(bug), judges, LIMIT)
        .unwrap_or_else(|| panic!("{bug:?} is not caught in {LIMIT} seeds by {judges:?}"))
}

#[test]
fn bugs_region_cleared_before_the_used_index_is_published_is_caught() {
    caught(Bug::ClearBeforePublish, "region");
}

#[test]
fn bugs_resubmission_in_ring_order_is_caught() {
    caught(Bug::ResubmitInRingOrder, "order");
}

#[test]
fn bugs_fresh_region_on_a_used_ring_taken_at_face_value_is_caught() {
    caught(Bug::FreshRegionAtFaceValue, "region");
}

#[test]
fn bugs_used_index_not_copied_into_the_region_is_caught() {
    caught(Bug::UsedIdxNotCopied, "region");
}

#[test]
fn bugs_switched_off_change_nothing() {
    assert_eq!(hunt(None, Judges::default(), 100), None);
}
