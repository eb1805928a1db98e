//! virtio-blk: requests, configuration space, what a disk is asked to do.

mod config;
mod disk;
mod limits;
mod request;
mod state;
pub mod zones;

pub use crate::memory::Segment;
pub use config::{CONFIG_SIZE, ConfigError, DeviceConfig, SECTOR_SIZE, SEG_MAX, WRITEBACK_OFFSET};
pub use disk::{ByteRange, Completion, DiskError, DiskOp, DiskRequest, ReqId, ZoneAction};
pub use limits::{Lifetime, MAX_RANGES, RangeLimits, Topology};
pub use request::{Action, Mode, Parsed, Status, parse};
pub use state::{STATE_MAX, SavedState, SavedStateFault};
