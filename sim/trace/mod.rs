//! What happened, as values.
//!
//! Every event goes into the hash; only a run that somebody looks at keeps
//! them. No event holds a pointer, a `usize` or a host address.

mod filter;
pub mod json;
mod lane;
mod late;
mod life;
pub mod mermaid;
mod record;
mod text;

use crate::disk::faults::Family;
use crate::guest::Sabotage;
use crate::scenario::Control;
pub use filter::{Bound, Filter};
pub use lane::Lane;
pub use late::late_writes;
pub use record::Trace;
use serde::Serialize;
pub use text::{Detail, render};

/// Kind of a guest request or disk operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[allow(missing_docs)] // The names of the VIRTIO document.
pub enum Verb {
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Unknown,
}

impl Verb {
    /// As a sentence has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::GetId => "get id",
            Self::Discard => "discard",
            Self::WriteZeroes => "write zeroes",
            Self::Unknown => "unknown request",
        }
    }
}

/// What woke the back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
#[allow(missing_docs)] // The variants of `midflight::backend::Input`.
pub enum Wake {
    Connected,
    Received,
    PeerClosed,
    Mapped,
    InflightAllocated,
    InflightMapped,
    Kick,
    DiskDone,
    Timeout,
    Command,
    LogMapped,
}

impl Wake {
    /// As a sentence has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "front-end connected",
            Self::Received => "message",
            Self::PeerClosed => "peer closed",
            Self::Mapped => "memory mapped",
            Self::InflightAllocated => "inflight region allocated",
            Self::InflightMapped => "inflight region mapped",
            Self::Kick => "kick",
            Self::DiskDone => "disk done",
            Self::Timeout => "timeout",
            Self::Command => "command",
            Self::LogMapped => "dirty log mapped",
        }
    }
}

/// What the front-end reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FrontEvent {
    /// Negotiated.
    Ready,
    /// Every vring is started.
    Running,
    /// Every vring is stopped.
    Stopped,
    /// The connection is gone.
    Lost,
    /// Nobody took the connection.
    NotThere,
    /// The back-end logs what it writes.
    Logging,
    /// It does so no more.
    NotLogging,
    /// The connection was closed because the guest is elsewhere.
    Left,
    /// The back-end cannot carry the device.
    Unfit,
}

impl FrontEvent {
    /// As a sentence has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready: negotiated",
            Self::Running => "vrings run",
            Self::Stopped => "vrings are stopped",
            Self::Lost => "connection lost",
            Self::NotThere => "nobody listens, will try again",
            Self::Logging => "the back-end logs what it writes",
            Self::NotLogging => "the back-end logs no more",
            Self::Left => "closes the connection",
            Self::Unfit => "the back-end cannot carry the device, nothing is started",
        }
    }
}

/// What the back-end reports beside its vrings; two numbers go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum BackEvent {
    /// Features and protocol features in force.
    Negotiated,
    /// Vring and base.
    BaseContradicted,
    /// Vring and head.
    DiskFailed,
    /// Slot and epoch.
    LateCompletion,
    /// Vring and number of requests.
    Draining,
    /// Vring and number of requests that have their grace to finish.
    Suspending,
    /// Vring and number of requests left in the inflight region.
    Suspended,
    /// Bytes of the log.
    LogMapped,
    /// The guest has broken the rules of this vring.
    VringBroken,
    /// Request by slot and epoch.
    Cancels,
    /// The store is another host's; requests are kept back.
    WaitsForStore,
    /// The store is this host's.
    HasStore,
}

/// A step of a migration; two numbers go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Moving {
    /// It begins: number of this attempt.
    Begins,
    /// A round of copying: round and pages.
    Round,
    /// The guest is stopped for the hand-over: pages left.
    Stops,
    /// Vrings are stopped: pages left, requests in flight by the region.
    Remainder,
    /// The back-end is lost while it stops; go on with what memory tells.
    WithoutBases,
    /// Everything is on its way: bytes of the region.
    HandsOver,
    /// Everything is here: pages compared, requests in flight by the region.
    Arrives,
    /// The guest runs here: nanoseconds it stood still.
    Runs,
    /// The destination says no.
    Refused,
    /// What was handed over is lost on the way.
    LinkLost,
    /// Broken off; the guest stays where it was.
    BrokenOff,
    /// The source wakes though the guest has gone.
    SourceWakes,
    /// And sleeps again.
    SourceSleeps,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[allow(missing_docs)] // Field names are those of the documents; units are bytes and sectors.
pub enum What {
    /// The guest put a request into its ring, not visible yet.
    Offered { vring: u16, head: u16, request: u64, verb: Verb, sector: u64, sectors: u64 },
    /// The guest stored the available index.
    Published { vring: u16, index: u16, kick: bool },
    /// The guest was called.
    Interrupted { vring: u16 },
    /// The guest took a used entry.
    Completed { vring: u16, head: u16, request: u64, status: u8, len: u32 },
    /// The guest was stopped or let go on.
    Paused { on: bool },
    /// The front-end wants to connect.
    Connecting,
    /// The front-end reports.
    Front(FrontEvent),
    /// A message or a piece of one arrived.
    Delivered { to_back: bool, bytes: u64, handles: u64 },
    /// A connection is gone.
    Hangup { to_back: bool },
    /// A back-end process began to live.
    Started { life: u32 },
    /// The back-end handled something.
    Step { wake: Wake, stores: u64, outputs: u64 },
    /// The back-end called the guest.
    Call { vring: u16 },
    /// The back-end runs a vring.
    VringRunning { vring: u16, next_avail: u16, used: u16, resubmitted: u16 },
    /// The back-end stopped a vring.
    VringStopped { vring: u16, base: u32 },
    /// The back-end reports something else.
    Back { event: BackEvent, a: u64, b: u64 },
    /// The disk was asked.
    Issued { vring: u16, head: u16, verb: Verb, sector: u64, sectors: u64 },
    /// Bytes moved.
    Applied { vring: u16, head: u16 },
    /// The disk is done.
    Done { vring: u16, head: u16, ok: bool },
    /// The back-end process was killed.
    Killed { life: u32, kept: u64, stores: u64, outputs_kept: u64, outputs: u64, moved: u64 },
    /// No more trouble from here on.
    Settling,
    /// The back-end process ended as it was asked to.
    Exited { life: u32 },
    /// The guest acts next to this store of the back-end's step that follows.
    Race { vring: u16, store: u64, before: bool },
    /// A migration goes on.
    Moving { step: Moving, a: u64, b: u64 },
    /// An old write lands though its vring was said to be at rest on host
    /// `owner`: request, and some of its sectors, with the tag they had (one
    /// more than the number of the write, 0 for zeroes).
    Landing { owner: u8, request: u64, sector: u64, sectors: u64, over: u64 },
    /// A driver says that a request is over while the disk still has it.
    Adrift { request: u64, vring: u16, head: u16 },
    /// A fault of the disk takes effect: `about` is a sector, or a request for
    /// families that strike one.
    Injected { family: Family, about: u64 },
    /// The node with the disk has lost power; so many sectors hold something
    /// older now.
    PowerLost { sectors: u64 },
    /// The guest breaks the rules of a vring.
    Sabotaged { vring: u16, how: Sabotage },
    /// The front-end changes something while the vrings run.
    Changed { control: Control },
    /// A message is on its way. `code` is that of the request, also in an answer.
    Sent { to_back: bool, code: u32, bytes: u64, handles: u64 },
}

/// An event with its place in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// Virtual nanoseconds.
    pub at: u64,
    /// Number of the scheduler event it belongs to.
    pub seq: u64,
    /// Number of the scheduler event that scheduled that one; 0 if it was there
    /// from the beginning. Not hashed: it follows from all that is.
    pub cause: u64,
    /// On which host: 0 is A, 1 is B.
    pub host: u8,
    /// Who.
    pub lane: Lane,
    /// What.
    pub what: What,
}

impl TraceEvent {
    /// The letter of its host.
    pub const fn host_name(&self) -> char {
        if self.host == 0 { 'A' } else { 'B' }
    }
}

impl What {
    /// Number of the variant and its fields, for the hash. The numbers are
    /// part of what a pinned hash means.
    fn fields(self) -> (u64, [u64; 6]) {
        let b = u64::from(matches!(
            self,
            Self::Published { kick: true, .. }
                | Self::Paused { on: true }
                | Self::Delivered { to_back: true, .. }
                | Self::Sent { to_back: true, .. }
                | Self::Race { before: true, .. }
                | Self::Hangup { to_back: true }
                | Self::Done { ok: true, .. }
        ));
        match self {
            Self::Offered { vring, head, request, verb, sector, sectors } => {
                (1, [vring.into(), head.into(), request, verb as u64, sector, sectors])
            }
            Self::Published { vring, index, .. } => (2, [vring.into(), index.into(), b, 0, 0, 0]),
            Self::Interrupted { vring } => (3, [vring.into(), 0, 0, 0, 0, 0]),
            Self::Completed { vring, head, request, status, len } => {
                (4, [vring.into(), head.into(), request, status.into(), len.into(), 0])
            }
            Self::Paused { .. } => (5, [b, 0, 0, 0, 0, 0]),
            Self::Connecting => (6, [0; 6]),
            Self::Front(event) => (7, [event as u64, 0, 0, 0, 0, 0]),
            Self::Delivered { bytes, handles, .. } => (8, [b, bytes, handles, 0, 0, 0]),
            Self::Hangup { .. } => (9, [b, 0, 0, 0, 0, 0]),
            Self::Started { life } => (10, [life.into(), 0, 0, 0, 0, 0]),
            Self::Step { wake, stores, outputs } => (11, [wake as u64, stores, outputs, 0, 0, 0]),
            Self::Call { vring } => (12, [vring.into(), 0, 0, 0, 0, 0]),
            Self::VringRunning { vring, next_avail, used, resubmitted } => {
                (13, [vring.into(), next_avail.into(), used.into(), resubmitted.into(), 0, 0])
            }
            Self::VringStopped { vring, base } => (14, [vring.into(), base.into(), 0, 0, 0, 0]),
            Self::Back { event, a, b } => (15, [event as u64, a, b, 0, 0, 0]),
            Self::Issued { vring, head, verb, sector, sectors } => {
                (16, [vring.into(), head.into(), verb as u64, sector, sectors, 0])
            }
            Self::Applied { vring, head } => (17, [vring.into(), head.into(), 0, 0, 0, 0]),
            Self::Done { vring, head, .. } => (18, [vring.into(), head.into(), b, 0, 0, 0]),
            Self::Killed { life, kept, stores, outputs_kept, outputs, moved } => {
                (19, [life.into(), kept, stores, outputs_kept, outputs, moved])
            }
            Self::Settling => (20, [0; 6]),
            Self::Exited { life } => (21, [life.into(), 0, 0, 0, 0, 0]),
            Self::Race { vring, store, .. } => (23, [b, vring.into(), store, 0, 0, 0]),
            Self::Moving { step, a, b } => (24, [step as u64, a, b, 0, 0, 0]),
            Self::Landing { owner, request, sector, sectors, over } => {
                (25, [owner.into(), request, sector, sectors, over, 0])
            }
            Self::Adrift { request, vring, head } => {
                (26, [request, vring.into(), head.into(), 0, 0, 0])
            }
            Self::Injected { family, about } => (27, [family as u64, about, 0, 0, 0, 0]),
            Self::Sabotaged { vring, how } => (29, [vring.into(), how as u64, 0, 0, 0, 0]),
            Self::Changed { control } => {
                let (code, vring) = control.code();
                (30, [code, vring.into(), 0, 0, 0, 0])
            }
            Self::PowerLost { sectors } => (28, [sectors, 0, 0, 0, 0, 0]),
            Self::Sent { code, bytes, handles, .. } => (22, [b, code.into(), bytes, handles, 0, 0]),
        }
    }
}
