//! The steps of the spec's algorithm for packed vrings, one function a step.
//!
//! A fetched descriptor may be overwritten in the ring by a used one, so the
//! region has a copy of every chain in flight. DESIGN.md, "Packed inflight
//! region, store by store", has the argument by the step names used here.
// spec: vhost-user, "Inflight I/O tracking"

pub(super) mod layout;
mod recover;

pub use recover::{PackedHeader, PackedPlan};
pub(super) use recover::{header, plan};

use super::layout::RegionShape;
use super::recover::{InflightFault, Recovery};
use super::split::RegionGone;
use crate::bugs::{self, Bug};
use crate::vring::PackedRing;
use crate::vring::packed::{ChainInfo, ChainTable, Position};
use core::sync::atomic::Ordering;
use layout::State;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemory};

/// One vring's part of the region, as its only writer sees it: after
/// [`attach`](Self::attach) the region is only ever written, but for
/// [`order_of`](Self::order_of), which nothing here rests on.
#[derive(Clone, Debug)]
pub struct PackedRegion {
    base: u64,
    /// Entries of the ring.
    ring_size: u16,
    /// Counter for the next fetch.
    counter: u64,
    /// What `free_head` holds.
    free_head: u16,
    /// What `used_idx` and `used_wrap_counter` hold.
    used: Position,
    /// What `old_used_idx` and `old_used_wrap_counter` hold.
    old_used: Position,
}

impl PackedRegion {
    /// Take over a vring's part, fresh or left by somebody else.
    ///
    /// On success the part is consistent with the ring, which has the chains in
    /// flight and its positions from it; the returned slots are to be
    /// resubmitted in order. A fresh part takes the ring's used position. On
    /// failure nothing was stored.
    pub fn attach<M: GuestMemory, G: GuestMemory>(
        mem: &M,
        shape: &RegionShape,
        vring: u16,
        guest: &G,
        ring: &mut PackedRing,
    ) -> Result<(Self, Recovery), InflightFault> {
        recover::attach(mem, shape, vring, guest, ring)
    }

    /// F2, F3, F4: the chain in this slot is fetched.
    ///
    /// Needs: no batch is open, and the slot was the first on the free list.
    /// Leaves: a successor will resubmit it, after everything fetched before.
    pub fn submit<M: GuestMemory>(
        &mut self,
        mem: &M,
        table: &ChainTable,
        slot: u16,
    ) -> Result<(), RegionGone> {
        // F2: all of it is on the free list until F4, and a successor clears
        // the flag of whatever is there.
        let (mut last, mut next) = (slot, slot);
        let early = bugs::on(Bug::PackedCopyAfterHead);
        if early {
            let ChainInfo { last, num, .. } = table.chain(slot);
            let state = State { inflight: 1, next: table.next(slot), last, num };
            self.store(mem, layout::state(slot), state.word())?;
            let next = table.next(last);
            self.store(mem, layout::FREE_HEADS, layout::pair(next, next))?;
        }
        for (entry, desc) in table.entries(slot) {
            if bugs::on_when(Bug::PackedFirstCopied, || entry != slot) {
                (last, next) = (entry, table.next(entry));
                continue;
            }
            self.store(mem, layout::addr(entry), desc.addr)?;
            self.store(mem, layout::desc(entry), layout::desc_word(desc))?;
            (last, next) = (entry, table.next(entry));
        }
        self.store(mem, layout::counter(slot), self.counter)?;
        self.counter += 1;
        // F3
        let num = table.chain(slot).num;
        let state = State { inflight: 1, next: table.next(slot), last, num };
        self.store(mem, layout::state(slot), state.word())?;
        // F4: both heads of the free list at once.
        self.free_head = next;
        self.store(mem, layout::FREE_HEADS, layout::pair(next, next))
    }

    /// The counter of the chain in this slot, which is in flight: its name as
    /// long as there is this region. `None` if the region's memory is gone.
    pub fn order_of<M: GuestMemory>(&self, mem: &M, slot: u16) -> Option<u64> {
        mem.load(GuestAddress(self.base + layout::counter(slot)), Ordering::Relaxed).ok()
    }

    /// C1, C2, C3: the chain in this slot joins the batch that is about to be
    /// published.
    ///
    /// Needs: the batch before was closed. Leaves: a successor goes back to
    /// where no batch was begun, unless the ring says that it was published.
    pub fn link<M: GuestMemory>(
        &mut self,
        mem: &M,
        table: &ChainTable,
        slot: u16,
    ) -> Result<(), RegionGone> {
        let chain = table.chain(slot);
        if !bugs::on(Bug::PackedFreeListCut) {
            self.store(mem, layout::next(chain.last), self.free_head)?;
        }
        self.free_head = slot;
        self.store(mem, layout::FREE_HEAD, slot)?;
        let one = bugs::on_when(Bug::PackedLinkByOne, || chain.num > 1);
        self.used = self.used.after(if one { 1 } else { chain.num }, self.ring_size);
        self.store(mem, layout::USED, layout::used_word(self.used, self.old_used))
    }

    /// C5: the chain in this slot has been published.
    ///
    /// Needs: the used descriptor that publishes its batch is stored (C4).
    /// Earlier, a kill would lose the request.
    pub fn retire<M: GuestMemory>(&mut self, mem: &M, slot: u16) -> Result<(), RegionGone> {
        if bugs::on(Bug::PackedFlagKept) {
            return Ok(());
        }
        self.store(mem, layout::inflight(slot), 0u8)
    }

    /// C6, C7: the whole batch is retired.
    ///
    /// Needs: C5 for every request of the batch. The free list comes first:
    /// with the positions alike, a successor takes the old one to be in force.
    pub fn close<M: GuestMemory>(&mut self, mem: &M) -> Result<(), RegionGone> {
        if bugs::on(Bug::PackedBatchLeftOpen) {
            return Ok(());
        }
        let head = self.free_head;
        if !bugs::on(Bug::PackedOldFreeHeadKept) {
            self.store(mem, layout::FREE_HEADS, layout::pair(head, head))?; // C6
        }
        if bugs::on_when(Bug::PackedWrapBeforeIndex, || self.used.wrap != self.old_used.wrap) {
            let half = Position { wrap: self.used.wrap, ..self.old_used };
            self.store(mem, layout::USED, layout::used_word(self.used, half))?;
        }
        self.old_used = self.used;
        self.store(mem, layout::USED, layout::used_word(self.used, self.used)) // C7
    }

    fn store<M: GuestMemory, T: AtomicAccess>(
        &self,
        mem: &M,
        offset: u64,
        value: T,
    ) -> Result<(), RegionGone> {
        super::store(mem, self.base + offset, value)
    }
}
