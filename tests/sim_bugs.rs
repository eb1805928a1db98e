//! The simulator finds each deliberate mistake within 1 000 seeds: with every
//! oracle the right one does, and without the one that reads the inflight
//! region another does.
#![cfg(feature = "bugs")]

use midflight::bugs::{Bug, set};
use midflight_sim::hunt::{Mistake, TRIALS, Trial};
use midflight_sim::memory::Arena;
use midflight_sim::oracle::{Judges, Violation};
use midflight_sim::profile::ProfileName;
use midflight_sim::run::run;
use midflight_sim::scenario::Story;
use midflight_sim::world::Options;

const LIMIT: u64 = 1_000;

fn caught(mistake: Mistake) {
    let trial = TRIALS.iter().find(|t| t.mistake == mistake).expect("every mistake has a trial");
    let (seed, violation) = found(trial, Judges::default());
    println!("{mistake:?}: seed {seed}, {violation}");
    assert!(trial.oracles.contains(&violation.oracle), "{violation}");
    // Whatever a guest, a disk or a front-end can notice must do as well.
    let (seed, violation) = found(trial, Judges { region: false, ..Judges::default() });
    println!("{mistake:?} without the region oracle: seed {seed}, {violation}");
    assert_ne!(violation.oracle, "region");
}

fn found(trial: &Trial, judges: Judges) -> (u64, Violation) {
    trial
        .hunt(set, judges, LIMIT, |_| {})
        .unwrap_or_else(|| panic!("{} is not caught in {LIMIT} seeds by {judges:?}", trial.name()))
}

#[test]
fn bugs_region_cleared_before_the_used_index_is_published_is_caught() {
    caught(Mistake::Core(Bug::ClearBeforePublish));
}

#[test]
fn bugs_resubmission_in_ring_order_is_caught() {
    caught(Mistake::Core(Bug::ResubmitInRingOrder));
}

#[test]
fn bugs_fresh_region_on_a_used_ring_taken_at_face_value_is_caught() {
    caught(Mistake::Core(Bug::FreshRegionAtFaceValue));
}

#[test]
fn bugs_used_index_not_copied_into_the_region_is_caught() {
    caught(Mistake::Core(Bug::UsedIdxNotCopied));
}

#[test]
fn bugs_base_trusted_after_a_crash_is_caught() {
    caught(Mistake::Core(Bug::BaseTrusted));
}

#[test]
fn bugs_base_and_count_added_after_a_migration_is_caught() {
    caught(Mistake::Core(Bug::BasePlusInflight));
}

#[test]
fn bugs_reply_before_late_writes_are_impossible_is_caught() {
    caught(Mistake::Core(Bug::ReplyBeforeCancelled));
}

#[test]
fn bugs_used_ring_page_not_logged_is_caught() {
    caught(Mistake::Core(Bug::UsedRingNotLogged));
}

#[test]
fn bugs_status_byte_not_logged_is_caught() {
    caught(Mistake::Core(Bug::StatusNotLogged));
}

#[test]
fn bugs_log_bit_set_after_publishing_is_caught() {
    caught(Mistake::Core(Bug::LogAfterPublish));
}

#[test]
fn bugs_resubmission_after_fetching_is_caught() {
    caught(Mistake::Core(Bug::ResubmitAfterFetch));
}

#[test]
fn bugs_region_written_after_the_reply_is_caught() {
    caught(Mistake::Core(Bug::RegionAfterReply));
}

#[test]
fn bugs_last_batch_dropped_from_the_image_is_caught() {
    caught(Mistake::ImageDropsLastBatch);
}

#[test]
fn bugs_every_mistake_of_the_core_has_a_trial() {
    for bug in Bug::ALL {
        assert!(TRIALS.iter().any(|t| t.mistake == Mistake::Core(bug)), "{bug:?}");
    }
}

#[test]
fn bugs_switched_off_change_nothing() {
    let mut arena = Arena::new();
    for profile in [ProfileName::Mixed, ProfileName::Migration] {
        let story = Story::of(profile);
        for number in 0..100 {
            let outcome = run(&mut arena, &story.scenario(number).unwrap(), &Options::default());
            assert_eq!(outcome.verdict, Ok(()), "{}", story.seed(number));
        }
    }
}
