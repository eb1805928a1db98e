//! The contents of an inflight region as plain data, and what whoever takes it
//! over would do.
//!
//! Layout and rules are those of [`inflight`](crate::inflight); nothing here
//! knows an offset.

use crate::inflight::{Header, InflightFault, Plan, RegionView, RingState, region_size_of};
use crate::vring::RingFormat;

/// A head in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Live {
    /// Order of fetching: ascending, not necessarily without gaps.
    pub counter: u64,
    /// Index in the descriptor table.
    pub head: u16,
}

/// One vring's part of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartImage {
    /// Features, version, size, batch.
    pub header: Header,
    /// Heads whose flag is set, in the order they were fetched. Some may have
    /// been published: that depends on the ring.
    pub flagged: Vec<Live>,
}

/// A region of split vrings, checked as far as that goes without the rings.
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
            let header = view.header(vring)?;
            // The region's own used index stands for the ring's: no batch.
            let ring = RingState::unseen(shape.queue_size, header.used_idx);
            let plan = view.plan(vring, ring)?;
            let flagged = plan.map_or_else(Vec::new, |plan| live(&plan));
            Ok(PartImage { header, flagged })
        };
        let parts = (0..shape.num_queues).map(part).collect::<Result<_, InflightFault>>()?;
        Ok(Self { queue_size: shape.queue_size, parts })
    }
}

fn live(plan: &Plan) -> Vec<Live> {
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
    /// Where fetching goes on in the available ring.
    pub next_avail: u16,
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
    /// The base of a packed ring is another than the region's.
    // spec: vhost-user, "Inflight I/O tracking"
    #[error("base is {base:#x}, expected {region:#x} by the region")]
    PackedBase {
        /// From the stream.
        base: u32,
        /// Where the region says that the ring goes on.
        region: u32,
    },
    /// Descriptors of a packed ring were in flight and nobody wrote down which.
    #[error(
        "base is {base:#x}, but nothing tells what was in flight in {lost} entries of the ring: that is lost"
    )]
    PackedLost {
        /// From the stream.
        base: u32,
        /// Entries between its positions.
        lost: u16,
    },
    /// The base is no place in a packed ring.
    #[error("base is {base:#x}, which is nowhere in a packed ring of {size}")]
    NoPlace {
        /// From the stream.
        base: u32,
        /// Entries of the ring.
        size: u16,
    },
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
