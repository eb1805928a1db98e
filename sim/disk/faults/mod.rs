//! What can be wrong with a disk, as views over the truth.
//!
//! The image holds what a flawless disk would hold. A fault lies beside it and
//! says what is seen instead, so an oracle can always tell what was injected
//! from what is wrong. Damage is stable: whoever reads again sees the same
//! bytes, until the sector is written over. Nothing here is drawn while the disk
//! works: a fault has all its parameters from the start, and one of them taken
//! away moves no other.

mod draw;
mod injected;
mod plain;
mod plan;
mod state;
mod text;
mod view;

pub use draw::{draw, draw_timed};
pub use injected::{Content, Counts, Injected, Try};
pub use plan::FaultPlan;
pub(super) use state::{Faults, Struck};
pub use text::BadFault;

/// Which requests a fault is counted by. Numbers count from 0 over the run, and
/// a request that is submitted again counts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Among {
    /// Reads.
    Reads,
    /// Writes; discards and write zeroes are none.
    Writes,
    /// Flushes.
    Flushes,
    /// Everything the disk is asked for.
    All,
}

impl Among {
    /// One of them, as a document has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reads => "read",
            Self::Writes => "write",
            Self::Flushes => "flush",
            Self::All => "request",
        }
    }
}

/// A fault that strikes with a certain request.
///
/// `at` names a sector of the request, counted from its first and starting again
/// after its last. A parameter of 0 is the mildest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskFault {
    /// From this read on, one of its sectors cannot be read.
    ReadError {
        /// Which sector.
        at: u32,
    },
    /// From this write on, one of its sectors cannot be written.
    WriteError {
        /// Which sector.
        at: u32,
    },
    /// From this read on, one bit of one of its sectors is the other way round.
    Corrupt {
        /// Which sector.
        at: u32,
        /// Which bit, counted from the first, modulo 4096.
        bit: u32,
    },
    /// From this read on, its sectors show what other sectors held.
    MisdirectedRead {
        /// Sectors beyond the right one, round the end of the disk.
        by: u64,
    },
    /// This write goes elsewhere: where it should be, the old content is seen,
    /// and where it went, the new.
    MisdirectedWrite {
        /// Sectors beyond the right one, round the end of the disk.
        by: u64,
    },
    /// This write is acknowledged and not stored.
    LostWrite,
    /// The device moves part of this request, and then no more.
    Short {
        /// Sectors it moves, modulo those of the request.
        sectors: u32,
    },
    /// This request is reported as done twice.
    Duplicate {
        /// Microseconds from the first report to the second.
        after_us: u32,
    },
    /// This flush does nothing and says so.
    FailedFlush {
        /// What waited in the cache is taken for durable all the same, as after
        /// a failed fsync: no later flush writes it.
        forgets: bool,
    },
    /// This flush does nothing and is acknowledged.
    LyingFlush,
}

/// A fault that strikes at a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimedFault {
    /// Nothing completes, on no vring of no host.
    Stall {
        /// Microseconds.
        us: u32,
    },
    /// One request completes at a time, on all vrings of all hosts together.
    Throttle {
        /// Microseconds.
        us: u32,
        /// Microseconds from one completion to the next.
        every_us: u32,
    },
    /// The node with the disk loses power: what waits in its cache is lost in
    /// part, and so are the back-ends. The guest lives elsewhere and is not told.
    PowerLoss,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[allow(missing_docs)] // The variants of `DiskFault` and `TimedFault`.
pub enum Family {
    ReadError,
    WriteError,
    Corrupt,
    MisdirectedRead,
    MisdirectedWrite,
    LostWrite,
    Short,
    Duplicate,
    FailedFlush,
    LyingFlush,
    Stall,
    Throttle,
    PowerLoss,
}

/// A fault in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// What happens.
    pub what: &'static str,
    /// The promise that does not hold while it does; what is not named here
    /// holds.
    pub suspends: &'static str,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 13] = [
        Self::ReadError,
        Self::WriteError,
        Self::Corrupt,
        Self::MisdirectedRead,
        Self::MisdirectedWrite,
        Self::LostWrite,
        Self::Short,
        Self::Duplicate,
        Self::FailedFlush,
        Self::LyingFlush,
        Self::Stall,
        Self::Throttle,
        Self::PowerLoss,
    ];

    /// What it does and which promise it suspends.
    pub const fn describe(self) -> Description {
        let (what, suspends) = match self {
            Self::ReadError => (
                "a sector cannot be read until it is written over",
                "requests that read this sector end with IOERR, and their data means nothing",
            ),
            Self::WriteError => (
                "a sector cannot be written any more",
                "requests that change this sector end with IOERR, and each of their sectors holds old or new",
            ),
            Self::Corrupt => (
                "one bit of a sector reads the other way round, until it is written over",
                "reads of this sector may return exactly these bytes",
            ),
            Self::MisdirectedRead => (
                "sectors show what other sectors held, until they are written over",
                "reads of these sectors may return exactly those bytes",
            ),
            Self::MisdirectedWrite => (
                "a write is stored elsewhere, until either end is written over",
                "reads of the right place may return the old bytes, reads of the wrong place the new ones",
            ),
            Self::LostWrite => (
                "a write is acknowledged and not stored",
                "reads of its sectors may return the old bytes, until they are written over",
            ),
            Self::Short => (
                "the device moves some sectors of a request and then no more",
                "this request ends with IOERR; each of its sectors holds old or new",
            ),
            Self::Duplicate => {
                ("a request is reported as done twice", "none: the second report has to be ignored")
            }
            Self::FailedFlush => (
                "a flush fails, and what waited in the cache may never be written",
                "this flush ends with IOERR; what was in the cache then is promised by no later flush",
            ),
            Self::LyingFlush => (
                "a flush is acknowledged and does nothing",
                "this flush promises nothing; later ones do",
            ),
            Self::Stall => (
                "for a while nothing completes, on no vring of no host",
                "none: what was accepted completes later",
            ),
            Self::Throttle => (
                "for a while one request completes at a time",
                "none: what was accepted completes later",
            ),
            Self::PowerLoss => (
                "power of the node with the disk is lost: back-ends die, and of each sector in the cache any version since the durable one is left",
                "a write that was acknowledged may be undone, unless a flush or write-through promised it",
            ),
        };
        Description { what, suspends }
    }

    /// As documents and tables have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadError => "read-error",
            Self::WriteError => "write-error",
            Self::Corrupt => "corrupt",
            Self::MisdirectedRead => "misdirected-read",
            Self::MisdirectedWrite => "misdirected-write",
            Self::LostWrite => "lost-write",
            Self::Short => "short",
            Self::Duplicate => "duplicate",
            Self::FailedFlush => "failed-flush",
            Self::LyingFlush => "lying-flush",
            Self::Stall => "stall",
            Self::Throttle => "throttle",
            Self::PowerLoss => "power-loss",
        }
    }

    /// A family by name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }
}

impl DiskFault {
    /// Its kind.
    pub const fn family(self) -> Family {
        match self {
            Self::ReadError { .. } => Family::ReadError,
            Self::WriteError { .. } => Family::WriteError,
            Self::Corrupt { .. } => Family::Corrupt,
            Self::MisdirectedRead { .. } => Family::MisdirectedRead,
            Self::MisdirectedWrite { .. } => Family::MisdirectedWrite,
            Self::LostWrite => Family::LostWrite,
            Self::Short { .. } => Family::Short,
            Self::Duplicate { .. } => Family::Duplicate,
            Self::FailedFlush { .. } => Family::FailedFlush,
            Self::LyingFlush => Family::LyingFlush,
        }
    }

    /// Which requests it is counted by.
    pub const fn among(self) -> Among {
        match self {
            Self::ReadError { .. } | Self::Corrupt { .. } | Self::MisdirectedRead { .. } => {
                Among::Reads
            }
            Self::WriteError { .. } | Self::MisdirectedWrite { .. } | Self::LostWrite => {
                Among::Writes
            }
            Self::FailedFlush { .. } | Self::LyingFlush => Among::Flushes,
            Self::Short { .. } | Self::Duplicate { .. } => Among::All,
        }
    }

    /// What it does and which promise it suspends.
    pub const fn describe(self) -> Description {
        self.family().describe()
    }
}

impl TimedFault {
    /// Microseconds for which it goes on.
    pub const fn lasts(self) -> u32 {
        match self {
            Self::Stall { us } | Self::Throttle { us, .. } => us,
            Self::PowerLoss => 0,
        }
    }

    /// Its kind.
    pub const fn family(self) -> Family {
        match self {
            Self::Stall { .. } => Family::Stall,
            Self::Throttle { .. } => Family::Throttle,
            Self::PowerLoss => Family::PowerLoss,
        }
    }

    /// What it does and which promise it suspends.
    pub const fn describe(self) -> Description {
        self.family().describe()
    }
}
