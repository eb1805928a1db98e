//! Every message's number, name and payload length.
//!
//! The two tables hold what can be said about a message without looking into
//! it. A contested number has here the one that QEMU uses or plans to use; the
//! [`Dialect`] translates.

use super::{Dialect, MAX_PAYLOAD, PayloadSize, WireError};
use PayloadSize::{Between, Exactly, OneOf, Regions};

/// What is known about a message by its code.
#[derive(Debug)]
pub(super) struct Row {
    pub code: u32,
    pub name: &'static str,
    /// Payload of the request.
    pub size: PayloadSize,
    /// It has an answer of its own, so that REPLY_ACK adds none.
    pub reply: bool,
}

/// Bytes of a config payload without content, and with as much as there may be.
const CONFIG: PayloadSize = Between(CONFIG_HEAD, CONFIG_HEAD + MAX_CONFIG);
/// Bytes in front of the content of a config payload.
pub(super) const CONFIG_HEAD: u32 = 12;
/// Bytes of device configuration space that one message may carry.
pub(super) const MAX_CONFIG: u32 = 256;

macro_rules! messages {
    ($table:ident, $prefix:literal, $($name:ident = $code:literal: $size:expr, $reply:literal;)*) => {
        $(pub(in super::super) const $name: u32 = $code;)*
        pub(in super::super) static $table: &[super::Row] = &[
            $(super::Row {
                code: $code,
                name: concat!($prefix, stringify!($name)),
                size: $size,
                reply: $reply,
            }),*
        ];
    };
}

// spec: vhost-user, "Front-end message types"
pub(super) mod frontend {
    use super::*;
    messages! { TABLE, "",
        GET_FEATURES = 1: Exactly(0), true;
        SET_FEATURES = 2: Exactly(8), false;
        SET_OWNER = 3: Exactly(0), false;
        RESET_OWNER = 4: Exactly(0), false;
        SET_MEM_TABLE = 5: Regions, false;
        SET_LOG_BASE = 6: OneOf(&[8, 16]), true;
        SET_LOG_FD = 7: Exactly(0), false;
        SET_VRING_NUM = 8: Exactly(8), false;
        SET_VRING_ADDR = 9: Exactly(40), false;
        SET_VRING_BASE = 10: Exactly(8), false;
        GET_VRING_BASE = 11: Exactly(8), true;
        SET_VRING_KICK = 12: Exactly(8), false;
        SET_VRING_CALL = 13: Exactly(8), false;
        SET_VRING_ERR = 14: Exactly(8), false;
        GET_PROTOCOL_FEATURES = 15: Exactly(0), true;
        SET_PROTOCOL_FEATURES = 16: Exactly(8), false;
        GET_QUEUE_NUM = 17: Exactly(0), true;
        SET_VRING_ENABLE = 18: Exactly(8), false;
        SEND_RARP = 19: Exactly(8), false;
        NET_SET_MTU = 20: Exactly(8), false;
        SET_BACKEND_REQ_FD = 21: Exactly(0), false;
        IOTLB_MSG = 22: Exactly(32), true;
        SET_VRING_ENDIAN = 23: Exactly(8), false;
        GET_CONFIG = 24: CONFIG, true;
        SET_CONFIG = 25: CONFIG, false;
        CREATE_CRYPTO_SESSION = 26: Between(0, MAX_PAYLOAD as u32), true;
        CLOSE_CRYPTO_SESSION = 27: Exactly(8), false;
        POSTCOPY_ADVISE = 28: Exactly(0), true;
        POSTCOPY_LISTEN = 29: Exactly(0), false;
        POSTCOPY_END = 30: Exactly(0), true;
        GET_INFLIGHT_FD = 31: Exactly(24), true;
        SET_INFLIGHT_FD = 32: Exactly(24), false;
        GPU_SET_SOCKET = 33: Exactly(0), false;
        RESET_DEVICE = 34: Exactly(0), false;
        VRING_KICK = 35: Exactly(8), false;
        GET_MAX_MEM_SLOTS = 36: Exactly(0), true;
        ADD_MEM_REG = 37: OneOf(&[0, 8, 40]), false;
        REM_MEM_REG = 38: Exactly(40), false;
        SET_STATUS = 39: Exactly(8), false;
        GET_STATUS = 40: Exactly(0), true;
        GET_SHARED_OBJECT = 41: Exactly(16), true;
        SET_DEVICE_STATE_FD = 42: Exactly(8), true;
        CHECK_DEVICE_STATE = 43: Exactly(0), true;
        GET_SHMEM_CONFIG = 44: Exactly(0), true;
        GET_VRING_BASE_SKIP_DRAIN = 45: Exactly(8), true;
    }
}

// spec: vhost-user, "Back-end message types"
pub(super) mod backend {
    use super::*;
    messages! { TABLE, "BACKEND_",
        IOTLB_MSG = 1: Exactly(32), false;
        CONFIG_CHANGE_MSG = 2: Exactly(0), false;
        VRING_HOST_NOTIFIER_MSG = 3: Exactly(24), false;
        VRING_CALL = 4: Exactly(8), false;
        VRING_ERR = 5: Exactly(8), false;
        SHARED_OBJECT_ADD = 6: Exactly(16), false;
        SHARED_OBJECT_REMOVE = 7: Exactly(16), false;
        SHARED_OBJECT_LOOKUP = 8: Exactly(16), true;
        SHMEM_MAP = 9: Exactly(40), false;
        SHMEM_UNMAP = 10: Exactly(40), false;
    }
}

/// The row of a front-end request, by its code in this file.
pub(super) fn frontend_row(code: u32) -> Option<&'static Row> {
    row(frontend::TABLE, code)
}

/// The row of a back-end request.
pub(super) fn backend_row(code: u32) -> Option<&'static Row> {
    row(backend::TABLE, code)
}

/// The row of a front-end request by its code on the wire, or what to refuse it
/// with.
pub(super) fn known_frontend_row(code: u32, dialect: Dialect) -> Result<&'static Row, WireError> {
    let row = dialect.own_code(code).and_then(frontend_row);
    row.ok_or(WireError::UnknownRequest { code })
}

/// The row of a back-end request, or what to refuse it with.
pub(super) fn known_backend_row(code: u32) -> Result<&'static Row, WireError> {
    backend_row(code).ok_or(WireError::UnknownRequest { code })
}

fn row(table: &'static [Row], code: u32) -> Option<&'static Row> {
    table.get(usize::try_from(code).ok()?.checked_sub(1)?)
}

/// The document's name, without VHOST_USER_, of a front-end request with this
/// code on the wire.
pub fn request_name(code: u32, dialect: &Dialect) -> Option<&'static str> {
    Some(frontend_row(dialect.own_code(code)?)?.name)
}

/// The document's name, without VHOST_USER_, of a back-end request.
pub fn backend_request_name(code: u32) -> Option<&'static str> {
    Some(backend_row(code)?.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_places_in_their_tables() {
        for table in [frontend::TABLE, backend::TABLE] {
            for (row, code) in table.iter().zip(1..) {
                assert_eq!(row.code, code, "{}", row.name);
            }
        }
        assert_eq!(frontend::TABLE.len(), 45);
        assert_eq!(backend::TABLE.len(), 10);
    }

    #[test]
    fn codes_have_the_documents_names() {
        let qemu = &Dialect::QEMU_11_1;
        assert_eq!(request_name(12, qemu), Some("SET_VRING_KICK"));
        assert_eq!(request_name(44, qemu), Some("GET_SHMEM_CONFIG"));
        for code in [0, 45, 46, u32::MAX] {
            assert_eq!(request_name(code, qemu), None);
        }
        assert_eq!(request_name(44, &Dialect::SKIP_DRAIN_44), Some("GET_VRING_BASE_SKIP_DRAIN"));
        assert_eq!(backend_request_name(2), Some("BACKEND_CONFIG_CHANGE_MSG"));
        assert_eq!(backend_request_name(0), None);
        assert_eq!(backend_request_name(11), None);
    }
}
