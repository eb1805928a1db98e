//! Mapping, unmapping and I/O at the same time, in any order, with crashes and
//! stops in between: no request is lost, and nothing is touched that was not
//! mapped at the time. The second is held after every step by the rig.

#![allow(clippy::disallowed_types)]

mod common;
mod iotlb_rig;

use iotlb_rig::*;
use midflight::backend::{Input, UPDATE_GRACE};
use midflight::driver::{BlkDriver, BlkOp, BlkStatus, Framing};
use midflight::wire::FrontendReplyBody;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const SLOTS: u64 = 8;
const LEN: usize = 4096;

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The guest maps a slot and puts a request into the ring; of some a page of
    /// data is left out.
    Submit { slot: u64, write: bool, hole: bool, framing: usize },
    /// The front-end answers the next question, or says more than was asked.
    Serve,
    /// It says that there was an update, and there was none.
    Lie,
    /// It tells a page unasked.
    Push { page: u64 },
    /// The disk finishes its n-th request.
    Finish { nth: usize },
    /// The guest looks at the used ring, and unmaps what is done.
    Reap,
    /// Some translations are taken back; the guest's tables stay.
    Flush { page: u64, pages: u64 },
    /// All are, with the ring's.
    FlushAll,
    /// The vring is stopped and started.
    Restart,
    /// The back-end dies and the next takes over.
    Crash,
    /// Time passes.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..SLOTS, any::<bool>(), 0u8..5, 0usize..4).prop_map(|(slot, write, hole, framing)| {
            Step::Submit { slot, write, hole: hole == 0, framing }
        }),
        12 => Just(Step::Serve),
        1 => Just(Step::Lie),
        2 => (0..SLOTS * 8).prop_map(|page| Step::Push { page }),
        6 => (0usize..4).prop_map(|nth| Step::Finish { nth }),
        4 => Just(Step::Reap),
        3 => (0..SLOTS * 8, 1u64..20).prop_map(|(page, pages)| Step::Flush { page, pages }),
        1 => Just(Step::FlushAll),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => Just(Step::Wait),
    ]
}

#[derive(Clone, Copy, Debug)]
struct Job {
    write: bool,
    hole: bool,
    seed: u64,
}

struct World {
    p: Platform,
    driver: BlkDriver,
    jobs: Vec<Option<Job>>,
    /// What each slot's sectors should hold; `None`: a write failed half way.
    disk: Vec<Option<Vec<u8>>>,
    next_seed: u64,
    /// A page may be refused for other reasons than a hole.
    lied: bool,
    done: u64,
    /// What the last stop was answered with.
    base: u32,
}

fn pattern(seed: u64) -> Vec<u8> {
    (0..LEN as u64).map(|i| (i * 7 + i / 251 + seed * 37) as u8).collect()
}

impl World {
    fn new(packed: bool) -> Self {
        let (p, driver) = Platform::running(packed);
        let slots = SLOTS as usize;
        Self {
            p,
            driver,
            jobs: vec![None; slots],
            disk: vec![Some(vec![0; LEN]); slots],
            next_seed: 1,
            lied: false,
            done: 0,
            base: if packed { 0x8000_8000 } else { 0 },
        }
    }

    fn data_at(slot: u64) -> GuestAddress {
        GuestAddress(slot_at(slot) + PAGE - 100)
    }

    fn submit(&mut self, slot: u64, write: bool, hole: bool, framing: usize) {
        const FRAMINGS: [Framing; 4] =
            [Framing::CLASSIC, Framing::INDIRECT, Framing::SPLIT_HEADER, Framing::JOINED];
        if self.jobs[slot as usize].is_some() {
            return;
        }
        let seed = self.next_seed;
        self.next_seed += 1;
        let p = &mut self.p;
        p.view().write_slice(&pattern(seed), Self::data_at(slot)).unwrap();
        p.map_slot(slot);
        if hole {
            p.tables.unmap(slot_at(slot) + PAGE, 1);
        }
        let sector = slot * LEN as u64 / 512;
        let op = if write { BlkOp::Out { sector } } else { BlkOp::In { sector } };
        p.submit(&mut self.driver, slot, op, LEN as u32, &FRAMINGS[framing]);
        self.jobs[slot as usize] = Some(Job { write, hole, seed });
    }

    fn finish(&mut self, nth: usize) {
        let count = self.p.rig.at_disk.len();
        if count > 0 {
            let id = self.p.rig.at_disk[nth % count];
            self.p.finish(id);
        }
    }

    /// The guest sees what is done, checks it, and unmaps its buffers.
    fn reap(&mut self) {
        while let Some(done) = self.driver.reap(&self.p.view()).unwrap() {
            let slot = done.token;
            let job = self.jobs[slot as usize].take().expect("completed twice");
            self.done += 1;
            if done.status == BlkStatus::Ok {
                assert!(!job.hole, "slot {slot} succeeded with a page that was never mapped");
            } else {
                assert!(job.hole || self.lied, "slot {slot} failed: {job:?}");
            }
            let mut data = vec![0; LEN];
            self.p.view().read_slice(&mut data, Self::data_at(slot)).unwrap();
            match (done.status, job.write) {
                (BlkStatus::Ok, true) => self.disk[slot as usize] = Some(pattern(job.seed)),
                (BlkStatus::Ok, false) => {
                    let expected = self.disk[slot as usize].as_ref();
                    assert!(expected.is_none_or(|e| *e == data), "slot {slot} reads wrong");
                }
                (_, true) => {}
                // What was refused was not touched.
                (_, false) => assert!(data == pattern(job.seed), "slot {slot} was touched"),
            }
            self.p.tables.unmap(slot_at(slot), SLOT);
            self.invalidate(slot_at(slot), SLOT);
        }
    }

    /// The front-end does nothing else until it has the answer; the disk does.
    fn invalidate(&mut self, iova: u64, size: u64) {
        let replies = self.p.rig.replies.len();
        if self.p.invalidate(iova, size) {
            return;
        }
        while self.p.rig.replies.len() == replies {
            assert!(!self.p.rig.at_disk.is_empty(), "an invalidation waits for nothing");
            self.finish(0);
        }
        assert_eq!(self.p.rig.replies[replies].body, FrontendReplyBody::U64(0));
        self.p.forgotten(iova, size);
    }

    fn stop(&mut self) -> u32 {
        let replies = self.p.rig.replies.len();
        let mut base = self.p.stop();
        while base.is_none() {
            assert!(!self.p.rig.at_disk.is_empty(), "a stop waits for nothing");
            self.finish(0);
            base = self.p.rig.replies.get(replies).map(|reply| match reply.body {
                FrontendReplyBody::VringState(state) => state.num,
                ref other => panic!("{other:?}"),
            });
        }
        base.unwrap()
    }

    fn crash(&mut self) {
        self.p.rig.input(Input::PeerClosed);
        // What the disk still has was cut off from its vring; it ends before
        // the next front-end is accepted.
        self.p.finish_all();
        self.p.granted.clear();
        self.p.seen = self.p.rig.asked.len();
        self.p.rig.input(Input::Connected);
        self.p.set_up();
        self.p.rig.set_inflight();
        // A packed ring's is not in its memory: front-ends say what they heard
        // last, and the region knows better.
        let base = match self.p.packed {
            false => self.p.layout().load_used_idx(&self.p.view()).unwrap().into(),
            true => self.base,
        };
        self.p.start(base);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit { slot, write, hole, framing } => self.submit(slot, write, hole, framing),
            Step::Serve => {
                self.p.serve_one();
            }
            Step::Lie => {
                if let Some((request, iotlb)) = self.p.asked() {
                    // Not about the ring or an indirect table, which would be
                    // the end of the ring.
                    let page = iotlb.iova.checked_sub(slot_at(0)).map(|at| at % SLOT / PAGE);
                    if iotlb.kind == 1 && iotlb.perm == READ && page.is_some_and(|p| p < 5) {
                        self.lied = true;
                        self.p.checked(|p| p.rig.answer(&request, 0));
                    } else {
                        self.p.seen -= 1;
                    }
                }
            }
            Step::Push { page } => {
                let page = slot_at(0) / PAGE + page;
                if self.p.tables.0.contains_key(&page) {
                    self.p.tell(page);
                }
            }
            Step::Finish { nth } => self.finish(nth),
            Step::Reap => self.reap(),
            Step::Flush { page, pages } => self.invalidate(slot_at(0) + page * PAGE, pages * PAGE),
            Step::FlushAll => self.invalidate(0, u64::MAX),
            Step::Restart => {
                self.base = self.stop();
                self.p.start(self.base);
            }
            Step::Crash => self.crash(),
            Step::Wait => self.wait(),
        }
        assert_eq!(self.p.rig.closed, None);
        assert!(self.p.rig.errs.is_empty(), "{:?}", self.p.rig.events.last());
    }

    fn wait(&mut self) {
        self.p.rig.now = self.p.rig.now + UPDATE_GRACE;
        self.p.checked(|p| p.rig.input(Input::Timeout));
    }

    /// Everybody does his part now.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.p.serve();
            self.p.finish_all();
            self.wait();
            self.reap();
            if self.jobs.iter().all(Option::is_none) {
                return;
            }
        }
        panic!("lost: {:?}", self.jobs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn iotlb_no_request_is_lost_and_nothing_touched_that_is_not_mapped(
        steps in proptest::collection::vec(step(), 1..120),
        packed in any::<bool>(),
    ) {
        let mut world = World::new(packed);
        let submitted = |w: &World| w.next_seed - 1;
        for step in steps {
            world.step(step);
        }
        world.settle();
        assert_eq!(world.done, submitted(&world));
    }
}
