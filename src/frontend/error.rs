//! Why a connection ended and why a call was refused: whose fault comes first.

use super::handover::StateFault;
use super::phase::Phase;
use crate::wire::{EncodeError, PushReason, WireError};

/// Why a connection is no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The back-end broke the protocol.
    #[error("back-end misbehaved: {0}")]
    BackendMisbehaved(#[from] BackendFault),
    /// The back-end said no to a message that the sequence cannot do without.
    #[error("back-end refused {message} with status {status}")]
    BackendRefused {
        /// Name of the message.
        message: &'static str,
        /// Its answer, not 0; 1 where the answer has no status of its own.
        status: u64,
    },
    /// The back-end is sound but cannot carry this device. No other attempt is
    /// made.
    #[error("back-end unfit: {0}")]
    BackendUnfit(#[from] Unfit),
    /// The back-end did not answer in time.
    #[error("back-end has not answered {message} in time")]
    BackendOverdue {
        /// Name of the message.
        message: &'static str,
    },
    /// The back-end closed the connection, or died.
    #[error("back-end closed the connection")]
    BackendClosed,
    /// The driver could not connect.
    #[error("cannot connect: {0}")]
    ConnectFailed(String),
    /// The owner wanted it.
    #[error("disconnected by the owner")]
    Disconnected,
}

/// What the back-end did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendFault {
    /// Its bytes are no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It sent more than can be asked for, or descriptors without bytes.
    #[error(transparent)]
    Flood(#[from] PushReason),
    /// More questions than anybody can be waiting for.
    #[error("{0} requests are not answered on the back-end's channel")]
    TooManyRequests(u32),
    /// An answer that nothing was waiting for.
    #[error("expected {}, got an answer to message {got}", expected.unwrap_or("no answer"))]
    UnexpectedReply {
        /// Message whose answer is due.
        expected: Option<&'static str>,
        /// Code of the message it answers.
        got: u32,
    },
    /// An answer whose content belongs to another situation.
    #[error("answer to {message} has a form that does not belong there")]
    UnexpectedBody {
        /// Name of the message.
        message: &'static str,
    },
    /// A value in an answer that cannot be.
    #[error("answer to {message} has {field} {got}, expected {expected}")]
    Value {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it should be.
        expected: u64,
        /// What it is.
        got: u64,
    },
    /// An address for a region that it was not sent.
    #[error("answer to {message} names memory at {got:#x}, expected that of a region it was sent")]
    UnknownRegion {
        /// Name of the message.
        message: &'static str,
        /// Guest-physical address.
        got: u64,
    },
    /// GET_VRING_BASE of a split ring has only 16 bits.
    #[error("base of vring {vring}: expected at most 0xffff, got {got:#x}")]
    Base {
        /// Vring index.
        vring: u16,
        /// What came.
        got: u32,
    },
}

/// What the back-end lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It serves fewer vrings than the device has.
    #[error("{wanted} vrings wanted, {offered} offered")]
    TooFewQueues {
        /// Vrings of the device.
        wanted: u16,
        /// Its answer to GET_QUEUE_NUM, or 1 without MQ.
        offered: u64,
    },
    /// The device has a configuration space, the back-end none.
    #[error("no configuration space offered")]
    NoConfig,
    /// A region with requests of the last back-end is kept, and this one cannot
    /// take it: those requests would be lost in silence.
    // spec: vhost-user, "Inflight I/O tracking"
    #[error("an inflight region is kept, but INFLIGHT_SHMFD is not offered")]
    NoInflight,
    /// Writes are to be logged, for a migration, and this back-end cannot: what
    /// it writes would be missing at the destination.
    // spec: vhost-user, "Migration"
    #[error("a dirty log is in use, but {0} is not offered")]
    NoLog(&'static str),
    /// The guest has accepted features under another back-end, maybe on another
    /// host, and cannot take that back.
    #[error("the guest uses features {0:#x}, which are not offered")]
    NoFeatures(u64),
}

/// The owner or the driver called out of turn. The call changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiMisuse {
    /// The command does not belong to this phase.
    #[error("{what} while {phase}")]
    WrongPhase {
        /// Command or input.
        what: &'static str,
        /// Phase.
        phase: Phase,
    },
    /// The back-end cannot do it.
    #[error("{what} needs {feature}, which is not negotiated")]
    NotNegotiated {
        /// Command.
        what: &'static str,
        /// Protocol feature.
        feature: &'static str,
    },
    /// The command does not belong where postcopy stands with this back-end.
    #[error("{what} in postcopy, expected {expected}")]
    Postcopy {
        /// Command.
        what: &'static str,
        /// Where it belongs.
        expected: &'static str,
    },
    /// Nothing was asked that is not answered.
    #[error("no miss waits for an answer")]
    NoMiss,
    /// Features beyond those that were offered and let through.
    #[error("features {0:#x} were not offered")]
    FeaturesNotOffered(u64),
    /// A vring index out of range, twice or out of order.
    #[error("vring {0} is not in range and in order")]
    BadVring(u16),
    /// The vring's base was lost with the last connection.
    #[error("base of vring {0} is not known")]
    BaseUnknown(u16),
    /// The ring has no such place.
    #[error("vring {vring}: {base:#x} is no base of its ring")]
    BadBase {
        /// Vring.
        vring: u16,
        /// What was to be said.
        base: u32,
    },
    /// There is nothing to share with the back-end.
    #[error("no guest memory was given")]
    NoMemory,
    /// More regions than the back-end takes.
    #[error("{got} memory regions, the back-end takes {max}")]
    TooManyRegions {
        /// Its limit.
        max: u64,
        /// Regions.
        got: u64,
    },
    /// The state of another host's device is not for this one.
    #[error("state of another host: {0}")]
    State(#[from] StateFault),
    /// The log has no bits for some of guest memory.
    #[error("dirty log of {got} bytes, guest memory needs {wanted}")]
    LogTooSmall {
        /// Bytes for all of guest memory.
        wanted: u64,
        /// Bytes of the log.
        got: u64,
    },
    /// The used ring is outside guest memory, so no bit of a log is its.
    #[error("used ring of vring {0} is outside guest memory")]
    RingOutsideMemory(u16),
    /// The message cannot be put on the wire.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
