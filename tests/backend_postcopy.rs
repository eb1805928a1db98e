//! Postcopy, message by message: when memory is mapped without its pages, what
//! is told about it, and that nothing touches it before it may be touched.

mod common;

use common::*;
use midflight::Handle;
use midflight::backend::{Event, Input};
use midflight::blk::DeviceConfig;
use midflight::driver::{BlkDriver, BlkOp, Framing};
use midflight::wire::features::protocol;
use midflight::wire::{FrontendReplyBody as Body, FrontendRequest as R, MemRegion, VringState};

fn disk() -> DeviceConfig {
    DeviceConfig { num_queues: 2, ..DeviceConfig::with_capacity(1 << 20) }
}

/// Negotiated and advised.
fn advised() -> Rig {
    let mut rig = Rig::new(disk()).offer_postcopy();
    rig.negotiate(FEATURES);
    match rig.send(R::PostcopyAdvise, false) {
        Some(Body::Handle(handle)) => assert!(!rig.live.contains(&handle), "sent and released"),
        other => panic!("{other:?}"),
    }
    rig
}

fn listening() -> Rig {
    let mut rig = advised();
    rig.ok(R::PostcopyListen);
    assert_eq!(rig.events.last(), Some(&Event::PostcopyListening));
    rig
}

fn add(rig: &mut Rig, region: MemRegion) -> Option<Body<Handle>> {
    let handle = rig.handle();
    rig.send(R::AddMemReg(region, handle), false)
}

fn told(region: MemRegion) -> MemRegion {
    MemRegion { user_addr: region.guest_addr + BASE, ..region }
}

fn enable() -> R<Handle> {
    R::SetVringEnable(VringState { index: 0, num: 1 })
}

#[test]
fn postcopy_is_offered_only_where_the_driver_can() {
    let rig = Rig::new(disk());
    assert_eq!(rig.backend.offered_protocol_features() & protocol::PAGEFAULT, 0);
    let rig = rig.offer_postcopy();
    assert_ne!(rig.backend.offered_protocol_features() & protocol::PAGEFAULT, 0);
    let mut rig = Rig::new(disk());
    rig.negotiate(FEATURES);
    assert_eq!(
        rig.refused(R::PostcopyListen),
        "POSTCOPY_LISTEN came without PAGEFAULT being negotiated"
    );
}

#[test]
fn postcopy_regions_are_told_by_their_own_addresses_and_acknowledged_without_answer() {
    let mut rig = listening();
    let high = MemRegion { guest_addr: 1 << 32, size: 4096, user_addr: 4096, mmap_offset: 8192 };
    // In the order in which they come, not by address.
    assert_eq!(add(&mut rig, high), Some(Body::MemRegion(told(high))));
    assert_eq!(add(&mut rig, guest_region()), Some(Body::MemRegion(told(guest_region()))));
    assert_eq!(rig.send(R::MemRegAck, true), None, "QEMU asks and does not listen");
    assert_eq!(rig.closed, None);

    let mut rig = listening();
    let (a, b) = (rig.handle(), rig.handle());
    let table = vec![(high, a), (guest_region(), b)];
    let expected = vec![told(high), told(guest_region())];
    assert_eq!(rig.send(R::SetMemTable(table), true), Some(Body::MemTable(expected)));
    assert_eq!(rig.send(R::MemTableAck, false), None);
    assert_eq!(rig.closed, None);
}

#[test]
fn postcopy_memory_is_touched_only_after_it_was_acknowledged() {
    let mut rig = listening();
    rig.get_inflight(1, RING);
    add(&mut rig, guest_region());
    BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.set_inflight();
    rig.set_up_vring_at(RING, 0, vring_addr(0));
    assert_eq!(
        rig.refused(enable()),
        "vring 0 starts before the memory sent in postcopy was acknowledged"
    );
    rig.send(R::MemRegAck, false);
    rig.ok(enable());
    assert!(matches!(rig.events.last(), Some(Event::VringRunning { .. })), "{:?}", rig.events);
}

#[test]
fn postcopy_memory_added_under_a_running_vring_holds_fetching_until_acknowledged() {
    let mut rig = listening();
    add(&mut rig, guest_region());
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.send(R::MemRegAck, false);
    rig.start_vring(0, 0);
    let more = MemRegion { guest_addr: 1 << 32, size: 4096, user_addr: 4096, mmap_offset: 0 };
    assert_eq!(add(&mut rig, more), Some(Body::MemRegion(told(more))));
    submit(&rig, &mut driver, 0, BlkOp::Flush, 0, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    assert_eq!(rig.at_disk.len(), 0);
    rig.send(R::MemRegAck, false);
    assert_eq!(rig.at_disk.len(), 1, "without another kick");
    // Removing has no page faults to tell about.
    rig.finish_all();
    rig.ok(R::RemMemReg(more, None));
}

#[test]
fn postcopy_end_is_answered_and_memory_is_ordinary_afterwards() {
    let mut rig = listening();
    assert_eq!(rig.send(R::PostcopyEnd, false), Some(Body::U64(0)));
    assert_eq!(
        (rig.faults_closed.as_slice(), rig.events.last()),
        (&[true][..], Some(&Event::PostcopyEnded))
    );
    rig.add_memory();
}

#[test]
fn postcopy_messages_out_of_place_are_refused_and_change_nothing() {
    let mut rig = Rig::new(disk()).offer_postcopy();
    rig.negotiate(FEATURES);
    for (message, text) in [
        (
            R::PostcopyListen,
            "POSTCOPY_LISTEN came while there is no postcopy, expected it once, after POSTCOPY_ADVISE",
        ),
        (
            R::MemRegAck,
            "ADD_MEM_REG came while there is no postcopy, expected it after memory was sent in postcopy",
        ),
        (
            R::MemTableAck,
            "SET_MEM_TABLE came while there is no postcopy, expected it after memory was sent in postcopy",
        ),
    ] {
        assert_eq!(rig.refused(message), text);
    }
    // Its pages are there already, perhaps as zeroes that the guest never wrote.
    let mut rig = advised();
    rig.add_memory();
    assert_eq!(
        rig.refused(R::PostcopyListen),
        "POSTCOPY_LISTEN came while memory is mapped, expected it before any memory"
    );
    let mut rig = listening();
    assert!(rig.refused(R::PostcopyListen).contains("while postcopy listens"));
    rig.send(R::PostcopyAdvise, false);
    assert!(rig.closed.is_some(), "it has no way to say no");
    assert_eq!(rig.faults_closed, [false]);
    let mut rig = Rig::new(disk()).offer_postcopy();
    rig.negotiate(FEATURES);
    rig.send(R::PostcopyEnd, false);
    assert!(rig.closed.is_some());
}

#[test]
fn postcopy_that_is_left_half_way_cuts_memory_and_releases_every_handle() {
    for ends_by_owner in [false, true] {
        let mut rig = listening();
        add(&mut rig, guest_region());
        if ends_by_owner {
            rig.ok(R::SetOwner);
        } else {
            rig.input(Input::PeerClosed);
        }
        assert_eq!(rig.faults_closed, [false]);
        assert!(rig.live.is_empty(), "{:?}", rig.live);
        assert!(rig.backend.is_idle() != ends_by_owner);
    }
}

#[test]
fn postcopy_failures_of_the_driver_are_told() {
    let mut rig = Rig::new(disk()).offer_postcopy();
    rig.negotiate(FEATURES);
    rig.refuse_map = Some("too many open files".to_owned());
    rig.send(R::PostcopyAdvise, false);
    let closed = rig.closed.expect("it has no way to say no").to_string();
    assert!(closed.contains("POSTCOPY_ADVISE cannot be mapped: too many open files"), "{closed}");

    let mut rig = listening();
    rig.refuse_map = Some("not shared memory".to_owned());
    let handle = rig.handle();
    assert_eq!(
        rig.refused(R::AddMemReg(guest_region(), handle)),
        "ADD_MEM_REG cannot be mapped: not shared memory"
    );
    assert_eq!(add(&mut rig, guest_region()), Some(Body::MemRegion(told(guest_region()))));
}
