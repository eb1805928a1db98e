//! A guest that moves from one daemon to another over one image, with verified
//! I/O in flight: real sockets, its own guest memory on either side, copied
//! page by page as the dirty log says.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod frontend_rig;

use frontend_rig::book::{Book, Kind, in_flight, settle};
use frontend_rig::{Daemon, Dir, config, packed};
use midflight::adapter::client::{Client, ClientConfig};
use midflight::frontend::{Command, Phase};
use midflight::wire::Dialect;
use midflight::wire::features::{protocol, virtio};
use std::collections::BTreeMap;
use std::fs;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// Held alone by the test that looks at the clock.
static ALONE: RwLock<()> = RwLock::new(());

/// A request takes 60 to 140 percent of it.
const SLOW_US: &str = "200000";

fn client(dir: &Dir, socket: &str, dialect: Dialect, suspend: bool) -> Client {
    client_of(config(dir), dir, socket, dialect, suspend)
}

fn client_of(
    config: ClientConfig,
    dir: &Dir,
    socket: &str,
    dialect: Dialect,
    suspend: bool,
) -> Client {
    let mut config = ClientConfig { socket: dir.socket_of(socket), ..config };
    config.frontend.protocol_features |= protocol::LOG_SHMFD;
    config.frontend.dialect = dialect;
    config.memory_size = 4 << 20;
    if suspend {
        config.frontend.protocol_features |=
            dialect.get_vring_base_inflight() | dialect.get_vring_base_skip_drain();
    }
    Client::connect(config).unwrap()
}

fn daemon(dir: &Dir, socket: &str, dialect: Dialect, more: &[&str]) -> Daemon {
    let mut args = vec!["--num-queues", "2"];
    if dialect != Dialect::QEMU_11_1 {
        args.extend(["--skip-drain-dialect", dialect.name()]);
    }
    args.extend(more);
    Daemon::midflight_at(dir, &dir.socket_of(socket), &args)
}

fn memory_of(guest: &Client) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    guest.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

struct Outcome {
    inflight: usize,
    downtime: Duration,
    /// Pages copied in each pass.
    pages: Vec<usize>,
}

fn migrate(dialect: Dialect, agreed: bool, suspend: bool) -> Outcome {
    let dir = Dir::new(&format!("migrate-{dialect}-{agreed}-{suspend}"));
    migrate_of(config(&dir), dir, dialect, agreed, suspend)
}

fn migrate_of(
    config: ClientConfig,
    dir: Dir,
    dialect: Dialect,
    agreed: bool,
    suspend: bool,
) -> Outcome {
    let slow = ["--throttle-latency-us", SLOW_US];
    let _a = daemon(&dir, "a", dialect, &slow);
    let _b = daemon(&dir, "b", dialect, &slow);
    let mut source = client_of(config.clone(), &dir, "a", dialect, agreed);
    let mut target = client_of(config, &dir, "b", dialect, agreed);
    source.start().unwrap();
    let mut book = Book::default();
    book.fill(&mut source);

    source.log_on().unwrap();
    let mut pages = Vec::new();
    let copy = |source: &mut Client, target: &Client, pages: &mut Vec<usize>| {
        let dirty = source.take_dirty();
        source.copy_pages(&dirty, target.memory()).unwrap();
        pages.push(dirty.len());
        dirty
    };
    copy(&mut source, &target, &mut pages);
    assert_eq!(pages, [1024], "everything first");
    // Reads and writes complete on the source while it is being copied.
    book.submit_both(&mut source, 4000);
    copy(&mut source, &target, &mut pages);
    book.finish(&mut source);
    // The log grows, as when memory is plugged in.
    source.log_on().unwrap();
    let dirty = copy(&mut source, &target, &mut pages);
    let read_into = source.data_area().start + 16 * 0x3000 + 0x1000;
    assert!(dirty.contains(&read_into) && dirty.contains(&(read_into + 0x1000)), "data and status");
    book.submit_both(&mut source, 5000);
    settle();
    copy(&mut source, &target, &mut pages);

    let begin = Instant::now();
    let bases = if suspend { source.suspend() } else { source.stop() }.unwrap();
    copy(&mut source, &target, &mut pages);
    let handover = source.hand_over().unwrap();
    let downtime = begin.elapsed();
    assert!(memory_of(&source) == memory_of(&target), "a page was not logged");
    let inflight = in_flight(&handover);
    for (vring, base) in bases {
        let (driver, memory) = source.driver(vring).unwrap();
        if driver.ring().as_packed().is_some() {
            // All of it was fetched, and the wraps travel.
            assert_eq!(base & 0xffff, driver.ring().base() & 0xffff, "base {base:#x}");
            continue;
        }
        let used = u32::from(driver.ring().layout().load_used_idx(memory).unwrap());
        assert!(base >= used && base - used <= 16, "base {base}, used {used}");
    }
    source.disconnect().unwrap();

    target.take_over(handover).unwrap();
    target.start().unwrap();
    book.finish(&mut target);
    assert_eq!(book.done, 16 + 32 + 32);
    // Newer data in the same place: nothing of the source may land on it.
    book.submit_both(&mut target, 6000);
    book.finish(&mut target);
    std::thread::sleep(Duration::from_millis(300));
    target.flush(0).unwrap();
    book.check_file(&dir);
    Outcome { inflight, downtime, pages }
}

#[test]
fn migration_between_two_daemons_completes_every_request_once_suspended_or_drained() {
    let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
    let mut times = BTreeMap::new();
    for (dialect, agreed, suspend) in [
        (Dialect::QEMU_11_1, true, true),
        (Dialect::QEMU_11_1, false, true),
        (Dialect::SKIP_DRAIN_45, true, true),
        (Dialect::SKIP_DRAIN_45, true, false),
        (Dialect::NUM_1, true, true),
    ] {
        let Outcome { inflight, downtime, pages } = migrate(dialect, agreed, suspend);
        let policy = if agreed && suspend { "suspend" } else { "drain" };
        println!(
            "{dialect}: {policy}, {inflight} in flight at the hand-over, stopped for {downtime:?}, pages {pages:?}"
        );
        if policy == "suspend" {
            // Half of the slow requests wait before they reach the disk, half
            // after it: the latter are done already, and completed.
            assert!(inflight >= 4, "{inflight} in flight");
            assert!(downtime < Duration::from_millis(100), "{downtime:?}");
        } else {
            assert_eq!(inflight, 0);
        }
        times.entry(policy).or_insert_with(Vec::new).push(downtime);
    }
    let suspended = times["suspend"].iter().max().unwrap();
    let drained = times["drain"].iter().min().unwrap();
    assert!(drained > suspended, "{drained:?} drained, {suspended:?} suspended");
}

#[test]
fn migration_of_packed_rings_between_two_daemons_completes_every_request_once() {
    let _others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    for suspend in [true, false] {
        let dir = Dir::new(&format!("migrate-packed-{suspend}"));
        let dialect = Dialect::QEMU_11_1;
        let Outcome { inflight, downtime, pages } =
            migrate_of(packed(config(&dir)), dir, dialect, suspend, suspend);
        println!(
            "packed, suspended: {suspend}, {inflight} in flight at the hand-over, stopped for {downtime:?}, pages {pages:?}"
        );
        assert!(if suspend { inflight >= 4 } else { inflight == 0 }, "{inflight} in flight");
    }
}

#[test]
fn migration_given_up_before_during_and_after_the_stop_goes_on_at_the_source() {
    let dir = Dir::new("give-up");
    give_up(config(&dir), dir);
}

#[test]
fn migration_of_packed_rings_given_up_goes_on_at_the_source() {
    let dir = Dir::new("give-up-packed");
    give_up(packed(config(&dir)), dir);
}

fn give_up(config: ClientConfig, dir: Dir) {
    let _others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    let slow = ["--throttle-latency-us", "100000"];
    let dialect = Dialect::QEMU_11_1;
    let _a = daemon(&dir, "a", dialect, &slow);
    let _b = daemon(&dir, "b", dialect, &slow);
    let mut source = client_of(config.clone(), &dir, "a", dialect, true);
    source.start().unwrap();
    let mut book = Book::default();
    book.fill(&mut source);
    for (seed, moment) in
        [(1000, "before"), (2000, "during"), (3000, "after"), (4000, "taken over")]
    {
        source.log_on().unwrap();
        book.submit_both(&mut source, seed);
        settle();
        if moment == "before" {
            source.log_off().unwrap();
            assert_eq!(source.phase(), Phase::Running);
        } else if moment == "during" {
            source.command(Command::Suspend).unwrap();
            assert_eq!(source.phase(), Phase::Stopping);
            source.log_off().unwrap();
            source.wait("the stop", |c| c.phase() == Phase::Ready).unwrap();
            source.start().unwrap();
        } else {
            source.suspend().unwrap();
            let handover = source.hand_over().unwrap();
            assert!(in_flight(&handover) > 0);
            if moment == "taken over" {
                // The destination fails after all, before it starts.
                let mut target = client_of(config.clone(), &dir, "b", dialect, true);
                target.take_over(handover).unwrap();
                target.disconnect().unwrap();
            }
            source.log_off().unwrap();
            source.start().unwrap();
        }
        book.finish(&mut source);
        println!("given up {moment}: {} done in all", book.done);
    }
    assert_eq!(book.done, 16 + 4 * 32);
    source.flush(0).unwrap();
    book.check_file(&dir);
}

#[test]
fn migration_to_a_device_of_another_shape_is_refused_before_any_io() {
    let _others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    let dir = Dir::new("shape");
    let dialect = Dialect::QEMU_11_1;
    let slow = ["--throttle-latency-us", "100000"];
    let _a = daemon(&dir, "a", dialect, &slow);
    let _b = daemon(&dir, "b", dialect, &[]);
    let mut source = client(&dir, "a", dialect, true);
    source.start().unwrap();
    let mut book = Book::default();
    book.fill(&mut source);
    book.submit_both(&mut source, 7000);
    settle();
    source.suspend().unwrap();
    let handover = source.hand_over().unwrap();
    assert!(in_flight(&handover) > 0);
    let before = fs::read(dir.disk()).unwrap();

    let frontend = midflight::frontend::FrontendConfig {
        queue_size: 256,
        virtio_features: virtio::VERSION_1,
        ..config(&dir).frontend
    };
    let larger = ClientConfig { socket: dir.socket_of("b"), frontend, ..config(&dir) };
    let mut target = Client::connect(larger).unwrap();
    let error = target.take_over(handover.clone()).unwrap_err();
    assert_eq!(error.to_string(), "state of another host: expected a queue size of 256, got 128");
    target.disconnect().unwrap();

    let mut blind = ClientConfig { socket: dir.socket_of("b"), ..config(&dir) };
    blind.frontend.protocol_features &= !protocol::INFLIGHT_SHMFD;
    let mut target = Client::connect(blind).unwrap();
    let error = target.take_over(handover).unwrap_err();
    assert_eq!(
        error.to_string(),
        "back-end unfit: an inflight region is kept, but INFLIGHT_SHMFD is not offered"
    );
    assert!(fs::read(dir.disk()).unwrap() == before);
    source.start().unwrap();
    book.finish(&mut source);
    book.check_file(&dir);
}

/// Descriptors, mappings, and resident KiB of a process.
fn resources(pid: u32) -> (usize, usize, u64) {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (fds, maps, rss.trim().trim_end_matches(" kB").parse().unwrap())
}

#[test]
fn migration_source_stopped_and_resumed_a_thousand_times_leaks_and_loses_nothing() {
    let dir = Dir::new("thousand");
    stop_and_resume(config(&dir), dir, 1000);
}

/// Used positions go round the ring of 100 entries over and over.
#[test]
fn migration_source_with_packed_rings_stopped_again_and_again_leaks_and_loses_nothing() {
    let dir = Dir::new("thousand-packed");
    stop_and_resume(packed(config(&dir)), dir, 300);
}

fn stop_and_resume(config: ClientConfig, dir: Dir, rounds: u64) {
    let _others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    let dialect = Dialect::QEMU_11_1;
    let fast = ["--throttle-latency-us", "3000", "--suspend-grace-ms", "0"];
    let back = daemon(&dir, "a", dialect, &fast);
    let mut source = client_of(config, &dir, "a", dialect, true);
    source.start().unwrap();
    let mut book = Book::default();
    let (mut before, mut own, mut inflight, mut rounds_with) = (None, None, 0, 0);
    let start = Instant::now();
    for round in 0..rounds {
        // Every other migration is given up after the stop, the others before
        // the log was on.
        if round % 2 == 0 {
            source.log_on().unwrap();
        }
        for slot in 0..32 {
            if !book.open.contains_key(&slot) {
                let vring = (slot % 2) as u16;
                let kind = Kind::Write(round * 32 + slot);
                book.submit(&mut source, vring, slot, 1000 + slot, kind);
            }
        }
        source.kick(0).unwrap();
        source.kick(1).unwrap();
        source.suspend().unwrap();
        let handover = source.hand_over().unwrap();
        inflight += in_flight(&handover);
        rounds_with += u32::from(in_flight(&handover) > 0);
        if round % 2 == 0 {
            source.log_off().unwrap();
        }
        source.start().unwrap();
        // Let some of them finish now and then.
        if round % 8 == 7 {
            source.pump(midflight::time::Duration::from_millis(5)).unwrap();
        }
        book.reap(&mut source);
        source.take_events();
        if round == 99 {
            before = Some(resources(back.id()));
            own = Some(resources(std::process::id()));
        }
    }
    let took = start.elapsed();
    let submitted = book.done + book.open.len() as u32;
    book.finish(&mut source);
    source.flush(0).unwrap();
    let (after, before) = (resources(back.id()), before.unwrap());
    let (own_after, own) = (resources(std::process::id()), own.unwrap());
    println!(
        "{rounds} stops in {took:?}, {rounds_with} with requests in flight, {inflight} of them \
         in all; {submitted} submitted, {} completed; daemon after 100 stops: {} descriptors, \
         {} mappings, {} KiB, after all: {} descriptors, {} mappings, {} KiB",
        book.done, before.0, before.1, before.2, after.0, after.1, after.2
    );
    assert_eq!(book.done, submitted);
    assert!(rounds_with > rounds as u32 / 2, "{rounds_with} rounds with requests in flight");
    assert_eq!(after.0, before.0, "descriptors of the daemon");
    assert!(after.1 <= before.1 + 2, "{} mappings, {} before", after.1, before.1);
    assert!(after.2 <= before.2 + 1024, "{} KiB, {} before", after.2, before.2);
    // Other tests of this process open and close theirs meanwhile.
    println!("this process: {own:?} then, {own_after:?} now");
    book.check_file(&dir);
}
