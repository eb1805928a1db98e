//! One workload over a split and over a packed ring, through the whole
//! back-end: the same requests reach the disk in the same order, every verdict
//! is the same, and so is the disk in the end. Back-ends die on the way, and the
//! guest moves from one to another with what it has in flight.

mod common;

use common::{FEATURES, GUEST_BYTES, Rig, USER_BASE, slot_base};
use midflight::backend::{Backend, Input, SuspendPolicy};
use midflight::blk::{Completion, DeviceConfig, DiskError, DiskOp};
use midflight::driver::{
    BlkDriver, BlkOp, BlkRequest, BlkStatus, DriverRing, Framing, PackedDriver, PackedPosition,
    RangeSegment, RequestBuffers, RingFeatures, RingLayout, Span,
};
use midflight::time::Duration;
use midflight::wire::Dialect;
use midflight::wire::features::virtio;
use midflight::wire::{FrontendReplyBody, FrontendRequest as R, VringAddr, VringFile, VringState};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRunner};
use std::cell::RefCell;
use vm_memory::{Bytes, GuestAddress};

const SECTORS: u64 = 64;
/// Most requests in flight.
const DEPTH: u64 = 12;
const RING: u64 = 0x1000;
/// Entries of the inflight region, more than any ring has.
const REGION: u16 = 64;

#[derive(Clone, Copy, Debug)]
enum What {
    In,
    Out,
    Flush,
    Id,
    Discard,
    Zeroes,
    /// A type that no device knows.
    Unknown,
}

#[derive(Clone, Debug)]
enum Step {
    /// Sector, bytes of data and framing; wrong ones too.
    Submit(What, u64, u32, usize),
    Kick,
    /// Requests at the disk, by number: done, or failed, as one batch.
    Finish(Vec<(usize, bool)>),
    /// The disk does it, but says nothing yet.
    Execute(usize),
    Reap,
    /// The back-end dies, and another one is started.
    Crash,
    /// The vring is stopped and started.
    Restart,
    /// It is suspended with all it has, except that so many requests are done
    /// although they were to be cancelled; another back-end goes on.
    Move(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        3 => Just(What::In),
        6 => Just(What::Out),
        1 => Just(What::Flush),
        1 => Just(What::Id),
        1 => Just(What::Discard),
        1 => Just(What::Zeroes),
        1 => Just(What::Unknown),
    ];
    let bytes = prop_oneof![9 => (1u32..=4).prop_map(|n| n * 512), 1 => 0u32..1500];
    let submit = (what, 0..SECTORS + 2, bytes, 0usize..FRAMINGS.len());
    prop_oneof![
        10 => submit.prop_map(|(w, s, b, f)| Step::Submit(w, s, b, f)),
        4 => Just(Step::Kick),
        4 => prop::collection::vec((any::<usize>(), prop::bool::weighted(0.1)), 1..4).prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Execute),
        3 => Just(Step::Reap),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
        1 => (0usize..3).prop_map(Step::Move),
    ]
}

/// Framings, and the most descriptors that a request of four sectors takes.
const FRAMINGS: [(Framing, u16); 6] = [
    (Framing::CLASSIC, 4),
    (Framing::INDIRECT, 1),
    (Framing::JOINED, 4),
    (Framing::SPLIT_HEADER, 6),
    (Framing::SHREDDED, 26),
    (Framing { indirect_after: Some(1), ..Framing::CLASSIC }, 2),
];

/// A stop suspends, and cancels at once.
const POLICY: SuspendPolicy =
    SuspendPolicy { grace: Duration::from_millis(0), dialect: Dialect::QEMU_11_1 };

fn config() -> DeviceConfig {
    let mut config = DeviceConfig::with_capacity(SECTORS * 512);
    config.packed = true;
    config.serial = *b"agreement-of-formats";
    config
}

/// What a request left behind: name, status, length, and its buffers.
type Verdict = (u64, BlkStatus, u32, Vec<u8>);

/// One format's back-end, guest and disk.
struct World {
    rig: Rig,
    driver: BlkDriver,
    layout: RingLayout,
    packed: bool,
    event_idx: bool,
    /// What was said or heard last.
    base: u32,
    /// Data of every request under way.
    lens: Vec<(u64, u32)>,
}

impl World {
    fn new(packed: bool, size: u16, start: u16, event_idx: bool) -> Self {
        let rig = Rig::with(config(), Some(POLICY));
        let features = RingFeatures { event_idx, indirect: true, packed };
        let layout;
        let ring: DriverRing;
        let base;
        if packed {
            layout = RingLayout::contiguous_packed(size, RING).unwrap();
            let at = PackedPosition::from_word(start);
            let at = PackedPosition { index: at.index % size, ..at };
            let mut new = PackedDriver::start_at(&rig.guest, layout, features, at).unwrap();
            let ids: Vec<u16> = (0..size).map(|i| i.wrapping_mul(5).wrapping_add(start)).collect();
            new.use_ids(&ids).unwrap();
            ring = new.into();
            base = u32::from(at.word()) * 0x1_0001;
        } else {
            layout = RingLayout::contiguous(size, RING).unwrap();
            ring = DriverRing::start(&rig.guest, layout, features).unwrap();
            base = 0;
        }
        let driver = BlkDriver::over(ring);
        let mut world = Self { rig, driver, layout, packed, event_idx, base, lens: Vec::new() };
        world.connect();
        world.rig.get_inflight(1, REGION);
        world.start();
        world
    }

    fn connect(&mut self) {
        // Whether a guest is new, and its cache on, is told from where its ring
        // begins, which is not the same place in both formats.
        let mut features = (FEATURES | virtio::RING_PACKED) & !virtio::BLK_CONFIG_WCE;
        if !self.packed {
            features &= !virtio::RING_PACKED;
        }
        if !self.event_idx {
            features &= !virtio::EVENT_IDX;
        }
        self.rig.negotiate(features);
        self.rig.add_memory();
    }

    fn start(&mut self) {
        let state = |num| VringState { index: 0, num };
        self.rig.set_inflight();
        self.rig.ok(R::SetVringNum(state(self.layout.size.into())));
        self.rig.ok(R::SetVringBase(state(self.base)));
        self.rig.ok(R::SetVringAddr(VringAddr {
            index: 0,
            flags: 0,
            desc: USER_BASE + self.layout.desc,
            used: USER_BASE + self.layout.used,
            avail: USER_BASE + self.layout.avail,
            log: 0,
        }));
        for message in [R::SetVringCall, R::SetVringErr, R::SetVringKick] {
            let handle = self.rig.handle();
            self.rig.ok(message(VringFile { index: 0, handle: Some(handle) }));
        }
        self.rig.ok(R::SetVringEnable(state(1)));
        self.settle();
    }

    /// Whatever is due at once.
    fn settle(&mut self) {
        while let Some((at, _)) = self.rig.backend.poll_timeout()
            && at <= self.rig.now
        {
            self.rig.input(Input::Timeout);
        }
    }

    fn crash(&mut self) {
        self.replace();
        if !self.packed {
            // As QEMU has it. Of a packed ring it says what it said last.
            self.base = self.layout.load_used_idx(&self.rig.guest).unwrap().into();
        }
        self.start();
    }

    /// Another back-end in the place of the one there was.
    fn replace(&mut self) {
        self.rig.backend = Backend::with_suspend(config(), POLICY).unwrap();
        self.rig.live.clear();
        self.rig.at_disk.clear();
        self.rig.store = false;
        self.rig.input(Input::Connected);
        self.connect();
    }

    fn restart(&mut self) {
        self.finish_all();
        self.stop(0);
        self.start();
    }

    fn move_on(&mut self, finish: usize) {
        self.stop(finish);
        self.replace();
        self.start();
    }

    /// Stop, with so many requests done after all.
    fn stop(&mut self, finish: usize) {
        let state = VringState { index: 0, num: 0 };
        self.rig.ok(R::SetVringEnable(state));
        self.rig.cancelled.clear();
        self.rig.send(R::GetVringBase(state), false);
        self.settle();
        let asked = std::mem::take(&mut self.rig.cancelled);
        let held = std::mem::take(&mut self.rig.at_disk);
        assert_eq!(asked.len(), held.len(), "everything is to be cancelled");
        assert!(asked.iter().all(|id| held.contains(id)));
        let (done, left) = held.split_at(finish.min(held.len()));
        let mut answers: Vec<Completion> = done.iter().map(|id| self.rig.execute(*id)).collect();
        let cancelled = |&id| Completion { id, result: Err(DiskError::Cancelled) };
        answers.extend(left.iter().map(cancelled));
        if !answers.is_empty() {
            self.rig.input(Input::DiskDone(&answers));
        }
        match self.rig.replies.last().map(|reply| &reply.body) {
            Some(FrontendReplyBody::VringState(state)) => self.base = state.num,
            other => panic!("{other:?}"),
        }
    }

    fn finish_all(&mut self) {
        while !self.rig.at_disk.is_empty() {
            self.rig.finish_all();
            self.settle();
        }
    }

    fn submit(&mut self, what: What, sector: u64, bytes: u32, framing: &Framing, token: u64) {
        let base = slot_base(token % DEPTH);
        let range = [RangeSegment { sector, num_sectors: bytes / 512, flags: 0 }];
        let (op, len) = match what {
            What::In => (BlkOp::In { sector }, bytes),
            What::Out => (BlkOp::Out { sector }, bytes),
            What::Flush => (BlkOp::Flush, 0),
            What::Id => (BlkOp::GetId, 20),
            What::Discard => (BlkOp::Discard(&range), 16),
            What::Zeroes => (BlkOp::WriteZeroes(&range), 16),
            What::Unknown => (BlkOp::Other { kind: 99, sector, writable: true }, bytes),
        };
        let pattern: Vec<u8> = (0..len).map(|i| (u64::from(i / 7) + token * 31) as u8).collect();
        // Two pieces, the first one right behind the header.
        let first = len.min(500);
        let mut data = vec![Span { addr: base + 16, len: first }];
        data.push(Span { addr: base + 0x1000, len: len - first });
        data.retain(|span| span.len > 0);
        self.rig.guest.write_slice(&pattern[..first as usize], GuestAddress(base + 16)).unwrap();
        self.rig
            .guest
            .write_slice(&pattern[first as usize..], GuestAddress(base + 0x1000))
            .unwrap();
        let buffers = RequestBuffers {
            header: base,
            data: &data,
            status: base + 0x1800,
            table: Some(base + 0x2000),
        };
        let request = BlkRequest { op, token };
        self.driver.submit(&self.rig.guest, &request, &buffers, framing).unwrap();
        self.lens.push((token, len));
    }

    fn kick(&mut self) {
        self.driver.publish(&self.rig.guest).unwrap();
        if self.driver.kick_needed(&self.rig.guest).unwrap() {
            self.rig.kick(0);
            self.settle();
        }
    }

    fn finish(&mut self, picks: &[(usize, bool)]) {
        let mut done = Vec::new();
        for (pick, fails) in picks {
            let held = self.rig.at_disk.len();
            if held == 0 {
                break;
            }
            let id = self.rig.at_disk.remove(pick % held);
            done.push(if *fails {
                Completion { id, result: Err(DiskError::Os(5)) }
            } else {
                self.rig.execute(id)
            });
        }
        self.rig.input(Input::DiskDone(&done));
        self.settle();
    }

    fn execute(&mut self, pick: usize) {
        if let Some(id) = self.rig.at_disk.get(pick % self.rig.at_disk.len().max(1)) {
            self.rig.execute(*id);
        }
    }

    /// What is at the disk, in order.
    fn disk_requests(&self) -> Vec<(DiskOp, Vec<(u64, u32)>)> {
        let view = |id| {
            let request = self.rig.backend.request(id).expect("a request in flight");
            let segments = request.segments.iter().map(|s| (s.addr, s.len)).collect();
            (request.op, segments)
        };
        self.rig.at_disk.iter().map(|id| view(*id)).collect()
    }

    fn reap(&mut self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        while let Some(done) = self.driver.reap(&self.rig.guest).unwrap() {
            let at = self.lens.iter().position(|(token, _)| *token == done.token);
            let (token, len) = self.lens.remove(at.expect("it is under way"));
            let mut bytes = vec![0; len as usize];
            let (first, second) = bytes.split_at_mut(len.min(500) as usize);
            let base = slot_base(token % DEPTH);
            self.rig.guest.read_slice(first, GuestAddress(base + 16)).unwrap();
            self.rig.guest.read_slice(second, GuestAddress(base + 0x1000)).unwrap();
            verdicts.push((token, done.status, done.len, bytes));
        }
        verdicts
    }
}

/// What the cases came to, so that nothing can agree by doing nothing.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    ok: u64,
    /// Of both worlds together, as is what follows.
    crashes: u64,
    held_at_crash: u64,
    moves: u64,
    held_at_move: u64,
}

impl Seen {
    fn count(&mut self, verdicts: &[Verdict]) {
        self.requests += verdicts.len() as u64;
        self.ok += verdicts.iter().filter(|v| v.1 == BlkStatus::Ok).count() as u64;
    }
}

type Case = (u16, u16, u16, bool, Vec<Step>);

fn agree(
    (split_size, packed_size, start, event_idx, steps): Case,
    seen: &mut Seen,
) -> Result<(), TestCaseError> {
    let mut worlds = [
        World::new(false, split_size, 0, event_idx),
        World::new(true, packed_size, start, event_idx),
    ];
    let mut token = 0;
    let steps = steps.into_iter().chain([Step::Kick, Step::Finish(vec![]), Step::Reap]);
    for step in steps {
        if let Step::Submit(what, sector, bytes, framing) = step {
            let (framing, most) = FRAMINGS[framing];
            let free = |w: &World| w.driver.ring().free_descriptors() >= most;
            // A place in guest memory is free when its last request is reaped.
            let place = |w: &World| w.lens.iter().all(|(t, _)| t % DEPTH != token % DEPTH);
            if worlds.iter().all(|w| free(w) && place(w)) {
                for world in &mut worlds {
                    world.submit(what, sector, bytes, &framing, token);
                }
                token += 1;
            }
            continue;
        }
        for world in &mut worlds {
            match &step {
                Step::Submit(..) | Step::Reap => {}
                Step::Kick => world.kick(),
                Step::Finish(picks) if picks.is_empty() => world.finish_all(),
                Step::Finish(picks) => world.finish(picks),
                Step::Execute(pick) => world.execute(*pick),
                Step::Crash => {
                    seen.held_at_crash += world.rig.at_disk.len() as u64;
                    seen.crashes += 1;
                    world.crash();
                }
                Step::Restart => world.restart(),
                Step::Move(finish) => {
                    let left = world.rig.at_disk.len().saturating_sub(*finish);
                    seen.held_at_move += left as u64;
                    seen.moves += 1;
                    world.move_on(*finish);
                    prop_assert!(world.rig.at_disk.len() >= left, "resubmitted at once");
                }
            }
        }
        let [split, packed] = &mut worlds;
        prop_assert_eq!(split.disk_requests(), packed.disk_requests());
        if matches!(step, Step::Reap) {
            let (a, b) = (split.reap(), packed.reap());
            prop_assert_eq!(&a, &b);
            seen.count(&a);
        }
    }
    let [split, packed] = &worlds;
    prop_assert!(split.lens.is_empty(), "{:?} are not completed", split.lens);
    prop_assert!(packed.lens.is_empty(), "{:?} are not completed", packed.lens);
    prop_assert!(split.rig.disk == packed.rig.disk, "the disks differ");
    prop_assert!(GUEST_BYTES > slot_base(DEPTH));
    Ok(())
}

#[test]
fn split_and_packed_agree_on_verdicts_and_disk() {
    let case = (
        (3u32..=5).prop_map(|p| 1u16 << p),
        8u16..=40,
        any::<u16>(),
        any::<bool>(),
        prop::collection::vec(step(), 1..30),
    );
    // The default generator takes a quarter of the time without optimization.
    let config = ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::XorShift,
        ..Default::default()
    };
    let seen = RefCell::new(Seen::default());
    let agreed = TestRunner::new(config).run(&case, |case| agree(case, &mut seen.borrow_mut()));
    if let Err(error) = agreed {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    println!("10000 workloads on both formats, each: {seen:?}");
    assert!(seen.ok > 20_000 && seen.requests - seen.ok > 2_000, "{seen:?}");
    assert!(seen.crashes > 5_000 && seen.held_at_crash > 2_000, "{seen:?}");
    assert!(seen.moves > 5_000 && seen.held_at_move > 1_000, "{seen:?}");
}
