//! What can be wrong with a message, and what that means for the connection.

use core::fmt;

/// How long the payload of a message may be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadSize {
    /// This long.
    Exactly(u32),
    /// One of these.
    OneOf(&'static [u32]),
    /// Between these, both included.
    Between(u32, u32),
    /// Nothing, or between these, both included.
    NothingOrBetween(u32, u32),
    /// Eight bytes and 32 for each of 1 to 8 memory regions; or nothing or eight
    /// zeroes, which acknowledge a table in postcopy.
    Regions,
    /// The answer to a memory table: a status, or the table.
    StatusOrRegions,
}

impl PayloadSize {
    /// Whether a payload of `size` bytes fits.
    pub fn fits(self, size: u32) -> bool {
        let regions = (8..=8 + 32 * 8).contains(&size) && size % 32 == 8;
        match self {
            Self::Exactly(n) => size == n,
            Self::OneOf(list) => list.contains(&size),
            Self::Between(low, high) => (low..=high).contains(&size),
            Self::NothingOrBetween(low, high) => size == 0 || (low..=high).contains(&size),
            Self::Regions => regions || size == 0,
            Self::StatusOrRegions => regions,
        }
    }
}

impl fmt::Display for PayloadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(n) => write!(f, "{n}"),
            Self::OneOf(list) => {
                for (i, n) in list.iter().enumerate() {
                    let or = if i == 0 { "" } else { " or " };
                    write!(f, "{or}{n}")?;
                }
                Ok(())
            }
            Self::Between(low, high) => write!(f, "{low} to {high}"),
            Self::NothingOrBetween(low, high) => write!(f, "0 or {low} to {high}"),
            Self::Regions => f.write_str("0, 8, or 8 and 32 for each of 1 to 8 regions"),
            Self::StatusOrRegions => f.write_str("8, or 8 and 32 for each of 1 to 8 regions"),
        }
    }
}

/// How many descriptors come with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleCount {
    /// This many.
    Exactly(u32),
    /// None to this many.
    AtMost(u32),
}

impl fmt::Display for HandleCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(n) => write!(f, "{n}"),
            Self::AtMost(n) => write!(f, "at most {n}"),
        }
    }
}

/// What is wrong with a message that came in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The version bits of the flags are not 1.
    #[error("header has version {got}, expected 1")]
    Version {
        /// Bits 0 and 1.
        got: u32,
    },
    /// Flag bits that mean nothing are set.
    #[error("header has flags {got:#x}, expected none above bit 3")]
    ReservedFlags {
        /// The whole flags field.
        got: u32,
    },
    /// A reply came where only requests come.
    #[error("message {code} has the reply flag, expected a request")]
    UnexpectedReplyFlag {
        /// Code in the header.
        code: u32,
    },
    /// A request came where only replies come.
    #[error("message {code} has no reply flag, expected a reply")]
    MissingReplyFlag {
        /// Code in the header.
        code: u32,
    },
    /// No message is that long; see [`MAX_PAYLOAD`](super::MAX_PAYLOAD).
    #[error("message {code} has a payload of {got} bytes, expected at most {max}")]
    Oversized {
        /// Code in the header.
        code: u32,
        /// Bytes a payload may have.
        max: u32,
        /// Bytes the header announces.
        got: u32,
    },
    /// The payload's length does not fit the message.
    #[error("{message} has a payload of {got} bytes, expected {expected}")]
    Size {
        /// Name of the message.
        message: &'static str,
        /// Bytes it may have.
        expected: PayloadSize,
        /// Bytes the header announces.
        got: u32,
    },
    /// No message has this code in the dialect in force.
    #[error("message {code} is not known")]
    UnknownRequest {
        /// Code in the header.
        code: u32,
    },
    /// Descriptors are missing or left over.
    #[error("{message} came with {got} descriptors, expected {expected}")]
    Handles {
        /// Name of the message.
        message: &'static str,
        /// Descriptors it takes.
        expected: HandleCount,
        /// Descriptors that came.
        got: u32,
    },
    /// Descriptors came after the first byte of the message they came with.
    #[error("{got} descriptors came in the middle of {message}, expected them with its header")]
    LateHandles {
        /// Name of the message.
        message: &'static str,
        /// Descriptors that came late.
        got: u32,
    },
    /// A field has a value that means nothing.
    #[error("{message} has {field} {got:#x}, expected {expected}")]
    Field {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        got: u64,
    },
}

impl WireError {
    /// Whether the connection must be closed.
    ///
    /// True when the next header can't be found, or when the peer has shown
    /// that it does not speak this protocol. Otherwise the payload has been
    /// consumed, and a request that asked for a reply may be answered with a
    /// failure.
    // spec: vhost-user, "Communication"
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Version { .. }
            | Self::ReservedFlags { .. }
            | Self::UnexpectedReplyFlag { .. }
            | Self::MissingReplyFlag { .. }
            | Self::Oversized { .. }
            | Self::Size { .. } => true,
            Self::UnknownRequest { .. }
            | Self::Handles { .. }
            | Self::LateHandles { .. }
            | Self::Field { .. } => false,
        }
    }
}

/// A message that came in and cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<H> {
    /// What is wrong.
    pub error: WireError,
    /// Code in the header; `None` when the header is not one.
    pub code: Option<u32>,
    /// The sender asks for an answer.
    pub need_reply: bool,
    /// Descriptors that came with it; the owner releases them. After a fatal
    /// error these are all that were still held.
    pub handles: Vec<H>,
    /// [`WireError::is_fatal`]: the connection must be closed.
    pub fatal: bool,
}

/// The decoder took nothing; the caller still owns the handles.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PushError<H> {
    /// Why.
    pub reason: PushReason,
    /// The handles of the refused call.
    pub handles: Vec<H>,
}

/// Why a decoder takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushReason {
    /// More bytes than [`MAX_BUFFERED`](super::MAX_BUFFERED).
    #[error("{would_be} bytes would be buffered, expected at most {max}")]
    Bytes {
        /// The bound.
        max: u32,
        /// With this call.
        would_be: u64,
    },
    /// More handles than [`MAX_BUFFERED_HANDLES`](super::MAX_BUFFERED_HANDLES).
    #[error("{would_be} descriptors would be held, expected at most {max}")]
    Handles {
        /// The bound.
        max: u32,
        /// With this call.
        would_be: u64,
    },
    /// Descriptors travel with bytes; these came with none.
    #[error("descriptors came without a byte")]
    NoBytes,
    /// A fatal error was reported, or the handles were drained.
    #[error("nothing is read after the connection's end")]
    Ended,
}

/// A message that cannot be put on the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The dialect has no code for it.
    #[error("{message} does not exist in dialect {dialect}")]
    NotInDialect {
        /// Name of the message.
        message: &'static str,
        /// Name of the dialect.
        dialect: &'static str,
    },
    /// A field has a value that the peer would refuse.
    #[error("{message} has {field} {got:#x}, expected {expected}")]
    Field {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        got: u64,
    },
}

/// A field out of range, before it is known in which message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FieldFault {
    pub field: &'static str,
    pub expected: &'static str,
    pub got: u64,
}

impl FieldFault {
    pub fn received_in(self, message: &'static str) -> WireError {
        let Self { field, expected, got } = self;
        WireError::Field { message, field, expected, got }
    }

    pub fn sent_in(self, message: &'static str) -> EncodeError {
        let Self { field, expected, got } = self;
        EncodeError::Field { message, field, expected, got }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_region_sizes_are_eight_and_thirty_two_each() {
        let fitting = |size: PayloadSize| (0..400).filter(move |&n| size.fits(n));
        let table = [40, 72, 104, 136, 168, 200, 232, 264];
        assert!(fitting(PayloadSize::Regions).eq([0, 8].into_iter().chain(table)));
        assert!(fitting(PayloadSize::StatusOrRegions).eq([8].into_iter().chain(table)));
    }

    #[test]
    fn error_sizes_read_as_a_choice() {
        let text = |size: PayloadSize| size.to_string();
        assert_eq!(text(PayloadSize::OneOf(&[0, 8])), "0 or 8");
        assert_eq!(text(PayloadSize::Between(12, 268)), "12 to 268");
        assert_eq!(text(PayloadSize::NothingOrBetween(12, 268)), "0 or 12 to 268");
    }
}
