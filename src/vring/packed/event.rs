//! Who wants to be told, and when: the two event areas of a packed ring.
// spec: virtio 1.2, "Event Suppression Structure Format"

use super::Position;
use crate::bugs::{self, Bug};

/// Notify always.
const ENABLE: u16 = 0;
/// Notify never.
const DISABLE: u16 = 1;
/// Notify once this position is passed; only with EVENT_IDX.
const DESC: u16 = 2;

/// What an event area says. It is read and written in one piece: a position
/// that goes with other flags than its own would ask for the wrong thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Always,
    Never,
    /// When what is at this position is used, or made available.
    At(Position),
}

impl Wish {
    /// From the area's four bytes. Flags that mean nothing here are an
    /// invitation: a call too many does no harm.
    pub fn from_bits(bits: u32, event_idx: bool) -> Self {
        match (bits >> 16) as u16 & 3 {
            DISABLE => Self::Never,
            DESC if event_idx => Self::At(Position::from_bits(bits as u16)),
            _ => Self::Always,
        }
    }

    pub fn bits(self) -> u32 {
        let (position, flags) = match self {
            Self::Always => (0, ENABLE),
            Self::Never => (0, DISABLE),
            Self::At(Position { index, wrap })
                if bugs::on_when(Bug::PackedKickWrapMissing, || wrap) =>
            {
                (index, DESC)
            }
            Self::At(position) => (position.bits(), DESC),
        };
        u32::from(position) | u32::from(flags) << 16
    }

    /// True if going from one position to another, at most one time around,
    /// is to be told.
    pub fn wants(self, from: Position, to: Position, size: u16) -> bool {
        match self {
            _ if from == to => false,
            Self::Always => true,
            Self::Never => false,
            // A position that the ring does not have is never passed, and a
            // guest that waits for it would wait for ever.
            Self::At(event) if event.index >= size => true,
            Self::At(event) => {
                let blind = bugs::on_when(Bug::PackedEventWrapIgnored, || event.wrap != from.wrap);
                let event = if blind { Position { wrap: from.wrap, ..event } } else { event };
                from.distance(event, size) < from.distance(to, size)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_event_areas_read_as_they_are_written() {
        let at = Wish::At(Position { index: 77, wrap: true });
        for wish in [Wish::Always, Wish::Never, at] {
            assert_eq!(Wish::from_bits(wish.bits(), true), wish);
        }
        assert_eq!(at.bits(), 0x0002_804d);
        assert_eq!(Wish::from_bits(at.bits(), false), Wish::Always);
    }

    #[test]
    fn packed_event_wants_a_call_exactly_if_its_position_is_passed() {
        // All of a small ring, by counting one by one.
        for size in [1u16, 3, 4] {
            let mut from = Position::START;
            for _ in 0..2 * size {
                for count in 0..=size {
                    let to = from.after(count, size);
                    let passed = |event| (0..count).any(|i| from.after(i, size) == event);
                    for bits in (0..size).flat_map(|i| [i, i | 0x8000]) {
                        let event = Position::from_bits(bits);
                        let wants = Wish::At(event).wants(from, to, size);
                        assert_eq!(wants, passed(event), "{event:?} from {from:?} by {count}");
                    }
                }
                from = from.after(1, size);
            }
        }
    }
}
