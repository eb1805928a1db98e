//! What the back-end's answers mean.

use super::base::{self, KeptBase};
use super::error::{BackendFault, Failure, Unfit};
use super::io::{Event, Output};
use super::steps::{self, ConfigFor, Purpose, ask};
use super::{Awaited, Frontend};
use crate::Handle;
use crate::time::Instant;
use crate::wire::features::{protocol, virtio};
use crate::wire::{FrontendReply, FrontendReplyBody as Body, FrontendRequest, InflightDescription};

impl Frontend {
    /// Take one answer. Handles in it belong to the front-end.
    pub(super) fn take_reply(&mut self, now: Instant, reply: FrontendReply<Handle>) {
        let Some(awaited) = self.awaited.take_if(|a| a.code == reply.code) else {
            let expected = self.awaited.as_ref().map(|a| a.message);
            let got = reply.code;
            self.release_body(reply.body);
            self.fail(now, BackendFault::UnexpectedReply { expected, got }.into());
            return;
        };
        if awaited.purpose == Purpose::Raw {
            self.outputs.push_back(Output::Event(Event::RawReply(reply)));
            return;
        }
        if let Err(failure) = self.apply(&awaited, reply.body) {
            self.fail(now, failure);
        }
    }

    fn apply(&mut self, awaited: &Awaited, body: Body<Handle>) -> Result<(), Failure> {
        match (awaited.purpose, body) {
            (Purpose::Order, Body::U64(status)) if awaited.is_status && status != 0 => {
                Err(Failure::BackendRefused { message: awaited.message, status })
            }
            (Purpose::Order, Body::U64(status)) if awaited.message == "POSTCOPY_END" => {
                match status {
                    0 => Ok(()),
                    _ => Err(Failure::BackendRefused { message: awaited.message, status }),
                }
            }
            (Purpose::Order, Body::U64(_)) => Ok(()),
            (Purpose::Log, Body::U64(status)) if awaited.is_status && status != 0 => {
                self.log_refused(awaited.message, status);
                Ok(())
            }
            // Peers answer SET_LOG_BASE with anything at all, the size or 0.
            (Purpose::Log, Body::U64(_)) | (Purpose::Log | Purpose::Order, Body::Empty) => Ok(()),
            (Purpose::Faults, Body::Handle(handle)) => {
                self.outputs.push_back(Output::Event(Event::PostcopyFaults(handle)));
                Ok(())
            }
            (Purpose::Bases, Body::MemRegion(one)) => self.take_bases(awaited.message, vec![one]),
            (Purpose::Bases, Body::MemTable(all)) => self.take_bases(awaited.message, all),
            (Purpose::Bases, Body::U64(status)) => {
                Err(Failure::BackendRefused { message: awaited.message, status })
            }
            (Purpose::WriteConfig, Body::U64(status)) => {
                let event = match status {
                    0 => Event::ConfigWritten,
                    _ => Event::Refused { message: awaited.message, status },
                };
                self.outputs.push_back(Output::Event(event));
                Ok(())
            }
            (Purpose::Translation { asked }, Body::U64(status)) => {
                self.translated(awaited.message, asked, status);
                Ok(())
            }
            (Purpose::Invalidation { .. }, Body::U64(status)) if status != 0 => {
                Err(Failure::BackendRefused { message: awaited.message, status })
            }
            (Purpose::Invalidation { iova, size }, Body::U64(_)) => {
                self.outputs.push_back(Output::Event(Event::IotlbInvalidated { iova, size }));
                Ok(())
            }
            (Purpose::StateChannel, Body::DeviceState(0, instead)) => {
                self.outputs.push_back(Output::Event(Event::StateChannel { instead }));
                Ok(())
            }
            (Purpose::StateChannel, Body::DeviceState(error, handle)) => {
                self.outputs.extend(handle.map(Output::Release));
                let (message, status) = (awaited.message, u64::from(error));
                self.outputs.push_back(Output::Event(Event::Refused { message, status }));
                Ok(())
            }
            (Purpose::StateCheck, Body::U64(status)) => {
                let event = match status {
                    0 => Event::StateChecked,
                    _ => Event::Refused { message: awaited.message, status },
                };
                self.outputs.push_back(Output::Event(event));
                Ok(())
            }
            (Purpose::Features, Body::U64(bits)) => self.take_features(bits),
            (Purpose::FeaturesAgain, Body::U64(bits)) => {
                // Protocol features were agreed on under the first answer.
                let agreed = self.session.offered & virtio::PROTOCOL_FEATURES;
                self.session.offered = bits & !virtio::PROTOCOL_FEATURES | agreed;
                Ok(self.check_fit()?)
            }
            (Purpose::ProtocolFeatures, Body::U64(bits)) => self.take_protocol_features(bits),
            (Purpose::QueueNum, Body::U64(offered)) => self.check_queues(offered),
            (Purpose::MemSlots, Body::U64(slots)) => {
                self.session.mem_slots = slots;
                Ok(())
            }
            (Purpose::Status(bits), Body::U64(status)) => {
                if status & bits != bits {
                    let request = FrontendRequest::SetStatus(status | bits);
                    self.steps.push_front(steps::tell(request));
                }
                Ok(())
            }
            (Purpose::Inflight, Body::NoInflight) => Ok(()),
            (Purpose::Inflight, Body::Inflight(description, handle)) => {
                self.take_inflight(awaited, description, handle)
            }
            (Purpose::Base(vring), Body::VringState(state)) => {
                expect(awaited, "index", u64::from(vring), u64::from(state.index))?;
                let size = self.device.started.iter().find(|v| v.index == vring).map(|v| v.size);
                let size = size.unwrap_or(self.config.queue_size);
                if !base::fits(state.num, self.device.packed(), size) {
                    return Err(BackendFault::Base { vring, got: state.num }.into());
                }
                self.device.bases[usize::from(vring)] = KeptBase::At(state.num);
                Ok(())
            }
            (Purpose::Config(who), Body::Config(config)) => {
                if config.data.is_empty() {
                    return self.config_refused(awaited, who);
                }
                let (offset, len) = awaited.config;
                expect(awaited, "offset", u64::from(offset), u64::from(config.offset))?;
                expect(awaited, "size", u64::from(len), config.data.len() as u64)?;
                match who {
                    ConfigFor::Negotiation => self.device.config = config.data,
                    ConfigFor::Owner => self
                        .outputs
                        .push_back(Output::Event(Event::ConfigRead { offset, data: config.data })),
                    ConfigFor::Change => {
                        self.device.config = config.data.clone();
                        self.outputs.push_back(Output::Event(Event::ConfigChanged(config.data)));
                    }
                }
                Ok(())
            }
            (_, body) => {
                self.release_body(body);
                let message = awaited.message;
                Err(BackendFault::UnexpectedBody { message }.into())
            }
        }
    }

    fn take_features(&mut self, bits: u64) -> Result<(), Failure> {
        self.session.offered = bits;
        if bits & virtio::PROTOCOL_FEATURES != 0 {
            let request = FrontendRequest::GetProtocolFeatures;
            self.steps.push_back(ask(request, Purpose::ProtocolFeatures));
            return Ok(());
        }
        self.go_on_negotiating(0)
    }

    fn take_protocol_features(&mut self, offered: u64) -> Result<(), Failure> {
        let mut accepted = offered & self.config.protocol_features;
        if self.channel.is_none() {
            accepted &= !protocol::BACKEND_REQ;
        }
        if accepted & protocol::INFLIGHT_SHMFD == 0 {
            // Suspended requests are recorded in the region or not at all.
            // spec: vhost-user, "VHOST_USER_GET_VRING_BASE"
            accepted &= !self.config.dialect.get_vring_base_inflight();
        }
        if accepted & self.config.dialect.get_vring_base_inflight() == 0 {
            accepted &= !self.config.dialect.get_vring_base_skip_drain();
        }
        let needed = protocol::REPLY_ACK | protocol::BACKEND_REQ;
        if accepted & needed != needed {
            // spec: vhost-user, "In-band notifications"
            accepted &= !protocol::INBAND_NOTIFICATIONS;
        }
        let request = FrontendRequest::SetProtocolFeatures(accepted);
        self.steps.push_back(steps::tell(request));
        self.go_on_negotiating(accepted)
    }

    fn go_on_negotiating(&mut self, accepted: u64) -> Result<(), Failure> {
        self.session.protocol = accepted;
        if accepted & protocol::MQ == 0 {
            self.check_queues(1)?;
        }
        if accepted & protocol::CONFIG == 0 && self.config.config_len > 0 {
            return Err(Unfit::NoConfig.into());
        }
        self.check_fit()?;
        let channel = self.channel.as_ref().and_then(|channel| channel.theirs);
        let rest = steps::negotiate(&self.config, &self.device, &self.session, channel);
        self.steps.extend(rest);
        Ok(())
    }

    fn check_queues(&mut self, offered: u64) -> Result<(), Failure> {
        let wanted = self.config.num_queues;
        if offered < u64::from(wanted) {
            return Err(Unfit::TooFewQueues { wanted, offered }.into());
        }
        Ok(())
    }

    fn take_inflight(
        &mut self,
        awaited: &Awaited,
        description: InflightDescription,
        handle: Handle,
    ) -> Result<(), Failure> {
        if description.mmap_size == 0 {
            // Some back-ends send a descriptor to say that they have no region.
            self.outputs.push_back(Output::Release(handle));
            return Ok(());
        }
        let queues = (self.config.num_queues, description.num_queues);
        let size = (self.config.queue_size, description.queue_size);
        let shape = expect(awaited, "num queues", queues.0.into(), queues.1.into())
            .and_then(|()| expect(awaited, "queue size", size.0.into(), size.1.into()));
        if let Err(failure) = shape {
            self.outputs.push_back(Output::Release(handle));
            return Err(failure);
        }
        self.device.inflight = Some((description, handle));
        self.steps.push_front(steps::set_inflight(description, handle));
        Ok(())
    }

    fn config_refused(&mut self, awaited: &Awaited, who: ConfigFor) -> Result<(), Failure> {
        let message = awaited.message;
        match who {
            ConfigFor::Negotiation => Err(Failure::BackendRefused { message, status: 1 }),
            ConfigFor::Owner | ConfigFor::Change => {
                self.outputs.push_back(Output::Event(Event::Refused { message, status: 1 }));
                Ok(())
            }
        }
    }

    /// Let go of the handles of an answer that nobody wants.
    pub(super) fn release_body(&mut self, body: Body<Handle>) {
        let handle = match body {
            Body::Inflight(_, handle) | Body::Handle(handle) => Some(handle),
            Body::SharedObject(handle) | Body::DeviceState(_, handle) => handle,
            Body::U64(_)
            | Body::VringState(_)
            | Body::Config(_)
            | Body::NoInflight
            | Body::MemTable(_)
            | Body::MemRegion(_)
            | Body::ShmemConfig(_)
            | Body::CryptoSession(_)
            | Body::Empty => None,
        };
        self.outputs.extend(handle.map(Output::Release));
    }
}

fn expect(awaited: &Awaited, field: &'static str, expected: u64, got: u64) -> Result<(), Failure> {
    if expected == got {
        return Ok(());
    }
    Err(BackendFault::Value { message: awaited.message, field, expected, got }.into())
}
