//! Event descriptors that are swapped while the daemon serves, and none at all.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;

use daemon_rig::{Client, Daemon, Guest, PATIENCE, Scratch};
use midflight::Handle;
use midflight::driver::BlkOp;
use midflight::wire::{FrontendRequest, VringFile};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::OwnedFd;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

const ROUNDS: u64 = 400;

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

/// Wait until `fd` is signalled, and take that.
fn signalled(fd: &OwnedFd, what: &str) {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "{what}");
    rustix::io::read(fd, &mut [0; 8]).unwrap();
}

fn swap(
    client: &mut Client,
    message: fn(VringFile<Handle>) -> FrontendRequest<Handle>,
    fd: Option<&OwnedFd>,
) {
    let handle = fd.map(|fd| client.attach(fd));
    client.ok(message(VringFile { index: 0, handle }));
    // The daemon has its own copy.
    client.forget_attached();
}

/// A write whose kick nobody has been told of yet.
fn available(guest: &mut Guest, round: u64) {
    guest.submit(BlkOp::Out { sector: 8 * (round % 64) }, round as u8);
    guest.driver.publish(&guest.memory).unwrap();
}

fn running(options: &[&str]) -> (Scratch, Daemon, Client, Guest) {
    let scratch = Scratch::new();
    let daemon = Daemon::serve(&scratch, options);
    let mut client = Client::connect(&scratch.socket());
    let mut guest = Guest::new();
    guest.start(&mut client, 0);
    (scratch, daemon, client, guest)
}

#[test]
fn notify_call_swapped_under_requests_always_reaches_the_new_one() {
    for options in [&[][..], &["--throttle-latency-us", "300"]] {
        let (_scratch, mut daemon, mut client, mut guest) = running(options);
        for round in 0..ROUNDS {
            available(&mut guest, round);
            signal(&guest.kick);
            // Somewhere between the kick and the completion.
            std::thread::sleep(std::time::Duration::from_micros(round % 16 * 40));
            let new = event();
            swap(&mut client, FrontendRequest::SetVringCall, Some(&new));
            // Only the new one is listened to from here on.
            let end = Instant::now() + PATIENCE;
            while guest.reap_now().is_empty() {
                signalled(&new, "a call is lost");
                assert!(Instant::now() < end);
            }
            guest.call = new;
        }
        assert_eq!(daemon.stop(), 0);
    }
    println!("{} swaps of call, none lost", 2 * ROUNDS);
}

#[test]
fn notify_kick_swapped_under_requests_is_never_lost() {
    let (_scratch, mut daemon, mut client, mut guest) = running(&[]);
    for round in 0..ROUNDS {
        available(&mut guest, round);
        // The guest kicks the old one, and the message is right behind.
        signal(&guest.kick);
        let new = event();
        swap(&mut client, FrontendRequest::SetVringKick, Some(&new));
        guest.kick = new;
        assert_eq!(guest.reap().len(), 1);
        // And the new one works.
        available(&mut guest, round);
        signal(&guest.kick);
        assert_eq!(guest.reap().len(), 1);
    }
    assert_eq!(daemon.stop(), 0);
    println!("{ROUNDS} swaps of kick, none lost");
}

#[test]
fn notify_kick_and_call_may_be_none_and_come_back() {
    let (_scratch, mut daemon, mut client, mut guest) = running(&[]);
    for round in 0..50 {
        // The daemon polls for requests.
        swap(&mut client, FrontendRequest::SetVringKick, None);
        available(&mut guest, round);
        assert_eq!(guest.reap().len(), 1);
        // The guest polls for completions.
        swap(&mut client, FrontendRequest::SetVringCall, None);
        let _ = rustix::io::read(&guest.call, &mut [0; 8]);
        available(&mut guest, round);
        let end = Instant::now() + PATIENCE;
        while guest.reap_now().is_empty() {
            assert!(Instant::now() < end, "no completion");
            std::thread::yield_now();
        }
        assert!(rustix::io::read(&guest.call, &mut [0; 8]).is_err(), "nobody calls");
        // Back to descriptors: the call comes once for what may have been missed.
        guest.call = event();
        swap(&mut client, FrontendRequest::SetVringCall, Some(&guest.call));
        signalled(&guest.call, "a new descriptor is signalled once");
        guest.kick = event();
        swap(&mut client, FrontendRequest::SetVringKick, Some(&guest.kick));
        assert_eq!(guest.run(BlkOp::Out { sector: 8 }, round as u8).0, 0);
    }
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn notify_err_swapped_before_and_after_the_vring_breaks_reaches_the_new_one() {
    let (_scratch, mut daemon, mut client, mut guest) = running(&[]);
    let (first, second, third) = (event(), event(), event());
    swap(&mut client, FrontendRequest::SetVringErr, Some(&first));
    swap(&mut client, FrontendRequest::SetVringErr, Some(&second));
    // A head that no ring of this size has.
    available(&mut guest, 0);
    let avail = guest.driver.ring().layout().avail;
    guest.memory.write_obj(u16::MAX, GuestAddress(avail + 4)).unwrap();
    signal(&guest.kick);
    daemon.wait_for("vring 0 is broken");
    signalled(&second, "the one in force is signalled");
    assert!(rustix::io::read(&first, &mut [0; 8]).is_err(), "not the one before");
    swap(&mut client, FrontendRequest::SetVringErr, Some(&third));
    signalled(&third, "a new one hears of it too");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn notify_descriptors_that_are_swapped_do_not_leak() {
    let (_scratch, mut daemon, mut client, mut guest) = running(&[]);
    swap(&mut client, FrontendRequest::SetVringErr, Some(&event()));
    let before = daemon.descriptors();
    for _ in 0..200 {
        (guest.kick, guest.call) = (event(), event());
        swap(&mut client, FrontendRequest::SetVringKick, Some(&guest.kick));
        swap(&mut client, FrontendRequest::SetVringCall, Some(&guest.call));
        swap(&mut client, FrontendRequest::SetVringErr, Some(&event()));
    }
    assert_eq!(daemon.descriptors(), before);
    assert_eq!(guest.run(BlkOp::Out { sector: 8 }, 1).0, 0);
    assert_eq!(daemon.stop(), 0);
}
