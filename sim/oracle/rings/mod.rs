//! Rings, read from the byte layouts in the document: what was made available,
//! what was used, and who wants to be woken.
//!
//! A place in a ring is a number that counts up and wraps: for a split ring at
//! 65536, for a packed ring after two rounds, of which the first has its wrap
//! counter set.

mod packed;
mod split;
#[cfg(test)]
mod tests;

use super::{GuestStore, Violation};
use crate::memory::Mem;
pub use packed::PackedView;
pub use split::SplitView;
use std::ops::Range;
use vm_memory::GuestAddress;

/// Where a ring lies and how far the oracle has read it.
#[derive(Clone, Copy, Debug)]
pub enum RingView {
    /// Three parts, each with its index.
    Split(SplitView),
    /// One ring that both sides write.
    Packed(PackedView),
}

/// A chain that the guest has made available.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its head, or its buffer id.
    pub name: u16,
    /// How far it moves the places.
    pub steps: u16,
    /// Its descriptors as they lie in a packed ring.
    pub descs: Vec<Desc>,
}

/// A descriptor of a packed ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// Flags.
    pub flags: u16,
}

/// What a side has said about being woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Always.
    Always,
    /// Never.
    Never,
    /// When the other side passes this place.
    At(u32),
    /// Something that means nothing.
    Nonsense(u16),
}

/// What one store of a device says to a driver who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The used index is this now.
    Index(u16),
    /// The descriptor in this place of the ring has these flags now.
    Flags(u16, u16),
}

/// Flags of descriptors that a device has stored so far, in a step.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail(Vec<(u16, u16)>);

impl Trail {
    /// Forget them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

pub(super) fn u16_at(mem: &Mem, addr: u64) -> u16 {
    u16::from_le_bytes(mem.load16(addr).expect("rings lie in guest memory"))
}

fn u32_at(mem: &Mem, addr: u64) -> u32 {
    let mut bytes = [0; 4];
    mem.read_slice(&mut bytes, GuestAddress(addr)).expect("rings lie in guest memory");
    u32::from_le_bytes(bytes)
}

macro_rules! each {
    ($self:ident, $view:ident => $what:expr) => {
        match $self {
            Self::Split($view) => $what,
            Self::Packed($view) => $what,
        }
    };
}

impl RingView {
    /// Entries.
    pub fn size(&self) -> u16 {
        each!(self, view => view.size)
    }

    /// The next place to look for something available at.
    pub fn avail_place(&self) -> u32 {
        each!(self, view => view.avail_place())
    }

    /// The next place to look for something used at.
    pub fn used_place(&self) -> u32 {
        each!(self, view => view.used_place())
    }

    /// How far it is from one place to another.
    pub fn distance(&self, from: u32, to: u32) -> u32 {
        each!(self, view => view.distance(from, to))
    }

    /// So many steps on from a place.
    pub fn after(&self, place: u32, steps: u16) -> u32 {
        each!(self, view => view.after(place, steps))
    }

    /// The value by which GET_VRING_BASE tells where a vring is.
    // spec: vhost-user, "Vring descriptor indices for packed virtqueues"
    pub fn base(&self, avail: u32, used: u32) -> u32 {
        match self {
            Self::Split(_) => avail,
            Self::Packed(view) => view.half_base(avail) | view.half_base(used) << 16,
        }
    }

    /// A place in words.
    pub fn name(&self, place: u32) -> String {
        match self {
            Self::Split(_) => place.to_string(),
            Self::Packed(view) => view.name(place),
        }
    }

    /// Where a device stores something else than requests have brought.
    pub fn device_parts(&self) -> [Range<u64>; 2] {
        each!(self, view => view.device_parts())
    }

    /// Whether this address is in one of those.
    pub fn is_device_part(&self, addr: u64) -> bool {
        self.device_parts().iter().any(|part| part.contains(&addr))
    }

    /// The next chain the guest has made available.
    pub fn next_avail(&mut self, mem: &Mem) -> Option<Offer> {
        each!(self, view => view.next_avail(mem))
    }

    /// What the next place says if it is used: id and length.
    pub fn peek_used(&self, mem: &Mem, vring: u16) -> Result<Option<(u32, u32)>, Violation> {
        each!(self, view => view.peek_used(mem, vring))
    }

    /// That was looked at.
    pub fn pass_used(&mut self, steps: u16) {
        let place = self.after(self.used_place(), steps);
        each!(self, view => view.set_used_place(place));
    }

    /// What the driver wants.
    pub fn driver_wish(&self, mem: &Mem, event_idx: bool) -> Wish {
        each!(self, view => view.driver_wish(mem, event_idx))
    }

    /// What the device wants.
    pub fn device_wish(&self, mem: &Mem, event_idx: bool) -> Wish {
        each!(self, view => view.device_wish(mem, event_idx))
    }

    /// Whether somebody with a wish is to be woken for what is from one place to
    /// before another.
    // spec: virtio 1.2, "Used Buffer Notification Suppression", "Event
    // Suppression Structure Format"
    pub fn wakes(&self, wish: Wish, from: u32, to: u32) -> bool {
        match wish {
            Wish::Always => from != to,
            Wish::Never | Wish::Nonsense(_) => false,
            Wish::At(place) => self.distance(from, place) < self.distance(from, to),
        }
    }

    /// What a driver is told by a store of the device.
    pub(super) fn told(&self, store: GuestStore, value: &[u8]) -> Option<Told> {
        each!(self, view => view.told(store, value))
    }

    /// From which place on nothing is used after that, for somebody who was at
    /// `place`. `steps`: of the chain with this name. `passed` is told of each
    /// chain on the way.
    pub(super) fn follow(
        &self,
        mem: &Mem,
        trail: &mut Trail,
        place: u32,
        told: Told,
        steps: impl Fn(u16) -> Option<u16>,
        mut passed: impl FnMut(u16),
    ) -> u32 {
        match (self, told) {
            (Self::Packed(view), Told::Flags(index, flags)) => {
                trail.0.retain(|(at, _)| *at != index);
                trail.0.push((index, flags));
                view.follow(mem, &trail.0, place, steps, passed)
            }
            (Self::Split(view), Told::Index(to)) => {
                let mut at = place as u16;
                // More than a ring at once is for the ledger to say.
                for _ in 0..to.wrapping_sub(at).min(view.size) {
                    passed(view.used_head(mem, at));
                    at = at.wrapping_add(1);
                }
                to.into()
            }
            _ => place,
        }
    }
}
