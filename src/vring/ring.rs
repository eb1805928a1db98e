//! One surface for both kinds of ring.

use super::chain::Chain;
use super::packed::{ChainTable, PACKED_SIZE_MAX, PackedRing, Positions};
use super::split::{RingAddresses, SplitRing, Used};
use super::{GuestFault, packed};
use crate::bugs::{self, Bug};
use crate::dirty::RingLog;
use vm_memory::GuestMemory;

/// The kinds of ring there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFormat {
    /// Descriptor table, available ring, used ring.
    Split,
    /// One descriptor ring and two event areas.
    Packed,
}

impl RingFormat {
    /// True if a ring can have so many entries.
    // spec: virtio 1.2, "Virtqueues": "Queue Size"
    pub fn has_size(self, size: u16) -> bool {
        match self {
            Self::Split => size.is_power_of_two(),
            Self::Packed => (1..=PACKED_SIZE_MAX).contains(&size),
        }
    }

    /// Bytes of the three parts, in the order of [`RingAddresses`].
    pub fn sizes(self, size: u16) -> [u64; 3] {
        match self {
            Self::Split => RingAddresses::sizes(size),
            Self::Packed => RingAddresses::packed_sizes(size),
        }
    }

    /// The base of a ring that nobody has used yet.
    pub fn first_base(self) -> u32 {
        match self {
            Self::Split => 0,
            Self::Packed => Positions::START.base(),
        }
    }

    /// True if a base can be that of a ring of this size.
    // spec: vhost-user, "Vring descriptor indices"
    pub fn has_base(self, base: u32, size: u16) -> bool {
        match self {
            Self::Split => base <= u32::from(u16::MAX),
            Self::Packed => Positions::from_base(base).ahead(size).is_some(),
        }
    }
}

/// The device side of one ring, while it runs.
///
/// A request in flight is named by its slot: the head of its chain in a split
/// ring, the first entry of its copy in a packed one.
#[derive(Debug)]
pub enum Ring {
    /// A split ring.
    Split(SplitRing),
    /// A packed ring.
    Packed(PackedRing),
}

macro_rules! either {
    ($ring:expr, $r:ident => $does:expr) => {
        match $ring {
            Ring::Split($r) => $does,
            Ring::Packed($r) => $does,
        }
    };
}

impl Ring {
    /// Take up a ring at a base that [`RingFormat::has_base`] accepts. A split
    /// ring has its used index in guest memory, a packed one has it from the
    /// base.
    pub fn new<M: GuestMemory>(
        mem: &M,
        format: RingFormat,
        size: u16,
        at: RingAddresses,
        event_idx: bool,
        base: u32,
    ) -> Result<Self, GuestFault> {
        Ok(match format {
            RingFormat::Split => {
                let mut ring = SplitRing::new(mem, size, at, event_idx)?;
                ring.set_next_avail(base as u16);
                Self::Split(ring)
            }
            RingFormat::Packed => {
                let positions = Positions::from_base(base);
                Self::Packed(PackedRing::new(mem, size, at, event_idx, positions)?)
            }
        })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        either!(self, r => r.size())
    }

    /// Requests in flight have slots below this. It may be more than the size
    /// of a packed ring, whose slots are those of an inflight region.
    pub fn slots(&self) -> u16 {
        match self {
            Self::Split(r) => r.size(),
            Self::Packed(r) => r.table().size().max(r.size()),
        }
    }

    /// Where the next available chain is: an index; of a packed ring with the
    /// wrap counter as bit 15.
    pub fn next_avail(&self) -> u16 {
        match self {
            Self::Split(r) => r.next_avail(),
            Self::Packed(r) => r.positions().avail.bits(),
        }
    }

    /// Where the next used chain goes: the used index; of a packed ring with the
    /// wrap counter as bit 15.
    pub fn used(&self) -> u16 {
        match self {
            Self::Split(r) => r.used_idx(),
            Self::Packed(r) => r.positions().used.bits(),
        }
    }

    /// The base of a ring of which everything before the next available chain
    /// was fetched.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(r) => r.next_avail().into(),
            Self::Packed(r) => r.positions().base(),
        }
    }

    /// The base of a ring of which only these slots are in flight: what else was
    /// fetched and not published is to be fetched again.
    pub fn base_with(&self, in_flight: impl Iterator<Item = u16>) -> u32 {
        match self {
            Self::Split(r) => r.used_idx().wrapping_add(in_flight.count() as u16).into(),
            Self::Packed(r) => {
                let used = r.positions().used;
                let ahead =
                    |at: packed::Position, slot| at.after(r.table().chain(slot).num, r.size());
                let base = Positions { avail: in_flight.fold(used, ahead), used }.base();
                let cut = bugs::on_when(Bug::PackedBaseUsedMissing, || base > 0xffff);
                let flat = bugs::on_when(Bug::PackedBaseWrapMissing, || base & 0x8000 != 0);
                base & if cut { 0xffff } else { !0 } & if flat { !0x8000 } else { !0 }
            }
        }
    }

    /// The chains in flight of a packed ring.
    pub fn table(&self) -> Option<&ChainTable> {
        match self {
            Self::Split(_) => None,
            Self::Packed(r) => Some(r.table()),
        }
    }

    /// How many chains are available, roughly, at least if they are no more than
    /// `most`.
    pub fn backlog<M: GuestMemory>(&self, mem: &M, most: u16) -> Result<u16, GuestFault> {
        match self {
            Self::Split(r) => Ok(r.avail_idx(mem)?.wrapping_sub(r.next_avail())),
            Self::Packed(r) => r.backlog(mem, most),
        }
    }

    /// F1: the slot of the next available chain, `None` if there is none.
    #[inline]
    pub fn pop<M: GuestMemory>(&mut self, mem: &M) -> Result<Option<u16>, GuestFault> {
        either!(self, r => r.pop(mem))
    }

    /// The chain that was popped last was not taken after all: it is the next
    /// one again, as if it had not been looked at.
    pub fn put_back(&mut self, slot: u16) {
        match self {
            Self::Split(r) => r.set_next_avail(r.next_avail().wrapping_sub(1)),
            Self::Packed(r) => r.put_back(slot),
        }
    }

    /// Find the buffers of a chain in flight.
    #[inline]
    pub fn walk<M: GuestMemory>(
        &self,
        mem: &M,
        slot: u16,
        chain: &mut Chain,
    ) -> Result<(), GuestFault> {
        match self {
            Self::Split(r) => chain.walk(mem, r.desc_table(), r.size(), slot),
            Self::Packed(r) => r.walk(mem, slot, chain),
        }
    }

    /// C4: publish a batch by one store. Names nothing that is not in flight.
    pub fn publish<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        batch: &[Used],
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        either!(self, r => r.publish(mem, batch, log))
    }

    /// Whether the guest wants to be called for what was published since this
    /// was last asked.
    pub fn needs_call<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, GuestFault> {
        either!(self, r => r.needs_call(mem))
    }

    /// Ask the guest for a kick when it makes more available. True if there is
    /// more already, in which case that kick may never come.
    pub fn enable_kicks<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        log: Option<RingLog<'_, L>>,
    ) -> Result<bool, GuestFault> {
        either!(self, r => r.enable_kicks(mem, log))
    }

    /// Tell the guest that kicks are not needed for now.
    pub fn disable_kicks<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        either!(self, r => r.disable_kicks(mem, log))
    }

    /// Everything that a device writes of the ring counts as written.
    pub fn log_all<L: GuestMemory>(&self, log: &RingLog<'_, L>) {
        either!(self, r => r.log_all(log))
    }
}
