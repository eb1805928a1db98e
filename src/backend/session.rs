//! What the front-end says, message by message.

use super::answer::Reply;
use super::policy::Stop;
use super::{Backend, Event, FrontendFault};
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::dirty::DirtyLog;
use crate::marks::{self, Mark};
use crate::memory::MAX_REGIONS;
use crate::time::Instant;
use crate::vring::RingFormat;
use crate::wire::features::{protocol, virtio};
use crate::wire::{
    ConfigPayload, Envelope, FrontendReplyBody, FrontendRequest, LogBase, Refused, request_name,
};
use bytes::Bytes;
use vm_memory::GuestMemory;

/// Protocol features offered. QEMU accepts every bit it is offered, so nothing
/// is here that does not work.
///
/// What suspending takes comes on top, see
/// [`Backend::offered_protocol_features`].
pub const OFFERED_PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS
    | protocol::DEVICE_STATE;

/// What was agreed with the front-end that is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Session {
    /// Virtio features in force.
    pub features: u64,
    /// Protocol features in force.
    pub protocol: u64,
    /// The device status as the front-end has told it.
    pub status: u8,
}

impl Session {
    /// The log, if writes to guest memory are to be logged.
    // spec: vhost-user, "Migration": VHOST_F_LOG_ALL
    pub fn log_in_force<'a, M>(&self, log: &'a Option<DirtyLog<M>>) -> Option<&'a DirtyLog<M>> {
        log.as_ref().filter(|_| self.features & virtio::LOG_ALL != 0)
    }

    /// The kind of ring that was agreed on.
    pub fn ring_format(&self) -> RingFormat {
        if self.features & virtio::RING_PACKED != 0 {
            RingFormat::Packed
        } else {
            RingFormat::Split
        }
    }

    /// True if a write has to be on the medium before it completes.
    // spec: virtio 1.2, "Block Device", "Device Operation": writeback
    pub fn writes_are_durable(&self, writeback: bool) -> bool {
        let has = |bit| self.features & bit != 0;
        let durable = !has(virtio::BLK_FLUSH) || has(virtio::BLK_CONFIG_WCE) && !writeback;
        durable && !bugs::on(Bug::WriteThroughIgnored)
    }

    /// The driver has said that it can handle zones.
    pub fn knows_zones(&self) -> bool {
        self.features & virtio::BLK_ZONED != 0
    }
}

/// What comes of a message that was understood.
enum Outcome {
    /// Done; acknowledge if that was asked for.
    Done,
    /// Done, with this answer.
    Answer(FrontendReplyBody<Handle>),
    /// The answer comes later, by [`Pending`](super::setup::Pending).
    Later,
}

use Outcome::{Answer, Done, Later};

impl<M: GuestMemory> Backend<M> {
    pub(super) fn message(&mut self, now: Instant, envelope: Envelope<FrontendRequest<Handle>>) {
        let Envelope { message, need_reply } = envelope;
        let reply = Reply {
            code: message.code(&self.dialect()).expect("a decoded message has a code"),
            message: message.name(),
            need_reply,
            own: message.has_reply(),
        };
        let handles = message.handles();
        match self.dispatch(now, message, reply) {
            Ok(Done) => self.answer_ok(reply),
            Ok(Answer(body)) => self.answer(reply, body),
            Ok(Later) => {}
            Err(fault) => {
                self.release(handles);
                self.refuse(reply, fault);
            }
        }
    }

    /// Bytes that are not a message the decoder knows.
    pub(super) fn undecodable(&mut self, refused: Refused<Handle>) {
        self.release(refused.handles);
        let fault = FrontendFault::Wire(refused.error);
        match refused.code {
            Some(code) if !refused.fatal => {
                let message = request_name(code, &self.dialect()).unwrap_or("message");
                let need_reply = refused.need_reply;
                self.refuse(Reply { code, message, need_reply, own: false }, fault);
            }
            _ => self.close(fault),
        }
    }

    /// A fault leaves everything as it was, and the message's handles to be
    /// released.
    fn dispatch(
        &mut self,
        now: Instant,
        message: FrontendRequest<Handle>,
        reply: Reply,
    ) -> Result<Outcome, FrontendFault> {
        use FrontendRequest as R;
        match message {
            R::GetFeatures => return Ok(Answer(FrontendReplyBody::U64(self.offered))),
            R::SetFeatures(features) => self.set_features(now, features)?,
            R::GetProtocolFeatures => {
                return Ok(Answer(FrontendReplyBody::U64(self.offered_protocol_features())));
            }
            R::SetProtocolFeatures(features) => {
                if let Err(fault) = Self::check_inband(features) {
                    // The document wants the connection closed for this.
                    self.close(fault);
                    return Ok(Later);
                }
                self.set_protocol_features(features)?;
            }
            R::SetOwner => self.set_owner(),
            // Deprecated; the document lets a back-end ignore it.
            R::ResetOwner => {}
            R::GetQueueNum => {
                self.need(protocol::MQ, "MQ", reply)?;
                return Ok(Answer(FrontendReplyBody::U64(u64::from(self.config.num_queues))));
            }
            R::GetConfig(asked) => {
                self.need(protocol::CONFIG, "CONFIG", reply)?;
                let config = self.get_config(asked)?;
                self.config_read(&config);
                self.cache_read(&config);
                return Ok(Answer(FrontendReplyBody::Config(config)));
            }
            R::SetConfig(config) => {
                self.need(protocol::CONFIG, "CONFIG", reply)?;
                if self.set_config(&config, reply)? {
                    return Ok(Later);
                }
            }
            R::SetMemTable(regions) => {
                self.set_mem_table(regions, reply)?;
                return Ok(Later);
            }
            R::GetMaxMemSlots => {
                self.need(protocol::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS", reply)?;
                return Ok(Answer(FrontendReplyBody::U64(u64::from(MAX_REGIONS))));
            }
            R::AddMemReg(region, handle) => {
                self.need(protocol::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS", reply)?;
                self.add_mem_reg(region, handle, reply)?;
                return Ok(Later);
            }
            R::RemMemReg(region, extra) => {
                self.need(protocol::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS", reply)?;
                self.rem_mem_reg(region, extra, reply)?;
                return Ok(Later);
            }
            R::MemTableAck | R::MemRegAck => {
                self.memory_acknowledged(now, reply)?;
                return Ok(Later);
            }
            R::PostcopyAdvise => {
                self.postcopy_advise(reply)?;
                return Ok(Later);
            }
            R::PostcopyListen => self.postcopy_listen(reply)?,
            R::PostcopyEnd => {
                self.postcopy_end(now, reply)?;
                return Ok(Answer(FrontendReplyBody::U64(0)));
            }
            R::GetInflightFd(asked) => {
                self.need(protocol::INFLIGHT_SHMFD, "INFLIGHT_SHMFD", reply)?;
                self.get_inflight_fd(asked, reply)?;
                return Ok(Later);
            }
            R::SetInflightFd(description, handle) => {
                self.need(protocol::INFLIGHT_SHMFD, "INFLIGHT_SHMFD", reply)?;
                self.set_inflight_fd(description, handle, reply)?;
                return Ok(Later);
            }
            R::SetVringNum(state) => self.set_vring_num(state, reply)?,
            R::SetVringAddr(addr) => self.set_vring_addr(addr, reply)?,
            R::SetVringBase(state) => self.set_vring_base(state, reply)?,
            R::GetVringBase(state) => {
                let vring = self.vring_index(state.index, reply)?;
                self.get_vring_base(now, vring, self.plain_stop(), reply);
                return Ok(Later);
            }
            R::GetVringBaseSkipDrain(state) => {
                if !self.may_suspend() {
                    let feature = "GET_VRING_BASE_SKIP_DRAIN";
                    return Err(FrontendFault::NotNegotiated { message: reply.message, feature });
                }
                let vring = self.vring_index(state.index, reply)?;
                self.get_vring_base(now, vring, Stop::Suspend, reply);
                return Ok(Later);
            }
            R::SetLogBase(base) => {
                self.need(protocol::LOG_SHMFD, "LOG_SHMFD", reply)?;
                let LogBase::Shared(log, handle) = base else {
                    return Err(FrontendFault::NotOffered { message: reply.message });
                };
                self.set_log_base(log, handle, reply)?;
                return Ok(Later);
            }
            // An event that tells the front-end to look at the log. It looks
            // when it wants to; no front-end is known that waits for it.
            R::SetLogFd(handle) => self.release([handle]),
            R::SetVringKick(file) => self.set_vring_kick(now, file, reply)?,
            R::SetVringCall(file) => self.set_vring_call(file, reply)?,
            R::SetVringErr(file) => self.set_vring_err(file, reply)?,
            R::SetVringEnable(state) => self.set_vring_enable(now, state, reply)?,
            R::ResetDevice => {
                self.need(protocol::RESET_DEVICE, "RESET_DEVICE", reply)?;
                self.reset_device(reply);
                return Ok(Later);
            }
            R::SetStatus(status) => {
                self.need(protocol::STATUS, "STATUS", reply)?;
                self.set_status(status)?;
            }
            R::SetDeviceStateFd(state, handle) => {
                self.need(protocol::DEVICE_STATE, "DEVICE_STATE", reply)?;
                return Ok(Answer(self.set_device_state_fd(state, handle, reply)?));
            }
            R::CheckDeviceState => {
                self.need(protocol::DEVICE_STATE, "DEVICE_STATE", reply)?;
                self.check_device_state(reply);
                return Ok(Later);
            }
            R::GetStatus => {
                self.need(protocol::STATUS, "STATUS", reply)?;
                return Ok(Answer(FrontendReplyBody::U64(self.status())));
            }
            R::SetBackendReqFd(handle) => {
                self.need(protocol::BACKEND_REQ, "BACKEND_REQ", reply)?;
                self.set_backend_req_fd(handle);
            }
            R::IotlbMsg(message) => {
                return Ok(match self.iotlb_msg(message, reply)? {
                    true => Answer(FrontendReplyBody::U64(0)),
                    false => Later,
                });
            }
            R::VringKick(state) => self.vring_kick(now, state, reply)?,
            R::SendRarp(_)
            | R::NetSetMtu(_)
            | R::SetVringEndian(_)
            | R::CreateCryptoSession(_)
            | R::CloseCryptoSession(_)
            | R::GpuSetSocket(_)
            | R::GetSharedObject(_)
            | R::GetShmemConfig => {
                return Err(FrontendFault::NotOffered { message: reply.message });
            }
        }
        Ok(Done)
    }

    pub(super) fn need(
        &self,
        bit: u64,
        feature: &'static str,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        if self.session.protocol & bit == 0 {
            return Err(FrontendFault::NotNegotiated { message: reply.message, feature });
        }
        Ok(())
    }

    fn set_features(&mut self, now: Instant, to: u64) -> Result<(), FrontendFault> {
        let (from, offered) = (self.session.features, self.offered);
        if to & !offered != 0 {
            return Err(FrontendFault::Features { message: "SET_FEATURES", got: to, offered });
        }
        // A ring that runs was laid out by the features it started with. That
        // its writes are logged may change at any time.
        // spec: vhost-user, "Migration"
        if let Some(vring) = self.running_vring() {
            let rings = !(virtio::PROTOCOL_FEATURES | virtio::LOG_ALL);
            if (from ^ to) & rings != 0 {
                return Err(FrontendFault::FeaturesWhileRunning { vring, from, to });
            }
        }
        if (from ^ to) & virtio::ACCESS_PLATFORM != 0 {
            self.iommu.clear();
        }
        let log = |features| features & virtio::LOG_ALL != 0;
        let runs = self.running_vring().is_some();
        marks::hit_when(Mark::LogOnRunning, || runs && log(to) && !log(from));
        marks::hit_when(Mark::LogOffRunning, || runs && !log(to) && log(from));
        // spec: vhost-user, "Ring states": without bit 30 rings start enabled.
        // With it nothing changes: the message is sent again at run time.
        let legacy = to & virtio::PROTOCOL_FEATURES == 0;
        self.agree(to, self.session.protocol);
        if legacy && let Err(fault) = self.enable_all(now) {
            self.agree(from, self.session.protocol);
            return Err(fault);
        }
        if bugs::on_when(Bug::FeaturesDisableVrings, || self.running_vring().is_some()) {
            self.vrings.iter_mut().for_each(|v| v.enabled = false);
        }
        Ok(())
    }

    fn set_protocol_features(&mut self, got: u64) -> Result<(), FrontendFault> {
        let offered = self.offered_protocol_features();
        if got & !offered != 0 {
            return Err(FrontendFault::Features { message: "SET_PROTOCOL_FEATURES", got, offered });
        }
        self.agree(self.session.features, got);
        Ok(())
    }

    /// Front-ends say the same more than once, and in either order.
    fn agree(&mut self, features: u64, protocol: u64) {
        let agreed = Session { features, protocol, ..self.session };
        if agreed != self.session {
            self.session = agreed;
            self.event(Event::Negotiated { features, protocol });
        }
    }

    fn get_config(&self, asked: ConfigPayload) -> Result<ConfigPayload, FrontendFault> {
        // Peers ask for more or for less than there is, and at any offset; what
        // lies beyond the last field reads as 0.
        let mut space = self.config.space(self.writeback_shown()).to_vec();
        space.resize(256, 0);
        let end = (asked.offset as usize).saturating_add(asked.data.len());
        match space.get(asked.offset as usize..end) {
            Some(data) if !data.is_empty() => {
                Ok(ConfigPayload { data: Bytes::copy_from_slice(data), ..asked })
            }
            _ => Err(FrontendFault::Config {
                message: "GET_CONFIG",
                offset: asked.offset,
                len: asked.data.len() as u32,
                expected: "1 to 256 bytes inside the first 256",
            }),
        }
    }
}
