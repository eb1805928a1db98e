//! Nobody sleeps while the other side believes that it was woken.
//!
//! The device owes a call for every store of the used index that covers what
//! the guest has asked for, and the guest owes a kick likewise; who asks for
//! nothing must look by itself. Both are judged at once, from the wishes as
//! they stand in memory from the store to the end of the step: a guest that
//! changes its wish in between has looked for itself.
// spec: virtio 1.2, "Used Buffer Notification Suppression" and "Available
// Buffer Notification Suppression"

use super::rings::u16_at;
use super::{RingView, Violation};
use crate::memory::Mem;

/// A call that is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    /// The used index before, and the one that made it so.
    old: u16,
    index: u16,
    /// Its step is still under way.
    fresh: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Side {
    /// Used index stored last.
    used: u16,
    due: Option<Due>,
    /// The guest has kicked, and the device has not heard of it yet.
    kicked: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Calls {
    event_idx: bool,
    sides: Vec<Side>,
}

/// What a device does about a vring once its step is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Which vring.
    pub vring: u16,
    /// All that was made available is fetched.
    pub fetched_all: bool,
}

/// An event index covers the step from `old` to `new`.
fn crosses(event: u16, old: u16, new: u16) -> bool {
    // In the words of the document: the index was passed if fewer steps lead
    // from it to the new value than from the old value to the new one.
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The guest wants to hear of the used index going from `old` to `new`.
fn wants_call(event_idx: bool, mem: &Mem, ring: &RingView, old: u16, new: u16) -> bool {
    match event_idx {
        true => crosses(u16_at(mem, ring.avail + 4 + 2 * u64::from(ring.size)), old, new),
        false => old != new && u16_at(mem, ring.avail) & 1 == 0,
    }
}

fn broken(message: String) -> Violation {
    Violation::new("notification", message)
}

impl Calls {
    pub fn new(event_idx: bool, rings: &[RingView]) -> Self {
        let side = |ring: &RingView| Side { used: ring.used_seen, ..Side::default() };
        Self { event_idx, sides: rings.iter().map(side).collect() }
    }

    /// The device has stored this used index.
    pub fn published(&mut self, mem: &Mem, vring: u16, ring: &RingView, index: u16) {
        let side = &mut self.sides[usize::from(vring)];
        let old = std::mem::replace(&mut side.used, index);
        if wants_call(self.event_idx, mem, ring, old, index) {
            side.due = Some(Due { old, index, fresh: true });
        }
    }

    /// The device has called.
    pub fn called(&mut self, vring: u16) {
        self.sides[usize::from(vring)].due = None;
    }

    /// The step of the device is over, and it lives: what it owes for this step
    /// is paid, and what a predecessor owes as well where it has taken over.
    pub fn check_paid<'r>(
        &mut self,
        mem: &Mem,
        rings: impl Fn(u16) -> &'r RingView,
        runs: impl Fn(u16) -> bool,
    ) -> Result<(), Violation> {
        for (vring, side) in (0u16..).zip(&mut self.sides) {
            let Some(due) = side.due else { continue };
            if !wants_call(self.event_idx, mem, rings(vring), due.old, due.index) {
                side.due = None;
                continue;
            }
            if due.fresh || runs(vring) {
                let who = if due.fresh { "" } else { " by its predecessor" };
                return Err(broken(format!(
                    "vring {vring}: used index {}, stored{who}, covers what the guest asked to be called for, and no call was sent",
                    due.index
                )));
            }
        }
        Ok(())
    }

    /// The device died in this step; its successor has to pay.
    pub fn died(&mut self) {
        for due in self.sides.iter_mut().filter_map(|side| side.due.as_mut()) {
            due.fresh = false;
        }
    }

    /// The guest has moved the available index.
    pub fn offered(&mut self, mem: &Mem, vring: u16, ring: &RingView, old: u16, new: u16) {
        let kicked = if self.event_idx {
            crosses(u16_at(mem, ring.used + 4 + 8 * u64::from(ring.size)), old, new)
        } else {
            u16_at(mem, ring.used) & 1 == 0
        };
        self.sides[usize::from(vring)].kicked |= kicked;
    }

    /// The device hears of all kicks there were.
    pub fn kick_heard(&mut self, vring: u16) {
        self.sides[usize::from(vring)].kicked = false;
    }

    /// The device sleeps, until it is kicked.
    pub fn check_sleep(
        &self,
        mem: &Mem,
        ring: &RingView,
        Rest { vring, fetched_all }: Rest,
    ) -> Result<(), Violation> {
        let side = &self.sides[usize::from(vring)];
        let avail = u16_at(mem, ring.avail + 2);
        if !fetched_all {
            return match side.kicked {
                true => Ok(()),
                false => Err(broken(format!(
                    "vring {vring}: the device sleeps, available index {avail} is not fetched, and it asked not to be kicked for that"
                ))),
            };
        }
        let told = if self.event_idx {
            let event = u16_at(mem, ring.used + 4 + 8 * u64::from(ring.size));
            (event != avail).then(|| format!("avail_event is {event}"))
        } else {
            (u16_at(mem, ring.used) & 1 != 0).then(|| "kicks are switched off".into())
        };
        match told {
            None => Ok(()),
            Some(told) => Err(broken(format!(
                "vring {vring}: the device sleeps at available index {avail}, and {told}: the guest will not kick"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_an_event_index_is_crossed_by_the_store_that_passes_it() {
        for (event, old, new, want) in [
            (4, 4, 5, true),
            (5, 4, 5, false),
            (4, 4, 4, false),
            (3, 4, 9, false),
            (8, 4, 9, true),
            (9, 4, 9, false),
            (65535, 65535, 0, true),
            (0, 65535, 0, false),
            (1, 65534, 3, true),
        ] {
            assert_eq!(crosses(event, old, new), want, "{event} {old} {new}");
        }
    }
}
