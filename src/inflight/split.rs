//! The steps of the spec's algorithm for split vrings, one function a step.
// spec: vhost-user, "Inflight I/O tracking"
//
// Every store is a release store of the whole field. The region is read by a
// successor after this process died, so only program order matters for a
// crash; release keeps the compiler, and other threads, to it.

use super::layout::{self, RegionShape};
use super::recover::{self, InflightFault, Recovery};
use crate::bugs::{self, Bug};
use core::sync::atomic::Ordering;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemory};

/// What a vring's part of the region is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingState {
    /// Entries: no head can be at or above it.
    pub size: u16,
    /// The used index in guest memory.
    pub used_idx: u16,
    /// The available index in guest memory.
    pub avail_idx: u16,
}

impl RingState {
    /// A ring of which only the used index is known: everything may have been
    /// made available.
    pub fn unseen(size: u16, used_idx: u16) -> Self {
        Self { size, used_idx, avail_idx: used_idx.wrapping_add(size) }
    }
}

/// One vring's part of the region, as its only writer sees it.
///
/// What this back-end needs back (the counter, the batch list) it keeps itself:
/// after [`attach`](Self::attach) the region is only ever written, but for
/// [`order_of`](Self::order_of), which nothing here rests on.
#[derive(Clone, Debug)]
pub struct SplitRegion {
    base: u64,
    /// Counter for the next fetch.
    counter: u64,
    /// What `last_batch_head` holds.
    last_batch_head: u16,
}

/// The region's memory cannot be written: the front-end took it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("inflight region is not writable at offset {offset:#x}")]
pub struct RegionGone {
    /// Offset in the region.
    pub offset: u64,
}

impl SplitRegion {
    /// Take over a vring's part, fresh or left by somebody else.
    ///
    /// On success the part is consistent with the ring's used index, and the
    /// returned heads are to be resubmitted in order. On failure nothing was
    /// stored.
    pub fn attach<M: GuestMemory>(
        mem: &M,
        shape: &RegionShape,
        vring: u16,
        ring: RingState,
    ) -> Result<(Self, Recovery), InflightFault> {
        recover::attach(mem, shape, vring, ring)
    }

    pub(super) fn new(base: u64, counter: u64, last_batch_head: u16) -> Self {
        Self { base, counter, last_batch_head }
    }

    /// F2, F3, F4: the request at `head` is fetched.
    ///
    /// Needs: `head` was read from the available ring and is not in flight.
    /// Leaves: a successor will resubmit it, after everything fetched before.
    pub fn submit<M: GuestMemory>(&mut self, mem: &M, head: u16) -> Result<(), RegionGone> {
        if bugs::on(Bug::FlagAfterIssue) {
            return Ok(());
        }
        if bugs::on(Bug::CounterAfterFlag) {
            self.store(mem, layout::inflight(head), 1u8)?;
        }
        // F2 before F4: a kill in between must not leave a live entry with an
        // old counter, or resubmission goes out of order.
        self.store(mem, layout::counter(head), self.counter)?;
        self.counter += 1;
        self.store(mem, layout::inflight(head), 1u8)
    }

    /// The counter of the request at `head`, which is in flight: its name as
    /// long as there is this region. `None` if the region's memory is gone.
    pub fn order_of<M: GuestMemory>(&self, mem: &M, head: u16) -> Option<u64> {
        let at = self.base + layout::counter(head);
        mem.load(GuestAddress(at), Ordering::Relaxed).ok()
    }

    /// C1, C2, C3: the request at `head` joins the batch that is about to be
    /// published.
    ///
    /// Needs: the batch before was closed. Leaves: following `next` from
    /// `last_batch_head` visits the batch, last first.
    pub fn link<M: GuestMemory>(&mut self, mem: &M, head: u16) -> Result<(), RegionGone> {
        if bugs::on(Bug::FlagAfterIssue) {
            self.store(mem, layout::inflight(head), 1u8)?;
        }
        if !bugs::on(Bug::NextNotStored) {
            self.store(mem, layout::next(head), self.last_batch_head)?;
        }
        self.store(mem, layout::LAST_BATCH_HEAD, head)?;
        self.last_batch_head = head;
        Ok(())
    }

    /// C5: the request at `head` has been published.
    ///
    /// Needs: the used index that covers it is stored (C4). Earlier, a kill
    /// would lose the request.
    pub fn retire<M: GuestMemory>(&mut self, mem: &M, head: u16) -> Result<(), RegionGone> {
        self.store(mem, layout::inflight(head), 0u8)
    }

    /// C6: the whole batch is retired.
    ///
    /// Needs: C5 for every request of the batch. Earlier, a kill would leave a
    /// published request marked in flight, and it would be executed again.
    pub fn close<M: GuestMemory>(&mut self, mem: &M, used_idx: u16) -> Result<(), RegionGone> {
        if bugs::on(Bug::UsedIdxNotCopied) {
            return Ok(());
        }
        self.store(mem, layout::USED_IDX, used_idx)
    }

    pub(super) fn store<M: GuestMemory, T: AtomicAccess>(
        &self,
        mem: &M,
        offset: u64,
        value: T,
    ) -> Result<(), RegionGone> {
        super::store(mem, self.base + offset, value)
    }
}
