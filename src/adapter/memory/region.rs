//! One mapping of a peer's file.

use crate::adapter::error::describe;
use crate::adapter::sigbus::Guard;
use crate::adapter::userfault::{Faults, Missing};
use crate::backend::MapFailed;
use rustix::fs::{fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

/// File system magic of hugetlbfs, whose mappings come in huge pages only.
const HUGETLBFS_MAGIC: u64 = 0x958458f6;

/// A shared mapping of a peer's file, protected against truncation.
#[derive(Debug)]
struct Mapping {
    /// Page aligned.
    base: *mut u8,
    /// Multiple of the page size.
    len: usize,
    /// `None` only while dropping.
    guard: Option<Guard>,
    /// Pages come when they are touched.
    missing: Option<Missing>,
}

// SAFETY: the pointer names shared memory, which is only touched through
// volatile accesses and system calls; no thread owns it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.missing = None;
        self.guard = None;
        // SAFETY: base and length are those of the mapping made in
        // `PeerRegion::map`, and nobody can hold a slice of it any more. A
        // failure leaks address space and nothing else.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// A region of guest memory, or an inflight region, inside a mapping.
#[derive(Debug)]
pub struct PeerRegion {
    mapping: Mapping,
    /// Distance of the region's first byte from the mapping's.
    skip: usize,
    pub(super) size: usize,
    pub(super) guest: GuestAddress,
}

impl PeerRegion {
    /// Map `size` bytes from `offset` of a file, as memory at `guest`.
    ///
    /// The file must hold all of it now; what happens if it shrinks later is the
    /// business of [`sigbus`](crate::adapter::sigbus).
    pub fn map(fd: BorrowedFd<'_>, offset: u64, size: u64, guest: u64) -> Result<Self, MapFailed> {
        let system = |what: &str, errno| MapFailed(format!("{what}: {}", describe(errno)));
        let file = fstat(fd).map_err(|e| system("cannot inspect the memory file", e))?;
        let holds = u64::try_from(file.st_size).unwrap_or(0);
        let end = offset
            .checked_add(size)
            .filter(|_| size > 0)
            .ok_or_else(|| MapFailed(format!("expected a region, got {size} bytes at {offset}")))?;
        if end > holds {
            return Err(MapFailed(format!(
                "expected a memory file of at least {end} bytes, got one of {holds}"
            )));
        }
        if guest.checked_add(size).is_none() {
            return Err(MapFailed(format!(
                "expected a region inside the address space, got {size} bytes at {guest:#x}"
            )));
        }
        let granule = match fstatfs(fd) {
            Ok(fs) if fs.f_type as u64 == HUGETLBFS_MAGIC => file.st_blksize as u64,
            _ => rustix::param::page_size() as u64,
        };
        // mmap(2) wants the offset, and for huge pages munmap(2) the length, in
        // whole pages. What is mapped too much is never handed out.
        let skip = offset % granule;
        let too_big = || MapFailed(format!("{size} bytes do not fit the address space"));
        let len = (skip + size)
            .checked_next_multiple_of(granule)
            .and_then(|len| isize::try_from(len).ok())
            .ok_or_else(too_big)? as usize;
        // SAFETY: a new mapping at an address of the kernel's choice; it
        // replaces nothing.
        let base = unsafe {
            mmap(
                core::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                offset - skip,
            )
        }
        .map_err(|e| system("cannot map the memory file", e))?;
        let mut mapping = Mapping { base: base.cast(), len, guard: None, missing: None };
        mapping.guard = Guard::new(base as usize, len, granule as usize);
        if mapping.guard.is_none() {
            return Err(MapFailed("too many mappings at once".into()));
        }
        Ok(Self { mapping, skip: skip as usize, size: size as usize, guest: GuestAddress(guest) })
    }

    /// Have accesses to pages that are not there wait for whoever reads the
    /// other end of `faults`. Nothing may have been touched yet.
    pub fn miss(mut self, faults: &Arc<Faults>) -> Result<Self, MapFailed> {
        let Mapping { base, len, .. } = self.mapping;
        let missing = faults.register(base as usize, len).map_err(|e| {
            MapFailed(format!("cannot have page faults in it resolved: {}", describe(e)))
        })?;
        self.mapping.missing = Some(missing);
        Ok(self)
    }

    pub(super) fn host(&self) -> *mut u8 {
        // Inside the mapping: `skip` plus `size` are at most its length.
        self.mapping.base.wrapping_add(self.skip)
    }
}

impl GuestMemoryRegion for PeerRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.size as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.guest
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.check_address(addr)
            .map(|addr| self.host().wrapping_add(addr.0 as usize))
            .ok_or(GuestMemoryError::InvalidBackendAddress)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        let end = offset.0.checked_add(count as u64);
        if end.is_none_or(|end| end > self.size as u64) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        // SAFETY: the range was just checked to lie in the mapping, which lives
        // as long as `self`; everybody here uses volatile accesses only.
        Ok(unsafe { VolatileSlice::new(self.host().add(offset.0 as usize), count) })
    }
}

impl GuestMemoryRegionBytes for PeerRegion {}
