//! Rings in guest memory, device side.
//!
//! [`SplitRing`] finds available heads and publishes used ones; [`chain`]
//! walks a descriptor chain. Neither knows what a request is.

pub mod chain;
mod fault;
mod split;

pub use fault::GuestFault;
pub use split::{RingAddresses, SplitRing, Used};
