//! The boundary between the core and whatever runs the disk.

use crate::memory::Segment;
use core::fmt;

/// Identity of a request that the disk works on.
///
/// The slot is reused, the epoch never is within one back-end: a completion
/// that comes after a reset cannot be taken for a new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReqId {
    /// Index in the back-end's table of requests in flight.
    pub slot: u32,
    /// Number of this request since the back-end was made.
    pub epoch: u64,
}

impl fmt::Display for ReqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "req {}.{}", self.slot, self.epoch)
    }
}

/// What the disk is asked to do. Offsets and lengths are bytes, multiples of
/// the logical block size, and inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Fill the segments from the disk.
    Read {
        /// First byte on the disk.
        offset: u64,
    },
    /// Write the segments to the disk.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Durable before completion: the write cache is off.
        durable: bool,
    },
    /// Make every write that completed before this was issued durable.
    Flush,
    /// The range may lose its content.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Durable before completion: the write cache is off.
        durable: bool,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The range may be deallocated.
        unmap: bool,
        /// Durable before completion: the write cache is off.
        durable: bool,
    },
}

impl DiskOp {
    /// True if executing it a second time, whole, has the outcome of executing
    /// it once, however much of it was done the first time. What cannot be
    /// repeated is never suspended, it is drained.
    pub fn repeatable(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Write { .. }
            | Self::Flush
            | Self::Discard { .. }
            | Self::WriteZeroes { .. } => true,
        }
    }
}

/// One request for the disk, borrowed from the back-end's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRequest<'a> {
    /// Identity to report it done with.
    pub id: ReqId,
    /// It is the back-end's own: no vring waits for it, and the next two fields
    /// mean nothing.
    pub own: bool,
    /// Vring it came from.
    pub vring: u16,
    /// Head of its descriptor chain, for traces.
    pub head: u16,
    /// What to do.
    pub op: DiskOp,
    /// Guest memory to move data from or to, in order, none of 0 bytes, all
    /// inside the memory that was current at the fetch; empty unless the
    /// operation is `Read` or `Write`, whose length is their sum.
    pub segments: &'a [Segment],
}

/// Why the disk could not do what it was asked. The guest sees IOERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The operating system or the model refused, with this errno.
    #[error("disk failed with errno {0}")]
    Os(i32),
    /// Fewer bytes were moved than asked for, and trying again moved none.
    #[error("disk moved {moved} of {expected} bytes")]
    Short {
        /// Bytes asked for.
        expected: u64,
        /// Bytes moved.
        moved: u64,
    },
    /// The disk cannot do this at all.
    #[error("operation not supported by the disk")]
    Unsupported,
    /// The back-end asked for it to be cancelled, and from now on it touches
    /// neither disk nor guest memory. Not an error: nobody is told, the request
    /// is in flight still and will be executed again.
    #[error("cancelled")]
    Cancelled,
}

/// A request that the disk has finished with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub id: ReqId,
    /// All bytes moved, or why not.
    pub result: Result<(), DiskError>,
}
