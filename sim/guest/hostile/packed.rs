//! The same with a packed ring, as far as there is the same.
// spec: virtio 1.2, "Packed Virtqueues": what a driver must not do.

use super::{INDIRECT, NEXT, NOWHERE, Sabotage, put};
use crate::memory::Mem;
use midflight::driver::{PackedPosition, RingLayout};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A descriptor in the making.
struct Desc {
    addr: u64,
    len: u32,
    id: u16,
    flags: u16,
}

/// A ring, and where its driver would go on.
struct Ring<'a> {
    mem: &'a Mem,
    layout: &'a RingLayout,
    at: PackedPosition,
}

impl Ring<'_> {
    /// Place and flags of what is available, so many entries on.
    fn place(&self, ahead: u16) -> (u64, u16) {
        let index = u32::from(self.at.index) + u32::from(ahead);
        let around = index >= u32::from(self.layout.size);
        let index = index % u32::from(self.layout.size);
        let flags = if self.at.wrap != around { AVAIL } else { USED };
        (self.layout.desc + 16 * u64::from(index), flags)
    }

    /// Make descriptors available, the first one last.
    fn offer(&self, descs: &[Desc]) {
        for ahead in (0..descs.len() as u16).rev() {
            let desc = &descs[usize::from(ahead)];
            let (at, flags) = self.place(ahead);
            put(self.mem, at, &desc.addr.to_le_bytes());
            put(self.mem, at + 8, &desc.len.to_le_bytes());
            put(self.mem, at + 12, &desc.id.to_le_bytes());
            put(self.mem, at + 14, &(desc.flags | flags).to_le_bytes());
        }
    }
}

/// Do it. `busy`: buffer ids in flight; `free`: one that is not; `room`:
/// descriptors that are the driver's.
pub(super) fn commit(
    how: Sabotage,
    mem: &Mem,
    layout: &RingLayout,
    at: PackedPosition,
    busy: &[u16],
    free: u16,
    room: u16,
) {
    let ring = Ring { mem, layout, at };
    let nowhere = |flags| Desc { addr: NOWHERE, len: 16, id: free, flags };
    match how {
        // A chain that goes on into what the device has already, and that would be
        // none if it ended there.
        Sabotage::Jump => {
            let all: Vec<_> = (0..room).map(|_| nowhere(INDIRECT | NEXT)).collect();
            ring.offer(&all);
        }
        Sabotage::BadHead => ring.offer(&[nowhere(INDIRECT | NEXT), nowhere(0)]),
        Sabotage::Loop => {
            let (itself, _) = ring.place(0);
            ring.offer(&[Desc { addr: itself, ..nowhere(INDIRECT) }]);
        }
        Sabotage::BadNext => {
            ring.offer(&[Desc { addr: layout.desc, len: 24, ..nowhere(INDIRECT) }])
        }
        Sabotage::Outside => ring.offer(&[nowhere(0)]),
        Sabotage::TableOutside => ring.offer(&[nowhere(INDIRECT)]),
        Sabotage::Twice => {
            let id = busy.first().copied().unwrap_or(free);
            ring.offer(&[Desc { id, ..nowhere(0) }]);
        }
        Sabotage::Rewrite => {
            for index in 0..layout.size {
                let at = layout.desc + 16 * u64::from(index);
                put(mem, at, &NOWHERE.to_le_bytes());
                put(mem, at + 14, &[0; 2]);
            }
        }
    }
}
