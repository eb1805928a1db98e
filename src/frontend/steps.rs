//! The sequences of messages, in the order that QEMU has them in.
//!
//! Peers have learnt to live with that order and with no other: some look for
//! vrings that SET_VRING_CALL has made when an inflight region arrives.

use super::base::{self, KeptBase};
use super::config::{FrontendConfig, Start, VringStart};
use super::logging::used_guest_addr;
use super::postcopy;
use super::session::{Device, Session};
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::wire::features::{protocol, virtio};
use crate::wire::{
    ConfigPayload, FrontendRequest, InflightDescription, LogBase, MemRegion, VringAddr, VringFile,
    VringState,
};
use bytes::Bytes;

type Request = FrontendRequest<Handle>;

// spec: virtio 1.2, "Device Status Field"
pub(super) const STATUS_FEATURES_OK: u64 = 8;
const STATUS_ACKNOWLEDGE_DRIVER_OK: u64 = 1 | 2 | 4;

/// Something to do once everything before it is done.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Send a message and, if it has an answer, wait for it.
    Ask { request: Request, need_reply: bool, purpose: Purpose },
    /// Tell the back-end how memory differs from what it was told, at that time:
    /// what is still waiting to be sent counts.
    SyncMemory,
    /// Nothing is left to do of a sequence.
    Reached(Milestone),
}

/// What the answer to a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing but that it came, and a status of 0 if it is one.
    Order,
    Features,
    FeaturesAgain,
    ProtocolFeatures,
    QueueNum,
    MemSlots,
    Inflight,
    Base(u16),
    /// Part of turning the log on.
    Log,
    /// A userfaultfd.
    Faults,
    /// Memory in postcopy: what its page faults will name.
    Bases,
    /// The status to which these bits are to be added.
    Status(u64),
    Config(ConfigFor),
    WriteConfig,
    /// Of the IOMMU; because the back-end has asked, or not.
    Translation {
        asked: bool,
    },
    Invalidation {
        iova: u64,
        size: u64,
    },
    /// A channel for the device's state.
    StateChannel,
    /// What became of the transfer.
    StateCheck,
    Raw,
}

/// Who wants to read the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfigFor {
    Negotiation,
    Owner,
    /// The back-end's notice of a change; the answer to it follows.
    Change,
}

/// The end of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Milestone {
    Negotiated,
    Started,
    Stopped,
    Logging,
    NotLogging,
    PostcopyMapped,
    PostcopyEnded,
    ResetDone,
    ConfigWritten,
    /// Tell the back-end on its channel that its notice was taken.
    ChangeSeen,
}

pub(super) fn ask(request: Request, purpose: Purpose) -> Step {
    Step::Ask { request, need_reply: false, purpose }
}

pub(super) fn tell(request: Request) -> Step {
    ask(request, Purpose::Order)
}

/// A message whose success matters: with NEED_REPLY if there is REPLY_ACK.
fn insist(session: &Session, request: Request) -> Step {
    Step::Ask { request, need_reply: session.has(protocol::REPLY_ACK), purpose: Purpose::Order }
}

/// A message of the owner's, whose answer is his too.
pub(super) fn raw(request: Request, need_reply: bool) -> Step {
    Step::Ask { request, need_reply, purpose: Purpose::Raw }
}

pub(super) fn get_config(offset: u32, size: u16, who: ConfigFor) -> Step {
    let payload = ConfigPayload { offset, flags: 0, data: Bytes::from(vec![0; usize::from(size)]) };
    ask(Request::GetConfig(payload), Purpose::Config(who))
}

pub(super) fn set_config(session: &Session, payload: ConfigPayload) -> Step {
    Step::Ask {
        request: Request::SetConfig(payload),
        need_reply: session.has(protocol::REPLY_ACK),
        purpose: Purpose::WriteConfig,
    }
}

/// What follows the protocol features in a negotiation.
// spec: vhost-user, "Communication"
pub(super) fn negotiate(
    config: &FrontendConfig,
    device: &Device,
    session: &Session,
    channel: Option<Handle>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if session.has(protocol::MQ) {
        steps.push(ask(Request::GetQueueNum, Purpose::QueueNum));
    }
    if session.has(protocol::CONFIGURE_MEM_SLOTS) {
        steps.push(ask(Request::GetMaxMemSlots, Purpose::MemSlots));
    }
    if session.has(protocol::BACKEND_REQ)
        && let Some(handle) = channel
    {
        steps.push(insist(session, Request::SetBackendReqFd(handle)));
    }
    steps.push(tell(Request::SetOwner));
    steps.push(ask(Request::GetFeatures, Purpose::FeaturesAgain));
    for (index, wiring) in (0u8..=255).zip(&device.wiring) {
        steps.extend(notify(session, Request::SetVringCall, index, wiring.call));
        steps.extend(notify(session, Request::SetVringErr, index, wiring.err));
    }
    if config.config_len > 0 && !device.seen {
        steps.push(get_config(0, config.config_len, ConfigFor::Negotiation));
    }
    steps.push(Step::Reached(Milestone::Negotiated));
    steps
}

pub(super) fn start(
    config: &FrontendConfig,
    device: &Device,
    session: &Session,
    start: &Start,
) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(set_features(device, session));
    if session.has(protocol::STATUS) {
        steps.push(add_status(STATUS_FEATURES_OK));
    }
    // The back-end must know whether rings are split or packed by now.
    if session.has(protocol::INFLIGHT_SHMFD) {
        steps.push(match device.inflight.filter(|_| !bugs::on(Bug::RegionNotKept)) {
            Some((description, handle)) => set_inflight(description, handle),
            None => ask(
                Request::GetInflightFd(InflightDescription {
                    mmap_size: 0,
                    mmap_offset: 0,
                    num_queues: config.num_queues,
                    queue_size: config.queue_size,
                }),
                Purpose::Inflight,
            ),
        });
    }
    for (index, wiring) in (0u8..=255).zip(&device.wiring) {
        let vring = start.vrings.iter().find(|v| v.index == u16::from(index));
        let handle = vring.map_or(wiring.call, |v| v.call);
        steps.extend(notify(session, Request::SetVringCall, index, handle));
    }
    steps.extend(set_features(device, session));
    if session.has(protocol::STATUS) {
        steps.push(add_status(STATUS_FEATURES_OK));
    }
    steps.push(Step::SyncMemory);
    for vring in &start.vrings {
        let index = u32::from(vring.index);
        let state = |num: u32| VringState { index, num };
        let packed = device.packed();
        let kept = device.bases[usize::from(vring.index)];
        let kept = if bugs::on(Bug::BaseNotKept) { KeptBase::Fresh } else { kept };
        // That there is one was checked before.
        let base = kept.said(vring.base, packed).unwrap_or(base::fresh(packed));
        let halved = bugs::on_when(Bug::PackedBaseHalved, || base > 0xffff);
        let base = if halved { base & 0xffff } else { base };
        steps.push(tell(Request::SetVringNum(state(u32::from(vring.size)))));
        steps.push(tell(Request::SetVringBase(state(base))));
        steps.extend(set_addr(config, device, session, vring));
        let kick = notify(session, Request::SetVringKick, vring.index as u8, vring.kick);
        steps.push(kick.unwrap_or_else(|| kick_by_message(session, vring.index)));
    }
    if let Some((log, handle)) = device.log {
        // The vrings do not run before they are enabled.
        steps.push(tell(Request::SetLogBase(LogBase::Shared(log, handle))));
    }
    steps.extend(enable(config, session, true));
    if session.has(protocol::STATUS) {
        steps.push(add_status(STATUS_ACKNOWLEDGE_DRIVER_OK));
    }
    steps.push(Step::Reached(Milestone::Started));
    steps
}

/// A descriptor, or that there is none. Without one nothing is said where
/// messages are to do its work: NOFD would mean that nobody wants them.
// spec: vhost-user, VHOST_USER_SET_VRING_CALL and "In-band notifications"
fn notify(
    session: &Session,
    message: fn(VringFile<Handle>) -> Request,
    index: u8,
    handle: Option<Handle>,
) -> Option<Step> {
    let inband = session.has(protocol::INBAND_NOTIFICATIONS);
    let needed = handle.is_some() || !inband;
    needed.then(|| insist(session, message(VringFile { index, handle })))
}

/// VRING_KICK, which starts a vring as well.
pub(super) fn kick_by_message(session: &Session, vring: u16) -> Step {
    insist(session, Request::VringKick(VringState { index: u32::from(vring), num: 0 }))
}

/// Features of the guest, and those that are between front-end and back-end.
/// When writes are to be logged the back-end must have agreed before anything
/// else happens.
pub(super) fn set_features(device: &Device, session: &Session) -> Vec<Step> {
    let log = if device.log.is_some() { virtio::LOG_ALL } else { 0 };
    let ours = session.offered & (virtio::PROTOCOL_FEATURES | log);
    let request = Request::SetFeatures(device.features.unwrap_or(0) | ours);
    if device.log.is_some() { insist_firmly(session, request) } else { vec![tell(request)] }
}

/// Where a vring is, and whether writes to its used ring are logged.
pub(super) fn set_addr(
    config: &FrontendConfig,
    device: &Device,
    session: &Session,
    vring: &VringStart,
) -> Vec<Step> {
    let logs = device.log.is_some();
    let log = || used_guest_addr(&config.dialect, device, session, (vring.index, vring.used));
    let request = Request::SetVringAddr(VringAddr {
        index: u32::from(vring.index),
        flags: u32::from(logs && !bugs::on(Bug::LogFlagForgotten)),
        desc: vring.desc,
        used: vring.used,
        avail: vring.avail,
        // Found when the log was turned on or the start was checked.
        log: if logs { log().unwrap_or(0) } else { 0 },
    });
    if logs { insist_firmly(session, request) } else { vec![tell(request)] }
}

/// A message that nothing may follow before it was processed.
fn insist_firmly(session: &Session, request: Request) -> Vec<Step> {
    let mut steps = vec![insist(session, request)];
    if !session.has(protocol::REPLY_ACK) {
        steps.push(tell(Request::GetFeatures));
    }
    steps
}

/// Stop what runs; the milestone is up to the caller.
pub(super) fn stop(
    config: &FrontendConfig,
    device: &Device,
    session: &Session,
    ask_to_suspend: bool,
) -> Vec<Step> {
    let mut steps = enable(config, session, false);
    for vring in &device.started {
        let state = VringState { index: u32::from(vring.index), num: 0 };
        let request = match ask_to_suspend {
            true => Request::GetVringBaseSkipDrain(state),
            false => Request::GetVringBase(state),
        };
        steps.push(ask(request, Purpose::Base(vring.index)));
    }
    if session.has(protocol::STATUS) {
        steps.push(tell(Request::SetStatus(0)));
    }
    steps
}

pub(super) fn reset(session: &Session) -> Vec<Step> {
    let mut steps = Vec::new();
    if session.has(protocol::RESET_DEVICE) {
        steps.push(tell(Request::ResetDevice));
    }
    steps.push(Step::Reached(Milestone::ResetDone));
    steps
}

/// Make the back-end's memory that of the device: by differences where it has
/// slots, otherwise by the whole table.
// spec: vhost-user, "VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS"
pub(super) fn sync_memory(device: &Device, session: &Session) -> Vec<Step> {
    postcopy::sync_memory(device, session, plain_sync(device, session))
}

fn plain_sync(device: &Device, session: &Session) -> Vec<Step> {
    let wanted = &device.memory;
    if !session.has(protocol::CONFIGURE_MEM_SLOTS) {
        return vec![insist(session, Request::SetMemTable(wanted.clone()))];
    }
    let missing_in = |other: &[(MemRegion, Handle)], one: &(MemRegion, Handle)| {
        !other.iter().any(|region| region == one)
    };
    let removed = session
        .memory
        .iter()
        .filter(|region| missing_in(wanted, region))
        .map(|(region, _)| insist(session, Request::RemMemReg(*region, None)));
    let added = wanted
        .iter()
        .filter(|region| missing_in(&session.memory, region))
        .map(|(region, handle)| insist(session, Request::AddMemReg(*region, *handle)));
    removed.chain(added).collect()
}

pub(super) fn set_inflight(description: InflightDescription, handle: Handle) -> Step {
    tell(Request::SetInflightFd(description, handle))
}

pub(super) fn add_status(bits: u64) -> Step {
    ask(Request::GetStatus, Purpose::Status(bits))
}

/// Enable or disable every vring. Without bit 30 there is no such message and
/// vrings are enabled as they are.
// spec: vhost-user, "Ring states"
fn enable(config: &FrontendConfig, session: &Session, on: bool) -> Vec<Step> {
    if !session.has_protocol_features() {
        return Vec::new();
    }
    let mut steps: Vec<Step> = (0..config.num_queues)
        .map(|vring| {
            let state = VringState { index: u32::from(vring), num: u32::from(on) };
            insist(session, Request::SetVringEnable(state))
        })
        .collect();
    if !session.has(protocol::REPLY_ACK) {
        // Any answer shows that the messages before it were processed.
        steps.push(tell(Request::GetFeatures));
    }
    steps
}
