//! A rolling hash over whole numbers.
//!
//! Not for secrets, and not a library's: it only has to be the same number on
//! every machine, in every build and for ever, which no hasher of a library
//! promises. For a given state it is a bijection of the word, and for a given
//! word one of the state, so nothing that happened can vanish from it.

/// A running hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rolling(u64);

impl Default for Rolling {
    fn default() -> Self {
        Self::new()
    }
}

impl Rolling {
    /// The hash of nothing.
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Add a number.
    #[inline]
    pub fn u64(&mut self, value: u64) {
        // An odd factor; the shift brings high bits down again.
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    /// The hash of everything so far.
    pub const fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[u64]) -> u64 {
        let mut h = Rolling::new();
        words.iter().for_each(|w| h.u64(*w));
        h.finish()
    }

    #[test]
    fn hash_is_pinned() {
        // Computed a second time in another language.
        assert_eq!(of(&[]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(of(&[0]), PIN[0]);
        assert_eq!(of(&[1, 2, 3]), PIN[1]);
        assert_eq!(of(&[u64::MAX, 0, 1 << 63]), PIN[2]);
    }

    const PIN: [u64; 3] = [0xf8bb_92c9_1b3f_5cc0, 0x0c07_b167_c320_3d34, 0x50f6_702b_7c80_dc15];

    #[test]
    fn hash_depends_on_order_and_on_the_highest_bit() {
        assert_ne!(of(&[1, 2]), of(&[2, 1]));
        assert_ne!(of(&[0, 0]), of(&[1 << 63, 0]));
        assert_ne!(of(&[0]), of(&[0, 0]));
    }
}
