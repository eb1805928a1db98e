//! Rounds of copying while the guest runs, by the dirty log and by what is seen of
//! the guest's own stores.

use super::{Page, Stage};
use crate::guest::memory::REGIONS;
use crate::memory::PAGE;
use crate::oracle::Violation;
use crate::scenario::Fate;
use crate::trace::Moving;
use crate::world::{Event, World};
use midflight::frontend::Phase;
use std::collections::BTreeSet;

/// Pages that are copied in one go.
const CHUNK: usize = 16;

impl World<'_> {
    /// The source's back-end logs: copy everything once.
    pub(in crate::world) fn on_logging(&mut self) {
        let here = self.here.id;
        let latency = match &mut self.migration {
            Some(m) if m.stage == Stage::Logging && m.source == here => {
                m.stage = Stage::Copying;
                m.pages = (0u8..)
                    .zip(REGIONS)
                    .flat_map(|(i, r)| (0..r.size / PAGE as u64).map(move |page| (i, page)))
                    .collect();
                1_000 * m.plan.latency
            }
            _ => return,
        };
        let (attempt, pages) = (self.migrating().attempt, self.migrating().pages.len() as u64);
        self.say_moving(Moving::Round, 0, pages);
        self.schedule(latency, Event::Copy(attempt));
    }

    /// The link takes a few pages, or the round is over.
    pub(in crate::world) fn copy(&mut self, attempt: u64) -> Result<(), Violation> {
        let m = self.migrating();
        if m.attempt != attempt || !matches!(m.stage, Stage::Copying | Stage::Final) {
            return Ok(());
        }
        let (source, page_ns) = (m.source, m.plan.page_ns);
        let chunk: Vec<Page> = (0..CHUNK).map_while(|_| m.pages.pop_first()).collect();
        self.focus(source);
        if chunk.is_empty() {
            return self.round_over();
        }
        let from = self.here.guest_memory.ids;
        let to = self.there.as_ref().map_or(from, |there| there.guest_memory.ids);
        for (region, page) in &chunk {
            let region = usize::from(*region);
            self.arena.copy_page(from[region], to[region], *page);
        }
        self.stats.pages += chunk.len() as u64;
        self.schedule(page_ns * chunk.len() as u64, Event::Copy(attempt));
        Ok(())
    }

    fn round_over(&mut self) -> Result<(), Violation> {
        if self.migrating().stage == Stage::Final {
            return self.hand_over();
        }
        let pages = self.take_dirty();
        let count = pages.len() as u64;
        let m = self.migrating();
        m.pages = pages;
        m.round += 1;
        let (round, attempt) = (m.round, m.attempt);
        if matches!(m.fate, Fate::BrokenOffInRound(at) if round > at) {
            return self.break_off();
        }
        let few = count <= m.plan.few_pages || round >= m.plan.rounds;
        let stoppable =
            self.here.front.phase() == Phase::Running && !self.guest.borrow().is_paused();
        if few && stoppable {
            return self.stop_guest(count);
        }
        self.say_moving(Moving::Round, round, count);
        // A guest that is paused or has no back-end just now is waited for.
        self.schedule(if few { 50_000 } else { 1_000 }, Event::Copy(attempt));
        Ok(())
    }

    /// Pages written since this was asked last: the log, read and cleared, and
    /// what the guest itself has stored.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<Page> {
        let mut pages = BTreeSet::new();
        for (i, id) in (0u8..).zip(self.here.guest_memory.ids) {
            pages.extend(self.arena.take_dirty(id).into_iter().map(|page| (i, page)));
        }
        let Some(log) = self.here.log else { return pages };
        for (i, region) in (0u8..).zip(REGIONS) {
            let first = region.guest / PAGE as u64;
            for byte in first / 8..(first + region.size / PAGE as u64).div_ceil(8) {
                let bits = self.arena.with_image(log, |image| image[byte as usize]);
                if bits == 0 {
                    continue;
                }
                self.arena.put(log, byte, &[0]);
                let set = (0..8).filter(|bit| bits & 1 << bit != 0);
                pages.extend(set.map(|bit| (i, 8 * byte + bit - first)));
            }
        }
        pages
    }
}
