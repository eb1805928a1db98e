//! midflight: vhost-user for virtio-blk, sans IO.

pub mod backend;
pub mod blk;
pub mod driver;
mod handle;
pub mod time;
pub mod wire;

pub use handle::Handle;
