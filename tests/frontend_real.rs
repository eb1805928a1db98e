//! The front-end and the guest driver against back-ends behind real sockets.
//!
//! One scenario, two arms: midflight's own daemon, and qemu-storage-daemon,
//! which shares nothing with it. The latter is skipped, loudly, where it is
//! not installed.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod frontend_rig;

use frontend_rig::{DISK, Daemon, Dir, QUEUES, config, packed, pattern};
use midflight::adapter::client::{Client, ClientConfig};
use midflight::driver::{
    BlkOp, BlkRequest, BlkStatus, Framing, RangeSegment, RequestBuffers, Span,
};
use midflight::frontend::{Event, Failure};
use midflight::time::Duration;
use midflight::wire::features::virtio;
use std::collections::BTreeSet;
use std::fs;
use vm_memory::{Bytes, GuestAddress};

/// Write, read back, flush, discard and zero, over every vring and in every
/// framing; stop and go on; then look at the file behind it all.
fn scenario(dir: &Dir, config: ClientConfig, mixed: bool) {
    let mut guest = Client::connect(config).unwrap();
    let capacity = guest.read_config(0, 8).unwrap();
    assert_eq!(capacity, (DISK / 512).to_le_bytes());
    guest.start().unwrap();

    let data = pattern(1, 300 * 512);
    guest.write(0, 5, &data).unwrap();
    guest.flush(0).unwrap();
    let mut back = vec![0; data.len()];
    guest.read(1, 5, &mut back).unwrap();
    assert!(back == data, "what was written on one vring is read on the other");

    let mut id = [0; 20];
    guest.request(0, BlkOp::GetId, &mut id).unwrap();
    let range = |sector, num_sectors| RangeSegment { sector, num_sectors, flags: 0 };
    guest.write_zeroes(1, range(6, 10)).unwrap();
    guest.discard(0, range(1000, 64)).unwrap();
    guest.read(0, 5, &mut back).unwrap();
    let mut expected = data.clone();
    expected[512..11 * 512].fill(0);
    assert!(back == expected, "ten sectors are zero now");

    let framed = framings(&mut guest, mixed);
    let many = many_at_once(&mut guest, 0, 16);

    let bases = guest.stop().unwrap();
    assert_eq!(bases.len(), usize::from(QUEUES));
    for (vring, base) in bases {
        // Everything was completed, so the back-end stopped where the driver is.
        let (driver, _) = guest.driver(vring).unwrap();
        assert_eq!(driver.ring().base(), base, "vring {vring}");
    }
    guest.start().unwrap();
    let after = many_at_once(&mut guest, 1, 4);
    guest.reset().unwrap();
    guest.start().unwrap();
    let last = many_at_once(&mut guest, 0, 4);
    guest.flush(0).unwrap();
    guest.stop().unwrap();
    guest.disconnect().unwrap();

    let file = fs::read(dir.disk()).unwrap();
    assert!(file[5 * 512..305 * 512] == expected, "the file holds what the guest was told");
    let mut mismatches = 0;
    for (block, bytes) in (1000u64..).zip(file[1000 * 4096..].chunks(4096)).take(64) {
        mismatches += u32::from(bytes != pattern(block, 4096));
    }
    assert_eq!(mismatches, 0);
    println!(
        "{framed} framed, {} at once, 64 blocks in the file, mismatches = 0",
        many + after + last
    );
}

/// One write and one read in each framing.
fn framings(guest: &mut Client, mixed: bool) -> u32 {
    let at = guest.data_area().start;
    let spans = [Span { addr: at + 16, len: 1024 }, Span { addr: at + 0x2000, len: 3072 }];
    let buffers = RequestBuffers {
        header: at,
        data: &spans,
        status: at + 0x2000 + 3072,
        table: Some(at + 0x4000),
    };
    let odd = Framing { join: true, header_piece: 3, data_piece: 600, indirect_after: None };
    let mut framings = vec![
        Framing::CLASSIC,
        Framing::INDIRECT,
        Framing::JOINED,
        Framing::SPLIT_HEADER,
        Framing::SHREDDED,
        odd,
    ];
    if mixed {
        framings.push(Framing { indirect_after: Some(2), ..Framing::SHREDDED });
    }
    let mut count = 0;
    for framing in framings {
        let data = pattern(u64::from(count) + 77, 4096);
        for op in [BlkOp::Out { sector: 2048 }, BlkOp::In { sector: 2048 }] {
            let memory = guest.memory();
            if matches!(op, BlkOp::Out { .. }) {
                memory.write_slice(&data[..1024], GuestAddress(spans[0].addr)).unwrap();
                memory.write_slice(&data[1024..], GuestAddress(spans[1].addr)).unwrap();
            } else {
                memory.write_slice(&[0; 1024], GuestAddress(spans[0].addr)).unwrap();
                memory.write_slice(&[0; 3072], GuestAddress(spans[1].addr)).unwrap();
            }
            guest.submit(0, &BlkRequest { op, token: 9 }, &buffers, &framing).unwrap();
            guest.kick(0).unwrap();
            let done = guest.wait_done(0).unwrap();
            assert_eq!((done.token, done.status), (9, BlkStatus::Ok), "{framing:?}");
            count += 1;
        }
        let mut back = vec![0; 4096];
        let memory = guest.memory();
        memory.read_slice(&mut back[..1024], GuestAddress(spans[0].addr)).unwrap();
        memory.read_slice(&mut back[1024..], GuestAddress(spans[1].addr)).unwrap();
        assert!(back == data, "{framing:?}");
    }
    count
}

/// Write the 4 KiB blocks 1000 to 1063, `depth` of them with one kick, and take
/// their completions in whatever order they come.
fn many_at_once(guest: &mut Client, vring: u16, depth: u64) -> u32 {
    let mut count = 0;
    for first in (1000..1064).step_by(depth as usize) {
        submit_blocks(guest, vring, first, depth);
        guest.kick(vring).unwrap();
        let mut left: BTreeSet<u64> = (first..first + depth).collect();
        while !left.is_empty() {
            let done = guest.wait_done(vring).unwrap();
            assert_eq!(done.status, BlkStatus::Ok);
            assert!(left.remove(&done.token), "block {} completed once", done.token);
            count += 1;
        }
    }
    count
}

fn submit_blocks(guest: &mut Client, vring: u16, first: u64, count: u64) {
    submit_blocks_at(guest, vring, first, count, guest.data_area().start);
}

/// In guest memory that no other request of these tests uses.
fn submit_blocks_apart(guest: &mut Client, vring: u16, first: u64, count: u64) {
    submit_blocks_at(guest, vring, first, count, guest.data_area().start + (1 << 20));
}

fn submit_blocks_at(guest: &mut Client, vring: u16, first: u64, count: u64, area: u64) {
    for i in 0..count {
        let at = area + i * 0x4000;
        let block = first + i;
        let data = [Span { addr: at + 0x1000, len: 4096 }];
        guest.memory().write_slice(&pattern(block, 4096), GuestAddress(data[0].addr)).unwrap();
        let buffers =
            RequestBuffers { header: at, data: &data, status: at + 16, table: Some(at + 32) };
        let request = BlkRequest { op: BlkOp::Out { sector: block * 8 }, token: block };
        let framing = if i % 2 == 0 { Framing::INDIRECT } else { Framing::CLASSIC };
        guest.submit(vring, &request, &buffers, &framing).unwrap();
    }
}

#[test]
fn frontend_real_guest_reads_and_writes_through_qemu_storage_daemon() {
    let dir = Dir::new("qsd");
    if let Some(_daemon) = Daemon::qemu(&dir) {
        // QEMU's library knows an indirect table only at the head of a chain.
        scenario(&dir, config(&dir), false);
    }
}

#[test]
fn frontend_real_guest_reads_and_writes_through_midflight() {
    let dir = Dir::new("own");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2"]);
    scenario(&dir, config(&dir), true);
}

#[test]
fn frontend_real_packed_guest_reads_and_writes_through_midflight() {
    let dir = Dir::new("own-packed");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2"]);
    scenario(&dir, packed(config(&dir)), true);
}

#[test]
fn frontend_real_packed_is_refused_by_a_daemon_that_was_told_so() {
    let dir = Dir::new("no-packed");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2", "--no-packed"]);
    // The rings of this guest are split again, which 100 entries cannot be.
    let mut guest = Client::connect(packed(config(&dir))).unwrap();
    assert_eq!(guest.features() & virtio::RING_PACKED, 0);
    let error = guest.start().unwrap_err();
    assert!(error.to_string().contains("power of two"), "{error}");
    drop(guest);
    let power = ClientConfig { ring_size: 64, ..packed(config(&dir)) };
    let mut guest = Client::connect(power).unwrap();
    guest.start().unwrap();
    guest.flush(0).unwrap();
}

#[test]
fn frontend_real_guest_outlives_daemons_that_are_killed() {
    let dir = Dir::new("kill");
    outlive_kills(&dir, config(&dir));
}

#[test]
fn frontend_real_packed_guest_outlives_daemons_that_are_killed() {
    let dir = Dir::new("kill-packed");
    outlive_kills(&dir, packed(config(&dir)));
}

fn outlive_kills(dir: &Dir, config: ClientConfig) {
    let slow = ["--throttle-latency-us", "30000"];
    let mut daemon = Daemon::midflight(dir, &slow);
    let mut guest = Client::connect(config).unwrap();
    guest.start().unwrap();
    let (mut completed, mut kills) = (0, 0);
    for first in (1000..1064).step_by(32) {
        submit_blocks(&mut guest, 0, first, 32);
        guest.kick(0).unwrap();
        let mut left: BTreeSet<u64> = (first..first + 32).collect();
        while !left.is_empty() {
            let done = guest.wait_done(0).unwrap();
            assert_eq!(done.status, BlkStatus::Ok);
            assert!(left.remove(&done.token), "block {} completed once", done.token);
            completed += 1;
            if left.len() == 20 {
                drop(daemon);
                daemon = Daemon::midflight(dir, &slow);
                kills += 1;
            }
        }
    }
    guest.flush(0).unwrap();
    let events = guest.take_events();
    let lost = |e: &&Event| {
        matches!(e, Event::Disconnected { failure: Failure::BackendClosed, retry: true, .. })
    };
    assert_eq!(events.iter().filter(lost).count(), kills);
    let kept =
        |e: &&Event| matches!(e, Event::Ready { reconnected: true, inflight_kept: true, .. });
    assert_eq!(events.iter().filter(kept).count(), kills);
    guest.stop().unwrap();
    let file = fs::read(dir.disk()).unwrap();
    for block in 1000..1064usize {
        let bytes = &file[block * 4096..][..4096];
        assert!(bytes == pattern(block as u64, 4096), "block {block}");
    }
    println!("{completed} writes completed once each over {kills} kills, mismatches = 0");
}

/// A stop waits for what was fetched, leaves the rest in the ring, and the rest
/// is done by another daemon if the first is killed while nothing runs.
#[test]
fn frontend_real_stop_drains_and_another_daemon_goes_on() {
    let dir = Dir::new("stop");
    stop_and_go_on(&dir, config(&dir));
}

#[test]
fn frontend_real_packed_stop_drains_and_another_daemon_goes_on() {
    let dir = Dir::new("stop-packed");
    stop_and_go_on(&dir, packed(config(&dir)));
}

fn stop_and_go_on(dir: &Dir, config: ClientConfig) {
    let slow = ["--throttle-latency-us", "20000"];
    let daemon = Daemon::midflight(dir, &slow);
    let mut guest = Client::connect(config).unwrap();
    guest.start().unwrap();
    submit_blocks(&mut guest, 1, 1000, 20);
    guest.kick(1).unwrap();
    // The first completion shows that the daemon has taken the batch.
    let mut left: BTreeSet<u64> = (1000..1064).collect();
    assert!(left.remove(&guest.wait_done(1).unwrap().token));
    // Whether it takes the second before it is stopped is a race.
    submit_blocks_apart(&mut guest, 1, 1020, 20);
    guest.kick(1).unwrap();
    let bases = guest.stop().unwrap();
    let mut drained = 1;
    while let Some(done) = guest.reap(1).unwrap() {
        assert!(left.remove(&done.token));
        drained += 1;
    }
    let (driver, _) = guest.driver(1).unwrap();
    let stopped = match driver.ring().as_packed() {
        None => drained,
        Some(ring) => {
            // Both positions are where the driver has come to with reaping.
            let at = u32::from(ring.used_position().word());
            at << 16 | at
        }
    };
    assert_eq!(bases[1], (1, stopped), "what was fetched is completed, nothing else is");
    assert!(drained == 20 || drained == 40);
    // A guest that is stopped between publishing and kicking.
    submit_blocks(&mut guest, 1, 1040, 24);
    let (driver, memory) = guest.driver(1).unwrap();
    driver.publish(memory).unwrap();

    drop(daemon);
    let _daemon = Daemon::midflight(dir, &[]);
    let again = |e: &Event| matches!(e, Event::Ready { reconnected: true, .. });
    let mut seen = false;
    while !seen {
        guest.pump(Duration::from_millis(10)).unwrap();
        seen = guest.take_events().iter().any(again);
    }
    guest.start().unwrap();
    while !left.is_empty() {
        assert!(left.remove(&guest.wait_done(1).unwrap().token));
    }
    let file = fs::read(dir.disk()).unwrap();
    for block in 1000..1064usize {
        assert!(file[block * 4096..][..4096] == pattern(block as u64, 4096), "block {block}");
    }
    println!("{drained} of 64 writes drained, {} done by the next daemon", 64 - drained);
}
