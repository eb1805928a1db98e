//! In-order use between the front-end half, whose driver breaks its ring if
//! anything comes out of order, and a real daemon on a disk that finishes in any
//! order.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod frontend_rig;

use frontend_rig::{Daemon, Dir, QUEUES, config};
use midflight::adapter::client::Client;
use midflight::driver::{BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, Span};
use midflight::wire::features::virtio;
use vm_memory::{Bytes, GuestAddress};

/// Latencies between 3 and 7 ms, so that few requests finish in their order.
const OPTIONS: [&str; 3] = ["--in-order", "--throttle-latency-us", "5000"];
const DEPTH: u64 = 32;

fn client(dir: &Dir) -> Client {
    let mut config = config(dir);
    config.frontend.virtio_features |= virtio::IN_ORDER;
    let client = Client::connect(config).unwrap();
    assert!(client.features() & virtio::IN_ORDER != 0, "offered when asked for");
    client
}

/// Queue a write of a block that says which it is.
fn submit(guest: &mut Client, vring: u16, token: u64) {
    let at = guest.data_area().start + token % DEPTH * 0x2000 + u64::from(vring) * 0x10_0000;
    guest.memory().write_slice(&[token as u8; 4096], GuestAddress(at)).unwrap();
    let data = [Span { addr: at, len: 4096 }];
    let buffers = RequestBuffers { header: at + 4096, data: &data, status: at + 5000, table: None };
    let op = BlkOp::Out { sector: 8 * (token % 500) };
    guest.submit(vring, &BlkRequest { op, token }, &buffers, &Framing::CLASSIC).unwrap();
}

/// Keep `DEPTH` requests outstanding on every vring until `count` are done, in
/// order; `at` is told how many are.
fn run(guest: &mut Client, first: u64, count: u64, mut at: impl FnMut(u64)) {
    for vring in 0..QUEUES {
        for token in first..first + DEPTH {
            submit(guest, vring, token);
        }
        guest.kick(vring).unwrap();
    }
    for next in first..first + count {
        for vring in 0..QUEUES {
            let done = guest.wait_done(vring).unwrap();
            assert_eq!((done.token, done.status), (next, BlkStatus::Ok), "vring {vring}");
            if next + DEPTH < first + count {
                submit(guest, vring, next + DEPTH);
                guest.kick(vring).unwrap();
            }
        }
        at(next - first);
    }
}

#[test]
fn in_order_requests_come_back_in_order_from_a_disk_that_has_none() {
    let dir = Dir::new("in-order");
    let _daemon = Daemon::midflight(&dir, &OPTIONS);
    let mut guest = client(&dir);
    guest.start().unwrap();
    run(&mut guest, 0, 400, |_| {});
    guest.stop().unwrap();
    guest.start().unwrap();
    run(&mut guest, 1000, 100, |_| {});
}

#[test]
fn in_order_survives_daemons_that_are_killed_with_requests_held_back() {
    let dir = Dir::new("in-order-kill");
    let mut daemon = Some(Daemon::midflight(&dir, &OPTIONS));
    let mut guest = client(&dir);
    guest.start().unwrap();
    let mut kills = 0;
    run(&mut guest, 0, 300, |done| {
        if done % 40 == 20 {
            drop(daemon.take());
            daemon = Some(Daemon::midflight(&dir, &OPTIONS));
            kills += 1;
        }
    });
    assert_eq!(kills, 7);
    let image = std::fs::read(dir.disk()).unwrap();
    for token in 0..300usize {
        let block = &image[token * 4096..(token + 1) * 4096];
        assert!(block.iter().all(|byte| *byte == token as u8), "block {token}");
    }
}
