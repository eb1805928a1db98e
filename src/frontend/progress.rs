//! One message after the other, to the end of a sequence or of the connection.

use super::config::VringStart;
use super::error::Failure;
use super::io::{Event, Output};
use super::phase::{Phase, Trigger};
use super::steps::{self, Milestone, Purpose, Step};
use super::{Awaited, Frontend};
use crate::Handle;
use crate::time::Instant;
use crate::wire::features::protocol;
use crate::wire::{Envelope, FrontendRequest, encode_request};

impl Frontend {
    /// Send until an answer is due or nothing is left to do.
    pub(super) fn advance(&mut self, now: Instant) {
        while self.awaited.is_none()
            && let Some(step) = self.steps.pop_front()
        {
            match step {
                Step::Ask { request, need_reply, purpose } => {
                    self.send(now, request, need_reply, purpose)
                }
                Step::SyncMemory => {
                    for step in steps::sync_memory(&self.device, &self.session).into_iter().rev() {
                        self.steps.push_front(step);
                    }
                }
                Step::Reached(milestone) => self.reached(milestone),
            }
        }
    }

    fn send(
        &mut self,
        now: Instant,
        message: FrontendRequest<Handle>,
        need_reply: bool,
        purpose: Purpose,
    ) {
        let dialect = self.config.dialect;
        let is_status = !message.has_reply() && purpose != Purpose::Bases;
        let answered = !is_status || need_reply && self.session.has(protocol::REPLY_ACK);
        if answered {
            self.awaited = Some(Awaited {
                code: message.code(&dialect).unwrap_or(0),
                message: message.name(),
                purpose,
                is_status,
                config: match &message {
                    FrontendRequest::GetConfig(c) => (c.offset, c.data.len() as u32),
                    _ => (0, 0),
                },
                deadline: self.config.reply_timeout.map(|timeout| now + timeout),
            });
        }
        let envelope = Envelope { message, need_reply };
        let (bytes, handles) = encode_request(&envelope, &dialect)
            .expect("sequences hold encodable messages, the owner's are checked when they come");
        self.outputs.push_back(Output::Send { bytes, handles });
        self.sent(&envelope.message);
    }

    /// What changes here with a message that is on its way.
    fn sent(&mut self, message: &FrontendRequest<Handle>) {
        match message {
            FrontendRequest::SetProtocolFeatures(bits) => self.session.protocol = *bits,
            FrontendRequest::SetMemTable(table) => self.session.memory.clone_from(table),
            FrontendRequest::AddMemReg(region, handle) => {
                self.session.memory.push((*region, *handle));
            }
            FrontendRequest::RemMemReg(region, _) => {
                self.session.memory.retain(|(one, _)| one != region);
            }
            FrontendRequest::SetBackendReqFd(handle) => {
                if let Some(channel) = &mut self.channel
                    && channel.theirs == Some(*handle)
                {
                    channel.theirs = None;
                    self.outputs.push_back(Output::Release(*handle));
                }
            }
            _ => {}
        }
    }

    fn reached(&mut self, milestone: Milestone) {
        let event = match milestone {
            Milestone::Negotiated => {
                self.go(Trigger::Negotiated);
                let reconnected = core::mem::replace(&mut self.device.seen, true);
                Event::Ready {
                    features: self.features(),
                    protocol: self.session.protocol,
                    mem_slots: self.session.max_regions(),
                    config: self.device.config.clone(),
                    reconnected,
                    inflight_kept: self.device.inflight.is_some(),
                }
            }
            Milestone::Started => {
                self.go(Trigger::Started);
                Event::Running
            }
            Milestone::Stopped => {
                self.go(Trigger::Stopped);
                let started = core::mem::take(&mut self.device.started);
                let packed = self.device.packed();
                let base = |vring: &VringStart| {
                    let base = self.device.bases[usize::from(vring.index)].known(packed);
                    (vring.index, base.expect("the last answer of a stop is a base"))
                };
                let bases = started.iter().map(base).collect();
                Event::Stopped { bases }
            }
            Milestone::ResetDone => {
                self.go(Trigger::ResetDone);
                self.forget_requests();
                return;
            }
            Milestone::Logging => Event::Logging,
            Milestone::NotLogging => Event::NotLogging,
            Milestone::PostcopyMapped => self.take_postcopy_event(),
            Milestone::PostcopyEnded => Event::PostcopyEnded,
            Milestone::ConfigWritten => Event::ConfigWritten,
            Milestone::ChangeSeen => {
                self.answer_change();
                return;
            }
        };
        self.outputs.push_back(Output::Event(event));
    }

    /// End the connection, or the attempt to have one.
    pub(super) fn fail(&mut self, now: Instant, failure: Failure) {
        let phase = self.phase;
        let backoff = self.config.reconnect_backoff;
        let (trigger, retry_at) = match (&failure, backoff) {
            (Failure::Disconnected, _) => (Trigger::Disconnect, None),
            (Failure::BackendUnfit(_), _) | (_, None) => (Trigger::GaveUp, None),
            (_, Some(backoff)) => (Trigger::Lost, Some(now + backoff)),
        };
        self.go(trigger);
        self.retry_at = retry_at;
        self.steps.clear();
        self.awaited = None;
        let mut orphans = self.decoder.drain_handles();
        if let Some(mut channel) = self.channel.take() {
            orphans.extend(channel.theirs);
            orphans.extend(channel.decoder.drain_handles());
        }
        self.outputs.extend(orphans.into_iter().map(Output::Release));
        let gone = matches!(failure, Failure::BackendClosed | Failure::ConnectFailed(_));
        if !gone && (phase.is_connected() || phase == Phase::Connecting) {
            self.outputs.push_back(Output::Close(failure.clone()));
        }
        self.outputs.push_back(Output::Event(Event::Disconnected {
            failure,
            phase,
            retry: retry_at.is_some(),
        }));
    }
}
