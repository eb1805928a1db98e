//! A back-end killed at any store of a short run is survived.

use midflight_sim::crash::{at_every_pair, at_every_store, packed, short_run};
use midflight_sim::memory::Arena;
use midflight_sim::scenario::Scenario;

#[test]
fn inflight_kill_at_every_store_of_a_short_run_completes_each_request_once() {
    let mut arena = Arena::new();
    let mut points = 0;
    for batch in 1..=3 {
        for event_idx in [false, true] {
            let scenario = Scenario::of_profile(&short_run(batch, event_idx), 1);
            let report = at_every_store(&mut arena, &scenario, |_, _| {});
            for (point, violation) in &report.failures {
                println!("batch {batch}, event index {event_idx}, {point:?}: {violation}");
            }
            assert_eq!(report.failures.len(), 0);
            // The run really publishes batches of this length.
            assert_eq!(report.batch, batch);
            assert!(report.between_stores > report.stores);
            assert!(report.recoveries > 0 && report.resubmitted > 0);
            points += report.points();
        }
    }
    println!("{points} crash points explored");
    assert!(points > 1_000);
}

#[test]
fn inflight_kill_at_every_store_of_an_in_order_run_completes_each_request_in_its_turn() {
    let mut arena = Arena::new();
    let mut points = 0;
    for (batch, is_packed) in [(1, false), (3, false), (3, true)] {
        let mut profile = short_run(batch, true);
        profile.topology.in_order = true;
        // A disk that finishes in another order than it was asked.
        profile.topology.pace = midflight_sim::disk::Pace::Slow;
        if is_packed {
            profile = packed(profile, false);
        }
        let report = at_every_store(&mut arena, &Scenario::of_profile(&profile, 1), |_, _| {});
        for (point, violation) in &report.failures {
            println!("batch {batch}, packed {is_packed}, {point:?}: {violation}");
        }
        assert_eq!(report.failures.len(), 0);
        assert!(report.recoveries > 0 && report.resubmitted > 0);
        points += report.points();
    }
    println!("{points} crash points explored");
    assert!(points > 300);
}

#[test]
fn inflight_kill_at_every_store_of_a_packed_run_completes_each_request_once() {
    let mut arena = Arena::new();
    let mut points = 0;
    for (batch, event_idx, indirect) in
        [(1, false, false), (1, true, true), (2, true, false), (3, false, true), (3, true, false)]
    {
        let profile = packed(short_run(batch, event_idx), indirect);
        let report = at_every_store(&mut arena, &Scenario::of_profile(&profile, 1), |_, _| {});
        for (point, violation) in &report.failures {
            println!("batch {batch}, event index {event_idx}, {point:?}: {violation}");
        }
        assert_eq!(report.failures.len(), 0);
        assert_eq!(report.batch, batch);
        assert!(report.recoveries > 0 && report.resubmitted > 0);
        points += report.points();
    }
    println!("{points} crash points explored");
    assert!(points > 1_000);
}

#[test]
fn inflight_kill_of_a_back_end_and_of_its_successor_on_a_packed_ring_completes_each_once() {
    let mut profile = packed(short_run(1, true), false);
    profile.rates.requests = 2;
    let scenario = Scenario::of_profile(&profile, 1);
    let report = at_every_pair(&mut Arena::new(), &scenario, |_, _| {});
    for (points, violation) in &report.failures {
        println!("{points:?}: {violation}");
    }
    assert_eq!(report.failures.len(), 0);
    assert!(report.points() > 2_000, "{}", report.points());
}

#[test]
fn inflight_kill_of_a_back_end_and_of_its_successor_completes_each_request_once() {
    let mut arena = Arena::new();
    let mut profile = short_run(1, true);
    profile.rates.requests = 2;
    let scenario = Scenario::of_profile(&profile, 1);
    let report = at_every_pair(&mut arena, &scenario, |_, _| {});
    for (points, violation) in &report.failures {
        println!("{points:?}: {violation}");
    }
    assert_eq!(report.failures.len(), 0);
    assert!(report.points() > 2_000, "{}", report.points());
}
