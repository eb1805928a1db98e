//! The front-end's IOMMU: what it says of it, and what it is asked.
//!
//! | event | what follows |
//! |---|---|
//! | a chain or a ring needs a page that is not known | the vring waits, the front-end is asked once |
//! | update | kept; who waited for it goes on |
//! | the question is answered with failure | whoever waits for the page is refused it |
//! | it is answered with success, and no update has come | the same, after [`UPDATE_GRACE`] |
//! | invalidate | forgotten; requests that use it end first, then it is acknowledged |
//!
//! A question is open until its page is known, its answer has come, or the page
//! was invalidated. What is answered after that answers nothing: it is asked
//! again, if anybody still waits.
// spec: vhost-user, "IOMMU support", VHOST_USER_IOTLB_MSG and
// VHOST_USER_BACKEND_IOTLB_MSG

mod pages;

use super::answer::Reply;
use super::setup::Pending;
use super::translate::MAX_PIECES;
use super::{Backend, Event, FrontendFault};
use crate::iommu::{Access, Gap, Iotlb, PAGE, Range, RingMap};
use crate::time::{Duration, Instant};
use crate::wire::Iotlb as Message;
use crate::wire::features::virtio;
use std::collections::BTreeMap;
use vm_memory::GuestMemory;

/// Pages that one vring asks for at a time.
pub(super) const GAPS_AT_A_TIME: usize = 64;

/// How long an update may come after the answer that promised it. The two come
/// on different sockets, so the order in which they were sent is not known.
pub const UPDATE_GRACE: Duration = Duration::from_millis(100);

/// Types of an IOTLB message.
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// What has passed between the halves, since the back-end was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IommuCounts {
    /// Pages asked for.
    pub misses: u64,
    /// Translations told.
    pub updates: u64,
    /// Translations taken back.
    pub invalidations: u64,
    /// Pages that were refused.
    pub refused: u64,
}

/// A page that the front-end was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    page: u64,
    access: Access,
    id: u64,
}

/// An open question.
#[derive(Clone, Copy, Debug)]
struct Open {
    id: u64,
    /// The byte that was needed.
    iova: u64,
}

/// What the device knows of the front-end's IOMMU.
#[derive(Debug)]
pub(super) struct Iommu {
    pub tlb: Iotlb,
    open: BTreeMap<(u64, Access), Open>,
    next_id: u64,
    /// Something that vrings wait for may have come.
    changed: bool,
    /// This front-end has given a channel, so a page may be asked for, if not
    /// now then later.
    pub channel_given: bool,
    pub counts: IommuCounts,
    /// What was said of it last.
    reported: IommuCounts,
}

/// What one vring has to do with it.
#[derive(Debug, Default)]
pub(super) struct VringIommu {
    /// Where the ring lies, while it runs.
    pub map: RingMap,
    /// What it waits for. Nothing is fetched meanwhile.
    pub waits: Vec<Wait>,
    /// What the chain that waits has been refused.
    pub refused: Vec<Gap>,
    /// Heads in the region that have not been started again yet.
    pub resubmit: std::collections::VecDeque<u16>,
    /// The ring was invalidated and is still in use.
    pub held: bool,
    /// It was, and is not in use any more: where it lies is not known.
    lost: bool,
    /// A page was refused since the chain was looked at last.
    news: bool,
}

/// One page that a vring waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub gap: Gap,
    /// Success was answered, so an update is on its way.
    promised: bool,
    /// When to stop believing that.
    refuse_at: Option<Instant>,
}

impl VringIommu {
    /// True while nothing may be fetched.
    pub fn holds_fetching(&self) -> bool {
        self.held || self.lost || !self.waits.is_empty() || !self.resubmit.is_empty()
    }

    /// Wait for these, and for nothing else.
    pub fn wait_for(&mut self, gaps: &[Gap]) {
        self.waits.clear();
        let wait = |gap: &Gap| Wait { gap: *gap, promised: false, refuse_at: None };
        self.waits.extend(gaps.iter().map(wait));
    }

    /// True if the page of this was refused to what waits.
    pub fn was_refused(&self, gap: &Gap) -> bool {
        was_refused(&self.refused, gap)
    }
}

pub(super) fn was_refused(refused: &[Gap], gap: &Gap) -> bool {
    refused.iter().any(|r| r.page() == gap.page() && gap.access.allows(r.access))
}

impl Iommu {
    /// Room for what all vrings may need at a time, and as much again.
    pub fn new(num_queues: u16) -> Self {
        Self {
            tlb: Iotlb::new(MAX_PIECES * (usize::from(num_queues) + 1)),
            open: BTreeMap::new(),
            next_id: 0,
            changed: false,
            channel_given: false,
            counts: IommuCounts::default(),
            reported: IommuCounts::default(),
        }
    }

    /// All that was known belongs to the past, and so does every question.
    pub fn clear(&mut self) {
        self.tlb.clear();
        self.open.clear();
    }

    /// A question that will not be answered.
    pub fn forget(&mut self, question: Question) {
        let key = (question.page, question.access);
        if self.open.get(&key).is_some_and(|open| open.id == question.id) {
            self.open.remove(&key);
            self.changed = true;
        }
    }

    fn update(&mut self, range: Range, user: u64, access: Access) {
        self.tlb.update(range, user, access);
        let tlb = &self.tlb;
        let (from, to) = page_keys(range);
        let known = |&((_, access), open): &((u64, Access), Open)| {
            tlb.find(open.iova).is_some_and(|found| found.access.allows(access))
        };
        let answered: Vec<_> =
            self.open.range(from..=to).map(|(k, o)| (*k, *o)).filter(known).collect();
        for (key, _) in answered {
            self.open.remove(&key);
        }
        self.changed = true;
    }

    fn invalidate(&mut self, range: Range) {
        self.tlb.invalidate(range);
        let (from, to) = page_keys(range);
        let gone: Vec<_> = self.open.range(from..=to).map(|(key, _)| *key).collect();
        for key in gone {
            self.open.remove(&key);
            self.changed = true;
        }
    }
}

/// Keys of the questions about pages of a range.
fn page_keys(range: Range) -> ((u64, Access), (u64, Access)) {
    let page = |iova| iova & !(PAGE - 1);
    ((page(range.first), Access::from_bits(0)), (page(range.last), Access::BOTH))
}

impl<M: GuestMemory> Backend<M> {
    /// True if ring and buffer addresses are I/O virtual ones.
    pub(super) fn translates(&self) -> bool {
        self.session.features & virtio::ACCESS_PLATFORM != 0
    }

    /// What has passed between the halves about the IOMMU.
    pub fn iommu_counts(&self) -> IommuCounts {
        self.iommu.counts
    }

    /// Translations known now.
    pub fn iommu_entries(&self) -> usize {
        self.iommu.tlb.len()
    }

    /// An update or invalidation. True if it is done, false if the answer comes
    /// later.
    pub(super) fn iotlb_msg(&mut self, m: Message, reply: Reply) -> Result<bool, FrontendFault> {
        if !self.translates() {
            let feature = "VIRTIO_F_ACCESS_PLATFORM";
            return Err(FrontendFault::NotNegotiated { message: reply.message, feature });
        }
        match m.kind {
            UPDATE => self.iotlb_update(m)?,
            INVALIDATE => return Ok(self.iotlb_invalidate(m, reply)),
            got => return Err(FrontendFault::IotlbType { got }),
        }
        Ok(true)
    }

    fn iotlb_update(&mut self, m: Message) -> Result<(), FrontendFault> {
        let fault = || FrontendFault::IotlbRange { iova: m.iova, size: m.size, user: m.user_addr };
        let range = Range::new(m.iova, m.size).ok_or_else(fault)?;
        let user = Range::new(m.user_addr, m.size).ok_or_else(fault)?;
        let mut next = Some(user.first);
        while let Some(at) = next.filter(|at| *at <= user.last) {
            let (_, len) = self.table.find_user(at).ok_or_else(fault)?;
            next = at.checked_add(len);
        }
        self.iommu.counts.updates += 1;
        // While the device is at rest nobody tells it what is no longer true,
        // so nothing is believed either.
        if self.vrings.iter().any(|v| v.started) {
            self.iommu.update(range, user.first, Access::from_bits(m.perm));
        }
        Ok(())
    }

    fn iotlb_invalidate(&mut self, m: Message, reply: Reply) -> bool {
        self.iommu.counts.invalidations += 1;
        let Some(range) = Range::clamped(m.iova, m.size) else { return true };
        self.iommu.invalidate(range);
        for v in &mut self.vrings {
            v.iommu.held |= v.iommu.map.overlaps(range);
        }
        if self.is_used(range) {
            self.pending = Pending::Invalidate(range, reply);
            return false;
        }
        self.let_go();
        true
    }

    /// True if a request in flight uses an address of this range: its buffers
    /// are there, or the ring that it will be published in.
    pub(super) fn is_used(&self, range: Range) -> bool {
        self.requests.use_range(range)
            || self
                .vrings
                .iter()
                .any(|v| v.iommu.held && v.run.as_ref().is_some_and(|run| run.at_disk > 0))
    }

    /// Rings that were invalidated and are not in use are nowhere now.
    pub(super) fn let_go(&mut self) {
        for v in self.vrings.iter_mut().filter(|v| v.iommu.held) {
            v.iommu.held = false;
            v.iommu.lost = v.run.is_some();
            v.iommu.map = RingMap::default();
            self.iommu.changed = true;
        }
    }

    /// A vring that stops has nothing to wait for. When all have, what is known
    /// is worth nothing any more.
    pub(super) fn forget_translations(&mut self, vring: u16) {
        self.vrings[usize::from(vring)].iommu = VringIommu::default();
        if !self.translates() || self.vrings.iter().any(|v| v.started) {
            return;
        }
        self.iommu.clear();
        let counts = self.iommu.counts;
        if core::mem::replace(&mut self.iommu.reported, counts) != counts {
            self.event(Event::IommuAtRest(counts));
        }
    }
}
