//! virtio-blk: requests, configuration space, what a disk is asked to do.

mod disk;

pub use disk::{Completion, DiskError, DiskOp, DiskRequest, ReqId, Segment};
