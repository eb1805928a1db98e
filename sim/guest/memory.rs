//! Where the guest keeps things.
//!
//! Three regions: the first two are neighbours by guest address and two
//! mappings for the back-end, so buffers may cross from one into the other;
//! the third lies above 4 GiB.

use crate::memory::{Arena, Mem, RegionId};
use crate::oracle::{PackedView, RingView, SplitView};
use crate::topology::Ring;
use midflight::driver::RingLayout;

/// A region of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestRegion {
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Address the front-end has it at. Only a number.
    pub user: u64,
}

const KIB: u64 = 1024;

/// The regions of every guest.
pub const REGIONS: [GuestRegion; 3] = [
    GuestRegion { guest: 0, size: 128 * KIB, user: 0x7f00_0000_0000 },
    GuestRegion { guest: 128 * KIB, size: 256 * KIB, user: 0x7f10_0000_0000 },
    GuestRegion { guest: 1 << 32, size: 1024 * KIB, user: 0x7f20_0000_0000 },
];

/// First byte for rings of the low half of memory; one ring takes less than a
/// step. The high half ends with as many.
const RINGS: u64 = 4 * KIB;
const RING_STEP: u64 = 12 * KIB;
const HIGH_RINGS: u64 = REGIONS[2].guest + REGIONS[2].size - 2 * RING_STEP;
const PAGE: u64 = 4 * KIB;

/// Bytes of a slot for an indirect table, before the header.
pub const TABLE: u64 = KIB;
/// Bytes of a slot beside table and data: header, status, gaps.
const SLACK: u64 = 96;

/// A guest's memory, and which part is for what.
pub struct GuestMemory {
    /// All of it.
    pub mem: Mem,
    /// Regions of the arena, as in [`REGIONS`].
    pub ids: [RegionId; 3],
}

impl GuestMemory {
    /// Zeroed memory.
    pub fn new(arena: &mut Arena) -> Self {
        let ids = REGIONS.map(|r| arena.region(r.size));
        let view: Vec<_> = REGIONS.iter().zip(ids).map(|(r, id)| (r.guest, id)).collect();
        Self { mem: arena.view(&view), ids }
    }
}

/// Where the front-end has a guest address, which lies in one of the regions.
pub fn user(guest: u64) -> u64 {
    let inside = |r: &&GuestRegion| (r.guest..r.guest + r.size).contains(&guest);
    let region = REGIONS.iter().find(inside).expect("the guest has memory there");
    region.user + (guest - region.guest)
}

/// Where the ring of a vring lies: in the low half of memory, then in the high
/// half, and so on. What the device writes of a split ring shares no page with
/// what the driver writes, so that a page which is not logged is missed, and lies
/// across two; a packed ring, which both write, lies across two as well.
///
/// # Panics
/// If the ring is too large for its place.
pub fn ring(kind: Ring, vring: u16, size: u16) -> RingLayout {
    let (half, place) = (vring % 2, u64::from(vring / 2));
    let base = if half == 0 { RINGS } else { HIGH_RINGS } + RING_STEP * place;
    assert!(RingLayout::footprint(size) <= PAGE, "a ring of {size} entries has no room");
    if kind == Ring::Packed {
        // One descriptor before the border, or half of them, or all behind it.
        let before = [1, size / 2, 0][usize::from(vring % 3)];
        let desc = base + 2 * PAGE - RingLayout::desc_bytes(before);
        return RingLayout { size, desc, avail: base, used: base + PAGE };
    }
    let desc = base;
    let avail = desc + RingLayout::desc_bytes(size);
    let used = base + 2 * PAGE
        - match vring % 3 {
            // The used index is alone before the border.
            0 => 4,
            // The last element and the event index are alone behind it.
            _ => (RingLayout::used_bytes(size) & !3) - 8,
        };
    RingLayout { size, desc, avail, used }
}

/// The same for the oracle, for a ring that has come so far.
pub fn ring_view(kind: Ring, layout: &RingLayout, first: u16) -> RingView {
    let RingLayout { size, desc, avail, used } = *layout;
    match kind {
        Ring::Split => {
            RingView::Split(SplitView { size, avail, used, avail_seen: first, used_seen: first })
        }
        Ring::Packed => {
            let seen = PackedView::place(size, first);
            RingView::Packed(PackedView {
                size,
                ring: desc,
                driver: avail,
                device: used,
                avail_seen: seen,
                used_seen: seen,
            })
        }
    }
}

/// Bytes that all slots together may take.
pub const SLOTS: u64 = REGIONS[2].size;

/// Bytes of one slot.
pub fn slot_len(max_sectors: u64) -> u64 {
    (TABLE + SLACK + 512 * max_sectors).next_multiple_of(64)
}

/// Bases of the request slots: the first ones across the border of the first
/// two regions, the rest above 4 GiB.
pub fn slots(count: u64, max_sectors: u64) -> Vec<u64> {
    let step = slot_len(max_sectors);
    let [low, middle, high] = REGIONS;
    let low_first = RINGS + 2 * RING_STEP + 4 * KIB;
    let low_end = middle.guest + middle.size;
    // As many below the border as above it, so that one lies across.
    let below = (low.guest + low.size - low_first) / step;
    let in_low = ((low_end - low_first) / step).min(count.div_ceil(2).max(below + 1)).min(count);
    let in_high = count - in_low;
    assert!(
        high.guest + in_high * step <= HIGH_RINGS,
        "{count} slots of {step} bytes have no room"
    );
    let low = (0..in_low).map(|i| low_first + 24 + i * step - (low_first + 24) % 16);
    let high = (0..in_high).map(|i| high.guest + i * step);
    low.chain(high).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_rings_lie_apart_and_what_the_device_writes_crosses_a_page() {
        for size in [8, 16, 32, 64] {
            let rings = [0, 1, 2, 3].map(|vring| ring(Ring::Split, vring, size));
            for (i, r) in rings.iter().enumerate() {
                r.check().unwrap();
                let end = r.used + RingLayout::used_bytes(size);
                assert!(r.avail + RingLayout::avail_bytes(size) <= r.used / PAGE * PAGE);
                assert_eq!(r.used / PAGE + 1, r.avail_event() / PAGE);
                assert_eq!(user(r.used) - user(r.desc), r.used - r.desc);
                assert!(rings[i + 1..].iter().all(|o| o.desc >= end || r.desc > o.desc + 8 * KIB));
            }
        }
    }

    #[test]
    fn guest_packed_rings_lie_apart_and_some_cross_a_page() {
        for size in [2, 5, 16, 77, 128] {
            let rings = [0, 1, 2, 3].map(|vring| ring(Ring::Packed, vring, size));
            let end = |r: &RingLayout| r.desc + RingLayout::desc_bytes(size);
            for (i, r) in rings.iter().enumerate() {
                r.check_packed().unwrap();
                assert!(r.avail / PAGE < r.used / PAGE && r.used + 4 <= r.desc);
                assert!(rings[i + 1..].iter().all(|o| o.avail >= end(r) || r.avail >= end(o)));
                assert_eq!(user(r.desc) - user(r.avail), r.desc - r.avail);
            }
            let crosses = |r: &&RingLayout| r.desc / PAGE < (end(r) - 1) / PAGE;
            assert!(rings.iter().filter(crosses).count() >= 2);
        }
    }

    #[test]
    fn guest_slots_lie_apart_inside_memory_and_some_cross_a_border() {
        for (count, sectors) in [(1, 1), (96, 16), (24, 16), (10, 8)] {
            let slots = slots(count, sectors);
            assert_eq!(slots.len() as u64, count);
            let len = TABLE + SLACK + 512 * sectors;
            for pair in slots.windows(2) {
                assert!(pair[0] + len <= pair[1]);
            }
            for slot in &slots {
                let low = *slot >= 32 * KIB && slot + len <= 384 * KIB;
                let high = *slot >= 1 << 32 && slot + len <= (1 << 32) + 1000 * KIB;
                assert!(low || high, "{slot:#x}");
                assert_eq!(slot % 16, 0);
            }
        }
        let slots = slots(96, 16);
        assert!(slots.iter().any(|s| *s < 128 * KIB && s + TABLE + 512 * 16 > 128 * KIB));
    }
}
