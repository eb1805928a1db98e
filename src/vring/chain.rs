//! Walking a descriptor chain.
//!
//! A chain is walked again when its request is resubmitted, long after its
//! entry in the available ring was overwritten, so the walk starts from a head
//! and not from the ring.
// spec: virtio 1.2, "The Virtqueue Descriptor Table"

use super::GuestFault;
use crate::bugs::{self, Bug};
use crate::marks::{self, Mark};
use crate::memory::Segment;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Most descriptors a chain may have. Some drivers exceed the ring size with
/// an indirect table (512 + 3 were seen); beyond this nobody goes.
pub const MAX_DESCRIPTORS: u32 = 1024 + 3;

/// The buffers of one chain. Made once and reused, so that a walk allocates
/// nothing once it has seen the longest chain.
#[derive(Debug, Default)]
pub struct Chain {
    /// Device-readable buffers, in order.
    pub readable: Vec<Segment>,
    /// Device-writable buffers, in order.
    pub writable: Vec<Segment>,
    /// Data buffers it may have at most, if that is not
    /// [`SEG_MAX`](crate::blk::SEG_MAX): one buffer of the guest may have become
    /// many by translation. 0: not translated.
    pub data_limit: usize,
}

impl Chain {
    /// Fill from the chain at `head`. Every descriptor is read exactly once:
    /// the guest may change it at any time.
    ///
    /// Addresses of buffers are not checked here. Buffers of no bytes are left
    /// out.
    pub fn walk<M: GuestMemory>(
        &mut self,
        mem: &M,
        table: u64,
        ring_size: u16,
        head: u16,
    ) -> Result<(), GuestFault> {
        self.clear();
        let mut table = Table { addr: table, size: u32::from(ring_size), indirect: false };
        let (mut index, mut sums) = (head, Sums::of(head));
        loop {
            let desc = table.read(mem, head, index)?;
            if desc.refers_to_indirect_table() {
                if table.indirect || desc.has_next() {
                    return Err(GuestFault::IndirectNested { head });
                }
                let len = desc.len();
                if len == 0 || !len.is_multiple_of(16) {
                    return Err(GuestFault::IndirectLen { head, len });
                }
                marks::hit(Mark::ChainIndirect);
                marks::hit_when(Mark::ChainLongerThanRing, || len / 16 > u32::from(ring_size));
                let long = len / 16 > u32::from(ring_size);
                let cut = long && bugs::on(Bug::IndirectOfRingSize);
                let size = if cut { u32::from(ring_size) } else { len / 16 };
                table = Table { addr: desc.addr().0, size, indirect: true };
                index = 0;
                continue;
            }
            self.add(&mut sums, desc.addr().0, desc.len(), desc.is_write_only())?;
            if !desc.has_next() {
                return Ok(());
            }
            index = desc.next();
        }
    }

    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.data_limit = 0;
    }

    /// One more descriptor of a buffer.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        sums: &mut Sums,
        addr: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), GuestFault> {
        let head = sums.head;
        sums.count += 1;
        if sums.count > MAX_DESCRIPTORS {
            return Err(GuestFault::TooLong { head, max: MAX_DESCRIPTORS });
        }
        sums.bytes += u64::from(len);
        if sums.bytes > u64::from(u32::MAX) {
            return Err(GuestFault::TooManyBytes { head });
        }
        let segment = Segment { addr, len };
        if writable {
            if segment.len != 0 {
                self.writable.push(segment);
            }
        } else if !self.writable.is_empty() {
            return Err(GuestFault::Order { head });
        } else if segment.len != 0 {
            self.readable.push(segment);
        }
        Ok(())
    }
}

/// What a walk has seen so far.
pub(super) struct Sums {
    /// The chain, for faults.
    pub head: u16,
    count: u32,
    bytes: u64,
}

impl Sums {
    pub fn of(head: u16) -> Self {
        Self { head, count: 0, bytes: 0 }
    }
}

struct Table {
    addr: u64,
    size: u32,
    indirect: bool,
}

impl Table {
    fn read<M: GuestMemory>(
        &self,
        mem: &M,
        head: u16,
        index: u16,
    ) -> Result<Descriptor, GuestFault> {
        if u32::from(index) >= self.size {
            return Err(GuestFault::Next { head, next: index, size: self.size });
        }
        let offset = 16 * u64::from(index);
        let unreachable = || GuestFault::Descriptor { head, addr: self.addr.wrapping_add(offset) };
        let addr = self.addr.checked_add(offset).ok_or_else(unreachable)?;
        mem.read_obj(GuestAddress(addr)).map_err(|_| unreachable())
    }
}
