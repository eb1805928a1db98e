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

fn caught(bug: Bug, expected: [&str; 2]) {
    for (region, oracle) in [true, false].into_iter().zip(expected) {
        let found = hunt(Some(bug), Judges { region }, LIMIT);
        let (seed, violation) =
            found.unwrap_or_else(|| panic!("{bug:?} is not caught in {LIMIT} seeds"));
        println!("{bug:?}, region oracle {region}: seed {seed}, {violation}");
        assert_eq!(violation.oracle, oracle, "{violation}");
    }
}

#[test]
fn bugs_region_cleared_before_the_used_index_is_published_is_caught() {
    caught(Bug::ClearBeforePublish, ["region", "order"]);
}

#[test]
fn bugs_resubmission_in_ring_order_is_caught() {
    caught(Bug::ResubmitInRingOrder, ["order", "order"]);
}

#[test]
fn bugs_fresh_region_on_a_used_ring_taken_at_face_value_is_caught() {
    caught(Bug::FreshRegionAtFaceValue, ["region", "session"]);
}

#[test]
fn bugs_used_index_not_copied_into_the_region_is_caught() {
    caught(Bug::UsedIdxNotCopied, ["region", "session"]);
}

#[test]
fn bugs_switched_off_change_nothing() {
    assert_eq!(hunt(None, Judges::default(), 100), None);
}
