//! The contract between the front-end and its driver: facts in, wishes out.

use super::config::Start;
use super::error::Failure;
use super::handover::DeviceState;
use super::iommu::Translation;
use super::phase::Phase;
use crate::Handle;
use crate::time::Instant;
use crate::wire::{FrontendReply, FrontendRequest, LogDescription, MemRegion};
use bytes::Bytes;
use core::fmt;

/// A fact the driver tells the front-end.
///
/// Every `handle_input` is followed by `poll_output` until it returns `None`.
#[derive(Debug)]
pub enum Input<'a> {
    /// Answer to [`Output::Connect`].
    Connected {
        /// The back-end's end of a channel that the driver has made for this
        /// connection, for SET_BACKEND_REQ_FD. The front-end's from now on.
        /// Without it BACKEND_REQ is not accepted.
        channel: Option<Handle>,
    },
    /// The other answer to [`Output::Connect`]: what went wrong.
    ConnectFailed(String),
    /// Bytes from the back-end, with the handles of descriptors that came with
    /// them. See [`Frontend::wanted`](super::Frontend::wanted).
    Received {
        /// Any piece of the byte stream.
        bytes: &'a [u8],
        /// Handles the driver has just made; the front-end owns them now.
        handles: Vec<Handle>,
    },
    /// The same on the back-end's channel; see
    /// [`Frontend::channel_wanted`](super::Frontend::channel_wanted).
    ChannelReceived {
        /// Any piece of the byte stream.
        bytes: &'a [u8],
        /// Handles the driver has just made; the front-end owns them now.
        handles: Vec<Handle>,
    },
    /// The connection is gone; nothing more can be sent.
    PeerClosed,
    /// The time of [`Frontend::poll_timeout`](super::Frontend::poll_timeout) has come.
    Timeout,
    /// The owner wants something.
    Command(Command),
}

/// What the owner may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect and negotiate. [`Event::Ready`] tells when that is done.
    Connect,
    /// Close the connection at once. The inflight region is kept.
    Disconnect,
    /// Use this guest memory: at once while vrings run, otherwise from the next
    /// start on. The handles stay the owner's.
    SetMemory(Vec<(MemRegion, Handle)>),
    /// Start vrings. [`Event::Running`] tells when they are.
    Start(Start),
    /// Stop every vring. [`Event::Stopped`] tells when they are. What is in
    /// flight is done by then, unless GET_VRING_BASE_INFLIGHT is in force in
    /// the dialect of QEMU 11.1, where the back-end may leave it in the
    /// inflight region after every stop.
    Stop,
    /// The same, but ask the back-end to leave what is in flight in the inflight
    /// region. Where that was not agreed on it is [`Command::Stop`]; see
    /// [`Frontend::suspends`](super::Frontend::suspends).
    Suspend,
    /// Have every write to guest memory marked in this log, from now on and at
    /// every start to come. While vrings run or start, [`Event::Logging`] tells
    /// when it is in force; before that nothing is missing from an older log
    /// that it replaces. Otherwise [`Event::Running`] tells. The handle stays
    /// the owner's, and is needed until a log after it is in force or
    /// [`Event::NotLogging`].
    LogOn {
        /// Place and size: one bit per page of 4096 bytes, up to the end of
        /// guest memory at least.
        log: LogDescription,
        /// The memory.
        handle: Handle,
    },
    /// The opposite, answered by [`Event::NotLogging`]. Legal at any time: while
    /// vrings do not run it is the next start that goes without.
    LogOff,
    /// Go on with the device of another host, whose state replaces bases and
    /// inflight region of this one. Legal without a connection and while
    /// vrings are stopped. A back-end that cannot take it is left, by
    /// [`Failure::BackendUnfit`], now or when it is connected to.
    Adopt {
        /// What the source's [`Frontend::device_state`](super::Frontend::device_state)
        /// was, with the offset of the region in this host's memory.
        state: DeviceState,
        /// Memory with the bytes of the inflight region, if there is one. The
        /// front-end's from now on, unless the command is refused. An owner that
        /// knows that nothing is in flight may leave the region out.
        inflight: Option<Handle>,
    },
    /// The guest has made requests available in a vring that has no kick
    /// descriptor: tell the back-end by VRING_KICK. It takes in-band
    /// notifications; kicks that wait for their turn are joined. Legal while
    /// vrings run, and of no effect otherwise: a start looks at every ring.
    Kick {
        /// Vring index.
        vring: u16,
    },
    /// Pages of guest memory may still be missing when the vrings start: ask the
    /// back-end for the userfaultfd by which it will wait for them. Legal while
    /// vrings are stopped, answered by [`Event::PostcopyFaults`].
    PostcopyAdvise,
    /// From now on pages are missing. After [`Command::PostcopyAdvise`] and before
    /// the first start, and again with each new connection until
    /// [`Command::PostcopyEnd`]: a back-end that has not heard it is not started.
    PostcopyListen,
    /// Every page is there. Answered by [`Event::PostcopyEnded`].
    PostcopyEnd,
    /// Have the back-end write the device's state, what it knows beyond rings and
    /// inflight region, to a pipe. Legal while the vrings are stopped, with
    /// DEVICE_STATE. [`Event::StateChannel`] tells when it has begun, or
    /// [`Event::Refused`]; then close your copy of the handle, which stays the
    /// owner's, and read the pipe to its end.
    SaveState {
        /// The end to write to.
        handle: Handle,
    },
    /// The opposite: have the back-end read a state. Close what you write to
    /// behind the last byte.
    LoadState {
        /// The end to read from.
        handle: Handle,
    },
    /// Ask whether a transfer went well, after its end: [`Event::StateChecked`]
    /// or [`Event::Refused`].
    CheckState,
    /// The guest has reset the device: stop what runs, forget bases and
    /// inflight region. Legal without a connection too.
    Reset,
    /// Read the configuration space.
    ReadConfig {
        /// First byte.
        offset: u32,
        /// Bytes, at most 256.
        size: u16,
    },
    /// Write the configuration space. A refusal is [`Event::Refused`].
    WriteConfig {
        /// First byte.
        offset: u32,
        /// 0: written by the guest.
        flags: u32,
        /// At most 256 bytes.
        data: Bytes,
    },
    /// Answer the oldest [`Event::IotlbMiss`] that is not answered: where the
    /// page is, or `None` if the back-end may not have it.
    AnswerMiss(Option<Translation>),
    /// Tell the back-end where addresses lead, without being asked.
    Translate(Translation),
    /// Take translations back. The back-end uses them until
    /// [`Event::IotlbInvalidated`].
    Invalidate {
        /// First I/O virtual address.
        iova: u64,
        /// Bytes, up to the end of the address space at most; 0 are none.
        size: u64,
    },
    /// Send this message, after those under way. The front-end does not
    /// understand it, with one exception: after SET_PROTOCOL_FEATURES it knows
    /// whether to wait for REPLY_ACK answers. An answer is [`Event::RawReply`].
    Raw {
        /// Any message; its handles stay the owner's.
        request: FrontendRequest<Handle>,
        /// Set NEED_REPLY.
        need_reply: bool,
    },
}

impl Command {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Disconnect => "disconnect",
            Self::SetMemory(_) => "set memory",
            Self::Start(_) => "start",
            Self::Stop => "stop",
            Self::Suspend => "suspend",
            Self::LogOn { .. } => "log on",
            Self::LogOff => "log off",
            Self::Adopt { .. } => "adopt",
            Self::Kick { .. } => "kick",
            Self::PostcopyAdvise => "postcopy advise",
            Self::PostcopyListen => "postcopy listen",
            Self::PostcopyEnd => "postcopy end",
            Self::SaveState { .. } => "save state",
            Self::LoadState { .. } => "load state",
            Self::CheckState => "check state",
            Self::Reset => "reset",
            Self::ReadConfig { .. } => "read config",
            Self::WriteConfig { .. } => "write config",
            Self::AnswerMiss(_) => "answer miss",
            Self::Translate(_) => "translate",
            Self::Invalidate { .. } => "invalidate",
            Self::Raw { .. } => "raw message",
        }
    }
}

/// A wish the driver carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Connect; answer with [`Input::Connected`] or [`Input::ConnectFailed`].
    Connect,
    /// Send these bytes, the descriptors with the first of them.
    Send {
        /// One whole message.
        bytes: Bytes,
        /// Descriptors to attach. They are not the driver's to close.
        handles: Vec<Handle>,
    },
    /// The same on the back-end's channel.
    ChannelSend {
        /// One whole message.
        bytes: Bytes,
        /// Descriptors to attach.
        handles: Vec<Handle>,
    },
    /// Close this handle, after everything sent before; it is never named again.
    Release(Handle),
    /// Close the connection, and the channel with it; or stop connecting. No
    /// [`Input::PeerClosed`] is expected for it.
    Close(Failure),
    /// Something the owner wants to know.
    Event(Event),
}

/// Something the owner wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Negotiation ended; the vrings are stopped and may be started.
    Ready {
        /// Virtio features offered and let through, without bit 30.
        features: u64,
        /// Protocol features in force.
        protocol: u64,
        /// Memory regions the back-end takes.
        mem_slots: u64,
        /// The configuration space as it was read first; a new connection does
        /// not read it again.
        config: Bytes,
        /// This is not the first connection.
        reconnected: bool,
        /// A region with requests of an earlier start is kept and will be given
        /// to the back-end at the next one.
        inflight_kept: bool,
    },
    /// The vrings are started and enabled. Kick every one of them now: requests
    /// may lie there already.
    // spec: vhost-user, "Ring states"
    Running,
    /// The vrings are stopped and nothing touches guest memory any more.
    Stopped {
        /// Vring index of each and where it stopped, in the format of
        /// GET_VRING_BASE; see [`Base`](super::Base).
        bases: Vec<(u16, u32)>,
    },
    /// Every write to guest memory is marked in the log given last. Everything
    /// written before may be anywhere: copy all of it.
    Logging,
    /// No log is in use any more.
    NotLogging,
    /// The back-end will wait for missing pages by this userfaultfd, which is the
    /// owner's: read page faults from it and wake whoever waits.
    PostcopyFaults(Handle),
    /// What page faults call the first byte of these regions. When the outputs
    /// after this one are carried out, page faults may come.
    PostcopyMapped {
        /// Regions as they were given, and the address of each.
        bases: Vec<(MemRegion, u64)>,
    },
    /// The back-end takes memory as ever from now on.
    PostcopyEnded,
    /// The device is reset.
    Reset,
    /// Answer to [`Command::ReadConfig`].
    ConfigRead {
        /// First byte.
        offset: u32,
        /// Content.
        data: Bytes,
    },
    /// [`Command::WriteConfig`] was carried out, as far as the back-end tells:
    /// without REPLY_ACK it was only sent.
    ConfigWritten,
    /// The device's state is on its way through the pipe of
    /// [`Command::SaveState`] or [`Command::LoadState`].
    StateChannel {
        /// A pipe of the back-end's to be used instead. The owner's from now on.
        instead: Option<Handle>,
    },
    /// The last transfer of a device's state was complete and right.
    StateChecked,
    /// The back-end has changed the configuration space, and this is the new one.
    ConfigChanged(Bytes),
    /// The back-end needs a page that it has no translation for, and waits for
    /// [`Command::AnswerMiss`].
    IotlbMiss {
        /// I/O virtual address.
        iova: u64,
        /// 1 read, 2 write, 3 both.
        access: u8,
    },
    /// The back-end was refused an address.
    IotlbAccessFail {
        /// I/O virtual address.
        iova: u64,
        /// What it had to do there: 1 read, 2 write, 3 both.
        access: u8,
    },
    /// The back-end uses these addresses no more.
    IotlbInvalidated {
        /// First I/O virtual address.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// The back-end has used requests of a vring that has no call descriptor.
    Called {
        /// Vring index.
        vring: u16,
    },
    /// The back-end says that the guest has broken a vring that has no err
    /// descriptor.
    VringBroken {
        /// Vring index.
        vring: u16,
    },
    /// The back-end said no; the connection lives.
    Refused {
        /// Name of the message.
        message: &'static str,
        /// Its answer, not 0; 1 where the answer has no status of its own.
        status: u64,
    },
    /// Answer to a [`Command::Raw`]. Handles in it are the owner's.
    RawReply(FrontendReply<Handle>),
    /// There is no connection any more.
    Disconnected {
        /// Why.
        failure: Failure,
        /// Phase in which it happened. After `Starting`, `Running`, `Stopping`
        /// and `Resetting` the bases of the vrings are not known.
        phase: Phase,
        /// Another attempt will be made.
        retry: bool,
    },
}

/// Why the front-end wakes up by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// The next attempt to connect is due.
    ReconnectBackoff,
    /// An answer has not come in time.
    ReplyOverdue,
}

impl fmt::Display for TimerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReconnectBackoff => "reconnect backoff",
            Self::ReplyOverdue => "reply overdue",
        })
    }
}

/// A due time and its reason.
pub type Timeout = (Instant, TimerKind);
