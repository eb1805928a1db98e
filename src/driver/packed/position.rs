//! A place in a packed ring, and how often one has come round to it.

/// A place in a packed ring with the wrap counter it is seen under.
// spec: virtio 1.2, "Driver and Device Ring Wrap Counters"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedPosition {
    /// Entry, less than the ring's size.
    pub index: u16,
    /// Wrap counter: 1 on the first round, flipped at the ring's end.
    pub wrap: bool,
}

impl PackedPosition {
    /// Where both sides of a ring begin.
    pub const START: Self = Self { index: 0, wrap: true };

    /// As an event suppression structure and a vring's base have it: the entry
    /// in bits 0 to 14, the wrap counter in bit 15.
    pub const fn word(self) -> u16 {
        self.index | (self.wrap as u16) << 15
    }

    /// The opposite of [`PackedPosition::word`].
    pub const fn from_word(word: u16) -> Self {
        Self { index: word & 0x7fff, wrap: word >> 15 != 0 }
    }

    /// `by` entries further on, at most one round.
    pub(super) const fn advance(self, by: u16, size: u16) -> Self {
        let sum = self.index as u32 + by as u32;
        if sum < size as u32 {
            Self { index: sum as u16, ..self }
        } else {
            Self { index: (sum - size as u32) as u16, wrap: !self.wrap }
        }
    }

    /// Entries from here on to `to`, modulo two rounds: a wrap counter tells no more.
    pub(super) const fn distance(self, to: Self, size: u16) -> u32 {
        let size = size as u32;
        (to.line(size) + 2 * size - self.line(size)) % (2 * size)
    }

    /// Entries since the beginning of an odd round.
    const fn line(self, size: u32) -> u32 {
        // An event offset is the other side's: it may be anywhere.
        let index = self.index as u32 % size;
        if self.wrap { index } else { index + size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_position_wraps_at_any_size() {
        for size in [1u16, 2, 3, 7, 64] {
            let mut at = PackedPosition::START;
            for step in 0..u32::from(size) * 4 {
                assert_eq!(u32::from(at.index), step % u32::from(size));
                assert_eq!(at.wrap, (step / u32::from(size)) % 2 == 0);
                assert_eq!(PackedPosition::from_word(at.word()), at);
                for by in 0..=size {
                    let to = at.advance(by, size);
                    assert_eq!(at.distance(to, size), u32::from(by));
                }
                at = at.advance(1, size);
            }
        }
        let last = PackedPosition { index: 32767, wrap: true };
        assert_eq!(last.advance(1, 32768), PackedPosition { index: 0, wrap: false });
    }
}
