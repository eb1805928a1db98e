//! A virtio-blk driver as a guest would have it, sans IO.
//!
//! It is the second reading of the VIRTIO document beside the back-end's: it
//! shares no ring code with the device side, so that a mistake in one is seen
//! by the other. The simulator and the tests against real sockets put their
//! requests into rings with it.
//!
//! Nothing here owns memory. Every method is given the guest memory and works
//! on guest-physical addresses that the caller chose; the driver's own state is
//! plain data, so cloning it is what a migration of the guest does to it.
//!
//! The usual round, once a ring is laid out and started by a front-end:
//!
//! ```
//! use midflight::driver::{
//!     BlkDriver, BlkOp, BlkRequest, Framing, RequestBuffers, RingFeatures, RingLayout, Span,
//! };
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)])?;
//! let layout = RingLayout::contiguous(8, 0x1000)?;
//! let mut blk = BlkDriver::start(&mem, layout, RingFeatures::default())?;
//!
//! let data = [Span { addr: 0x8000, len: 512 }];
//! let buffers = RequestBuffers { header: 0x7000, data: &data, status: 0x7010, table: None };
//! let request = BlkRequest { op: BlkOp::In { sector: 3 }, token: 77 };
//! let head = blk.submit(&mem, &request, &buffers, &Framing::CLASSIC)?;
//! blk.publish(&mem)?;
//! assert!(blk.kick_needed(&mem)?);
//!
//! // Here a device would work. This one fails the request: status 1, one byte written.
//! mem.write_obj(1u8, GuestAddress(0x7010))?;
//! mem.write_obj(u32::from(head).to_le(), GuestAddress(layout.used_entry(0)))?;
//! mem.write_obj(1u32.to_le(), GuestAddress(layout.used_entry(0) + 4))?;
//! mem.write_obj(1u16.to_le(), GuestAddress(layout.used_idx()))?;
//!
//! let done = blk.reap(&mem)?.expect("the device has published one entry");
//! assert_eq!((done.token, done.status.code()), (77, 1));
//! # Ok(())
//! # }
//! ```

mod access;
mod blk;
mod chain;
mod error;
mod framing;
mod layout;
mod packed;
mod ring;
mod split;

pub use blk::{
    APPEND_STATUS_LEN, BlkDone, BlkDriver, BlkOp, BlkRequest, BlkStatus, RangeSegment,
    RequestBuffers, ZoneOp,
};
pub use chain::{Buffer, Indirect, RingFeatures, Used};
pub use error::{DeviceFault, DriverError, DriverMisuse};
pub use framing::{Framing, Span};
pub use layout::{LayoutError, RingLayout};
pub use packed::{Outstanding, PackedDriver, PackedPosition};
pub use ring::DriverRing;
pub use split::SplitDriver;
