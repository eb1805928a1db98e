//! Where appends went, for those whose completion the guest has not seen.
//!
//! An append that is executed twice is in its zone twice, and if the zone has no
//! room for that, the second one fails although the first succeeded. So its
//! place is recorded before it is written. The record is not taken back when it
//! is done, because whoever keeps the record does not know when the completion
//! was published. It is overwritten by the next append of the same head, and
//! told from it by the counter that the inflight region gives every request.

use core::ops::Range;
use std::collections::BTreeMap;

/// A request, as long as there is one inflight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendId {
    /// Vring it came from.
    pub vring: u16,
    /// Its head.
    pub head: u16,
    /// Its counter in the region.
    pub order: u64,
}

/// Where one went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub sectors: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    /// `None`: forgotten, but the slot is kept.
    known: Option<(u64, Append)>,
}

/// At most one append for each head of each vring. Every head has a slot in the
/// file of records, given at its first append.
#[derive(Clone, Debug, Default)]
pub struct Appends {
    by_head: BTreeMap<(u16, u16), Entry>,
    /// Slots that were given to heads once, and are blank or garbage.
    free: Vec<u32>,
    /// The first slot that was never given.
    next: u32,
    changed: Vec<(u16, u16)>,
}

impl Appends {
    /// As they were recorded, in the order of their slots.
    pub fn restore(recorded: impl Iterator<Item = Option<(AppendId, Append)>>) -> Self {
        let mut all = Self::default();
        for (slot, found) in (0..).zip(recorded) {
            all.next = slot + 1;
            match found {
                Some((id, append)) if !all.by_head.contains_key(&(id.vring, id.head)) => {
                    let entry = Entry { slot, known: Some((id.order, append)) };
                    all.by_head.insert((id.vring, id.head), entry);
                }
                _ => all.free.push(slot),
            }
        }
        all
    }

    pub(super) fn find(&self, id: AppendId) -> Option<Append> {
        let (order, append) = self.by_head.get(&(id.vring, id.head))?.known?;
        (order == id.order).then_some(append)
    }

    pub(super) fn insert(&mut self, id: AppendId, append: Append) {
        let key = (id.vring, id.head);
        let (free, next) = (&mut self.free, &mut self.next);
        let entry = self.by_head.entry(key).or_insert_with(|| {
            let slot = free.pop().unwrap_or_else(|| {
                *next += 1;
                *next - 1
            });
            Entry { slot, known: None }
        });
        entry.known = Some((id.order, append));
        self.changed.push(key);
    }

    /// Nothing that a vring had in flight will come again: whoever runs it has
    /// begun with none, perhaps with a new region that counts from 0.
    pub fn forget_vring(&mut self, vring: u16) {
        self.forget(|(of, _), _| *of == vring);
    }

    /// These sectors are not what they were.
    pub(super) fn forget_sectors(&mut self, sectors: Range<u64>) {
        self.forget(|_, append| sectors.contains(&append.sector));
    }

    fn forget(&mut self, which: impl Fn(&(u16, u16), &Append) -> bool) {
        for (key, entry) in &mut self.by_head {
            if entry.known.is_some_and(|(_, append)| which(key, &append)) {
                entry.known = None;
                self.changed.push(*key);
            }
        }
    }

    /// A slot that is not what it was when this last returned it, and what is
    /// there now.
    pub fn next_changed(&mut self) -> Option<(u32, Option<(AppendId, Append)>)> {
        let (vring, head) = self.changed.pop()?;
        let entry = self.by_head.get(&(vring, head))?;
        let id = |order| AppendId { vring, head, order };
        Some((entry.slot, entry.known.map(|(order, append)| (id(order), append))))
    }
}
