//! Packed rings, read from their byte layout.
// spec: virtio 1.2, "Packed Virtqueues"

use super::{Desc, Offer, Told, Wish, u16_at, u32_at};
use crate::memory::Mem;
use crate::oracle::{GuestStore, Violation};
use std::ops::Range;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Where a ring lies and how far the oracle has read it.
#[derive(Clone, Copy, Debug)]
pub struct PackedView {
    /// Entries: any number up to 32768.
    pub size: u16,
    /// Guest-physical address of the descriptors.
    pub ring: u64,
    /// What the driver has to say about being called.
    pub driver: u64,
    /// What the device has to say about being kicked.
    pub device: u64,
    /// Next place to read what is available.
    pub avail_seen: u32,
    /// Next place to read what is used.
    pub used_seen: u32,
}

impl PackedView {
    /// A place that an earlier life has left: so many steps from the start.
    pub fn place(size: u16, steps: u16) -> u32 {
        u32::from(steps) % (2 * u32::from(size))
    }

    pub(super) fn avail_place(&self) -> u32 {
        self.avail_seen
    }

    pub(super) fn used_place(&self) -> u32 {
        self.used_seen
    }

    pub(super) fn set_used_place(&mut self, place: u32) {
        self.used_seen = place;
    }

    fn rounds(&self) -> u32 {
        2 * u32::from(self.size)
    }

    pub(super) fn distance(&self, from: u32, to: u32) -> u32 {
        (to + self.rounds() - from) % self.rounds()
    }

    pub(super) fn after(&self, place: u32, steps: u16) -> u32 {
        (place + u32::from(steps)) % self.rounds()
    }

    /// Index in the ring of a place, and the wrap counter of its round.
    pub fn index(&self, place: u32) -> (u16, bool) {
        ((place % u32::from(self.size)) as u16, place < u32::from(self.size))
    }

    /// 15 bits of index with the wrap counter above.
    pub(super) fn half_base(&self, place: u32) -> u32 {
        let (index, wrap) = self.index(place);
        u32::from(index) | u32::from(wrap) << 15
    }

    /// The place that such 16 bits name; `None` if the ring has no such place.
    fn from_half_base(&self, half: u16) -> Option<u32> {
        let (index, wrap) = (half & 0x7fff, half & 0x8000 != 0);
        let round = if wrap { 0 } else { self.size };
        (index < self.size).then(|| u32::from(index) + u32::from(round))
    }

    pub(super) fn name(&self, place: u32) -> String {
        let (index, wrap) = self.index(place);
        format!("{index} with wrap {}", u8::from(wrap))
    }

    pub(super) fn device_parts(&self) -> [Range<u64>; 2] {
        [self.ring..self.ring + 16 * u64::from(self.size), self.device..self.device + 4]
    }

    fn at(&self, index: u16) -> u64 {
        self.ring + 16 * u64::from(index)
    }

    fn flags(&self, mem: &Mem, index: u16) -> u16 {
        u16_at(mem, self.at(index) + 14)
    }

    fn desc(&self, mem: &Mem, index: u16) -> Desc {
        let at = self.at(index);
        let addr = u64::from(u32_at(mem, at)) | u64::from(u32_at(mem, at + 4)) << 32;
        let flags = self.flags(mem, index);
        Desc { addr, len: u32_at(mem, at + 8), id: u16_at(mem, at + 12), flags }
    }

    /// Whether flags in this place say that it is available.
    fn says_avail(&self, flags: u16, place: u32) -> bool {
        let (_, wrap) = self.index(place);
        (flags & AVAIL != 0) == wrap && (flags & USED != 0) != wrap
    }

    /// Whether flags in this place say that it is used.
    fn says_used(&self, flags: u16, place: u32) -> bool {
        let (_, wrap) = self.index(place);
        (flags & AVAIL != 0) == wrap && (flags & USED != 0) == wrap
    }

    /// Whether the descriptor in a place does not look available any more: it
    /// was used, and perhaps made available again since then.
    pub fn was_used(&self, mem: &Mem, place: u32) -> bool {
        !self.says_avail(self.flags(mem, self.index(place).0), place)
    }

    pub(super) fn next_avail(&mut self, mem: &Mem) -> Option<Offer> {
        let first = self.avail_seen;
        if !self.says_avail(self.flags(mem, self.index(first).0), first) {
            return None;
        }
        let mut offer = Offer::default();
        while offer.steps < self.size {
            let desc = self.desc(mem, self.index(self.avail_seen).0);
            self.avail_seen = self.after(self.avail_seen, 1);
            // The id is in the last descriptor of a chain.
            offer.name = desc.id;
            offer.steps += 1;
            offer.descs.push(desc);
            if desc.flags & NEXT == 0 {
                break;
            }
        }
        Some(offer)
    }

    pub(super) fn peek_used(&self, mem: &Mem, vring: u16) -> Result<Option<(u32, u32)>, Violation> {
        let (index, _) = self.index(self.used_seen);
        let desc = self.desc(mem, index);
        if !self.says_used(desc.flags, self.used_seen) {
            return Ok(None);
        }
        // Without the flag the length would mean nothing, and every request has
        // a status.
        if desc.flags & WRITE == 0 {
            return Err(Violation::new(
                "rings",
                format!(
                    "vring {vring}: used descriptor {index} says by its flags {:#06x} that nothing was written",
                    desc.flags
                ),
            ));
        }
        Ok(Some((desc.id.into(), desc.len)))
    }

    pub(super) fn driver_wish(&self, mem: &Mem, event_idx: bool) -> Wish {
        self.wish(mem, event_idx, self.driver)
    }

    pub(super) fn device_wish(&self, mem: &Mem, event_idx: bool) -> Wish {
        self.wish(mem, event_idx, self.device)
    }

    // spec: virtio 1.2, "Event Suppression Structure Format"
    fn wish(&self, mem: &Mem, event_idx: bool, at: u64) -> Wish {
        let (desc, flags) = (u16_at(mem, at), u16_at(mem, at + 2));
        match flags & 3 {
            0 => Wish::Always,
            1 => Wish::Never,
            2 if event_idx => self.from_half_base(desc).map_or(Wish::Nonsense(desc), Wish::At),
            _ => Wish::Nonsense(flags),
        }
    }

    pub(super) fn told(&self, store: GuestStore, value: &[u8]) -> Option<Told> {
        let end = store.addr.checked_sub(self.ring)? + store.len;
        let index = u16::try_from(end / 16).ok()?.checked_sub(1)?;
        // Flags are the last two bytes of a descriptor.
        if index >= self.size || !end.is_multiple_of(16) || store.len < 2 {
            return None;
        }
        let flags = value.last_chunk().map(|flags| u16::from_le_bytes(*flags))?;
        Some(Told::Flags(index, flags))
    }

    /// The first place that is not among the used ones of `trail`, going from
    /// `place` by the lengths of the chains.
    pub(super) fn follow(
        &self,
        mem: &Mem,
        trail: &[(u16, u16)],
        place: u32,
        steps: impl Fn(u16) -> Option<u16>,
        mut passed: impl FnMut(u16),
    ) -> u32 {
        let mut at = place;
        for _ in 0..self.size {
            let (index, _) = self.index(at);
            let used = trail.iter().any(|(i, flags)| *i == index && self.says_used(*flags, at));
            let id = u16_at(mem, self.at(index) + 12);
            let Some(steps) = steps(id).filter(|_| used) else { break };
            passed(id);
            at = self.after(at, steps);
        }
        at
    }

    /// Whether a device may store here, being at `place`: in descriptors it was
    /// given and has not given back, everything but the address.
    pub(in crate::oracle) fn may_store(&self, store: GuestStore, place: u32) -> bool {
        let inside =
            |part: Range<u64>| part.contains(&store.addr) && store.addr + store.len <= part.end;
        let [ring, device] = self.device_parts();
        if inside(device) {
            return true;
        }
        if !inside(ring) {
            return false;
        }
        let offset = store.addr - self.ring;
        let (index, within) = ((offset / 16) as u32, offset % 16);
        let held = self.distance(place, self.avail_seen);
        let ahead =
            (index + u32::from(self.size) - place % u32::from(self.size)) % u32::from(self.size);
        within >= 8 && within + store.len <= 16 && ahead < held
    }
}
