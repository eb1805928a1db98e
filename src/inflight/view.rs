//! Looking at a region without taking it over: a dump, or the bytes that a
//! migration stream carries.

use super::layout::{self, RegionShape};
use super::packed::{self, PackedHeader, PackedPlan};
use super::recover::{self, InflightFault, Plan};
use super::split::RingState;
use crate::vring::RingFormat;
use crate::vring::packed::Position;
use core::sync::atomic::Ordering;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemory};

/// Where a region's fields are read from.
pub(super) trait Loads {
    /// The field at an offset, in host byte order.
    fn load<T: AtomicAccess>(&self, offset: u64) -> Result<T, InflightFault>;
}

impl<M: GuestMemory> Loads for M {
    fn load<T: AtomicAccess>(&self, offset: u64) -> Result<T, InflightFault> {
        Bytes::load(self, GuestAddress(offset), Ordering::Acquire)
            .map_err(|_| InflightFault::Gone(offset))
    }
}

/// Bytes of a region that nobody writes any more.
struct Still<'a>(&'a [u8]);

impl Loads for Still<'_> {
    fn load<T: AtomicAccess>(&self, offset: u64) -> Result<T, InflightFault> {
        let gone = InflightFault::Gone(offset);
        let mut value = T::zeroed();
        let field = value.as_mut_slice();
        let start = usize::try_from(offset).map_err(|_| gone.clone())?;
        let end = start.checked_add(field.len()).ok_or_else(|| gone.clone())?;
        field.copy_from_slice(self.0.get(start..end).ok_or(gone)?);
        Ok(value)
    }
}

/// What the first bytes of one vring's part say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// None are defined.
    pub features: u64,
    /// 0 fresh, 1 in use.
    pub version: u16,
    /// Entries.
    pub desc_num: u16,
    /// The last head linked into a batch.
    pub last_batch_head: u16,
    /// The vring's used index when the last batch was closed.
    pub used_idx: u16,
}

/// The bytes of a region, for reading only. Fields are in host byte order, as in
/// the region itself.
#[derive(Clone, Copy, Debug)]
pub struct RegionView<'a> {
    bytes: &'a [u8],
    shape: RegionShape,
}

impl<'a> RegionView<'a> {
    /// A region for so many split vrings of so many entries, each part having
    /// the same share of the bytes.
    pub fn new(bytes: &'a [u8], num_queues: u16, queue_size: u16) -> Result<Self, InflightFault> {
        Self::of(RingFormat::Split, bytes, num_queues, queue_size)
    }

    /// Like [`new`](Self::new), for vrings of either kind.
    pub fn of(
        format: RingFormat,
        bytes: &'a [u8],
        num_queues: u16,
        queue_size: u16,
    ) -> Result<Self, InflightFault> {
        let description = crate::wire::InflightDescription {
            mmap_size: bytes.len() as u64,
            mmap_offset: 0,
            num_queues,
            queue_size,
        };
        Ok(Self { bytes, shape: RegionShape::of(format, &description)? })
    }

    /// Entries of the first part by its own header, for a region that came
    /// without a description.
    pub fn guess_queue_size(bytes: &[u8]) -> Result<u16, InflightFault> {
        Still(bytes).load(layout::DESC_NUM)
    }

    /// Vrings and entries.
    pub fn shape(&self) -> RegionShape {
        self.shape
    }

    /// Where a vring's part begins, in bytes.
    pub fn offset(&self, vring: u16) -> u64 {
        self.shape.base(vring)
    }

    fn part(&self, vring: u16) -> Result<u64, InflightFault> {
        if vring >= self.shape.num_queues {
            return Err(InflightFault::NoPart { vring, queues: self.shape.num_queues });
        }
        Ok(self.shape.base(vring))
    }

    /// The header of a split vring's part, unchecked but for the vring having
    /// one.
    pub fn header(&self, vring: u16) -> Result<Header, InflightFault> {
        let (base, from) = (self.part(vring)?, Still(self.bytes));
        Ok(Header {
            features: from.load(base + layout::FEATURES)?,
            version: from.load(base + layout::VERSION)?,
            desc_num: from.load(base + layout::DESC_NUM)?,
            last_batch_head: from.load(base + layout::LAST_BATCH_HEAD)?,
            used_idx: from.load(base + layout::USED_IDX)?,
        })
    }

    /// What [`SplitRegion::attach`](super::SplitRegion::attach) would do with
    /// this region, by the very same code; `None` for a fresh one.
    pub fn plan(&self, vring: u16, ring: RingState) -> Result<Option<Plan>, InflightFault> {
        recover::plan(&Still(self.bytes), &self.shape, vring, ring)
    }

    /// The header of a packed vring's part, likewise.
    pub fn packed_header(&self, vring: u16) -> Result<PackedHeader, InflightFault> {
        packed::header(&Still(self.bytes), self.part(vring)?)
    }

    /// What [`PackedRegion::attach`](super::PackedRegion::attach) would do with
    /// this region for a ring of so many entries, by the very same code, if the
    /// ring says so about a batch that may be open; `None` for a fresh one.
    pub fn packed_plan(
        &self,
        vring: u16,
        size: u16,
        published: impl FnOnce(Position) -> bool,
    ) -> Result<Option<PackedPlan>, InflightFault> {
        packed::plan(&Still(self.bytes), &self.shape, vring, size, |at| Ok(published(at)))
    }
}
