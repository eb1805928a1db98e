//! The device begins anew: RESET_DEVICE, its status, RESET_OWNER.

use super::common::{FEATURES, RING, Rig, ring_features, ring_layout};
use super::{disk, reaped, serves, state, write};
use midflight::driver::BlkDriver;
use midflight::wire::{FrontendReplyBody as Body, FrontendRequest as R};
use vm_memory::{Bytes, GuestAddress};

/// Only features and vrings are set up again, with a new region and new rings.
fn begin_anew(rig: &mut Rig) -> BlkDriver {
    rig.ok(R::SetFeatures(FEATURES));
    rig.get_inflight(1, RING);
    rig.set_inflight();
    let driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.start_vring(0, 0);
    driver
}

#[test]
fn reset_completes_nothing_and_keeps_memory_and_connection() {
    let (mut rig, mut driver) = Rig::running(disk());
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    assert_eq!(rig.send(R::ResetDevice, true), None, "one is in flight");
    rig.finish_all();
    assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::U64(0)));
    assert_eq!(reaped(&rig, &mut driver), 0);
    let mut driver = begin_anew(&mut rig);
    serves(&mut rig, &mut driver, 1);
}

#[test]
fn status_is_kept_and_zero_resets_nothing() {
    let (mut rig, mut driver) = Rig::running(disk());
    let status = |rig: &mut Rig| match rig.send(R::GetStatus, false) {
        Some(Body::U64(status)) => status,
        other => panic!("{other:?}"),
    };
    assert_eq!(status(&mut rig), 0);
    rig.ok(R::SetStatus(0xf));
    assert_eq!(status(&mut rig), 0xf);
    assert_eq!(rig.refused(R::SetStatus(0x100)), "SET_STATUS has 0x100, expected at most 0xff");
    assert_eq!(status(&mut rig), 0xf);
    serves(&mut rig, &mut driver, 0);
    // A pause as QEMU does it: status 0 after the stop, and at the next start
    // neither memory nor protocol features nor descriptors are sent again.
    rig.ok(R::SetVringEnable(state(0, 0)));
    let base = rig.get_base(0).unwrap();
    rig.ok(R::SetStatus(0));
    let live = rig.live.clone();
    assert_eq!(status(&mut rig), 0);
    assert_eq!(rig.live, live, "no descriptor was released");
    rig.set_inflight();
    rig.start_vring(0, base);
    rig.ok(R::SetStatus(0xf));
    serves(&mut rig, &mut driver, 1);
}

#[test]
fn status_says_that_a_broken_ring_needs_a_reset_and_reset_clears_it() {
    let (mut rig, driver) = Rig::running(disk());
    rig.ok(R::SetStatus(0xf));
    let at = ring_layout(0).avail + 2;
    rig.guest.write_obj(RING + 100, GuestAddress(at)).unwrap();
    rig.kick(0);
    assert_eq!(rig.send(R::GetStatus, false), Some(Body::U64(0x4f)));
    // QEMU writes back what it has read.
    rig.ok(R::SetStatus(0x4f));
    drop(driver);
    assert_eq!(rig.get_base(0), Some(0));
    rig.ok(R::ResetDevice);
    assert_eq!(rig.send(R::GetStatus, false), Some(Body::U64(0)));
}

#[test]
fn reset_lets_the_guest_go_on_with_the_memory_and_descriptors_there_are() {
    let (mut rig, mut driver) = Rig::running(disk());
    for round in 0..3 {
        write(&mut rig, &mut driver, 0);
        write(&mut rig, &mut driver, 1);
        rig.kick(0);
        // In flight when the device is reset: never completed, and the answer
        // waits for the disk.
        assert_eq!(rig.send(R::ResetDevice, true), None);
        rig.finish_all();
        assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::U64(0)));
        assert_eq!(reaped(&rig, &mut driver), 0, "round {round}");
        // The guest's driver starts afresh: new rings, a new region, no memory.
        let offered = rig.backend.offered_protocol_features();
        assert!(offered & midflight::wire::features::protocol::RESET_DEVICE != 0);
        driver = begin_anew(&mut rig);
        serves(&mut rig, &mut driver, 2);
    }
    // Three times in a row, as QEMU does at a machine reset, and before any start.
    for _ in 0..3 {
        rig.ok(R::ResetDevice);
    }
}

#[test]
fn owner_reset_is_ignored_as_the_document_advises() {
    let (mut rig, mut driver) = Rig::running(disk());
    rig.ok(R::ResetOwner);
    serves(&mut rig, &mut driver, 0);
}
