//! Where things are in the region of a split vring.
// spec: vhost-user, "Inflight I/O tracking", queue_region_split

use super::InflightFault;
use super::packed::layout as packed;
use crate::bugs::{self, Bug};
use crate::vring::RingFormat;
use crate::wire::InflightDescription;

/// `u64 features`: none are defined.
pub(super) const FEATURES: u64 = 0;
/// `u16 version`: 0 says that nobody has used the region yet.
pub(super) const VERSION: u64 = 8;
/// `u16 desc_num`: number of entries.
pub(super) const DESC_NUM: u64 = 10;
/// `u16 last_batch_head`: last head linked into the current batch.
pub(super) const LAST_BATCH_HEAD: u64 = 12;
/// `u16 used_idx`: the vring's used index when the last batch was closed.
pub(super) const USED_IDX: u64 = 14;

/// The only version there is.
pub(super) const VERSION_1: u16 = 1;

const HEADER: u64 = 16;
const ENTRY: u64 = 16;
// An entry begins with `u8 inflight`.
/// `u16 next` in an entry: the head linked before this one.
const ENTRY_NEXT: u64 = 6;
/// `u64 counter` in an entry: order of fetching.
const ENTRY_COUNTER: u64 = 8;

/// Where the first byte of an entry is.
pub(super) const fn inflight(head: u16) -> u64 {
    HEADER + ENTRY * head as u64
}

pub(super) const fn next(head: u16) -> u64 {
    HEADER + ENTRY * head as u64 + ENTRY_NEXT
}

pub(super) const fn counter(head: u16) -> u64 {
    HEADER + ENTRY * head as u64 + ENTRY_COUNTER
}

/// Bytes that one vring's part needs.
const fn used_len(queue_size: u16) -> u64 {
    HEADER + ENTRY * queue_size as u64
}

/// Bytes of a region for `num_queues` split vrings of `queue_size` entries,
/// each part rounded up to 64 bytes.
pub const fn region_size(num_queues: u16, queue_size: u16) -> u64 {
    region_size_of(RingFormat::Split, num_queues, queue_size)
}

/// Like [`region_size`], for vrings of either kind.
pub const fn region_size_of(format: RingFormat, num_queues: u16, queue_size: u16) -> u64 {
    needed(format, queue_size).next_multiple_of(64) * num_queues as u64
}

const fn needed(format: RingFormat, queue_size: u16) -> u64 {
    match format {
        RingFormat::Split => used_len(queue_size),
        RingFormat::Packed => packed::used_len(queue_size),
    }
}

/// Largest ring size there can be.
const QUEUE_SIZE_MAX: u16 = 32768;

/// A region's description after it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionShape {
    /// Number of vrings with a part.
    pub num_queues: u16,
    /// Entries per part.
    pub queue_size: u16,
    /// Kind of the vrings.
    pub format: RingFormat,
    /// Bytes from the start of one part to the next.
    stride: u64,
}

impl RegionShape {
    /// Check the description of a region for split vrings. The distance between
    /// the parts is the allocating back-end's choice, so it is derived from the
    /// whole and only its minimum is known.
    pub fn new(d: &InflightDescription) -> Result<Self, InflightFault> {
        Self::of(RingFormat::Split, d)
    }

    /// Like [`new`](Self::new), for vrings of either kind.
    pub fn of(format: RingFormat, d: &InflightDescription) -> Result<Self, InflightFault> {
        if d.num_queues == 0 {
            return Err(InflightFault::NoQueues);
        }
        if d.queue_size == 0 || d.queue_size > QUEUE_SIZE_MAX {
            return Err(InflightFault::QueueSize { got: d.queue_size });
        }
        // The counters are 8-byte values that are stored in one piece.
        if !d.mmap_offset.is_multiple_of(8) {
            return Err(InflightFault::Offset { got: d.mmap_offset });
        }
        let stride = d.mmap_size / u64::from(d.num_queues);
        if stride < needed(format, d.queue_size) || !stride.is_multiple_of(8) {
            return Err(InflightFault::TooSmall {
                expected: needed(format, d.queue_size) * u64::from(d.num_queues),
                got: d.mmap_size,
            });
        }
        Ok(Self { num_queues: d.num_queues, queue_size: d.queue_size, format, stride })
    }

    /// The same bytes as a region for vrings of this kind: a front-end may bring
    /// one before it has said which they are.
    pub fn taken_for(self, format: RingFormat) -> Result<Self, InflightFault> {
        let least = needed(format, self.queue_size);
        if self.stride < least {
            let queues = u64::from(self.num_queues);
            let (expected, got) = (least * queues, self.stride * queues);
            return Err(InflightFault::TooSmall { expected, got });
        }
        Ok(Self { format, ..self })
    }

    /// Offset of eight bytes behind the entries of the first part, if it has
    /// them.
    pub(super) fn spare(&self) -> Option<u64> {
        let at = self.stride - 8;
        (at >= needed(self.format, self.queue_size)).then_some(at)
    }

    /// First byte of a vring's part.
    pub(super) fn base(&self, vring: u16) -> u64 {
        let short = bugs::on_when(Bug::SubRegionNotAdvanced, || vring > 0);
        self.stride * u64::from(vring - u16::from(short))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflight_region_sizes_are_those_seen_on_the_wire() {
        for (n, size) in [(1, 64), (3, 64), (4, 128), (64, 1088), (128, 2112), (256, 4160)] {
            assert_eq!(region_size(1, n), size, "queue size {n}");
        }
        assert_eq!(region_size(4, 128), 4 * 2112);
        for (n, size) in [(1, 64), (2, 128), (4, 192), (128, 4160), (256, 8256), (1024, 32832)] {
            assert_eq!(region_size_of(RingFormat::Packed, 1, n), size, "packed, queue size {n}");
        }
    }

    #[test]
    fn inflight_shape_takes_any_stride_that_holds_the_entries() {
        let d = |mmap_size, num_queues, queue_size| InflightDescription {
            mmap_size,
            mmap_offset: 0,
            num_queues,
            queue_size,
        };
        assert_eq!(RegionShape::new(&d(2 * 2112, 2, 128)).unwrap().base(1), 2112);
        assert_eq!(RegionShape::new(&d(2 * 2064, 2, 128)).unwrap().base(1), 2064);
        let short = RegionShape::new(&d(2 * 2063, 2, 128)).unwrap_err();
        assert_eq!(short.to_string(), "inflight region has 4126 bytes, expected at least 4128");
        assert_eq!(RegionShape::new(&d(64, 0, 1)), Err(InflightFault::NoQueues));
        assert_eq!(RegionShape::new(&d(64, 1, 0)), Err(InflightFault::QueueSize { got: 0 }));
        assert!(RegionShape::new(&d(u64::MAX, 1, 32769)).is_err());
    }
}
