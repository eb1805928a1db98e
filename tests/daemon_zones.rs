//! Zones of the real daemon, which is killed again and again.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;

use daemon_rig::{Client, DISK, Daemon, Guest, Scratch, command, text};
use midflight::driver::{BlkDone, BlkOp, BlkStatus, ZoneOp};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const BLOCK: u64 = 4096;
/// Sectors.
const ZONE: u64 = 128;
const BLOCKS: usize = 16;
const ZONES: usize = 16;

const OPTIONS: [&str; 8] = [
    "--zone-size",
    "64K",
    "--conventional-zones",
    "1",
    "--max-open-zones",
    "8",
    "--max-active-zones",
    "12",
];

fn serve(scratch: &Scratch, more: &[&str]) -> Daemon {
    let options: Vec<&str> = OPTIONS.iter().chain(more).copied().collect();
    Daemon::serve(scratch, &options)
}

fn connect(scratch: &Scratch, guest: &mut Guest) -> Client {
    let mut client = Client::connect(&scratch.socket());
    let base = guest.driver.ring().next_used();
    guest.driver.accept_zones();
    guest.start(&mut client, base);
    client
}

/// State and written blocks of a zone.
fn zone(guest: &mut Guest, zone: usize) -> (u8, u64) {
    let sector = zone as u64 * ZONE;
    let (status, data) = guest.run(BlkOp::ZoneReport { sector }, 0xff);
    assert_eq!(status, 0);
    let number = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
    assert_eq!(number(0), (ZONES - zone) as u64);
    assert_eq!((number(64), number(72)), (ZONE, sector));
    (data[89], number(80).wrapping_sub(sector) / 8)
}

#[test]
fn daemon_zones_answer_every_rule_with_its_status() {
    let scratch = Scratch::new();
    let _daemon = serve(&scratch, &[]);
    let mut guest = Guest::new();
    let _client = connect(&scratch, &mut guest);
    let out = |block: u64| BlkOp::Out { sector: ZONE + block * 8 };
    let act = |action, zone: u64| BlkOp::Zone { action, sector: zone * ZONE };
    let steps = [
        (out(1), BlkStatus::ZoneUnalignedWp),
        (out(0), BlkStatus::Ok),
        (out(0), BlkStatus::ZoneUnalignedWp),
        (out(1), BlkStatus::Ok),
        (BlkOp::Out { sector: 8 }, BlkStatus::Ok),
        (BlkOp::Out { sector: ZONE + 1 }, BlkStatus::ZoneUnalignedWp),
        (BlkOp::In { sector: 2 * ZONE - 4 }, BlkStatus::ZoneInvalidCmd),
        (BlkOp::In { sector: ZONE - 8 }, BlkStatus::Ok),
        (act(ZoneOp::Open, 0), BlkStatus::ZoneInvalidCmd),
        (BlkOp::Zone { action: ZoneOp::Open, sector: ZONE + 8 }, BlkStatus::ZoneInvalidCmd),
        (BlkOp::Zone { action: ZoneOp::Reset, sector: DISK / 512 }, BlkStatus::ZoneInvalidCmd),
        (act(ZoneOp::Close, 2), BlkStatus::ZoneInvalidCmd),
        (act(ZoneOp::Finish, 1), BlkStatus::Ok),
        (out(2), BlkStatus::ZoneInvalidCmd),
        (act(ZoneOp::Open, 1), BlkStatus::ZoneInvalidCmd),
        (BlkOp::ZoneAppend { sector: ZONE }, BlkStatus::ZoneInvalidCmd),
        (BlkOp::ZoneAppend { sector: 0 }, BlkStatus::ZoneInvalidCmd),
        (BlkOp::ZoneAppend { sector: 2 * ZONE + 8 }, BlkStatus::ZoneInvalidCmd),
        (BlkOp::ZoneAppend { sector: 2 * ZONE }, BlkStatus::Ok),
        (act(ZoneOp::Reset, 1), BlkStatus::Ok),
        (act(ZoneOp::ResetAll, 0), BlkStatus::Ok),
    ];
    for (op, status) in steps {
        assert_eq!(guest.run(op, 7).0, status.code(), "{op:?}");
    }
    for zone in 1..9 {
        assert_eq!(guest.run(act(ZoneOp::Open, zone), 0).0, 0);
    }
    assert_eq!(guest.run(act(ZoneOp::Open, 9), 0).0, BlkStatus::ZoneOpenResource.code());
    for zone in 1..5 {
        assert_eq!(guest.run(BlkOp::Out { sector: zone * ZONE }, 1).0, 0);
        assert_eq!(guest.run(act(ZoneOp::Close, zone), 0).0, 0);
    }
    for zone in 9..13 {
        assert_eq!(guest.run(act(ZoneOp::Open, zone), 0).0, 0);
    }
    assert_eq!(guest.run(act(ZoneOp::Open, 13), 0).0, BlkStatus::ZoneActiveResource.code());
    assert_eq!(guest.run(BlkOp::ZoneAppend { sector: 13 * ZONE }, 0).0, 6);
    assert_eq!(zone(&mut guest, 4), (4, 1));
    assert_eq!(zone(&mut guest, 12), (3, 0));
}

/// Guests, a daemon that dies, and what the guest knows of its disk.
struct World {
    guest: Guest,
    /// By zone, what each block holds; `None`: it has not been told yet.
    blocks: Vec<Vec<Option<u8>>>,
    /// Blocks that are written or asked to be.
    asked: Vec<usize>,
    outstanding: BTreeMap<u64, Open>,
    random: u64,
    done: u64,
    appends: u64,
    resets: u64,
}

#[derive(Clone, Copy, Debug)]
enum Open {
    Write { zone: usize, block: usize, fill: u8 },
    Append { zone: usize, fill: u8 },
    Reset { zone: usize },
}

impl Open {
    fn zone(self) -> usize {
        match self {
            Self::Write { zone, .. } | Self::Append { zone, .. } | Self::Reset { zone } => zone,
        }
    }
}

impl World {
    fn new() -> Self {
        Self {
            guest: Guest::new(),
            blocks: vec![vec![None; BLOCKS]; ZONES],
            asked: vec![0; ZONES],
            outstanding: BTreeMap::new(),
            random: 0x1234_5678_9abc_def1,
            done: 0,
            appends: 0,
            resets: 0,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// One more request, as a guest would make it that knows the rules: several
    /// writes of a zone may be under way, a reset only alone.
    fn submit(&mut self) {
        let zone = 1 + self.draw(6) as usize;
        let busy = self.outstanding.values().filter(|open| open.zone() == zone);
        let resetting = busy.clone().any(|open| matches!(open, Open::Reset { .. }));
        if resetting {
            return;
        }
        let sector = zone as u64 * ZONE;
        let fill = (self.guest.submitted() % 250) as u8 + 1;
        let (op, open) = if self.asked[zone] == BLOCKS {
            if busy.count() > 0 {
                return;
            }
            (BlkOp::Zone { action: ZoneOp::Reset, sector }, Open::Reset { zone })
        } else if zone.is_multiple_of(2) {
            let block = self.asked[zone];
            self.asked[zone] += 1;
            let sector = sector + block as u64 * 8;
            (BlkOp::Out { sector }, Open::Write { zone, block, fill })
        } else {
            self.asked[zone] += 1;
            (BlkOp::ZoneAppend { sector }, Open::Append { zone, fill })
        };
        let token = self.guest.submit(op, fill);
        self.outstanding.insert(token, open);
    }

    fn take(&mut self, done: BlkDone) {
        let open = self.outstanding.remove(&done.token).expect("completed once");
        assert_eq!(done.status, BlkStatus::Ok, "{open:?}");
        self.done += 1;
        match open {
            Open::Write { zone, block, fill } => {
                assert_eq!(self.blocks[zone][block].replace(fill), None, "{open:?}");
            }
            Open::Append { zone, fill } => {
                let at = done.appended.unwrap() - zone as u64 * ZONE;
                assert_eq!(at % 8, 0);
                let block = at as usize / 8;
                assert_eq!(self.blocks[zone][block].replace(fill), None, "{open:?} at {block}");
                self.appends += 1;
            }
            Open::Reset { zone } => {
                self.blocks[zone].fill(None);
                self.asked[zone] = 0;
                self.resets += 1;
            }
        }
    }

    fn reap(&mut self) {
        let mut all = Vec::new();
        while let Some(one) = self.guest.driver.reap(&self.guest.memory).unwrap() {
            all.push(one);
        }
        all.into_iter().for_each(|one| self.take(one));
    }

    fn load(&mut self, until: Instant) {
        while Instant::now() < until {
            let oldest = self.outstanding.keys().next().copied();
            let room =
                oldest.is_none_or(|oldest| self.guest.submitted() - oldest < Guest::SLOTS - 1);
            if self.outstanding.len() < 12 && room {
                self.submit();
                self.guest.publish();
            } else {
                std::thread::sleep(Duration::from_micros(300));
            }
            self.reap();
        }
    }

    fn settle(&mut self) {
        while !self.outstanding.is_empty() {
            for done in self.guest.reap() {
                self.take(done);
            }
        }
    }

    fn check(&mut self, scratch: &Scratch) {
        let image = std::fs::read(scratch.image()).unwrap();
        for number in 1..7 {
            let written = self.asked[number];
            let state = match written {
                0 => vec![1],
                BLOCKS => vec![14],
                _ => vec![2, 4],
            };
            let (found, wp) = zone(&mut self.guest, number);
            assert!(state.contains(&found), "zone {number}: {found}, {written} blocks");
            if written < BLOCKS {
                assert_eq!(wp, written as u64, "zone {number}");
            }
            for (block, fill) in self.blocks[number].iter().enumerate() {
                let expected = fill.unwrap_or(0);
                assert_eq!(fill.is_some(), block < written, "zone {number}, block {block}");
                let at = (number * BLOCKS + block) * BLOCK as usize;
                assert_eq!(image[at..][..BLOCK as usize], [expected; BLOCK as usize]);
                let sector = at as u64 / 512;
                let token = self.guest.submit(BlkOp::In { sector }, 0xee);
                self.guest.publish();
                assert_eq!(self.guest.reap().len(), 1);
                let mut data = vec![0; BLOCK as usize];
                let at = GuestAddress(Guest::slot(token));
                self.guest.memory.read_slice(&mut data, at).unwrap();
                assert_eq!(data, [expected; BLOCK as usize]);
            }
        }
    }
}

#[test]
fn daemon_zones_killed_under_load_lose_nothing_and_hold_nothing_twice() {
    for engine in ["io-uring", "threads", "inline"] {
        let scratch = Scratch::new();
        let more = ["--io-engine", engine, "--throttle-latency-us", "3000"];
        let mut daemon = serve(&scratch, &more);
        let mut world = World::new();
        let mut again = 0;
        for _ in 0..25 {
            let _client = connect(&scratch, &mut world.guest);
            let until = Instant::now() + Duration::from_micros(15_000 + world.draw(15_000));
            world.load(until);
            daemon.kill();
            world.reap();
            again += world.outstanding.len();
            daemon = serve(&scratch, &more);
        }
        let _client = connect(&scratch, &mut world.guest);
        world.settle();
        world.check(&scratch);
        assert!(again > 50, "{again} requests were in flight at kills");
        assert!(world.appends > 20 && world.resets > 0, "{} {}", world.appends, world.resets);
        println!(
            "{engine}: 25 kills, {again} in flight at them, {} done, {} appends, {} resets",
            world.done, world.appends, world.resets
        );
    }
}

#[test]
fn daemon_zones_move_to_another_daemon_with_requests_in_flight() {
    let scratch = Scratch::new();
    let options = ["--throttle-latency-us", "30000", "--suspend-grace-ms", "1"];
    let mut daemons = vec![serve(&scratch, &options)];
    let (other, image) = (scratch.path("other"), scratch.image());
    let mut args = vec!["--socket-path", text(&other), "--blk-file", text(&image)];
    args.extend(OPTIONS);
    args.extend(options);
    let mut second = Daemon::spawn(&mut command(&args));
    second.wait_for("listening on");
    daemons.push(second);
    let mut world = World::new();
    let mut moved = 0;
    for round in 0..20 {
        let socket = if round % 2 == 0 { scratch.socket() } else { scratch.path("other") };
        let mut client = Client::connect(&socket);
        client.protocol |= midflight::wire::Dialect::QEMU_11_1.get_vring_base_inflight();
        world.guest.driver.accept_zones();
        let base = world.guest.driver.ring().next_used();
        let base = base.wrapping_add(
            world
                .guest
                .inflight
                .as_ref()
                .map_or(0, |_| u16::try_from(world.guest.in_flight()).unwrap()),
        );
        world.guest.start(&mut client, base);
        world.load(Instant::now() + Duration::from_millis(70));
        world.guest.stop(&mut client);
        world.reap();
        moved += world.guest.in_flight();
    }
    let _client = connect(&scratch, &mut world.guest);
    world.settle();
    world.check(&scratch);
    assert!(moved > 10, "{moved} requests moved in flight");
    println!("20 moves, {moved} requests in flight at them, {} done", world.done);
}

#[test]
fn daemon_zones_that_cannot_be_are_refused_at_the_start() {
    for (options, expected) in [
        (vec!["--zone-size", "3M"], "power of two"),
        (vec!["--max-open-zones", "3"], "--zone-size"),
        (vec!["--zone-size", "64K", "--secure-erase"], "they cannot be erased"),
        (vec!["--zone-size", "64K", "--conventional-zones", "17"], "fewer than are to be"),
        (
            vec!["--zone-size", "64K", "--max-open-zones", "3", "--max-active-zones", "2"],
            "more may be open than active",
        ),
        (vec!["--secure-erase", "--read-only"], "only read"),
        (vec!["--lifetime", "device"], "a device that says"),
    ] {
        let scratch = Scratch::new();
        let (socket, image) = (scratch.socket(), scratch.image());
        let mut args = vec!["--socket-path", text(&socket), "--blk-file", text(&image)];
        args.extend(&options);
        let mut daemon = Daemon::spawn(&mut command(&args));
        let line = daemon.wait_for(expected);
        assert!(line.contains(expected), "{line}");
        assert_eq!(daemon.wait(), 2, "{options:?}");
    }
}
