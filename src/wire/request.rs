//! Front-end requests: what they are called, and how they are read.

use super::codes::{self, frontend::*};
use super::decode::{Direction, Sealed};
use super::handles::{one_handle, optional_handle, wrong_count};
use super::payload::{read_table, read_u64, read_uuid, read_vring_file};
use super::{
    ConfigPayload, Dialect, FrontendRequest, HandleCount, InflightDescription, Iotlb, LogBase,
    LogDescription, MemRegion, PayloadSize, TransferState, VringAddr, VringFile, VringState,
    WireError,
};
use bytes::Bytes;

/// From the front-end to the back-end, on the main socket.
#[derive(Clone, Copy, Debug)]
pub struct FrontendRequests;

impl<H> FrontendRequest<H> {
    /// The code in [`codes`], which is the one on the wire unless it is contested.
    pub(super) fn own_code(&self) -> u32 {
        match self {
            Self::GetFeatures => GET_FEATURES,
            Self::SetFeatures(_) => SET_FEATURES,
            Self::SetOwner => SET_OWNER,
            Self::ResetOwner => RESET_OWNER,
            Self::SetMemTable(_) | Self::MemTableAck => SET_MEM_TABLE,
            Self::SetLogBase(_) => SET_LOG_BASE,
            Self::SetLogFd(_) => SET_LOG_FD,
            Self::SetVringNum(_) => SET_VRING_NUM,
            Self::SetVringAddr(_) => SET_VRING_ADDR,
            Self::SetVringBase(_) => SET_VRING_BASE,
            Self::GetVringBase(_) => GET_VRING_BASE,
            Self::SetVringKick(_) => SET_VRING_KICK,
            Self::SetVringCall(_) => SET_VRING_CALL,
            Self::SetVringErr(_) => SET_VRING_ERR,
            Self::GetProtocolFeatures => GET_PROTOCOL_FEATURES,
            Self::SetProtocolFeatures(_) => SET_PROTOCOL_FEATURES,
            Self::GetQueueNum => GET_QUEUE_NUM,
            Self::SetVringEnable(_) => SET_VRING_ENABLE,
            Self::SendRarp(_) => SEND_RARP,
            Self::NetSetMtu(_) => NET_SET_MTU,
            Self::SetBackendReqFd(_) => SET_BACKEND_REQ_FD,
            Self::IotlbMsg(_) => IOTLB_MSG,
            Self::SetVringEndian(_) => SET_VRING_ENDIAN,
            Self::GetConfig(_) => GET_CONFIG,
            Self::SetConfig(_) => SET_CONFIG,
            Self::CreateCryptoSession(_) => CREATE_CRYPTO_SESSION,
            Self::CloseCryptoSession(_) => CLOSE_CRYPTO_SESSION,
            Self::PostcopyAdvise => POSTCOPY_ADVISE,
            Self::PostcopyListen => POSTCOPY_LISTEN,
            Self::PostcopyEnd => POSTCOPY_END,
            Self::GetInflightFd(_) => GET_INFLIGHT_FD,
            Self::SetInflightFd(..) => SET_INFLIGHT_FD,
            Self::GpuSetSocket(_) => GPU_SET_SOCKET,
            Self::ResetDevice => RESET_DEVICE,
            Self::VringKick(_) => VRING_KICK,
            Self::GetMaxMemSlots => GET_MAX_MEM_SLOTS,
            Self::AddMemReg(..) | Self::MemRegAck => ADD_MEM_REG,
            Self::RemMemReg(..) => REM_MEM_REG,
            Self::SetStatus(_) => SET_STATUS,
            Self::GetStatus => GET_STATUS,
            Self::GetSharedObject(_) => GET_SHARED_OBJECT,
            Self::SetDeviceStateFd(..) => SET_DEVICE_STATE_FD,
            Self::CheckDeviceState => CHECK_DEVICE_STATE,
            Self::GetShmemConfig => GET_SHMEM_CONFIG,
            Self::GetVringBaseSkipDrain(_) => GET_VRING_BASE_SKIP_DRAIN,
        }
    }

    /// The code on the wire; `None` if the dialect has no such message. A
    /// message decoded in a dialect always has one.
    pub fn code(&self, dialect: &Dialect) -> Option<u32> {
        dialect.wire_code(self.own_code())
    }

    /// The document's name, without VHOST_USER_: "SET_VRING_KICK".
    pub fn name(&self) -> &'static str {
        codes::frontend_row(self.own_code()).map_or("", |row| row.name)
    }

    /// Whether the request has an answer of its own. The sender then gets that
    /// one, whether or not it set NEED_REPLY, and never a status beside it.
    // spec: vhost-user, "VHOST_USER_PROTOCOL_F_REPLY_ACK"
    pub fn has_reply(&self) -> bool {
        match self {
            Self::SetLogBase(base) => matches!(base, LogBase::Shared(..)),
            _ => codes::frontend_row(self.own_code()).is_some_and(|row| row.reply),
        }
    }
}

impl Sealed for FrontendRequests {}

impl<H> Direction<H> for FrontendRequests {
    type Message = FrontendRequest<H>;
    const REPLIES: bool = false;

    fn admit(code: u32, size: u32, dialect: Dialect) -> Result<&'static str, WireError> {
        let row = codes::known_frontend_row(code, dialect)?;
        admit_size(row.name, row.size, size)
    }

    fn parse(
        code: u32,
        b: &[u8],
        handles: &mut Vec<H>,
        dialect: Dialect,
    ) -> Result<Self::Message, WireError> {
        use FrontendRequest as R;
        let row = codes::known_frontend_row(code, dialect)?;
        let name = row.name;
        Ok(match row.code {
            GET_FEATURES => R::GetFeatures,
            SET_FEATURES => R::SetFeatures(read_u64(b)),
            SET_OWNER => R::SetOwner,
            RESET_OWNER => R::ResetOwner,
            SET_MEM_TABLE if is_ack(b) => R::MemTableAck,
            SET_MEM_TABLE => R::SetMemTable(mem_table(name, b, handles)?),
            SET_LOG_BASE => R::SetLogBase(log_base(name, b, handles)?),
            SET_LOG_FD => R::SetLogFd(one_handle(name, handles)?),
            SET_VRING_NUM => R::SetVringNum(VringState::read(b)),
            SET_VRING_ADDR => R::SetVringAddr(VringAddr::read(b)),
            SET_VRING_BASE => R::SetVringBase(VringState::read(b)),
            GET_VRING_BASE => get_vring_base(VringState::read(b), dialect),
            SET_VRING_KICK => R::SetVringKick(vring_file(name, b, handles)?),
            SET_VRING_CALL => R::SetVringCall(vring_file(name, b, handles)?),
            SET_VRING_ERR => R::SetVringErr(vring_file(name, b, handles)?),
            GET_PROTOCOL_FEATURES => R::GetProtocolFeatures,
            SET_PROTOCOL_FEATURES => R::SetProtocolFeatures(read_u64(b)),
            GET_QUEUE_NUM => R::GetQueueNum,
            SET_VRING_ENABLE => R::SetVringEnable(switch(name, b)?),
            SEND_RARP => R::SendRarp(read_u64(b)),
            NET_SET_MTU => R::NetSetMtu(read_u64(b)),
            SET_BACKEND_REQ_FD => R::SetBackendReqFd(one_handle(name, handles)?),
            IOTLB_MSG => R::IotlbMsg(iotlb(name, b)?),
            SET_VRING_ENDIAN => R::SetVringEndian(switch(name, b)?),
            GET_CONFIG => R::GetConfig(ConfigPayload::read(name, b)?),
            SET_CONFIG => R::SetConfig(ConfigPayload::read(name, b)?),
            CREATE_CRYPTO_SESSION => R::CreateCryptoSession(Bytes::copy_from_slice(b)),
            CLOSE_CRYPTO_SESSION => R::CloseCryptoSession(read_u64(b)),
            POSTCOPY_ADVISE => R::PostcopyAdvise,
            POSTCOPY_LISTEN => R::PostcopyListen,
            POSTCOPY_END => R::PostcopyEnd,
            GET_INFLIGHT_FD => R::GetInflightFd(InflightDescription::read(b)),
            SET_INFLIGHT_FD => {
                R::SetInflightFd(InflightDescription::read(b), one_handle(name, handles)?)
            }
            GPU_SET_SOCKET => R::GpuSetSocket(one_handle(name, handles)?),
            RESET_DEVICE => R::ResetDevice,
            VRING_KICK => R::VringKick(VringState::read(b)),
            GET_MAX_MEM_SLOTS => R::GetMaxMemSlots,
            ADD_MEM_REG if is_ack(b) => R::MemRegAck,
            ADD_MEM_REG => R::AddMemReg(mem_reg(name, b)?, one_handle(name, handles)?),
            REM_MEM_REG => R::RemMemReg(MemRegion::read(b), optional_handle(name, handles)?),
            SET_STATUS => R::SetStatus(read_u64(b)),
            GET_STATUS => R::GetStatus,
            GET_SHARED_OBJECT => R::GetSharedObject(read_uuid(b)),
            SET_DEVICE_STATE_FD => {
                R::SetDeviceStateFd(transfer_state(name, b)?, one_handle(name, handles)?)
            }
            CHECK_DEVICE_STATE => R::CheckDeviceState,
            GET_SHMEM_CONFIG => R::GetShmemConfig,
            GET_VRING_BASE_SKIP_DRAIN => R::GetVringBaseSkipDrain(VringState::read(b)),
            _ => return Err(WireError::UnknownRequest { code }),
        })
    }
}

pub(super) fn admit_size(
    message: &'static str,
    expected: PayloadSize,
    got: u32,
) -> Result<&'static str, WireError> {
    if expected.fits(got) {
        return Ok(message);
    }
    Err(WireError::Size { message, expected, got })
}

/// The document has an empty message acknowledge memory in postcopy; QEMU sends
/// a status, which is always 0.
// spec: vhost-user, "VHOST_USER_SET_MEM_TABLE"
fn is_ack(b: &[u8]) -> bool {
    b.is_empty() || b == [0; 8]
}

fn mem_reg(message: &'static str, b: &[u8]) -> Result<MemRegion, WireError> {
    if b.len() < 40 {
        let (expected, got) = (PayloadSize::Exactly(40), b.len() as u32);
        return Err(WireError::Size { message, expected, got });
    }
    Ok(MemRegion::read(b))
}

fn mem_table<H>(
    message: &'static str,
    b: &[u8],
    handles: &mut Vec<H>,
) -> Result<Vec<(MemRegion, H)>, WireError> {
    let regions = read_table(message, b)?;
    if handles.len() != regions.len() {
        let expected = HandleCount::Exactly(regions.len() as u32);
        return Err(wrong_count(message, expected, handles.len()));
    }
    Ok(regions.into_iter().zip(handles.drain(..)).collect())
}

/// The two forms of SET_LOG_BASE tell themselves apart by their length. A log
/// without a descriptor can't be mapped, so the long form needs one.
fn log_base<H>(
    message: &'static str,
    b: &[u8],
    handles: &mut Vec<H>,
) -> Result<LogBase<H>, WireError> {
    if b.len() == 8 {
        return Ok(LogBase::Address(read_u64(b)));
    }
    let description = LogDescription::read(b);
    Ok(LogBase::Shared(description, one_handle(message, handles)?))
}

fn vring_file<H>(
    message: &'static str,
    b: &[u8],
    handles: &mut Vec<H>,
) -> Result<VringFile<H>, WireError> {
    let (index, nofd) = read_vring_file(b).map_err(|fault| fault.received_in(message))?;
    let handle = match nofd {
        true => None,
        false => Some(one_handle(message, handles)?),
    };
    Ok(VringFile { index, handle })
}

fn get_vring_base<H>(state: VringState, dialect: Dialect) -> FrontendRequest<H> {
    if dialect.suspending_num() == Some(state.num) {
        let VringState { index, .. } = state;
        return FrontendRequest::GetVringBaseSkipDrain(VringState { index, num: 0 });
    }
    FrontendRequest::GetVringBase(state)
}

fn switch(message: &'static str, b: &[u8]) -> Result<VringState, WireError> {
    let state = VringState::read(b);
    let checked = state.check_switch();
    checked.map_err(|fault| fault.received_in(message))?;
    Ok(state)
}

pub(super) fn iotlb(message: &'static str, b: &[u8]) -> Result<Iotlb, WireError> {
    let iotlb = Iotlb::read(b);
    let checked = iotlb.check();
    checked.map_err(|fault| fault.received_in(message))?;
    Ok(iotlb)
}

fn transfer_state(message: &'static str, b: &[u8]) -> Result<TransferState, WireError> {
    let state = TransferState::read(b);
    let checked = state.check();
    checked.map_err(|fault| fault.received_in(message))?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: VringState = VringState { index: 1, num: 0 };

    #[test]
    fn request_code_of_skip_drain_depends_on_the_dialect() {
        let request: FrontendRequest<u32> = FrontendRequest::GetVringBaseSkipDrain(STATE);
        let codes = Dialect::ALL.map(|dialect| request.code(&dialect));
        assert_eq!(codes, [None, Some(45), Some(44), Some(11)]);
        let request: FrontendRequest<u32> = FrontendRequest::GetShmemConfig;
        let codes = Dialect::ALL.map(|dialect| request.code(&dialect));
        assert_eq!(codes, [Some(44), Some(44), None, None]);
    }

    #[test]
    fn request_log_base_has_a_reply_of_its_own_only_with_a_descriptor() {
        let log = LogDescription { size: 1, offset: 0 };
        let shared = FrontendRequest::SetLogBase(LogBase::Shared(log, 3));
        assert!(shared.has_reply());
        let address: FrontendRequest<u32> = FrontendRequest::SetLogBase(LogBase::Address(1));
        assert!(!address.has_reply());
    }

    #[test]
    fn request_replies_are_those_of_the_document() {
        let replying: Vec<_> =
            codes::frontend::TABLE.iter().filter(|row| row.reply).map(|row| row.code).collect();
        let expected = [1, 6, 11, 15, 17, 22, 24, 26, 28, 30, 31, 36, 40, 41, 42, 43, 44, 45];
        assert_eq!(replying, expected);
    }

    #[test]
    fn request_get_vring_base_with_num_1_suspends_in_one_dialect_only() {
        let state = VringState { index: 1, num: 1 };
        for dialect in Dialect::ALL {
            let plain: FrontendRequest<u32> = get_vring_base(state, dialect);
            let expected = if dialect == Dialect::NUM_1 {
                FrontendRequest::GetVringBaseSkipDrain(STATE)
            } else {
                FrontendRequest::GetVringBase(state)
            };
            assert_eq!(plain, expected);
            let plain: FrontendRequest<u32> = get_vring_base(STATE, dialect);
            assert_eq!(plain, FrontendRequest::GetVringBase(STATE));
        }
    }
}
