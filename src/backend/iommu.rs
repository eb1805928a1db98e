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

use super::answer::Reply;
use super::channel::Asked;
use super::setup::Pending;
use super::translate::MAX_PIECES;
use super::{Backend, Event, FrontendFault, GuestFault, Output};
use crate::iommu::{Access, Gap, Iotlb, PAGE, Range, RingMap, Translator};
use crate::time::{Duration, Instant};
use crate::wire::features::virtio;
use crate::wire::{BackendRequest, Iotlb as Message};
use std::collections::BTreeMap;
use vm_memory::GuestMemory;

/// Pages that one vring asks for at a time.
pub(super) const GAPS_AT_A_TIME: usize = 64;

/// How long an update may come after the answer that promised it. The two come
/// on different sockets, so the order in which they were sent is not known.
pub const UPDATE_GRACE: Duration = Duration::from_millis(100);

/// Types of an IOTLB message.
const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const ACCESS_FAIL: u8 = 4;

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

    /// Ask for what vrings wait for and was not asked for yet.
    fn ask_for_pages(&mut self) {
        if !self.has_channel() {
            return;
        }
        for index in 0..self.vrings.len() {
            for at in 0..self.vrings[index].iommu.waits.len() {
                let gap = self.vrings[index].iommu.waits[at].gap;
                let key = (gap.page(), gap.access);
                if self.vrings[index].iommu.waits[at].promised || self.iommu.open.contains_key(&key)
                {
                    continue;
                }
                let id = self.iommu.next_id;
                self.iommu.next_id += 1;
                self.iommu.counts.misses += 1;
                self.iommu.open.insert(key, Open { id, iova: gap.iova });
                let question = Question { page: gap.page(), access: gap.access, id };
                let message = message(MISS, gap.page(), gap.access);
                self.ask(BackendRequest::IotlbMsg(message), Asked::Miss(question));
            }
        }
    }

    /// The front-end has answered a question; 0 says that an update was sent.
    pub(super) fn miss_answered(&mut self, question: Question, status: u64) {
        let key = (question.page, question.access);
        if self.iommu.open.get(&key).is_none_or(|open| open.id != question.id) {
            return;
        }
        self.iommu.open.remove(&key);
        self.iommu.changed = true;
        let waits = |w: &Wait| (w.gap.page(), w.gap.access) == key;
        for index in 0..self.vrings.len() {
            let v = &mut self.vrings[index].iommu;
            if status == 0 {
                v.waits.iter_mut().filter(|w| waits(w)).for_each(|w| w.promised = true);
            } else if let Some(at) = v.waits.iter().position(waits) {
                let gap = v.waits.swap_remove(at).gap;
                self.refuse_page(index, gap);
            }
        }
    }

    /// A vring does not get a page.
    fn refuse_page(&mut self, index: usize, gap: Gap) {
        self.iommu.counts.refused += 1;
        self.vrings[index].iommu.refused.push(gap);
        self.vrings[index].iommu.news = true;
        let Gap { iova, access } = gap;
        self.event(Event::IovaRefused { vring: index as u16, iova, access: access.bits() });
        // It is known, but not for this.
        if self.iommu.tlb.find(iova).is_some() && self.has_channel() {
            let message = message(ACCESS_FAIL, iova, access);
            self.ask(BackendRequest::IotlbMsg(message), Asked::AccessFail);
        }
    }

    /// When to look again by itself: at once, if one call was not allowed to do
    /// it all, or when an update that was promised is overdue.
    pub(super) fn update_due(&self) -> Option<Instant> {
        if !self.translates() || !self.may_fetch() {
            return None;
        }
        if self.iommu.changed {
            return Some(Instant::ZERO);
        }
        self.vrings.iter().flat_map(|v| &v.iommu.waits).filter_map(|w| w.refuse_at).min()
    }

    /// Let vrings go on that have what they waited for, and ask for what is
    /// missing. Costs one branch without an IOMMU.
    pub(super) fn go_on_waiting(&mut self, now: Instant) {
        if self.update_due().is_none_or(|at| at > now) {
            return;
        }
        self.iommu.changed = false;
        for vring in 0..self.config.num_queues {
            self.settle_waits(now, vring);
        }
        self.ask_for_pages();
    }

    fn settle_waits(&mut self, now: Instant, vring: u16) {
        let index = usize::from(vring);
        let v = &self.vrings[index].iommu;
        if !v.holds_fetching() && !v.news {
            return;
        }
        let askable = self.has_channel() || self.iommu.channel_given;
        let mut at = 0;
        while let Some(wait) = self.vrings[index].iommu.waits.get_mut(at) {
            if wait.promised && wait.refuse_at.is_none() {
                wait.refuse_at = Some(now + UPDATE_GRACE);
            }
            let Wait { gap, refuse_at, .. } = *wait;
            let translator = Translator {
                tlb: &self.iommu.tlb,
                table: &self.table,
                ring: &self.vrings[index].iommu.map,
            };
            if translator.is_filled(&gap) {
                self.vrings[index].iommu.waits.swap_remove(at);
            } else if refuse_at.is_some_and(|at| at <= now) || !askable {
                // Without a channel nobody can be asked.
                self.vrings[index].iommu.waits.swap_remove(at);
                self.refuse_page(index, gap);
            } else {
                at += 1;
            }
        }
        let v = &mut self.vrings[index];
        let news = core::mem::take(&mut v.iommu.news);
        if v.iommu.held || !v.iommu.waits.is_empty() && !news {
            return;
        }
        match &v.run {
            None if v.started && v.enabled => {
                // The message that started it was answered long ago.
                if let Err(fault) = self.start_vring(now, vring) {
                    self.close(fault);
                }
            }
            None => {}
            Some(run) if run.stopping || run.broken => {}
            Some(_) => {
                if self.resolve_ring(vring) {
                    self.vrings[index].iommu.waits.clear();
                    self.resubmit_rest(vring);
                    self.fetch(now, vring);
                }
            }
        }
    }

    /// The same for a ring that is about to start. Addresses beyond 64 bits are
    /// the front-end's fault.
    pub(super) fn find_ring(&mut self, vring: u16) -> Result<bool, FrontendFault> {
        let v = &self.vrings[usize::from(vring)];
        let addr = v.addr.ok_or(FrontendFault::VringUnset { vring })?;
        let format = self.session.ring_format();
        if v.parts(format).is_none() {
            let (part, got, len) = ("descriptor table", addr.desc, 16 * u64::from(v.size));
            return Err(FrontendFault::VringPlace { vring, part, got, len });
        }
        Ok(self.resolve_ring(vring))
    }

    /// Find out where a ring lies. False if it cannot go on now: it waits, or is
    /// broken because its memory was refused.
    pub(super) fn resolve_ring(&mut self, vring: u16) -> bool {
        let format = self.session.ring_format();
        let v = &mut self.vrings[usize::from(vring)];
        if !v.iommu.map.is_empty() {
            return true;
        }
        let Some(parts) = v.parts(format) else { return false };
        let mut gaps = Vec::new();
        let map = RingMap::resolve(&self.iommu.tlb, &self.table, &parts, &mut gaps);
        if gaps.iter().any(|gap| v.iommu.was_refused(gap)) {
            v.iommu.waits.clear();
            v.iommu.refused.clear();
            match &mut v.run {
                Some(run) => run.broken = true,
                // Not before somebody starts it again.
                None => v.started = false,
            }
            if let Some(handle) = v.err {
                self.out.push_back(Output::Err { vring, handle });
            }
            let fault = GuestFault::Ring { part: "ring" };
            self.event(Event::VringBroken { vring, fault });
            return false;
        }
        if !gaps.is_empty() {
            v.iommu.wait_for(&gaps);
            self.iommu.changed = true;
            return false;
        }
        v.iommu.map = map;
        v.iommu.lost = false;
        v.iommu.waits.clear();
        v.iommu.refused.clear();
        true
    }

    /// A chain lacks pages: its vring waits for them.
    pub(super) fn wait_for_pages(&mut self, vring: u16) {
        self.vrings[usize::from(vring)].iommu.wait_for(&self.scratch.gaps);
        self.iommu.changed = true;
    }

    /// There is a channel to ask on.
    pub(super) fn channel_opened(&mut self) {
        self.iommu.channel_given = true;
        self.iommu.changed = true;
    }
}

/// A message about one page, or one byte.
fn message(kind: u8, iova: u64, access: Access) -> Message {
    let size = if kind == MISS { PAGE } else { 1 };
    Message { iova, size, user_addr: 0, perm: access.bits(), kind }
}
