//! The back-end stores only where a device may: what rings have for it, the
//! inflight region, and what it may write of requests that are in flight. Never in a
//! buffer that it has given back.
// spec: virtio 1.2, "The Virtqueue Used Ring": the device writes buffers
// before it returns them.

use super::ledger::joined;
use super::rings::{Told, Trail};
use super::{Ledger, RingView, Violation};
use crate::memory::Mem;
use crate::trace::Verb;
use std::cell::{RefCell, RefMut};

/// One store to guest memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestStore {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// What one step has done so far.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// Requests given back in this step.
    ended: Vec<u64>,
    /// By vring, if it was published in this step: next place to look for used
    /// ones at, and what was stored before it.
    seen: Vec<(u16, u32, Trail)>,
}

/// Judges the stores of one step, in their order.
pub(super) struct Watch<'a> {
    ledger: &'a Ledger,
    mem: &'a Mem,
    step: RefMut<'a, Step>,
    /// By vring: what its ring says means nothing.
    spoiled: &'a [bool],
}

impl<'a> Watch<'a> {
    /// `step` is made new; its lists are used again and again.
    pub fn new(
        ledger: &'a Ledger,
        mem: &'a Mem,
        step: &'a RefCell<Step>,
        spoiled: &'a [bool],
    ) -> Self {
        let mut step = step.borrow_mut();
        step.ended.clear();
        step.seen.clear();
        Self { ledger, mem, step, spoiled }
    }

    /// `value`: what was stored.
    pub fn store(&mut self, store: GuestStore, value: &[u8]) -> Result<(), Violation> {
        for vring in 0..self.ledger.vrings() {
            let ring = self.ledger.ring(vring);
            let last = store.addr + store.len.max(1) - 1;
            if !ring.is_device_part(store.addr) || !ring.is_device_part(last) {
                continue;
            }
            if self.spoiled[usize::from(vring)] {
                return Ok(());
            }
            self.check_descriptor(vring, store)?;
            if let Some(told) = ring.told(store, value) {
                self.publish(vring, told);
            }
            return Ok(());
        }
        match self.request_at(store) {
            None => Err(Violation::new(
                "memory",
                format!(
                    "back-end stores {} bytes at {:#x}, where no request in flight lets it",
                    store.len, store.addr
                ),
            )),
            Some(request) if self.step.ended.contains(&request) => Err(Violation::new(
                "memory",
                format!("back-end writes to request {request} after it was given back"),
            )),
            Some(_) => Ok(()),
        }
    }

    /// In a packed ring a device writes to descriptors it was given only.
    // spec: virtio 1.2, "Packed Virtqueues"
    fn check_descriptor(&self, vring: u16, store: GuestStore) -> Result<(), Violation> {
        let RingView::Packed(view) = self.ledger.ring(vring) else { return Ok(()) };
        let seen = self.step.seen.iter().find(|(of, ..)| *of == vring);
        let place = seen.map_or(view.used_seen, |(_, place, _)| *place);
        match view.may_store(store, place) {
            true => Ok(()),
            false => Err(Violation::new(
                "memory",
                format!(
                    "back-end stores {} bytes at {:#x} in the ring of vring {vring}, to a descriptor that the guest has",
                    store.len, store.addr
                ),
            )),
        }
    }

    fn publish(&mut self, vring: u16, told: Told) {
        let Step { ended, seen } = &mut *self.step;
        let (ledger, ring) = (self.ledger, self.ledger.ring(vring));
        let at = seen.iter().position(|(of, ..)| *of == vring).unwrap_or_else(|| {
            seen.push((vring, ring.used_place(), Trail::default()));
            seen.len() - 1
        });
        let (_, place, trail) = &mut seen[at];
        let steps = |head| ledger.steps(vring, head);
        let passed = |head| ended.extend(ledger.holder(vring, head));
        *place = ring.follow(self.mem, trail, *place, told, steps, passed);
    }

    fn request_at(&self, store: GuestStore) -> Option<u64> {
        let end = store.addr + store.len;
        let inside = |addr: u64, len: u64| store.addr >= addr && end <= addr + len;
        (0..self.ledger.vrings()).flat_map(|v| self.ledger.outstanding(v)).find_map(|ask| {
            let answer = inside(ask.status, 1)
                || (ask.verb == Verb::GetId
                    && joined(&ask.data).any(|(addr, len)| inside(addr, len)));
            answer.then_some(ask.request)
        })
    }
}
