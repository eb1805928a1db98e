//! The back-end's own channel: requests to the front-end, and their answers.
//!
//! Nothing here waits. A request is sent and its purpose is remembered; the
//! answer comes whenever it comes, and meanwhile the main channel is served as
//! ever. It has to be: a front-end reads the configuration over the main channel
//! before it answers a change, and sends an update there before it answers a
//! miss.
//!
//! The channel is an extra. A front-end that closes it, or says something on it
//! that is no answer, loses it with one line to the operator; vrings, requests
//! in flight and the main channel stay as they are.
// spec: vhost-user, "Back-end message types"

use super::iommu::Question;
use super::{ApiMisuse, Backend, Event, Output};
use crate::Handle;
use crate::wire::features::protocol;
use crate::wire::{
    BackendReplies, BackendReply, BackendRequest, Decoder, Dialect, Envelope, PushReason,
    WireError, encode_backend_request,
};
use std::collections::VecDeque;
use vm_memory::GuestMemory;

/// Why there is no channel any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelEnd {
    /// The front-end has closed it.
    #[error("closed by the front-end")]
    Closed,
    /// The driver could not use it.
    #[error("{0}")]
    Failed(String),
    /// Bytes that are no answer.
    #[error("front-end misbehaved: {0}")]
    Wire(#[from] WireError),
    /// More descriptors than any answer has.
    #[error(
        "front-end misbehaved: {got} descriptors came without an answer, expected at most {max}"
    )]
    TooManyHandles {
        /// Descriptors held.
        got: u64,
        /// The bound.
        max: u32,
    },
    /// An answer that is not due.
    #[error("front-end misbehaved: expected {}, got an answer to request {got}", expected.unwrap_or("no answer"))]
    UnexpectedAnswer {
        /// The request whose answer is due first.
        expected: Option<&'static str>,
        /// Code of the request that it answers.
        got: u32,
    },
}

/// What a request is for, until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// CONFIG_CHANGE_MSG.
    Change,
    /// IOTLB_MSG, a miss.
    Miss(Question),
    /// IOTLB_MSG, an access that failed; nothing follows from the answer.
    AccessFail,
    /// VRING_CALL for this vring.
    Call(u16),
    /// VRING_ERR.
    Err,
}

/// A channel that the front-end has given.
#[derive(Debug)]
pub(super) struct Channel {
    handle: Handle,
    decoder: Decoder<BackendReplies, Handle>,
    /// Requests whose answers are due, oldest first.
    due: VecDeque<Due>,
}

#[derive(Debug)]
struct Due {
    code: u32,
    name: &'static str,
    asked: Asked,
}

impl<M: GuestMemory> Backend<M> {
    /// How many bytes to read from the back-end's channel next, at most; 0 if
    /// there is none. It is wanted also while a message of the main channel
    /// waits for something.
    pub fn channel_wanted(&self) -> usize {
        self.channel.as_ref().map_or(0, |channel| channel.decoder.wanted())
    }

    /// A channel replaces the one before. What that one was asked is never
    /// answered.
    // spec: vhost-user, VHOST_USER_SET_BACKEND_REQ_FD
    pub(super) fn set_backend_req_fd(&mut self, handle: Handle) {
        self.drop_channel();
        // Answers mean the same in every dialect.
        let decoder = Decoder::new(Dialect::default());
        self.channel = Some(Channel { handle, decoder, due: VecDeque::new() });
        self.out.push_back(Output::WatchChannel { handle: Some(handle) });
        self.channel_opened();
        self.ask_again();
    }

    /// Send a request, if there is a channel. With REPLY_ACK its answer comes
    /// to [`answered`](Self::answered); false if none will.
    pub(super) fn ask(&mut self, message: BackendRequest<Handle>, asked: Asked) -> bool {
        let Some(channel) = &mut self.channel else { return false };
        let (code, name) = (message.code(), message.name());
        let need_reply = self.session.protocol & protocol::REPLY_ACK != 0;
        let (bytes, handles) = encode_backend_request(&Envelope { message, need_reply });
        self.out.push_back(Output::ChannelSend { bytes, handles });
        if need_reply {
            channel.due.push_back(Due { code, name, asked });
        }
        need_reply
    }

    pub(super) fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    /// Answers that are still to come.
    pub(super) fn answers_due(&self) -> usize {
        self.channel.as_ref().map_or(0, |c| c.due.len())
    }

    /// True if the answer to such a request is still to come.
    pub(super) fn is_due(&self, asked: Asked) -> bool {
        self.channel.as_ref().is_some_and(|c| c.due.iter().any(|due| due.asked == asked))
    }

    pub(super) fn channel_received(
        &mut self,
        bytes: &[u8],
        handles: Vec<Handle>,
    ) -> Result<(), ApiMisuse> {
        let Some(channel) = &mut self.channel else {
            self.release(handles);
            return Err(ApiMisuse::NoChannel);
        };
        let wanted = channel.decoder.wanted() as u64;
        if let Err(refused) = channel.decoder.push(bytes, handles) {
            self.release(refused.handles);
            return match refused.reason {
                PushReason::Handles { max, would_be } => {
                    self.end_channel(ChannelEnd::TooManyHandles { got: would_be, max });
                    Ok(())
                }
                _ => Err(ApiMisuse::NotWanted { got: bytes.len() as u64, wanted }),
            };
        }
        while let Some(next) = self.channel.as_mut().and_then(|c| c.decoder.next()) {
            match next {
                Ok(envelope) => self.take_answer(envelope.message),
                Err(refused) => {
                    self.release(refused.handles);
                    self.end_channel(refused.error.into());
                }
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, reply: BackendReply<Handle>) {
        let BackendReply { code, status, handle } = reply;
        self.release(handle);
        let Some(channel) = &mut self.channel else { return };
        // What takes a front-end longer may be answered later than what came
        // after it; answers to requests of one kind are in order.
        let at = channel.due.iter().position(|due| due.code == code);
        match at.and_then(|at| channel.due.remove(at)) {
            Some(due) => self.answered(due, status),
            None => {
                let expected = channel.due.front().map(|due| due.name);
                self.end_channel(ChannelEnd::UnexpectedAnswer { expected, got: code });
            }
        }
    }

    /// The front-end has answered; 0 is success.
    fn answered(&mut self, due: Due, status: u64) {
        let told = !matches!(due.asked, Asked::Miss(_) | Asked::AccessFail);
        if status != 0 && told {
            self.event(Event::RequestRefused { request: due.name, status });
        }
        match due.asked {
            Asked::Change | Asked::Err | Asked::AccessFail => {}
            Asked::Miss(question) => self.miss_answered(question, status),
            Asked::Call(vring) => self.call_inband(vring),
        }
    }

    /// The channel went away with the answer.
    fn unanswered(&mut self, asked: Asked) {
        match asked {
            Asked::Change => self.change_due = true,
            Asked::Miss(question) => self.iommu.forget(question),
            Asked::AccessFail => {}
            Asked::Call(vring) => self.vrings[usize::from(vring)].call_due = true,
            // The vring is silent, which says it as well.
            Asked::Err => {}
        }
    }

    /// The channel is of no use any more.
    pub(super) fn end_channel(&mut self, end: ChannelEnd) {
        if self.drop_channel() {
            self.event(Event::ChannelLost(end));
        }
    }

    /// Without a word, as when the connection ends. False if there was none.
    pub(super) fn drop_channel(&mut self) -> bool {
        let Some(mut channel) = self.channel.take() else { return false };
        self.out.push_back(Output::WatchChannel { handle: None });
        let undelivered = channel.decoder.drain_handles();
        self.release(undelivered);
        self.release([channel.handle]);
        for due in channel.due {
            self.unanswered(due.asked);
        }
        true
    }
}
