//! The back-end with packed rings: requests, bases, stops, takeovers.

#![allow(clippy::disallowed_types)]

mod common;

use common::{
    FEATURES, PACKED_START, RING, Rig, packed_addr, packed_layout, reaped, ring_features,
    slot_base, submit, write,
};
use midflight::backend::{Event, Input, SuspendPolicy};
use midflight::blk::{Completion, DeviceConfig, DiskError};
use midflight::driver::{BlkDriver, BlkOp, BlkStatus, Framing, RingFeatures};
use midflight::inflight::region_size_of;
use midflight::time::Duration;
use midflight::vring::RingFormat;
use midflight::wire::features::virtio;
use midflight::wire::{Dialect, FrontendRequest as R, VringState};
use vm_memory::{Bytes, GuestAddress};

const FRAMINGS: [Framing; 4] =
    [Framing::CLASSIC, Framing::INDIRECT, Framing::JOINED, Framing::SPLIT_HEADER];

fn config() -> DeviceConfig {
    DeviceConfig { packed: true, ..DeviceConfig::with_capacity(1 << 20) }
}

fn policy() -> SuspendPolicy {
    SuspendPolicy { grace: Duration::ZERO, dialect: Dialect::QEMU_11_1 }
}

fn rig(size: u16) -> (Rig, BlkDriver) {
    let mut rig = Rig::with(config(), Some(policy()));
    let driver = rig.run_packed(size);
    (rig, driver)
}

/// Another back-end on the same guest and region, with the front-end's idea of
/// where the ring is.
fn successor(of: &Rig, size: u16, base: u32) -> Rig {
    let mut rig = Rig::with(config(), Some(policy()));
    (rig.guest, rig.region) = (of.guest.clone(), of.region.clone());
    rig.region_description = of.region_description;
    rig.disk = of.disk.clone();
    rig.negotiate(FEATURES | virtio::RING_PACKED);
    rig.add_memory();
    rig.set_inflight();
    rig.start_vring_at(size, base, packed_addr(size));
    rig
}

fn running(rig: &Rig) -> (u16, u16, u16) {
    let found = rig.events.iter().rev().find_map(|event| match event {
        Event::VringRunning { next_avail, used, resubmitted, .. } => {
            Some((*next_avail, *used, *resubmitted))
        }
        _ => None,
    });
    found.expect("it runs")
}

#[test]
fn packed_data_survives_every_framing_around_rings_of_any_size() {
    for size in [5u16, 7, 64, 100] {
        let (mut rig, mut driver) = rig(size);
        for round in 0..3 * size / 2 {
            let framing = &FRAMINGS[usize::from(round) % FRAMINGS.len()];
            let data: Vec<u8> = (0..512u32).map(|i| (i * 7) as u8 ^ round as u8).collect();
            rig.guest.write_slice(&data, GuestAddress(slot_base(0) + 16)).unwrap();
            submit(&rig, &mut driver, 0, BlkOp::Out { sector: 8 }, 512, framing);
            driver.publish(&rig.guest).unwrap();
            rig.kick(0);
            rig.finish_all();
            assert_eq!(reaped(&rig, &mut driver), [0], "size {size} round {round}");
            submit(&rig, &mut driver, 1, BlkOp::In { sector: 8 }, 512, framing);
            driver.publish(&rig.guest).unwrap();
            rig.kick(0);
            rig.finish_all();
            let done = driver.reap(&rig.guest).unwrap().expect("a completion");
            assert_eq!((done.status, done.len), (BlkStatus::Ok, 513));
            let mut got = vec![0; 512];
            rig.guest.read_slice(&mut got, GuestAddress(slot_base(1) + 16)).unwrap();
            assert_eq!(got, data, "size {size} round {round}");
        }
        assert!(rig.errs.is_empty());
        assert!(!rig.calls.is_empty());
    }
}

#[test]
fn packed_sizes_need_not_be_powers_of_two_and_split_ones_must() {
    let num = |num| R::SetVringNum(VringState { index: 0, num });
    let mut rig = Rig::new(config());
    rig.negotiate(FEATURES | virtio::RING_PACKED);
    for size in [1, 3, 1000, 1024] {
        rig.ok(num(size));
    }
    for size in [0, 1025, 65536] {
        let text = format!("SET_VRING_NUM for vring 0 is {size}, expected a size from 1 to 1024");
        assert_eq!(rig.refused(num(size)), text);
    }
    rig.ok(num(1000));
    rig.ok(R::SetFeatures(FEATURES));
    let text = "SET_VRING_NUM for vring 0 is 1000, expected a power of two from 1 to 1024";
    assert_eq!(rig.refused(num(1000)), text);
    // What was set before is looked at again.
    rig.add_memory();
    rig.ok(R::SetVringAddr(packed_addr(8)));
    let handle = rig.handle();
    rig.ok(R::SetVringKick(midflight::wire::VringFile { index: 0, handle: Some(handle) }));
    assert_eq!(rig.refused(R::SetVringEnable(VringState { index: 0, num: 1 })), text);
}

#[test]
fn packed_base_tells_both_positions_and_a_restart_goes_on_there() {
    let size = 8;
    let (mut rig, mut driver) = rig(size);
    // Chains of three: after five of them the ring is at entry 15, so 7 with
    // the wrap counter 0.
    for slot in 0..5 {
        write(&mut rig, &mut driver, slot..slot + 1);
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver), [slot]);
    }
    assert_eq!(rig.get_base32(0), Some(0x0007_0007));
    // Asked again it is the same.
    assert_eq!(rig.get_base32(0), Some(0x0007_0007));
    write(&mut rig, &mut driver, 5..6);
    rig.set_inflight();
    rig.start_vring_at(size, 0x0007_0007, packed_addr(size));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [5]);
    assert_eq!(rig.get_base32(0), Some(0x8002_8002));
}

#[test]
fn packed_ring_without_a_region_goes_on_at_its_base() {
    let size = 5;
    let mut rig = Rig::new(config());
    rig.negotiate(FEATURES | virtio::RING_PACKED);
    rig.add_memory();
    let features = RingFeatures { packed: true, ..ring_features() };
    let mut driver = BlkDriver::start(&rig.guest, packed_layout(size), features).unwrap();
    rig.start_vring_at(size, PACKED_START, packed_addr(size));
    for slot in 0..4 {
        write(&mut rig, &mut driver, slot..slot + 1);
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver), [slot]);
        // Entry 3, then 1 of the next round, and so on.
        let at = 3 * (slot as u32 + 1);
        let wrap = if (at / 5).is_multiple_of(2) { 0x8000 } else { 0 };
        let bits = (at % 5) | wrap;
        assert_eq!(rig.get_base32(0), Some(bits << 16 | bits));
        rig.start_vring_at(size, bits << 16 | bits, packed_addr(size));
    }
}

#[test]
fn packed_bases_that_no_ring_can_have_are_refused() {
    for base in [0x0008_0000, 0x0000_0008, 0x8003_8002, 0x8000_0001] {
        let mut rig = Rig::new(config());
        rig.negotiate(FEATURES | virtio::RING_PACKED);
        rig.add_memory();
        rig.ok(R::SetVringNum(VringState { index: 0, num: 8 }));
        rig.ok(R::SetVringBase(VringState { index: 0, num: base }));
        rig.ok(R::SetVringAddr(packed_addr(8)));
        let handle = rig.handle();
        rig.ok(R::SetVringKick(midflight::wire::VringFile { index: 0, handle: Some(handle) }));
        let refused = rig.refused(R::SetVringEnable(VringState { index: 0, num: 1 }));
        let text = format!(
            "SET_VRING_BASE for vring 0 is {base:#x}, expected two positions of a packed ring of 8"
        );
        assert_eq!(refused, text);
    }
}

#[test]
fn packed_crash_is_recovered_from_the_region_whatever_the_base() {
    let size = 16;
    let (mut rig, mut driver) = rig(size);
    write(&mut rig, &mut driver, 0..4);
    // The third is done out of order; its used descriptor goes over the first
    // one's chain.
    let id = rig.at_disk.remove(2);
    let done = rig.execute(id);
    rig.input(Input::DiskDone(&[done]));
    assert_eq!(reaped(&rig, &mut driver), [2]);
    // The front-end knows nothing better than what it said at the start.
    let mut next = successor(&rig, size, PACKED_START);
    assert_eq!(running(&next), (0x8000 | 12, 0x8000 | 3, 3));
    assert!(!next.events.iter().any(|e| matches!(e, Event::BaseContradicted { .. })));
    next.finish_all();
    assert_eq!(reaped(&next, &mut driver), [0, 1, 3]);
    write(&mut next, &mut driver, 4..8);
    next.finish_all();
    assert_eq!(reaped(&next, &mut driver), [4, 5, 6, 7]);
    for slot in 0..8u64 {
        let mut data = vec![0; 512];
        next.guest.read_slice(&mut data, GuestAddress(slot_base(slot) + 16)).unwrap();
        assert_eq!(next.disk[512 * slot as usize..][..512], data);
    }
}

#[test]
fn packed_suspend_leaves_chains_in_the_region_and_the_base_counts_their_entries() {
    let size = 16;
    let (mut rig, mut driver) = rig(size);
    write(&mut rig, &mut driver, 0..5);
    let ids = rig.at_disk.clone();
    let done: Vec<Completion> = [ids[1], ids[4]].map(|id| rig.execute(id)).into();
    rig.input(Input::DiskDone(&done));
    assert_eq!(rig.get_base32(0), None);
    rig.input(Input::Timeout);
    assert_eq!(rig.cancelled, [ids[0], ids[2], ids[3]]);
    let cancelled = [ids[0], ids[2], ids[3]];
    let cancelled = cancelled.map(|id| Completion { id, result: Err(DiskError::Cancelled) });
    rig.input(Input::DiskDone(&cancelled));
    // 6 entries used, 9 in flight.
    let base = 0x8000 | 15 | (0x8000 | 6) << 16;
    assert!(rig.events.contains(&Event::VringStopped { vring: 0, base }));
    assert_eq!(reaped(&rig, &mut driver), [1, 4]);
    let mut next = successor(&rig, size, base);
    assert_eq!(running(&next), (0x8000 | 15, 0x8000 | 6, 3));
    // In the order of fetching.
    let sectors: Vec<_> =
        next.at_disk.iter().map(|id| next.backend.request(*id).unwrap().op).collect();
    assert!(sectors.is_sorted_by_key(|op| format!("{op:?}")), "{sectors:?}");
    next.finish_all();
    assert_eq!(reaped(&next, &mut driver), [0, 2, 3]);
}

#[test]
fn packed_region_is_large_enough_if_it_is_asked_for_before_the_features() {
    let packed = region_size_of(RingFormat::Packed, 1, RING);
    let mut rig = Rig::new(config());
    rig.send(R::SetProtocolFeatures(rig.backend.offered_protocol_features()), false);
    rig.get_inflight(1, RING);
    assert_eq!(rig.region_description.unwrap().mmap_size, packed);
    rig.set_inflight();
    rig.negotiate(FEATURES | virtio::RING_PACKED);
    rig.add_memory();
    let features = RingFeatures { packed: true, ..ring_features() };
    let mut driver = BlkDriver::start(&rig.guest, packed_layout(RING), features).unwrap();
    rig.start_vring_at(RING, PACKED_START, packed_addr(RING));
    write(&mut rig, &mut driver, 0..3);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [0, 1, 2]);
    // One for split rings is too small, and said to be.
    let split = region_size_of(RingFormat::Split, 1, RING);
    let mut rig = Rig::new(config());
    rig.negotiate(FEATURES | virtio::RING_PACKED);
    rig.get_inflight(1, RING);
    rig.region_description.as_mut().unwrap().mmap_size = split;
    let handle = rig.handle();
    let refused = rig.refused(R::SetInflightFd(rig.region_description.unwrap(), handle));
    assert_eq!(refused, "inflight region has 1088 bytes, expected at least 2080");
}

#[test]
fn packed_ring_that_the_guest_breaks_is_silent_until_it_is_started_again() {
    let (mut rig, mut driver) = rig(16);
    write(&mut rig, &mut driver, 0..1);
    // The same buffer id once more, by hand.
    let at = packed_layout(16).desc + 16 * 3;
    let id: u16 = rig.guest.read_obj(GuestAddress(at - 16 + 12)).unwrap();
    rig.guest.write_obj(id, GuestAddress(at + 12)).unwrap();
    rig.guest.write_obj(0x80u16, GuestAddress(at + 14)).unwrap();
    rig.kick(0);
    assert_eq!(rig.errs, [0]);
    let text = format!("available chain has buffer id {id}, which is in flight already");
    let found = rig.events.iter().find_map(|event| match event {
        Event::VringBroken { fault, .. } => Some(fault.to_string()),
        _ => None,
    });
    assert_eq!(found, Some(text));
    // What it has is still finished.
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [0]);
    assert_eq!(rig.get_base32(0), Some(0x8003_8003));
}

#[test]
fn packed_kicks_that_were_not_wanted_are_not_needed() {
    // As QEMU does it: the driver looks at the device's wish, and nobody loses
    // a request for it.
    let (mut rig, mut driver) = rig(32);
    let mut kicks = 0;
    for slot in 0..200u64 {
        submit(
            &rig,
            &mut driver,
            slot % 8,
            BlkOp::Out { sector: slot % 8 },
            512,
            &Framing::CLASSIC,
        );
        driver.publish(&rig.guest).unwrap();
        if driver.kick_needed(&rig.guest).unwrap() {
            kicks += 1;
            rig.kick(0);
        }
        if slot % 8 == 7 {
            rig.finish_all();
            assert_eq!(reaped(&rig, &mut driver).len(), 8, "slot {slot}");
        }
    }
    assert!(kicks > 0);
}
