//! Guest memory that comes and goes while rings run.

mod common;

use common::{
    FEATURES, GUEST_BYTES, Memory, RING, Rig, USER_BASE, guest_region, ring_features, ring_layout,
    submit, vring_addr,
};
use midflight::backend::{Event, Input};
use midflight::blk::DeviceConfig;
use midflight::driver::{BlkDriver, BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, Span};
use midflight::memory::MAX_REGIONS;
use midflight::wire::{
    Dialect, FrontendReplyBody as Body, FrontendRequest as R, MemRegion, VringAddr, VringFile,
    VringState,
};
use vm_memory::{Bytes, GuestAddress};

/// Rings and most buffers are in the lower half, which stays.
const HALF: u64 = GUEST_BYTES / 2;

fn disk() -> DeviceConfig {
    DeviceConfig::with_capacity(1 << 20)
}

fn half(upper: bool) -> MemRegion {
    let at = if upper { HALF } else { 0 };
    MemRegion { guest_addr: at, size: HALF, user_addr: USER_BASE + at, mmap_offset: at }
}

/// A rig with two regions, whose vring 0 runs.
fn halves() -> (Rig, BlkDriver) {
    let mut rig = Rig::new(disk());
    rig.guest = Memory::from_ranges(&[
        (GuestAddress(0), HALF as usize),
        (GuestAddress(HALF), HALF as usize),
    ])
    .unwrap();
    rig.negotiate(FEATURES);
    rig.get_inflight(1, RING);
    for upper in [true, false] {
        let handle = rig.handle();
        rig.ok(R::AddMemReg(half(upper), handle));
    }
    let driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.set_inflight();
    rig.start_vring(0, 0);
    (rig, driver)
}

/// Without the upper half, the lower one being the same memory as before.
fn lower_half(rig: &Rig) -> Memory {
    rig.guest.remove_region(GuestAddress(HALF), HALF).unwrap().0
}

/// A write whose parts are where a test wants them.
fn write_at(
    rig: &Rig,
    driver: &mut BlkDriver,
    token: u64,
    data: &[Span],
    header: u64,
    status: u64,
) {
    let buffers = RequestBuffers { header, data, status, table: None };
    let op = BlkOp::Out { sector: 8 * token };
    let framing = Framing::CLASSIC;
    driver.submit(&rig.guest, &BlkRequest { op, token }, &buffers, &framing).unwrap();
    driver.publish(&rig.guest).unwrap();
}

fn reaped(rig: &Rig, driver: &mut BlkDriver) -> Vec<(u64, BlkStatus)> {
    let mut all = Vec::new();
    while let Some(done) = driver.reap(&rig.guest).unwrap() {
        all.push((done.token, done.status));
    }
    all
}

fn answered(rig: &Rig) -> usize {
    rig.replies.len()
}

#[test]
fn memory_of_a_running_vring_is_not_taken() {
    let (mut rig, _driver) = Rig::running(disk());
    assert_eq!(
        rig.refused(R::RemMemReg(guest_region(), None)),
        "REM_MEM_REG takes the memory of vring 0 which is running"
    );
    let other = rig.handle();
    assert_eq!(
        rig.refused(R::SetMemTable(vec![(half(true), other)])),
        "SET_MEM_TABLE takes the memory of vring 0 which is running"
    );
    let extra = MemRegion { guest_addr: 1 << 30, size: 4096, user_addr: 4096, mmap_offset: 0 };
    let handle = rig.handle();
    rig.ok(R::AddMemReg(extra, handle));
    rig.ok(R::RemMemReg(extra, None));
    assert!(!rig.live.contains(&handle));
}

#[test]
fn memory_removal_waits_for_the_requests_that_use_it_and_for_no_other() {
    let (mut rig, mut driver) = halves();
    let span = |addr| [Span { addr, len: 4096 }];
    let low = 0x10_0000;
    // Data in the upper half; then only the status byte; then neither.
    write_at(&rig, &mut driver, 0, &span(HALF), low, low + 16);
    write_at(&rig, &mut driver, 1, &span(low + 0x1000), low + 32, HALF + 0x8000);
    write_at(&rig, &mut driver, 2, &span(low + 0x2000), low + 64, low + 80);
    rig.kick(0);
    assert_eq!(rig.at_disk.len(), 3);
    let lower = lower_half(&rig);
    rig.map_next = Some(lower);
    let before = answered(&rig);
    assert_eq!(rig.send(R::RemMemReg(half(true), None), true), None, "two requests use it");

    // The third is at the disk and goes on being there; new ones come and go.
    let [data, status, other] = rig.at_disk[..] else { panic!() };
    for token in 3..40 {
        rig.at_disk.clear();
        write_at(&rig, &mut driver, token, &span(low + 0x3000), low + 96, low + 112);
        rig.kick(0);
        assert_eq!(rig.at_disk.len(), 1, "request {token} is fetched while the removal waits");
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver), [(token, BlkStatus::Ok)]);
        assert_eq!(answered(&rig), before, "not answered while a request uses the memory");
    }
    for (id, done) in [(data, false), (status, true)] {
        let completion = rig.execute(id);
        rig.input(Input::DiskDone(&[completion]));
        assert_eq!(answered(&rig) > before, done);
    }
    assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::U64(0)));
    // The status byte of the second is in memory that has left the table.
    let mut ended = reaped(&rig, &mut driver);
    ended.sort_by_key(|(token, _)| *token);
    assert_eq!(ended, [(0, BlkStatus::Ok), (1, BlkStatus::Ok)]);
    let completion = rig.execute(other);
    rig.input(Input::DiskDone(&[completion]));
    assert_eq!(reaped(&rig, &mut driver), [(2, BlkStatus::Ok)]);
}

#[test]
fn memory_that_was_removed_cannot_be_used_by_what_is_fetched_later() {
    let (mut rig, mut driver) = halves();
    let low = 0x10_0000;
    write_at(&rig, &mut driver, 0, &[Span { addr: HALF, len: 512 }], low, low + 16);
    rig.kick(0);
    let lower = lower_half(&rig);
    rig.map_next = Some(lower);
    assert_eq!(rig.send(R::RemMemReg(half(true), None), true), None);
    write_at(&rig, &mut driver, 1, &[Span { addr: low + 4096, len: 512 }], HALF + 4096, low + 48);
    rig.kick(0);
    // The header cannot be read any more; the status byte still can be written.
    assert_eq!(reaped(&rig, &mut driver), [(1, BlkStatus::IoErr)]);
    // Not even the status byte: nothing can be answered, so the ring is broken.
    write_at(&rig, &mut driver, 2, &[Span { addr: low + 4096, len: 512 }], low, HALF + 16);
    rig.kick(0);
    assert_eq!(rig.errs, [0]);
    assert!(rig.events.iter().any(|e| matches!(e, Event::VringBroken { vring: 0, .. })));
    assert_eq!(rig.at_disk.len(), 1);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [(0, BlkStatus::Ok)]);
    assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::U64(0)));
}

#[test]
fn memory_table_sent_again_with_new_descriptors_keeps_rings_running() {
    let (mut rig, mut driver) = halves();
    let low = 0x10_0000;
    let span = [Span { addr: low + 0x1000, len: 4096 }];
    write_at(&rig, &mut driver, 0, &span, low, low + 16);
    rig.kick(0);
    let old = rig.live.clone();
    let table: Vec<_> = [half(false), half(true)].map(|r| (r, rig.handle())).into();
    let new: Vec<_> = table.iter().map(|(_, handle)| *handle).collect();
    assert_eq!(rig.send(R::SetMemTable(table), true), None, "a request uses the old mapping");
    let id = rig.at_disk[0];
    rig.at_disk.clear();
    write_at(&rig, &mut driver, 1, &span, low + 32, low + 48);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [(1, BlkStatus::Ok)], "the new one does not wait");
    let completion = rig.execute(id);
    rig.input(Input::DiskDone(&[completion]));
    assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::U64(0)));
    assert_eq!(reaped(&rig, &mut driver), [(0, BlkStatus::Ok)]);
    assert!(new.iter().all(|handle| rig.live.contains(handle)));
    assert_eq!(old.difference(&rig.live).count(), 2, "the old regions' descriptors are released");
}

#[test]
fn memory_removal_that_waits_ends_with_the_connection() {
    let (mut rig, mut driver) = halves();
    let low = 0x10_0000;
    write_at(&rig, &mut driver, 0, &[Span { addr: HALF, len: 512 }], low, low + 16);
    rig.kick(0);
    assert_eq!(rig.send(R::RemMemReg(half(true), None), true), None);
    let before = answered(&rig);
    rig.input(Input::PeerClosed);
    assert!(!rig.backend.is_idle());
    rig.finish_all();
    assert!(rig.backend.is_idle());
    assert!(rig.live.is_empty(), "{:?}", rig.live);
    assert_eq!(answered(&rig), before);
    assert_eq!(reaped(&rig, &mut driver), []);
}

#[test]
fn memory_removal_that_cannot_be_mapped_changes_nothing() {
    let (mut rig, mut driver) = halves();
    let low = 0x10_0000;
    write_at(&rig, &mut driver, 0, &[Span { addr: HALF, len: 512 }], low, low + 16);
    rig.kick(0);
    rig.refuse_map = Some("out of memory".into());
    let why = rig.refused(R::RemMemReg(half(true), None));
    assert_eq!(why, "REM_MEM_REG cannot be mapped: out of memory");
    write_at(&rig, &mut driver, 1, &[Span { addr: HALF, len: 512 }], low + 32, low + 48);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver).len(), 2, "both use the memory that is still there");
}

#[test]
fn memory_buffers_may_lie_across_regions() {
    let (mut rig, mut driver) = halves();
    let low = 0x10_0000;
    let data: Vec<u8> = (0..4096u32).map(|i| i as u8).collect();
    rig.guest.write_slice(&data, GuestAddress(HALF - 1000)).unwrap();
    // The header too lies across the border of the second request.
    write_at(&rig, &mut driver, 0, &[Span { addr: HALF - 1000, len: 4096 }], low, low + 16);
    rig.kick(0);
    rig.finish_all();
    write_at(&rig, &mut driver, 1, &[Span { addr: low + 4096, len: 512 }], HALF - 7, HALF - 8);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [(0, BlkStatus::Ok), (1, BlkStatus::Ok)]);
    assert_eq!(rig.disk[..4096], data);
}

#[test]
fn memory_has_as_many_slots_as_it_says_also_while_a_vring_runs() {
    let (mut rig, mut driver) = Rig::running(disk());
    let Some(Body::U64(slots)) = rig.send(R::GetMaxMemSlots, false) else { panic!() };
    assert_eq!(slots, u64::from(MAX_REGIONS));
    let slot = |n: u64| {
        let at = (1 << 32) + n * 0x2000;
        MemRegion { guest_addr: at, size: 4096, user_addr: at, mmap_offset: n * 4096 }
    };
    for n in 1..slots {
        let handle = rig.handle();
        rig.ok(R::AddMemReg(slot(n), handle));
        if n % 50 == 0 {
            let op = BlkOp::Out { sector: 0 };
            submit(&rig, &mut driver, 0, op, 512, &Framing::CLASSIC);
            driver.publish(&rig.guest).unwrap();
            rig.kick(0);
            rig.finish_all();
            assert_eq!(reaped(&rig, &mut driver).len(), 1);
        }
    }
    let handle = rig.handle();
    assert_eq!(
        rig.refused(R::AddMemReg(slot(slots), handle)),
        format!(
            "memory table holds 509 regions, no slot left for one at {:#x}",
            slot(slots).guest_addr
        )
    );
    let live = rig.live.len();
    for n in 1..slots {
        rig.ok(R::RemMemReg(slot(n), None));
    }
    assert_eq!(rig.live.len(), live - (slots as usize - 1));
}

/// Agree on GPA_ADDRESSES beside everything a rig agrees on.
fn guest_physical(features: u64) -> Rig {
    let mut rig = Rig::new(disk());
    rig.negotiate(features);
    let bits = rig.backend.offered_protocol_features();
    assert!(bits & Dialect::QEMU_11_1.gpa_addresses() != 0);
    rig.send(R::SetProtocolFeatures(bits), false);
    rig
}

#[test]
fn memory_with_gpa_addresses_has_no_addresses_but_the_guests() {
    let mut rig = guest_physical(FEATURES);
    let handle = rig.handle();
    assert_eq!(
        rig.refused(R::AddMemReg(guest_region(), handle)),
        "ADD_MEM_REG has user address 0x7f0000000000 for guest address 0x0, \
         expected them equal with GPA_ADDRESSES"
    );
    let handle = rig.handle();
    assert!(
        rig.refused(R::SetMemTable(vec![(guest_region(), handle)]))
            .starts_with("SET_MEM_TABLE has")
    );
    let handle = rig.handle();
    rig.ok(R::AddMemReg(MemRegion { user_addr: 0, ..guest_region() }, handle));
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.ok(R::SetVringNum(VringState { index: 0, num: u32::from(RING) }));
    let VringAddr { desc, used, avail, .. } = vring_addr(0);
    rig.ok(R::SetVringAddr(VringAddr {
        desc: desc - USER_BASE,
        used: used - USER_BASE,
        avail: avail - USER_BASE,
        ..vring_addr(0)
    }));
    let kick = rig.handle();
    rig.ok(R::SetVringKick(VringFile { index: 0, handle: Some(kick) }));
    rig.ok(R::SetVringEnable(VringState { index: 0, num: 1 }));
    submit(&rig, &mut driver, 0, BlkOp::Out { sector: 0 }, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [(0, BlkStatus::Ok)]);
}
