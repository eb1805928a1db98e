//! Split rings, read from their byte layout.
// spec: virtio 1.2, "Split Virtqueues"

use super::{Offer, Told, Wish, u16_at, u32_at};
use crate::memory::Mem;
use crate::oracle::{GuestStore, Violation};
use std::ops::Range;

/// Where a ring lies and how far the oracle has read it.
#[derive(Clone, Copy, Debug)]
pub struct SplitView {
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Next available index to read.
    pub avail_seen: u16,
    /// Next used index to read.
    pub used_seen: u16,
}

impl SplitView {
    pub(super) fn avail_place(&self) -> u32 {
        self.avail_seen.into()
    }

    pub(super) fn used_place(&self) -> u32 {
        self.used_seen.into()
    }

    pub(super) fn set_used_place(&mut self, place: u32) {
        self.used_seen = place as u16;
    }

    pub(super) fn distance(&self, from: u32, to: u32) -> u32 {
        u32::from((to as u16).wrapping_sub(from as u16))
    }

    pub(super) fn after(&self, place: u32, steps: u16) -> u32 {
        u32::from((place as u16).wrapping_add(steps))
    }

    pub(super) fn device_parts(&self) -> [Range<u64>; 2] {
        [self.used..self.used + 6 + 8 * u64::from(self.size), 0..0]
    }

    /// Used index in memory.
    pub fn used_index(&self, mem: &Mem) -> u16 {
        u16_at(mem, self.used + 2)
    }

    /// Head of the used element with this index.
    pub(super) fn used_head(&self, mem: &Mem, index: u16) -> u16 {
        u32_at(mem, self.used + 4 + 8 * u64::from(index % self.size)) as u16
    }

    /// Available index in memory.
    pub fn avail_index(&self, mem: &Mem) -> u16 {
        u16_at(mem, self.avail + 2)
    }

    pub(super) fn next_avail(&mut self, mem: &Mem) -> Option<Offer> {
        if self.avail_index(mem) == self.avail_seen {
            return None;
        }
        let slot = u64::from(self.avail_seen % self.size);
        self.avail_seen = self.avail_seen.wrapping_add(1);
        let name = u16_at(mem, self.avail + 4 + 2 * slot);
        Some(Offer { name, steps: 1, descs: Vec::new() })
    }

    pub(super) fn peek_used(&self, mem: &Mem, vring: u16) -> Result<Option<(u32, u32)>, Violation> {
        let index = self.used_index(mem);
        let ahead = index.wrapping_sub(self.used_seen);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.size {
            return Err(Violation::new(
                "rings",
                format!(
                    "vring {vring}: used index went from {} to {index}, more than the ring's {} entries",
                    self.used_seen, self.size
                ),
            ));
        }
        let at = self.used + 4 + 8 * u64::from(self.used_seen % self.size);
        Ok(Some((u32_at(mem, at), u32_at(mem, at + 4))))
    }

    pub(super) fn driver_wish(&self, mem: &Mem, event_idx: bool) -> Wish {
        wish(mem, event_idx, self.avail, self.avail + 4 + 2 * u64::from(self.size))
    }

    pub(super) fn device_wish(&self, mem: &Mem, event_idx: bool) -> Wish {
        wish(mem, event_idx, self.used, self.used + 4 + 8 * u64::from(self.size))
    }

    pub(super) fn told(&self, store: GuestStore, value: &[u8]) -> Option<Told> {
        let index = value.first_chunk().filter(|_| store.addr == self.used + 2 && store.len == 2);
        index.map(|index| Told::Index(u16::from_le_bytes(*index)))
    }
}

/// With event indexes the flags mean nothing.
fn wish(mem: &Mem, event_idx: bool, flags: u64, event: u64) -> Wish {
    match event_idx {
        true => Wish::At(u16_at(mem, event).into()),
        false if u16_at(mem, flags) & 1 == 0 => Wish::Always,
        false => Wish::Never,
    }
}
