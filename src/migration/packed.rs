//! What whoever takes over a packed vring would do.

use super::image::{Contradiction, Live};
use crate::inflight::{InflightFault, RegionView};
use crate::vring::packed::{Position, Positions};

/// Where a packed ring was left, as the stream's virtio state has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedState {
    /// What the back-end answered to GET_VRING_BASE: both positions with their
    /// wrap counters.
    pub base: u32,
    /// Chains that the hypervisor itself has in use; it leaves them to the
    /// back-end, so none.
    pub in_use: u32,
}

/// What a back-end does with a packed vring that it takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedTakeover {
    /// Nothing was tracked before: no region, or one that nobody has used.
    pub fresh: bool,
    /// Ring entries of a batch that was begun and not closed.
    pub batch: u16,
    /// The batch was published, and its requests are done.
    pub published: bool,
    /// Requests to submit again, in this order, before any other is fetched.
    /// Their heads are entries of the region.
    pub resubmit: Vec<Live>,
    /// Where the ring goes on, in the format of SET_VRING_BASE.
    pub base: u32,
    /// What does not go together. The region is believed.
    pub contradictions: Vec<Contradiction>,
}

/// Judge one packed vring: its region if there is one, and the base that the
/// front-end brings, if it is known. `published` is asked, only if a batch is
/// open, whether the entry there is still as the driver made it available.
/// Fails where a back-end would refuse to start the vring.
pub fn packed_takeover(
    region: Option<&RegionView<'_>>,
    vring: u16,
    size: u16,
    base: Option<u32>,
    published: impl FnOnce(Position) -> bool,
) -> Result<PackedTakeover, InflightFault> {
    let mut found = PackedTakeover { fresh: true, ..PackedTakeover::default() };
    let plan = region.map(|view| view.packed_plan(vring, size, published)).transpose()?.flatten();
    let Some(plan) = plan else {
        let base = base.unwrap_or(Positions::START.base());
        found.base = base;
        match Positions::from_base(base).ahead(size) {
            Some(0) => {}
            Some(lost) => found.contradictions.push(Contradiction::PackedLost { base, lost }),
            None => found.contradictions.push(Contradiction::NoPlace { base, size }),
        }
        return Ok(found);
    };
    found.fresh = false;
    (found.batch, found.published) = (plan.batch, plan.published);
    found.resubmit = plan.live.iter().map(|&(counter, head)| Live { counter, head }).collect();
    found.base = plan.positions.base();
    // After a stop both are the same. After a crash the base is an old one, but
    // a stream has one of a stop.
    if let Some(base) = base.filter(|base| *base != found.base) {
        found.contradictions.push(Contradiction::PackedBase { base, region: found.base });
    }
    if plan.batch > 0 {
        found.contradictions.push(Contradiction::OpenBatch(plan.batch.into()));
    }
    Ok(found)
}
