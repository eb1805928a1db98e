//! The two ends of one ring, on memory whose shared words are loom's.

use loom::sync::atomic::{AtomicU16, AtomicU32};
use midflight::driver::{
    Buffer, PackedDriver, PackedPosition, RingFeatures, RingLayout, SplitDriver,
};
use midflight::vring::packed::{Position, Positions};
use midflight::vring::{PackedRing, RingAddresses, SplitRing, Used};
use midflight::words::Words;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RING: u64 = 0x1000;
const BUFFER: Buffer = Buffer { addr: 0x8000, len: 16, writable: true };

/// What a ring is like.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub packed: bool,
    pub event_idx: bool,
}

pub const KINDS: [Kind; 4] = [
    Kind { packed: false, event_idx: false },
    Kind { packed: false, event_idx: true },
    Kind { packed: true, event_idx: false },
    Kind { packed: true, event_idx: true },
];

/// Which side keeps its fences.
#[derive(Clone, Copy, Debug)]
pub struct Fences {
    pub driver: bool,
    pub device: bool,
}

impl Fences {
    pub const ALL: Self = Self { driver: true, device: true };
}

/// A word that both sides load and store.
enum Word {
    Half(AtomicU16),
    Whole(AtomicU32),
}

/// Guest memory. Its plain bytes follow the words, for what is read only after a
/// word has said that it is there.
struct Memory {
    words: BTreeMap<u64, Word>,
    plain: GuestMemoryMmap<()>,
}

/// Memory as one side reaches it.
#[derive(Clone)]
struct Side {
    memory: Arc<Memory>,
    fenced: bool,
}

impl Words for Side {
    fn load_u16(&self, at: u64, order: Ordering) -> Option<u16> {
        match self.memory.words.get(&at) {
            Some(Word::Half(word)) => Some(word.load(order)),
            Some(Word::Whole(_)) => None,
            None => self.memory.plain.load_u16(at, order),
        }
    }

    fn store_u16(&self, at: u64, value: u16, order: Ordering) -> Option<()> {
        self.memory.plain.store_u16(at, value, order)?;
        match self.memory.words.get(&at)? {
            Word::Half(word) => word.store(value, order),
            Word::Whole(_) => return None,
        }
        Some(())
    }

    fn load_u32(&self, at: u64, order: Ordering) -> Option<u32> {
        match self.memory.words.get(&at)? {
            Word::Whole(word) => Some(word.load(order)),
            Word::Half(_) => None,
        }
    }

    fn store_u32(&self, at: u64, value: u32, order: Ordering) -> Option<()> {
        match self.memory.words.get(&at)? {
            Word::Whole(word) => word.store(value, order),
            Word::Half(_) => return None,
        }
        Some(())
    }

    /// Length, id and flags of a descriptor: who reads them looks at the flags
    /// first.
    fn store_u64(&self, at: u64, value: u64, order: Ordering) -> Option<()> {
        self.memory.plain.store_u64(at, value, order)?;
        match self.memory.words.get(&(at + 6))? {
            Word::Half(flags) => flags.store((value >> 48) as u16, order),
            Word::Whole(_) => return None,
        }
        Some(())
    }

    fn copy_out(&self, at: u64, bytes: &mut [u8]) -> Option<()> {
        self.memory.plain.copy_out(at, bytes)
    }

    fn copy_in(&self, at: u64, bytes: &[u8]) -> Option<()> {
        self.memory.plain.copy_in(at, bytes)
    }

    fn fence(&self) {
        if self.fenced {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }
}

enum DriverRing {
    Split(SplitDriver),
    Packed(PackedDriver),
}

enum DeviceRing {
    Split(SplitRing),
    Packed(PackedRing),
}

macro_rules! either {
    ($side:expr, $kind:ident, $r:ident => $does:expr) => {
        match &mut $side.ring {
            $kind::Split($r) => $does,
            $kind::Packed($r) => $does,
        }
    };
}

/// The guest's end.
pub struct Driver {
    ring: DriverRing,
    side: Side,
}

impl Driver {
    /// Put a chain of one buffer into the ring.
    pub fn add(&mut self) {
        match &mut self.ring {
            DriverRing::Split(r) => {
                // Nothing of it is looked at before the index says so.
                r.add_chain(&self.side.memory.plain, &[BUFFER], None).unwrap();
            }
            DriverRing::Packed(r) => {
                r.add_chain(&self.side, &[BUFFER], None).unwrap();
            }
        }
    }

    pub fn publish(&mut self) {
        either!(self, DriverRing, r => r.publish(&self.side)).unwrap();
    }

    pub fn kick_needed(&mut self) -> bool {
        either!(self, DriverRing, r => r.kick_needed(&self.side)).unwrap()
    }

    pub fn reap(&mut self) -> bool {
        either!(self, DriverRing, r => r.reap(&self.side)).unwrap().is_some()
    }

    pub fn disable_calls(&mut self) {
        either!(self, DriverRing, r => r.disable_calls(&self.side)).unwrap();
    }

    pub fn enable_calls_after(&mut self, count: u16) -> bool {
        either!(self, DriverRing, r => r.enable_calls_after(&self.side, count)).unwrap()
    }
}

/// The back-end's end.
pub struct Device {
    ring: DeviceRing,
    side: Side,
}

impl Device {
    /// The next chain that is available.
    pub fn fetch(&mut self) -> Option<u16> {
        match &mut self.ring {
            // virtio-queue reads the head, from plain memory.
            DeviceRing::Split(r) if r.avail_idx(&self.side).unwrap() == r.next_avail() => None,
            DeviceRing::Split(r) => r.pop(&self.side.memory.plain).unwrap(),
            DeviceRing::Packed(r) => r.pop(&self.side).unwrap(),
        }
    }

    pub fn publish(&mut self, heads: &[u16]) {
        let batch: Vec<Used> = heads.iter().map(|head| Used { head: *head, len: 1 }).collect();
        either!(self, DeviceRing, r => r.publish_marked(&self.side, &batch, |_, _| {})).unwrap();
    }

    pub fn needs_call(&mut self) -> bool {
        either!(self, DeviceRing, r => r.needs_call(&self.side)).unwrap()
    }

    pub fn ask_for_kicks(&mut self) -> bool {
        either!(self, DeviceRing, r => r.ask_for_kicks(&self.side)).unwrap()
    }

    pub fn decline_kicks(&mut self) {
        either!(self, DeviceRing, r => r.decline_kicks(&self.side)).unwrap();
    }
}

pub struct Ends {
    pub driver: Driver,
    pub device: Device,
}

/// A ring with a past, so that indexes and wrap counters turn over in between.
pub fn make(kind: Kind, fences: Fences) -> Ends {
    let plain = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let features = RingFeatures { event_idx: kind.event_idx, indirect: false, packed: kind.packed };
    let (driver, device, words) = match kind.packed {
        false => split(&plain, features),
        true => packed(&plain, features),
    };
    let memory = Arc::new(Memory { words, plain });
    let side = |fenced| Side { memory: Arc::clone(&memory), fenced };
    Ends {
        driver: Driver { ring: driver, side: side(fences.driver) },
        device: Device { ring: device, side: side(fences.device) },
    }
}

type Parts = (DriverRing, DeviceRing, BTreeMap<u64, Word>);

fn split(plain: &GuestMemoryMmap<()>, features: RingFeatures) -> Parts {
    const SIZE: u16 = 2;
    const PAST: u16 = u16::MAX;
    let layout = RingLayout::contiguous(SIZE, RING).unwrap();
    SplitDriver::start(plain, layout, features).unwrap();
    for index in [layout.avail + 2, layout.used + 2] {
        plain.write_obj(PAST.to_le(), GuestAddress(index)).unwrap();
    }
    let driver = SplitDriver::attach(plain, layout, features, PAST, &[]).unwrap();
    let at = RingAddresses { desc: layout.desc, avail: layout.avail, used: layout.used };
    let mut device = SplitRing::new(plain, SIZE, at, features.event_idx).unwrap();
    device.set_next_avail(PAST);
    // Flags, index and event index of both.
    let shared = [0, 2, 4 + 2 * u64::from(SIZE)].map(|at| layout.avail + at);
    let shared = shared.into_iter().chain([0, 2, 4 + 8 * u64::from(SIZE)].map(|o| layout.used + o));
    (DriverRing::Split(driver), DeviceRing::Split(device), halves(plain, shared).collect())
}

fn packed(plain: &GuestMemoryMmap<()>, features: RingFeatures) -> Parts {
    const SIZE: u16 = 3;
    let layout = RingLayout::contiguous_packed(SIZE, RING).unwrap();
    let past = PackedPosition { index: SIZE - 1, wrap: true };
    let driver = PackedDriver::start_at(plain, layout, features, past).unwrap();
    let at = RingAddresses { desc: layout.desc, avail: layout.avail, used: layout.used };
    let past = Position { index: past.index, wrap: past.wrap };
    let positions = Positions { avail: past, used: past };
    let device = PackedRing::new(plain, SIZE, at, features.event_idx, positions).unwrap();
    let flags = (0..u64::from(SIZE)).map(|entry| layout.desc + 16 * entry + 14);
    let events = [layout.avail, layout.used].map(|at| {
        let value = plain.load_u32(at, Ordering::Relaxed).unwrap();
        (at, Word::Whole(AtomicU32::new(value)))
    });
    let words = halves(plain, flags).chain(events).collect();
    (DriverRing::Packed(driver), DeviceRing::Packed(device), words)
}

fn halves(
    plain: &GuestMemoryMmap<()>,
    places: impl Iterator<Item = u64>,
) -> impl Iterator<Item = (u64, Word)> {
    places.map(|at| {
        let value = plain.load_u16(at, Ordering::Relaxed).unwrap();
        (at, Word::Half(AtomicU16::new(value)))
    })
}
