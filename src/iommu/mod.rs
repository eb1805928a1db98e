//! I/O virtual addresses: what the front-end said about them, and guest memory
//! as a device sees it that has only these.
//!
//! ```text
//! iotlb   what the front-end has told us of its IOMMU, and no more of it than fits
//! map     the places of one ring, found out before the ring is touched and kept
//! space   guest memory by I/O virtual address, for rings and descriptor tables
//! ```
//!
//! Data of a request is not reached through [`Space`]: its buffers are
//! translated once, when the chain is fetched, and are guest-physical from
//! there on. So nothing behind the fetch knows that there is an IOMMU.
// spec: vhost-user, "IOMMU support"

mod iotlb;
mod map;
mod space;

pub use iotlb::{Found, Iotlb, Range};
pub use map::RingMap;
pub use space::{Space, Translator};

/// Grain of the questions asked of the front-end, in bytes. Its answers may
/// have any.
pub const PAGE: u64 = 4096;

/// What memory is used for, or may be.
// spec: vhost-user, "An IOTLB message": permissions flags
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access(u8);

impl Access {
    /// The device reads.
    pub const READ: Self = Self(1);
    /// The device writes.
    pub const WRITE: Self = Self(2);
    /// The device does both.
    pub const BOTH: Self = Self(3);

    /// From the bits of a message; others than read and write mean nothing.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 3)
    }

    /// 1 read, 2 write, 3 both.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// True if all that is `needed` may be done.
    pub fn allows(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }
}

/// An address that does not translate, for what was to be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// I/O virtual address of the first such byte.
    pub iova: u64,
    /// What was to be done there.
    pub access: Access,
}

impl Gap {
    /// Start of the page it is in: what the front-end is asked about.
    pub fn page(&self) -> u64 {
        self.iova & !(PAGE - 1)
    }
}
