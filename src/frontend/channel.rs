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

/// Status of an answer to what this front-end does not do.
const NOT_DONE: u64 = 1;
/// Status of every other answer.
const DONE: u64 = 0;

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) decoder: Decoder<BackendRequests, Handle>,
    /// The back-end's end, until it is sent.
    pub(super) theirs: Option<Handle>,
}

impl Channel {
    pub(super) fn new(theirs: Handle, dialect: Dialect) -> Self {
        Self { decoder: Decoder::new(dialect), theirs: Some(theirs) }
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
                let seen = Milestone::ChangeSeen { need_reply };
                self.steps.push_back(Step::Reached(seen));
                return;
            }
            BackendRequest::VringCall(state) if self.is_inband(state) => {
                let vring = state.index as u16;
                self.outputs.push_back(Output::Event(Event::Called { vring }));
                if need_reply {
                    self.answer_backend(code, DONE);
                }
                return;
            }
            BackendRequest::VringErr(state) if self.is_inband(state) => {
                let vring = state.index as u16;
                self.outputs.push_back(Output::Event(Event::VringBroken { vring }));
                if need_reply {
                    self.answer_backend(code, DONE);
                }
                return;
            }
            BackendRequest::VringHostNotifierMsg(_, handle) => {
                self.outputs.extend(handle.map(Output::Release));
            }
            BackendRequest::ShmemMap(_, handle) => {
                self.outputs.push_back(Output::Release(handle));
            }
            BackendRequest::ConfigChangeMsg
            | BackendRequest::IotlbMsg(_)
            | BackendRequest::VringCall(_)
            | BackendRequest::VringErr(_)
            | BackendRequest::SharedObjectAdd(_)
            | BackendRequest::SharedObjectRemove(_)
            | BackendRequest::SharedObjectLookup(_)
            | BackendRequest::ShmemUnmap(_) => {}
        }
        if need_reply || has_reply {
            self.answer_backend(code, NOT_DONE);
        }
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

    pub(super) fn answer_change(&mut self) {
        self.answer_backend(BackendRequest::<Handle>::ConfigChangeMsg.code(), DONE);
    }

    fn answer_backend(&mut self, code: u32, status: u64) {
        let (bytes, handles) = encode_backend_reply(&BackendReply { code, status, handle: None });
        self.outputs.push_back(Output::ChannelSend { bytes, handles });
    }
}
