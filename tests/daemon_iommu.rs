//! The two halves with an IOMMU between them, over real sockets.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod frontend_rig;

use frontend_rig::{Daemon, Dir, config, pattern};
use midflight::adapter::client::{Client, ClientConfig, ClientError};
use midflight::driver::{BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, Span};
use midflight::wire::features::virtio;
use std::fs;
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;
const SLOT: u64 = 8 * PAGE;

fn behind_iommu(dir: &Dir, packed: bool) -> ClientConfig {
    let mut config = config(dir);
    config.frontend.virtio_features |= virtio::ACCESS_PLATFORM;
    if packed {
        config.frontend.virtio_features |= virtio::RING_PACKED;
    }
    config
}

/// Where a slot's buffers are: header, data over page borders, status, table.
fn slot_at(guest: &Client, slot: u64) -> u64 {
    guest.data_area().start + slot * SLOT
}

fn submit(guest: &mut Client, slot: u64, op: BlkOp<'_>, framing: &Framing) {
    let at = slot_at(guest, slot);
    let data = [Span { addr: at + PAGE - 512, len: 8192 }];
    let table = Some(at + 6 * PAGE - 32);
    let buffers = RequestBuffers { header: at, data: &data, status: at + 4 * PAGE, table };
    guest.submit(0, &BlkRequest { op, token: slot }, &buffers, framing).unwrap();
}

/// Write and read every block through buffers that are mapped only while they
/// are needed; kill the daemon now and then.
fn run(packed: bool, kills: u64) {
    let dir = Dir::new(&format!("iommu-{packed}-{kills}"));
    let mut daemon = Daemon::midflight(&dir, &["--num-queues", "2"]);
    let mut guest = Client::connect(behind_iommu(&dir, packed)).unwrap();
    assert_ne!(guest.features() & virtio::ACCESS_PLATFORM, 0);
    guest.start().unwrap();
    let framings = [Framing::CLASSIC, Framing::INDIRECT, Framing::SPLIT_HEADER];
    let mut unmapped = 0;
    for round in 0..24u64 {
        for write in [true, false] {
            for slot in 0..4 {
                let (block, at) = (round * 4 + slot, slot_at(&guest, slot));
                let data = if write { pattern(block, 8192) } else { vec![0; 8192] };
                guest.memory().write_slice(&data, GuestAddress(at + PAGE - 512)).unwrap();
                guest.iommu_map(at, SLOT, 3);
                let sector = block * 16;
                let op = if write { BlkOp::Out { sector } } else { BlkOp::In { sector } };
                submit(&mut guest, slot, op, &framings[(block % 3) as usize]);
            }
            guest.kick(0).unwrap();
            if kills > 0 && round % (24 / kills) == 3 && write {
                drop(daemon);
                daemon = Daemon::midflight(&dir, &["--num-queues", "2"]);
            }
            for _ in 0..4 {
                let done = guest.wait_done(0).unwrap();
                assert_eq!(done.status, BlkStatus::Ok);
                let at = slot_at(&guest, done.token);
                let mut data = vec![0; 8192];
                guest.memory().read_slice(&mut data, GuestAddress(at + PAGE - 512)).unwrap();
                assert!(data == pattern(round * 4 + done.token, 8192), "block of {done:?}");
                guest.iommu_unmap(at, SLOT).unwrap();
                unmapped += 1;
            }
        }
    }
    let used = guest.iommu_use();
    assert!(used.misses >= 4 * unmapped, "{used:?}");
    assert_eq!((used.refused, used.failures), (0, 0));
    println!("packed {packed}, {kills} kills, {unmapped} slots mapped and unmapped, {used:?}");
    guest.stop().unwrap();
    guest.disconnect().unwrap();
    let file = fs::read(dir.disk()).unwrap();
    for block in 0..96u64 {
        let at = block as usize * 8192;
        assert!(file[at..at + 8192] == pattern(block, 8192), "block {block}");
    }
}

#[test]
fn iommu_split_rings_serve_buffers_that_are_mapped_for_one_request() {
    run(false, 0);
}

#[test]
fn iommu_packed_rings_serve_buffers_that_are_mapped_for_one_request() {
    run(true, 0);
}

#[test]
fn iommu_the_next_daemon_finishes_what_a_killed_one_had_on_split_rings() {
    run(false, 4);
}

#[test]
fn iommu_the_next_daemon_finishes_what_a_killed_one_had_on_packed_rings() {
    run(true, 4);
}

#[test]
fn iommu_what_is_not_mapped_fails_and_what_is_mapped_since_works() {
    let dir = Dir::new("iommu-holes");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2"]);
    let mut guest = Client::connect(behind_iommu(&dir, false)).unwrap();
    guest.start().unwrap();
    let at = slot_at(&guest, 0);
    let ask = |guest: &mut Client, op| {
        submit(guest, 0, op, &Framing::CLASSIC);
        guest.kick(0)?;
        Ok::<_, ClientError>(guest.wait_done(0)?.status)
    };
    guest.iommu_map(at, SLOT, 3);
    guest.iommu_unmap(at + 2 * PAGE, PAGE).unwrap();
    assert_eq!(ask(&mut guest, BlkOp::In { sector: 0 }).unwrap(), BlkStatus::IoErr);
    // May be read: enough to write it to the disk, not to read into it.
    guest.iommu_map(at + 2 * PAGE, PAGE, 1);
    assert_eq!(ask(&mut guest, BlkOp::Out { sector: 0 }).unwrap(), BlkStatus::Ok);
    assert_eq!(ask(&mut guest, BlkOp::In { sector: 0 }).unwrap(), BlkStatus::IoErr);
    guest.iommu_map(at + 2 * PAGE, PAGE, 3);
    assert_eq!(ask(&mut guest, BlkOp::In { sector: 0 }).unwrap(), BlkStatus::Ok);
    let used = guest.iommu_use();
    assert_eq!((used.refused, used.failures), (2, 1), "{used:?}");
    guest.stop().unwrap();
}
