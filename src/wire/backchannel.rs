//! The back-end's requests and their answers: how they are read.

use super::codes::{self, backend::*};
use super::decode::{Direction, Sealed};
use super::handles::{one_handle, optional_handle};
use super::payload::{NOFD, read_u64, read_uuid};
use super::request::{admit_size, iotlb};
use super::{
    BackendReply, BackendRequest, Dialect, PayloadSize, ShmemMap, VringArea, VringState, WireError,
};

/// From the back-end to the front-end, on the socket of SET_BACKEND_REQ_FD.
#[derive(Clone, Copy, Debug)]
pub struct BackendRequests;

/// From the front-end to the back-end, on the socket of SET_BACKEND_REQ_FD.
#[derive(Clone, Copy, Debug)]
pub struct BackendReplies;

impl<H> BackendRequest<H> {
    /// The code on the wire.
    pub fn code(&self) -> u32 {
        match self {
            Self::IotlbMsg(_) => IOTLB_MSG,
            Self::ConfigChangeMsg => CONFIG_CHANGE_MSG,
            Self::VringHostNotifierMsg(..) => VRING_HOST_NOTIFIER_MSG,
            Self::VringCall(_) => VRING_CALL,
            Self::VringErr(_) => VRING_ERR,
            Self::SharedObjectAdd(_) => SHARED_OBJECT_ADD,
            Self::SharedObjectRemove(_) => SHARED_OBJECT_REMOVE,
            Self::SharedObjectLookup(_) => SHARED_OBJECT_LOOKUP,
            Self::ShmemMap(..) => SHMEM_MAP,
            Self::ShmemUnmap(_) => SHMEM_UNMAP,
        }
    }

    /// The document's name, without VHOST_USER_: "BACKEND_CONFIG_CHANGE_MSG".
    pub fn name(&self) -> &'static str {
        codes::backend_row(self.code()).map_or("", |row| row.name)
    }

    /// Whether the request has an answer of its own, so that NEED_REPLY changes
    /// nothing.
    pub fn has_reply(&self) -> bool {
        codes::backend_row(self.code()).is_some_and(|row| row.reply)
    }
}

impl Sealed for BackendRequests {}

impl<H> Direction<H> for BackendRequests {
    type Message = BackendRequest<H>;
    const REPLIES: bool = false;

    fn admit(code: u32, size: u32, _: Dialect) -> Result<&'static str, WireError> {
        let row = codes::known_backend_row(code)?;
        admit_size(row.name, row.size, size)
    }

    fn parse(
        code: u32,
        b: &[u8],
        handles: &mut Vec<H>,
        _: Dialect,
    ) -> Result<Self::Message, WireError> {
        use BackendRequest as R;
        let row = codes::known_backend_row(code)?;
        let name = row.name;
        Ok(match code {
            IOTLB_MSG => R::IotlbMsg(iotlb(name, b)?),
            CONFIG_CHANGE_MSG => R::ConfigChangeMsg,
            VRING_HOST_NOTIFIER_MSG => {
                let area = VringArea::read(b);
                let handle = match area.index & NOFD {
                    0 => Some(one_handle(name, handles)?),
                    _ => None,
                };
                R::VringHostNotifierMsg(area, handle)
            }
            VRING_CALL => R::VringCall(VringState::read(b)),
            VRING_ERR => R::VringErr(VringState::read(b)),
            SHARED_OBJECT_ADD => R::SharedObjectAdd(read_uuid(b)),
            SHARED_OBJECT_REMOVE => R::SharedObjectRemove(read_uuid(b)),
            SHARED_OBJECT_LOOKUP => R::SharedObjectLookup(read_uuid(b)),
            SHMEM_MAP => R::ShmemMap(ShmemMap::read(b), one_handle(name, handles)?),
            SHMEM_UNMAP => R::ShmemUnmap(ShmemMap::read(b)),
            _ => return Err(WireError::UnknownRequest { code }),
        })
    }
}

impl Sealed for BackendReplies {}

impl<H> Direction<H> for BackendReplies {
    type Message = BackendReply<H>;
    const REPLIES: bool = true;

    fn admit(code: u32, size: u32, _: Dialect) -> Result<&'static str, WireError> {
        let row = codes::known_backend_row(code)?;
        admit_size(row.name, PayloadSize::Exactly(8), size)
    }

    fn parse(
        code: u32,
        b: &[u8],
        handles: &mut Vec<H>,
        _: Dialect,
    ) -> Result<Self::Message, WireError> {
        let row = codes::known_backend_row(code)?;
        let status = read_u64(b);
        let handle = match code {
            SHARED_OBJECT_LOOKUP => optional_handle(row.name, handles)?,
            _ => None,
        };
        Ok(BackendReply { code, status, handle })
    }
}
