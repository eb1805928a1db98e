//! Every mistake of the catalogue is made and caught, by an oracle that is
//! expected to; and switched off they change nothing.
#![cfg(feature = "bugs")]

use midflight::bugs::{Bug, reached, set};
use midflight_sim::catalogue::{ENTRIES, Effort, Mistake, Switch, measure};
use midflight_sim::memory::Arena;
use midflight_sim::profile::ProfileName;
use midflight_sim::run::run;
use midflight_sim::scenario::Story;
use midflight_sim::world::Options;

const SWITCH: Switch = Switch { set, reached };
const STARTS: u64 = 2;
const EFFORT: Effort = Effort { starts: STARTS, limit: 4_000, shrink: 0 };

#[test]
fn bugs_are_all_reached_and_caught_by_an_expected_oracle() {
    let mut arena = Arena::new();
    let mut wrong = Vec::new();
    for entry in ENTRIES {
        let row = measure(&mut arena, entry, SWITCH, EFFORT);
        if row.reached < STARTS {
            wrong.push(format!("{} is made in {} of {STARTS} starts", entry.name(), row.reached));
        }
        if !row.is_caught() {
            wrong.push(format!("{} is caught by {:?}", entry.name(), row.oracles()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bugs_of_the_core_are_all_in_the_catalogue_and_once() {
    for bug in Bug::ALL {
        let entries = ENTRIES.iter().filter(|e| e.mistake == Mistake::Core(*bug)).count();
        assert_eq!(entries, 1, "{}", bug.name());
    }
    assert!(Bug::ALL.len() >= 40);
}

#[test]
fn bugs_the_canary_fails_at_its_first_seed() {
    let canary = ENTRIES.iter().find(|entry| entry.is_canary()).expect("there is a canary");
    let row = measure(&mut Arena::new(), canary, SWITCH, Effort { starts: 3, limit: 1, shrink: 0 });
    assert!(row.is_caught(), "{row:?}");
}

#[test]
fn bugs_switched_off_change_nothing() {
    let mut arena = Arena::new();
    set(None);
    for profile in [ProfileName::Mixed, ProfileName::Migration] {
        let story = Story::of(profile);
        for number in 0..100 {
            let outcome = run(&mut arena, &story.scenario(number).unwrap(), &Options::default());
            assert_eq!(outcome.verdict, Ok(()), "{}", story.seed(number));
        }
    }
    assert!(!reached());
}
