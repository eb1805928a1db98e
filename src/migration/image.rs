//! The contents of an inflight region as plain data, and what whoever takes it
//! over would do.
//!
//! Layout and rules are those of [`inflight`](crate::inflight); nothing here
//! knows an offset.

use crate::inflight::{
    Header, InflightFault, PackedHeader, PackedPlan, Plan, RegionView, RingState, region_size_of,
};
use crate::vring::RingFormat;
use crate::vring::packed::Positions;

/// A chain in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Live {
    /// Order of fetching: ascending, not necessarily without gaps.
    pub counter: u64,
    /// Index of its head in the descriptor table; of a packed ring's, that of
    /// its first entry in the region.
    pub head: u16,
}

/// The beginning of one vring's part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartHeader {
    /// Of a split vring.
    Split(Header),
    /// Of a packed vring.
    Packed(PackedHeader),
}

impl PartHeader {
    /// That of a vring.
    pub fn of(view: &RegionView<'_>, vring: u16) -> Result<Self, InflightFault> {
        Ok(match view.shape().format {
            RingFormat::Split => Self::Split(view.header(vring)?),
            RingFormat::Packed => Self::Packed(view.packed_header(vring)?),
        })
    }
}

/// One vring's part of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartImage {
    /// Features, version, size, batch.
    pub header: PartHeader,
    /// Chains whose flag is set, in the order they were fetched. Some may have
    /// been published: that depends on the ring.
    pub flagged: Vec<Live>,
}

/// A region, checked as far as that goes without the rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InflightImage {
    /// Entries of each part.
    pub queue_size: u16,
    /// One for each vring.
    pub parts: Vec<PartImage>,
}

impl TryFrom<RegionView<'_>> for InflightImage {
    type Error = InflightFault;

    fn try_from(view: RegionView<'_>) -> Result<Self, InflightFault> {
        let shape = view.shape();
        let part = |vring| -> Result<PartImage, InflightFault> {
            let header = PartHeader::of(&view, vring)?;
            let flagged = match header {
                PartHeader::Split(header) => {
                    // The region's own used index stands for the ring's: no
                    // batch.
                    let ring = RingState::unseen(shape.queue_size, header.used_idx);
                    view.plan(vring, ring)?.map_or_else(Vec::new, |plan| live(&plan))
                }
                PartHeader::Packed(_) => view
                    .packed_plan(vring, shape.queue_size, |_| false)?
                    .map_or_else(Vec::new, |plan| packed_live(&plan)),
            };
            Ok(PartImage { header, flagged })
        };
        let parts = (0..shape.num_queues).map(part).collect::<Result<_, InflightFault>>()?;
        Ok(Self { queue_size: shape.queue_size, parts })
    }
}

fn live(plan: &Plan) -> Vec<Live> {
    plan.live.iter().map(|&(counter, head)| Live { counter, head }).collect()
}

fn packed_live(plan: &PackedPlan) -> Vec<Live> {
    plan.live.iter().map(|&(counter, head)| Live { counter, head }).collect()
}

/// What a back-end does with a vring that it takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takeover {
    /// Nothing was tracked before: no region, or one that nobody has used.
    pub fresh: bool,
    /// Heads of a batch that was published and not closed, last first. They
    /// are done; their flags are cleared.
    pub closes: Vec<u16>,
    /// Requests to submit again, in this order, before any other is fetched.
    pub resubmit: Vec<Live>,
    /// Where fetching goes on in the available ring; in a packed ring with the
    /// wrap counter as bit 15.
    pub next_avail: u16,
    /// Where the next used chain goes, of a packed ring, likewise.
    pub next_used: Option<u16>,
    /// What does not go together. The region is believed.
    pub contradictions: Vec<Contradiction>,
}

/// Facts about a vring that cannot all be true.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The base is neither of the two it can be.
    // spec: vhost-user, "Inflight I/O tracking"
    #[error("base is {base}, expected {used} (used) or {all} (used and in flight)")]
    Base {
        /// From the stream.
        base: u16,
        /// Used index.
        used: u16,
        /// Used index and requests in flight.
        all: u16,
    },
    /// Requests were in flight and nobody wrote down which.
    #[error(
        "base is {base} and used {used}, but nothing tells which {lost} requests are in flight: they are lost"
    )]
    Lost {
        /// From the stream.
        base: u16,
        /// Used index.
        used: u16,
        /// Their distance.
        lost: u16,
    },
    /// The base of a packed ring is not where its region is.
    #[error("base is {base:#x}, expected {all:#x} (both positions by the region)")]
    Positions {
        /// From the stream.
        base: u32,
        /// From the region.
        all: u32,
    },
    /// Chains of a packed ring were in flight and nobody wrote down which.
    #[error(
        "base is {base:#x}, but nothing tells which chains of {entries} entries are in flight: they are lost"
    )]
    LostEntries {
        /// From the stream.
        base: u32,
        /// Distance of its two positions.
        entries: u16,
    },
    /// No ring of this size can be at the base.
    #[error("base is {base:#x}, expected two positions of a packed ring of {size}")]
    NoPositions {
        /// From the stream.
        base: u32,
        /// Ring size.
        size: u16,
    },
    /// A packed ring's batch is open; whether it was published is in the ring.
    #[error(
        "a batch of {0} ring entries is open, expected none after a stop: taken for not published"
    )]
    OpenEntries(u16),
    /// A suspended back-end leaves no batch open.
    #[error("{0} requests are published but not retired, expected none after a stop")]
    OpenBatch(usize),
    /// The device never started, and its source said so in a way that cannot
    /// be loaded.
    #[error("inflight region is empty: qemu 11.1 refuses to load such a stream")]
    Empty,
    /// The region would hold more queues.
    #[error(
        "inflight region has {got} bytes, expected {expected} for {queues} queues of this size"
    )]
    RegionSize {
        /// As most back-ends make it.
        expected: u64,
        /// Bytes.
        got: u64,
        /// Queues of the device.
        queues: u16,
    },
}

/// Judge one vring: its region if there is one, the base that the front-end
/// brings, and the ring in guest memory. Fails where a back-end would refuse to
/// start the vring.
pub fn takeover(
    region: Option<&RegionView<'_>>,
    vring: u16,
    base: u16,
    ring: RingState,
) -> Result<Takeover, InflightFault> {
    let mut found = Takeover { fresh: true, next_avail: base, ..Takeover::default() };
    let plan = region.map(|view| view.plan(vring, ring)).transpose()?.flatten();
    let used = ring.used_idx;
    let Some(plan) = plan else {
        if base != used {
            let lost = base.wrapping_sub(used);
            found.contradictions.push(Contradiction::Lost { base, used, lost });
        }
        return Ok(found);
    };
    found.fresh = false;
    found.resubmit = live(&plan);
    found.closes = plan.published;
    // At most as many as the ring has entries, so this cannot be cut.
    let all = used.wrapping_add(found.resubmit.len() as u16);
    found.next_avail = all;
    if base != used && base != all {
        found.contradictions.push(Contradiction::Base { base, used, all });
    }
    if !found.closes.is_empty() {
        found.contradictions.push(Contradiction::OpenBatch(found.closes.len()));
    }
    Ok(found)
}

/// The same for a packed vring of `size` entries. Of a batch that is open only
/// the ring could tell whether it was published; it is taken for not published.
pub fn packed_takeover(
    region: Option<&RegionView<'_>>,
    vring: u16,
    base: Positions,
    size: u16,
) -> Result<Takeover, InflightFault> {
    let places = |at: Positions| (at.avail.bits(), Some(at.used.bits()));
    let (next_avail, next_used) = places(base);
    let mut found = Takeover { fresh: true, next_avail, next_used, ..Takeover::default() };
    let plan = region.map(|view| view.packed_plan(vring, size, |_| false)).transpose()?.flatten();
    let ahead = base.ahead(size);
    let base = base.base();
    if ahead.is_none() {
        found.contradictions.push(Contradiction::NoPositions { base, size });
    }
    let Some(plan) = plan else {
        if let Some(entries @ 1..) = ahead {
            found.contradictions.push(Contradiction::LostEntries { base, entries });
        }
        return Ok(found);
    };
    found.fresh = false;
    found.resubmit = packed_live(&plan);
    (found.next_avail, found.next_used) = places(plan.positions);
    let all = plan.positions.base();
    if ahead.is_some() && base != all {
        found.contradictions.push(Contradiction::Positions { base, all });
    }
    if plan.batch > 0 {
        found.contradictions.push(Contradiction::OpenEntries(plan.batch));
    }
    Ok(found)
}

/// Whether a region has the size that its queues need, give or take what
/// rounding can explain: twice as much is for twice as many queues.
pub(super) fn oversize(
    format: RingFormat,
    len: u64,
    queues: u16,
    queue_size: u16,
) -> Option<Contradiction> {
    let expected = region_size_of(format, queues, queue_size);
    (len >= 2 * expected).then_some(Contradiction::RegionSize { expected, got: len, queues })
}
