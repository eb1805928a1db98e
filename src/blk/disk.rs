//! The boundary between the core and whatever runs the disk.

use super::zones::ZoneFault;
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
    /// The ranges may lose their content.
    Discard {
        /// Durable before completion: the write cache is off.
        durable: bool,
    },
    /// The ranges read as zeroes afterwards.
    WriteZeroes {
        /// Durable before completion: the write cache is off.
        durable: bool,
    },
    /// What the ranges held can be had from the disk by no means afterwards, and
    /// that is so at the completion.
    SecureErase,
    /// Write to a zone wherever its write pointer is.
    ZoneAppend {
        /// First byte of the zone.
        offset: u64,
        /// Bytes of data. The segments hold these, and behind them 8 bytes where
        /// the disk stores the sector at which the data went, little endian.
        len: u64,
        /// Durable before completion: the write cache is off.
        durable: bool,
    },
    /// Fill the segments with a report of as many zones as there is room for.
    ZoneReport {
        /// A byte of the first zone to report.
        offset: u64,
    },
    /// Change the state of a zone, or of all.
    Zone {
        /// What to do.
        action: ZoneAction,
        /// First byte of the zone, if `action` is about one, as the guest said
        /// it: any sector of the disk.
        offset: u64,
    },
}

/// What is done to a zone as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneAction {
    /// Open it explicitly.
    Open,
    /// Close it.
    Close,
    /// Fill it up without writing.
    Finish,
    /// Make it empty.
    Reset,
    /// Make every zone empty.
    ResetAll,
}

/// A part of the disk that a DISCARD, WRITE_ZEROES or SECURE_ERASE is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes, not 0.
    pub len: u64,
    /// Write zeroes: it may be deallocated.
    pub unmap: bool,
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
            | Self::WriteZeroes { .. }
            | Self::SecureErase
            | Self::ZoneReport { .. } => true,
            // An append would be in the zone twice. The others change where
            // writes may go, and a zone that is half reset is good for nothing.
            Self::ZoneAppend { .. } | Self::Zone { .. } => false,
        }
    }

    /// The disk stores to the request's segments, or to the end of them.
    pub fn fills_memory(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::ZoneReport { .. } | Self::ZoneAppend { .. })
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
    /// operation is `Read`, `Write` (whose length is their sum), `ZoneAppend` or
    /// `ZoneReport`.
    pub segments: &'a [Segment],
    /// At least one range for `Discard`, `WriteZeroes` and `SecureErase`, in the
    /// order of the request; none otherwise.
    pub ranges: &'a [ByteRange],
    /// It was fetched by a predecessor, who may have done all of it.
    pub again: bool,
    /// Its counter in the inflight region, by which a disk can tell whether it
    /// has seen an append before. Only known for `ZoneAppend`.
    pub order: Option<u64>,
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
    /// The guest has broken a rule of zones, and sees which.
    #[error("{0}")]
    Zone(ZoneFault),
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
