//! The runs that are drawn come to every marked place in the core: a place that
//! none reaches is one about which they say nothing.
#![cfg(feature = "marks")]

use midflight::marks::{Mark, take};
use midflight_sim::memory::Arena;
use midflight_sim::profile::ProfileName;
use midflight_sim::run::run;
use midflight_sim::scenario::Story;
use midflight_sim::world::Options;

/// Runs that are enough for the rarest place.
const RUNS: u64 = 600;

#[test]
fn marks_are_all_reached_by_the_runs_that_are_drawn() {
    let mut arena = Arena::new();
    let mut missing = Mark::ALL.to_vec();
    for number in 0..RUNS {
        for profile in [ProfileName::Storm, ProfileName::Migration] {
            take();
            run(&mut arena, &Story::of(profile).scenario(number).unwrap(), &Options::default());
            let marks = take();
            missing.retain(|mark| !marks.has(*mark));
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("{RUNS} runs of each profile do not reach {missing:?}");
}

#[test]
fn marks_of_one_run_are_not_those_of_another() {
    let mut arena = Arena::new();
    let story = Story::of(ProfileName::Quiet).with("kills", "0").with("migrations", "0");
    take();
    run(&mut arena, &story.scenario(3).unwrap(), &Options::default());
    let marks = take();
    assert!(marks.has(Mark::RegionFresh) && !marks.has(Mark::RecoveryResubmits));
    assert!(!take().has(Mark::RegionFresh));
}
