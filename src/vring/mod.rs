//! Rings in guest memory, device side.
//!
//! A [`Ring`] finds available chains and publishes used ones, and its owner
//! need not know whether it is a [`SplitRing`] or a [`PackedRing`]; [`chain`]
//! has the buffers of a chain. Neither knows what a request is.

pub mod chain;
mod fault;
pub mod packed;
mod ring;
mod split;

pub use fault::GuestFault;
pub use packed::PackedRing;
pub use ring::{Ring, RingFormat};
pub use split::{RingAddresses, SplitRing, Used};
