//! The back-end half: one device, one front-end at a time.

mod io;

use crate::blk::{DeviceConfig, DiskRequest, ReqId};
use crate::time::Instant;
pub use io::*;
use vm_memory::GuestMemory;

/// What the front-end did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontendFault {}
/// What the guest did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {}
/// The driver called out of turn. The call changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiMisuse {
    /// Not expected now.
    #[error("{0} was not asked for")]
    NotAskedFor(&'static str),
}
/// The configuration makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {}

/// The back-end.
pub struct Backend<M> {
    memory: Option<M>,
}

impl<M: GuestMemory> Backend<M> {
    /// Make a back-end for one device.
    pub fn new(_config: DeviceConfig) -> Result<Self, ConfigError> {
        Ok(Self { memory: None })
    }
    /// How many bytes the driver should read from the socket next, at most, so
    /// that descriptors keep the message they came with. 0: read nothing now, the
    /// back-end waits for the driver or the disk.
    pub fn wanted(&self) -> usize {
        12
    }
    /// Tell a fact.
    pub fn handle_input(&mut self, _now: Instant, _input: Input<'_, M>) -> Result<(), ApiMisuse> {
        let _ = &self.memory;
        Ok(())
    }
    /// The next wish, `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }
    /// When to call with [`Input::Timeout`], and why.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        None
    }
    /// A request named by [`Output::Disk`] and not done yet.
    pub fn request(&self, _id: ReqId) -> Option<DiskRequest<'_>> {
        None
    }
}
