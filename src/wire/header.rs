//! The twelve bytes in front of every message.

use super::WireError;
use bytes::{Buf, BufMut};

/// Bytes of a header.
pub const HEADER_LEN: usize = 12;

/// The only protocol version there is; bits 0 and 1 of the flags.
const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;
const DEFINED: u32 = VERSION_MASK | REPLY | NEED_REPLY;

/// Flags of a reply, exactly: QEMU compares the whole word and hangs up on any
/// other, so NEED_REPLY of the request is never echoed.
pub(super) const REPLY_FLAGS: u32 = VERSION | REPLY;

/// Flags of a request.
pub(super) fn request_flags(need_reply: bool) -> u32 {
    VERSION | if need_reply { NEED_REPLY } else { 0 }
}

/// A header as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub code: u32,
    pub flags: u32,
    pub size: u32,
}

impl Header {
    /// Read the header at the start of `bytes`; `None` when it is not all there.
    pub fn peek(bytes: &[u8]) -> Option<Self> {
        let mut bytes: &[u8] = bytes.first_chunk::<HEADER_LEN>()?;
        Some(Self { code: bytes.get_u32_ne(), flags: bytes.get_u32_ne(), size: bytes.get_u32_ne() })
    }

    pub fn put(self, out: &mut impl BufMut) {
        out.put_u32_ne(self.code);
        out.put_u32_ne(self.flags);
        out.put_u32_ne(self.size);
    }

    pub fn need_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Whether the flags fit a message of this direction.
    ///
    /// NEED_REPLY in a reply means nothing, but qemu-storage-daemon echoes it
    /// (0xd) and other front-ends accept that, so this does too.
    // spec: vhost-user, "Header"
    pub fn check_flags(self, reply_expected: bool) -> Result<(), WireError> {
        let Self { code, flags, .. } = self;
        if flags & VERSION_MASK != VERSION {
            return Err(WireError::Version { got: flags & VERSION_MASK });
        }
        if flags & !DEFINED != 0 {
            return Err(WireError::ReservedFlags { got: flags });
        }
        match (flags & REPLY != 0, reply_expected) {
            (true, false) => Err(WireError::UnexpectedReplyFlag { code }),
            (false, true) => Err(WireError::MissingReplyFlag { code }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn header(flags: u32) -> Header {
        Header { code: 1, flags, size: 0 }
    }

    #[test]
    fn header_request_flags_are_one_and_nine() {
        assert_eq!(request_flags(false), 0x1);
        assert_eq!(request_flags(true), 0x9);
        assert!(header(0x1).check_flags(false).is_ok());
        assert!(header(0x9).check_flags(false).is_ok());
    }

    #[test]
    fn header_reply_flags_are_five_and_an_echoed_need_reply_is_tolerated() {
        assert_eq!(REPLY_FLAGS, 0x5);
        assert!(header(0x5).check_flags(true).is_ok());
        assert!(header(0xd).check_flags(true).is_ok());
    }

    #[test]
    fn header_is_not_read_before_its_last_byte_is_there() {
        let mut bytes = BytesMut::new();
        header(0x9).put(&mut bytes);
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!(Header::peek(&bytes[..11]), None);
        assert_eq!(Header::peek(&bytes), Some(header(0x9)));
    }
}
