//! Memory of the front-end, mapped into this process.

mod guest;

pub use guest::GuestMem;

use super::error::describe;
use super::handles::Handles;
use super::sigbus::Guard;
use super::userfault::{Faults, Missing};
use crate::backend::{MapFailed, MapRegion, MissingMemory};
use crate::blk::Segment;
use crate::wire::MemRegion;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, fstatfs, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
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
    size: usize,
    guest: GuestAddress,
}

impl PeerRegion {
    /// Map `size` bytes from `offset` of a file, as memory at `guest`.
    ///
    /// The file must hold all of it now; what happens if it shrinks later is the
    /// business of [`sigbus`](super::sigbus).
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

    fn host(&self) -> *mut u8 {
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

/// A piece of host memory for the disk to read or write.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Iov(pub libc::iovec);

// SAFETY: a descriptor of shared memory that is only dereferenced by system
// calls and volatile copies. That the memory is still mapped is ensured by
// `Memory`, which keeps it while requests are counted on it.
unsafe impl Send for Iov {}

/// Which memory table a request uses; give it back with [`Memory::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

/// One memory table, kept while requests use it.
struct Table {
    mem: GuestMem,
    inflight: u64,
}

/// The current memory table, and older ones that the disk still works on.
pub struct Memory {
    /// Never empty; the last is current.
    tables: VecDeque<Table>,
    /// Epoch of the first.
    first: u64,
    /// What the current table was made of.
    regions: Vec<(MapRegion, Arc<PeerRegion>)>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            tables: VecDeque::from([Table { mem: GuestMem::default(), inflight: 0 }]),
            first: 0,
            regions: Vec::new(),
        }
    }
}

impl Memory {
    /// Make `wanted` the current table; regions that are in it already are not
    /// mapped anew. On failure the old table stays.
    pub fn map(&mut self, wanted: &[MapRegion], handles: &Handles) -> Result<GuestMem, MapFailed> {
        self.map_by(wanted, handles, Ok)
    }

    /// The same, but pages of new regions come when they are touched. The
    /// second value has the address of each region's first byte.
    pub fn map_missing(
        &mut self,
        wanted: &[MapRegion],
        handles: &Handles,
        faults: &Arc<Faults>,
    ) -> Result<MissingMemory<GuestMem>, MapFailed> {
        let memory = self.map_by(wanted, handles, |region| region.miss(faults))?;
        let bases = self.regions.iter().map(|(_, region)| region.host() as u64).collect();
        Ok(MissingMemory { memory, bases })
    }

    fn map_by(
        &mut self,
        wanted: &[MapRegion],
        handles: &Handles,
        prepare: impl Fn(PeerRegion) -> Result<PeerRegion, MapFailed>,
    ) -> Result<GuestMem, MapFailed> {
        let mut regions = Vec::with_capacity(wanted.len());
        for want in wanted {
            let known = self.regions.iter().find(|(have, _)| have == want);
            let region = match known {
                Some((_, region)) => Arc::clone(region),
                None => {
                    let MemRegion { guest_addr, size, mmap_offset, .. } = want.region;
                    let fd = handles
                        .get(want.handle)
                        .ok_or_else(|| MapFailed(format!("{} is not open", want.handle)))?;
                    Arc::new(prepare(PeerRegion::map(fd, mmap_offset, size, guest_addr)?)?)
                }
            };
            regions.push((*want, region));
        }
        let mem = GuestMem::from_regions(regions.iter().map(|(_, r)| Arc::clone(r)).collect())?;
        self.regions = regions;
        self.push(mem.clone());
        Ok(mem)
    }

    /// Drop the current table, as soon as the disk allows.
    pub fn unmap(&mut self) {
        self.regions.clear();
        self.push(GuestMem::default());
    }

    fn push(&mut self, mem: GuestMem) {
        self.tables.push_back(Table { mem, inflight: 0 });
        self.collect();
    }

    /// Drop old tables that nobody uses. One in the middle waits for those before it.
    fn collect(&mut self) {
        while self.tables.len() > 1 && self.tables[0].inflight == 0 {
            self.tables.pop_front();
            self.first += 1;
        }
    }

    /// Append the host memory behind `segments` to `out` and count one request
    /// on the current table. `None`, and nothing counted, if a segment is not
    /// wholly inside it.
    pub fn translate(&mut self, segments: &[Segment], out: &mut Vec<Iov>) -> Option<Epoch> {
        let epoch = self.first + self.tables.len() as u64 - 1;
        let table = self.tables.back_mut()?;
        for segment in segments {
            let mut addr = segment.addr;
            let mut left = u64::from(segment.len);
            while left > 0 {
                let (host, there) = table.mem.find(addr)?;
                let take = there.min(left);
                append(out, host as usize, take as usize);
                left -= take;
                addr = addr.wrapping_add(take);
            }
        }
        table.inflight += 1;
        Some(Epoch(epoch))
    }

    /// The request counted by [`Memory::translate`] is over.
    pub fn release(&mut self, epoch: Epoch) {
        let index = (epoch.0 - self.first) as usize;
        self.tables[index].inflight -= 1;
        if index == 0 {
            self.collect();
        }
    }

    /// Number of tables that are still mapped, the current one included.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// The current table.
    pub fn current(&self) -> &GuestMem {
        &self.tables[self.tables.len() - 1].mem
    }
}

/// Append a piece, joined to the last one where they touch.
fn append(out: &mut Vec<Iov>, host: usize, len: usize) {
    if let Some(Iov(last)) = out.last_mut()
        && last.iov_base as usize + last.iov_len == host
    {
        last.iov_len += len;
        return;
    }
    out.push(Iov(libc::iovec { iov_base: host as *mut libc::c_void, iov_len: len }));
}

/// Map an inflight region or a dirty log as memory from address 0.
pub fn map_shared(
    handles: &Handles,
    handle: crate::Handle,
    offset: u64,
    size: u64,
) -> Result<GuestMem, MapFailed> {
    let fd = handles.get(handle).ok_or_else(|| MapFailed(format!("{handle} is not open")))?;
    let region = PeerRegion::map(fd, offset, size, 0)?;
    GuestMem::from_regions(vec![Arc::new(region)])
}

/// Make zeroed memory for an inflight region, of a size that nobody can change.
pub fn alloc_inflight(size: u64) -> Result<OwnedFd, MapFailed> {
    let system = |errno| MapFailed(format!("cannot allocate {size} bytes: {}", describe(errno)));
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("midflight-inflight", flags).map_err(system)?;
    ftruncate(&fd, size).map_err(system)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(system)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Handle;
    use vm_memory::Bytes;

    const PAGE: u64 = 4096;

    fn memfd(size: u64) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        fd
    }

    fn region(handle: Handle, guest: u64, size: u64, offset: u64) -> MapRegion {
        MapRegion {
            region: MemRegion {
                guest_addr: guest,
                size,
                user_addr: guest + 0x7000_0000,
                mmap_offset: offset,
            },
            handle,
        }
    }

    fn bytes(iov: &[Iov]) -> Vec<u8> {
        let mut all = Vec::new();
        for Iov(v) in iov {
            // SAFETY: the tests below keep the memory mapped.
            all.extend_from_slice(unsafe {
                core::slice::from_raw_parts(v.iov_base.cast::<u8>(), v.iov_len)
            });
        }
        all
    }

    #[test]
    fn memory_short_file_is_refused_with_both_sizes() {
        let fd = memfd(PAGE);
        let error = PeerRegion::map(std::os::fd::AsFd::as_fd(&fd), 0, 2 * PAGE, 0).unwrap_err();
        assert_eq!(error.0, "expected a memory file of at least 8192 bytes, got one of 4096");
        for (offset, size) in [(u64::MAX, 2), (0, 0)] {
            assert!(PeerRegion::map(std::os::fd::AsFd::as_fd(&fd), offset, size, 0).is_err());
        }
    }

    #[test]
    fn memory_segment_across_regions_is_translated_piecewise() {
        let mut handles = Handles::default();
        let fd = memfd(4 * PAGE);
        rustix::io::pwrite(&fd, &[1; 8], 2 * PAGE - 8).unwrap();
        rustix::io::pwrite(&fd, &[2; 8], 3 * PAGE).unwrap();
        let a = handles.insert(fd.try_clone().unwrap());
        let b = handles.insert(fd);
        let mut memory = Memory::default();
        // The second region follows the first for the guest but not in the
        // file, and its offset is not a multiple of the page size.
        let table = [region(b, PAGE, PAGE - 512, 3 * PAGE), region(a, 0, PAGE, PAGE)];
        memory.map(&table, &handles).unwrap();
        let mut iov = Vec::new();
        let segments = [Segment { addr: PAGE - 8, len: 12 }, Segment { addr: PAGE + 4, len: 4 }];
        let epoch = memory.translate(&segments, &mut iov).unwrap();
        // Two mappings, which the kernel may have put side by side.
        assert!(iov.len() <= 2, "touching pieces are joined");
        assert_eq!(bytes(&iov), [[1; 8], [2; 8]].concat());
        memory.release(epoch);
        for (addr, len) in [(2 * PAGE - 512, 1), (2 * PAGE - 513, 2), (u64::MAX, 1)] {
            iov.clear();
            assert_eq!(memory.translate(&[Segment { addr, len }], &mut iov), None);
        }
    }

    #[test]
    fn memory_unaligned_offset_maps_the_right_bytes() {
        let fd = memfd(2 * PAGE);
        rustix::io::pwrite(&fd, b"here", 512).unwrap();
        let mut handles = Handles::default();
        let handle = handles.insert(fd);
        let mem = map_shared(&handles, handle, 512, PAGE).unwrap();
        let mut buf = [0; 4];
        mem.read_slice(&mut buf, GuestAddress(0)).unwrap();
        assert_eq!(&buf, b"here");
        assert!(mem.write_slice(&[0; PAGE as usize], GuestAddress(1)).is_err());
    }

    #[test]
    fn memory_old_table_stays_while_a_request_uses_it() {
        let mut handles = Handles::default();
        let (a, b) = (handles.insert(memfd(PAGE)), handles.insert(memfd(PAGE)));
        let mut memory = Memory::default();
        memory.map(&[region(a, 0, PAGE, 0)], &handles).unwrap();
        let mut iov = Vec::new();
        let whole = [Segment { addr: 0, len: 4096 }];
        let epoch = memory.translate(&whole, &mut iov).unwrap();
        memory.unmap();
        memory.map(&[region(b, 0, PAGE, 0)], &handles).unwrap();
        let second = memory.translate(&whole, &mut Vec::new()).unwrap();
        memory.unmap();
        assert_eq!(memory.tables(), 4);
        memory.release(second);
        assert_eq!(memory.tables(), 4, "the first still blocks");
        assert_eq!(bytes(&iov), vec![0; 4096], "still mapped");
        memory.release(epoch);
        assert_eq!(memory.tables(), 1);
    }

    #[test]
    fn memory_known_region_is_not_mapped_again() {
        let mut handles = Handles::default();
        let (a, b) = (handles.insert(memfd(PAGE)), handles.insert(memfd(PAGE)));
        let mut memory = Memory::default();
        let one = memory.map(&[region(a, 0, PAGE, 0)], &handles).unwrap();
        let two = memory.map(&[region(a, 0, PAGE, 0), region(b, PAGE, PAGE, 0)], &handles).unwrap();
        let host = |m: &GuestMem, at| m.find(at).unwrap();
        assert_eq!(host(&one, 0), host(&two, 0));
        // A table that cannot be made leaves the old one in force.
        assert!(memory.map(&[region(b, 0, 2 * PAGE, 0)], &handles).is_err());
        assert!(memory.current().find(PAGE).is_some() && memory.current().find(2 * PAGE).is_none());
    }

    #[test]
    fn memory_inflight_allocation_is_zeroed_and_sealed() {
        let fd = alloc_inflight(3 * PAGE).unwrap();
        assert_eq!(fstat(&fd).unwrap().st_size, 3 * PAGE as i64);
        assert!(ftruncate(&fd, PAGE).is_err() && ftruncate(&fd, 4 * PAGE).is_err());
        let mut handles = Handles::default();
        let handle = handles.insert(fd);
        let mem = map_shared(&handles, handle, 0, 3 * PAGE).unwrap();
        let mut all = vec![1; 3 * PAGE as usize];
        mem.read_slice(&mut all, GuestAddress(0)).unwrap();
        assert!(all.iter().all(|b| *b == 0));
    }

    #[test]
    fn memory_truncated_by_the_peer_reads_as_zeroes_and_is_noticed() {
        super::super::sigbus::install().unwrap();
        let fd = memfd(4 * PAGE);
        rustix::io::pwrite(&fd, &[7; 4 * PAGE as usize], 0).unwrap();
        let mut handles = Handles::default();
        let handle = handles.insert(fd.try_clone().unwrap());
        let mem = map_shared(&handles, handle, 0, 4 * PAGE).unwrap();
        ftruncate(&fd, 2 * PAGE).unwrap();
        assert_eq!(mem.read_obj::<u8>(GuestAddress(2 * PAGE - 1)).unwrap(), 7);
        // By this thread's own count: other tests have faults too.
        let before = super::super::sigbus::hits();
        assert_eq!(mem.read_obj::<u8>(GuestAddress(2 * PAGE)).unwrap(), 0);
        assert_eq!(super::super::sigbus::hits(), before + 1);
        mem.write_obj(5u8, GuestAddress(4 * PAGE - 1)).unwrap();
        assert_eq!(super::super::sigbus::hits(), before + 2);
        assert!(super::super::sigbus::take_hit());
        assert_eq!(mem.read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
    }
}
