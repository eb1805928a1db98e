//! Where a back-end goes on in a vring, and what is known about it.
//!
//! The number is that of SET_VRING_BASE and GET_VRING_BASE. Of a split ring it
//! is the next available index; of a packed one it has two positions, each an
//! entry and a wrap counter: the next descriptor to fetch in bits 0 to 15, the
//! next used descriptor to write in bits 16 to 31.
// spec: vhost-user, "Vring state"

use super::config::Base;

/// Both positions of a packed ring at entry 0, both wrap counters 1.
const PACKED_START: u32 = 0x8000_8000;

/// What the front-end keeps of one vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeptBase {
    /// The vring has not been started since the device was reset.
    Fresh,
    /// The back-end stopped there.
    At(u32),
    /// The vring runs, or the connection broke while it did; this is what was
    /// said when it was started.
    Lost(u32),
}

/// Where a ring starts that nobody has used.
pub(super) const fn fresh(packed: bool) -> u32 {
    if packed { PACKED_START } else { 0 }
}

/// Whether a ring of `size` entries has such a place.
pub(super) fn fits(base: u32, packed: bool, size: u16) -> bool {
    if !packed {
        return base <= u32::from(u16::MAX);
    }
    let index = |position: u32| position & 0x7fff;
    index(base) < u32::from(size) && index(base >> 16) < u32::from(size)
}

impl KeptBase {
    /// `None` if only guest memory and the inflight region know.
    pub(super) fn known(self, packed: bool) -> Option<u32> {
        match self {
            Self::Fresh => Some(fresh(packed)),
            Self::At(base) => Some(base),
            Self::Lost(_) => None,
        }
    }

    /// What a start with this wish says.
    pub(super) fn said(self, wish: Base, packed: bool) -> Option<u32> {
        match (wish, self) {
            (Base::At(base), _) => Some(base),
            (Base::Kept, kept) => kept.known(packed),
            (Base::Last, Self::Lost(last)) => Some(last),
            (Base::Last, kept) => kept.known(packed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_of_a_packed_ring_has_two_positions_in_it() {
        assert_eq!((fresh(false), fresh(true)), (0, 0x8000_8000));
        for (base, size, is) in [
            (0x8000_8000, 1, true),
            (0x0004_8004, 5, true),
            (0x0004_8005, 5, false),
            (0x8005_0004, 5, false),
        ] {
            assert_eq!(fits(base, true, size), is, "{base:#x} in {size}");
        }
        assert!(fits(65535, false, 4) && !fits(65536, false, 4));
    }

    #[test]
    fn base_that_is_lost_is_said_only_on_request() {
        let lost = KeptBase::Lost(7);
        assert_eq!((lost.said(Base::Kept, true), lost.said(Base::Last, true)), (None, Some(7)));
        assert_eq!(lost.said(Base::At(3), true), Some(3));
        assert_eq!(KeptBase::Fresh.said(Base::Last, true), Some(PACKED_START));
        assert_eq!(KeptBase::At(9).said(Base::Kept, false), Some(9));
    }
}
