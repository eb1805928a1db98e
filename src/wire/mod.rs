//! The wire: every vhost-user message, typed, in both directions.
//!
//! Nothing here knows a session, a vring or a device. Bytes and handles come
//! in, typed messages or typed refusals go out, and the other way round.

mod message;

pub use message::*;
