//! Sockets: busy, stale, inherited; one client after the other; the end.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;

use daemon_rig::{Client, Daemon, Guest, PATIENCE, Scratch, command, text};
use midflight::driver::BlkOp;
use midflight::wire::{FrontendReplyBody, FrontendRequest};
use rustix::process::Signal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().to_owned()
}

fn serve(scratch: &Scratch) -> Command {
    let (socket, image) = (scratch.socket(), scratch.image());
    command(&["serve", "--socket-path", text(&socket), "--blk-file", text(&image)])
}

#[test]
fn daemon_never_steals_a_live_socket() {
    let scratch = Scratch::new();
    let mut first = Daemon::serve(&scratch, &[]);
    let line = refused(&mut serve(&scratch));
    assert_eq!(line, format!("midflight: socket {} is in use", scratch.socket().display()));
    // The first one is alive and well, and still reachable.
    let mut client = Client::connect(&scratch.socket());
    assert!(matches!(client.ask(FrontendRequest::GetFeatures), FrontendReplyBody::U64(_)));
    // Also while it serves, and while its queue of clients is full.
    let _waiting: Vec<_> = (0..64)
        .map_while(|_| {
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            let address = rustix::net::SocketAddrUnix::new(scratch.socket()).unwrap();
            rustix::net::connect(&socket, &address).ok().map(|()| socket)
        })
        .collect();
    assert!(_waiting.len() < 64, "the queue is full");
    assert!(refused(&mut serve(&scratch)).ends_with("is in use"));
    assert_eq!(first.stop(), 0);
    assert!(!scratch.socket().exists(), "its socket goes with it");
}

#[test]
fn daemon_replaces_the_socket_of_a_dead_one() {
    let scratch = Scratch::new();
    let mut first = Daemon::serve(&scratch, &[]);
    first.kill();
    assert!(scratch.socket().exists());
    let mut second = Daemon::serve(&scratch, &[]);
    Client::connect(&scratch.socket()).negotiate();
    assert_eq!(second.stop(), 0);
}

#[test]
fn daemon_many_started_at_once_on_a_dead_socket_leave_exactly_one() {
    let scratch = Scratch::new();
    Daemon::serve(&scratch, &[]).kill();
    // Readers of the image, so that its lock does not decide.
    let mut daemons: Vec<_> =
        (0..6).map(|_| Daemon::spawn(serve(&scratch).arg("--read-only"))).collect();
    let end = Instant::now() + PATIENCE;
    while daemons.iter_mut().filter_map(|d| d.is_running().then_some(())).count() > 1 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut alive: Vec<_> =
        daemons.iter_mut().filter_map(|d| d.is_running().then_some(d)).collect();
    assert_eq!(alive.len(), 1);
    alive[0].wait_for("listening on");
    Client::connect(&scratch.socket()).negotiate();
}

#[test]
fn daemon_does_not_touch_what_is_no_socket() {
    let scratch = Scratch::new();
    std::fs::write(scratch.socket(), b"precious").unwrap();
    assert!(refused(&mut serve(&scratch)).ends_with("exists and is not a socket"));
    assert_eq!(std::fs::read(scratch.socket()).unwrap(), b"precious");
    let long = scratch.path(&"x".repeat(200));
    let image = scratch.image();
    let mut command = command(&["--socket-path", text(&long), "--blk-file", text(&image)]);
    assert!(refused(&mut command).contains("at most 107 bytes"));
}

#[test]
fn daemon_does_not_remove_a_socket_that_is_not_its_own_any_more() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    std::fs::remove_file(scratch.socket()).unwrap();
    let _other = UnixListener::bind(scratch.socket()).unwrap();
    assert_eq!(daemon.stop(), 0);
    assert!(scratch.socket().exists());
}

#[test]
fn daemon_serves_one_client_after_the_other_and_leaks_nothing() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    let before = daemon.descriptors();
    for round in 1..=5u8 {
        let mut guest = Guest::new();
        let mut client = Client::connect(&scratch.socket());
        // Waits in the queue; its first message is answered after the other left.
        let mut waiting = Client::connect(&scratch.socket());
        waiting.send(FrontendRequest::GetFeatures, false);
        guest.start(&mut client, 0);
        assert_eq!(guest.run(BlkOp::Out { sector: 8 }, round).0, 0);
        let (status, data) = guest.run(BlkOp::In { sector: 8 }, 0);
        assert_eq!((status, data), (0, vec![round; 4096]));
        drop(client);
        assert!(waiting.receive().is_some());
        drop(waiting);
        daemon.wait_for("disconnected");
        daemon.wait_for("disconnected");
    }
    // The line comes before the descriptors are closed.
    let end = Instant::now() + PATIENCE;
    while daemon.descriptors() != before || daemon.peer_mappings() != 0 {
        assert!(
            Instant::now() < end,
            "{before} descriptors became {}, {} mappings are left",
            daemon.descriptors(),
            daemon.peer_mappings()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(std::fs::read(scratch.image()).unwrap()[4096..8192], [5; 4096]);
    assert_eq!(daemon.stop(), 0);
}

/// Pass `fd` on as descriptor 9.
fn inherit(command: &mut Command, fd: &impl AsRawFd) {
    let raw = fd.as_raw_fd();
    // SAFETY: dup2 and fcntl may be called between fork and exec; the descriptor
    // is open. It may be number 9 already, and is then closed by exec unless
    // told otherwise.
    unsafe {
        command.pre_exec(move || {
            let done = libc::dup2(raw, 9) == 9 && libc::fcntl(9, libc::F_SETFD, 0) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

#[test]
fn daemon_inherits_a_listening_socket_and_leaves_it_alone() {
    let scratch = Scratch::new();
    let image = scratch.image();
    let listener = UnixListener::bind(scratch.socket()).unwrap();
    let mut command = command(&["--fd=9", "--blk-file", text(&image)]);
    inherit(&mut command, &listener);
    let mut daemon = Daemon::spawn(&mut command);
    daemon.wait_for("listening on descriptor 9");
    for _ in 0..2 {
        Client::connect(&scratch.socket()).negotiate();
    }
    assert_eq!(daemon.stop(), 0);
    assert!(scratch.socket().exists());
}

#[test]
fn daemon_inherits_a_connected_socket_and_ends_with_its_client() {
    let scratch = Scratch::new();
    let image = scratch.image();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = command(&["serve", "--fd", "9", "--blk-file", text(&image)]);
    inherit(&mut command, &theirs);
    let mut daemon = Daemon::spawn(&mut command);
    drop(theirs);
    daemon.wait_for("connected on descriptor 9");
    let mut guest = Guest::new();
    let mut client = Client::over(ours);
    guest.start(&mut client, 0);
    assert_eq!(guest.run(BlkOp::Out { sector: 0 }, 1).0, 0);
    drop(client);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn daemon_stops_at_once_without_a_client_and_cleanly_with_one() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    assert_eq!(daemon.stop(), 0);

    let mut daemon = Daemon::serve(&scratch, &["--throttle-latency-us", "100000"]);
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    for i in 0..16 {
        guest.submit(BlkOp::Out { sector: i * 8 }, i as u8 + 1);
    }
    guest.publish();
    // Let it fetch them.
    std::thread::sleep(Duration::from_millis(20));
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait(), 0, "{:#?}", daemon.log);
    let mut done = Vec::new();
    while let Some(one) = guest.driver.reap(&guest.memory).unwrap() {
        done.push(one);
    }
    assert_eq!(done.len(), 16, "what was fetched was finished and published");
    assert!(client.receive().is_none());
    assert!(!scratch.socket().exists());
}

#[test]
fn daemon_second_signal_ends_it_at_once() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &["--throttle-latency-us", "30000000"]);
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    guest.submit(BlkOp::Out { sector: 0 }, 1);
    guest.publish();
    std::thread::sleep(Duration::from_millis(50));
    daemon.signal(Signal::TERM);
    daemon.wait_for("stopping");
    assert!(daemon.is_running(), "a request is in flight");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 1);
}

#[test]
fn daemon_killed_in_the_middle_has_its_requests_finished_by_the_next() {
    let scratch = Scratch::new();
    let options = ["--throttle-latency-us", "20000"];
    let mut daemon = Daemon::serve(&scratch, &options);
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    guest.start(&mut client, 0);
    let mut open: std::collections::BTreeSet<u64> =
        (0..16).map(|i| guest.submit(BlkOp::Out { sector: i * 8 }, i as u8 + 1)).collect();
    guest.publish();
    let first = guest.reap();
    daemon.kill();
    for one in first {
        assert!(open.remove(&one.token));
    }
    assert!(!open.is_empty(), "something was in flight");
    while let Some(one) = guest.driver.reap(&guest.memory).unwrap() {
        assert!(open.remove(&one.token));
    }
    let _second = Daemon::serve(&scratch, &options);
    let mut client = Client::connect(&scratch.socket());
    let base = guest.driver.ring().next_used();
    guest.start(&mut client, base);
    while !open.is_empty() {
        for one in guest.reap() {
            assert_eq!(one.status.code(), 0);
            assert!(open.remove(&one.token), "completed twice");
        }
    }
    let image = std::fs::read(scratch.image()).unwrap();
    for i in 0..16 {
        assert_eq!(image[i * 4096..(i + 1) * 4096], [i as u8 + 1; 4096]);
    }
}

#[test]
fn daemon_flood_of_descriptors_costs_the_connection_and_nothing_else() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    let before = daemon.descriptors();
    for _ in 0..3 {
        let client = Client::connect(&scratch.socket());
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds: Vec<BorrowedFd<'_>> = vec![null.as_fd(); 16];
        // Descriptors of separate writes are never joined: each read brings 16.
        for _ in 0..20 {
            if client.send_bytes(&[0; 1], &fds).is_err() {
                break;
            }
        }
        daemon.wait_for("closing the connection");
        drop(client);
    }
    let end = Instant::now() + PATIENCE;
    while daemon.descriptors() != before {
        assert!(Instant::now() < end, "{before} became {}", daemon.descriptors());
        std::thread::sleep(Duration::from_millis(5));
    }
    Client::connect(&scratch.socket()).negotiate();
}
