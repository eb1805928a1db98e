//! Guest memory with a short way from an address to a byte.
//!
//! The collection that vm-memory has does the same, but every access passes
//! through several layers of results, and a request takes some twenty of them.

use super::PeerRegion;
use crate::backend::MapFailed;
use core::iter::FusedIterator;
use std::sync::Arc;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend as _, GuestMemoryError, GuestRegionCollection,
    Permissions, VolatileSlice,
};

/// Guest memory as the daemon has it.
#[derive(Clone, Debug, Default)]
pub struct GuestMem {
    /// Owns what the spans point into.
    regions: GuestRegionCollection<PeerRegion>,
    /// By ascending guest address; none overlap.
    spans: Arc<[Span]>,
}

/// One region.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Guest-physical address of the first byte.
    guest: u64,
    /// Bytes.
    len: u64,
    /// The first byte here.
    host: *mut u8,
}

// SAFETY: the pointers name shared memory, which is only touched through
// volatile accesses and system calls; no thread owns it.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl GuestMem {
    /// Memory of these regions, in any order.
    pub fn from_regions(mut regions: Vec<Arc<PeerRegion>>) -> Result<Self, MapFailed> {
        if regions.is_empty() {
            return Ok(Self::default());
        }
        regions.sort_by_key(|region| region.guest);
        let regions = GuestRegionCollection::from_arc_regions(regions)
            .map_err(|e| MapFailed(e.to_string().to_lowercase()))?;
        let span = |r: &PeerRegion| Span { guest: r.guest.0, len: r.size as u64, host: r.host() };
        let spans = regions.iter().map(span).collect();
        Ok(Self { regions, spans })
    }

    /// Where `addr` lies here, and how many bytes follow in its region, at
    /// least one.
    #[inline]
    pub fn find(&self, addr: u64) -> Option<(*mut u8, u64)> {
        // Few regions: the last one that starts at or before `addr`.
        let index = self.spans.partition_point(|span| span.guest <= addr);
        let span = self.spans.get(index.checked_sub(1)?)?;
        let skip = addr - span.guest;
        let left = span.len.checked_sub(skip).filter(|left| *left > 0)?;
        Some((span.host.wrapping_add(skip as usize), left))
    }
}

impl GuestMemory for GuestMem {
    type PhysicalMemory = GuestRegionCollection<PeerRegion>;
    type Bitmap = ();

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
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        Ok(Slices { mem: self, addr: addr.0, left: count })
    }

    fn physical_memory(&self) -> Option<&Self::PhysicalMemory> {
        Some(&self.regions)
    }
}

/// The pieces of one range, one for each region that it touches.
struct Slices<'a> {
    mem: &'a GuestMem,
    addr: u64,
    left: usize,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, ()>, GuestMemoryError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let Some((host, there)) = self.mem.find(self.addr) else {
            self.left = 0;
            return Some(Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(self.addr))));
        };
        let take = there.min(self.left as u64);
        self.left -= take as usize;
        // Does not wrap: `PeerRegion::map` refuses what ends beyond 64 bits.
        self.addr = self.addr.wrapping_add(take);
        // SAFETY: `take` bytes from `host` lie in the mapping of a region that
        // `mem` keeps, and is borrowed for as long as the slice; everybody here
        // uses volatile accesses only.
        Some(Ok(unsafe { VolatileSlice::new(host, take as usize) }))
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {
    #[inline]
    fn stop_on_error(
        self,
    ) -> Result<impl Iterator<Item = VolatileSlice<'a, ()>>, GuestMemoryError> {
        if self.left > 0 && self.mem.find(self.addr).is_none() {
            return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(self.addr)));
        }
        Ok(self.map_while(Result::ok))
    }
}
