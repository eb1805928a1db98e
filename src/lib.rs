//! midflight: vhost-user for virtio-blk, sans IO.

pub mod backend;
pub mod blk;
pub mod driver;
pub mod frontend;
mod handle;
pub mod time;
pub mod wire;

pub use handle::Handle;
