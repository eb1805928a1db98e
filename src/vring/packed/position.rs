//! Places in a packed ring, and the number that SET_VRING_BASE makes of two.
// spec: virtio 1.2, "Driver and Device Ring Wrap Counters"

/// An entry of the ring, and which time around it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Entry: below the size of the ring.
    pub index: u16,
    /// The wrap counter: flips each time the index passes the end.
    pub wrap: bool,
}

/// Bit of the wrap counter next to an index of 15 bits.
const WRAP: u16 = 1 << 15;

impl Position {
    /// Where driver and device begin.
    pub const START: Self = Self { index: 0, wrap: true };

    /// From 16 bits: index, and the wrap counter as bit 15.
    pub const fn from_bits(bits: u16) -> Self {
        Self { index: bits & !WRAP, wrap: bits & WRAP != 0 }
    }

    /// Index, and the wrap counter as bit 15.
    pub const fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// So many entries on, at most one time around.
    pub const fn after(self, count: u16, size: u16) -> Self {
        let index = self.index as u32 + count as u32;
        match index.checked_sub(size as u32) {
            Some(index) => Self { index: index as u16, wrap: !self.wrap },
            None => Self { index: index as u16, wrap: self.wrap },
        }
    }

    /// So many entries back, at most one time around.
    pub const fn before(self, count: u16, size: u16) -> Self {
        match self.index.checked_sub(count) {
            Some(index) => Self { index, wrap: self.wrap },
            None => Self { index: self.index + (size - count), wrap: !self.wrap },
        }
    }

    /// Entries from here on to another place: less than two times around,
    /// since nothing tells more of them apart.
    pub const fn distance(self, to: Self, size: u16) -> u32 {
        let (from, to) = (self.unrolled(size), to.unrolled(size));
        if to >= from { to - from } else { to + 2 * size as u32 - from }
    }

    /// The place on a ring of twice the size that needs no wrap counter.
    const fn unrolled(self, size: u16) -> u32 {
        self.index as u32 + if self.wrap { 0 } else { size as u32 }
    }
}

/// Where a device is in a packed ring.
// spec: vhost-user, "Vring descriptor indices for packed virtqueues"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Where the next available chain is looked for.
    pub avail: Position,
    /// Where the next used descriptor goes.
    pub used: Position,
}

impl Positions {
    /// A ring that nobody has used yet.
    pub const START: Self = Self { avail: Position::START, used: Position::START };

    /// From the number in SET_VRING_BASE: bits 0 to 15 are the available
    /// position, bits 16 to 31 the used one.
    pub const fn from_base(base: u32) -> Self {
        Self {
            avail: Position::from_bits(base as u16),
            used: Position::from_bits((base >> 16) as u16),
        }
    }

    /// The number for GET_VRING_BASE.
    pub const fn base(self) -> u32 {
        self.avail.bits() as u32 | (self.used.bits() as u32) << 16
    }

    /// Entries that are available or in flight; `None` if no ring of this size
    /// can be there.
    pub const fn ahead(self, size: u16) -> Option<u16> {
        if self.avail.index >= size || self.used.index >= size {
            return None;
        }
        let ahead = self.used.distance(self.avail, size);
        if ahead > size as u32 { None } else { Some(ahead as u16) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_base_is_two_indexes_and_two_wraps() {
        assert_eq!(Positions::START.base(), 0x8000_8000);
        assert_eq!(Positions::from_base(0x8000_8000), Positions::START);
        let avail = Position { index: 5, wrap: false };
        let used = Position { index: 0x7ffe, wrap: true };
        assert_eq!(Positions { avail, used }.base(), 0xfffe_0005);
        assert_eq!(Positions::from_base(0xfffe_0005), Positions { avail, used });
    }

    #[test]
    fn packed_positions_go_around_rings_of_any_size() {
        for size in [1u16, 2, 3, 5, 7, 100, 32768] {
            let mut at = Position::START;
            for step in 0..4 * u32::from(size) {
                let turns = step / u32::from(size);
                assert_eq!(u32::from(at.index), step % u32::from(size));
                assert_eq!(at.wrap, turns.is_multiple_of(2), "step {step} of size {size}");
                assert_eq!(Position::START.distance(at, size), step % (2 * u32::from(size)));
                at = at.after(1, size);
            }
        }
    }

    #[test]
    fn packed_positions_more_than_a_ring_apart_are_none() {
        let at = |index, wrap| Position { index, wrap };
        let ahead = |avail, used| Positions { avail, used }.ahead(5);
        assert_eq!(ahead(at(3, true), at(1, true)), Some(2));
        assert_eq!(ahead(at(1, false), at(1, true)), Some(5));
        assert_eq!(ahead(at(1, false), at(3, true)), Some(3));
        assert_eq!(ahead(at(2, false), at(1, true)), None);
        assert_eq!(ahead(at(1, true), at(3, true)), None);
        assert_eq!(ahead(at(5, true), at(3, true)), None);
    }
}
