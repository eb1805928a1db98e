//! A guest that breaks the rules of a ring, with plain stores to its memory.
//!
//! The vring is of no use afterwards, and nothing is promised for it any more.
//! Everything else is: other vrings, the process, memory that was not shared.
// spec: virtio 1.2, "Split Virtqueues": what a driver must not do.

mod packed;

use crate::memory::Mem;
use midflight::driver::{DriverRing, RingLayout};
use vm_memory::GuestAddress;

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sabotage {
    /// The available index jumps further than the ring is long.
    Jump,
    /// The available ring names a descriptor that does not exist.
    BadHead,
    /// A chain that leads back to itself.
    Loop,
    /// A chain that leads out of the table.
    BadNext,
    /// Buffers where there is no memory.
    Outside,
    /// An indirect table where there is no memory.
    TableOutside,
    /// A head that is in flight is made available again.
    Twice,
    /// Every descriptor is changed after the kick, to where there is no memory.
    Rewrite,
}

/// An address at which no guest has memory.
const NOWHERE: u64 = 1 << 40;

/// Descriptor flags.
// spec: virtio 1.2, "The Virtqueue Descriptor Table"
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

impl Sabotage {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Jump,
        Self::BadHead,
        Self::Loop,
        Self::BadNext,
        Self::Outside,
        Self::TableOutside,
        Self::Twice,
        Self::Rewrite,
    ];

    /// As a document has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jump => "jump",
            Self::BadHead => "bad-head",
            Self::Loop => "loop",
            Self::BadNext => "bad-next",
            Self::Outside => "outside",
            Self::TableOutside => "table-outside",
            Self::Twice => "twice",
            Self::Rewrite => "rewrite",
        }
    }

    /// A device that looks at the ring cannot miss it.
    pub const fn is_plain(self) -> bool {
        !matches!(self, Self::Twice | Self::Rewrite)
    }

    /// Do it. `busy`: heads or buffer ids in flight.
    pub(super) fn commit(self, mem: &Mem, ring: &DriverRing, busy: &[u16]) {
        match ring.as_packed() {
            None => self.commit_split(mem, ring.layout(), busy, ring.avail_idx()),
            Some(ring) => {
                let free = (0..).find(|id| !busy.contains(id)).unwrap_or(0);
                let room = ring.free_descriptors();
                packed::commit(self, mem, ring.layout(), ring.avail_position(), busy, free, room);
            }
        }
    }

    /// Whether the ring has room for what it takes. Where a packed ring has none,
    /// there is nothing to write to that a device would look at.
    pub(super) fn fits(self, ring: &DriverRing) -> bool {
        ring.as_packed().is_none_or(|ring| ring.free_descriptors() >= 2)
    }

    fn commit_split(self, mem: &Mem, ring: &RingLayout, busy: &[u16], index: u16) {
        let free = (0..ring.size).find(|head| !busy.contains(head)).unwrap_or(0);
        let desc = |at: u16, addr: u64, flags: u16, next: u16| {
            let base = ring.desc + 16 * u64::from(at);
            put(mem, base, &addr.to_le_bytes());
            put(mem, base + 8, &16u32.to_le_bytes());
            put(mem, base + 12, &flags.to_le_bytes());
            put(mem, base + 14, &next.to_le_bytes());
        };
        let offer = |head: u16| {
            let slot = ring.avail + 4 + 2 * u64::from(index % ring.size);
            put(mem, slot, &head.to_le_bytes());
            put(mem, ring.avail + 2, &index.wrapping_add(1).to_le_bytes());
        };
        match self {
            Self::Jump => {
                let far = index.wrapping_add(ring.size).wrapping_add(1);
                put(mem, ring.avail + 2, &far.to_le_bytes());
            }
            Self::BadHead => offer(ring.size + 3),
            Self::Loop => {
                desc(free, ring.desc, NEXT, free);
                offer(free);
            }
            Self::BadNext => {
                desc(free, ring.desc, NEXT, ring.size);
                offer(free);
            }
            Self::Outside => {
                desc(free, NOWHERE, 0, 0);
                offer(free);
            }
            Self::TableOutside => {
                desc(free, NOWHERE, INDIRECT, 0);
                offer(free);
            }
            Self::Twice => offer(busy.first().copied().unwrap_or(ring.size)),
            Self::Rewrite => (0..ring.size).for_each(|at| desc(at, NOWHERE, 0, 0)),
        }
    }
}

fn put(mem: &Mem, addr: u64, bytes: &[u8]) {
    mem.write_slice(bytes, GuestAddress(addr)).expect("rings lie in memory");
}
