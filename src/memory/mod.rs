//! Guest memory as a table of regions. The bytes themselves belong to the
//! driver; what the core needs is which addresses exist and how the
//! front-end's user addresses translate.

use crate::Handle;
use crate::wire::MemRegion;

mod table;

pub use table::{MAX_REGIONS, MemoryFault, MemoryTable, PAGE_SIZE};

/// One region of guest memory, as the driver should map it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRegion {
    /// Place and size; `mmap_offset` counts in the file behind the handle.
    pub region: MemRegion,
    /// The file.
    pub handle: Handle,
}

/// A piece of guest memory, by guest-physical address. It may cross regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address of the first byte.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}
