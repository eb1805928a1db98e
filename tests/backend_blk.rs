//! What a guest asks of the disk, and what it is told.

#![allow(clippy::disallowed_types)]

mod common;

use common::{FEATURES, Rig, guest_region, ring_features, ring_layout, slot_base, submit};
use midflight::backend::Event;
use midflight::blk::{DeviceConfig, DiskError, DiskOp, Lifetime};
use midflight::driver::{BlkDone, BlkDriver, BlkOp, BlkStatus, Framing, RangeSegment};
use midflight::wire::features::virtio;
use midflight::wire::{ConfigPayload, FrontendReplyBody, FrontendRequest, VringState};
use proptest::prelude::*;
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
    for len in [0, 15, 17, 40] {
        let op = BlkOp::Other { kind: 11, sector: 0, writable: false };
        assert_eq!(ask(disk(), op, len).0, BlkStatus::IoErr);
    }
}

#[test]
fn blk_many_ranges_are_one_request_of_the_disk_and_one_completion() {
    for framing in FRAMINGS {
        for kind in 0..3 {
            let config = DeviceConfig { secure_erase: true, ..disk() };
            let (mut rig, mut driver) = Rig::running(config);
            rig.disk.fill(0x5a);
            let ranges: Vec<_> = (0..100u64)
                .map(|i| RangeSegment {
                    sector: i * 16,
                    num_sectors: (i % 4) as u32 * 2,
                    flags: u32::from(kind == 1 && i % 2 == 1),
                })
                .collect();
            let op = match kind {
                0 => BlkOp::Discard(&ranges),
                1 => BlkOp::WriteZeroes(&ranges),
                _ => BlkOp::SecureErase(&ranges),
            };
            submit(&rig, &mut driver, 0, op, 1600, &framing);
            driver.publish(&rig.guest).unwrap();
            rig.kick(0);
            let [id] = rig.at_disk[..] else { panic!("{:?}", rig.at_disk) };
            let request = rig.backend.request(id).unwrap();
            assert_eq!(request.ranges.len(), 75, "those of no sectors are left out");
            let unmap = request.ranges.iter().filter(|range| range.unmap).count();
            assert_eq!(unmap, if kind == 1 { 50 } else { 0 });
            rig.finish_all();
            let d = driver.reap(&rig.guest).unwrap().expect("a completion");
            assert_eq!((d.status, d.len), (BlkStatus::Ok, 1));
            for (at, byte) in rig.disk.iter().enumerate() {
                let (i, sector) = (at / 512 / 16, at / 512 % 16);
                let gone = i < 100 && sector < i % 4 * 2;
                assert_eq!(*byte, if gone { 0 } else { 0x5a }, "byte {at}");
            }
        }
    }
}

#[test]
fn blk_one_bad_range_refuses_them_all_and_the_unknown_comes_first() {
    let good = RangeSegment { sector: 0, num_sectors: 8, flags: 0 };
    let outside = RangeSegment { sector: DISK / 512, ..good };
    let flagged = RangeSegment { flags: 4, ..good };
    let unmap = RangeSegment { flags: 1, ..good };
    for (ranges, discard, zeroes, erase) in [
        (vec![good, outside], BlkStatus::IoErr, BlkStatus::IoErr, BlkStatus::IoErr),
        (vec![outside, flagged], BlkStatus::Unsupp, BlkStatus::Unsupp, BlkStatus::Unsupp),
        (vec![good, unmap], BlkStatus::Unsupp, BlkStatus::Ok, BlkStatus::Unsupp),
        (vec![good; 4], BlkStatus::Ok, BlkStatus::Ok, BlkStatus::Ok),
        (vec![good; 5], BlkStatus::IoErr, BlkStatus::IoErr, BlkStatus::IoErr),
    ] {
        let mut config = DeviceConfig { secure_erase: true, ..disk() };
        config.limits.ranges = 4;
        let len = ranges.len() as u32 * 16;
        let ask = |op| ask(config.clone(), op, len).0;
        assert_eq!(ask(BlkOp::Discard(&ranges)), discard, "{ranges:?}");
        assert_eq!(ask(BlkOp::WriteZeroes(&ranges)), zeroes, "{ranges:?}");
        assert_eq!(ask(BlkOp::SecureErase(&ranges)), erase, "{ranges:?}");
    }
}

#[test]
fn blk_secure_erase_and_lifetime_are_unsupp_unless_asked_for() {
    let range = [RangeSegment { sector: 0, num_sectors: 8, flags: 0 }];
    assert_eq!(ask(disk(), BlkOp::SecureErase(&range), 16).0, BlkStatus::Unsupp);
    assert_eq!(ask(disk(), BlkOp::GetLifetime, 6), (BlkStatus::Unsupp, 1));
    let lifetime = Some(Lifetime { pre_eol_info: 1, typ_a: 2, typ_b: 11 });
    for (len, status, used) in
        [(5, BlkStatus::IoErr, 1), (6, BlkStatus::Ok, 7), (64, BlkStatus::Ok, 7)]
    {
        let (mut rig, mut driver) = Rig::running(DeviceConfig { lifetime, ..disk() });
        submit(&rig, &mut driver, 0, BlkOp::GetLifetime, len, &Framing::SHREDDED);
        let d = done(&mut rig, &mut driver);
        assert_eq!((d.status, d.len), (status, used), "room for {len}");
        if status == BlkStatus::Ok {
            let mut got = [0; 6];
            rig.guest.read_slice(&mut got, GuestAddress(slot_base(0) + 16)).unwrap();
            assert_eq!(got, [1, 0, 2, 0, 11, 0]);
        }
    }
}

fn any_range() -> impl Strategy<Value = RangeSegment> {
    let end = DISK / 512;
    let sector = prop_oneof![6 => 0..end, 1 => end - 4..end + 4, 1 => any::<u64>()];
    let sectors = prop_oneof![6 => 0..64u32, 1 => 60..70u32, 1 => any::<u32>()];
    let flags = prop_oneof![12 => Just(0), 4 => Just(1), 1 => any::<u32>()];
    (sector, sectors, flags).prop_map(|(sector, num_sectors, flags)| RangeSegment {
        sector,
        num_sectors,
        flags,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// What a request for ranges comes to, said a second time: by sectors as
    /// wide numbers that cannot overflow.
    #[test]
    fn blk_requests_for_any_ranges_come_to_what_the_document_says(
        ranges in prop::collection::vec(any_range(), 0..10),
        kind in 0..3,
        framing in 0..FRAMINGS.len(),
        block in prop::sample::select(vec![512u32, 4096]),
    ) {
        let mut config =
            DeviceConfig { secure_erase: true, logical_block_size: block, ..disk() };
        config.limits.ranges = 8;
        config.limits.discard_sectors = 64;
        config.limits.write_zeroes_sectors = 65;
        config.limits.secure_erase_sectors = 66;
        let (op, max, known) = match kind {
            0 => (BlkOp::Discard(&ranges), 64, 0),
            1 => (BlkOp::WriteZeroes(&ranges), 65, 1),
            _ => (BlkOp::SecureErase(&ranges), 66, 0),
        };
        let unit = u128::from(block / 512);
        let fits = |r: &RangeSegment| {
            let (first, count) = (u128::from(r.sector), u128::from(r.num_sectors));
            count <= max
                && first + count <= u128::from(DISK / 512)
                && first % unit == 0
                && count % unit == 0
        };
        let status = if ranges.is_empty() || ranges.len() > 8 {
            BlkStatus::IoErr
        } else if ranges.iter().any(|r| r.flags & !known != 0) {
            BlkStatus::Unsupp
        } else if !ranges.iter().all(fits) {
            BlkStatus::IoErr
        } else {
            BlkStatus::Ok
        };
        let (mut rig, mut driver) = Rig::running(config);
        rig.disk.fill(0x5a);
        submit(&rig, &mut driver, 0, op, ranges.len() as u32 * 16, &FRAMINGS[framing]);
        let d = done(&mut rig, &mut driver);
        prop_assert_eq!((d.status, d.len), (status, 1));
        let mut expected = vec![0x5a; DISK as usize];
        if status == BlkStatus::Ok {
            for r in &ranges {
                expected[r.sector as usize * 512..][..r.num_sectors as usize * 512].fill(0);
            }
        }
        prop_assert!(rig.disk == expected);
    }
}

#[test]
fn blk_ranges_to_erase_may_be_where_linux_puts_them() {
    let (mut rig, mut driver) = Rig::running(DeviceConfig { secure_erase: true, ..disk() });
    rig.disk.fill(0x5a);
    let mut ranges = Vec::new();
    for sector in [8u64, 100] {
        ranges.extend_from_slice(&sector.to_le_bytes());
        ranges.extend_from_slice(&4u32.to_le_bytes());
        ranges.extend_from_slice(&[0; 4]);
    }
    rig.guest.write_slice(&ranges, GuestAddress(slot_base(0) + 16)).unwrap();
    let op = BlkOp::Other { kind: 14, sector: 0, writable: true };
    submit(&rig, &mut driver, 0, op, 32, &Framing::CLASSIC);
    let d = done(&mut rig, &mut driver);
    assert_eq!((d.status, d.len), (BlkStatus::Ok, 1));
    for (at, byte) in rig.disk.iter().enumerate() {
        let gone = [8, 100].iter().any(|first| (at / 512).wrapping_sub(*first) < 4);
        assert_eq!(*byte, if gone { 0 } else { 0x5a });
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
