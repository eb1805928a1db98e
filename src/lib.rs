//! midflight: vhost-user for virtio-blk, sans IO.

pub mod adapter;
pub mod backend;
pub mod blk;
mod handle;
pub mod time;
pub mod wire;

pub use handle::Handle;
