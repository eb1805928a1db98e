//! The requests the disk works on.

use crate::blk::{ByteRange, DiskOp, DiskRequest, ReqId, Segment};
use crate::bugs::{self, Bug};
use crate::iommu::Range;
use slab::Slab;

/// A request in flight at the disk.
#[derive(Debug)]
pub(super) struct Request {
    epoch: u64,
    pub vring: u16,
    pub head: u16,
    op: DiskOp,
    again: bool,
    order: Option<u64>,
    /// Where its status byte goes.
    pub status_addr: u64,
    /// Data bytes it writes to guest memory if it succeeds.
    pub written: u32,
    /// Its vring is gone: nothing may be written to guest memory for it.
    orphan: bool,
    /// It never had one.
    own: bool,
    /// It uses memory that is not in the table any more.
    vacates: bool,
}

/// What a request is about.
#[derive(Debug, Default)]
struct Lists {
    segments: Vec<Segment>,
    ranges: Vec<ByteRange>,
    /// Its buffers as the guest named them, where that is another address.
    named: Vec<Segment>,
}

/// Table of requests in flight. Slots and their lists are reused, so that
/// nothing is allocated once the table has been full.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: Slab<Request>,
    /// By slot. They stay where they are: a request is moved in and out of the
    /// slab, and this is most of it. Those of a free slot are left over.
    lists: Vec<Lists>,
    /// Epoch for the next request; never reset, so that an id is never reused.
    epoch: u64,
    /// Requests that use memory which is not in the table any more.
    vacating: usize,
}

/// A request as it was read out of its chain.
#[derive(Debug)]
pub(super) struct NewRequest<'a> {
    pub vring: u16,
    pub head: u16,
    pub op: DiskOp,
    /// Guest memory of the data: what is read, what is written.
    pub data: [&'a [Segment]; 2],
    pub ranges: &'a [ByteRange],
    /// A predecessor had fetched it.
    pub again: bool,
    /// Its counter in the inflight region, where that matters.
    pub order: Option<u64>,
    pub status_addr: u64,
}

/// What a finished request leaves to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finished {
    pub vring: u16,
    pub head: u16,
    pub status_addr: u64,
    pub written: u32,
    pub orphan: bool,
    /// It was fetched with the memory before the current one.
    pub vacates: bool,
}

impl Requests {
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn insert(&mut self, new: NewRequest<'_>) -> ReqId {
        let NewRequest { vring, head, op, data, again, order, status_addr, .. } = new;
        let slot = self.slots.vacant_key();
        if slot == self.lists.len() {
            self.lists.push(Lists::default());
        }
        let Lists { segments, ranges, named } = &mut self.lists[slot];
        segments.clear();
        data.iter().for_each(|part| segments.extend_from_slice(part));
        ranges.clear();
        ranges.extend_from_slice(new.ranges);
        named.clear();
        let [_, stored] = data;
        let written = match op.fills_memory() {
            true => stored.iter().map(|s| s.len).sum(),
            false => 0,
        };
        let epoch = self.epoch;
        self.epoch += 1;
        let request = Request {
            epoch,
            vring,
            head,
            op,
            again,
            order,
            status_addr,
            written,
            orphan: false,
            own: false,
            vacates: false,
        };
        self.slots.insert(request);
        ReqId { slot: slot as u32, epoch }
    }

    /// A request of the back-end's own, which no vring is waiting for.
    pub fn insert_own(&mut self, op: DiskOp) -> ReqId {
        let id = self.insert(NewRequest {
            vring: 0,
            head: 0,
            op,
            data: [&[], &[]],
            ranges: &[],
            again: false,
            order: None,
            status_addr: 0,
        });
        let request = &mut self.slots[id.slot as usize];
        (request.orphan, request.own) = (true, true);
        id
    }

    pub fn get(&self, id: ReqId) -> Option<DiskRequest<'_>> {
        let r = self.slots.get(id.slot as usize).filter(|r| r.epoch == id.epoch)?;
        let Request { vring, head, op, again, order, own, .. } = *r;
        let Lists { segments, ranges, .. } = &self.lists[id.slot as usize];
        Some(DiskRequest { id, own, vring, head, op, segments, ranges, again, order })
    }

    /// Take a request out; `None` if this id is not, or no longer, in flight.
    pub fn finish(&mut self, id: ReqId) -> Option<Finished> {
        let slot = id.slot as usize;
        self.slots
            .get(slot)
            .filter(|r| r.epoch == id.epoch || bugs::on(Bug::SecondCompletionTaken))?;
        let r = self.slots.remove(slot);
        let Request { vring, head, status_addr, written, orphan, vacates, .. } = r;
        self.vacating -= usize::from(vacates);
        Some(Finished { vring, head, status_addr, written, orphan, vacates })
    }

    /// Mark the requests that use guest memory for which `gone` says true, by
    /// address and length; how many there are.
    pub fn vacate(&mut self, gone: impl Fn(u64, u64) -> bool) -> usize {
        for (slot, r) in &mut self.slots {
            let data = self.lists[slot].segments.iter().any(|s| gone(s.addr, u64::from(s.len)));
            if !r.vacates && (data || gone(r.status_addr, 1)) {
                r.vacates = true;
                self.vacating += 1;
            }
        }
        self.vacating
    }

    /// Requests that use memory which is not in the table any more.
    pub fn vacating(&self) -> usize {
        self.vacating
    }

    /// The guest has named the buffers of a request otherwise.
    pub fn name(&mut self, id: ReqId, named: &[Segment]) {
        if self.slots.contains(id.slot as usize) {
            self.lists[id.slot as usize].named.extend_from_slice(named);
        }
    }

    /// True if a request has a buffer that the guest names by an address of
    /// this range.
    pub fn use_range(&self, range: Range) -> bool {
        self.slots.iter().flat_map(|(slot, _)| &self.lists[slot].named).any(|s| {
            Range::clamped(s.addr, u64::from(s.len)).is_some_and(|used| used.overlaps(range))
        })
    }

    /// What of a vring may be cancelled, by slot.
    pub fn cancellable(&self, vring: u16) -> impl Iterator<Item = ReqId> {
        self.slots
            .iter()
            .filter(move |(_, r)| r.vring == vring && r.op.repeatable())
            .map(|(slot, r)| ReqId { slot: slot as u32, epoch: r.epoch })
    }

    /// The requests of one vring lose it.
    pub fn orphan(&mut self, vring: u16) {
        for (_, r) in &mut self.slots {
            r.orphan |= r.vring == vring;
        }
    }

    /// Every request in flight loses its vring.
    pub fn orphan_all(&mut self) {
        for (_, r) in &mut self.slots {
            r.orphan = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_a_late_completion_is_not_taken_for_the_new_request_in_its_slot() {
        let mut t = Requests::default();
        let flush = |head| NewRequest {
            vring: 0,
            head,
            op: DiskOp::Flush,
            data: [&[], &[]],
            ranges: &[],
            again: false,
            order: None,
            status_addr: 0,
        };
        let old = t.insert(flush(1));
        assert!(t.finish(old).is_some());
        let new = t.insert(flush(2));
        assert_eq!(old.slot, new.slot);
        assert!(t.get(old).is_none());
        assert!(t.finish(old).is_none());
        assert_eq!(t.finish(new).unwrap().head, 2);
    }
}
