//! Reading a region that somebody else left behind. Its bytes are untrusted.
// spec: vhost-user, "Inflight I/O tracking": "When reconnecting"

use super::layout::{self, RegionShape};
use super::split::{RegionGone, RingState, SplitRegion};
use super::view::Loads;
use crate::bugs::{self, Bug};
use crate::marks::{self, Mark};
use crate::vring::GuestFault;
use vm_memory::GuestMemory;

/// What a successor has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Slots to resubmit, in the order they were fetched: heads of a split ring.
    pub resubmit: Vec<u16>,
    /// Nobody had used the region before.
    pub fresh: bool,
}

/// Why a region cannot be taken. The front-end brought it, so it is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflightFault {
    /// No vring has a part.
    #[error("inflight region is for 0 queues, expected at least 1")]
    NoQueues,
    /// More vrings than the device has.
    #[error("inflight region is for {got} queues, expected at most {expected}")]
    TooManyQueues {
        /// Vrings of the device.
        expected: u16,
        /// Vrings of the region.
        got: u16,
    },
    /// No ring has that size.
    #[error("inflight region is for queue size {got}, expected 1 to 32768")]
    QueueSize {
        /// Entries by the message.
        got: u16,
    },
    /// Counters could not be stored in one piece.
    #[error("inflight region starts at file offset {got:#x}, expected a multiple of 8")]
    Offset {
        /// Offset in the file.
        got: u64,
    },
    /// The parts do not fit.
    #[error("inflight region has {got} bytes, expected at least {expected}")]
    TooSmall {
        /// Bytes that are needed.
        expected: u64,
        /// Bytes there are.
        got: u64,
    },
    /// A vring beyond those the region is for.
    #[error("vring {vring} has no part in the inflight region, which is for {queues} queues")]
    NoPart {
        /// Vring index.
        vring: u16,
        /// Vrings of the region.
        queues: u16,
    },
    /// The ring has more entries than its part of the region.
    #[error("vring {vring} has size {size}, its inflight region has {entries} entries")]
    RingLarger {
        /// Vring index.
        vring: u16,
        /// Ring size.
        size: u16,
        /// Entries of the part.
        entries: u16,
    },
    /// A version from the future, or garbage.
    #[error("inflight region of vring {vring} has version {got}, expected 0 or 1")]
    Version {
        /// Vring index.
        vring: u16,
        /// Version found.
        got: u16,
    },
    /// Made for another ring size.
    #[error("inflight region of vring {vring} has desc_num {got}, expected {expected}")]
    DescNum {
        /// Vring index.
        vring: u16,
        /// Entries by the message.
        expected: u16,
        /// Entries by the region.
        got: u16,
    },
    /// The batch would be longer than the ring.
    #[error(
        "inflight region of vring {vring} has used_idx {region}, the ring {ring}: {batch} apart, expected at most {size}"
    )]
    UsedIdx {
        /// Vring index.
        vring: u16,
        /// Used index by the region.
        region: u16,
        /// Used index by the ring.
        ring: u16,
        /// Their distance.
        batch: u16,
        /// Ring size.
        size: u16,
    },
    /// The batch list leaves the table.
    #[error("inflight region of vring {vring} links head {got}, expected less than {size}")]
    Link {
        /// Vring index.
        vring: u16,
        /// Head found.
        got: u16,
        /// Ring size.
        size: u16,
    },
    /// The batch list meets itself: no head is completed twice in a batch.
    #[error("inflight region of vring {vring} links head {got} twice in one batch")]
    LinkTwice {
        /// Vring index.
        vring: u16,
        /// Head found.
        got: u16,
    },
    /// More requests in flight than the guest has made available.
    #[error(
        "inflight region of vring {vring} has {inflight} requests in flight, the ring made {available} available since used index {used}"
    )]
    NotAvailable {
        /// Vring index.
        vring: u16,
        /// Entries in flight.
        inflight: u16,
        /// Entries of the available ring that are not used.
        available: u16,
        /// Used index of the ring.
        used: u16,
    },
    /// An entry that no chain can have is in flight.
    #[error("inflight region of vring {vring} has head {got} in flight, expected less than {size}")]
    Head {
        /// Vring index.
        vring: u16,
        /// Head found.
        got: u16,
        /// Ring size.
        size: u16,
    },
    /// An entry is neither in flight nor not.
    #[error("inflight region of vring {vring} has inflight {got} at head {head}, expected 0 or 1")]
    Flag {
        /// Vring index.
        vring: u16,
        /// Head.
        head: u16,
        /// Value found.
        got: u8,
    },
    /// A field of a packed vring's part that is an index into something smaller.
    #[error("inflight region of vring {vring} has {field} {got}, expected less than {size}")]
    Field {
        /// Vring index.
        vring: u16,
        /// Name of the field, or of the index that it is the wrap counter of.
        field: &'static str,
        /// Value found.
        got: u16,
        /// Limit.
        size: u16,
    },
    /// The batch of a packed vring would be longer than the ring.
    #[error(
        "inflight region of vring {vring} has an open batch of {batch} entries, expected at most {size}"
    )]
    Batch {
        /// Vring index.
        vring: u16,
        /// Distance of the two used positions.
        batch: u32,
        /// Ring size.
        size: u16,
    },
    /// Free list and chains of a packed vring meet, or meet themselves.
    #[error("inflight region of vring {vring} links entry {entry} twice")]
    EntryTwice {
        /// Vring index.
        vring: u16,
        /// Entry.
        entry: u16,
    },
    /// A chain of a packed vring is not what its first entry says.
    #[error(
        "inflight region of vring {vring} has a chain at {head} whose {num} entries do not end at {last}"
    )]
    Chain {
        /// Vring index.
        vring: u16,
        /// First entry.
        head: u16,
        /// Number of entries by the first.
        num: u16,
        /// Last entry by the first.
        last: u16,
    },
    /// Entries of a packed vring's part that can never be used again.
    #[error(
        "inflight region of vring {vring} has {lost} entries that are neither free nor in flight"
    )]
    Lost {
        /// Vring index.
        vring: u16,
        /// How many.
        lost: u32,
    },
    /// Two chains in flight have the same name.
    #[error("inflight region of vring {vring} has buffer id {id} in flight twice")]
    IdTwice {
        /// Vring index.
        vring: u16,
        /// Buffer id.
        id: u16,
    },
    /// What is in flight by the region was never made available in the ring.
    #[error(
        "inflight region of vring {vring} has chains in flight up to ring entry {at}, which was not made available"
    )]
    NotMadeAvailable {
        /// Vring index.
        vring: u16,
        /// Index in the ring.
        at: u16,
    },
    /// The ring that decides about a batch cannot be read.
    #[error("inflight region needs the ring: {0}")]
    Ring(#[from] GuestFault),
    /// The memory cannot be read or written.
    #[error("inflight region is not accessible at offset {0:#x}")]
    Gone(u64),
}

impl From<RegionGone> for InflightFault {
    fn from(e: RegionGone) -> Self {
        Self::Gone(e.offset)
    }
}

impl RegionShape {
    /// Check the header of every part, before any ring is known.
    pub fn check_headers<M: GuestMemory>(&self, mem: &M) -> Result<(), InflightFault> {
        (0..self.num_queues).try_for_each(|vring| self.header(mem, vring).map(drop))
    }

    /// Make a part one that nobody has used: what is in flight by it is dropped.
    pub fn forget<M: GuestMemory>(&self, mem: &M, vring: u16) -> Result<(), InflightFault> {
        if vring >= self.num_queues {
            return Err(InflightFault::NoPart { vring, queues: self.num_queues });
        }
        let region = SplitRegion::new(self.base(vring), 0, 0);
        Ok(region.store(mem, layout::VERSION, 0u16)?)
    }

    /// Version of the part of a vring whose ring has this size.
    pub(super) fn checked_version<L: Loads>(
        &self,
        mem: &L,
        vring: u16,
        size: u16,
    ) -> Result<u16, InflightFault> {
        if vring >= self.num_queues {
            return Err(InflightFault::NoPart { vring, queues: self.num_queues });
        }
        if size > self.queue_size {
            return Err(InflightFault::RingLarger { vring, size, entries: self.queue_size });
        }
        self.header(mem, vring)
    }

    /// Version of a part; the number of entries is checked if it has one.
    fn header<L: Loads>(&self, mem: &L, vring: u16) -> Result<u16, InflightFault> {
        let base = self.base(vring);
        let version: u16 = mem.load(base + layout::VERSION)?;
        match version {
            0 => {}
            layout::VERSION_1 => {
                let got: u16 = mem.load(base + layout::DESC_NUM)?;
                if got != self.queue_size {
                    return Err(InflightFault::DescNum { vring, expected: self.queue_size, got });
                }
            }
            got => return Err(InflightFault::Version { vring, got }),
        }
        Ok(version)
    }
}

pub(super) fn attach<M: GuestMemory>(
    mem: &M,
    shape: &RegionShape,
    vring: u16,
    ring: RingState,
) -> Result<(SplitRegion, Recovery), InflightFault> {
    match plan(mem, shape, vring, ring)? {
        None => initialise(mem, shape, vring, ring),
        Some(plan) => carry_out(mem, shape, vring, ring.used_idx, plan),
    }
}

/// What a region asks of whoever takes it over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Heads that were published without the region knowing, last first: their
    /// flags are cleared and their batch is closed.
    pub published: Vec<u16>,
    /// Counters and heads that are in flight, in the order they were fetched.
    pub live: Vec<(u64, u16)>,
    /// The last head that was linked into a batch.
    pub last_batch_head: u16,
}

/// Read a part and check all of it, storing nothing. `None`: nobody has used
/// it yet.
pub(super) fn plan<L: Loads>(
    mem: &L,
    shape: &RegionShape,
    vring: u16,
    ring: RingState,
) -> Result<Option<Plan>, InflightFault> {
    match shape.checked_version(mem, vring, ring.size)? {
        0 => Ok(None),
        _ => examine(mem, shape, vring, ring).map(Some),
    }
}

/// A region that nobody has used. Its ring may have been: after a migration
/// without this region the used index is not 0, and a region that says 0 would
/// make the next recovery walk a batch that never was.
fn initialise<M: GuestMemory>(
    mem: &M,
    shape: &RegionShape,
    vring: u16,
    ring: RingState,
) -> Result<(SplitRegion, Recovery), InflightFault> {
    let RingState { size, used_idx, .. } = ring;
    marks::hit(Mark::RegionFresh);
    marks::hit_when(Mark::RegionFreshOnUsedRing, || used_idx != 0);
    let at_face_value = bugs::on_when(Bug::FreshRegionAtFaceValue, || used_idx != 0);
    let used_idx = if at_face_value { 0 } else { used_idx };
    let of_ring = bugs::on_when(Bug::DescNumOfRing, || size != shape.queue_size);
    let desc_num = if of_ring { size } else { shape.queue_size };
    let region = SplitRegion::new(shape.base(vring), 0, 0);
    if bugs::on(Bug::VersionFirst) {
        region.store(mem, layout::VERSION, layout::VERSION_1)?;
    }
    region.store(mem, layout::FEATURES, 0u64)?;
    region.store(mem, layout::DESC_NUM, desc_num)?;
    region.store(mem, layout::LAST_BATCH_HEAD, 0u16)?;
    region.store(mem, layout::USED_IDX, used_idx)?;
    for head in 0..shape.queue_size {
        region.store(mem, layout::inflight(head), 0u8)?;
    }
    // Last: a kill before this leaves a region that is still fresh.
    region.store(mem, layout::VERSION, layout::VERSION_1)?;
    Ok((region, Recovery { resubmit: Vec::new(), fresh: true }))
}

fn examine<L: Loads>(
    mem: &L,
    shape: &RegionShape,
    vring: u16,
    ring: RingState,
) -> Result<Plan, InflightFault> {
    let RingState { size: ring_size, used_idx, .. } = ring;
    marks::hit_when(Mark::RecoveryOfSmallerRing, || ring_size < shape.queue_size);
    let base = shape.base(vring);
    let region_used: u16 = mem.load(base + layout::USED_IDX)?;
    let last_batch_head: u16 = mem.load(base + layout::LAST_BATCH_HEAD)?;

    // All loads and checks come before the first store: a region that is
    // refused stays as it was, for a back-end that can make sense of it.
    let published =
        published_batch(mem, base, vring, ring_size, last_batch_head, region_used, used_idx)?;
    let mut in_batch = vec![false; usize::from(shape.queue_size)];
    for &head in &published {
        if core::mem::replace(&mut in_batch[usize::from(head)], true) {
            return Err(InflightFault::LinkTwice { vring, got: head });
        }
    }
    let mut live: Vec<(u64, u16)> = Vec::new();
    for head in 0..shape.queue_size {
        match mem.load::<u8>(base + layout::inflight(head))? {
            0 => marks::hit_when(Mark::RecoveryPartlyRetired, || in_batch[usize::from(head)]),
            1 if head >= ring_size => {
                return Err(InflightFault::Head { vring, got: head, size: ring_size });
            }
            1 if in_batch[usize::from(head)] => {}
            1 if bugs::on_when(Bug::RecoveryMissesLastEntry, || head + 1 == ring_size) => {}
            1 => live.push((mem.load(base + layout::counter(head))?, head)),
            got => return Err(InflightFault::Flag { vring, head, got }),
        }
    }
    // What was fetched was available before, and still is until it is used.
    let (inflight, available) = (live.len() as u16, ring.avail_idx.wrapping_sub(used_idx));
    if inflight > available {
        return Err(InflightFault::NotAvailable { vring, inflight, available, used: used_idx });
    }
    // R3: the order of fetching. The head breaks ties that only a corrupt
    // region can have, so that the order is the same on every run.
    marks::hit_when(Mark::RecoveryReorders, || !live.is_sorted());
    if !bugs::on(Bug::ResubmitInRingOrder) {
        live.sort_unstable();
    }
    Ok(Plan { published, live, last_batch_head })
}

fn carry_out<M: GuestMemory>(
    mem: &M,
    shape: &RegionShape,
    vring: u16,
    used_idx: u16,
    mut plan: Plan,
) -> Result<(SplitRegion, Recovery), InflightFault> {
    // R4: counters go on above every live one. A region whose counter is at the
    // very end has been forged; order is then lost but nothing else.
    let counter = plan.live.iter().map(|(c, _)| c.saturating_add(1)).max().unwrap_or(0);
    let counter = if bugs::on_when(Bug::CounterRestarts, || counter > 0) { 0 } else { counter };

    marks::hit(match (plan.published.len(), plan.live.len()) {
        (0, 0) => Mark::RecoveryIdle,
        (0, _) => Mark::RecoveryResubmits,
        (1, _) => Mark::RecoveryOpenBatch,
        _ => Mark::RecoveryOpenBatchOfMany,
    });
    let base = shape.base(vring);
    let region = SplitRegion::new(base, counter, plan.last_batch_head);
    // R1, R2: finish the batch that was published but not closed. A kill in
    // here leaves the difference in place, so the next successor does it again.
    if bugs::on_when(Bug::OneOfBatchCleared, || plan.published.len() > 1) {
        plan.published.truncate(1);
    }
    for &head in &plan.published {
        region.store(mem, layout::inflight(head), 0u8)?;
    }
    if !bugs::on_when(Bug::RecoveryLeavesOpen, || !plan.published.is_empty()) {
        region.store(mem, layout::USED_IDX, used_idx)?;
    }
    let resubmit = plan.live.into_iter().map(|(_, head)| head).collect();
    Ok((region, Recovery { resubmit, fresh: false }))
}

/// The heads whose publication the region does not know of yet: as many links
/// from `last_batch_head` as the used index is ahead. Links beyond are of
/// older batches and are not followed.
fn published_batch<L: Loads>(
    mem: &L,
    base: u64,
    vring: u16,
    size: u16,
    last_batch_head: u16,
    region_used: u16,
    ring_used: u16,
) -> Result<Vec<u16>, InflightFault> {
    let batch = ring_used.wrapping_sub(region_used);
    if batch > size {
        return Err(InflightFault::UsedIdx {
            vring,
            region: region_used,
            ring: ring_used,
            batch,
            size,
        });
    }
    let mut heads = Vec::with_capacity(usize::from(batch));
    let mut head = last_batch_head;
    for _ in 0..batch {
        if head >= size {
            return Err(InflightFault::Link { vring, got: head, size });
        }
        heads.push(head);
        head = mem.load(base + layout::next(head))?;
    }
    Ok(heads)
}
