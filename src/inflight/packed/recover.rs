//! Reading a packed vring's part that somebody else left behind. Its bytes are
//! untrusted.
// spec: vhost-user, "Inflight I/O tracking": "When reconnecting", packed

use super::layout::{self, State};
use super::{PackedRegion, RegionShape};
use crate::bugs::{self, Bug};
use crate::inflight::layout as common;
use crate::inflight::recover::{InflightFault, Recovery};
use crate::inflight::view::Loads;
use crate::marks::{self, Mark};
use crate::vring::PackedRing;
use crate::vring::packed::{ChainTable, Entry, Position, Positions};
use vm_memory::GuestMemory;

/// What the first bytes of one vring's part say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedHeader {
    /// None are defined.
    pub features: u64,
    /// 0 fresh, 1 in use.
    pub version: u16,
    /// Entries.
    pub desc_num: u16,
    /// First free entry, with the open batch.
    pub free_head: u16,
    /// First free entry when the last batch was closed.
    pub old_free_head: u16,
    /// Used index and wrap counter, with the open batch.
    pub used: (u16, u8),
    /// Used index and wrap counter when the last batch was closed.
    pub old_used: (u16, u8),
}

/// The header of a part, unchecked.
pub(in crate::inflight) fn header<L: Loads>(
    mem: &L,
    base: u64,
) -> Result<PackedHeader, InflightFault> {
    let (free_head, old_free_head) = layout::load_pair(mem.load(base + layout::FREE_HEADS)?);
    let [used, old_used] = layout::load_used(mem.load(base + layout::USED)?);
    Ok(PackedHeader {
        features: mem.load(base + common::FEATURES)?,
        version: mem.load(base + common::VERSION)?,
        desc_num: mem.load(base + common::DESC_NUM)?,
        free_head,
        old_free_head,
        used,
        old_used,
    })
}

/// What a packed region asks of whoever takes it over.
#[derive(Clone, Debug)]
pub struct PackedPlan {
    /// Ring entries of the batch that was begun and not closed.
    pub batch: u16,
    /// That batch was published: it is closed. Otherwise it is as if it had
    /// never been begun.
    pub published: bool,
    /// First free entry.
    pub free_head: u16,
    /// Where the ring goes on.
    pub positions: Positions,
    /// Counters and slots that are in flight, in the order they were fetched.
    pub live: Vec<(u64, u16)>,
    /// Free entries that are marked in flight, whose flags are cleared.
    pub stale: Vec<u16>,
    /// The chains in flight, by slot.
    pub table: ChainTable,
}

/// What there is to do for a ring of so many entries; `None` if the part is
/// fresh. `published` is asked about the ring only if a batch is open.
pub(in crate::inflight) fn plan<L: Loads>(
    mem: &L,
    shape: &RegionShape,
    vring: u16,
    size: u16,
    published: impl FnOnce(Position) -> Result<bool, InflightFault>,
) -> Result<Option<PackedPlan>, InflightFault> {
    if shape.checked_version(mem, vring, size)? == 0 {
        return Ok(None);
    }
    let base = shape.base(vring);
    let h = header(mem, base)?;
    let position = |field, (index, wrap): (u16, u8)| -> Result<Position, InflightFault> {
        let below = |got: u16, size| match got < size {
            true => Ok(()),
            false => Err(InflightFault::Field { vring, field, got, size }),
        };
        below(index, size)?;
        below(wrap.into(), 2)?;
        Ok(Position { index, wrap: wrap == 1 })
    };
    let (used, old) = (position("used_idx", h.used)?, position("old_used_idx", h.old_used)?);
    let batch = old.distance(used, size);
    if batch > u32::from(size) {
        return Err(InflightFault::Batch { vring, batch, size });
    }
    let published = match batch {
        0 => false,
        _ if bugs::on(Bug::PackedNoRollBack) => true,
        _ if bugs::on(Bug::PackedNoCommit) => false,
        _ if bugs::on(Bug::PackedCommitByEntry) => {
            mem.load::<u8>(base + layout::inflight(old.index))? == 0
        }
        _ => published(old)?,
    };
    let (free_head, used) = if published { (h.free_head, used) } else { (h.old_free_head, old) };

    let mut reader = Reader::new(mem, shape, vring)?;
    let (free, stale) = reader.free_list(free_head)?;
    let mut live = reader.chains()?;
    let entries: u32 = live.iter().map(|(_, slot)| u32::from(reader.state(*slot).num)).sum();
    if u32::from(free) + entries != u32::from(shape.queue_size) {
        let lost = u32::from(shape.queue_size) - u32::from(free) - entries;
        return Err(InflightFault::Lost { vring, lost });
    }
    if entries > u32::from(size) {
        let (available, used) = (size, used.index);
        return Err(InflightFault::NotAvailable {
            vring,
            inflight: entries as u16,
            available,
            used,
        });
    }
    marks::hit_when(Mark::RecoveryReorders, || !live.is_sorted());
    live.sort_unstable();
    let positions = Positions { avail: used.after(entries as u16, size), used };
    let table = reader.table(free_head, free, &live)?;
    Ok(Some(PackedPlan {
        batch: batch as u16,
        published,
        free_head,
        positions,
        live,
        stale,
        table,
    }))
}

/// A part whose entries are looked at once each.
struct Reader<'a, L> {
    mem: &'a L,
    base: u64,
    vring: u16,
    states: Vec<State>,
    /// Entries that were found on the free list or in a chain.
    seen: Vec<bool>,
}

impl<'a, L: Loads> Reader<'a, L> {
    fn new(mem: &'a L, shape: &RegionShape, vring: u16) -> Result<Self, InflightFault> {
        let base = shape.base(vring);
        let mut states = Vec::with_capacity(usize::from(shape.queue_size));
        for entry in 0..shape.queue_size {
            let state = State::load(mem.load(base + layout::state(entry))?);
            if state.inflight > 1 {
                let got = state.inflight;
                return Err(InflightFault::Flag { vring, head: entry, got });
            }
            states.push(state);
        }
        let seen = vec![false; states.len()];
        Ok(Self { mem, base, vring, states, seen })
    }

    fn state(&self, entry: u16) -> State {
        self.states[usize::from(entry)]
    }

    /// An entry is somewhere; it cannot be anywhere else.
    fn see(&mut self, entry: u16) -> Result<State, InflightFault> {
        let (vring, size) = (self.vring, self.states.len() as u16);
        let seen = self.seen.get_mut(usize::from(entry));
        let seen = seen.ok_or(InflightFault::Link { vring, got: entry, size })?;
        if core::mem::replace(seen, true) {
            return Err(InflightFault::EntryTwice { vring, entry });
        }
        Ok(self.state(entry))
    }

    /// Number of free entries, and which of them have their flag set. A link
    /// that leaves the table ends the list; since no entry is seen twice, so
    /// does the number of entries.
    fn free_list(&mut self, head: u16) -> Result<(u16, Vec<u16>), InflightFault> {
        let (mut at, mut count, mut stale) = (head, 0, Vec::new());
        while usize::from(at) < self.states.len() {
            let state = self.see(at)?;
            if state.inflight == 1 {
                stale.push(at);
            }
            count += 1;
            at = state.next;
        }
        Ok((count, stale))
    }

    /// Counters and first entries of the chains in flight.
    fn chains(&mut self) -> Result<Vec<(u64, u16)>, InflightFault> {
        let vring = self.vring;
        let free = self.seen.clone();
        let mut live = Vec::new();
        for head in 0..self.states.len() as u16 {
            let State { inflight, num, last, .. } = self.state(head);
            if inflight == 0 || free[usize::from(head)] {
                continue;
            }
            let (mut at, mut end) = (head, None);
            for _ in 0..num {
                let next = self.see(at)?.next;
                end = Some(core::mem::replace(&mut at, next));
            }
            if end != Some(last) {
                return Err(InflightFault::Chain { vring, head, num, last });
            }
            live.push((self.mem.load(self.base + layout::counter(head))?, head));
        }
        Ok(live)
    }

    fn table(
        &self,
        free_head: u16,
        free: u16,
        live: &[(u64, u16)],
    ) -> Result<ChainTable, InflightFault> {
        let mut entries = Vec::with_capacity(self.states.len());
        for (entry, state) in (0..).zip(&self.states) {
            let &State { next, last, num, .. } = state;
            let addr = self.mem.load(self.base + layout::addr(entry))?;
            let desc = layout::load_desc(addr, self.mem.load(self.base + layout::desc(entry))?);
            entries.push(Entry { desc, next, last, num });
        }
        let mut table = ChainTable::restored(entries, free_head, free);
        for &(_, slot) in live {
            if !table.adopt(slot) {
                let id = table.chain(slot).id;
                return Err(InflightFault::IdTwice { vring: self.vring, id });
            }
        }
        Ok(table)
    }
}

pub(super) fn attach<M: GuestMemory, G: GuestMemory>(
    mem: &M,
    shape: &RegionShape,
    vring: u16,
    guest: &G,
    ring: &mut PackedRing,
) -> Result<(PackedRegion, Recovery), InflightFault> {
    let published = |at| Ok(ring.was_published(guest, at)?);
    let Some(plan) = plan(mem, shape, vring, ring.size(), published)? else {
        return initialise(mem, shape, vring, ring);
    };
    let stale = ring.unpublished(guest, plan.positions)?;
    let stale = stale.map_err(|at| InflightFault::NotMadeAvailable { vring, at: at.index })?;
    for at in stale.into_iter().filter(|_| !bugs::on(Bug::PackedMarksLeft)) {
        ring.take_back(guest, at)?;
    }
    #[cfg(feature = "bugs")]
    let plan = resubmit_from_ring(guest, ring, plan)?;
    carry_out(mem, shape, vring, ring, plan)
}

/// The mistake of that name.
#[cfg(feature = "bugs")]
fn resubmit_from_ring<M: GuestMemory>(
    guest: &M,
    ring: &PackedRing,
    mut plan: PackedPlan,
) -> Result<PackedPlan, InflightFault> {
    if bugs::on_when(Bug::PackedResubmitsFromRing, || !plan.live.is_empty()) {
        let live = plan.live.iter().map(|(_, slot)| *slot);
        ring.read_again(guest, plan.positions.used, &mut plan.table, live)?;
    }
    Ok(plan)
}

fn initialise<M: GuestMemory>(
    mem: &M,
    shape: &RegionShape,
    vring: u16,
    ring: &mut PackedRing,
) -> Result<(PackedRegion, Recovery), InflightFault> {
    let used = ring.positions().used;
    marks::hit(Mark::RegionFresh);
    marks::hit_when(Mark::RegionFreshOnUsedRing, || used != Position::START);
    let region = PackedRegion {
        base: shape.base(vring),
        ring_size: ring.size(),
        counter: 0,
        free_head: 0,
        used,
        old_used: used,
    };
    region.store(mem, common::FEATURES, 0u64)?;
    region.store(mem, common::DESC_NUM, shape.queue_size)?;
    region.store(mem, layout::FREE_HEADS, layout::pair(0, 0))?;
    region.store(mem, layout::USED, layout::used_word(used, used))?;
    for entry in 0..shape.queue_size {
        let state = State { inflight: 0, next: entry + 1, last: 0, num: 0 };
        region.store(mem, layout::state(entry), state.word())?;
    }
    // Last: a kill before this leaves a region that is still fresh.
    region.store(mem, common::VERSION, common::VERSION_1)?;
    let positions = ring.positions();
    ring.adopt(ChainTable::new(shape.queue_size), positions);
    Ok((region, Recovery { resubmit: Vec::new(), fresh: true }))
}

fn carry_out<M: GuestMemory>(
    mem: &M,
    shape: &RegionShape,
    vring: u16,
    ring: &mut PackedRing,
    plan: PackedPlan,
) -> Result<(PackedRegion, Recovery), InflightFault> {
    marks::hit(match (plan.batch, plan.live.len()) {
        (0, 0) => Mark::RecoveryIdle,
        (0, _) => Mark::RecoveryResubmits,
        (1, _) => Mark::RecoveryOpenBatch,
        _ => Mark::RecoveryOpenBatchOfMany,
    });
    marks::hit_when(Mark::RecoveryOfSmallerRing, || ring.size() < shape.queue_size);
    // Counters go on above every live one; see the split region.
    let counter = plan.live.iter().map(|(c, _)| c.saturating_add(1)).max().unwrap_or(0);
    let (free_head, used) = (plan.free_head, plan.positions.used);
    let region = PackedRegion {
        base: shape.base(vring),
        ring_size: ring.size(),
        counter,
        free_head,
        used,
        old_used: used,
    };
    // The same order as at the end of a batch, and for the same reason: until
    // the positions are alike the next successor decides again, and alike.
    for entry in plan.stale {
        region.store(mem, layout::inflight(entry), 0u8)?;
    }
    region.store(mem, layout::FREE_HEADS, layout::pair(free_head, free_head))?;
    region.store(mem, layout::USED, layout::used_word(used, used))?;
    ring.adopt(plan.table, plan.positions);
    let resubmit = plan.live.into_iter().map(|(_, slot)| slot).collect();
    Ok((region, Recovery { resubmit, fresh: false }))
}
