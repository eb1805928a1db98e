//! The contract between the back-end and its driver: facts in, wishes out.

use crate::Handle;
use crate::blk::{Completion, ReqId};
pub use crate::memory::MapRegion;
use crate::time::Instant;
use bytes::Bytes;
use core::fmt;

/// A fact the driver tells the back-end.
///
/// `M` is the driver's guest memory. Every `handle_input` is followed by
/// `poll_output` until it returns `None`.
#[derive(Debug)]
pub enum Input<'a, M> {
    /// A front-end has connected. Only legal while no other is connected.
    Connected,
    /// Bytes from the front-end, with the handles of descriptors that came
    /// with them. See [`Backend::wanted`](super::Backend::wanted) for how many
    /// bytes to read at a time so that descriptors keep their message.
    Received {
        /// Any piece of the byte stream.
        bytes: &'a [u8],
        /// Handles the driver has just made; the back-end owns them now.
        handles: Vec<Handle>,
    },
    /// The same from the back-end's channel, see
    /// [`Backend::channel_wanted`](super::Backend::channel_wanted). Only legal
    /// between [`Output::WatchChannel`] with a handle and without.
    ChannelReceived {
        /// Any piece of the byte stream.
        bytes: &'a [u8],
        /// Handles the driver has just made; the back-end owns them now.
        handles: Vec<Handle>,
    },
    /// The back-end's channel can no longer be used: `None`, the front-end has
    /// closed it; else what went wrong with it.
    ChannelClosed(Option<String>),
    /// The connection is gone; nothing more can be sent. Wishes for memory
    /// that were not answered yet are void, here as after [`Output::Close`]:
    /// do not answer them.
    PeerClosed,
    /// Answer to [`Output::Map`].
    Mapped(Result<M, MapFailed>),
    /// Answer to [`Output::MapMissing`].
    MappedMissing(Result<MissingMemory<M>, MapFailed>),
    /// Answer to [`Output::OpenFaults`]: a handle of the userfaultfd to give to
    /// the front-end. The driver keeps one of its own.
    FaultsOpened(Result<Handle, MapFailed>),
    /// Answer to [`Output::AllocInflight`]: a handle to give to the front-end.
    /// The memory itself comes back by SET_INFLIGHT_FD.
    InflightAllocated(Result<Handle, MapFailed>),
    /// Answer to [`Output::MapInflight`]: memory whose address 0 is the first
    /// byte of the region.
    InflightMapped(Result<M, MapFailed>),
    /// Answer to [`Output::MapLog`]: memory whose address 0 is the first byte of
    /// the dirty log.
    LogMapped(Result<M, MapFailed>),
    /// Answer to [`Output::SaveState`].
    StateSaved(Result<(), MapFailed>),
    /// Answer to [`Output::LoadState`]: all that came before the end.
    StateLoaded(Result<Bytes, MapFailed>),
    /// The front-end kicked a vring.
    Kick {
        /// Vring index.
        vring: u16,
    },
    /// The disk has finished these. One call is one batch: requests of the
    /// same vring in it are published by a single store of the used index.
    DiskDone(&'a [Completion]),
    /// The store has this many bytes now. A driver that cannot be told looks
    /// from time to time; the same size again is no change.
    Capacity(u64),
    /// The time of [`Backend::poll_timeout`](super::Backend::poll_timeout) has come.
    Timeout,
    /// The operator wants something.
    Command(Command),
}

/// Memory whose pages come when they are touched.
#[derive(Clone, Debug)]
pub struct MissingMemory<M> {
    /// The memory. Nothing of it has been touched.
    pub memory: M,
    /// For each region of [`Output::MapMissing`], in its order, the name that
    /// its first byte has in page faults. Only ever told to the front-end.
    pub bases: Vec<u64>,
}

/// What an operator may ask of a running back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fetch no more, publish what the disk finishes, then close. What was not
    /// fetched stays in the rings; the inflight region stays consistent.
    Shutdown,
}

/// The driver could not map or allocate; the front-end's message fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MapFailed(pub String);

/// A wish the driver carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these bytes, the descriptors with the first of them. The handles
    /// stay the back-end's.
    Send {
        /// One whole message.
        bytes: Bytes,
        /// Descriptors to attach.
        handles: Vec<Handle>,
    },
    /// The same on the back-end's channel.
    ChannelSend {
        /// One whole message.
        bytes: Bytes,
        /// Descriptors to attach.
        handles: Vec<Handle>,
    },
    /// This is the back-end's channel from now on, a connected socket: report
    /// what comes on it as [`Input::ChannelReceived`], also while no message is
    /// wanted from the main one. `None`: there is no channel any more. What was
    /// sent on one before is still to be delivered, if that takes no waiting.
    WatchChannel {
        /// What to watch.
        handle: Option<Handle>,
    },
    /// Make this the guest memory, and answer with [`Input::Mapped`]. A region
    /// whose handle was in the last table is the same region: reuse its
    /// mapping. Until the answer comes the back-end takes no further message
    /// from its buffer.
    ///
    /// What was started before goes on with the memory as it was: a region that
    /// is not in the new table stays mapped until the disk is done with it.
    Map {
        /// The whole new table.
        regions: Vec<MapRegion>,
    },
    /// Drop the guest memory and every mapping of it.
    Unmap,
    /// Open a userfaultfd, in place of the one before; answer with
    /// [`Input::FaultsOpened`].
    OpenFaults,
    /// Like [`Output::Map`], but have every access to a page that is not there
    /// wait until the front-end has put it there, by the userfaultfd opened
    /// last. Nothing of new regions may be touched. Answer with
    /// [`Input::MappedMissing`].
    MapMissing {
        /// The whole new table.
        regions: Vec<MapRegion>,
    },
    /// No access is to wait for the front-end any more; close the userfaultfd.
    CloseFaults {
        /// Every page is there, so memory is ordinary from now on. Otherwise
        /// nobody will ever put the missing ones there: accesses fail, those
        /// that wait as well. None may find zeroes instead, since what a guest
        /// has written would become zeroes on the disk.
        all_there: bool,
    },
    /// Make zeroed, sealed memory for an inflight region; answer with
    /// [`Input::InflightAllocated`].
    AllocInflight {
        /// Bytes.
        size: u64,
    },
    /// Map an inflight region; answer with [`Input::InflightMapped`].
    MapInflight {
        /// What to map; released by the back-end later.
        handle: Handle,
        /// Offset of the first byte.
        offset: u64,
        /// Bytes. The file must hold them all.
        size: u64,
    },
    /// Map a dirty log; answer with [`Input::LogMapped`]. The log before it is
    /// dropped by the back-end when the answer has come.
    MapLog {
        /// What to map; released by the back-end later.
        handle: Handle,
        /// Offset of the first byte.
        offset: u64,
        /// Bytes. The file must hold them all.
        size: u64,
    },
    /// Write all of this to a pipe or socket, without waiting for its reader to
    /// do anything else; answer with [`Input::StateSaved`], in bounded time also
    /// if nobody reads. If the handle is released before, no answer is expected.
    SaveState {
        /// Where to; released, and by that closed, by the back-end later.
        handle: Handle,
        /// What.
        bytes: Bytes,
    },
    /// Read a pipe or socket to its end, likewise; answer with
    /// [`Input::StateLoaded`].
    LoadState {
        /// Where from; released by the back-end later.
        handle: Handle,
        /// Bytes; more than these are a failure.
        most: u64,
    },
    /// Report every event on `handle` as [`Input::Kick`] from now on; replaces
    /// what was watched for this vring. `None`: stop watching. An event that
    /// is already pending counts.
    WatchKick {
        /// Vring index.
        vring: u16,
        /// What to watch.
        handle: Option<Handle>,
    },
    /// Signal this event descriptor: used entries to look at.
    Call {
        /// Vring index.
        vring: u16,
        /// What to signal.
        handle: Handle,
    },
    /// Signal this event descriptor: the vring is broken.
    Err {
        /// Vring index.
        vring: u16,
        /// What to signal.
        handle: Handle,
    },
    /// Start a request; [`Backend::request`](super::Backend::request) tells
    /// which. Answer, some time, with [`Input::DiskDone`].
    Disk(ReqId),
    /// A vring is being suspended: see to it that this request is over soon.
    /// Its completion has to come all the same, by [`Input::DiskDone`]:
    ///
    /// - with its result, if it was finished in spite of this;
    /// - with [`DiskError::Cancelled`](crate::blk::DiskError::Cancelled), if it
    ///   is known that from now on it touches neither disk nor guest memory.
    ///   What it had done until then does not matter, since every operation
    ///   that is cancelled can be repeated.
    ///
    /// A driver that cannot cancel waits; one that answers early lets an old
    /// write land on what the successor has done since.
    Cancel(ReqId),
    /// The requests that follow need the store. A driver whose store has one
    /// owner at a time keeps [`Output::Disk`] back until it is the owner; no
    /// answer is expected. What is kept back can be cancelled at once.
    ///
    /// What is kept back when the connection ends has to be given up: it is
    /// answered with [`DiskError::Cancelled`](crate::blk::DiskError::Cancelled).
    /// The guest may run elsewhere by then, and when the store becomes free, an
    /// old write would land on what it has written since.
    AcquireStore,
    /// No vring runs and no request is at the disk: another owner may have the
    /// store. Comes before the answer that lets the front-end go elsewhere.
    ReleaseStore,
    /// Close this handle; it is never named again.
    Release(Handle),
    /// Close the connection. No [`Input::PeerClosed`] is expected for it.
    Close(CloseReason),
    /// Something an operator may want to know.
    Event(Event),
}

/// Why the back-end wakes up by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// More chains are available than one call may fetch.
    MoreChains,
    /// A vring without kick descriptor is looked at again.
    PollVring,
    /// A vring is being suspended, and what it has in flight had its time to
    /// finish: cancel the rest.
    SuspendGrace,
    /// A translation that the front-end has promised does not come.
    IotlbUpdate,
}

impl fmt::Display for TimerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MoreChains => "more chains",
            Self::PollVring => "poll vring",
            Self::SuspendGrace => "suspend grace",
            Self::IotlbUpdate => "iotlb update",
        })
    }
}

/// A due time and its reason.
pub type Timeout = (Instant, TimerKind);

/// Why a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The front-end broke the protocol and no answer could tell it so.
    #[error("front-end misbehaved: {0}")]
    FrontendMisbehaved(super::FrontendFault),
    /// An operator asked for it.
    #[error("shut down by the operator")]
    Shutdown,
}

/// Something an operator may want to know. None needs an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Virtio features or protocol features in force have changed.
    Negotiated {
        /// Virtio feature bits.
        features: u64,
        /// vhost-user protocol feature bits.
        protocol: u64,
    },
    /// A vring became started and enabled.
    VringRunning {
        /// Vring index.
        vring: u16,
        /// Ring size in entries.
        size: u16,
        /// Next available index; of a packed ring with its wrap counter as bit
        /// 15.
        next_avail: u16,
        /// Used index, likewise.
        used: u16,
        /// Requests taken over from the inflight region.
        resubmitted: u16,
    },
    /// A vring stopped; base as told to the front-end.
    VringStopped {
        /// Vring index.
        vring: u16,
        /// As in GET_VRING_BASE.
        base: u32,
    },
    /// The base of SET_VRING_BASE contradicts used ring and inflight region;
    /// the region was believed.
    BaseContradicted {
        /// Vring index.
        vring: u16,
        /// What the front-end said.
        base: u32,
        /// Used index.
        used: u16,
        /// Requests in flight by the region.
        inflight: u16,
    },
    /// The guest broke a vring; it stays silent until it is stopped.
    VringBroken {
        /// Vring index.
        vring: u16,
        /// What the guest did.
        fault: super::GuestFault,
    },
    /// A front-end message was refused with a negative answer.
    Refused(super::FrontendFault),
    /// The disk could not do a request; the guest saw IOERR.
    DiskFailed {
        /// Vring index.
        vring: u16,
        /// Head of the chain.
        head: u16,
        /// Why.
        error: crate::blk::DiskError,
    },
    /// A completion for a request that is no longer there was dropped.
    LateCompletion(ReqId),
    /// A stop waits for this many requests.
    Draining {
        /// Vring index.
        vring: u16,
        /// Requests in flight.
        inflight: u16,
    },
    /// A stop suspends a vring that has this many requests in flight; they
    /// have the policy's grace to finish.
    Suspending {
        /// Vring index.
        vring: u16,
        /// Requests in flight.
        inflight: u16,
    },
    /// A vring was suspended: [`Event::VringStopped`], with these requests
    /// left in the inflight region for whoever starts it next.
    Suspended {
        /// Vring index.
        vring: u16,
        /// Requests in flight by the region.
        inflight: u16,
    },
    /// Postcopy has begun: pages of guest memory come when they are touched.
    PostcopyListening,
    /// Postcopy is over: all pages are there.
    PostcopyEnded,
    /// The store has another size; requests are held against it from now on.
    CapacityChanged {
        /// Bytes before.
        from: u64,
        /// Bytes now.
        to: u64,
    },
    /// The guest has turned its write cache on or off, or a vring starts with
    /// another choice than was assumed.
    WriteCache {
        /// Writes may complete before they are durable.
        on: bool,
        /// It is the guest's choice; else that choice is not known.
        known: bool,
    },
    /// Writes that were volatile when the guest turned its write cache off could
    /// not be made durable.
    FlushFailed(crate::blk::DiskError),
    /// There is no back-end channel any more; the connection goes on.
    ChannelLost(super::ChannelEnd),
    /// The front-end said no to a request of ours.
    RequestRefused {
        /// Name of the request.
        request: &'static str,
        /// Its answer, not 0.
        status: u64,
    },
    /// The front-end's IOMMU does not let the device at an address: a request
    /// that needs it was answered with IOERR, or its vring broke.
    IovaRefused {
        /// Vring index.
        vring: u16,
        /// I/O virtual address.
        iova: u64,
        /// What was to be done: 1 read, 2 write, 3 both.
        access: u8,
    },
    /// The device is at rest, and this has passed about the IOMMU so far.
    IommuAtRest(super::IommuCounts),
    /// The device's state was given to another back-end.
    StateSaved,
    /// The state of another back-end is in force.
    StateLoaded {
        /// The guest's choice of the cache mode: write back.
        writeback: bool,
    },
    /// The device's state did not arrive, or is not one.
    StateFailed(String),
    /// A dirty log is in place, or was replaced.
    LogMapped {
        /// Bytes; each has the bits of eight pages.
        size: u64,
    },
}
