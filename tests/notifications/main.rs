//! No wake-up is lost: every order of the loads and stores by which driver and
//! device decide to sleep and to wake each other, under the C11 memory model.
//!
//! What runs is the real code of both sides, on memory whose shared words are
//! loom's atomics. A side sleeps when it has asked to be woken and found nothing
//! more to do. It may sleep for ever only if nothing is left for it, or if the
//! other side has signalled since. loom tries every interleaving, and every older
//! value that a load may still return; take any of the four fences away and it
//! finds the order in which both sides sleep.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod ring;

use loom::sync::atomic::AtomicU32;
use ring::{Ends, Fences, Kind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An eventfd: signals add up until somebody takes them.
#[derive(Clone)]
struct Event(Arc<AtomicU32>);

impl Event {
    fn new() -> Self {
        Self(Arc::new(AtomicU32::new(0)))
    }

    fn signal(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Sleep, unless it was signalled; false if nobody ever wakes us here.
    fn sleep(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) > 0
    }
}

const LOST: &str = "lost wake-up";
/// See [`switches`].
const BOUND: usize = 4;

/// The driver makes chains available, one publication for each number, while the
/// device fetches and goes to sleep in between.
fn kicks(kind: Kind, fences: Fences, publications: &'static [u16]) {
    let Ends { mut driver, mut device } = ring::make(kind, fences);
    let kick = Event::new();
    let theirs = kick.clone();
    let guest = loom::thread::spawn(move || {
        for count in publications {
            for _ in 0..*count {
                driver.add();
            }
            driver.publish();
            if driver.kick_needed() {
                theirs.signal();
            }
        }
    });
    let mut fetched = 0;
    loop {
        device.decline_kicks();
        while device.fetch().is_some() {
            fetched += 1;
        }
        if !device.ask_for_kicks() && !kick.sleep() {
            break;
        }
    }
    guest.join().unwrap();
    let all = publications.iter().sum::<u16>();
    assert!(fetched == all || kick.sleep(), "{LOST}: {fetched} of {all} chains were fetched");
}

/// The device has chains and publishes them, in batches of these sizes, while the
/// driver reaps and goes to sleep in between until `after` more are used.
fn calls(kind: Kind, fences: Fences, batches: &'static [u16], after: u16) {
    let Ends { mut driver, mut device } = ring::make(kind, fences);
    let all = batches.iter().sum::<u16>();
    for _ in 0..all {
        driver.add();
        driver.publish();
    }
    let mut slots: Vec<u16> = core::iter::from_fn(|| device.fetch()).collect();
    assert_eq!(slots.len(), usize::from(all));
    let call = Event::new();
    let theirs = call.clone();
    let host = loom::thread::spawn(move || {
        for count in batches {
            let batch: Vec<u16> = slots.drain(..usize::from(*count)).collect();
            device.publish(&batch);
            if device.needs_call() {
                theirs.signal();
            }
        }
    });
    let mut reaped = 0;
    loop {
        driver.disable_calls();
        while driver.reap() {
            reaped += 1;
        }
        if reaped < all && !driver.enable_calls_after(after) && !call.sleep() || reaped == all {
            break;
        }
    }
    host.join().unwrap();
    // Fewer than it waits for may lie there: that is what it has asked for.
    let few = kind.event_idx && all - reaped < after;
    assert!(reaped == all || few || call.sleep(), "{LOST}: {reaped} of {all} chains were reaped");
}

/// Orders with at most this many switches away from a side that could have gone
/// on; `None`: all there are. Returns how many were tried.
fn explore(switches: Option<usize>, f: impl Fn() + Send + Sync + 'static) -> usize {
    let orders = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&orders);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = switches;
    model.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        f();
    });
    orders.load(Ordering::Relaxed)
}

/// What loom finds, if it finds anything. In a thread of its own, because loom
/// does not clean up after a failure.
fn finds(f: impl Fn() + Send + Sync + 'static) -> Option<String> {
    let failed = std::thread::spawn(move || explore(None, f)).join().err()?;
    let text = failed.downcast_ref::<String>().cloned();
    Some(text.unwrap_or_else(|| "another panic".into()))
}

/// One suppression boundary is explored without bound. With a second one there
/// are too many orders, nearly all of them alike.
fn switches(numbers: &[u16]) -> Option<usize> {
    (numbers.len() > 1).then_some(BOUND)
}

#[test]
fn notification_of_the_device_is_not_lost_in_any_order() {
    for kind in ring::KINDS {
        for publications in [&[1][..], &[2], &[1, 1]] {
            let bound = switches(publications);
            let orders = explore(bound, move || kicks(kind, Fences::ALL, publications));
            println!("{kind:?}, publications of {publications:?}: {orders} orders");
            assert!(orders > 10, "{kind:?}: only {orders} orders");
        }
    }
}

#[test]
fn notification_of_the_driver_is_not_lost_in_any_order() {
    for kind in ring::KINDS {
        for batches in [&[1][..], &[2], &[1, 1]] {
            for after in [1, 2] {
                let bound = switches(batches);
                let orders = explore(bound, move || calls(kind, Fences::ALL, batches, after));
                println!("{kind:?}, batches of {batches:?}, after {after}: {orders} orders");
                assert!(orders > 5, "{kind:?}: only {orders} orders");
            }
        }
    }
}

#[test]
fn notification_is_lost_without_any_one_of_the_four_fences() {
    for kind in ring::KINDS {
        let without = Fences { driver: false, ..Fences::ALL };
        let found = finds(move || kicks(kind, without, &[1]));
        assert!(found.is_some_and(|text| text.contains(LOST)), "{kind:?}: kick_needed");
        let found = finds(move || calls(kind, without, &[1], 1));
        assert!(found.is_some_and(|text| text.contains(LOST)), "{kind:?}: enable_calls");
        let without = Fences { device: false, ..Fences::ALL };
        let found = finds(move || kicks(kind, without, &[1]));
        assert!(found.is_some_and(|text| text.contains(LOST)), "{kind:?}: enable_kicks");
        let found = finds(move || calls(kind, without, &[1], 1));
        assert!(found.is_some_and(|text| text.contains(LOST)), "{kind:?}: needs_call");
    }
}
