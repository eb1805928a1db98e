//! The inflight region alone, killed between any two stores, against a model
//! that knows only what was fetched and what was published.
//!
//! ```text
//! fetch h      F2 counter   F4 flag
//! batch [h…]   C1 next  C3 last_batch_head  (for each)   C4 used.idx
//!              C5 flag   (for each)                       C6 used_idx
//! ```
//! After k stores the model says: a head is in flight if its F4 is among the
//! first k and its C4 is not. Recovery must say the same, in fetch order, also
//! when it is itself killed at any of its stores and done again.

use midflight::inflight::{Recovery, RegionShape, RingState, SplitRegion, region_size};
use midflight::wire::InflightDescription;
use midflight_sim::memory::{Arena, Mem};
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

const RING: u16 = 8;
/// Where the ring's used index stands in for the whole used ring.
const USED: GuestAddress = GuestAddress(0x10000);

/// What a back-end does: fetch some heads, or publish some of them as a batch.
#[derive(Clone, Debug)]
enum Step {
    Fetch(u8),
    /// Publish at most this many, starting from the n-th in flight.
    Publish(u8, u8),
}

struct World {
    arena: Arena,
    mem: Mem,
    shape: RegionShape,
}

impl World {
    /// A fresh region on a ring whose used index is `used`.
    fn new(used: u16) -> Self {
        let mut arena = Arena::new();
        let size = region_size(1, RING);
        let region = arena.region(0x10000);
        let ring = arena.region(0x1000);
        let mem = arena.view(&[(0, region), (USED.0, ring)]);
        let description = InflightDescription {
            mmap_size: size,
            mmap_offset: 0,
            num_queues: 1,
            queue_size: RING,
        };
        let shape = RegionShape::new(&description).unwrap();
        let world = Self { arena, mem, shape };
        world.set_used(used);
        world
    }

    fn set_used(&self, used: u16) {
        self.mem.store(used, USED, Ordering::Release).unwrap();
    }

    fn used(&self) -> u16 {
        self.mem.load(USED, Ordering::Acquire).unwrap()
    }

    /// Everything that can be in flight was made available.
    fn ring(&self) -> RingState {
        let used_idx = self.used();
        RingState { size: RING, used_idx, avail_idx: used_idx.wrapping_add(RING) }
    }

    fn attach(&self) -> (SplitRegion, Recovery) {
        SplitRegion::attach(&self.mem, &self.shape, 0, self.ring()).unwrap()
    }

    /// What a successor is told, without any store of its attempt surviving.
    fn recovered(&self) -> Vec<u16> {
        self.arena.begin_step();
        let (_, recovery) = self.attach();
        self.arena.end_step();
        self.arena.crash(0, 0);
        recovery.resubmit
    }
}

/// Number of stores after which something is true, and what.
#[derive(Clone, Debug)]
enum Fact {
    Fetched(u64, u16),
    Published(u64, Vec<u16>),
}

/// Run a script as one long step; what becomes true when.
fn run(world: &World, script: &[Step]) -> Vec<Fact> {
    let mut facts = Vec::new();
    let (mut region, recovery) = world.attach();
    assert_eq!(recovery, Recovery { resubmit: vec![], fresh: true });
    let mut live: Vec<u16> = Vec::new();
    // Attaching is no part of the story that is cut.
    world.arena.begin_step();
    for step in script {
        match *step {
            Step::Fetch(pick) => {
                let free: Vec<u16> = (0..RING).filter(|h| !live.contains(h)).collect();
                let Some(&head) = free.get(usize::from(pick) % free.len().max(1)) else { continue };
                region.submit(&world.mem, head).unwrap();
                live.push(head);
                facts.push(Fact::Fetched(world.arena.step_len(), head));
            }
            Step::Publish(from, count) => {
                if live.is_empty() {
                    continue;
                }
                let at = usize::from(from) % live.len();
                let end = (at + usize::from(count)).min(live.len());
                let batch: Vec<u16> = live.drain(at..end).collect();
                if batch.is_empty() {
                    continue;
                }
                for head in &batch {
                    region.link(&world.mem, *head).unwrap();
                }
                let used = world.used().wrapping_add(batch.len() as u16);
                world.set_used(used);
                facts.push(Fact::Published(world.arena.step_len(), batch.clone()));
                for head in &batch {
                    region.retire(&world.mem, *head).unwrap();
                }
                region.close(&world.mem, used).unwrap();
            }
        }
    }
    world.arena.end_step();
    facts
}

/// What the model says is in flight after `k` stores, in fetch order.
fn in_flight(facts: &[Fact], k: u64) -> Vec<u16> {
    let mut live = Vec::new();
    for fact in facts {
        match fact {
            Fact::Fetched(at, head) if *at <= k => live.push(*head),
            Fact::Published(at, batch) if *at <= k => live.retain(|h| !batch.contains(h)),
            _ => {}
        }
    }
    live
}

/// Kill at every store of the script, and at every store of the recovery
/// after it; the number of kills.
fn kill_everywhere(used: u16, script: &[Step]) -> u64 {
    let mut kills = 0;
    let total = {
        let world = World::new(used);
        run(&world, script);
        world.arena.step_len()
    };
    for k in 0..=total {
        let world = World::new(used);
        let facts = run(&world, script);
        world.arena.crash(k, 0);
        kills += 1;
        let expected = in_flight(&facts, k);
        assert_eq!(world.recovered(), expected, "killed after {k} of {total} stores");

        // Recovery itself, killed after each of its stores.
        world.arena.begin_step();
        world.attach();
        world.arena.end_step();
        let stores = world.arena.step_len();
        world.arena.crash(0, 0);
        for j in 0..=stores {
            world.arena.begin_step();
            world.attach();
            world.arena.end_step();
            world.arena.crash(j, 0);
            kills += 1;
            assert_eq!(world.recovered(), expected, "recovery killed after {j} of {stores} stores");
        }
    }
    kills
}

#[test]
fn inflight_kill_at_every_store_of_a_batch_of_three_completes_each_once() {
    let script = [
        Step::Fetch(3),
        Step::Fetch(0),
        Step::Publish(1, 1),
        Step::Fetch(5),
        Step::Fetch(1),
        Step::Publish(0, 3),
        Step::Fetch(0),
        Step::Publish(0, 2),
    ];
    for used in [0, 3, 65534] {
        let kills = kill_everywhere(used, &script);
        println!("used index {used}: {kills} kills, all recovered");
        assert!(kills > 100);
    }
}

#[test]
fn inflight_fresh_region_on_a_used_ring_keeps_request_zero() {
    // The first request has head 0 and the crash comes before any completion:
    // a region that says used_idx 0 would take head 0 for a published batch.
    let world = World::new(7);
    let (mut region, _) = world.attach();
    region.submit(&world.mem, 0).unwrap();
    assert_eq!(world.recovered(), [0]);
}

#[test]
fn inflight_counters_go_on_after_recovery() {
    let world = World::new(0);
    let (mut region, _) = world.attach();
    region.submit(&world.mem, 5).unwrap();
    region.submit(&world.mem, 2).unwrap();
    let (mut region, recovery) = world.attach();
    assert_eq!(recovery.resubmit, [5, 2]);
    // A request fetched by the successor comes after what it took over.
    region.submit(&world.mem, 0).unwrap();
    assert_eq!(world.recovered(), [5, 2, 0]);
}

#[test]
fn inflight_region_with_impossible_contents_is_refused_and_not_touched() {
    type Poke = (u64, u16);
    let cases: [(Poke, &str); 5] = [
        ((8, 2), "inflight region of vring 0 has version 2, expected 0 or 1"),
        ((10, 9), "inflight region of vring 0 has desc_num 9, expected 8"),
        (
            (14, 100),
            "inflight region of vring 0 has used_idx 100, the ring 5: 65441 apart, expected at most 8",
        ),
        ((12, 8), "inflight region of vring 0 links head 8, expected less than 8"),
        ((16 + 16 * 3, 7), "inflight region of vring 0 has inflight 7 at head 3, expected 0 or 1"),
    ];
    for ((offset, value), text) in cases {
        let world = World::new(4);
        let (mut region, _) = world.attach();
        region.submit(&world.mem, 1).unwrap();
        world.set_used(5);
        world.mem.store(value, GuestAddress(offset), Ordering::Release).unwrap();
        world.arena.begin_step();
        let refused = SplitRegion::attach(&world.mem, &world.shape, 0, world.ring()).unwrap_err();
        world.arena.end_step();
        assert_eq!(refused.to_string(), text);
        assert_eq!(world.arena.step_len(), 0, "stored into a refused region");
    }
}

#[test]
fn inflight_ring_larger_than_its_region_or_without_a_part_is_refused() {
    let world = World::new(0);
    let text = |vring, size| {
        let ring = RingState { size, ..world.ring() };
        let refused = SplitRegion::attach(&world.mem, &world.shape, vring, ring);
        refused.unwrap_err().to_string()
    };
    assert_eq!(text(0, 16), "vring 0 has size 16, its inflight region has 8 entries");
    assert_eq!(text(1, 8), "vring 1 has no part in the inflight region, which is for 1 queues");
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<u8>().prop_map(Step::Fetch),
        2 => (any::<u8>(), 1u8..5).prop_map(|(from, count)| Step::Publish(from, count)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn inflight_kill_at_every_store_of_any_script_completes_each_once(
        used in any::<u16>(),
        script in proptest::collection::vec(step(), 1..16),
    ) {
        kill_everywhere(used, &script);
    }
}
