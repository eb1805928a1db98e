//! Answers to the front-end, and what follows when there is none to give.

use super::{Backend, Event, FrontendFault, Output};
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::wire::features::protocol;
use crate::wire::{ConfigPayload, FrontendReply, FrontendReplyBody, encode_reply};
use bytes::Bytes;
use vm_memory::GuestMemory;

/// Where an answer goes, and whether one is expected at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub code: u32,
    pub message: &'static str,
    pub need_reply: bool,
    /// The message has an answer of its own, asked for or not.
    pub own: bool,
}

impl Reply {
    pub fn message(&self) -> &'static str {
        self.message
    }
}

/// What follows from a message that is refused.
// spec: vhost-user, "Communication" and VHOST_USER_PROTOCOL_F_REPLY_ACK
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consequence {
    /// A status that is not 0.
    NegativeAck,
    /// GET_CONFIG has a form for failure.
    EmptyConfig,
    /// SET_DEVICE_STATE_FD has an error in its answer.
    StateError,
    /// The front-end could not be told, so it must not go on.
    Close,
}

impl<M: GuestMemory> Backend<M> {
    pub(super) fn answer(&mut self, reply: Reply, body: FrontendReplyBody<Handle>) {
        let (bytes, handles) = encode_reply(&FrontendReply { code: reply.code, body });
        self.out.push_back(Output::Send { bytes, handles });
    }

    /// Acknowledge, if that was asked for and agreed on.
    pub(super) fn answer_ok(&mut self, reply: Reply) {
        if reply.need_reply
            && self.session.protocol & protocol::REPLY_ACK != 0
            && !bugs::on(Bug::AckForgotten)
        {
            self.answer(reply, FrontendReplyBody::U64(0));
        }
    }

    /// The disk has failed what a message needs; nobody is told who has not asked.
    pub(super) fn answer_failure(&mut self, reply: Reply) {
        if reply.need_reply && self.session.protocol & protocol::REPLY_ACK != 0 {
            self.answer(reply, FrontendReplyBody::U64(1));
        }
    }

    /// The message had no effect; make sure that the front-end knows.
    pub(super) fn refuse(&mut self, reply: Reply, fault: FrontendFault) {
        match self.consequence(reply) {
            Consequence::NegativeAck => {
                self.event(Event::Refused(fault));
                self.answer(reply, FrontendReplyBody::U64(1));
            }
            Consequence::EmptyConfig => {
                self.event(Event::Refused(fault));
                let data = Bytes::new();
                let config = ConfigPayload { offset: 0, flags: 0, data };
                self.answer(reply, FrontendReplyBody::Config(config));
            }
            Consequence::StateError => {
                self.event(Event::Refused(fault));
                self.answer(reply, FrontendReplyBody::DeviceState(1, None));
            }
            Consequence::Close => self.close(fault),
        }
    }

    fn consequence(&self, reply: Reply) -> Consequence {
        let acks = self.session.protocol & protocol::REPLY_ACK != 0;
        match reply.message {
            "GET_CONFIG" => Consequence::EmptyConfig,
            "IOTLB_MSG" => Consequence::NegativeAck,
            "SET_DEVICE_STATE_FD" => Consequence::StateError,
            _ if reply.own => Consequence::Close,
            _ if reply.need_reply && acks => Consequence::NegativeAck,
            _ => Consequence::Close,
        }
    }
}
