//! Shared memory as one process has it mapped.
//!
//! The collection of vm-memory does the same, but each access passes through
//! several layers of results, and a simulated request has some hundred of them.

use super::journal::load;
use super::log::{LogSlice, StoreLog};
use std::iter::FusedIterator;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, MmapRegion, Permissions,
    VolatileMemory, VolatileSlice,
};

/// What the core sees as guest memory and as an inflight region.
#[derive(Clone)]
pub struct Mem {
    /// By rising guest address; none overlap.
    spans: Rc<[Span]>,
}

/// One region.
pub(super) struct Span {
    /// Guest-physical address of the first byte.
    guest: u64,
    /// Bytes.
    len: u64,
    mapping: Arc<MmapRegion<StoreLog>>,
}

impl Span {
    pub fn new(guest: u64, mapping: Arc<MmapRegion<StoreLog>>) -> Self {
        let len = mapping.size() as u64;
        assert!(guest.checked_add(len).is_some(), "guest addresses do not overflow");
        Self { guest, len, mapping }
    }
}

impl std::fmt::Debug for Mem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.spans.iter().map(|s| s.guest..s.guest + s.len)).finish()
    }
}

impl Mem {
    pub(super) fn new(spans: impl Iterator<Item = Span>) -> Self {
        let spans: Rc<[Span]> = spans.collect();
        let apart = |pair: &[Span]| pair[0].guest + pair[0].len <= pair[1].guest;
        assert!(spans.windows(2).all(apart), "regions in order and apart");
        Self { spans }
    }

    /// Read bytes that are all there.
    ///
    /// Like the method of [`Bytes`](vm_memory::Bytes), which whoever is generic
    /// over memory gets, but with fewer layers in between.
    ///
    /// # Errors
    /// If some are not there; those before them have been read.
    #[inline]
    pub fn read_slice(&self, into: &mut [u8], addr: GuestAddress) -> Result<(), GuestMemoryError> {
        let mut done = 0;
        for slice in (Slices { mem: self, addr: addr.0, left: into.len() }) {
            done += slice?.copy_to(&mut into[done..]);
        }
        Ok(())
    }

    /// Write bytes to where all of them have room; otherwise as
    /// [`read_slice`](Self::read_slice).
    ///
    /// # Errors
    /// If some have no room; those before them have been written.
    #[inline]
    pub fn write_slice(&self, bytes: &[u8], addr: GuestAddress) -> Result<(), GuestMemoryError> {
        let mut rest = bytes;
        for slice in (Slices { mem: self, addr: addr.0, left: bytes.len() }) {
            let slice = slice?;
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    /// Two bytes that are both there, as the machine has them.
    #[inline]
    pub fn load16(&self, addr: u64) -> Option<[u8; 2]> {
        let aligned = self.find(addr).and_then(|(span, skip)| {
            load::<AtomicU16>(&span.mapping, skip as usize).map(u16::to_ne_bytes)
        });
        aligned.or_else(|| {
            let mut bytes = [0; 2];
            self.read_slice(&mut bytes, GuestAddress(addr)).ok().map(|()| bytes)
        })
    }

    /// The region of an address, and how far into it that is.
    #[inline]
    fn find(&self, addr: u64) -> Option<(&Span, u64)> {
        // Three regions at most, and they are in order.
        let span = self.spans.iter().rev().find(|span| span.guest <= addr)?;
        let skip = addr - span.guest;
        (skip < span.len).then_some((span, skip))
    }
}

impl GuestMemory for Mem {
    type PhysicalMemory = GuestMemoryMmap<StoreLog>;
    type Bitmap = StoreLog;

    #[inline]
    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        Slices { mem: self, addr: addr.0, left: count }.all(|slice| slice.is_ok())
    }

    #[inline]
    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, LogSlice<'a>>, GuestMemoryError> {
        Ok(Slices { mem: self, addr: addr.0, left: count })
    }
}

/// The pieces of one range, one for each region that it touches.
struct Slices<'a> {
    mem: &'a Mem,
    addr: u64,
    left: usize,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, LogSlice<'a>>, GuestMemoryError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let Some((span, skip)) = self.mem.find(self.addr) else {
            self.left = 0;
            return Some(Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(self.addr))));
        };
        let take = self.left.min((span.len - skip) as usize);
        self.left -= take;
        // Does not wrap: no span ends beyond 64 bits.
        self.addr += take as u64;
        Some(span.mapping.get_slice(skip as usize, take).map_err(GuestMemoryError::from))
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, LogSlice<'a>> for Slices<'a> {
    #[inline]
    fn stop_on_error(
        self,
    ) -> Result<impl Iterator<Item = VolatileSlice<'a, LogSlice<'a>>>, GuestMemoryError> {
        let mut rest = self;
        let first = rest.next().transpose()?;
        Ok(first.into_iter().chain(rest.map_while(Result::ok)))
    }
}
