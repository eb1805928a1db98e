//! What an owner tells a front-end before and with its commands.

use crate::Handle;
use crate::time::Duration;
use crate::wire::Dialect;
use crate::wire::features::virtio;

/// How a front-end behaves; fixed while it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendConfig {
    /// Virtio features that are let through to the guest if the back-end
    /// offers them. Bit 30 takes care of itself.
    pub virtio_features: u64,
    /// Protocol features that are accepted if the back-end offers them.
    pub protocol_features: u64,
    /// Vrings of the device, 1 to 256.
    pub num_queues: u16,
    /// Largest ring the device has, 1 to 32768: a power of two, unless packed
    /// rings are let through. The inflight region has this many entries per vring.
    pub queue_size: u16,
    /// Bytes of the configuration space, 0 to 256. With 0 it is not read and
    /// the back-end need not have any.
    pub config_len: u16,
    /// Time from the loss of a connection to the next attempt. `None`: a lost
    /// connection is final.
    pub reconnect_backoff: Option<Duration>,
    /// How long an answer may take. GET_VRING_BASE waits for the disk. `None`:
    /// for ever.
    pub reply_timeout: Option<Duration>,
    /// Contested numbers.
    pub dialect: Dialect,
    /// Negotiate after connecting. Without it nothing is sent but what the
    /// owner sends by [`Command::Raw`](super::Command::Raw): for tests that
    /// want messages in an order no good front-end would choose.
    pub negotiate: bool,
}

/// Descriptors that a vring has for as long as the device lives. They stay the
/// owner's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VringWiring {
    /// Signalled for used entries while the vring is not started; `None`: by
    /// [`Event::Called`](super::Event::Called) if in-band notifications are in
    /// force, else NOFD, here and in the fields below.
    pub call: Option<Handle>,
    /// Signalled when the vring is broken; `None`: by
    /// [`Event::VringBroken`](super::Event::VringBroken), or NOFD.
    pub err: Option<Handle>,
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Virtio features that the guest accepted, out of those that
    /// [`Event::Ready`](super::Event::Ready) named. `None`: all of those.
    pub features: Option<u64>,
    /// The vrings that the guest has set up, by rising index.
    pub vrings: Vec<VringStart>,
}

/// One vring to start. Handles stay the owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringStart {
    /// Vring index, below the number of vrings.
    pub index: u16,
    /// Ring size in entries.
    pub size: u16,
    /// Descriptor table or packed descriptor ring, by user address
    /// (guest-physical with GPA_ADDRESSES).
    pub desc: u64,
    /// Available ring or driver event suppression, likewise.
    pub avail: u64,
    /// Used ring or device event suppression, likewise.
    pub used: u64,
    /// Where the back-end goes on.
    pub base: Base,
    /// What the guest's driver kicks; `None`: by
    /// [`Command::Kick`](super::Command::Kick) if in-band notifications are in
    /// force, else NOFD, the back-end polls.
    pub kick: Option<Handle>,
    /// What the back-end calls; `None`: by
    /// [`Event::Called`](super::Event::Called), or NOFD, the guest polls.
    pub call: Option<Handle>,
}

/// Where a back-end goes on in the ring, in the format of SET_VRING_BASE: the
/// next available index of a split ring; of a packed one the available position
/// in bits 0 to 15 and the used one in bits 16 to 31, each with its wrap counter
/// on top.
// spec: vhost-user, "Vring state"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Where it stopped: the answer to the last GET_VRING_BASE, the beginning
    /// after a reset. Not known if the connection broke while the vring ran.
    Kept,
    /// Here. After the back-end of a split ring has died this is the used index
    /// in guest memory, which only the owner can read; with an inflight region
    /// the back-end knows better anyway.
    At(u32),
    /// What was said or heard last, even if the vring has run since. After the
    /// back-end of a packed ring has died there is nothing better, and QEMU says
    /// it too: only the inflight region knows how far that one came.
    Last,
}

/// The configuration makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Number of vrings.
    #[error("num_queues: expected 1 to 256, got {0}")]
    NumQueues(u16),
    /// Ring size.
    #[error("queue_size: expected 1 to 32768, a power of two for split rings, got {0}")]
    QueueSize(u16),
    /// Size of the configuration space.
    #[error("config_len: expected at most 256 bytes, got {0}")]
    ConfigLen(u16),
    /// Descriptors for another number of vrings.
    #[error("wiring: expected {expected} vrings, got {got}")]
    Wiring {
        /// `num_queues`.
        expected: u16,
        /// Entries.
        got: u32,
    },
}

impl FrontendConfig {
    /// A device with `num_queues` rings of 128 entries that accepts nothing
    /// and never reconnects.
    pub fn new(num_queues: u16) -> Self {
        Self {
            virtio_features: 0,
            protocol_features: 0,
            num_queues,
            queue_size: 128,
            config_len: 0,
            reconnect_backoff: None,
            reply_timeout: None,
            dialect: Dialect::default(),
            negotiate: true,
        }
    }

    pub(super) fn check(&self, wiring: &[VringWiring]) -> Result<(), ConfigError> {
        if !(1..=256).contains(&self.num_queues) {
            return Err(ConfigError::NumQueues(self.num_queues));
        }
        let packed = self.virtio_features & virtio::RING_PACKED != 0;
        let fits = packed || self.queue_size.is_power_of_two();
        if !fits || !(1..=32768).contains(&self.queue_size) {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        if self.config_len > 256 {
            return Err(ConfigError::ConfigLen(self.config_len));
        }
        if wiring.len() != usize::from(self.num_queues) {
            return Err(ConfigError::Wiring {
                expected: self.num_queues,
                got: u32::try_from(wiring.len()).unwrap_or(u32::MAX),
            });
        }
        Ok(())
    }
}
