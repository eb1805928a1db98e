//! A guest that breaks the rules of one vring harms nobody else, and is found
//! out.

use midflight_sim::guest::Sabotage;
use midflight_sim::memory::Arena;
use midflight_sim::profile::ProfileName;
use midflight_sim::run::{Sum, run};
use midflight_sim::scenario::{Scenario, Story};
use midflight_sim::world::Options;

#[test]
fn hostile_guests_break_their_own_vring_and_nothing_else() {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    for number in 0..300 {
        let scenario = Story::of(ProfileName::Hostile).scenario(number).unwrap();
        sum.add(number, &run(&mut arena, &scenario, &Options::default()));
    }
    for (seed, violation) in &sum.failures {
        println!("seed {seed}: {violation}");
    }
    assert_eq!(sum.failures.len(), 0);
    assert!(sum.stats.broken > 200 && sum.stats.requests > 8_000, "{:?}", sum.stats);
}

#[test]
fn hostile_acts_are_told_and_what_they_cost_is_excused() {
    let mut arena = Arena::new();
    for how in Sabotage::ALL {
        let text = format!(
            "midflight scenario\n[topology]\nqueues = 2\npace = slow\n[actions]\nrequest vring 0 write 4 @0\nrequest vring 0 read 4 @0\nsabotage vring 0 {}\nrequest vring 0 flush\nrequest vring 1 write 4 @8\nrest vring 1 9000 us\nrequest vring 1 read 4 @8\n",
            how.name()
        );
        let scenario: Scenario = text.parse().unwrap();
        let outcome = run(&mut arena, &scenario, &Options::default());
        assert_eq!(outcome.verdict, Ok(()), "{how:?}");
        // The other vring does all its work.
        assert_eq!(outcome.stats.requests, 2, "{how:?}");
        assert!(outcome.excuses[0].contains(how.name()), "{:?}", outcome.excuses);
        if how.is_plain() {
            assert_eq!(outcome.stats.broken, 1, "{how:?}");
        }
    }
}

#[test]
fn hostile_kick_that_is_lost_is_excused_when_trouble_ends() {
    let mut arena = Arena::new();
    let text = "midflight scenario\n[actions]\nrequest vring 0 write 1 @0\nrest vring 0 5000 us\nkick vring 0 lost\nrequest vring 0 read 1 @0\n";
    let scenario: Scenario = text.parse().unwrap();
    let outcome = run(&mut arena, &scenario, &Options::default());
    assert_eq!(outcome.verdict, Ok(()));
    assert_eq!(outcome.stats.requests, 2);
    assert_eq!(outcome.excuses, ["vring 0 waited for a kick that was lost"]);
}
