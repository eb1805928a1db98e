//! The back-end's own channel, and what messages on both channels do in the place
//! of event descriptors.

use super::Frontend;
use super::error::{ApiMisuse, BackendFault};
use super::io::{Event, Output};
use super::phase::Phase;
use super::steps::{ConfigFor, Milestone, Step, get_config, kick_by_message};
use crate::Handle;
use crate::time::Instant;
use crate::wire::features::protocol;
use crate::wire::{
    BackendReply, BackendRequest, BackendRequests, Decoder, Dialect, Envelope, FrontendRequest,
    VringState, encode_backend_reply,
};
use std::collections::VecDeque;

/// Status of an answer to what this front-end does not do.
const NOT_DONE: u64 = 1;
/// Status of every other answer.
const DONE: u64 = 0;

/// Requests that may wait for their answers.
const MAX_DUE: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) decoder: Decoder<BackendRequests, Handle>,
    /// The back-end's end, until it is sent.
    pub(super) theirs: Option<Handle>,
    /// Requests that are not answered yet. Answers go out in order, since
    /// nothing else says which request they belong to.
    pub(super) due: VecDeque<Due>,
}

/// A request that came and is not answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// A miss that the owner knows the answer to.
    Owner { code: u32, need_reply: bool },
    /// A miss whose update is on its way.
    Told { code: u32, need_reply: bool },
    /// A change: the new content is being read.
    Change { need_reply: bool },
    /// The answer is known.
    Known { code: u32, need_reply: bool, status: u64 },
}

impl Channel {
    pub(super) fn new(theirs: Handle, dialect: Dialect) -> Self {
        Self { decoder: Decoder::new(dialect), theirs: Some(theirs), due: VecDeque::new() }
    }
}

impl Frontend {
    pub(super) fn channel_received(
        &mut self,
        now: Instant,
        bytes: &[u8],
        handles: Vec<Handle>,
    ) -> Result<(), ApiMisuse> {
        let phase = self.phase;
        let misuse = ApiMisuse::WrongPhase { what: "bytes on a channel that there is not", phase };
        let channel = self.channel.as_mut().ok_or(misuse)?;
        if let Err(error) = channel.decoder.push(bytes, handles) {
            self.outputs.extend(error.handles.into_iter().map(Output::Release));
            self.fail(now, BackendFault::Flood(error.reason).into());
            return Ok(());
        }
        while let Some(channel) = &mut self.channel {
            match channel.decoder.next() {
                None => break,
                Some(Ok(_)) if channel.due.len() >= MAX_DUE => {
                    self.fail(now, BackendFault::TooManyRequests(MAX_DUE as u32).into());
                }
                Some(Ok(envelope)) => self.take_backend_request(envelope),
                Some(Err(refused)) => {
                    self.outputs.extend(refused.handles.into_iter().map(Output::Release));
                    self.fail(now, BackendFault::Wire(refused.error).into());
                }
            }
        }
        self.advance(now);
        Ok(())
    }

    fn take_backend_request(&mut self, envelope: Envelope<BackendRequest<Handle>>) {
        let need_reply = envelope.need_reply;
        let code = envelope.message.code();
        let has_reply = envelope.message.has_reply();
        match envelope.message {
            BackendRequest::ConfigChangeMsg if self.config.config_len > 0 => {
                // The notice is answered after the new content has been read:
                // a back-end that waits for that answer must meanwhile serve
                // the main socket.
                let len = self.config.config_len;
                self.steps.push_back(get_config(0, len, ConfigFor::Change));
                self.owe(Due::Change { need_reply });
                self.steps.push_back(Step::Reached(Milestone::ChangeSeen));
                return;
            }
            BackendRequest::IotlbMsg(message) => return self.take_iotlb(message, need_reply),
            BackendRequest::VringCall(state) if self.is_inband(state) => {
                let vring = state.index as u16;
                self.outputs.push_back(Output::Event(Event::Called { vring }));
                return self.owe(Due::Known { code, need_reply, status: DONE });
            }
            BackendRequest::VringErr(state) if self.is_inband(state) => {
                let vring = state.index as u16;
                self.outputs.push_back(Output::Event(Event::VringBroken { vring }));
                return self.owe(Due::Known { code, need_reply, status: DONE });
            }
            BackendRequest::VringHostNotifierMsg(_, handle) => {
                self.outputs.extend(handle.map(Output::Release));
            }
            BackendRequest::ShmemMap(_, handle) => {
                self.outputs.push_back(Output::Release(handle));
            }
            BackendRequest::ConfigChangeMsg
            | BackendRequest::VringCall(_)
            | BackendRequest::VringErr(_)
            | BackendRequest::SharedObjectAdd(_)
            | BackendRequest::SharedObjectRemove(_)
            | BackendRequest::SharedObjectLookup(_)
            | BackendRequest::ShmemUnmap(_) => {}
        }
        self.owe(Due::Known { code, need_reply: need_reply || has_reply, status: NOT_DONE });
    }

    /// A notification that belongs here: in-band, of a vring there is.
    fn is_inband(&self, state: VringState) -> bool {
        self.session.has(protocol::INBAND_NOTIFICATIONS)
            && state.index < u32::from(self.config.num_queues)
    }

    /// VRING_KICK, unless one for this vring waits for its turn already: that one
    /// is for what has been made available until it is sent.
    pub(super) fn kick(&mut self, what: &'static str, vring: u16) -> Result<(), ApiMisuse> {
        if !self.session.has(protocol::INBAND_NOTIFICATIONS) {
            let feature = "INBAND_NOTIFICATIONS";
            return Err(ApiMisuse::NotNegotiated { what, feature });
        }
        if vring >= self.config.num_queues {
            return Err(ApiMisuse::BadVring(vring));
        }
        let waits = self.steps.iter().any(|step| {
            matches!(step, Step::Ask { request: FrontendRequest::VringKick(state), .. }
                if state.index == u32::from(vring))
        });
        if self.phase == Phase::Running && !waits {
            self.steps.push_back(kick_by_message(&self.session, vring));
        }
        Ok(())
    }

    /// The change that was told first has been looked at.
    pub(super) fn answer_change(&mut self) {
        let change = |due: &&mut Due| matches!(due, Due::Change { .. });
        if let Some(due) = self.channel.as_mut().and_then(|c| c.due.iter_mut().find(change))
            && let &mut Due::Change { need_reply } = due
        {
            let code = BackendRequest::<Handle>::ConfigChangeMsg.code();
            *due = Due::Known { code, need_reply, status: 0 };
        }
        self.answer_dues();
    }

    /// A request is answered some time, after those before it.
    pub(super) fn owe(&mut self, due: Due) {
        if let Some(channel) = &mut self.channel {
            channel.due.push_back(due);
        }
        self.answer_dues();
    }

    /// Send what can be answered.
    pub(super) fn answer_dues(&mut self) {
        while let Some(channel) = &mut self.channel
            && let Some(&Due::Known { code, need_reply, status }) = channel.due.front()
        {
            channel.due.pop_front();
            if need_reply {
                self.answer_backend(code, status);
            }
        }
    }

    fn answer_backend(&mut self, code: u32, status: u64) {
        let (bytes, handles) = encode_backend_reply(&BackendReply { code, status, handle: None });
        self.outputs.push_back(Output::ChannelSend { bytes, handles });
    }
}
