//! midflight: vhost-user for virtio-blk, sans IO.

pub mod adapter;
pub mod backend;
pub mod blk;
pub mod bugs;
pub mod driver;
pub mod frontend;
mod handle;
pub mod inflight;
pub mod memory;
pub mod time;
pub mod vring;
pub mod wire;

pub use handle::Handle;
