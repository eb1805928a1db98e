//! A guest that works, and a front-end that changes everything under it.

use crate::blocks::{BLOCK, Block, stamp};
use crate::frontend_rig::{Daemon, Dir, config};
use bytes::Bytes;
use midflight::adapter::client::{Answer, Client};
use midflight::driver::{BlkDone, BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, Span};
use midflight::frontend::{Command, Event, Phase};
use midflight::time::Duration as Microtime;
use midflight::wire::{FrontendRequest, MemRegion, VringState};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};
use vm_memory::{Bytes as _, GuestAddress};

/// Few blocks, so that an old write that lands late lands on new data.
const BLOCKS: u64 = 48;
const QUEUES: u16 = crate::frontend_rig::QUEUES;
/// Pages of a request: header and status, indirect table, data.
const SLOT: u64 = 3 * 4096;
const PLUGGED: u64 = 64 * 4096;
/// The disk takes a while, so that there is something in flight.
const DISK: [&str; 4] = ["--throttle-latency-us", "400", "--suspend-grace-ms", "0"];

/// What a request will change when it is done.
#[derive(Clone, Copy, Debug)]
struct Work {
    block: u64,
    /// `None`: a read.
    generation: Option<u64>,
    slot: u64,
}

pub struct Storm {
    rng: ChaCha8Rng,
    seed: u64,
    dir: Dir,
    daemon: Option<Daemon>,
    guest: Client,
    blocks: Vec<Block>,
    work: BTreeMap<u64, Work>,
    /// Places for requests, by guest-physical address.
    free: Vec<u64>,
    plugged: Option<u64>,
    disabled: bool,
    next_token: u64,
    completed: u64,
    /// How often each thing was done.
    counts: BTreeMap<&'static str, u64>,
    /// Descriptors, mappings and KiB of the daemon once it has warmed up.
    before: Option<(usize, usize, u64)>,
}

impl Storm {
    pub fn new(seed: u64, packed: bool) -> Self {
        let dir = Dir::new(if packed { "storm-packed" } else { "storm" });
        let daemon = Daemon::midflight(&dir, &DISK);
        let mut guest = Client::connect(settings(&dir, packed)).unwrap();
        guest.start().unwrap();
        let area = guest.data_area();
        let free = (0..64).map(|i| area.start + i * SLOT).rev().collect();
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
            dir,
            daemon: Some(daemon),
            guest,
            blocks: vec![Block::new(); BLOCKS as usize],
            work: BTreeMap::new(),
            free,
            plugged: None,
            disabled: false,
            next_token: 0,
            completed: 0,
            counts: BTreeMap::new(),
            before: None,
        }
    }

    pub fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut steps = 0u64;
        while Instant::now() < end {
            self.submit();
            self.control();
            self.reap();
            steps += 1;
            if steps.is_multiple_of(50) {
                self.drain();
                self.check_leaks();
            }
        }
    }

    /// Everything is answered, and the image is what the guest was told.
    pub fn end(&mut self) {
        self.drain();
        self.guest.stop().unwrap();
        self.guest.disconnect().unwrap();
        let image = fs::read(self.dir.disk()).unwrap();
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.found(i as u64, &image[i * BLOCK..][..BLOCK], "image");
        }
        let (seed, completed) = (self.seed, self.completed);
        println!("seed {seed}: {completed} requests completed once each, mismatches = 0");
        println!("done meanwhile: {:?}", self.counts);
        if let (Some(before), Some(daemon)) = (self.before, &self.daemon) {
            println!(
                "descriptors, mappings, KiB: {before:?} at first, {:?} at last",
                figures(daemon)
            );
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A few requests, each for a block that has none.
    fn submit(&mut self) {
        if self.guest.phase() != Phase::Running {
            return;
        }
        for _ in 0..self.below(12) {
            let block = self.below(BLOCKS);
            if self.blocks[block as usize].busy {
                continue;
            }
            let Some(slot) = self.free.pop() else { break };
            let generation = (self.below(3) > 0).then(|| self.blocks[block as usize].next());
            let vring = self.below(u64::from(QUEUES)) as u16;
            let work = Work { block, generation, slot };
            let sector = block * (BLOCK as u64 / 512);
            let op = match generation {
                Some(_) => BlkOp::Out { sector },
                None => BlkOp::In { sector },
            };
            let content = generation.map_or_else(|| vec![0xee; BLOCK], |g| stamp(block, g));
            self.guest.memory().write_slice(&content, GuestAddress(slot + 8192)).unwrap();
            // In two pieces, so that a border between regions can lie between.
            let cut = 512 * (1 + self.below(6)) as u32;
            let data = [
                Span { addr: slot + 8192, len: cut },
                Span { addr: slot + 8192 + u64::from(cut), len: BLOCK as u32 - cut },
            ];
            let framing = [Framing::CLASSIC, Framing::INDIRECT][self.below(2) as usize];
            let buffers = RequestBuffers {
                header: slot,
                data: &data[..],
                status: slot + 16,
                table: Some(slot + 4096),
            };
            let token = self.next_token;
            let request = BlkRequest { op, token };
            if self.guest.submit(vring, &request, &buffers, &framing).is_err() {
                self.free.push(slot);
                break;
            }
            self.next_token += 1;
            self.blocks[block as usize].busy = true;
            self.work.insert(token, work);
        }
        for vring in 0..QUEUES {
            self.guest.kick(vring).unwrap();
        }
    }

    fn reap(&mut self) {
        for vring in 0..QUEUES {
            while self.guest.driver(vring).is_ok()
                && let Some(done) = self.guest.reap(vring).unwrap()
            {
                self.done(done);
            }
        }
    }

    fn done(&mut self, done: BlkDone) {
        let work = self.work.remove(&done.token).expect("a request completes once");
        assert_eq!(done.status, BlkStatus::Ok, "{work:?}");
        self.completed += 1;
        let block = &mut self.blocks[work.block as usize];
        block.busy = false;
        match work.generation {
            Some(generation) => block.written(generation),
            None => {
                let mut bytes = vec![0; BLOCK];
                self.guest.memory().read_slice(&mut bytes, GuestAddress(work.slot + 8192)).unwrap();
                block.found(work.block, &bytes, "guest");
            }
        }
        self.free.push(work.slot);
    }

    /// Wait until nothing is outstanding.
    fn drain(&mut self) {
        self.enable_all();
        let end = Instant::now() + Duration::from_secs(20);
        while !self.work.is_empty() {
            assert!(Instant::now() < end, "{} requests are not answered", self.work.len());
            self.reap();
            self.guest.pump(Microtime::from_millis(1)).unwrap();
            self.run_again();
        }
    }

    fn control(&mut self) {
        self.run_again();
        let vring = self.below(u64::from(QUEUES)) as u16;
        match self.below(40) {
            0..5 => self.swap("call swapped", vring, Client::swap_call),
            5..10 => self.swap("kick swapped", vring, Client::swap_kick),
            10 => self.swap("err swapped", vring, Client::swap_err),
            11..14 => {
                let answer = self.guest.set_enabled(vring, false).unwrap();
                self.expect(answer, &[0]);
                self.disabled = true;
                self.count("disabled");
            }
            14..18 => self.enable_all(),
            18..21 => self.plug(),
            21..24 => self.unplug(),
            24..26 => {
                self.log(true);
            }
            26 => self.log(false),
            27..29 => {
                let on = u8::from(self.below(4) > 0);
                let data = Bytes::copy_from_slice(&[on]);
                self.guest.command(Command::WriteConfig { offset: 32, flags: 0, data }).unwrap();
                self.count("write cache set");
            }
            29..32 => self.nonsense(vring),
            32..35 => {
                self.guest.stop().unwrap();
                self.count("stopped");
                self.start();
            }
            35 | 36 => self.reset(),
            37 => {
                self.guest.disconnect().unwrap();
                self.count("disconnected");
                self.guest.command(Command::Connect).unwrap();
                self.guest.wait("negotiation", |c| c.phase() == Phase::Ready).unwrap();
                self.start();
            }
            38 if self.below(16) == 0 => {
                drop(self.daemon.take());
                self.guest.wait("the loss", |c| c.phase() != Phase::Running).unwrap();
                self.daemon = Some(Daemon::midflight(&self.dir, &DISK));
                self.before = None;
                self.count("daemon killed");
                self.guest.wait("the daemon", |c| c.phase() == Phase::Running).unwrap();
                self.disabled = false;
            }
            _ => {
                let size = 8;
                let config = self.guest.read_config(0, size).unwrap();
                let capacity = crate::frontend_rig::DISK / 512;
                assert_eq!(config, capacity.to_le_bytes());
                self.count("config read");
            }
        }
    }

    fn swap(
        &mut self,
        what: &'static str,
        vring: u16,
        swap: impl Fn(&mut Client, u16) -> Result<Answer, midflight::adapter::client::ClientError>,
    ) {
        let answer = swap(&mut self.guest, vring).unwrap();
        self.expect(answer, &[0]);
        self.count(what);
    }

    fn expect(&self, answer: Answer, among: &[u64]) {
        match answer {
            Answer::Status(status) => assert!(among.contains(&status), "{status}"),
            other => panic!("expected an acknowledgement, got {other:?}"),
        }
    }

    fn enable_all(&mut self) {
        if !self.disabled {
            return;
        }
        for vring in 0..QUEUES {
            let answer = self.guest.set_enabled(vring, true).unwrap();
            self.expect(answer, &[0]);
        }
        self.disabled = false;
        self.count("enabled");
    }

    /// Memory of two regions, with a request's place across the border.
    fn plug(&mut self) {
        if self.plugged.is_some() {
            return;
        }
        let start = self.guest.plug_memory(PLUGGED, 2).unwrap();
        // The first data page ends where the first region does, half of it.
        let across = start + PLUGGED / 2 - 8192 - 2048;
        self.free.extend([start, across, start + PLUGGED / 2 + 4 * 4096]);
        self.plugged = Some(start);
        self.count("memory added");
    }

    fn unplug(&mut self) {
        let Some(start) = self.plugged else { return };
        // The guest lets go of it first; other requests go on.
        let uses = |storm: &Self| storm.work.values().any(|work| work.slot >= start);
        self.free.retain(|slot| *slot < start);
        if uses(self) {
            self.enable_all();
        }
        let end = Instant::now() + Duration::from_secs(20);
        while uses(self) {
            assert!(Instant::now() < end, "requests are not answered");
            self.reap();
            self.guest.pump(Microtime::from_millis(1)).unwrap();
            self.free.retain(|slot| *slot < start);
        }
        self.free.retain(|slot| *slot < start);
        self.guest.unplug_memory(start).unwrap();
        self.plugged = None;
        self.count("memory removed");
    }

    fn log(&mut self, on: bool) {
        if on {
            self.guest.log_on().unwrap();
            self.count("log replaced");
        } else {
            self.guest.log_off().unwrap();
            self.count("log off");
        }
    }

    /// Messages that have to be refused, and must change nothing.
    fn nonsense(&mut self, vring: u16) {
        let index = u32::from(vring);
        let nowhere =
            MemRegion { guest_addr: 1 << 50, size: 4096, user_addr: 1 << 51, mmap_offset: 0 };
        let request = match self.below(5) {
            0 => FrontendRequest::SetVringNum(VringState { index, num: 64 }),
            1 => FrontendRequest::SetVringBase(VringState { index, num: 3 }),
            2 => FrontendRequest::SetVringEnable(VringState { index: 99, num: 1 }),
            3 => FrontendRequest::RemMemReg(nowhere, None),
            _ => FrontendRequest::SetFeatures(1 << 63),
        };
        let answer = self.guest.raw(request).unwrap();
        self.expect(answer, &[1]);
        self.count("refused");
    }

    /// The guest gives up what is under way, and the rings with it.
    fn reset(&mut self) {
        self.guest.reset().unwrap();
        self.reap();
        for (_, work) in std::mem::take(&mut self.work) {
            let block = &mut self.blocks[work.block as usize];
            block.busy = false;
            if let Some(generation) = work.generation {
                block.maybe_written(generation);
            }
            self.free.push(work.slot);
        }
        self.count("reset");
        self.start();
    }

    fn start(&mut self) {
        self.guest.start().unwrap();
        self.disabled = false;
    }

    /// A connection may have been lost and found.
    fn run_again(&mut self) {
        for event in self.guest.take_events() {
            if let Event::Refused { message, status } = event {
                panic!("the daemon refused {message} with status {status}");
            }
        }
        if self.guest.phase() != Phase::Running {
            self.guest.wait("the vrings", |c| c.phase() == Phase::Running).unwrap();
        }
    }

    /// With nothing under way the daemon has what it had before.
    fn check_leaks(&mut self) {
        self.unplug();
        // A log stays mapped until there is another: one is always there.
        self.log(true);
        let Some(daemon) = &self.daemon else { return };
        let now = figures(daemon);
        let before = *self.before.get_or_insert(now);
        assert_eq!((now.0, now.1), (before.0, before.1), "descriptors and mappings");
        assert!(now.2 <= before.2 + 4096, "{} KiB at first, {} now", before.2, now.2);
    }
}

fn settings(dir: &Dir, packed: bool) -> midflight::adapter::client::ClientConfig {
    let mut config = config(dir);
    if packed {
        config.frontend.virtio_features |= midflight::wire::features::virtio::RING_PACKED;
        // No split ring could have it.
        config.ring_size = 100;
    }
    config.frontend.protocol_features |= midflight::wire::features::protocol::LOG_SHMFD;
    config
}

/// Descriptors, mappings of a peer's memory, and KiB of its own.
fn figures(daemon: &Daemon) -> (usize, usize, u64) {
    let proc = |name: &str| format!("/proc/{}/{name}", daemon.id());
    let descriptors = fs::read_dir(proc("fd")).unwrap().count();
    let maps = fs::read_to_string(proc("maps")).unwrap();
    let mappings = maps.lines().filter(|line| line.contains("/memfd:")).count();
    let status = fs::read_to_string(proc("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    (descriptors, mappings, line.trim().trim_end_matches(" kB").parse().unwrap())
}
