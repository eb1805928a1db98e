//! The bytes of a migration: QEMU's stream, and the inflight region in it.
//!
//! When a guest with `inflight-migration=on` moves, QEMU reads the inflight
//! region after the rings have stopped and sends it as a subsection of the
//! device. This module writes and reads those bytes, walks the file that
//! `migrate "exec:cat > FILE"` leaves behind, and says what a destination
//! would make of each disk in it. It works on byte slices: whoever calls has
//! the file.
//!
//! ```text
//!   description   what the stream says about itself at its end: sizes
//!   stream        sections, one after the other       ram   pages of guest memory
//!   device        a vhost-user-blk section            virtio   its ring state
//!   subsection    the inflight region's envelope      image    its contents, judged
//! ```
//!
//! Nothing in a file is trusted: every size is compared with what is there
//! before anything is allocated, and an error says what was expected, what
//! came, and at which offset. Integers of the stream are big endian; the
//! region and the configuration space are raw, in the byte order of the hosts,
//! which must therefore be the same on both ends.
// spec: vhost-user, "Inflight I/O tracking"

mod cursor;
mod description;
mod device;
mod fault;
mod image;
mod ram;
mod stream;
mod subsection;
mod virtio;

pub use description::{Description, DeviceDescription};
pub use device::{BlkDevice, blk_devices};
pub use fault::{StreamFault, What};
pub use image::{
    Contradiction, InflightImage, Live, PartHeader, PartImage, Takeover, packed_takeover, takeover,
};
pub use ram::{GuestRam, Page};
pub use stream::{Section, SectionKind, Stream};
pub use subsection::{InflightSubsection, REGION_MAX};
pub use virtio::{DeviceState, QueueState};
