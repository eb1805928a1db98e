//! virtio-blk: requests, configuration space, what a disk is asked to do.

mod config;
mod disk;
mod request;
mod state;

pub use crate::memory::Segment;
pub use config::{CONFIG_SIZE, ConfigError, DeviceConfig, SECTOR_SIZE, SEG_MAX, WRITEBACK_OFFSET};
pub use disk::{Completion, DiskError, DiskOp, DiskRequest, ReqId};
pub use request::{Action, Parsed, Status, parse};
pub use state::{STATE_MAX, SavedState, SavedStateFault};
