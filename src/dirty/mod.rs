//! The dirty log: which pages of guest memory were written since the front-end
//! last looked.
//!
//! The log is shared memory that the front-end reads and clears while the guest
//! runs, so a bit is set by one atomic OR and by nothing else. When it has to
//! be set is the whole point: after the write, and before anybody is told of
//! it. A page that is published first may be copied to the other host with its
//! old content, and if this process dies between the two, nobody ever copies
//! it again.
// spec: vhost-user, "Migration"

use crate::bugs::{self, Bug};
use crate::iommu::RingMap;
use crate::marks::{self, Mark};
use core::sync::atomic::{AtomicU8, Ordering};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileMemory};

/// Bytes of guest memory that one bit stands for.
pub const LOG_PAGE: u64 = 4096;

/// A dirty log that the driver has mapped.
#[derive(Debug)]
pub struct DirtyLog<M> {
    /// Its address 0 is the first byte of the log.
    memory: M,
    /// Bytes.
    size: u64,
    /// Marks held back by a deliberate mistake.
    #[cfg(feature = "bugs")]
    late: core::cell::RefCell<Vec<(u64, u64)>>,
}

impl<M: GuestMemory> DirtyLog<M> {
    /// A log of `size` bytes, which `memory` has at least.
    pub fn new(memory: M, size: u64) -> Self {
        Self {
            memory,
            size,
            #[cfg(feature = "bugs")]
            late: core::cell::RefCell::default(),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Mark every page that `len` bytes at a guest-physical address touch.
    /// Pages beyond the log are not the front-end's to migrate; no bytes touch
    /// no page.
    pub fn mark(&self, addr: u64, len: u64) {
        if bugs::on(Bug::LogAfterPublish) {
            self.hold_back(addr, len);
            return;
        }
        self.set(addr, len);
    }

    /// All that a batch made visible is visible now: only a deliberate mistake
    /// has marks left to set.
    pub fn published(&self) {
        #[cfg(feature = "bugs")]
        for (addr, len) in self.late.take() {
            self.set(addr, len);
        }
    }

    #[cfg(feature = "bugs")]
    fn hold_back(&self, addr: u64, len: u64) {
        self.late.borrow_mut().push((addr, len));
    }

    #[cfg(not(feature = "bugs"))]
    fn hold_back(&self, _addr: u64, _len: u64) {}

    fn set(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        let mut last = addr.saturating_add(len - 1) / LOG_PAGE;
        let mut page = addr / LOG_PAGE;
        marks::hit_when(Mark::LogAcrossPages, || last > page);
        if bugs::on_when(Bug::FirstPageLogged, || last > page) {
            last = page;
        }
        if bugs::on_when(Bug::LastPageNotLogged, || last > page) {
            last -= 1;
        }
        if bugs::on(Bug::LogBitOffByOne) {
            (page, last) = (page + 1, last + 1);
        }
        while page <= last && page / 8 < self.size {
            let byte = page / 8;
            let end = last.min(8 * byte + 7);
            let mask = (page..=end).fold(0u8, |mask, page| mask | 1 << (page % 8));
            self.or(byte, mask);
            page = end + 1;
        }
    }

    /// Nothing can be done about a log that cannot be written: its memory was
    /// checked to be there when it was mapped.
    fn or(&self, byte: u64, mask: u8) {
        let at = GuestAddress(byte);
        let Ok(mut slices) = self.memory.get_slices(at, 1, Permissions::ReadWrite) else { return };
        let Some(Ok(slice)) = slices.next() else { return };
        if let Ok(byte) = slice.get_atomic_ref::<AtomicU8>(0) {
            // Release: whoever sees the bit sees what was written to the page.
            byte.fetch_or(mask, Ordering::Release);
            slice.bitmap().mark_dirty(0, 1);
        }
    }
}

/// The log as the owner of one used ring sees it.
///
/// The front-end names the guest-physical address that bits are counted from,
/// since it gave the ring itself by an address of its own.
// spec: vhost-user, VHOST_USER_SET_VRING_ADDR: VHOST_VRING_F_LOG
#[derive(Debug)]
pub struct RingLog<'a, M> {
    log: &'a DirtyLog<M>,
    at: Place<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    /// All of it follows this address.
    Address(u64),
    /// It begins at this I/O virtual address.
    Mapped(&'a RingMap, u64),
}

impl<M> Clone for RingLog<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for RingLog<'_, M> {}

impl<'a, M: GuestMemory> RingLog<'a, M> {
    /// Bits for a ring whose first byte counts as `at`.
    pub fn new(log: &'a DirtyLog<M>, at: u64) -> Self {
        Self { log, at: Place::Address(at) }
    }

    /// Bits for a ring whose addresses are I/O virtual, and its first byte's is
    /// `at`: they are counted where the ring lies.
    pub fn mapped(log: &'a DirtyLog<M>, map: &'a RingMap, at: u64) -> Self {
        Self { log, at: Place::Mapped(map, at) }
    }

    /// Mark `len` bytes of the ring from `offset` on.
    pub fn mark(&self, offset: u64, len: u64) {
        if bugs::on(Bug::UsedRingNotLogged) {
            return;
        }
        match self.at {
            Place::Address(at) => self.log.mark(at.saturating_add(offset), len),
            Place::Mapped(map, at) => {
                map.ranges(at.saturating_add(offset), len)
                    .for_each(|(at, len)| self.log.mark(at, len));
            }
        }
    }

    /// Mark `len` bytes at the ring's own address, which is known for the part
    /// of a packed ring that the front-end names no other for.
    pub fn mark_guest(&self, addr: u64, len: u64) {
        if bugs::on(Bug::UsedRingNotLogged) {
            return;
        }
        match self.at {
            Place::Address(_) => self.log.mark(addr, len),
            Place::Mapped(map, _) => {
                map.ranges(addr, len).for_each(|(at, len)| self.log.mark(at, len));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryMmap};

    fn marked(size: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let log = DirtyLog::new(memory.clone(), size);
        for &(addr, len) in ranges {
            log.mark(addr, len);
        }
        let mut bytes = vec![0; 16];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    #[test]
    fn dirty_a_range_marks_every_page_it_touches_and_no_other() {
        assert_eq!(marked(16, &[(0, 1)])[0], 0b1);
        assert_eq!(marked(16, &[(4095, 2)])[0], 0b11);
        assert_eq!(marked(16, &[(4096, 4096)])[0], 0b10);
        assert_eq!(marked(16, &[(0, 0)]), [0; 16]);
        let over_two_bytes = marked(16, &[(6 * 4096 + 4095, 3 * 4096)]);
        assert_eq!(over_two_bytes[..3], [0b1100_0000, 0b11, 0]);
        assert_eq!(marked(16, &[(0, 8 * LOG_PAGE), (9 * 4096, 1)])[..2], [0xff, 0b10]);
    }

    #[test]
    fn dirty_pages_beyond_the_log_are_ignored() {
        assert_eq!(marked(1, &[(7 * 4096, 2 * 4096)])[..2], [0x80, 0]);
        assert_eq!(marked(1, &[(8 * 4096, 1), (u64::MAX, u64::MAX)]), [0; 16]);
    }
}
