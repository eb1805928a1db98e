//! Every read returns a value that some legal order of the writes allows.
//!
//! A sector is a register. While writes overlap in time it has a set of values
//! it may hold; a read that ran alone settles it.

use super::durability::superseded;
use super::excuses::Excuses;
use super::{Ask, Violation};
use crate::disk::{Image, SECTOR};
use crate::memory::Mem;
use crate::pattern;
use crate::trace::Verb;
use vm_memory::GuestAddress;

/// A change to one sector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub request: u64,
    /// Tag the sector has afterwards; 0 for zeroes.
    pub tag: u64,
    /// Tick of publication.
    pub submitted: u64,
    /// Tick of the used entry.
    pub completed: Option<u64>,
    /// Acknowledged, and the sector surely had this tag then, and no loss of
    /// power may have undone it since.
    pub certain: bool,
}

impl Change {
    /// Whether a flush submitted at tick `promised` covers it. What was asked for
    /// up to `lapsed` is covered by none.
    pub fn is_promised(&self, promised: u64, lapsed: u64) -> bool {
        self.submitted > lapsed && self.completed.is_some_and(|at| at < promised)
    }
}

/// What every sector has been through from the beginning.
static ZEROES: Change =
    Change { request: u64::MAX, tag: 0, submitted: 0, completed: Some(0), certain: true };

#[derive(Clone, Debug, Default)]
struct Sector {
    /// From [`ZEROES`] on; empty as long as that is all, as on most of a disk.
    history: Vec<Change>,
    /// Indexes into `history` of what the sector may hold.
    possible: Vec<usize>,
    /// The same when power was lost last, and how long `history` was then.
    left: Vec<usize>,
    since: usize,
}

struct ReadUnderWay {
    request: u64,
    sector: u64,
    /// Tick of publication.
    submitted: u64,
    /// By sector: tags that would be right, and whether anything was changing.
    allowed: Vec<(Vec<u64>, bool)>,
}

pub(super) struct Sectors {
    sectors: Vec<Sector>,
    reads: Vec<ReadUnderWay>,
    /// Reads that are over, to be used again.
    spare: Vec<ReadUnderWay>,
    buffer: Vec<u8>,
    pub excuses: Excuses,
}

impl Sectors {
    pub fn new(sectors: u64) -> Self {
        Self {
            sectors: vec![Sector::default(); sectors as usize],
            reads: Vec::new(),
            spare: Vec::new(),
            buffer: Vec::new(),
            excuses: Excuses::default(),
        }
    }

    /// Everything that ever happened to a sector.
    pub fn history(&self, sector: u64) -> &[Change] {
        match &self.sectors[sector as usize].history[..] {
            [] => std::slice::from_ref(&ZEROES),
            history => history,
        }
    }

    pub fn submitted(&mut self, ask: &Ask, tick: u64) {
        let range = ask.sector as usize..(ask.sector + ask.sectors) as usize;
        let tag = match ask.verb {
            Verb::Read => {
                self.read_begins(ask, tick);
                return;
            }
            Verb::Write => pattern::tag(ask.request),
            Verb::Discard | Verb::WriteZeroes => 0,
            Verb::Flush | Verb::GetId | Verb::Unknown => return,
        };
        let change =
            Change { request: ask.request, tag, submitted: tick, completed: None, certain: false };
        for sector in &mut self.sectors[range] {
            sector.wake();
            sector.possible.push(sector.history.len());
            sector.history.push(change);
        }
        for read in &mut self.reads {
            let end = read.sector + read.allowed.len() as u64;
            for at in ask.sector.max(read.sector)..(ask.sector + ask.sectors).min(end) {
                let (tags, changing) = &mut read.allowed[(at - read.sector) as usize];
                tags.push(tag);
                *changing = true;
            }
        }
    }

    fn read_begins(&mut self, ask: &Ask, tick: u64) {
        let spare = self.spare.pop();
        let mut allowed = spare.map_or_else(Vec::new, |read| read.allowed);
        allowed.resize_with(ask.sectors as usize, Default::default);
        let sectors = &self.sectors[ask.sector as usize..];
        for (sector, (tags, changing)) in sectors.iter().zip(&mut allowed) {
            tags.clear();
            tags.extend(sector.tags());
            *changing = sector.is_changing();
        }
        let Ask { request, sector, .. } = *ask;
        self.reads.push(ReadUnderWay { request, sector, submitted: tick, allowed });
    }

    /// A request is used. `ok`: it was acknowledged as done.
    pub fn completed(&mut self, ask: &Ask, ok: bool, tick: u64) {
        if let Some(at) = self.reads.iter().position(|read| read.request == ask.request) {
            self.spare.push(self.reads.swap_remove(at));
        }
        if !matches!(ask.verb, Verb::Write | Verb::Discard | Verb::WriteZeroes) {
            return;
        }
        // A discarded range may have kept its content; a failed write may have
        // changed some of it.
        let certain = ok && ask.verb != Verb::Discard;
        for sector in &mut self.sectors[ask.sector as usize..(ask.sector + ask.sectors) as usize] {
            sector.complete(ask.request, certain, tick);
        }
    }

    /// Compare what a finished read has put into guest memory.
    pub fn check_read(&mut self, mem: &Mem, ask: &Ask) -> Result<(), Violation> {
        let broken = |message: String| Err(Violation::new("sectors", message));
        self.buffer.clear();
        for (addr, len) in &ask.data {
            let at = self.buffer.len();
            self.buffer.resize(at + *len as usize, 0);
            mem.read_slice(&mut self.buffer[at..], GuestAddress(*addr))
                .expect("buffers lie in guest memory");
        }
        let Some(read) = self.reads.iter().find(|read| read.request == ask.request) else {
            return broken(format!("request {} is no read under way", ask.request));
        };
        for (i, content) in self.buffer.chunks_exact(SECTOR as usize).enumerate() {
            let at = ask.sector + i as u64;
            let (allowed, changing) = &read.allowed[i];
            if self.excuses.explain(at, read.submitted, content) {
                continue;
            }
            let Some(tag) = pattern::decode(content, at) else {
                return broken(format!(
                    "request {} read sector {at}: the content is no write's, it begins with {:02x?}",
                    ask.request,
                    &content[..16]
                ));
            };
            if !allowed.contains(&tag) {
                return broken(format!(
                    "request {} read sector {at}: found {}, expected one of {}",
                    ask.request,
                    writer(tag),
                    allowed.iter().map(|t| writer(*t)).collect::<Vec<_>>().join(", ")
                ));
            }
            // Under damage the truth may be another than what was seen.
            if !changing && !self.excuses.is_damaged(at, read.submitted) {
                self.sectors[at as usize].settle(tag);
            }
        }
        Ok(())
    }

    /// Power was lost: of everything that was acknowledged, only what was
    /// submitted and completed before `promised` is sure to be there.
    pub fn power_lost(&mut self, promised: u64) {
        let written = |(_, sector): &(u64, &mut Sector)| !sector.history.is_empty();
        for (at, sector) in (0u64..).zip(&mut self.sectors).filter(written) {
            sector.power_lost(promised, self.excuses.lapsed(at));
        }
        // Reads under way are asked for again and find what is left.
        for read in &mut self.reads {
            for (at, (tags, changing)) in (read.sector as usize..).zip(&mut read.allowed) {
                tags.extend(self.sectors[at].tags());
                *changing = true;
            }
        }
    }

    /// Compare what lies on the disk.
    pub fn check_image(&self, image: &Image) -> Result<(), Violation> {
        for (at, sector) in (0u64..).zip(&self.sectors) {
            if sector.history.is_empty() && !image.is_written(at) {
                continue;
            }
            let found = pattern::decode(image.sector(at), at);
            if !found.is_some_and(|found| sector.tags().any(|tag| tag == found)) {
                let allowed: Vec<String> = sector.tags().map(writer).collect();
                return Err(Violation::new(
                    "sectors",
                    format!(
                        "sector {at} of the disk holds {}, expected one of {}",
                        found.map_or("what nobody wrote".into(), writer),
                        allowed.join(", ")
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn writer(tag: u64) -> String {
    if tag == 0 { "zeroes".into() } else { format!("write {}", tag - 1) }
}

impl Sector {
    /// It is written to for the first time.
    fn wake(&mut self) {
        if self.history.is_empty() {
            self.history.push(ZEROES);
            self.possible.push(0);
        }
    }

    /// Tags it may hold.
    fn tags(&self) -> impl Iterator<Item = u64> + '_ {
        let untouched = self.history.is_empty().then_some(ZEROES.tag);
        untouched.into_iter().chain(self.possible.iter().map(|i| self.history[*i].tag))
    }

    /// Whether one of them is still being written.
    fn is_changing(&self) -> bool {
        self.possible.iter().any(|i| self.history[*i].completed.is_none())
    }

    fn complete(&mut self, request: u64, certain: bool, tick: u64) {
        let Some(change) = self.history.iter_mut().rev().find(|c| c.request == request) else {
            return;
        };
        change.completed = Some(tick);
        change.certain = certain;
        let submitted = change.submitted;
        if certain {
            // What was over before this began can no longer be seen.
            let history = &self.history;
            self.possible.retain(|i| {
                history[*i].request == request
                    || history[*i].completed.is_none_or(|at| at >= submitted)
            });
        }
    }

    /// A read that met no writer has seen this; later ones see it too.
    fn settle(&mut self, tag: u64) {
        let history = &self.history;
        if history.is_empty() {
            return;
        }
        self.possible.retain(|i| history[*i].tag == tag || history[*i].completed.is_none());
        // Nobody has written since power was lost, so it has seen what was left.
        if self.since == history.len() {
            self.left.clone_from(&self.possible);
        }
    }

    /// See [`Sectors::power_lost`]. What was asked for up to `lapsed` was promised
    /// by nobody.
    fn power_lost(&mut self, promised: u64, lapsed: u64) {
        let history = &self.history;
        let newer = self.since..history.len();
        let mut left: Vec<usize> = self.left.iter().copied().chain(newer).collect();
        left.retain(|i| superseded(history, &history[*i], promised, lapsed).is_none());
        self.since = history.len();
        self.left.clone_from(&left);
        self.possible = left;
        // The others may be gone by right.
        for change in &mut self.history {
            change.certain &= change.is_promised(promised, lapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Expect;

    fn ask(request: u64, verb: Verb) -> Ask {
        Ask {
            request,
            vring: 0,
            head: 0,
            verb,
            sector: 3,
            sectors: 1,
            expect: Expect::Ok,
            data: Vec::new(),
            status: 0,
            published: None,
            order: 0,
        }
    }

    fn tags(s: &Sectors) -> Vec<u64> {
        let mut tags: Vec<u64> = s.sectors[3].tags().collect();
        tags.sort_unstable();
        tags
    }

    #[test]
    fn sectors_overlapping_writes_leave_either_value() {
        let mut s = Sectors::new(8);
        let (a, b, c) = (ask(1, Verb::Write), ask(2, Verb::Write), ask(3, Verb::Write));
        s.submitted(&a, 10);
        s.submitted(&b, 11);
        assert_eq!(tags(&s), [0, 2, 3]);
        s.completed(&a, true, 12);
        assert_eq!(tags(&s), [2, 3]);
        s.completed(&b, true, 13);
        assert_eq!(tags(&s), [2, 3]);
        s.submitted(&c, 14);
        s.completed(&c, true, 15);
        assert_eq!(tags(&s), [4]);
    }

    #[test]
    fn sectors_discarded_or_failed_ranges_keep_the_old_value_possible() {
        let mut s = Sectors::new(8);
        let (a, d) = (ask(1, Verb::Write), ask(2, Verb::Discard));
        s.submitted(&a, 10);
        s.completed(&a, true, 11);
        s.submitted(&d, 12);
        s.completed(&d, true, 13);
        assert_eq!(tags(&s), [0, 2]);
        let f = ask(3, Verb::Write);
        s.submitted(&f, 14);
        s.completed(&f, false, 15);
        assert_eq!(tags(&s), [0, 2, 4]);
        s.sectors[3].settle(2);
        assert_eq!(tags(&s), [2]);
    }

    #[test]
    fn sectors_a_read_may_see_writes_that_start_while_it_runs() {
        let mut s = Sectors::new(8);
        let r = ask(1, Verb::Read);
        s.submitted(&r, 10);
        s.submitted(&ask(2, Verb::Write), 11);
        assert_eq!(s.reads[0].allowed, [(vec![0, 3], true)]);
    }
}
