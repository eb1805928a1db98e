//! Zones: parts of a disk that have to be written in sequence.
//!
//! The model of a host-managed device, without any input or output: where each
//! zone's write pointer is, which zones are open or active, and what a request
//! does to that. Whoever drives it keeps [`record`]s of what changed, in the
//! order it is told here, and moves the data.
//!
//! **A write pointer moves when a write is admitted**, not when it is done. So
//! several writes to a zone can be on their way at once, and what matters for
//! recovery: whoever comes after a crash finds every write that was admitted
//! *behind* the write pointer. A write that is submitted again and lies there is
//! executed again in its place; it is not off the write pointer. What was never
//! admitted is at the write pointer or beyond it and is treated as new.
// spec: virtio 1.3, "Block Device", "Device Operation" (VIRTIO_BLK_F_ZONED)

mod appends;
mod geometry;
mod model;
pub mod record;
mod report;

pub use appends::{Append, AppendId, Appends};
pub use geometry::{Geometry, ZonedConfig};
pub use model::{Admitted, Zone, ZoneState, Zones};
pub use report::{DESCRIPTOR_SIZE, HEADER_SIZE, descriptor, header, reported};

/// What a guest did wrong, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneFault {
    /// Nothing that can be done to this zone.
    #[error("zone command is not valid")]
    InvalidCommand,
    /// Not at the write pointer, or not whole blocks.
    #[error("write is not at the write pointer")]
    UnalignedWritePointer,
    /// Too many zones would be open.
    #[error("too many open zones")]
    OpenResource,
    /// Too many zones would be active.
    #[error("too many active zones")]
    ActiveResource,
}
