//! What a guest asks of a zoned disk, and how the disk is asked.

#![allow(clippy::disallowed_types)]

mod common;

use common::{
    FEATURES, PACKED_START, RING, Rig, packed_addr, packed_layout, ring_features, ring_layout,
    submit,
};
use midflight::backend::{Event, Input, SuspendPolicy};
use midflight::blk::zones::{ZoneFault, ZonedConfig};
use midflight::blk::{Completion, DeviceConfig, DiskError, DiskOp, ReqId, ZoneAction};
use midflight::driver::{BlkDone, BlkDriver, BlkOp, BlkStatus, Framing, RingFeatures, ZoneOp};
use midflight::time::Duration;
use midflight::wire::features::virtio;
use midflight::wire::{Dialect, FrontendReplyBody};
use vm_memory::{Bytes, GuestAddress};

const DISK: u64 = 1 << 20;
const ZONE: u64 = 256;
const FRAMINGS: [Framing; 4] =
    [Framing::CLASSIC, Framing::INDIRECT, Framing::JOINED, Framing::SHREDDED];

fn config() -> DeviceConfig {
    let zoned = Some(ZonedConfig {
        zone_sectors: ZONE as u32,
        conventional: 1,
        max_open: 2,
        max_active: 2,
        max_append_sectors: 16,
    });
    DeviceConfig { zoned, ..DeviceConfig::with_capacity(DISK) }
}

fn begin(rig: &mut Rig, features: u64) -> BlkDriver {
    rig.negotiate(features);
    rig.get_inflight(1, RING);
    rig.add_memory();
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    driver.accept_zones();
    rig.set_inflight();
    rig.start_vring(0, 0);
    driver
}

fn running(features: u64) -> (Rig, BlkDriver) {
    let mut rig = Rig::new(config());
    let driver = begin(&mut rig, features);
    (rig, driver)
}

fn zoned() -> (Rig, BlkDriver) {
    running(FEATURES | virtio::BLK_ZONED)
}

/// Hand a request in; what the disk is asked for it.
fn ask(rig: &mut Rig, driver: &mut BlkDriver, op: BlkOp<'_>, len: u32) -> Vec<ReqId> {
    submit(rig, driver, 0, op, len, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    std::mem::take(&mut rig.at_disk)
}

fn finish(
    rig: &mut Rig,
    driver: &mut BlkDriver,
    id: ReqId,
    result: Result<(), DiskError>,
) -> BlkDone {
    rig.input(Input::DiskDone(&[Completion { id, result }]));
    driver.reap(&rig.guest).unwrap().expect("a completion")
}

/// The status of a request that the disk is not asked for.
fn answer(rig: &mut Rig, driver: &mut BlkDriver, op: BlkOp<'_>, len: u32) -> (BlkStatus, u32) {
    assert_eq!(ask(rig, driver, op, len), [], "{op:?}");
    let done = driver.reap(&rig.guest).unwrap().expect("an answer");
    (done.status, done.len)
}

#[test]
fn zones_an_append_has_its_sector_in_front_of_its_status_in_every_framing() {
    for framing in FRAMINGS {
        let (mut rig, mut driver) = zoned();
        submit(&rig, &mut driver, 0, BlkOp::ZoneAppend { sector: ZONE }, 1024, &framing);
        driver.publish(&rig.guest).unwrap();
        rig.kick(0);
        let id = rig.at_disk.pop().unwrap();
        let request = rig.backend.request(id).unwrap();
        let op = DiskOp::ZoneAppend { offset: ZONE * 512, len: 1024, durable: false };
        assert_eq!((request.op, request.again, request.order), (op, false, Some(0)));
        let bytes: u32 = request.segments.iter().map(|s| s.len).sum();
        assert_eq!(bytes, 1024 + 8);
        // The disk says where it went: in what is behind the data.
        let mut left = 1024;
        let mut answer = 777u64.to_le_bytes().to_vec();
        for s in request.segments {
            let skip = s.len.min(left);
            left -= skip;
            let now: Vec<u8> = answer.drain(..(s.len - skip) as usize).collect();
            rig.guest.write_slice(&now, GuestAddress(s.addr + u64::from(skip))).unwrap();
        }
        let done = finish(&mut rig, &mut driver, id, Ok(()));
        assert_eq!((done.status, done.len, done.appended), (BlkStatus::Ok, 9, Some(777)));
    }
}

#[test]
fn zones_faults_have_statuses_of_their_own_for_a_guest_that_knows_zones() {
    for (fault, status) in [
        (ZoneFault::InvalidCommand, BlkStatus::ZoneInvalidCmd),
        (ZoneFault::UnalignedWritePointer, BlkStatus::ZoneUnalignedWp),
        (ZoneFault::OpenResource, BlkStatus::ZoneOpenResource),
        (ZoneFault::ActiveResource, BlkStatus::ZoneActiveResource),
    ] {
        for (features, status) in
            [(FEATURES | virtio::BLK_ZONED, status), (FEATURES, BlkStatus::IoErr)]
        {
            let (mut rig, mut driver) = running(features);
            let [id] = ask(&mut rig, &mut driver, BlkOp::Out { sector: ZONE }, 512)[..] else {
                panic!("one request")
            };
            let done = finish(&mut rig, &mut driver, id, Err(DiskError::Zone(fault)));
            assert_eq!((done.status, done.len), (status, 1));
            let failed = |event: &Event| matches!(event, Event::DiskFailed { .. });
            assert!(!rig.events.iter().any(failed), "it is the guest who failed");
        }
    }
}

#[test]
fn zones_requests_are_unsupp_for_a_guest_that_has_not_accepted_them() {
    let (mut rig, mut driver) = running(FEATURES);
    let act = |action| BlkOp::Zone { action, sector: ZONE };
    for (op, len) in [
        (BlkOp::ZoneAppend { sector: ZONE }, 512),
        (BlkOp::ZoneReport { sector: 0 }, 4096),
        (act(ZoneOp::Open), 0),
        (act(ZoneOp::Close), 0),
        (act(ZoneOp::Finish), 0),
        (act(ZoneOp::Reset), 0),
        (act(ZoneOp::ResetAll), 0),
    ] {
        assert_eq!(answer(&mut rig, &mut driver, op, len), (BlkStatus::Unsupp, 1), "{op:?}");
    }
}

#[test]
fn zones_discards_and_write_zeroes_are_not_offered_and_not_done() {
    let (mut rig, mut driver) = zoned();
    let range = [midflight::driver::RangeSegment { sector: 0, num_sectors: 8, flags: 0 }];
    for op in [BlkOp::Discard(&range), BlkOp::WriteZeroes(&range), BlkOp::SecureErase(&range)] {
        assert_eq!(answer(&mut rig, &mut driver, op, 16).0, BlkStatus::Unsupp, "{op:?}");
    }
}

#[test]
fn zones_requests_that_no_zone_can_allow_never_reach_the_disk() {
    let (mut rig, mut driver) = zoned();
    let invalid = BlkStatus::ZoneInvalidCmd;
    let unaligned = BlkStatus::ZoneUnalignedWp;
    let end = DISK / 512;
    for (op, len, status) in [
        (BlkOp::ZoneAppend { sector: ZONE }, 17 * 512, invalid),
        (BlkOp::ZoneAppend { sector: ZONE }, 0, invalid),
        (BlkOp::ZoneAppend { sector: end }, 512, invalid),
        (BlkOp::ZoneAppend { sector: u64::MAX }, 512, invalid),
        (BlkOp::ZoneAppend { sector: ZONE }, 700, unaligned),
        (BlkOp::Out { sector: ZONE }, 700, unaligned),
        (BlkOp::Out { sector: 0 }, 700, BlkStatus::IoErr),
        (BlkOp::Out { sector: u64::MAX }, 512, BlkStatus::IoErr),
        (BlkOp::Out { sector: end - 1 }, 700, BlkStatus::IoErr),
        (BlkOp::ZoneReport { sector: 0 }, 63, invalid),
        (BlkOp::ZoneReport { sector: end }, 4096, invalid),
        (BlkOp::Zone { action: ZoneOp::Open, sector: end }, 0, invalid),
        (BlkOp::Zone { action: ZoneOp::Reset, sector: u64::MAX }, 0, invalid),
        // An append without room for its sector.
        (BlkOp::Other { kind: 15, sector: ZONE, writable: false }, 512, BlkStatus::IoErr),
        (BlkOp::Other { kind: 17, sector: 0, writable: false }, 0, BlkStatus::Unsupp),
    ] {
        assert_eq!(answer(&mut rig, &mut driver, op, len), (status, 1), "{op:?} of {len}");
    }
    let none = ZonedConfig { max_append_sectors: 0, ..config().zoned.unwrap() };
    let mut rig = Rig::new(DeviceConfig { zoned: Some(none), ..config() });
    let mut driver = begin(&mut rig, FEATURES | virtio::BLK_ZONED);
    let op = BlkOp::ZoneAppend { sector: ZONE };
    assert_eq!(answer(&mut rig, &mut driver, op, 512).0, BlkStatus::Unsupp);
}

#[test]
fn zones_of_a_disk_that_is_only_read_can_be_reported_and_nothing_else() {
    let mut rig = Rig::new(DeviceConfig { read_only: true, ..config() });
    let mut driver = begin(&mut rig, FEATURES | virtio::BLK_ZONED);
    for action in [ZoneOp::Open, ZoneOp::Close, ZoneOp::Finish, ZoneOp::Reset, ZoneOp::ResetAll] {
        let op = BlkOp::Zone { action, sector: ZONE };
        assert_eq!(answer(&mut rig, &mut driver, op, 0).0, BlkStatus::IoErr);
    }
    let op = BlkOp::ZoneAppend { sector: ZONE };
    assert_eq!(answer(&mut rig, &mut driver, op, 512).0, BlkStatus::IoErr);
    assert_eq!(ask(&mut rig, &mut driver, BlkOp::ZoneReport { sector: 0 }, 4096).len(), 1);
}

#[test]
fn zones_a_report_is_given_room_for_whole_zones_and_no_more() {
    // The disk has eight zones.
    for (sector, len, room) in [
        (0, 64, 64),
        (0, 127, 64),
        (0, 64 + 3 * 64 + 10, 64 + 3 * 64),
        (0, 4096, 64 + 8 * 64),
        (5 * ZONE + 3, 4096, 64 + 3 * 64),
    ] {
        let (mut rig, mut driver) = zoned();
        submit(&rig, &mut driver, 0, BlkOp::ZoneReport { sector }, len, &Framing::SHREDDED);
        driver.publish(&rig.guest).unwrap();
        rig.kick(0);
        let id = rig.at_disk.pop().unwrap();
        let request = rig.backend.request(id).unwrap();
        assert_eq!(request.op, DiskOp::ZoneReport { offset: sector * 512 });
        assert_eq!(request.segments.iter().map(|s| s.len).sum::<u32>(), room, "{len}");
        let done = finish(&mut rig, &mut driver, id, Ok(()));
        assert_eq!((done.status, done.len), (BlkStatus::Ok, room + 1));
    }
}

#[test]
fn zones_what_changes_them_is_drained_when_all_else_is_suspended() {
    let policy = SuspendPolicy { grace: Duration::ZERO, dialect: Dialect::QEMU_11_1 };
    let mut rig = Rig::with(config(), Some(policy));
    let mut driver = begin(&mut rig, FEATURES | virtio::BLK_ZONED);
    for (slot, op, len) in [
        (0, BlkOp::Out { sector: ZONE }, 512),
        (1, BlkOp::ZoneAppend { sector: 2 * ZONE }, 512),
        (2, BlkOp::Zone { action: ZoneOp::Reset, sector: 3 * ZONE }, 0),
        (3, BlkOp::ZoneReport { sector: 0 }, 512),
    ] {
        submit(&rig, &mut driver, slot, op, len, &Framing::CLASSIC);
    }
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    let ids = std::mem::take(&mut rig.at_disk);
    assert_eq!(rig.get_base(0), None);
    assert_eq!(rig.cancelled, [ids[0], ids[3]]);
    let op = |id| rig.backend.request(id).unwrap().op;
    assert_eq!(op(ids[2]), DiskOp::Zone { action: ZoneAction::Reset, offset: 3 * ZONE * 512 });
    let gone = |id| Completion { id, result: Err(DiskError::Cancelled) };
    rig.input(Input::DiskDone(&[gone(ids[0]), gone(ids[3])]));
    let answered = |rig: &Rig| {
        let body = rig.replies.last().map(|reply| &reply.body);
        matches!(body, Some(FrontendReplyBody::VringState(_)))
    };
    assert!(!answered(&rig), "two are left");
    let done = |id| Completion { id, result: Ok(()) };
    rig.input(Input::DiskDone(&[done(ids[1]), done(ids[2])]));
    assert!(answered(&rig));
}

/// A vring 0 that is packed if `packed` says so, on a connection to a device that
/// may be new or taken over. The driver, if there is none yet.
fn start(rig: &mut Rig, packed: bool, known: bool) -> Option<BlkDriver> {
    let format = if packed { virtio::RING_PACKED } else { 0 };
    rig.negotiate(FEATURES | virtio::BLK_ZONED | format);
    if !known {
        rig.get_inflight(1, RING);
    }
    rig.add_memory();
    let layout = if packed { packed_layout(RING) } else { ring_layout(0) };
    let features = RingFeatures { packed, ..ring_features() };
    let driver = (!known).then(|| BlkDriver::start(&rig.guest, layout, features).unwrap());
    rig.set_inflight();
    match packed {
        true => rig.start_vring_at(RING, PACKED_START, packed_addr(RING)),
        false => rig.start_vring(0, 0),
    }
    driver
}

#[test]
fn zones_a_request_that_comes_again_says_so_and_keeps_its_counter() {
    for packed in [false, true] {
        let mut rig = Rig::new(DeviceConfig { packed, ..config() });
        let mut driver = start(&mut rig, packed, false).unwrap();
        // One that completes, so that counters are not those of a new region.
        let [id] = ask(&mut rig, &mut driver, BlkOp::Flush, 0)[..] else { panic!("one request") };
        finish(&mut rig, &mut driver, id, Ok(()));
        for slot in 1..4 {
            let op = BlkOp::ZoneAppend { sector: ZONE };
            submit(&rig, &mut driver, slot, op, 512, &Framing::CLASSIC);
        }
        driver.publish(&rig.guest).unwrap();
        rig.kick(0);
        let seen = |rig: &Rig, again| -> Vec<_> {
            let one = |id: &ReqId| {
                let request = rig.backend.request(*id).unwrap();
                assert_eq!(request.again, again);
                (request.head, request.order.unwrap())
            };
            rig.at_disk.iter().map(one).collect()
        };
        let before = seen(&rig, false);
        let orders: Vec<_> = before.iter().map(|(_, order)| order - before[0].1).collect();
        assert_eq!(orders, [0, 1, 2]);
        assert!(before[0].1 > 0, "the flush had a counter too");
        // The daemon is gone, and the next one finds them in the region.
        rig.input(Input::PeerClosed);
        let gone = |id| Completion { id, result: Err(DiskError::Cancelled) };
        let all: Vec<_> = std::mem::take(&mut rig.at_disk).into_iter().map(gone).collect();
        rig.input(Input::DiskDone(&all));
        rig.input(Input::Connected);
        start(&mut rig, packed, true);
        assert_eq!(seen(&rig, true), before, "packed: {packed}");
    }
}

#[test]
fn zones_keep_a_disk_at_the_size_that_they_were_counted_for() {
    let (mut rig, mut driver) = zoned();
    rig.input(Input::Capacity(2 * DISK));
    assert_eq!(rig.backend.capacity(), DISK);
    let op = BlkOp::ZoneReport { sector: DISK / 512 };
    assert_eq!(answer(&mut rig, &mut driver, op, 4096).0, BlkStatus::ZoneInvalidCmd);
}
