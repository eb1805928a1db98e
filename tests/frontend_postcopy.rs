//! A guest that starts at its destination before its memory has come: real
//! sockets and a real userfaultfd, with verified I/O in flight.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod frontend_rig;

use frontend_rig::book::{Book, in_flight, settle};
use frontend_rig::{Daemon, Dir, config, packed};
use midflight::adapter::client::{Client, ClientConfig, PageSource};
use midflight::frontend::Phase;
use midflight::wire::Dialect;
use midflight::wire::features::protocol;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: u64 = 4 << 20;

fn client(dir: &Dir, socket: &str) -> Client {
    client_of(config(dir), dir, socket)
}

fn client_of(config: ClientConfig, dir: &Dir, socket: &str) -> Client {
    let mut config = ClientConfig { socket: dir.socket_of(socket), ..config };
    config.frontend.protocol_features |=
        protocol::LOG_SHMFD | protocol::PAGEFAULT | Dialect::QEMU_11_1.get_vring_base_inflight();
    config.memory_size = MEMORY;
    Client::connect(config).unwrap()
}

fn daemon(dir: &Dir, socket: &str, more: &[&str]) -> Daemon {
    let args = [&["--num-queues", "2", "--throttle-latency-us", "100000"], more].concat();
    Daemon::midflight_at(dir, &dir.socket_of(socket), &args)
}

/// Pages of the guest that has stopped, each after a while.
fn pages_of(source: &Client, latency: Duration) -> PageSource {
    let memory = source.memory().clone();
    Box::new(move |page, bytes| {
        std::thread::sleep(latency);
        memory.read_slice(bytes, GuestAddress(page)).unwrap();
    })
}

/// A guest with requests in flight, suspended.
fn suspended(dir: &Dir, book: &mut Book) -> Client {
    suspended_of(config(dir), dir, book)
}

fn suspended_of(config: ClientConfig, dir: &Dir, book: &mut Book) -> Client {
    let mut source = client_of(config, dir, "a");
    source.start().unwrap();
    book.fill(&mut source);
    book.submit_both(&mut source, 5000);
    settle();
    source.suspend().unwrap();
    source
}

#[test]
fn postcopy_guest_starts_without_memory_and_completes_what_was_in_flight() {
    for (engine, is_packed) in [("io-uring", false), ("threads", false), ("io-uring", true)] {
        let dir = Dir::new(&format!("postcopy-{engine}-{is_packed}"));
        let config = || if is_packed { packed(config(&dir)) } else { config(&dir) };
        let _a = daemon(&dir, "a", &[]);
        let _b = daemon(&dir, "b", &["--io-engine", engine]);
        let mut book = Book::default();
        let mut source = suspended_of(config(), &dir, &mut book);
        let handover = source.hand_over().unwrap();
        let inflight = in_flight(&handover);
        assert!(inflight >= 4, "{inflight} in flight");

        let mut target = client_of(config(), &dir, "b");
        target.take_over(handover).unwrap();
        target.postcopy(pages_of(&source, Duration::from_millis(1))).unwrap();
        source.disconnect().unwrap();
        let begin = Instant::now();
        target.start().unwrap();
        let started = begin.elapsed();
        book.finish(&mut target);
        let waited = target.page_counts();
        assert!(waited.backend > 0 && waited.guest > 0, "{waited:?}");
        // Another round while most of the memory is still at the source.
        book.submit_both(&mut target, 6000);
        book.finish(&mut target);
        let counts = target.postcopy_end().unwrap();
        println!(
            "{engine}, packed: {is_packed}: {inflight} in flight, started in {started:?}, {counts:?}"
        );
        // And as ever afterwards.
        book.submit_both(&mut target, 7000);
        book.finish(&mut target);
        assert_eq!(book.done, 16 + 3 * 32);
        target.flush(0).unwrap();
        book.check_file(&dir);
        target.stop().unwrap();
        target.start().unwrap();
    }
}

#[test]
fn postcopy_pages_that_were_copied_before_are_not_waited_for() {
    let dir = Dir::new("postcopy-most");
    let _a = daemon(&dir, "a", &[]);
    let _b = daemon(&dir, "b", &[]);
    let mut book = Book::default();
    let mut source = client(&dir, "a");
    let mut target = client(&dir, "b");
    source.start().unwrap();
    book.fill(&mut source);
    source.log_on().unwrap();
    let all = source.take_dirty();
    source.copy_pages(&all, target.memory()).unwrap();
    book.submit_both(&mut source, 5000);
    settle();
    source.suspend().unwrap();
    // What was written since is out of date there.
    let dirty = source.take_dirty();
    assert!(!dirty.is_empty() && dirty.len() < all.len());
    target.discard_pages(&dirty).unwrap();
    target.take_over(source.hand_over().unwrap()).unwrap();
    let (memory, mut wanted) = (source.memory().clone(), dirty.clone());
    let pages: PageSource = Box::new(move |page, bytes| {
        wanted.retain(|one| *one != page);
        memory.read_slice(bytes, GuestAddress(page)).unwrap();
    });
    target.postcopy(pages).unwrap();
    target.start().unwrap();
    book.finish(&mut target);
    let counts = target.postcopy_end().unwrap();
    println!("{} of {} pages were to come, {counts:?}", dirty.len(), all.len());
    assert!(counts.backend > 0);
    // One page may be asked for by both.
    assert!(counts.backend + counts.guest <= 2 * dirty.len() as u64, "{counts:?}");
    book.check_file(&dir);
}

/// The userfaultfd dies with the daemon that has opened it; the next one opens
/// its own, and waits for pages that are still to come.
#[test]
fn postcopy_back_end_killed_meanwhile_is_replaced_and_waits_for_pages_too() {
    let dir = Dir::new("postcopy-kill");
    let _a = daemon(&dir, "a", &[]);
    let b = daemon(&dir, "b", &[]);
    let mut book = Book::default();
    let mut source = suspended(&dir, &mut book);
    let mut target = client(&dir, "b");
    target.take_over(source.hand_over().unwrap()).unwrap();
    target.postcopy(pages_of(&source, Duration::from_millis(1))).unwrap();
    source.disconnect().unwrap();
    target.start().unwrap();
    book.submit(&mut target, 0, 40, 1100, frontend_rig::book::Kind::Write(9));
    target.kick(0).unwrap();
    settle();
    let first = target.page_counts().backend;
    drop(b);
    let _b = daemon(&dir, "b", &[]);
    target.wait("another back-end", |c| c.phase() != Phase::Running).unwrap();
    target.wait("another start", |c| c.phase() == Phase::Running).unwrap();
    book.finish(&mut target);
    book.submit_both(&mut target, 6000);
    book.finish(&mut target);
    let counts = target.postcopy_end().unwrap();
    println!("page faults: {first} of the first back-end, {} of both", counts.backend);
    assert!(first > 0);
    assert_eq!(book.done, 16 + 32 + 1 + 32);
    target.flush(0).unwrap();
    book.check_file(&dir);
}

#[test]
fn postcopy_commands_out_of_place_are_misuse_and_change_nothing() {
    let dir = Dir::new("postcopy-misuse");
    let _a = daemon(&dir, "a", &[]);
    let mut guest = client(&dir, "a");
    use midflight::frontend::Command;
    let misuse = |guest: &mut Client, command| guest.command(command).unwrap_err().to_string();
    assert_eq!(
        misuse(&mut guest, Command::PostcopyListen),
        "postcopy listen in postcopy, expected after it was advised"
    );
    guest.start().unwrap();
    guest.stop().unwrap();
    guest.command(Command::PostcopyAdvise).unwrap();
    assert_eq!(
        misuse(&mut guest, Command::PostcopyListen),
        "postcopy listen in postcopy, expected before any memory was sent"
    );
    guest.start().unwrap();
    guest.write(0, 0, &[3; 512]).unwrap();
    assert_eq!(misuse(&mut guest, Command::PostcopyAdvise), "postcopy advise while running");
    guest.write(0, 0, &[4; 512]).unwrap();
}
