//! The back-end stores only where a device may: used rings, the inflight
//! region, and what it may write of requests that are in flight. Never in a
//! buffer that it has given back.
// spec: virtio 1.2, "The Virtqueue Used Ring": the device writes buffers
// before it returns them.

use super::ledger::joined;
use super::{Ledger, Violation};
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
    /// By vring, if it was published in this step: next used index to look at.
    seen: Vec<(u16, u16)>,
}

/// Judges the stores of one step, in their order.
pub(super) struct Watch<'a> {
    ledger: &'a Ledger,
    mem: &'a Mem,
    step: RefMut<'a, Step>,
    /// By vring: what its used ring says means nothing.
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

    /// `value`: what was stored, where it is a used index.
    pub fn store(&mut self, store: GuestStore, value: &[u8]) -> Result<(), Violation> {
        for vring in 0..self.ledger.vrings() {
            let ring = self.ledger.ring(vring);
            let used = ring.used..ring.used + 6 + 8 * u64::from(ring.size);
            if !used.contains(&store.addr) || store.addr + store.len > used.end {
                continue;
            }
            let means = !self.spoiled[usize::from(vring)];
            if store.addr == ring.used + 2 && store.len == 2 && means {
                self.publish(vring, u16::from_le_bytes([value[0], value[1]]));
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

    fn publish(&mut self, vring: u16, index: u16) {
        let Step { ended, seen } = &mut *self.step;
        let at = seen.iter().position(|(of, _)| *of == vring).unwrap_or_else(|| {
            seen.push((vring, self.ledger.ring(vring).used_seen));
            seen.len() - 1
        });
        let seen = &mut seen[at].1;
        // More than a ring at once is for the oracle of rings to say.
        while *seen != index && ended.len() < 1 << 16 {
            let head = self.ledger.ring(vring).used_head(self.mem, *seen);
            ended.extend(self.ledger.holder(vring, head));
            *seen = seen.wrapping_add(1);
        }
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
