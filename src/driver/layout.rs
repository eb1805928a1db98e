//! Where the three parts of a ring lie in guest memory.

use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Bytes of one descriptor.
pub(super) const DESC_SIZE: u64 = 16;
/// Bytes of one event suppression structure of a packed ring.
// spec: virtio 1.2, "Event Suppression Structure Format"
pub(super) const EVENT_SIZE: u64 = 4;

/// Guest-physical addresses of a ring and its size in entries.
///
/// The fields are public because a hostile guest in a test needs to write to
/// them; [`RingLayout::check`] and [`RingLayout::check_packed`] tell whether
/// they are legal. Three addresses are told to a device for either format, and
/// stand for other things; methods without `packed` in their names speak of
/// split rings.
// spec: virtio 1.2, "Split Virtqueues", "Packed Virtqueues"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Entries, 1 to 32768; a power of two in a split ring.
    pub size: u16,
    /// Descriptor table or packed descriptor ring, 16-byte aligned.
    pub desc: u64,
    /// Driver area: available ring, 2-byte aligned, or the packed ring's driver
    /// event suppression, 4-byte aligned.
    pub avail: u64,
    /// Device area, 4-byte aligned: used ring, or the packed ring's device event
    /// suppression.
    pub used: u64,
}

/// A layout no device may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two between 1 and 32768.
    #[error("ring size: expected a power of two from 1 to 32768, got {0}")]
    Size(u16),
    /// Not between 1 and 32768.
    #[error("packed ring size: expected 1 to 32768, got {0}")]
    PackedSize(u16),
    /// A part does not start where its type demands.
    #[error("{part} at {addr:#x}: expected an alignment of {align} bytes")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Its address.
        addr: u64,
        /// Alignment in bytes.
        align: u64,
    },
    /// A part would run past the end of the address space.
    #[error("{part} at {addr:#x} does not fit below the end of the address space")]
    Overflow {
        /// Which part.
        part: &'static str,
        /// Its address.
        addr: u64,
    },
}

impl RingLayout {
    /// All three parts one after the other from `base`, which is rounded up to
    /// 16 bytes; they end before `base` + [`RingLayout::footprint`].
    pub fn contiguous(size: u16, base: u64) -> Result<Self, LayoutError> {
        let overflow = LayoutError::Overflow { part: "ring", addr: base };
        let desc = base.checked_next_multiple_of(16).ok_or(overflow)?;
        let avail = desc.checked_add(Self::desc_bytes(size)).ok_or(overflow)?;
        let used = avail
            .checked_add(Self::avail_bytes(size))
            .and_then(|end| end.checked_next_multiple_of(4))
            .ok_or(overflow)?;
        let layout = Self { size, desc, avail, used };
        layout.check()?;
        Ok(layout)
    }

    /// Bytes that [`RingLayout::contiguous`] needs at most, whatever the base.
    pub const fn footprint(size: u16) -> u64 {
        15 + Self::desc_bytes(size) + Self::avail_bytes(size) + 3 + Self::used_bytes(size)
    }

    /// Bytes of the descriptor table.
    pub const fn desc_bytes(size: u16) -> u64 {
        DESC_SIZE * size as u64
    }

    /// Bytes of the available ring, `used_event` included.
    pub const fn avail_bytes(size: u16) -> u64 {
        6 + 2 * size as u64
    }

    /// Bytes of the used ring, `avail_event` included.
    pub const fn used_bytes(size: u16) -> u64 {
        6 + 8 * size as u64
    }

    /// Size, alignment and end of each part, but not whether memory is there.
    pub fn check(&self) -> Result<(), LayoutError> {
        if !self.size.is_power_of_two() || self.size > 32768 {
            return Err(LayoutError::Size(self.size));
        }
        let parts = [
            ("descriptor table", self.desc, 16, Self::desc_bytes(self.size)),
            ("available ring", self.avail, 2, Self::avail_bytes(self.size)),
            ("used ring", self.used, 4, Self::used_bytes(self.size)),
        ];
        check_parts(parts)
    }

    /// A packed ring and its two event suppression areas one after the other
    /// from `base`, which is rounded up to 16 bytes; they end before `base` +
    /// [`RingLayout::packed_footprint`].
    pub fn contiguous_packed(size: u16, base: u64) -> Result<Self, LayoutError> {
        let overflow = LayoutError::Overflow { part: "ring", addr: base };
        let desc = base.checked_next_multiple_of(16).ok_or(overflow)?;
        let avail = desc.checked_add(Self::desc_bytes(size)).ok_or(overflow)?;
        let used = avail.checked_add(EVENT_SIZE).ok_or(overflow)?;
        let layout = Self { size, desc, avail, used };
        layout.check_packed()?;
        Ok(layout)
    }

    /// Bytes that [`RingLayout::contiguous_packed`] needs at most, whatever the base.
    pub const fn packed_footprint(size: u16) -> u64 {
        15 + Self::desc_bytes(size) + 2 * EVENT_SIZE
    }

    /// The same as [`RingLayout::check`] for a packed ring.
    // spec: virtio 1.2, "Packed Virtqueues"
    pub fn check_packed(&self) -> Result<(), LayoutError> {
        if self.size == 0 || self.size > 32768 {
            return Err(LayoutError::PackedSize(self.size));
        }
        check_parts([
            ("descriptor ring", self.desc, 16, Self::desc_bytes(self.size)),
            ("driver event suppression", self.avail, 4, EVENT_SIZE),
            ("device event suppression", self.used, 4, EVENT_SIZE),
        ])
    }

    /// Address of entry `index` of a packed ring, which must be in it.
    pub const fn packed_entry(&self, index: u16) -> u64 {
        self.desc + DESC_SIZE * index as u64
    }

    /// Address of descriptor `index`, which wraps at the ring size.
    pub const fn desc_entry(&self, index: u16) -> u64 {
        self.desc + DESC_SIZE * self.slot(index)
    }

    /// Address of `avail.flags`.
    pub const fn avail_flags(&self) -> u64 {
        self.avail
    }

    /// Address of `avail.idx`.
    pub const fn avail_idx(&self) -> u64 {
        self.avail + 2
    }

    /// Address of the available entry for the free running index `index`.
    pub const fn avail_entry(&self, index: u16) -> u64 {
        self.avail + 4 + 2 * self.slot(index)
    }

    /// Address of `used_event`.
    pub const fn used_event(&self) -> u64 {
        self.avail + 4 + 2 * self.size as u64
    }

    /// Address of `used.flags`.
    pub const fn used_flags(&self) -> u64 {
        self.used
    }

    /// Address of `used.idx`.
    pub const fn used_idx(&self) -> u64 {
        self.used + 2
    }

    /// Address of the used element for the free running index `index`.
    pub const fn used_entry(&self, index: u16) -> u64 {
        self.used + 4 + 8 * self.slot(index)
    }

    /// Address of `avail_event`.
    pub const fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * self.size as u64
    }

    /// The used index as it stands in memory, `None` if no memory is there.
    ///
    /// A front-end whose back-end has died sends it as the vring's base.
    pub fn load_used_idx<M: GuestMemory + ?Sized>(&self, mem: &M) -> Option<u16> {
        mem.load::<u16>(GuestAddress(self.used_idx()), core::sync::atomic::Ordering::Acquire)
            .ok()
            .map(u16::from_le)
    }

    const fn slot(&self, index: u16) -> u64 {
        // A ring size is a power of two; a layout that is not checked must not
        // divide by zero here.
        (index & self.size.wrapping_sub(1)) as u64
    }
}

/// Alignment and end of each part.
fn check_parts(parts: [(&'static str, u64, u64, u64); 3]) -> Result<(), LayoutError> {
    for (part, addr, align, bytes) in parts {
        if addr % align != 0 {
            return Err(LayoutError::Misaligned { part, addr, align });
        }
        if addr.checked_add(bytes).is_none() {
            return Err(LayoutError::Overflow { part, addr });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_parts_have_the_sizes_of_the_document() {
        assert_eq!(RingLayout::desc_bytes(128), 2048);
        assert_eq!(RingLayout::avail_bytes(128), 262);
        assert_eq!(RingLayout::used_bytes(128), 1030);
        let l = RingLayout::contiguous(4, 0x1001).unwrap();
        assert_eq!((l.desc, l.avail, l.used), (0x1010, 0x1050, 0x1060));
        assert_eq!((l.avail_idx(), l.used_event()), (0x1052, 0x105c));
        assert_eq!((l.used_idx(), l.avail_event()), (0x1062, 0x1084));
        assert_eq!(l.avail_entry(5), l.avail_entry(1));
        assert_eq!(l.used_entry(7), 0x1064 + 24);
        assert!(l.used + RingLayout::used_bytes(4) <= 0x1001 + RingLayout::footprint(4));
    }

    #[test]
    fn layout_check_names_what_is_wrong() {
        let good = RingLayout::contiguous(8, 0).unwrap();
        for size in [0, 3, 100, 32769] {
            assert_eq!(RingLayout { size, ..good }.check(), Err(LayoutError::Size(size)));
        }
        let odd = RingLayout { used: good.used + 2, ..good };
        assert!(matches!(odd.check(), Err(LayoutError::Misaligned { align: 4, .. })));
        let far = RingLayout { avail: u64::MAX - 5, ..good };
        assert!(matches!(far.check(), Err(LayoutError::Overflow { .. })));
        assert!(RingLayout::contiguous(8, u64::MAX - 20).is_err());
    }

    #[test]
    fn layout_packed_has_any_size_and_parts_of_the_document() {
        let l = RingLayout::contiguous_packed(5, 0x1001).unwrap();
        assert_eq!((l.desc, l.avail, l.used), (0x1010, 0x1060, 0x1064));
        assert_eq!(l.packed_entry(4), 0x1050);
        assert!(l.used + EVENT_SIZE <= 0x1001 + RingLayout::packed_footprint(5));
        for size in [0, 32769] {
            let bad = RingLayout { size, ..l };
            assert_eq!(bad.check_packed(), Err(LayoutError::PackedSize(size)));
        }
        let odd = RingLayout { avail: l.avail + 2, ..l };
        assert!(matches!(odd.check_packed(), Err(LayoutError::Misaligned { align: 4, .. })));
        let far = RingLayout { used: u64::MAX - 3, ..l };
        assert!(matches!(far.check_packed(), Err(LayoutError::Overflow { .. })));
    }
}
