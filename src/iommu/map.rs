//! Where one ring lies.
//!
//! A ring is touched at moments when nobody can wait for the front-end: used
//! elements are stored when the disk is done. So its places are found out
//! before it starts and kept until they are invalidated, whatever the IOTLB
//! forgets meanwhile.

use super::{Access, Gap, Iotlb, Range};
use crate::memory::MemoryTable;

/// A run of bytes of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    iova: u64,
    len: u64,
    guest: u64,
    user: u64,
}

/// One part of a ring.
#[derive(Clone, Debug)]
struct Area {
    range: Range,
    access: Access,
    /// By ascending address, without gaps.
    pieces: Vec<Piece>,
}

impl Area {
    /// Guest-physical address of a byte, and how many follow it there.
    fn find(&self, iova: u64) -> Option<(u64, u64)> {
        if iova < self.range.first || iova > self.range.last {
            return None;
        }
        let index = self.pieces.partition_point(|p| p.iova <= iova);
        let piece = self.pieces.get(index.checked_sub(1)?)?;
        let skip = iova - piece.iova;
        let left = piece.len.checked_sub(skip).filter(|left| *left > 0)?;
        Some((piece.guest + skip, left))
    }
}

/// The places of all parts of a ring; without any while they are not known.
#[derive(Clone, Debug, Default)]
pub struct RingMap {
    areas: Vec<Area>,
}

impl RingMap {
    /// Find out where these parts lie: range and use of each. Pages that are
    /// not known go to `gaps`, which is left empty if there are none.
    pub fn resolve(
        tlb: &Iotlb,
        table: &MemoryTable,
        parts: &[(Range, Access)],
        gaps: &mut Vec<Gap>,
    ) -> Self {
        let mut areas = Vec::with_capacity(parts.len());
        for &(range, access) in parts {
            let mut pieces: Vec<Piece> = Vec::new();
            let mut next = Some(range.first);
            while let Some(iova) = next.filter(|iova| *iova <= range.last) {
                let Some((user, guest, there)) = lookup(tlb, table, iova, access) else {
                    let gap = Gap { iova, access };
                    gaps.push(gap);
                    next = gap.page().checked_add(super::PAGE);
                    continue;
                };
                let len = there.min((range.last - iova).saturating_add(1));
                next = iova.checked_add(len);
                match pieces.last_mut() {
                    Some(p) if p.guest + p.len == guest && p.user + p.len == user => p.len += len,
                    _ => pieces.push(Piece { iova, len, guest, user }),
                }
            }
            areas.push(Area { range, access, pieces });
        }
        if gaps.is_empty() { Self { areas } } else { Self::default() }
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// Guest-physical ranges of `len` bytes, as far as they are in the ring.
    pub fn ranges(&self, iova: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
        let (mut next, mut left) = (Some(iova), len);
        core::iter::from_fn(move || {
            let at = next.filter(|_| left > 0)?;
            let (guest, there) = self.find(at, Access::from_bits(0))?;
            let take = there.min(left);
            left -= take;
            next = at.checked_add(take);
            Some((guest, take))
        })
    }

    /// True if a part has an address of this range.
    pub fn overlaps(&self, range: Range) -> bool {
        self.areas.iter().any(|area| area.range.overlaps(range))
    }

    /// True if everything lies where it is said to by this table too.
    pub fn holds(&self, table: &MemoryTable) -> bool {
        self.areas
            .iter()
            .flat_map(|area| &area.pieces)
            .all(|p| table.user_to_guest(p.user, p.len) == Some(p.guest))
    }

    /// Guest-physical address of a byte that may be used like this, and how
    /// many follow it there.
    pub fn find(&self, iova: u64, access: Access) -> Option<(u64, u64)> {
        self.areas.iter().filter(|area| area.access.allows(access)).find_map(|area| area.find(iova))
    }
}

/// User and guest-physical address of a byte that may be used like this, and
/// how many follow it there.
pub(super) fn lookup(
    tlb: &Iotlb,
    table: &MemoryTable,
    iova: u64,
    access: Access,
) -> Option<(u64, u64, u64)> {
    let found = tlb.find(iova).filter(|found| found.access.allows(access))?;
    let (guest, left) = table.find_user(found.user)?;
    Some((found.user, guest, left.min(found.len)))
}
