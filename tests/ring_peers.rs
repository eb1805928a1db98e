//! Split rings: two driver sides and two device sides on the same bytes.
//!
//! Our driver and virtio-queue's mock of one each drive our device side and
//! virtio-queue's. All four meetings see the same chains and the same
//! completions, and leave the same bytes in memory.

mod ring_rig;

use midflight::dirty::RingLog;
use midflight::driver::{Buffer, Indirect, RingFeatures, RingLayout, SplitDriver};
use midflight::vring::chain::Chain;
use midflight::vring::{RingAddresses, SplitRing, Used};
use proptest::prelude::*;
use ring_rig::queue;
use std::cell::RefCell;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, MockSplitQueue, UsedRing};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Mem = GuestMemoryMmap<()>;
const NO_LOG: Option<RingLog<'static, Mem>> = None;
/// Address, length and direction of a buffer.
type Piece = (u64, u32, bool);

const RING: u64 = 0x1000;
const TABLES: u64 = 0x10_0000;
/// Bytes of one indirect table: the mock's are multiples of 16 descriptors.
const TABLE: u64 = 16 * 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> Mem {
    let low = (GuestAddress(0), 0x11_0000);
    // Where the mock puts its indirect tables.
    Mem::from_ranges(&[low, (GuestAddress(0x3000_0000), 0x1_0000)]).unwrap()
}

/// A chain to put into a ring.
#[derive(Clone, Debug)]
struct Wanted {
    pieces: Vec<Piece>,
    table: Option<u64>,
    /// Orders the completions, and gives their lengths.
    pick: u32,
}

impl Wanted {
    fn descs(&self) -> usize {
        if self.table.is_some() { 1 } else { self.pieces.len() }
    }

    fn len(&self) -> u32 {
        let room: u32 = self.pieces.iter().filter(|p| p.2).map(|p| p.1).sum();
        self.pick % (room + 1)
    }
}

/// The pieces as descriptors that follow each other from index `first` on.
fn chained(pieces: &[Piece], first: u16) -> Vec<RawDescriptor> {
    let last = pieces.len() - 1;
    let desc = |(i, (addr, len, writable)): (usize, &Piece)| {
        let next = if i < last { first + i as u16 + 1 } else { 0 };
        let flags = if i < last { NEXT } else { 0 } | if *writable { WRITE } else { 0 };
        RawDescriptor::from(Descriptor::new(*addr, *len, flags, next))
    };
    pieces.iter().enumerate().map(desc).collect()
}

/// virtio-queue's mock of a driver, part by part: the whole one lays its used
/// ring over its available ring, and never wraps.
struct Mock<'a> {
    table: DescriptorTable<'a, Mem>,
    avail: AvailRing<'a, Mem>,
    used: UsedRing<'a, Mem>,
    size: u16,
}

impl<'a> Mock<'a> {
    fn new(mem: &'a Mem, layout: &RingLayout, start: u16) -> Self {
        let mock = Self {
            table: DescriptorTable::new(mem, GuestAddress(layout.desc), layout.size),
            avail: AvailRing::new(mem, GuestAddress(layout.avail), layout.size),
            used: UsedRing::new(mem, GuestAddress(layout.used), layout.size),
            size: layout.size,
        };
        mock.avail.idx().store(start);
        mock.used.idx().store(start);
        mock
    }

    fn place(&self, mem: &Mem, chains: &[Wanted]) -> Vec<u16> {
        let (mut at, mut heads) = (0, Vec::new());
        for chain in chains {
            heads.push(at);
            match chain.table {
                None => {
                    for desc in chained(&chain.pieces, at) {
                        self.table.store(at, desc).unwrap();
                        at += 1;
                    }
                }
                Some(addr) => {
                    let table = DescriptorTable::new(mem, GuestAddress(addr), 16);
                    for (i, desc) in (0u16..).zip(chained(&chain.pieces, 0)) {
                        table.store(i, desc).unwrap();
                    }
                    let len = 16 * chain.pieces.len() as u32;
                    let desc = Descriptor::new(addr, len, INDIRECT, 0);
                    self.table.store(at, RawDescriptor::from(desc)).unwrap();
                    at += 1;
                }
            }
        }
        let idx = self.avail.idx().load();
        for (i, head) in (0u16..).zip(&heads) {
            let slot = usize::from(idx.wrapping_add(i) % self.size);
            self.avail.ring().ref_at(slot).unwrap().store(*head);
        }
        self.avail.idx().store(idx.wrapping_add(heads.len() as u16));
        heads
    }

    fn reap(&self, from: u16) -> Vec<(u16, u32)> {
        let count = self.used.idx().load().wrapping_sub(from);
        let element = |i| {
            let slot = usize::from(from.wrapping_add(i) % self.size);
            let element = self.used.ring().ref_at(slot).unwrap().load();
            (element.id() as u16, element.len())
        };
        (0..count).map(element).collect()
    }
}

enum Driver<'a> {
    Ours(RefCell<SplitDriver>),
    Mock(Mock<'a>),
}

impl Driver<'_> {
    fn place(&self, mem: &Mem, chains: &[Wanted]) -> Vec<u16> {
        match self {
            Self::Mock(mock) => mock.place(mem, chains),
            Self::Ours(driver) => {
                let mut driver = driver.borrow_mut();
                let add = |chain: &Wanted| {
                    let buffer = |p: &Piece| Buffer { addr: p.0, len: p.1, writable: p.2 };
                    let buffers: Vec<Buffer> = chain.pieces.iter().map(buffer).collect();
                    let indirect = chain.table.map(|table| Indirect { table, direct: 0 });
                    driver.add_chain(mem, &buffers, indirect).unwrap()
                };
                let heads = chains.iter().map(add).collect();
                driver.publish(mem).unwrap();
                heads
            }
        }
    }

    /// Ask for a call at the next completion.
    fn sleep(&self, mem: &Mem, layout: &RingLayout, event_idx: bool, next: u16) {
        match self {
            Self::Ours(driver) => assert!(!driver.borrow_mut().enable_calls(mem).unwrap()),
            // The mock keeps the field to itself.
            Self::Mock(_) if event_idx => {
                mem.write_obj(next.to_le(), GuestAddress(layout.used_event())).unwrap();
            }
            Self::Mock(_) => mem.write_obj(0u16, GuestAddress(layout.avail_flags())).unwrap(),
        }
    }

    fn reap(&self, mem: &Mem, from: u16) -> Vec<(u16, u32)> {
        match self {
            Self::Mock(mock) => mock.reap(from),
            Self::Ours(driver) => {
                let mut driver = driver.borrow_mut();
                let next = || driver.reap(mem).unwrap().map(|used| (used.head, used.len));
                std::iter::from_fn(next).collect()
            }
        }
    }

    /// Descriptors are taken from 0 on again, as the mock does. Whoever takes
    /// over an idle ring needs its used index only.
    fn renew(&self, mem: &Mem, layout: RingLayout, features: RingFeatures, reaped: u16) {
        if let Self::Ours(driver) = self {
            let new = SplitDriver::attach(mem, layout, features, reaped, &[]).unwrap();
            *driver.borrow_mut() = new;
        }
    }
}

enum Device {
    Ours(SplitRing),
    Theirs(Queue),
}

impl Device {
    fn new(ours: bool, mem: &Mem, layout: &RingLayout, event_idx: bool, start: u16) -> Self {
        if ours {
            let at = RingAddresses { desc: layout.desc, avail: layout.avail, used: layout.used };
            let mut ring = SplitRing::new(mem, layout.size, at, event_idx).unwrap();
            ring.set_next_avail(start);
            return Self::Ours(ring);
        }
        let queue = queue(layout, event_idx, start);
        assert!(queue.is_valid(mem));
        Self::Theirs(queue)
    }

    fn enable_kicks(&mut self, mem: &Mem) -> bool {
        match self {
            Self::Ours(ring) => ring.enable_kicks(mem, NO_LOG).unwrap(),
            Self::Theirs(queue) => queue.enable_notification(mem).unwrap(),
        }
    }

    fn fetch(&mut self, mem: &Mem) -> Vec<(u16, Vec<Piece>)> {
        let mut chains = Vec::new();
        match self {
            Self::Ours(ring) => {
                let mut chain = Chain::default();
                while let Some(head) = ring.pop(mem).unwrap() {
                    chain.walk(mem, ring.desc_table(), ring.size(), head).unwrap();
                    let readable = chain.readable.iter().map(|s| (s.addr, s.len, false));
                    let writable = chain.writable.iter().map(|s| (s.addr, s.len, true));
                    chains.push((head, readable.chain(writable).collect()));
                }
            }
            Self::Theirs(queue) => {
                while let Some(chain) = queue.pop_descriptor_chain(mem) {
                    let head = chain.head_index();
                    let piece = |d: Descriptor| (d.addr().0, d.len(), d.is_write_only());
                    chains.push((head, chain.map(piece).collect()));
                }
            }
        }
        chains
    }

    /// Returns whether the driver wants a call.
    fn complete(&mut self, mem: &Mem, batch: &[(u16, u32)]) -> bool {
        match self {
            Self::Ours(ring) => {
                let used: Vec<Used> = batch.iter().map(|&(head, len)| Used { head, len }).collect();
                ring.publish(mem, &used, NO_LOG).unwrap();
                ring.needs_call(mem).unwrap()
            }
            Self::Theirs(queue) => {
                for (head, len) in batch {
                    queue.add_used(mem, *head, *len).unwrap();
                }
                queue.needs_notification(mem).unwrap()
            }
        }
    }
}

/// Every byte of the ring and of the tables.
fn bytes(mem: &Mem, layout: &RingLayout) -> Vec<u8> {
    let mut bytes = vec![0; (layout.used + RingLayout::used_bytes(layout.size) - RING) as usize];
    mem.read_slice(&mut bytes, GuestAddress(RING)).unwrap();
    let mut tables = vec![0; 64 * TABLE as usize];
    mem.read_slice(&mut tables, GuestAddress(TABLES)).unwrap();
    bytes.extend(tables);
    bytes
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let lengths = || prop::collection::vec(1u32..5000, 0..4);
    (lengths(), lengths(), any::<bool>(), any::<u32>())
        .prop_filter("a chain has a buffer", |(r, w, ..)| !r.is_empty() || !w.is_empty())
        .prop_map(|(reads, writes, table, pick)| {
            let sides = reads.into_iter().map(|len| (len, false));
            let sides = sides.chain(writes.into_iter().map(|len| (len, true)));
            let place = |(i, (len, writable))| (0x8000 + 0x2000 * i, len, writable);
            let pieces = (0u64..).zip(sides).map(place).collect();
            Wanted { pieces, table: table.then_some(0), pick }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ring_peers_agree_on_chains_completions_calls_and_bytes(
        size in (0u32..7).prop_map(|p| 1u16 << p),
        event_idx: bool,
        start in prop_oneof![Just(0u16), 65500u16..=65535, any::<u16>()],
        rounds in prop::collection::vec(prop::collection::vec(wanted(), 1..20), 1..6),
    ) {
        let layout = RingLayout::contiguous(size, RING).unwrap();
        let features = RingFeatures { event_idx, indirect: true, packed: false };
        let memories: [Mem; 4] = std::array::from_fn(|_| memory());
        let mut worlds: Vec<(&Mem, Driver<'_>, Device)> = Vec::new();
        for (i, mem) in memories.iter().enumerate() {
            // The mock zeroes what it finds and starts at an index.
            let mock = Mock::new(mem, &layout, start);
            let ours = || SplitDriver::attach(mem, layout, features, start, &[]).unwrap();
            let driver = match i % 2 {
                0 => Driver::Mock(mock),
                _ => Driver::Ours(RefCell::new(ours())),
            };
            worlds.push((mem, driver, Device::new(i / 2 == 0, mem, &layout, event_idx, start)));
        }
        let mut reaped = start;
        for round in rounds {
            let mut room = usize::from(size);
            let mut chains: Vec<Wanted> = Vec::new();
            for mut chain in round {
                if chain.descs() <= room {
                    room -= chain.descs();
                    chain.table = chain.table.map(|_| TABLES + TABLE * chains.len() as u64);
                    chains.push(chain);
                }
            }
            let mut seen = Vec::new();
            for (mem, driver, device) in &mut worlds {
                let mem: &Mem = mem;
                driver.renew(mem, layout, features, reaped);
                driver.sleep(mem, &layout, event_idx, reaped);
                prop_assert!(!device.enable_kicks(mem), "nothing is there");
                let heads = driver.place(mem, &chains);
                if let Driver::Ours(driver) = driver {
                    let kick = driver.borrow_mut().kick_needed(mem).unwrap();
                    prop_assert_eq!(kick, !chains.is_empty(), "the device has asked for a kick");
                }
                let fetched = device.fetch(mem);
                let expected: Vec<(u16, Vec<Piece>)> =
                    heads.iter().copied().zip(chains.iter().map(|c| c.pieces.clone())).collect();
                prop_assert_eq!(&fetched, &expected);
                let mut order: Vec<(u32, u16, u32)> =
                    heads.iter().zip(&chains).map(|(head, c)| (c.pick, *head, c.len())).collect();
                order.sort_unstable();
                let batch: Vec<(u16, u32)> = order.iter().map(|(_, h, l)| (*h, *l)).collect();
                if !batch.is_empty() {
                    prop_assert!(device.complete(mem, &batch), "the driver has asked for a call");
                }
                prop_assert_eq!(driver.reap(mem, reaped), batch);
                seen.push((fetched, bytes(mem, &layout)));
            }
            for other in &seen[1..] {
                prop_assert!(*other == seen[0], "the same chains and the same bytes");
            }
            reaped = reaped.wrapping_add(chains.len() as u16);
        }
    }
}

/// The mock as a whole, as virtio-queue's own tests use it, on our device side.
/// It has the used ring begin half way through its available ring, so only as
/// many chains as fit before that can be put into it.
#[test]
fn ring_peers_mock_as_it_is_drives_our_device_side() {
    let mem = memory();
    let mock = MockSplitQueue::create(&mem, GuestAddress(RING), 64);
    let at = RingAddresses {
        desc: mock.desc_table_addr().0,
        avail: mock.avail_addr().0,
        used: mock.used_addr().0,
    };
    let mut device = Device::Ours(SplitRing::new(&mem, 64, at, false).unwrap());
    let (mut first, mut expected) = (0, Vec::new());
    for count in [1u64, 3, 2, 5] {
        let piece = |i| (0x8000 + 0x1000 * i, 100 + i as u32, i + 1 == count);
        let pieces: Vec<Piece> = (0..count).map(piece).collect();
        mock.add_desc_chains(&chained(&pieces, first), first).unwrap();
        expected.push((first, pieces));
        first += count as u16;
    }
    assert_eq!(device.fetch(&mem), expected);
    let batch: Vec<(u16, u32)> = expected.iter().rev().map(|(head, p)| (*head, p[0].1)).collect();
    assert!(device.complete(&mem, &batch));
    assert_eq!(mock.used().idx().load(), 4);
    for (i, expected) in batch.iter().enumerate() {
        let element = mock.used().ring().ref_at(i).unwrap().load();
        assert_eq!((element.id() as u16, element.len()), *expected);
    }
}

/// Its indirect table too, which it puts where head 0 was.
#[test]
fn ring_peers_mock_as_it_is_has_indirect_tables_for_our_device_side() {
    let mem = memory();
    let mut mock = MockSplitQueue::create(&mem, GuestAddress(RING), 64);
    let at = RingAddresses {
        desc: mock.desc_table_addr().0,
        avail: mock.avail_addr().0,
        used: mock.used_addr().0,
    };
    let mut device = Device::Ours(SplitRing::new(&mem, 64, at, false).unwrap());
    mock.add_indirect_chain(5).unwrap();
    let theirs = mock.create_queue::<Queue>().unwrap();
    let ours = device.fetch(&mem);
    assert_eq!(ours, Device::Theirs(theirs).fetch(&mem));
    assert_eq!(ours, [(0, vec![(0x1000, 0x1000, false); 5])]);
}
