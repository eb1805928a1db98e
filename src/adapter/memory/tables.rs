//! The current memory table, and older ones that the disk still works on.

use super::{GuestMem, PeerRegion};
use crate::adapter::handles::Handles;
use crate::adapter::userfault::Faults;
use crate::backend::{MapFailed, MapRegion, MissingMemory};
use crate::blk::Segment;
use crate::wire::MemRegion;
use std::collections::VecDeque;
use std::sync::Arc;

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

    /// The same, but pages of new regions come when they are touched.
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
