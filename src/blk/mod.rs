//! virtio-blk: requests, configuration space, what a disk is asked to do.

mod config;
mod disk;

pub use config::DeviceConfig;
pub use disk::{Completion, DiskError, DiskOp, DiskRequest, ReqId, Segment};
