//! One vring's part of the region, whichever kind its ring is.

use super::layout::RegionShape;
use super::recover::{InflightFault, Recovery};
use super::{PackedRegion, RegionGone, RingState, SplitRegion};
use crate::vring::Ring;
use vm_memory::GuestMemory;

/// A part of the region that goes with a [`Ring`].
#[derive(Clone, Debug)]
pub enum Region {
    /// Of a split vring.
    Split(SplitRegion),
    /// Of a packed vring.
    Packed(PackedRegion),
}

impl Region {
    /// Take over the part of a vring whose ring is in `guest`, see
    /// [`SplitRegion::attach`] and [`PackedRegion::attach`]. A packed ring is
    /// told where it goes on; where a split one does depends on its base too.
    pub fn attach<M: GuestMemory, G: GuestMemory>(
        mem: &M,
        shape: &RegionShape,
        vring: u16,
        guest: &G,
        ring: &mut Ring,
    ) -> Result<(Self, Recovery), InflightFault> {
        match ring {
            Ring::Split(ring) => {
                let avail_idx = ring.avail_idx(guest)?;
                let state = RingState { size: ring.size(), used_idx: ring.used_idx(), avail_idx };
                let (region, recovery) = SplitRegion::attach(mem, shape, vring, state)?;
                Ok((Self::Split(region), recovery))
            }
            Ring::Packed(ring) => {
                let (region, recovery) = PackedRegion::attach(mem, shape, vring, guest, ring)?;
                Ok((Self::Packed(region), recovery))
            }
        }
    }

    /// F2, F3, F4: the request in this slot of the ring is fetched.
    pub fn submit<M: GuestMemory>(
        &mut self,
        mem: &M,
        ring: &Ring,
        slot: u16,
    ) -> Result<(), RegionGone> {
        match (self, ring.table()) {
            (Self::Split(region), _) => region.submit(mem, slot),
            (Self::Packed(region), Some(table)) => region.submit(mem, table, slot),
            (Self::Packed(_), None) => Ok(()),
        }
    }

    /// The counter of a request in flight, see [`SplitRegion::order_of`].
    pub fn order_of<M: GuestMemory>(&self, mem: &M, slot: u16) -> Option<u64> {
        match self {
            Self::Split(region) => region.order_of(mem, slot),
            Self::Packed(region) => region.order_of(mem, slot),
        }
    }

    /// C1, C2, C3: the request joins the batch that is about to be published.
    pub fn link<M: GuestMemory>(
        &mut self,
        mem: &M,
        ring: &Ring,
        slot: u16,
    ) -> Result<(), RegionGone> {
        match (self, ring.table()) {
            (Self::Split(region), _) => region.link(mem, slot),
            (Self::Packed(region), Some(table)) => region.link(mem, table, slot),
            (Self::Packed(_), None) => Ok(()),
        }
    }

    /// C5: the request has been published.
    pub fn retire<M: GuestMemory>(&mut self, mem: &M, slot: u16) -> Result<(), RegionGone> {
        match self {
            Self::Split(region) => region.retire(mem, slot),
            Self::Packed(region) => region.retire(mem, slot),
        }
    }

    /// C6, C7: the whole batch is retired; `used` is what the ring's
    /// [`used`](Ring::used) was then.
    pub fn close<M: GuestMemory>(&mut self, mem: &M, used: u16) -> Result<(), RegionGone> {
        match self {
            Self::Split(region) => region.close(mem, used),
            Self::Packed(region) => region.close(mem),
        }
    }
}
