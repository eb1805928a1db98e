//! Nobody sleeps while the other side believes that it was woken.
//!
//! The device owes a call for every store of the used index that covers what
//! the guest has asked for, and the guest owes a kick likewise; who asks for
//! nothing must look by itself. Both are judged at once, from the wishes as
//! they stand in memory from the store to the end of the step: a guest that
//! changes its wish in between has looked for itself.
// spec: virtio 1.2, "Used Buffer Notification Suppression" and "Available
// Buffer Notification Suppression"

use super::rings::{Told, Trail, Wish};
use super::{Ledger, RingView, Violation};
use crate::memory::Mem;

/// A call that is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    /// The used place before, and the one that made it so.
    old: u32,
    place: u32,
    /// Its step is still under way.
    fresh: bool,
}

#[derive(Clone, Debug, Default)]
struct Side {
    /// Up to where the device has said that chains are used.
    used: u32,
    /// What it has stored in this step.
    trail: Trail,
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

/// The guest wants to hear of the used place going from `old` to `new`.
fn wants_call(event_idx: bool, mem: &Mem, ring: &RingView, old: u32, new: u32) -> bool {
    ring.wakes(ring.driver_wish(mem, event_idx), old, new)
}

fn broken(message: String) -> Violation {
    Violation::new("notification", message)
}

impl Calls {
    pub fn new(event_idx: bool, rings: &[RingView]) -> Self {
        let side = |ring: &RingView| Side { used: ring.used_place(), ..Side::default() };
        Self { event_idx, sides: rings.iter().map(side).collect() }
    }

    /// The guest has begun anew on this ring.
    pub fn reset(&mut self, vring: u16, ring: &RingView) {
        self.sides[usize::from(vring)] = Side { used: ring.used_place(), ..Side::default() };
    }

    /// The device has stored something that a driver looks at.
    pub fn published(&mut self, mem: &Mem, vring: u16, ledger: &Ledger, told: Told) {
        let (side, ring) = (&mut self.sides[usize::from(vring)], ledger.ring(vring));
        let (old, steps) = (side.used, |head| ledger.steps(vring, head));
        side.used = match told {
            Told::Index(index) => index.into(),
            told => ring.follow(mem, &mut side.trail, old, told, steps, |_| {}),
        };
        if wants_call(self.event_idx, mem, ring, old, side.used) {
            side.due = Some(Due { old, place: side.used, fresh: true });
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
            side.trail.clear();
            let Some(due) = side.due else { continue };
            let ring = rings(vring);
            if !wants_call(self.event_idx, mem, ring, due.old, due.place) {
                side.due = None;
                continue;
            }
            if due.fresh || runs(vring) {
                let who = if due.fresh { "" } else { " by its predecessor" };
                return Err(broken(format!(
                    "vring {vring}: used index {}, stored{who}, covers what the guest asked to be called for, and no call was sent",
                    ring.name(due.place)
                )));
            }
        }
        Ok(())
    }

    /// The device died in this step; its successor has to pay.
    pub fn died(&mut self) {
        for side in &mut self.sides {
            side.trail.clear();
            side.due = side.due.map(|due| Due { fresh: false, ..due });
        }
    }

    /// The guest has made available what there is from `old` on.
    pub fn offered(&mut self, mem: &Mem, vring: u16, ring: &RingView, old: u32) {
        let wish = ring.device_wish(mem, self.event_idx);
        // A driver that cannot read a wish had better kick.
        let kicked = matches!(wish, Wish::Always | Wish::Nonsense(_))
            || ring.wakes(wish, old, ring.avail_place());
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
        let avail = ring.avail_place();
        let name = || ring.name(avail);
        if !fetched_all {
            return match side.kicked {
                true => Ok(()),
                false => Err(broken(format!(
                    "vring {vring}: the device sleeps, available index {} is not fetched, and it asked not to be kicked for that",
                    name()
                ))),
            };
        }
        let told = match ring.device_wish(mem, self.event_idx) {
            Wish::Always => None,
            Wish::At(event) => {
                (event != avail).then(|| format!("avail_event is {}", ring.name(event)))
            }
            Wish::Never => Some("kicks are switched off".into()),
            Wish::Nonsense(what) => Some(format!("its wish {what:#x} means nothing")),
        };
        match told {
            None => Ok(()),
            Some(told) => Err(broken(format!(
                "vring {vring}: the device sleeps at available index {}, and {told}: the guest will not kick",
                name()
            ))),
        }
    }
}
