//! Guests that are woken by descriptors, by messages or not at all, against the
//! real daemon.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod frontend_rig;

use frontend_rig::{DISK, Daemon, Dir, config, pattern};
use midflight::adapter::client::{Client, ClientConfig, Notify};
use midflight::driver::{BlkOp, BlkRequest, Framing, RequestBuffers, Span};
use midflight::frontend::Event;
use midflight::wire::features::protocol;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

const INBAND: u64 = protocol::INBAND_NOTIFICATIONS;

fn inband(dir: &Dir) -> ClientConfig {
    let mut config = config(dir);
    config.frontend.protocol_features |= INBAND;
    config
}

fn protocol_of(guest: &mut Client) -> u64 {
    let ready = guest.take_events().into_iter().find_map(|event| match event {
        Event::Ready { protocol, .. } => Some(protocol),
        _ => None,
    });
    ready.expect("it has negotiated")
}

/// Blocking requests on both vrings, one at a time: each needs its kick and its
/// call. Requests done.
fn one_at_a_time(guest: &mut Client, rounds: u64) -> u64 {
    let mut back = vec![0; 4096];
    for i in 0..rounds {
        let (vring, sector) = ((i % 2) as u16, i % 512 * 8);
        let data = pattern(i, 4096);
        guest.write(vring, sector, &data).unwrap();
        guest.read(1 - vring, sector, &mut back).unwrap();
        assert!(back == data, "round {i}");
    }
    2 * rounds
}

/// Many at once: fewer notifications than requests.
fn many_at_once(guest: &mut Client, rounds: u64) -> u64 {
    let area = guest.data_area().start + 0x10000;
    let mut done = 0;
    for round in 0..rounds {
        for vring in 0..2u16 {
            for slot in 0..16u64 {
                let at = area + (u64::from(vring) * 16 + slot) * 0x2000;
                let data = pattern(round * 32 + slot, 4096);
                guest.memory().write_slice(&data, GuestAddress(at)).unwrap();
                let span = [Span { addr: at, len: 4096 }];
                let (header, status) = (at + 4096, at + 5000);
                let buffers = RequestBuffers { header, data: &span, status, table: None };
                let sector = (u64::from(vring) * 16 + slot) * 8;
                let op = BlkOp::Out { sector };
                let request = BlkRequest { op, token: slot };
                guest.submit(vring, &request, &buffers, &Framing::CLASSIC).unwrap();
            }
            guest.kick(vring).unwrap();
        }
        for vring in 0..2 {
            for _ in 0..16 {
                assert_eq!(guest.wait_done(vring).unwrap().status.code(), 0);
                done += 1;
            }
        }
    }
    done
}

fn exercise(guest: &mut Client, what: &str) {
    guest.start().unwrap();
    let start = Instant::now();
    let mut done = one_at_a_time(guest, 300);
    done += many_at_once(guest, 40);
    let bases = guest.stop().unwrap();
    guest.start().unwrap();
    done += one_at_a_time(guest, 20);
    assert_eq!(bases.len(), 2);
    println!("{what}: {done} requests in {} ms, each completed", start.elapsed().as_millis());
}

#[test]
fn notify_inband_carries_every_kick_and_call() {
    let dir = Dir::new("inband");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2", "--inband-notifications"]);
    let mut guest = Client::connect_notified(inband(&dir), Notify::Inband).unwrap();
    assert_ne!(protocol_of(&mut guest) & INBAND, 0);
    exercise(&mut guest, "in-band");
    guest.reset().unwrap();
    guest.start().unwrap();
    one_at_a_time(&mut guest, 20);
}

#[test]
fn notify_inband_survives_kills_of_the_daemon() {
    let dir = Dir::new("inband-kill");
    let options = ["--num-queues", "2", "--inband-notifications", "--throttle-latency-us", "3000"];
    let mut daemon = Daemon::midflight(&dir, &options);
    let mut guest = Client::connect_notified(inband(&dir), Notify::Inband).unwrap();
    guest.start().unwrap();
    for round in 0..5 {
        let area = guest.data_area().start + 0x10000;
        for slot in 0..16u64 {
            let at = area + slot * 0x2000;
            let span = [Span { addr: at, len: 4096 }];
            let (header, status) = (at + 4096, at + 5000);
            let buffers = RequestBuffers { header, data: &span, status, table: None };
            let op = BlkOp::Out { sector: slot * 8 };
            let request = BlkRequest { op, token: slot };
            guest.submit(0, &request, &buffers, &Framing::CLASSIC).unwrap();
        }
        guest.kick(0).unwrap();
        drop(daemon);
        daemon = Daemon::midflight(&dir, &options);
        let mut tokens: Vec<u64> = (0..16).map(|_| guest.wait_done(0).unwrap().token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..16).collect::<Vec<_>>(), "round {round}");
    }
    drop(daemon);
}

#[test]
fn notify_inband_is_not_offered_unless_the_operator_wants_it() {
    let dir = Dir::new("inband-off");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2"]);
    let mut guest = Client::connect_notified(inband(&dir), Notify::Inband).unwrap();
    assert_eq!(protocol_of(&mut guest) & INBAND, 0);
    // NOFD then: both look by the clock.
    exercise(&mut guest, "in-band refused");
}

#[test]
fn notify_descriptors_take_precedence_over_messages() {
    let dir = Dir::new("inband-events");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2", "--inband-notifications"]);
    let mut guest = Client::connect(inband(&dir)).unwrap();
    assert_ne!(protocol_of(&mut guest) & INBAND, 0);
    exercise(&mut guest, "descriptors with in-band in force");
}

#[test]
fn notify_polled_vrings_need_neither_kick_nor_call() {
    let dir = Dir::new("polled");
    let _daemon = Daemon::midflight(&dir, &["--num-queues", "2"]);
    let mut guest = Client::connect_notified(config(&dir), Notify::Polled).unwrap();
    exercise(&mut guest, "polled");
    assert_eq!(std::fs::metadata(dir.disk()).unwrap().len(), DISK);
}
