//! What a guest asks of the disk, and what it is told.

#![allow(clippy::disallowed_types)]

mod common;

use common::{FEATURES, Rig, guest_region, ring_features, ring_layout, slot_base, submit};
use midflight::backend::Event;
use midflight::blk::{DeviceConfig, DiskError, DiskOp};
use midflight::driver::{BlkDone, BlkDriver, BlkOp, BlkStatus, Framing, RangeSegment};
use midflight::wire::features::virtio;
use midflight::wire::{ConfigPayload, FrontendReplyBody, FrontendRequest, VringState};
use vm_memory::{Bytes, GuestAddress};

const DISK: u64 = 1 << 20;
const FRAMINGS: [Framing; 5] = [
    Framing::CLASSIC,
    Framing::INDIRECT,
    Framing::JOINED,
    Framing::SPLIT_HEADER,
    Framing::SHREDDED,
];

fn done(rig: &mut Rig, driver: &mut BlkDriver) -> BlkDone {
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    rig.finish_all();
    driver.reap(&rig.guest).unwrap().expect("a completion")
}

/// One request, start to end; its status and `used.len`.
fn ask(config: DeviceConfig, op: BlkOp<'_>, len: u32) -> (BlkStatus, u32) {
    let (mut rig, mut driver) = Rig::running(config);
    submit(&rig, &mut driver, 0, op, len, &Framing::CLASSIC);
    let d = done(&mut rig, &mut driver);
    assert!(rig.errs.is_empty(), "the ring is dead");
    (d.status, d.len)
}

fn disk() -> DeviceConfig {
    DeviceConfig::with_capacity(DISK)
}

#[test]
fn blk_data_survives_every_framing_of_write_and_read() {
    for write in FRAMINGS {
        for read in FRAMINGS {
            let (mut rig, mut driver) = Rig::running(disk());
            let data: Vec<u8> = (0..4096u32).map(|i| (i * 7 + i / 256) as u8).collect();
            rig.guest.write_slice(&data, GuestAddress(slot_base(0) + 16)).unwrap();
            submit(&rig, &mut driver, 0, BlkOp::Out { sector: 8 }, 4096, &write);
            let d = done(&mut rig, &mut driver);
            assert_eq!((d.status, d.len), (BlkStatus::Ok, 1), "{write:?}");
            assert_eq!(rig.disk[4096..8192], data, "{write:?}");
            submit(&rig, &mut driver, 1, BlkOp::In { sector: 8 }, 4096, &read);
            let d = done(&mut rig, &mut driver);
            assert_eq!((d.status, d.len), (BlkStatus::Ok, 4097), "{read:?}");
            let mut got = vec![0; 4096];
            rig.guest.read_slice(&mut got, GuestAddress(slot_base(1) + 16)).unwrap();
            assert_eq!(got, data, "{write:?} {read:?}");
        }
    }
}

#[test]
fn blk_requests_beyond_the_disk_or_between_sectors_are_answered_ioerr() {
    let last = DISK / 512 - 1;
    for (sector, len, status) in [
        (last, 512, BlkStatus::Ok),
        (last, 1024, BlkStatus::IoErr),
        (last + 1, 512, BlkStatus::IoErr),
        (u64::MAX, 512, BlkStatus::IoErr),
        (u64::MAX / 512, 1024, BlkStatus::IoErr),
        (0, 511, BlkStatus::IoErr),
        (0, 513, BlkStatus::IoErr),
        (0, 0, BlkStatus::Ok),
        (last + 1, 0, BlkStatus::Ok),
        (last + 2, 0, BlkStatus::IoErr),
    ] {
        assert_eq!(ask(disk(), BlkOp::In { sector }, len).0, status, "read {sector}+{len}");
        assert_eq!(ask(disk(), BlkOp::Out { sector }, len).0, status, "write {sector}+{len}");
    }
}

#[test]
fn blk_requests_smaller_than_the_logical_block_are_answered_ioerr() {
    let config = || DeviceConfig { logical_block_size: 4096, ..disk() };
    assert_eq!(ask(config(), BlkOp::In { sector: 8 }, 4096).0, BlkStatus::Ok);
    assert_eq!(ask(config(), BlkOp::In { sector: 1 }, 4096).0, BlkStatus::IoErr);
    assert_eq!(ask(config(), BlkOp::In { sector: 8 }, 512).0, BlkStatus::IoErr);
}

#[test]
fn blk_a_read_only_disk_refuses_every_change_and_stays_as_it_was() {
    let config = || DeviceConfig { read_only: true, ..disk() };
    let range = [RangeSegment { sector: 0, num_sectors: 8, flags: 0 }];
    for op in [BlkOp::Out { sector: 0 }, BlkOp::Discard(&range), BlkOp::WriteZeroes(&range)] {
        let len = if matches!(op, BlkOp::Out { .. }) { 512 } else { 16 };
        let mut rig = Rig::new(config());
        // The guest does not even accept the feature.
        rig.negotiate(FEATURES);
        rig.add_memory();
        let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
        rig.start_vring(0, 0);
        rig.disk.fill(0x5a);
        submit(&rig, &mut driver, 0, op, len, &Framing::CLASSIC);
        assert_eq!(done(&mut rig, &mut driver).status, BlkStatus::IoErr, "{op:?}");
        assert!(rig.disk.iter().all(|b| *b == 0x5a));
    }
    assert_eq!(ask(config(), BlkOp::In { sector: 0 }, 512).0, BlkStatus::Ok);
    assert_eq!(ask(config(), BlkOp::Flush, 0).0, BlkStatus::Ok);
}

#[test]
fn blk_unknown_request_types_are_answered_unsupp() {
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 26, 0x8000_0000, u32::MAX] {
        let op = BlkOp::Other { kind, sector: 0, writable: false };
        assert_eq!(ask(disk(), op, 16), (BlkStatus::Unsupp, 1), "type {kind}");
    }
    let none = DeviceConfig { discard: false, write_zeroes: false, ..disk() };
    let range = [RangeSegment { sector: 0, num_sectors: 8, flags: 0 }];
    assert_eq!(ask(none.clone(), BlkOp::Discard(&range), 16).0, BlkStatus::Unsupp);
    assert_eq!(ask(none, BlkOp::WriteZeroes(&range), 16).0, BlkStatus::Unsupp);
}

#[test]
fn blk_get_id_fills_twenty_bytes_or_what_there_is_room_for() {
    for (len, written) in [(20, 20), (64, 20), (5, 5)] {
        let mut config = disk();
        config.serial[..9].copy_from_slice(b"midflight");
        let (mut rig, mut driver) = Rig::running(config);
        submit(&rig, &mut driver, 0, BlkOp::GetId, len, &Framing::SHREDDED);
        let d = done(&mut rig, &mut driver);
        assert_eq!((d.status, d.len), (BlkStatus::Ok, written + 1));
        let mut got = [0; 20];
        rig.guest.read_slice(&mut got, GuestAddress(slot_base(0) + 16)).unwrap();
        let n = written.min(9) as usize;
        assert_eq!(got[..n], b"midflight"[..n]);
    }
}

#[test]
fn blk_ranges_obey_their_limits_and_flags() {
    let max_discard = disk().max_discard_sectors();
    let max_zeroes = disk().max_write_zeroes_sectors();
    let big = DeviceConfig::with_capacity(u64::from(max_discard) * 1024);
    type Case = (bool, u64, u32, u32, BlkStatus);
    let cases: [Case; 14] = [
        (true, 0, 8, 0, BlkStatus::Ok),
        (true, 0, 8, 1, BlkStatus::Unsupp),
        (true, 0, 8, 2, BlkStatus::Unsupp),
        (true, 0, 0, 0, BlkStatus::Ok),
        (true, DISK / 512, 1, 0, BlkStatus::IoErr),
        (true, u64::MAX, 1, 0, BlkStatus::IoErr),
        (true, 0, u32::MAX, 0, BlkStatus::IoErr),
        (false, 0, 8, 0, BlkStatus::Ok),
        (false, 0, 8, 1, BlkStatus::Ok),
        (false, 0, 8, 2, BlkStatus::Unsupp),
        (false, 0, 8, 3, BlkStatus::Unsupp),
        (false, DISK / 512 - 1, 2, 0, BlkStatus::IoErr),
        (false, u64::MAX, 1, 1, BlkStatus::IoErr),
        (false, 0, u32::MAX, 0, BlkStatus::IoErr),
    ];
    for (discard, sector, num_sectors, flags, status) in cases {
        let ranges = [RangeSegment { sector, num_sectors, flags }];
        let op = if discard { BlkOp::Discard(&ranges) } else { BlkOp::WriteZeroes(&ranges) };
        assert_eq!(ask(disk(), op, 16).0, status, "{op:?}");
    }
    // The limits hold where the disk itself is larger.
    for (op_max, discard) in [(max_discard, true), (max_zeroes, false)] {
        let (mut rig, mut driver) = Rig::running(DeviceConfig { capacity: 1 << 20, ..big.clone() });
        let ranges = [RangeSegment { sector: 0, num_sectors: op_max + 1, flags: 0 }];
        let op = if discard { BlkOp::Discard(&ranges) } else { BlkOp::WriteZeroes(&ranges) };
        submit(&rig, &mut driver, 0, op, 16, &Framing::CLASSIC);
        assert_eq!(done(&mut rig, &mut driver).status, BlkStatus::IoErr);
    }
    // One range at a time, and whole ones.
    let two = [RangeSegment { sector: 0, num_sectors: 8, flags: 0 }; 2];
    assert_eq!(ask(disk(), BlkOp::Discard(&two), 32).0, BlkStatus::IoErr);
    for len in [15, 17] {
        let op = BlkOp::Other { kind: 11, sector: 0, writable: false };
        assert_eq!(ask(disk(), op, len).0, BlkStatus::IoErr);
    }
}

#[test]
fn blk_more_segments_than_seg_max_are_answered_ioerr() {
    for (pieces, status) in [(126u32, BlkStatus::Ok), (127, BlkStatus::IoErr)] {
        let framing = Framing { data_piece: 512, ..Framing::INDIRECT };
        let (mut rig, mut driver) = Rig::running(disk());
        // The data takes more room than a slot, so the table goes elsewhere.
        let base = slot_base(10);
        let data = [midflight::driver::Span { addr: base + 16, len: pieces * 512 }];
        let buffers = midflight::driver::RequestBuffers {
            header: base,
            data: &data,
            status: slot_base(0),
            table: Some(slot_base(1)),
        };
        let op = BlkOp::In { sector: 0 };
        let request = midflight::driver::BlkRequest { op, token: 0 };
        driver.submit(&rig.guest, &request, &buffers, &framing).unwrap();
        assert_eq!(done(&mut rig, &mut driver).status, status, "{pieces} segments");
    }
}

#[test]
fn blk_buffers_outside_guest_memory_are_answered_ioerr_and_the_ring_lives() {
    let (mut rig, mut driver) = Rig::running(disk());
    let outside = guest_region().size - 256;
    for op in [BlkOp::In { sector: 0 }, BlkOp::Out { sector: 0 }] {
        let data = [midflight::driver::Span { addr: outside, len: 256 }];
        let buffers = midflight::driver::RequestBuffers {
            header: slot_base(0),
            data: &data,
            status: slot_base(0) + 16,
            table: None,
        };
        let request = midflight::driver::BlkRequest { op, token: 0 };
        let head = driver.submit(&rig.guest, &request, &buffers, &Framing::CLASSIC).unwrap();
        // The driver would not write there; make the length lie instead.
        let desc = ring_layout(0).desc + 16 * u64::from(head);
        let next: u16 = rig.guest.read_obj(GuestAddress(desc + 14)).unwrap();
        let at = ring_layout(0).desc + 16 * u64::from(next);
        rig.guest.write_obj(512u32, GuestAddress(at + 8)).unwrap();
        let d = done(&mut rig, &mut driver);
        assert_eq!((d.status, d.len), (BlkStatus::IoErr, 1));
    }
    assert!(rig.errs.is_empty());
}

#[test]
fn blk_writes_are_durable_unless_a_cache_was_agreed_on() {
    let durable = |features: u64, writeback: Option<u8>| {
        let mut rig = Rig::new(disk());
        rig.negotiate(features);
        rig.add_memory();
        let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
        rig.start_vring(0, 0);
        if let Some(value) = writeback {
            let data = bytes::Bytes::copy_from_slice(&[value]);
            let set = FrontendRequest::SetConfig(ConfigPayload { offset: 32, flags: 0, data });
            rig.send(set, true);
            rig.finish_all();
            assert_eq!(rig.replies.last().unwrap().body, FrontendReplyBody::U64(0));
        }
        submit(&rig, &mut driver, 0, BlkOp::Out { sector: 0 }, 512, &Framing::CLASSIC);
        driver.publish(&rig.guest).unwrap();
        rig.kick(0);
        let id = rig.at_disk[0];
        match rig.backend.request(id).unwrap().op {
            DiskOp::Write { durable, .. } => durable,
            other => panic!("{other:?}"),
        }
    };
    let (flush, wce) = (virtio::BLK_FLUSH, virtio::BLK_CONFIG_WCE);
    assert!(durable(FEATURES & !flush & !wce, None));
    assert!(!durable(FEATURES & !wce, None));
    assert!(!durable(FEATURES, None));
    assert!(durable(FEATURES, Some(0)));
    assert!(!durable(FEATURES, Some(1)));
    // Without the feature the byte has no meaning.
    assert!(!durable(FEATURES & !wce, Some(0)));
}

#[test]
fn blk_a_disk_error_reaches_the_guest_as_ioerr_and_the_operator_as_an_event() {
    let (mut rig, mut driver) = Rig::running(disk());
    let head = submit(&rig, &mut driver, 0, BlkOp::In { sector: 0 }, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    rig.fail_all(DiskError::Os(5));
    let d = driver.reap(&rig.guest).unwrap().unwrap();
    assert_eq!((d.status, d.len), (BlkStatus::IoErr, 1));
    let error = DiskError::Os(5);
    assert!(rig.events.contains(&Event::DiskFailed { vring: 0, head, error }));
    assert_eq!(rig.get_base(0), Some(1));
    rig.ok(FrontendRequest::SetVringEnable(VringState { index: 0, num: 0 }));
}
