//! The front-end half: one device of a guest, one back-end at a time.
//!
//! It does what QEMU does with a vhost-user-blk device, in QEMU's order, and
//! nothing by itself: whoever owns it says when to connect, start, stop and
//! reset, and holds guest memory, rings and event descriptors. What outlives a
//! back-end (the inflight region, the bases of stopped vrings) is kept here.
//!
//! ```text
//! Connect → Ready → Start → Running → Stop → Ready …
//!             ↑        connection lost: Disconnected, Backoff │
//!             └───────────────────────────────────────────────┘
//! ```
//!
//! A device that moves to another host is one front-end's `Running`, with
//! [`Command::LogOn`], then [`Command::Suspend`] and [`Frontend::device_state`]
//! in `Ready`, and another's [`Command::Adopt`] before its `Start`.
//!
//! After a loss the owner answers the next [`Event::Ready`] with a
//! [`Command::Start`] whose bases are the used indexes in guest memory, or for
//! packed rings [`Base::Last`], since nothing there can be read off the ring.

mod base;
mod channel;
mod commands;
mod config;
mod error;
mod handover;
mod io;
mod iommu;
mod logging;
mod phase;
mod postcopy;
mod progress;
mod reply;
mod session;
mod steps;

use crate::Handle;
use crate::time::Instant;
use crate::wire::features::virtio;
use crate::wire::{Decoder, FrontendReplies, FrontendRequest};
use channel::Channel;
pub use config::{Base, ConfigError, FrontendConfig, Start, VringStart, VringWiring};
pub use error::{ApiMisuse, BackendFault, Failure, Unfit};
pub use handover::{DeviceState, StateFault};
pub use io::{Command, Event, Input, Output, Timeout, TimerKind};
pub use iommu::Translation;
pub use phase::Phase;
use phase::Trigger;
use session::{Device, Session};
use std::collections::VecDeque;
use steps::{Milestone, Purpose, Step, ask};

/// The front-end.
#[derive(Debug)]
pub struct Frontend {
    config: FrontendConfig,
    phase: Phase,
    device: Device,
    session: Session,
    decoder: Decoder<FrontendReplies, Handle>,
    channel: Option<Channel>,
    steps: VecDeque<Step>,
    awaited: Option<Awaited>,
    /// When to connect again, while in `Backoff`.
    retry_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

/// The one answer that is due.
#[derive(Debug)]
struct Awaited {
    code: u32,
    message: &'static str,
    purpose: Purpose,
    /// It is a REPLY_ACK status.
    is_status: bool,
    /// Offset and size that a GET_CONFIG asked for.
    config: (u32, u32),
    deadline: Option<Instant>,
}

impl Frontend {
    /// Make a front-end for one device; `wiring` has an entry for each vring.
    pub fn new(config: FrontendConfig, wiring: Vec<VringWiring>) -> Result<Self, ConfigError> {
        config.check(&wiring)?;
        Ok(Self {
            phase: Phase::Idle,
            device: Device::new(wiring),
            session: Session::new(),
            decoder: Decoder::new(config.dialect),
            channel: None,
            steps: VecDeque::new(),
            awaited: None,
            retry_at: None,
            outputs: VecDeque::new(),
            config,
        })
    }

    /// How many bytes to read from the socket next, at most, so that
    /// descriptors keep the message they came with. Never 0 while connected.
    pub fn wanted(&self) -> usize {
        self.decoder.wanted()
    }

    /// The same for the back-end's channel; 0 if there is none.
    pub fn channel_wanted(&self) -> usize {
        self.channel.as_ref().map_or(0, |c| c.decoder.wanted())
    }

    /// Tell a fact.
    pub fn handle_input(&mut self, now: Instant, input: Input<'_>) -> Result<(), ApiMisuse> {
        debug_assert!(self.outputs.is_empty(), "outputs were not polled to the end");
        match input {
            Input::Connected { channel } => self.connected(now, channel),
            Input::ConnectFailed(why) => {
                self.expect_phase("connect failed", self.phase == Phase::Connecting)?;
                self.fail(now, Failure::ConnectFailed(why));
                Ok(())
            }
            Input::Received { bytes, handles } => self.received(now, bytes, handles),
            Input::ChannelReceived { bytes, handles } => self.channel_received(now, bytes, handles),
            Input::PeerClosed => {
                self.expect_phase("peer closed", self.phase.is_connected())?;
                self.fail(now, Failure::BackendClosed);
                Ok(())
            }
            Input::Timeout => {
                self.timeout(now);
                Ok(())
            }
            Input::Command(command) => self.command(now, command),
        }
    }

    /// The next wish, `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with [`Input::Timeout`], and why.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        let retry = self.retry_at.map(|at| (at, TimerKind::ReconnectBackoff));
        let overdue = self.awaited.as_ref().and_then(|a| a.deadline);
        retry.or(overdue.map(|at| (at, TimerKind::ReplyOverdue)))
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Message whose answer is due, for traces and stall reports.
    pub fn awaiting(&self) -> Option<&'static str> {
        self.awaited.as_ref().map(|a| a.message)
    }

    fn connected(&mut self, now: Instant, channel: Option<Handle>) -> Result<(), ApiMisuse> {
        self.expect_phase("connected", self.phase == Phase::Connecting)?;
        self.go(Trigger::Connected);
        self.decoder = Decoder::new(self.config.dialect);
        self.session = Session::new();
        self.channel = channel.map(|handle| Channel::new(handle, self.config.dialect));
        let first = if self.config.negotiate {
            ask(FrontendRequest::GetFeatures, Purpose::Features)
        } else {
            Step::Reached(Milestone::Negotiated)
        };
        self.steps.push_back(first);
        self.advance(now);
        Ok(())
    }

    fn received(
        &mut self,
        now: Instant,
        bytes: &[u8],
        handles: Vec<Handle>,
    ) -> Result<(), ApiMisuse> {
        self.expect_phase("received bytes", self.phase.is_connected())?;
        if let Err(error) = self.decoder.push(bytes, handles) {
            self.outputs.extend(error.handles.into_iter().map(Output::Release));
            self.fail(now, BackendFault::Flood(error.reason).into());
            return Ok(());
        }
        while self.phase.is_connected()
            && let Some(message) = self.decoder.next()
        {
            match message {
                Ok(envelope) => self.take_reply(now, envelope.message),
                Err(refused) => {
                    self.outputs.extend(refused.handles.into_iter().map(Output::Release));
                    self.fail(now, BackendFault::Wire(refused.error).into());
                }
            }
            self.advance(now);
        }
        Ok(())
    }

    fn timeout(&mut self, now: Instant) {
        match self.poll_timeout() {
            Some((at, TimerKind::ReconnectBackoff)) if at <= now => {
                self.retry_at = None;
                self.go(Trigger::Retry);
                self.outputs.push_back(Output::Connect);
            }
            Some((at, TimerKind::ReplyOverdue)) if at <= now => {
                let message = self.awaiting().unwrap_or_default();
                self.fail(now, Failure::BackendOverdue { message });
            }
            _ => {}
        }
    }

    /// Virtio features that the owner may choose from.
    fn features(&self) -> u64 {
        self.session.offered & self.config.virtio_features & !virtio::PROTOCOL_FEATURES
    }

    fn expect_phase(&self, what: &'static str, fits: bool) -> Result<(), ApiMisuse> {
        let phase = self.phase;
        if fits { Ok(()) } else { Err(ApiMisuse::WrongPhase { what, phase }) }
    }

    fn try_go(&mut self, what: &'static str, trigger: Trigger) -> Result<(), ApiMisuse> {
        self.expect_phase(what, self.phase.after(trigger).is_some())?;
        self.go(trigger);
        Ok(())
    }

    fn go(&mut self, trigger: Trigger) {
        self.phase = self
            .phase
            .after(trigger)
            .unwrap_or_else(|| unreachable!("{trigger:?} while {}", self.phase));
    }
}
