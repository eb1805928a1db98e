//! Memory of the front-end, mapped into this process.
//!
//! ```text
//! region   one mapping of a peer's file
//! guest    regions as guest memory, with a short way from an address to a byte
//! tables   the current memory table, and older ones that the disk still uses
//! shared   what is not guest memory: inflight regions and dirty logs
//! ```

mod guest;
mod region;
mod shared;
mod tables;

pub use guest::GuestMem;
pub use region::PeerRegion;
pub use shared::{alloc_inflight, map_shared};
pub use tables::{Epoch, Iov, Memory};

#[cfg(test)]
mod tests;
