//! The packed ring.
//!
//! One ring of descriptors that driver and device both write. Each knows by the
//! flags of an entry, and by how often it has been around, whose turn it is.
// spec: virtio 1.2, "Packed Virtqueues"

mod event;
mod notify;
mod position;
mod recover;
mod table;

pub use position::{Position, Positions};
pub use table::{ChainInfo, ChainTable, Descriptor, Entry};

use super::chain::{Chain, Sums};
use super::{GuestFault, RingAddresses, Used};
use crate::bugs::{self, Bug};
use crate::dirty::RingLog;
use crate::marks::{self, Mark};
use crate::words::Words;
use core::sync::atomic::Ordering;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Largest size of a packed ring; it need not be a power of two.
pub const PACKED_SIZE_MAX: u16 = 32768;

/// The device side of one packed ring, while it runs.
#[derive(Debug)]
pub struct PackedRing {
    at: RingAddresses,
    size: u16,
    positions: Positions,
    table: ChainTable,
    event_idx: bool,
    /// Used position at the last decision to call or not.
    called_at: Position,
}

impl PackedRing {
    /// Take up a ring of 1 to 32768 entries.
    ///
    /// Unlike a split ring's, its positions are nowhere in guest memory:
    /// whoever ran it before has to say.
    pub fn new<M: GuestMemory>(
        mem: &M,
        size: u16,
        at: RingAddresses,
        event_idx: bool,
        positions: Positions,
    ) -> Result<Self, GuestFault> {
        let gone = GuestFault::Ring { part: "ring" };
        if size == 0 || size > PACKED_SIZE_MAX || positions.ahead(size).is_none() {
            return Err(gone);
        }
        let [desc, driver, device] = RingAddresses::packed_sizes(size);
        for (addr, len, access) in [
            (at.desc, desc, Permissions::ReadWrite),
            (at.avail, driver, Permissions::Read),
            (at.used, device, Permissions::ReadWrite),
        ] {
            let there = mem.check_range(GuestAddress(addr), len as usize, access);
            if !there || !addr.is_multiple_of(4) {
                return Err(gone);
            }
        }
        // Used descriptors are stored in words of eight bytes.
        if !at.desc.is_multiple_of(16) {
            return Err(gone);
        }
        let called_at = positions.used;
        Ok(Self { at, size, positions, table: ChainTable::new(size), event_idx, called_at })
    }

    /// Go on where a predecessor was, with what it had in flight. Positions
    /// have to be those of a ring of this size.
    pub fn adopt(&mut self, table: ChainTable, positions: Positions) {
        self.table = table;
        self.positions = positions;
        self.called_at = positions.used;
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring is.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// The chains in flight.
    pub fn table(&self) -> &ChainTable {
        &self.table
    }

    /// Descriptors that are available and not fetched, at least if they are no
    /// more than `most`. Chains may be fewer.
    pub fn backlog<M: GuestMemory>(&self, mem: &M, most: u16) -> Result<u16, GuestFault> {
        let mut at = self.positions.avail;
        for count in 0..most.min(self.size) {
            if !is_available(self.flags(mem, at)?, at.wrap) {
                return Ok(count);
            }
            at = at.after(1, self.size);
        }
        Ok(most.min(self.size))
    }

    /// F1: the next available chain, `None` if there is none. It is copied, and
    /// named by the first entry of the copy.
    pub fn pop<W: Words + ?Sized>(&mut self, mem: &W) -> Result<Option<u16>, GuestFault> {
        let mut at = self.positions.avail;
        // These flags are the first thing that is read, and not read again:
        // the rest was written before them.
        let first = self.flags(mem, at)?;
        if !is_available(first, at.wrap) {
            return Ok(None);
        }
        let (slot, free) = (self.table.free_head(), self.table.free().min(self.room()));
        let (mut entry, mut num) = (slot, 0);
        loop {
            if num == free {
                return Err(GuestFault::Overrun { at: self.positions.avail.index, free });
            }
            let mut desc = self.descriptor(mem, at)?;
            if num == 0 {
                desc.flags = first;
            }
            let last = entry;
            entry = self.table.fill(entry, desc);
            num += 1;
            at = at.after(1, self.size);
            if desc.flags & NEXT != 0 {
                continue;
            }
            if !self.table.claim(last, num) {
                return Err(GuestFault::IdInFlight { id: desc.id });
            }
            self.positions.avail = at;
            return Ok(Some(slot));
        }
    }

    /// The chain that was popped last is the next one again.
    pub fn put_back(&mut self, slot: u16) {
        let num = self.table.chain(slot).num;
        self.positions.avail = self.positions.avail.before(num, self.size);
        self.table.release(slot);
    }

    /// Entries of the ring that are neither available nor in flight.
    fn room(&self) -> u16 {
        self.size - self.positions.ahead(self.size).unwrap_or(self.size)
    }

    /// Fill `chain` from the copy that [`pop`](Self::pop) made, or that came
    /// with [`adopt`](Self::adopt). An indirect table is read from guest memory.
    // spec: virtio 1.2, "Packed Virtqueues", "Indirect Flag: Scatter-Gather Support"
    pub fn walk<M: GuestMemory>(
        &self,
        mem: &M,
        slot: u16,
        chain: &mut Chain,
    ) -> Result<(), GuestFault> {
        let mut sums = Sums::of(slot);
        chain.clear();
        let alone = self.table.chain(slot).num == 1;
        for (_, desc) in self.table.entries(slot) {
            if desc.flags & INDIRECT == 0 {
                chain.add(&mut sums, desc.addr, desc.len, desc.flags & WRITE != 0)?;
            } else if alone {
                self.walk_indirect(mem, desc, chain, &mut sums)?;
            } else {
                return Err(GuestFault::IndirectNested { head: slot });
            }
        }
        Ok(())
    }

    /// The table's descriptors come one after the other; nothing links them.
    fn walk_indirect<M: GuestMemory>(
        &self,
        mem: &M,
        table: &Descriptor,
        chain: &mut Chain,
        sums: &mut Sums,
    ) -> Result<(), GuestFault> {
        let &Descriptor { addr, len, .. } = table;
        if len == 0 || !len.is_multiple_of(16) {
            return Err(GuestFault::IndirectLen { head: sums.head, len });
        }
        marks::hit(Mark::ChainIndirect);
        marks::hit_when(Mark::ChainLongerThanRing, || len / 16 > u32::from(self.size));
        for index in 0..len / 16 {
            let at = addr.checked_add(16 * u64::from(index));
            let unreachable = GuestFault::Descriptor { head: sums.head, addr };
            let desc = read(mem, at.ok_or(unreachable)?).map_err(|()| unreachable)?;
            if desc.flags & INDIRECT != 0 {
                return Err(GuestFault::IndirectNested { head: sums.head });
            }
            chain.add(sums, desc.addr, desc.len, desc.flags & WRITE != 0)?;
        }
        Ok(())
    }

    /// C4: publish a batch by one store.
    ///
    /// The driver looks at used descriptors in ring order, so it sees none of a
    /// batch before the first. That one is stored last, in one piece.
    pub fn publish<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        batch: &[Used],
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        let ring = self.at.desc;
        self.publish_marked(mem, batch, |addr, len| match &log {
            None => {}
            Some(log) if bugs::on(Bug::PackedRingLoggedAsEvent) => {
                log.mark(addr - ring, len);
            }
            Some(log) => log.mark_guest(addr, len),
        })
    }

    /// The same; `mark` is told each guest-physical address, and how many bytes
    /// were stored there.
    pub fn publish_marked<W: Words + ?Sized>(
        &mut self,
        mem: &W,
        batch: &[Used],
        mark: impl Fn(u64, u64),
    ) -> Result<(), GuestFault> {
        let Some((first, rest)) = batch.split_first() else { return Ok(()) };
        let begin = self.positions.used;
        let mut at = begin.after(self.steps(first.head), self.size);
        let early = bugs::on_when(Bug::PackedFirstNotLast, || !rest.is_empty());
        if early {
            self.store_used(mem, begin, first, Ordering::Release, &mark)?;
        }
        for used in rest {
            self.store_used(mem, at, used, Ordering::Relaxed, &mark)?;
            at = at.after(self.steps(used.head), self.size);
        }
        if bugs::on_when(Bug::PackedUsedWrapKept, || at.wrap != begin.wrap) {
            at.wrap = begin.wrap;
        }
        marks::hit_when(Mark::BatchOfMany, || batch.len() > 1);
        marks::hit_when(Mark::BatchWrapsRing, || at.wrap != begin.wrap && at.index != 0);
        if !early {
            self.store_used(mem, begin, first, Ordering::Release, &mark)?;
        }
        self.positions.used = at;
        for used in batch {
            self.table.release(used.head);
        }
        Ok(())
    }

    /// How far the used position goes for a chain.
    fn steps(&self, slot: u16) -> u16 {
        let num = self.table.chain(slot).num;
        if bugs::on_when(Bug::PackedUsedByOne, || num > 1) { 1 } else { num }
    }

    fn store_used<W: Words + ?Sized>(
        &self,
        mem: &W,
        at: Position,
        used: &Used,
        order: Ordering,
        mark: &impl Fn(u64, u64),
    ) -> Result<(), GuestFault> {
        let ChainInfo { mut id, num, .. } = self.table.chain(used.head);
        if bugs::on_when(Bug::PackedIdOfFirst, || num > 1) {
            id = self.table.entries(used.head).next().map_or(id, |(_, desc)| desc.id);
        }
        // The length counts only with WRITE.
        let mine = if at.wrap { AVAIL | USED } else { 0 };
        let written = used.len > 0 && !bugs::on(Bug::PackedNothingWritten);
        let flags = mine | if written { WRITE } else { 0 };
        // struct pvirtq_desc { le64 addr; le32 len; le16 id; le16 flags; }
        let element = u64::from(used.len) | u64::from(id) << 32 | u64::from(flags) << 48;
        let addr = self.place(at) + 8;
        mem.store_u64(addr, element, order).ok_or(GONE)?;
        mark(addr, 8);
        Ok(())
    }

    /// The whole ring counts as written: whoever ran it before may have died
    /// between a store and its mark.
    pub fn log_all<M: GuestMemory>(&self, log: &RingLog<'_, M>) {
        log.mark_guest(self.at.desc, RingAddresses::packed_sizes(self.size)[0]);
        log.mark(0, 4);
    }

    fn place(&self, at: Position) -> u64 {
        self.at.desc + 16 * u64::from(at.index)
    }

    fn flags<W: Words + ?Sized>(&self, mem: &W, at: Position) -> Result<u16, GuestFault> {
        mem.load_u16(self.place(at) + 14, Ordering::Acquire).ok_or(GONE)
    }

    fn descriptor<W: Words + ?Sized>(
        &self,
        mem: &W,
        at: Position,
    ) -> Result<Descriptor, GuestFault> {
        read(mem, self.place(at)).map_err(|()| GONE)
    }
}

const GONE: GuestFault = GuestFault::Ring { part: "descriptor ring" };

/// The driver has made an entry available that is looked at for the n-th time
/// around.
// spec: virtio 1.2, "Packed Virtqueues", "Driver and Device Ring Wrap Counters"
fn is_available(flags: u16, wrap: bool) -> bool {
    let used_bit = (flags & USED != 0) != wrap || bugs::on(Bug::PackedUsedBitIgnored);
    (flags & AVAIL != 0) == wrap && used_bit
}

/// Each descriptor is read exactly once: the guest may change it at any time.
fn read<W: Words + ?Sized>(mem: &W, at: u64) -> Result<Descriptor, ()> {
    let mut raw = [0; 16];
    mem.copy_out(at, &mut raw).ok_or(())?;
    // struct pvirtq_desc { le64 addr; le32 len; le16 id; le16 flags; }
    let word = u128::from_le_bytes(raw);
    Ok(Descriptor {
        addr: word as u64,
        len: (word >> 64) as u32,
        id: (word >> 96) as u16,
        flags: (word >> 112) as u16,
    })
}

#[cfg(test)]
mod tests;
