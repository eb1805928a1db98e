//! Pages that vrings wait for: asking for them, and going on.

use super::{Open, Question, UPDATE_GRACE, Wait};
use crate::backend::channel::Asked;
use crate::backend::{Backend, Event, FrontendFault, GuestFault, Output};
use crate::iommu::{Access, Gap, PAGE, RingMap, Translator};
use crate::time::Instant;
use crate::wire::{BackendRequest, Iotlb as Message};
use vm_memory::GuestMemory;

/// Questions without an answer at a time: a front-end that answers none, but
/// takes back what was asked for, makes no more of them.
const MOST_QUESTIONS: usize = 4096;

/// Types of an IOTLB message.
const MISS: u8 = 1;
const ACCESS_FAIL: u8 = 4;

impl<M: GuestMemory> Backend<M> {
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
                if self.answers_due() >= MOST_QUESTIONS {
                    return;
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
    pub(in crate::backend) fn miss_answered(&mut self, question: Question, status: u64) {
        // There is room for another one, whatever this one was.
        self.iommu.changed = true;
        let key = (question.page, question.access);
        if self.iommu.open.get(&key).is_none_or(|open| open.id != question.id) {
            return;
        }
        self.iommu.open.remove(&key);
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
        let room = self.has_channel() && self.answers_due() < MOST_QUESTIONS;
        if room && self.iommu.tlb.find(iova).is_some() {
            let message = message(ACCESS_FAIL, iova, access);
            self.ask(BackendRequest::IotlbMsg(message), Asked::AccessFail);
        }
    }

    /// When to look again by itself: at once, if one call was not allowed to do
    /// it all, or when an update that was promised is overdue.
    pub(in crate::backend) fn update_due(&self) -> Option<Instant> {
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
    pub(in crate::backend) fn go_on_waiting(&mut self, now: Instant) {
        if self.update_due().is_none_or(|at| at > now) {
            return;
        }
        self.iommu.changed = false;
        for vring in 0..self.config.num_queues {
            self.settle_waits(now, vring);
        }
        self.ask_for_pages();
        if self.may_ask() {
            // What was found to be missing meanwhile has been asked for.
            self.iommu.changed = false;
        }
    }

    /// True if a page that is not known may become so by asking.
    fn may_ask(&self) -> bool {
        self.has_channel() || self.iommu.channel_given
    }

    fn settle_waits(&mut self, now: Instant, vring: u16) {
        let index = usize::from(vring);
        let v = &self.vrings[index].iommu;
        if !v.holds_fetching() && !v.news {
            return;
        }
        let askable = self.may_ask();
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
            Some(_) => self.run_on(now, vring),
        }
    }

    /// A vring that runs has what it waited for, or knows that it is refused.
    fn run_on(&mut self, now: Instant, vring: u16) {
        if !self.resolve_ring(vring) {
            return;
        }
        self.vrings[usize::from(vring)].iommu.waits.clear();
        self.resubmit_rest(vring);
        self.fetch(now, vring);
    }

    /// The same for a ring that is about to start. Addresses beyond 64 bits are
    /// the front-end's fault.
    pub(in crate::backend) fn find_ring(&mut self, vring: u16) -> Result<bool, FrontendFault> {
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
    pub(in crate::backend) fn resolve_ring(&mut self, vring: u16) -> bool {
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
    pub(in crate::backend) fn wait_for_pages(&mut self, vring: u16) {
        self.vrings[usize::from(vring)].iommu.wait_for(&self.scratch.gaps);
        self.iommu.changed = true;
    }

    /// There is a channel to ask on.
    pub(in crate::backend) fn ask_again(&mut self) {
        self.iommu.channel_given = true;
        self.iommu.changed = true;
    }
}

/// A message about one page, or one byte.
fn message(kind: u8, iova: u64, access: Access) -> Message {
    let size = if kind == MISS { PAGE } else { 1 };
    Message { iova, size, user_addr: 0, perm: access.bits(), kind }
}
