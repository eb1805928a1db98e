//! Suspending and resuming over real sockets, and whose the image is meanwhile.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;

use daemon_rig::{Client, Daemon, Guest, PATIENCE, Scratch, command, text};
use midflight::driver::BlkOp;
use midflight::wire::Dialect;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A client that lets vrings be suspended.
fn connect(scratch: &Scratch) -> Client {
    let mut client = Client::connect(&scratch.socket());
    client.protocol |= Dialect::QEMU_11_1.get_vring_base_inflight();
    client
}

/// A slow disk of each engine.
fn slow(us: &'static str) -> [Vec<&'static str>; 3] {
    ["io-uring", "threads", "inline"].map(|engine| {
        vec!["--throttle-latency-us", us, "--io-engine", engine, "--suspend-grace-ms", "5"]
    })
}

#[test]
fn daemon_suspends_a_slow_disk_within_the_grace_and_resumes_every_request() {
    for options in slow("400000") {
        let scratch = Scratch::new();
        let _daemon = Daemon::serve(&scratch, &options);
        let mut client = connect(&scratch);
        let mut guest = Guest::new();
        guest.start(&mut client, 0);
        for sector in 0..16 {
            guest.submit(BlkOp::Out { sector: sector * 8 }, sector as u8 + 1);
        }
        guest.publish();
        // The kick and the stop are read in any order; what was not fetched is
        // not in flight.
        std::thread::sleep(Duration::from_millis(20));
        let asked = Instant::now();
        let base = guest.stop(&mut client);
        let took = asked.elapsed();
        assert!(took < Duration::from_millis(200), "{took:?}, a request takes at least 240 ms");
        let (live, finished) = (guest.in_flight(), guest.reap_now().len());
        assert_eq!((live + finished, usize::from(base)), (16, 16), "{options:?}");
        assert!(live >= 4, "{live} in flight: half of them were never given to the engine");
        guest.resume(&mut client, base);
        let mut left = live;
        while left > 0 {
            left -= guest.reap().len();
        }
        assert_eq!(guest.in_flight(), 0);
        let image = std::fs::read(scratch.image()).unwrap();
        for i in 0..16 {
            assert_eq!(image[i * 4096..(i + 1) * 4096], [i as u8 + 1; 4096], "{options:?}");
        }
    }
}

#[test]
fn daemon_without_the_feature_waits_for_a_slow_disk() {
    let scratch = Scratch::new();
    let _daemon = Daemon::serve(&scratch, &["--throttle-latency-us", "100000"]);
    let mut client = Client::connect(&scratch.socket());
    let mut guest = Guest::new();
    guest.start(&mut client, 0);
    for sector in 0..16 {
        guest.submit(BlkOp::In { sector: sector * 8 }, 0);
    }
    guest.publish();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(guest.stop(&mut client), 16);
    assert_eq!((guest.in_flight(), guest.reap_now().len()), (0, 16));
}

#[test]
fn daemon_stopped_and_resumed_a_thousand_times_with_io_in_flight_loses_nothing() {
    let scratch = Scratch::new();
    let options = ["--throttle-latency-us", "1500", "--suspend-grace-ms", "0"];
    let daemon = Daemon::serve(&scratch, &options);
    let mut client = connect(&scratch);
    let mut guest = Guest::new();
    guest.start(&mut client, 0);
    let (mut submitted, mut suspended) = (0u64, 0);
    let mut outstanding = BTreeSet::new();
    let mut before = None;
    for round in 0..1000u64 {
        // Who is cancelled may be cancelled again, and keeps its buffers.
        let oldest = outstanding.first().copied();
        while outstanding.len() < 16
            && oldest.is_none_or(|oldest| submitted - oldest < Guest::SLOTS)
        {
            let sector = submitted % 32 * 8;
            let fill = (submitted % 32) as u8 + 1;
            outstanding.insert(match submitted % 3 {
                0 => guest.submit(BlkOp::In { sector }, 0),
                _ => guest.submit(BlkOp::Out { sector }, fill),
            });
            submitted += 1;
        }
        guest.publish();
        if round % 4 == 0 {
            for done in guest.reap() {
                assert!(outstanding.remove(&done.token), "completed twice");
            }
        }
        let base = guest.stop(&mut client);
        let live = guest.in_flight();
        suspended += live;
        for token in guest.reap_now() {
            assert!(outstanding.remove(&token), "completed twice");
        }
        let used = guest.driver.ring().next_used();
        assert_eq!(base, used.wrapping_add(live as u16), "round {round}");
        guest.resume(&mut client, base);
        if round == 10 {
            before = Some((daemon.descriptors(), daemon.peer_mappings(), daemon.memory_kib()));
        }
    }
    while !outstanding.is_empty() {
        for done in guest.reap() {
            assert!(outstanding.remove(&done.token), "completed twice");
        }
    }
    assert!(suspended > 1000, "{suspended} requests were suspended");
    let (descriptors, mappings, memory) = before.unwrap();
    assert_eq!((daemon.descriptors(), daemon.peer_mappings()), (descriptors, mappings));
    let now = daemon.memory_kib();
    assert!(now < memory + 2048, "resident memory grew from {memory} to {now} KiB");
    assert_eq!(guest.in_flight(), 0);
}

#[test]
fn daemon_at_the_destination_waits_for_the_image_until_the_source_has_stopped() {
    let scratch = Scratch::new();
    let mut source = Daemon::serve(&scratch, &["--throttle-latency-us", "300000"]);
    let (other, image) = (scratch.path("other"), scratch.image());
    let args = ["--socket-path", text(&other), "--blk-file", text(&image)];
    // Both have the image open.
    let mut destination = Daemon::spawn(&mut command(&args));
    destination.wait_for("listening on");
    let mut client = connect(&scratch);
    let mut guest = Guest::new();
    guest.start(&mut client, 0);
    for sector in 0..16 {
        guest.submit(BlkOp::Out { sector: sector * 8 }, sector as u8 + 1);
    }
    guest.publish();
    source.wait_for("vring 0 runs");
    std::thread::sleep(Duration::from_millis(20));
    // A guest that is not allowed to be there yet.
    let mut early = Guest::new();
    let mut second = Client::connect(&other);
    early.start(&mut second, 0);
    early.submit(BlkOp::In { sector: 0 }, 0);
    early.publish();
    destination.wait_for("is in use, waiting for its lock");
    assert!(early.reap_now().is_empty());
    let base = guest.stop(&mut client);
    assert!(guest.in_flight() > 0);
    // The request that waited is served without being kicked again.
    assert_eq!(early.reap().len(), 1);
    early.stop(&mut second);
    drop(second);
    // Now the same guest, with all that the source has left.
    let live = guest.in_flight();
    let mut third = Client::connect(&other);
    guest.start(&mut third, base);
    let mut done = guest.reap_now().len();
    while guest.in_flight() > 0 {
        done += guest.reap().len();
    }
    assert!(done >= live);
    let bytes = std::fs::read(scratch.image()).unwrap();
    for i in 0..16 {
        assert_eq!(bytes[i * 4096..(i + 1) * 4096], [i as u8 + 1; 4096]);
    }
}

#[test]
fn daemon_gives_up_what_waits_for_the_image_when_its_front_end_has_gone() {
    let scratch = Scratch::new();
    let mut first = Daemon::serve(&scratch, &[]);
    let (other, image) = (scratch.path("other"), scratch.image());
    let args = ["--socket-path", text(&other), "--blk-file", text(&image)];
    let mut second = Daemon::spawn(&mut command(&args));
    second.wait_for("listening on");
    let mut client = connect(&scratch);
    let mut guest = Guest::new();
    guest.start(&mut client, 0);
    first.wait_for("vring 0 runs");
    // An old write, of a host that the guest has left.
    let mut old = Guest::new();
    let mut stale = Client::connect(&other);
    old.start(&mut stale, 0);
    old.submit(BlkOp::Out { sector: 0 }, 0x77);
    old.publish();
    second.wait_for("is in use, waiting for its lock");
    drop(stale);
    // The guest goes on, and then lets go of the image.
    guest.submit(BlkOp::Out { sector: 0 }, 1);
    guest.publish();
    assert_eq!(guest.reap().len(), 1);
    guest.stop(&mut client);
    std::thread::sleep(Duration::from_millis(50));
    // Whoever comes next finds what the guest wrote last.
    let mut next = Guest::new();
    let mut third = Client::connect(&other);
    next.start(&mut third, 0);
    next.submit(BlkOp::In { sector: 0 }, 0);
    next.publish();
    assert_eq!(next.reap().len(), 1);
    let bytes = std::fs::read(scratch.image()).unwrap();
    assert_eq!(bytes[..4096], [1; 4096]);
}

#[test]
fn daemon_that_never_gets_the_image_closes_the_connection_and_says_why() {
    let scratch = Scratch::new();
    let _first = Daemon::serve(&scratch, &[]);
    let mut client = connect(&scratch);
    Guest::new().start(&mut client, 0);
    let (other, image) = (scratch.path("other"), scratch.image());
    let args = ["--socket-path", text(&other), "--blk-file", text(&image)];
    let mut second = Daemon::spawn(&mut command(&args));
    second.wait_for("listening on");
    let start = Instant::now();
    let mut refused = Client::connect(&other);
    let mut guest = Guest::new();
    guest.start(&mut refused, 0);
    guest.submit(BlkOp::In { sector: 0 }, 0);
    guest.publish();
    let line = second.wait_for("closing the connection");
    assert!(line.contains("is in use: its lock was not free for 5 s"), "{line}");
    assert!(start.elapsed() >= Duration::from_secs(4) && start.elapsed() < PATIENCE);
    assert_eq!(refused.receive(), None);
    // The request is in flight for whoever comes next; nothing was done to it.
    assert_eq!((guest.in_flight(), guest.reap_now().len()), (1, 0));
    drop(client);
    let mut again = Client::connect(&other);
    guest.start(&mut again, 0);
    assert_eq!(guest.reap().len(), 1);
}
