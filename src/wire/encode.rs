//! From messages to bytes and handles.
//!
//! One message is one run of bytes. The handles go with its first byte: both
//! must reach the socket in one write.
// spec: vhost-user, "Communication"

use super::error::FieldFault;
use super::header::{HEADER_LEN, Header, REPLY_FLAGS, request_flags};
use super::payload::{NOFD, check_regions, write_table};
use super::{
    BackendReply, BackendRequest, Dialect, EncodeError, Envelope, FrontendReply, FrontendReplyBody,
    FrontendRequest, InflightDescription, LogBase, MAX_PAYLOAD, VringFile, VringState,
};
use bytes::{BufMut, Bytes, BytesMut};

/// Write a front-end request.
///
/// Fails if the dialect does not have the message, or if a field has a value
/// that the decoder of the other end would refuse.
pub fn encode_request<H: Copy>(
    envelope: &Envelope<FrontendRequest<H>>,
    dialect: &Dialect,
) -> Result<(Bytes, Vec<H>), EncodeError> {
    let Envelope { message: request, need_reply } = envelope;
    let message = request.name();
    let code = request
        .code(dialect)
        .ok_or(EncodeError::NotInDialect { message, dialect: dialect.name() })?;
    check(request, *dialect).map_err(|fault| fault.sent_in(message))?;
    let mut handles = Vec::new();
    let bytes = frame(code, request_flags(*need_reply), |out| {
        write_request(request, *dialect, out, &mut handles);
    });
    Ok((bytes, handles))
}

fn check<H>(request: &FrontendRequest<H>, dialect: Dialect) -> Result<(), FieldFault> {
    use FrontendRequest as R;
    match request {
        R::SetMemTable(regions) => check_regions(regions.len() as u64),
        R::SetVringEnable(state) | R::SetVringEndian(state) => state.check_switch(),
        R::IotlbMsg(iotlb) => iotlb.check(),
        R::GetConfig(config) | R::SetConfig(config) => config.check_size(),
        R::SetDeviceStateFd(state, _) => state.check(),
        R::CreateCryptoSession(session) if session.len() > MAX_PAYLOAD => {
            Err(FieldFault { field: "size", expected: "at most 4096", got: session.len() as u64 })
        }
        R::GetVringBase(state) if dialect.suspending_num() == Some(state.num) => Err(FieldFault {
            field: "num",
            expected: "a value that does not mean to suspend",
            got: state.num.into(),
        }),
        R::GetVringBaseSkipDrain(state) if dialect.suspending_num().is_some() && state.num != 0 => {
            Err(FieldFault {
                field: "num",
                expected: "0, which the dialect replaces",
                got: state.num.into(),
            })
        }
        _ => Ok(()),
    }
}

fn write_request<H: Copy>(
    request: &FrontendRequest<H>,
    dialect: Dialect,
    out: &mut BytesMut,
    handles: &mut Vec<H>,
) {
    use FrontendRequest as R;
    match request {
        R::GetFeatures
        | R::SetOwner
        | R::ResetOwner
        | R::GetProtocolFeatures
        | R::GetQueueNum
        | R::PostcopyAdvise
        | R::PostcopyListen
        | R::PostcopyEnd
        | R::ResetDevice
        | R::GetMaxMemSlots
        | R::GetStatus
        | R::CheckDeviceState
        | R::GetShmemConfig => {}
        // An empty message by the document. Peers insist on the eight bytes.
        R::MemTableAck | R::MemRegAck => out.put_u64_ne(0),
        R::SetFeatures(word)
        | R::SetProtocolFeatures(word)
        | R::SendRarp(word)
        | R::NetSetMtu(word)
        | R::CloseCryptoSession(word)
        | R::SetStatus(word) => out.put_u64_ne(*word),
        R::SetMemTable(regions) => {
            write_table(regions.iter().map(|(region, _)| *region), out);
            handles.extend(regions.iter().map(|(_, handle)| *handle));
        }
        R::SetLogBase(LogBase::Shared(log, handle)) => {
            log.write(out);
            handles.push(*handle);
        }
        R::SetLogBase(LogBase::Address(address)) => out.put_u64_ne(*address),
        R::SetLogFd(handle) | R::SetBackendReqFd(handle) | R::GpuSetSocket(handle) => {
            handles.push(*handle);
        }
        R::SetVringNum(state)
        | R::SetVringBase(state)
        | R::GetVringBase(state)
        | R::SetVringEnable(state)
        | R::SetVringEndian(state)
        | R::VringKick(state) => state.write(out),
        R::GetVringBaseSkipDrain(VringState { index, num }) => {
            VringState { index: *index, num: dialect.suspending_num().unwrap_or(*num) }.write(out)
        }
        R::SetVringAddr(addr) => addr.write(out),
        R::SetVringKick(file) | R::SetVringCall(file) | R::SetVringErr(file) => {
            write_vring_file(file, out, handles);
        }
        R::IotlbMsg(iotlb) => iotlb.write(out),
        R::GetConfig(config) | R::SetConfig(config) => config.write(out),
        R::CreateCryptoSession(session) => out.put_slice(session),
        R::GetInflightFd(description) => description.write(out),
        R::SetInflightFd(description, handle) => {
            description.write(out);
            handles.push(*handle);
        }
        R::AddMemReg(region, handle) => {
            region.write(out);
            handles.push(*handle);
        }
        R::RemMemReg(region, handle) => {
            region.write(out);
            handles.extend(*handle);
        }
        R::GetSharedObject(uuid) => out.put_slice(uuid),
        R::SetDeviceStateFd(state, handle) => {
            state.write(out);
            handles.push(*handle);
        }
    }
}

fn write_vring_file<H: Copy>(file: &VringFile<H>, out: &mut BytesMut, handles: &mut Vec<H>) {
    let nofd = if file.handle.is_none() { NOFD } else { 0 };
    out.put_u64_ne(u64::from(file.index) | nofd);
    handles.extend(file.handle);
}

/// Write an answer to a front-end request.
///
/// The body has to be one that the request in `code` can have; a memory table
/// has 1 to 8 regions and a config payload at most 256 bytes.
pub fn encode_reply<H: Copy>(reply: &FrontendReply<H>) -> (Bytes, Vec<H>) {
    use FrontendReplyBody as B;
    let mut handles = Vec::new();
    let bytes = frame(reply.code, REPLY_FLAGS, |out| match &reply.body {
        B::U64(word) => out.put_u64_ne(*word),
        B::VringState(state) => state.write(out),
        // Failure is told by a payload of no bytes at all.
        B::Config(config) if config.data.is_empty() => {}
        B::Config(config) => {
            debug_assert!(config.check_size().is_ok(), "config payload too long");
            config.write(out);
        }
        B::Inflight(description, handle) => {
            description.write(out);
            handles.push(*handle);
        }
        B::NoInflight => {
            InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues: 0, queue_size: 0 }
                .write(out)
        }
        B::MemTable(regions) => {
            debug_assert!(check_regions(regions.len() as u64).is_ok());
            write_table(regions.iter().copied(), out);
        }
        B::MemRegion(region) => region.write(out),
        B::Handle(handle) => handles.push(*handle),
        B::SharedObject(handle) => handles.extend(*handle),
        B::DeviceState(error, handle) => {
            let nofd = if handle.is_none() { NOFD } else { 0 };
            out.put_u64_ne(u64::from(*error) | nofd);
            handles.extend(*handle);
        }
        B::ShmemConfig(config) => config.write(out),
        B::CryptoSession(session) => out.put_slice(session),
        B::Empty => {}
    });
    (bytes, handles)
}

/// Write a request of the back-end.
///
/// Bit 8 of a host notifier's vring index says whether a descriptor comes
/// along; it is set here to what is true.
pub fn encode_backend_request<H: Copy>(envelope: &Envelope<BackendRequest<H>>) -> (Bytes, Vec<H>) {
    use BackendRequest as R;
    let mut handles = Vec::new();
    let request = &envelope.message;
    let flags = request_flags(envelope.need_reply);
    let bytes = frame(request.code(), flags, |out| match request {
        R::ConfigChangeMsg => {}
        R::IotlbMsg(iotlb) => iotlb.write(out),
        R::VringHostNotifierMsg(area, handle) => {
            let mut area = *area;
            area.index &= !NOFD;
            if handle.is_none() {
                area.index |= NOFD;
            }
            area.write(out);
            handles.extend(*handle);
        }
        R::VringCall(state) | R::VringErr(state) => state.write(out),
        R::SharedObjectAdd(uuid) | R::SharedObjectRemove(uuid) | R::SharedObjectLookup(uuid) => {
            out.put_slice(uuid);
        }
        R::ShmemMap(map, handle) => {
            map.write(out);
            handles.push(*handle);
        }
        R::ShmemUnmap(map) => map.write(out),
    });
    (bytes, handles)
}

/// Write the front-end's answer to a request of the back-end.
pub fn encode_backend_reply<H: Copy>(reply: &BackendReply<H>) -> (Bytes, Vec<H>) {
    let bytes = frame(reply.code, REPLY_FLAGS, |out| out.put_u64_ne(reply.status));
    (bytes, reply.handle.into_iter().collect())
}

fn frame(code: u32, flags: u32, payload: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::zeroed(HEADER_LEN);
    payload(&mut out);
    let size = (out.len() - HEADER_LEN) as u32;
    Header { code, flags, size }.put(&mut &mut out[..HEADER_LEN]);
    out.freeze()
}
