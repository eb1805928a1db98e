//! Answers to front-end requests: how they are read.

use super::codes::{self, CONFIG_HEAD, MAX_CONFIG, frontend::*};
use super::decode::{Direction, Sealed};
use super::handles::{one_handle, optional_handle};
use super::payload::{NOFD, read_table, read_u64};
use super::request::admit_size;
use super::{
    ConfigPayload, Dialect, FrontendReply, FrontendReplyBody, InflightDescription, MAX_PAYLOAD,
    MemRegion, PayloadSize, ShmemConfig, VringState, WireError,
};
use bytes::Bytes;

/// From the back-end to the front-end, on the main socket.
#[derive(Clone, Copy, Debug)]
pub struct FrontendReplies;

/// Bytes of the answer to a request.
///
/// Whatever is not named has no answer of its own and gets a status under
/// REPLY_ACK.
fn reply_size(code: u32) -> PayloadSize {
    use PayloadSize::*;
    match code {
        SET_MEM_TABLE => StatusOrRegions,
        // Front-ends ignore what it says; back-ends of both kinds exist.
        SET_LOG_BASE => OneOf(&[0, 8]),
        // No payload says that it failed. So does, in some back-ends, a
        // payload without content.
        GET_CONFIG => NothingOrBetween(CONFIG_HEAD, CONFIG_HEAD + MAX_CONFIG),
        CREATE_CRYPTO_SESSION => Between(0, MAX_PAYLOAD as u32),
        POSTCOPY_ADVISE => Exactly(0),
        GET_INFLIGHT_FD => Exactly(24),
        ADD_MEM_REG => OneOf(&[8, 40]),
        // Only the descriptor matters; some back-ends send the request's
        // payload back with it.
        GET_SHARED_OBJECT => OneOf(&[0, 16]),
        GET_SHMEM_CONFIG => Exactly(2056),
        _ => Exactly(8),
    }
}

impl Sealed for FrontendReplies {}

impl<H> Direction<H> for FrontendReplies {
    type Message = FrontendReply<H>;
    const REPLIES: bool = true;

    fn admit(code: u32, size: u32, dialect: Dialect) -> Result<&'static str, WireError> {
        let row = codes::known_frontend_row(code, dialect)?;
        admit_size(row.name, reply_size(row.code), size)
    }

    fn parse(
        code: u32,
        b: &[u8],
        handles: &mut Vec<H>,
        dialect: Dialect,
    ) -> Result<Self::Message, WireError> {
        use FrontendReplyBody as B;
        let row = codes::known_frontend_row(code, dialect)?;
        let name = row.name;
        let body = match row.code {
            GET_VRING_BASE | GET_VRING_BASE_SKIP_DRAIN => B::VringState(VringState::read(b)),
            SET_MEM_TABLE if b.len() > 8 => B::MemTable(read_table(name, b)?),
            SET_LOG_BASE if b.is_empty() => B::Empty,
            GET_CONFIG => B::Config(config(name, b)?),
            CREATE_CRYPTO_SESSION => B::CryptoSession(Bytes::copy_from_slice(b)),
            POSTCOPY_ADVISE => B::Handle(one_handle(name, handles)?),
            GET_INFLIGHT_FD => inflight(name, b, handles)?,
            ADD_MEM_REG if b.len() > 8 => B::MemRegion(MemRegion::read(b)),
            GET_SHARED_OBJECT => B::SharedObject(optional_handle(name, handles)?),
            SET_DEVICE_STATE_FD => device_state(name, b, handles)?,
            GET_SHMEM_CONFIG => B::ShmemConfig(shmem_config(name, b)?),
            _ => B::U64(read_u64(b)),
        };
        Ok(FrontendReply { code, body })
    }
}

fn config(message: &'static str, b: &[u8]) -> Result<ConfigPayload, WireError> {
    let config = if b.is_empty() { None } else { Some(ConfigPayload::read(message, b)?) };
    // A failure has one form, however it came.
    Ok(config.filter(|config| !config.data.is_empty()).unwrap_or(ConfigPayload {
        offset: 0,
        flags: 0,
        data: Bytes::new(),
    }))
}

/// A region comes with a descriptor. A back-end that has none says so with a
/// size of 0, and front-ends then go on without.
fn inflight<H>(
    message: &'static str,
    b: &[u8],
    handles: &mut Vec<H>,
) -> Result<FrontendReplyBody<H>, WireError> {
    let description = InflightDescription::read(b);
    if description.mmap_size == 0 && handles.is_empty() {
        return Ok(FrontendReplyBody::NoInflight);
    }
    let handle = one_handle(message, handles)?;
    Ok(FrontendReplyBody::Inflight(description, handle))
}

/// Bits 0 to 7 are an error, bit 8 says that no descriptor comes along. Beside
/// an error none is missed, whatever bit 8 says.
// spec: vhost-user, "VHOST_USER_SET_DEVICE_STATE_FD"
fn device_state<H>(
    message: &'static str,
    b: &[u8],
    handles: &mut Vec<H>,
) -> Result<FrontendReplyBody<H>, WireError> {
    let word = read_u64(b);
    if word > 0x1ff {
        return Err(WireError::Field {
            message,
            field: "status",
            expected: "an error of 0 to 255 and perhaps bit 8",
            got: word,
        });
    }
    let error = (word & 0xff) as u8;
    let handle = match (word & NOFD != 0, error) {
        (true, _) => None,
        (false, 0) => Some(one_handle(message, handles)?),
        (false, _) => optional_handle(message, handles)?,
    };
    Ok(FrontendReplyBody::DeviceState(error, handle))
}

fn shmem_config(message: &'static str, b: &[u8]) -> Result<ShmemConfig, WireError> {
    let config = ShmemConfig::read(b);
    let checked = config.check();
    checked.map_err(|fault| fault.received_in(message))?;
    Ok(config)
}
