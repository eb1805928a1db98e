//! Where things are in the region of a packed vring.
//!
//! Fields that change together lie together and are stored in one piece, which
//! is what makes several of the algorithm's steps one store.
// spec: vhost-user, "Inflight I/O tracking", QueueRegionPacked, DescStatePacked

use crate::vring::packed::{Descriptor, Position};

// `u64 features`, `u16 version` and `u16 desc_num` are where a split vring has
// them.
/// `u16 free_head` and `u16 old_free_head`, the latter being in force.
pub(super) const FREE_HEADS: u64 = 12;
/// `u16 free_head` alone.
pub(super) const FREE_HEAD: u64 = 12;
/// `u16 used_idx`, `u16 old_used_idx`, `u8 used_wrap_counter`,
/// `u8 old_used_wrap_counter`, and two bytes of padding.
pub(super) const USED: u64 = 16;

const HEADER: u64 = 32;
const ENTRY: u64 = 32;

/// Bytes that one vring's part needs.
pub(crate) const fn used_len(queue_size: u16) -> u64 {
    HEADER + ENTRY * queue_size as u64
}

/// `u8 inflight`, padding, `u16 next`, `u16 last`, `u16 num` of an entry.
pub(super) const fn state(entry: u16) -> u64 {
    HEADER + ENTRY * entry as u64
}

/// `u8 inflight` alone.
pub(super) const fn inflight(entry: u16) -> u64 {
    state(entry)
}

/// `u16 next` alone.
pub(super) const fn next(entry: u16) -> u64 {
    state(entry) + 2
}

/// `u64 counter`: order of fetching.
pub(super) const fn counter(entry: u16) -> u64 {
    state(entry) + 8
}

/// `u16 id`, `u16 flags`, `u32 len`.
pub(super) const fn desc(entry: u16) -> u64 {
    state(entry) + 16
}

/// `u64 addr`.
pub(super) const fn addr(entry: u16) -> u64 {
    state(entry) + 24
}

/// The first eight bytes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub inflight: u8,
    pub next: u16,
    pub last: u16,
    pub num: u16,
}

impl State {
    pub fn load(word: u64) -> Self {
        let [inflight, _, n0, n1, l0, l1, m0, m1] = word.to_ne_bytes();
        let half = |a, b| u16::from_ne_bytes([a, b]);
        Self { inflight, next: half(n0, n1), last: half(l0, l1), num: half(m0, m1) }
    }

    pub fn word(self) -> u64 {
        let [n0, n1] = self.next.to_ne_bytes();
        let [l0, l1] = self.last.to_ne_bytes();
        let [m0, m1] = self.num.to_ne_bytes();
        u64::from_ne_bytes([self.inflight, 0, n0, n1, l0, l1, m0, m1])
    }
}

/// Two halves as one word, the first at the lower address.
pub(super) fn pair(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

pub(super) fn load_pair(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}

/// A descriptor without its address, as one word.
pub(super) fn desc_word(desc: &Descriptor) -> u64 {
    let ([i0, i1], [f0, f1]) = (desc.id.to_ne_bytes(), desc.flags.to_ne_bytes());
    let [l0, l1, l2, l3] = desc.len.to_ne_bytes();
    u64::from_ne_bytes([i0, i1, f0, f1, l0, l1, l2, l3])
}

pub(super) fn load_desc(addr: u64, word: u64) -> Descriptor {
    let [i0, i1, f0, f1, l0, l1, l2, l3] = word.to_ne_bytes();
    Descriptor {
        addr,
        len: u32::from_ne_bytes([l0, l1, l2, l3]),
        id: u16::from_ne_bytes([i0, i1]),
        flags: u16::from_ne_bytes([f0, f1]),
    }
}

/// Used position, and the one when the last batch was closed, as one word: a
/// kill must not leave the index of one with the wrap counter of the other.
pub(super) fn used_word(used: Position, old: Position) -> u64 {
    let ([u0, u1], [o0, o1]) = (used.index.to_ne_bytes(), old.index.to_ne_bytes());
    u64::from_ne_bytes([u0, u1, o0, o1, used.wrap.into(), old.wrap.into(), 0, 0])
}

/// Indexes and wrap counters of the used position and the old one.
pub(super) fn load_used(word: u64) -> [(u16, u8); 2] {
    let [u0, u1, o0, o1, used, old, ..] = word.to_ne_bytes();
    [(u16::from_ne_bytes([u0, u1]), used), (u16::from_ne_bytes([o0, o1]), old)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflight_packed_words_read_as_they_are_stored() {
        let state = State { inflight: 1, next: 2, last: 0x304, num: 0x506 };
        assert_eq!(State::load(state.word()), state);
        assert_eq!(load_pair(pair(1, 2)), (1, 2));
        let desc = Descriptor { addr: 1, len: 2, id: 3, flags: 4 };
        assert_eq!(load_desc(1, desc_word(&desc)), desc);
        let (used, old) = (Position::from_bits(0x8001), Position::from_bits(2));
        assert_eq!(load_used(used_word(used, old)), [(1, 1), (2, 0)]);
    }

    #[test]
    fn inflight_packed_fields_lie_where_the_document_has_them() {
        assert_eq!((used_len(1), used_len(128), used_len(1024)), (64, 4128, 32800));
        let at = |field: &[u8], word: u64, offset: usize| {
            assert_eq!(word.to_ne_bytes()[offset..offset + field.len()], *field);
        };
        let word = State { inflight: 1, next: 0x1234, last: 0x5678, num: 0x9abc }.word();
        at(&[1], word, 0);
        at(&0x1234u16.to_ne_bytes(), word, 2);
        at(&0x5678u16.to_ne_bytes(), word, 4);
        at(&0x9abcu16.to_ne_bytes(), word, 6);
        let word = desc_word(&Descriptor { addr: 0, len: 0x0102_0304, id: 0x1234, flags: 0x5678 });
        at(&0x1234u16.to_ne_bytes(), word, 16 - 16);
        at(&0x5678u16.to_ne_bytes(), word, 18 - 16);
        at(&0x0102_0304u32.to_ne_bytes(), word, 20 - 16);
    }
}
