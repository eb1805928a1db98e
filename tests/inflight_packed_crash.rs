//! The inflight region of a packed vring with its ring and a driver, killed
//! between any two stores.
//!
//! ```text
//! fetch s      F2 addr, desc (each entry), counter   F3 state   F4 free heads
//! batch [s…]   C1 next  C2 free_head  C3 used (for each)   C4 used descriptors, first one last
//!              C5 flag  (for each)                          C6 free heads   C7 used
//! ```
//! A chain is in flight once its F4 is stored, and no longer once its C4 is.
//! Recovery must say the same, in fetch order, also when it is itself killed at
//! any of its stores and done again. Then the successor finishes everything,
//! one chain at a time and in another order, and the driver must see every
//! chain come back once.

use midflight::driver::{Buffer, PackedDriver, PackedPosition, RingFeatures, RingLayout};
use midflight::inflight::{PackedRegion, RegionShape, region_size_of};
use midflight::vring::chain::Chain;
use midflight::vring::packed::{PackedRing, Positions};
use midflight::vring::{RingAddresses, RingFormat, Used};
use midflight::wire::InflightDescription;
use midflight_sim::memory::{Arena, Mem};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

/// Where guest memory begins; the region is at 0.
const GUEST: u64 = 0x10000;

/// What happens; only fetching and publishing are the device's.
#[derive(Clone, Debug)]
enum Step {
    /// The driver makes a chain of so many descriptors available, as far as
    /// there is room.
    Offer(u16),
    Fetch,
    /// Publish at most so many, starting from the n-th in flight.
    Publish(u8, u8),
    /// The driver takes what has been used.
    Reap,
}

use Step::{Fetch, Offer, Publish, Reap};

struct World {
    arena: Arena,
    mem: Mem,
    shape: RegionShape,
    driver: PackedDriver,
    ring: PackedRing,
    region: PackedRegion,
    /// Slots and buffer ids, in fetch order.
    live: Vec<(u16, u16)>,
    /// Ids that are out and not fetched, in order.
    offered: Vec<u16>,
    /// Ids that were published and not reaped, in order.
    published: Vec<u16>,
}

fn addresses(layout: &RingLayout) -> RingAddresses {
    RingAddresses { desc: layout.desc, avail: layout.avail, used: layout.used }
}

impl World {
    /// A fresh region of `entries` and a ring of `size` that goes on at `at`.
    fn new(size: u16, entries: u16, at: PackedPosition) -> Self {
        let mut arena = Arena::new();
        let region = arena.region(0x10000);
        let guest = arena.region(0x10000);
        let mem = arena.view(&[(0, region), (GUEST, guest)]);
        let description = InflightDescription {
            mmap_size: region_size_of(RingFormat::Packed, 1, entries),
            mmap_offset: 0,
            num_queues: 1,
            queue_size: entries,
        };
        let shape = RegionShape::of(RingFormat::Packed, &description).unwrap();
        let layout = RingLayout::contiguous_packed(size, GUEST).unwrap();
        let features = RingFeatures { event_idx: true, indirect: true, packed: true };
        let driver = PackedDriver::start_at(&mem, layout, features, at).unwrap();
        let at = u32::from(at.index) | u32::from(at.wrap) << 15;
        let positions = Positions::from_base(at | at << 16);
        let ring = PackedRing::new(&mem, size, addresses(&layout), true, positions).unwrap();
        let (region, ring) = attach(&mem, &shape, ring);
        let (live, offered, published) = Default::default();
        Self { arena, mem, shape, driver, ring, region, live, offered, published }
    }

    /// A ring as a successor finds it, which has a base that helps nobody.
    fn stale_ring(&self) -> PackedRing {
        let at = addresses(self.driver.layout());
        let size = self.driver.layout().size;
        PackedRing::new(&self.mem, size, at, true, Positions::START).unwrap()
    }

    /// Slots and ids that a successor resubmits; what it stored is kept or not.
    fn recover(&self, keep: u64) -> (Vec<(u16, u16)>, u64) {
        let mut ring = self.stale_ring();
        self.arena.begin_step();
        let (_, recovery) =
            PackedRegion::attach(&self.mem, &self.shape, 0, &self.mem, &mut ring).unwrap();
        self.arena.end_step();
        let stores = self.arena.step_len();
        self.arena.crash(keep.min(stores), 0);
        assert!(!recovery.fresh);
        let named = |slot: u16| (slot, ring.table().chain(slot).id);
        (recovery.resubmit.into_iter().map(named).collect(), stores)
    }

    fn fetch(&mut self) {
        let Some(slot) = self.ring.pop(&self.mem).unwrap() else {
            assert!(self.offered.is_empty());
            return;
        };
        self.region.submit(&self.mem, self.ring.table(), slot).unwrap();
        let id = self.offered.remove(0);
        assert_eq!(self.ring.table().chain(slot).id, id);
        self.live.push((slot, id));
    }

    /// Publish a part of what is in flight; the number of stores until it is.
    fn publish(&mut self, from: usize, count: usize) -> Option<u64> {
        let end = (from + count).min(self.live.len());
        let batch: Vec<(u16, u16)> = self.live.drain(from..end).collect();
        if batch.is_empty() {
            return None;
        }
        for (slot, _) in &batch {
            self.region.link(&self.mem, self.ring.table(), *slot).unwrap();
        }
        let used: Vec<Used> = batch.iter().map(|(head, _)| Used { head: *head, len: 1 }).collect();
        self.ring.publish(&self.mem, &used, no_log(&self.mem)).unwrap();
        let at = self.arena.step_len();
        for (slot, _) in &batch {
            self.region.retire(&self.mem, *slot).unwrap();
        }
        self.region.close(&self.mem).unwrap();
        self.published.extend(batch.iter().map(|(_, id)| id));
        Some(at)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Offer(len) => {
                let buffer = |i: u16| Buffer {
                    addr: GUEST + 0x8000 + 16 * u64::from(i),
                    len: 16,
                    writable: i + 1 == len,
                };
                let buffers: Vec<Buffer> = (0..len).map(buffer).collect();
                if let Ok(id) = self.driver.add_chain(&self.mem, &buffers, None) {
                    self.driver.publish(&self.mem).unwrap();
                    self.offered.push(id);
                }
            }
            Fetch => self.fetch(),
            Publish(from, count) if !self.live.is_empty() => {
                self.publish(usize::from(from) % self.live.len(), count.into());
            }
            Publish(..) => {}
            Reap => {
                for expected in std::mem::take(&mut self.published) {
                    let used = self.driver.reap(&self.mem).unwrap().expect("a used chain");
                    assert_eq!((used.head, used.len), (expected, 1));
                }
                assert_eq!(self.driver.reap(&self.mem).unwrap(), None);
            }
        }
    }

    /// A successor takes over for good, and finishes everything.
    fn finish(mut self, expected: &[(u16, u16)], published: &[u16]) {
        self.published = published.to_vec();
        self.live = expected.to_vec();
        let gone = |id: &u16| published.contains(id) || expected.iter().any(|(_, e)| e == id);
        self.offered.retain(|id| !gone(id));
        let ring = self.stale_ring();
        (self.region, self.ring) = attach(&self.mem, &self.shape, ring);
        // What was published is seen, and nothing else, however much a dead
        // batch had put into the ring.
        self.step(&Reap);
        let mut chain = Chain::default();
        while !self.live.is_empty() {
            let last = self.live.len() - 1;
            self.ring.walk(&self.mem, self.live[last].0, &mut chain).unwrap();
            let buffers = chain.readable.len() + chain.writable.len();
            assert_eq!(buffers, usize::from(self.ring.table().chain(self.live[last].0).num));
            assert_eq!(chain.writable[0].len, 16);
            self.publish(last, 1);
            self.step(&Reap);
        }
        while !self.offered.is_empty() {
            self.fetch();
            self.publish(0, 1);
        }
        self.step(&Reap);
        assert_eq!(self.driver.outstanding(), 0);
        assert_eq!(self.ring.table().free(), self.shape.queue_size);
        assert_eq!(self.ring.pop(&self.mem).unwrap(), None);
    }
}

fn attach(mem: &Mem, shape: &RegionShape, mut ring: PackedRing) -> (PackedRegion, PackedRing) {
    let (region, _) = PackedRegion::attach(mem, shape, 0, mem, &mut ring).unwrap();
    (region, ring)
}

/// A ring, its region, and where it begins.
#[derive(Clone, Copy, Debug)]
struct Setup {
    size: u16,
    entries: u16,
    at: PackedPosition,
}

impl Setup {
    /// The world just before the n-th step.
    fn before(&self, script: &[Step], n: usize) -> World {
        let mut world = World::new(self.size, self.entries, self.at);
        script[..n].iter().for_each(|step| world.step(step));
        world
    }
}

/// Kill at every store of every step of the device, and at every store of the
/// recovery after it; the number of kills.
fn kill_everywhere(setup: Setup, script: &[Step]) -> u64 {
    let mut kills = 0;
    for (n, step) in script.iter().enumerate() {
        if matches!(step, Offer(_) | Reap) {
            continue;
        }
        let mut k = 0;
        loop {
            let mut world = setup.before(script, n);
            let (live, published) = (world.live.clone(), world.published.clone());
            world.arena.begin_step();
            let done_at = match *step {
                Publish(from, count) if !live.is_empty() => {
                    world.publish(usize::from(from) % live.len(), count.into())
                }
                Publish(..) => None,
                _ => {
                    world.fetch();
                    Some(world.arena.step_len())
                }
            };
            world.arena.end_step();
            let total = world.arena.step_len();
            world.arena.crash(k, 0);
            kills += 1;
            // Before the store that does it, it is as if the step had not
            // begun; from it on, as if it was over.
            let done = done_at.is_some_and(|at| k >= at);
            let expected = if done { world.live.clone() } else { live };
            let published = if done { world.published.clone() } else { published };
            if !done && matches!(step, Fetch) {
                // The chain is still there to be fetched.
                world.offered = setup.before(script, n).offered;
            }
            let (found, stores) = world.recover(0);
            assert_eq!(found, expected, "{step:?} killed after {k} of {total} stores");
            for j in 0..=stores {
                world.recover(j);
                kills += 1;
                let (found, _) = world.recover(0);
                assert_eq!(found, expected, "{step:?} {k}: recovery killed after {j} of {stores}");
            }
            world.finish(&expected, &published);
            if k == total {
                break;
            }
            k += 1;
        }
    }
    kills
}

const SCRIPT: [Step; 22] = [
    Offer(1),
    Offer(3),
    Fetch,
    Fetch,
    Publish(1, 1),
    Offer(1),
    Reap,
    Offer(2),
    Fetch,
    Fetch,
    Publish(0, 3),
    Reap,
    Offer(2),
    Offer(3),
    Offer(2),
    Fetch,
    Fetch,
    Publish(1, 1),
    Reap,
    Fetch,
    Publish(0, 2),
    Reap,
];

#[test]
fn inflight_packed_kill_at_every_store_of_batches_and_chains_completes_each_once() {
    // Every place of the wrap boundary.
    let mut all = 0;
    for size in [7u16, 8] {
        for bits in (0..size).flat_map(|i| [i, i | 0x8000]) {
            let at = PackedPosition { index: bits & 0x7fff, wrap: bits & 0x8000 != 0 };
            all += kill_everywhere(Setup { size, entries: 8, at }, &SCRIPT);
        }
    }
    println!("{all} kills, all recovered");
    assert!(all > 10_000);
}

#[test]
fn inflight_packed_batch_over_the_whole_ring_is_told_by_its_wrap_counter() {
    let whole = [
        Offer(1),
        Offer(2),
        Offer(1),
        Fetch,
        Fetch,
        Fetch,
        Publish(0, 3),
        Reap,
        Offer(4),
        Fetch,
        Publish(0, 1),
    ];
    for index in 0..4 {
        let at = PackedPosition { index, wrap: true };
        kill_everywhere(Setup { size: 4, entries: 4, at }, &whole);
    }
}

#[test]
fn inflight_packed_dead_batch_is_not_seen_when_the_first_of_it_is_used_alone() {
    // The second used descriptor is in the ring already when the device dies;
    // the driver would come to it right after the first.
    let at = PackedPosition { index: 0, wrap: true };
    let mut world = World::new(4, 4, at);
    for step in [Offer(1), Offer(1), Fetch, Fetch] {
        world.step(&step);
    }
    let live = world.live.clone();
    world.arena.begin_step();
    let published = world.publish(0, 2).unwrap();
    world.arena.end_step();
    world.arena.crash(published - 1, 0);
    (world.live, world.published) = (live, vec![]);
    let ring = world.stale_ring();
    (world.region, world.ring) = attach(&world.mem, &world.shape, ring);
    world.publish(0, 1);
    world.step(&Reap);
    world.publish(0, 1);
    world.step(&Reap);
    assert_eq!(world.driver.outstanding(), 0);
}

#[test]
fn inflight_packed_region_with_impossible_contents_is_refused_and_not_touched() {
    let entry = |i: u64| 32 + 32 * i;
    let cases: [(u64, u16, &str); 13] = [
        (8, 2, "has version 2, expected 0 or 1"),
        (10, 9, "has desc_num 9, expected 8"),
        (16, 8, "has used_idx 8, expected less than 8"),
        (18, 900, "has old_used_idx 900, expected less than 8"),
        (20, 0x0102, "has used_idx 2, expected less than 2"),
        (16, 0, "has an open batch of 15 entries, expected at most 8"),
        (14, 5, "has 1 entries that are neither free nor in flight"),
        (entry(5) + 2, 4, "links entry 4 twice"),
        (entry(0), 7, "has inflight 7 at head 0, expected 0 or 1"),
        (entry(0) + 6, 9, "links entry 4 twice"),
        (entry(1) + 6, 2, "has a chain at 1 whose 2 entries do not end at 3"),
        (entry(1) + 4, 2, "has a chain at 1 whose 3 entries do not end at 2"),
        (entry(3) + 16, 7, "has buffer id 7 in flight twice"),
    ];
    for (offset, value, text) in cases {
        // In flight: entry 0, entries 1 to 3. One chain was used before.
        let mut world = World::new(8, 8, PackedPosition::START);
        for step in [Offer(1), Fetch, Publish(0, 1), Reap, Offer(1), Offer(3), Fetch, Fetch] {
            world.step(&step);
        }
        world.mem.store(value, GuestAddress(offset), Ordering::Release).unwrap();
        let mut ring = world.stale_ring();
        world.arena.begin_step();
        let refused = PackedRegion::attach(&world.mem, &world.shape, 0, &world.mem, &mut ring);
        world.arena.end_step();
        let refused = refused.map(drop).expect_err(text).to_string();
        assert!(refused.ends_with(text), "{refused}\nexpected {text}");
        assert_eq!(world.arena.step_len(), 0, "stored into a refused region");
    }
}

#[test]
fn inflight_packed_region_of_another_guests_ring_is_refused() {
    let mut world = World::new(8, 8, PackedPosition::START);
    for step in [Offer(1), Offer(2), Fetch, Fetch] {
        world.step(&step);
    }
    // The guest was started anew; nobody told the region.
    world.driver.reset(&world.mem).unwrap();
    let mut ring = world.stale_ring();
    let refused = PackedRegion::attach(&world.mem, &world.shape, 0, &world.mem, &mut ring);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "inflight region of vring 0 has chains in flight up to ring entry 0, which was not made available"
    );
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u16..5).prop_map(Offer),
        3 => Just(Fetch),
        3 => (any::<u8>(), 1u8..9).prop_map(|(from, count)| Publish(from, count)),
        2 => Just(Reap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn inflight_packed_kill_at_every_store_of_any_script_completes_each_once(
        size in 1u16..12,
        spare in 0u16..3,
        bits in any::<u16>(),
        script in proptest::collection::vec(step(), 1..24),
    ) {
        let at = PackedPosition { index: (bits & 0x7fff) % size, wrap: bits & 0x8000 != 0 };
        kill_everywhere(Setup { size, entries: size + spare, at }, &script);
    }

    /// Bytes of a region changed at random: it is refused without a store, or
    /// what it says can be carried out.
    #[test]
    fn inflight_packed_forged_region_is_refused_or_safe(
        pokes in proptest::collection::vec((0u64..32 + 32 * 8, any::<u8>(), any::<bool>()), 1..6),
    ) {
        let mut world = World::new(8, 8, PackedPosition::START);
        SCRIPT[..16].iter().for_each(|step| world.step(step));
        for (offset, value, small) in pokes {
            let value = if small { value % 9 } else { value };
            world.mem.write_obj(value, GuestAddress(offset)).unwrap();
        }
        let mut ring = world.stale_ring();
        world.arena.begin_step();
        let attached = PackedRegion::attach(&world.mem, &world.shape, 0, &world.mem, &mut ring);
        world.arena.end_step();
        let Ok((mut region, recovery)) = attached else {
            prop_assert_eq!(world.arena.step_len(), 0);
            return Ok(());
        };
        let slots: BTreeSet<u16> = recovery.resubmit.iter().copied().collect();
        prop_assert_eq!(slots.len(), recovery.resubmit.len());
        let mut chain = Chain::default();
        for slot in recovery.resubmit {
            let _ = ring.walk(&world.mem, slot, &mut chain);
            region.link(&world.mem, ring.table(), slot).unwrap();
            ring.publish(&world.mem, &[Used { head: slot, len: 1 }], no_log(&world.mem)).unwrap();
            region.retire(&world.mem, slot).unwrap();
            region.close(&world.mem).unwrap();
        }
        prop_assert_eq!(ring.table().free(), 8);
    }
}

/// No dirty log, of this kind of memory.
fn no_log<M>(_: &M) -> Option<midflight::dirty::RingLog<'static, M>> {
    None
}
