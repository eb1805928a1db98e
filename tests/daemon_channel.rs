//! The back-end's channel over real sockets: an image that changes its size
//! under a guest, and front-ends that make a mess of the channel.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;
mod frontend_rig;

use daemon_rig::{Daemon, Guest, Scratch, command, text};
use frontend_rig::{DISK, Dir, config, pattern};
use midflight::adapter::client::{Client, ClientError};
use midflight::driver::{BlkOp, BlkStatus};
use midflight::frontend::Event;
use midflight::time::Duration;
use midflight::wire::{ConfigPayload, FrontendRequest};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

fn serve(dir: &Dir) -> Daemon {
    let (socket, disk) = (dir.socket(), dir.disk());
    let args = ["serve", "--socket-path", text(&socket), "--blk-file", text(&disk)];
    let more = ["--num-queues", "2"];
    let mut daemon = Daemon::spawn(&mut command(&[&args[..], &more[..]].concat()));
    daemon.wait_for("listening on");
    daemon
}

fn resize(dir: &Dir, size: u64) {
    fs::OpenOptions::new().write(true).open(dir.disk()).unwrap().set_len(size).unwrap();
}

/// Bytes that the guest is told of next.
fn next_size(guest: &mut Client) -> u64 {
    let end = Instant::now() + daemon_rig::PATIENCE;
    loop {
        let changed = guest.take_events().into_iter().find_map(|event| match event {
            Event::ConfigChanged(space) => Some(space),
            _ => None,
        });
        if let Some(space) = changed {
            return 512 * u64::from_le_bytes(space[..8].try_into().unwrap());
        }
        assert!(Instant::now() < end, "the guest is told nothing");
        guest.pump(Duration::from_millis(100)).unwrap();
    }
}

/// Write into the last sectors, and look whether it is there.
fn write_at_end(guest: &mut Client, size: u64) {
    let data = pattern(size, 64 * 512);
    let sector = size / 512 - 64;
    guest.write(0, sector, &data).unwrap();
    guest.flush(0).unwrap();
    let mut back = vec![0; data.len()];
    guest.read(1, sector, &mut back).unwrap();
    assert!(back == data);
}

#[test]
fn resize_image_that_grows_is_seen_by_a_running_guest_and_its_new_sectors_work() {
    let dir = Dir::new("grow");
    let mut daemon = serve(&dir);
    let mut guest = Client::connect(config(&dir)).unwrap();
    guest.start().unwrap();
    let start = Instant::now();
    resize(&dir, 2 * DISK);
    assert_eq!(next_size(&mut guest), 2 * DISK);
    let waited = start.elapsed();
    write_at_end(&mut guest, 2 * DISK);
    println!("{DISK} to {} bytes, seen after {} ms", 2 * DISK, waited.as_millis());
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn resize_sighup_measures_at_once_and_leaves_the_daemon_alone() {
    let dir = Dir::new("sighup");
    let mut daemon = serve(&dir);
    // Nobody is connected, so nothing but the signal makes it look.
    resize(&dir, 3 * DISK);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait_for(&format!("the image has {} bytes, {DISK} before", 3 * DISK));
    let mut guest = Client::connect(config(&dir)).unwrap();
    assert_eq!(guest.read_config(0, 8).unwrap(), (3 * DISK / 512).to_le_bytes());
    guest.start().unwrap();
    write_at_end(&mut guest, 3 * DISK);
    // Nothing has changed since the configuration was read.
    guest.pump(Duration::from_millis(50)).unwrap();
    assert!(!guest.take_events().iter().any(|e| matches!(e, Event::ConfigChanged(_))));
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn resize_image_that_grew_while_the_daemon_was_down_is_seen_after_the_reconnect() {
    let dir = Dir::new("grow-down");
    let mut daemon = serve(&dir);
    let mut guest = Client::connect(config(&dir)).unwrap();
    guest.start().unwrap();
    write_at_end(&mut guest, DISK);
    guest.take_events();
    daemon.kill();
    resize(&dir, 2 * DISK);
    let mut daemon = serve(&dir);
    assert_eq!(next_size(&mut guest), 2 * DISK);
    write_at_end(&mut guest, 2 * DISK);
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn resize_image_that_shrinks_fails_what_lies_beyond_and_serves_the_rest() {
    let dir = Dir::new("shrink");
    let mut daemon = serve(&dir);
    let mut guest = Client::connect(config(&dir)).unwrap();
    guest.start().unwrap();
    write_at_end(&mut guest, DISK);
    resize(&dir, DISK / 2);
    assert_eq!(next_size(&mut guest), DISK / 2);
    let mut data = vec![1; 4096];
    for op in [
        BlkOp::In { sector: DISK / 512 - 8 },
        BlkOp::Out { sector: DISK / 512 - 8 },
        BlkOp::In { sector: DISK / 1024 - 1 },
    ] {
        let done = guest.request(0, op, &mut data);
        assert!(matches!(done, Err(ClientError::Request(BlkStatus::IoErr))), "{done:?}");
    }
    write_at_end(&mut guest, DISK / 2);
    assert_eq!(fs::metadata(dir.disk()).unwrap().len(), DISK / 2, "nobody has grown it again");
    assert_eq!(daemon.stop(), 0);
}

/// A front-end with I/O going on, and its end of a channel.
fn with_channel(client: &mut daemon_rig::Client) -> UnixStream {
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.unwrap();
    give(client, theirs);
    UnixStream::from(ours)
}

fn give(client: &mut daemon_rig::Client, fd: OwnedFd) {
    let handle = client.attach(&fd);
    client.ok(FrontendRequest::SetBackendReqFd(handle));
}

#[test]
fn channel_closed_garbled_or_flooded_costs_one_line_and_nothing_else() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    let mut client = daemon_rig::Client::connect(&scratch.socket());
    let mut guest = Guest::new();
    client.negotiate();
    let data = vec![0; 57].into();
    client.ask(FrontendRequest::GetConfig(ConfigPayload { offset: 0, flags: 0, data }));
    guest.start(&mut client, 0);
    let descriptors = daemon.descriptors();
    let mut data = 0;
    let mut works = |guest: &mut Guest| {
        data += 1;
        assert_eq!(guest.run(BlkOp::Out { sector: 8 }, data).0, 0);
        let (status, read) = guest.run(BlkOp::In { sector: 8 }, 0);
        assert_eq!((status, read), (0, vec![data; 4096]));
    };
    works(&mut guest);

    drop(with_channel(&mut client));
    daemon.wait_for("lost the back-end channel: closed by the front-end");
    works(&mut guest);

    with_channel(&mut client).write_all(&[0xff; 64]).unwrap();
    daemon.wait_for("lost the back-end channel: front-end misbehaved: header has version 3");
    works(&mut guest);

    // Answers that nobody has asked for, as many as the socket takes.
    let answer = [2, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flood = with_channel(&mut client);
    flood.set_nonblocking(true).unwrap();
    while (&flood).write_all(&answer.repeat(100)).is_ok() {}
    daemon.wait_for("front-end misbehaved: expected no answer, got an answer to request 2");
    works(&mut guest);

    // Not a socket at all: one that can be watched, and one that cannot.
    let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    give(&mut client, event);
    daemon.wait_for("lost the back-end channel: socket operation on non-socket");
    give(&mut client, fs::File::open(scratch.image()).unwrap().into());
    daemon.wait_for("lost the back-end channel: expected a socket: operation not permitted");
    works(&mut guest);

    // A channel after all that works: a change is asked for on it.
    let good = with_channel(&mut client);
    good.set_read_timeout(Some(daemon_rig::PATIENCE)).unwrap();
    let image = fs::OpenOptions::new().write(true).open(scratch.image()).unwrap();
    image.set_len(2 * daemon_rig::DISK).unwrap();
    let mut asked = [0; 12];
    std::io::Read::read_exact(&mut &good, &mut asked).unwrap();
    assert_eq!(asked, [2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    // Whose answer never comes: everything else goes on all the same.
    works(&mut guest);
    assert_eq!(guest.stop(&mut client), 12);
    drop(good);
    daemon.wait_for("lost the back-end channel: closed by the front-end");
    let lost = daemon.log.iter().filter(|line| line.contains("lost the back-end channel")).count();
    assert_eq!(lost, 6, "one line for each: {:#?}", daemon.log);
    // The kick went with the stop.
    assert_eq!(daemon.descriptors(), descriptors - 1, "no descriptor has leaked");
    assert!(daemon.is_running());
    assert_eq!(daemon.stop(), 0);
}
