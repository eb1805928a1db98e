//! The inflight region: what lets a successor finish a dead back-end's work.
//!
//! Every load and store of the region happens in this folder and nowhere else,
//! and this folder does not know who is asking. `split` and `packed` have one
//! function for each step of the spec's algorithms; `recover` in each reads a
//! region that somebody else left behind; `region` is either of the two; `view`
//! is for whoever only looks; `choice` is what the guest has said about its write
//! cache. DESIGN.md, "Inflight region, store by store", has
//! the argument why a kill between any two stores is safe, by the same step
//! names.
// spec: vhost-user, "Inflight I/O tracking"

mod choice;
mod layout;
mod packed;
mod recover;
mod region;
mod split;
mod view;

pub use choice::{load_choice, store_choice};
pub use layout::{RegionShape, region_size, region_size_of};
pub use packed::{PackedHeader, PackedPlan, PackedRegion};
pub use recover::{InflightFault, Plan, Recovery};
pub use region::Region;
pub use split::{RegionGone, RingState, SplitRegion};
pub use view::{Header, RegionView};

use core::sync::atomic::Ordering;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemory};

/// The one way to store into a region: the whole field, by a release store.
fn store<M: GuestMemory, T: AtomicAccess>(
    mem: &M,
    offset: u64,
    value: T,
) -> Result<(), RegionGone> {
    mem.store(value, GuestAddress(offset), Ordering::Release).map_err(|_| RegionGone { offset })
}
