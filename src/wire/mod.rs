//! The wire: every vhost-user message, typed, in both directions.
//!
//! Nothing here knows a session, a vring or a device. Bytes and handles come
//! in, typed messages or typed refusals go out, and the other way round.
//!
//! What can be judged by looking at one message alone is judged here: header,
//! length, number of descriptors, and fields that can only hold a few values.
//! Whether an index names a vring, a region overlaps another or a feature was
//! negotiated is for the session to say.

mod backchannel;
mod carried;
mod codes;
mod decode;
mod dialect;
mod encode;
mod error;
pub mod features;
mod handles;
mod header;
mod message;
mod payload;
mod reply;
mod request;

pub use backchannel::{BackendReplies, BackendRequests};
pub use codes::{backend_request_name, request_name};
pub use decode::{
    Decoder, Direction, MAX_BUFFERED, MAX_BUFFERED_HANDLES, MAX_HANDLES, MAX_PAYLOAD,
};
pub use dialect::Dialect;
pub use encode::{encode_backend_reply, encode_backend_request, encode_reply, encode_request};
pub use error::{EncodeError, HandleCount, PayloadSize, PushError, PushReason, Refused, WireError};
pub use header::HEADER_LEN;
pub use message::*;
pub use reply::FrontendReplies;
pub use request::FrontendRequests;
