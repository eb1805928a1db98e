//! Faults at work: what strikes a request, and what it finds damaged.

use super::injected::{Content, Counts, Injected};
use super::plan::Cursor;
use super::view::{View, content};
use super::{DiskFault, Family, FaultPlan, TimedFault};
use crate::choices::Stream;
use crate::disk::{Image, Job, SECTOR};
use crate::trace::Verb;
use midflight::blk::DiskError;

/// The error of a medium that cannot.
const EIO: DiskError = DiskError::Os(5);

/// A time in which completions are held back; nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: u64,
    to: u64,
    /// Nanoseconds from one completion to the next; `None`: there is none.
    every: Option<u64>,
    /// When the next may come.
    next: u64,
    struck: bool,
}

/// What a fault makes of a request that is about to move its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Struck {
    /// Bytes that move.
    pub limit: u64,
    /// How it ends.
    pub result: Result<(), DiskError>,
    /// The sector to blame for that, and the family.
    pub blame: (Option<u64>, Option<Family>),
}

/// See the module.
#[derive(Debug)]
pub struct Faults {
    cursor: Cursor,
    view: View,
    windows: Vec<Window>,
    /// What a loss of power leaves of the cache.
    pub stream: Stream,
    pub counts: Counts,
}

impl Faults {
    pub fn new(plan: &FaultPlan, stream: Stream) -> Self {
        let window = |(at, fault): &(u64, TimedFault)| {
            let (us, every) = match *fault {
                TimedFault::Stall { us } => (us, None),
                TimedFault::Throttle { us, every_us } => (us, Some(1_000 * u64::from(every_us))),
                TimedFault::PowerLoss => return None,
            };
            let from = 1_000 * at;
            Some(Window {
                from,
                to: from + 1_000 * u64::from(us),
                every,
                next: from,
                struck: false,
            })
        };
        Self {
            cursor: Cursor::new(plan),
            view: View::default(),
            windows: plan.at_times().iter().filter_map(window).collect(),
            stream,
            counts: Counts::default(),
        }
    }

    /// The fault that strikes with the next request.
    pub fn next(&mut self, verb: Verb) -> Option<DiskFault> {
        self.cursor.next(verb)
    }

    /// When a completion that would come now may come, if later; and whether it
    /// has its turn then, or has to ask again.
    pub fn hold(&mut self, now: u64) -> Option<(u64, bool)> {
        let window = self.windows.iter_mut().find(|w| (w.from..w.to).contains(&now))?;
        if !std::mem::replace(&mut window.struck, true) {
            self.counts.note(if window.every.is_some() { Family::Throttle } else { Family::Stall });
        }
        let Some(every) = window.every else { return Some((window.to, false)) };
        let at = window.next.clamp(now, window.to);
        window.next = at + every;
        (at > now).then_some((at, true))
    }

    /// No more faults, and no more errors of the medium. What sectors show stays.
    pub fn heal(&mut self) {
        self.cursor.clear();
        self.windows.clear();
        self.view.unreadable.clear();
        self.view.unwritable.clear();
    }

    /// Bytes of a job before the first sector that cannot do it, and that sector.
    pub fn reach(&self, job: &Job) -> Option<(u64, u64, Family)> {
        let (bad, family) = match job.verb {
            Verb::Read => (&self.view.unreadable, Family::ReadError),
            Verb::Write | Verb::Discard | Verb::WriteZeroes => {
                (&self.view.unwritable, Family::WriteError)
            }
            Verb::Flush | Verb::GetId | Verb::Unknown => return None,
        };
        let first = job.offset / SECTOR;
        let sector = *bad.range(first..first + job.len / SECTOR).next()?;
        Some(((sector - first) * SECTOR, sector, family))
    }

    /// A request is about to move `limit` bytes.
    pub fn strike(
        &mut self,
        job: &Job,
        fault: Option<DiskFault>,
        image: &mut Image,
        mark: u64,
        told: &mut Vec<Injected>,
    ) -> Struck {
        let (first, sectors) = (job.offset / SECTOR, job.len / SECTOR);
        let place = |at: u32| first + u64::from(at) % sectors.max(1);
        let mut struck = Struck { limit: job.len, result: Ok(()), blame: (None, None) };
        match fault {
            Some(DiskFault::ReadError { at }) => {
                self.view.unreadable.insert(place(at));
                self.counts.note(Family::ReadError);
            }
            Some(DiskFault::WriteError { at }) => {
                self.view.unwritable.insert(place(at));
                self.counts.note(Family::WriteError);
            }
            Some(DiskFault::Corrupt { at, bit }) => {
                let sector = place(at);
                let mut seen = self.view.seen(image, sector);
                let bit = bit as usize % (8 * seen.len());
                seen[bit / 8] ^= 1 << (bit % 8);
                self.show(image, [(sector, seen)], Family::Corrupt, told);
            }
            Some(DiskFault::MisdirectedRead { by }) => {
                let found: Vec<_> = (first..first + sectors)
                    .map(|s| (s, self.view.seen(image, elsewhere(image, s, by))))
                    .collect();
                self.show(image, found, Family::MisdirectedRead, told);
            }
            Some(DiskFault::Short { sectors: moved }) if sectors > 0 => {
                struck.limit = SECTOR * (u64::from(moved) % sectors);
                struck.result = Err(DiskError::Short { expected: job.len, moved: struck.limit });
                struck.blame.1 = Some(Family::Short);
                self.counts.note(Family::Short);
            }
            Some(DiskFault::FailedFlush { forgets }) => {
                struck.result = Err(EIO);
                struck.blame.1 = Some(Family::FailedFlush);
                self.counts.note(Family::FailedFlush);
                if forgets {
                    let lost = image.forget(mark).into_iter();
                    told.extend(lost.map(|sector| Injected::Forgets { sector }));
                }
            }
            Some(DiskFault::LyingFlush) => {
                told.push(Injected::Lies { of: job.into() });
                self.counts.note(Family::LyingFlush);
            }
            Some(
                DiskFault::Short { .. }
                | DiskFault::MisdirectedWrite { .. }
                | DiskFault::LostWrite
                | DiskFault::Duplicate { .. },
            )
            | None => {}
        }
        if let Some((reach, sector, family)) = self.reach(job)
            && reach < struck.limit
        {
            struck = Struck { limit: reach, result: Err(EIO), blame: (Some(sector), Some(family)) };
        }
        struck
    }

    /// Put what is seen over the truth that was read from `offset` on.
    pub fn overlay(&self, offset: u64, bytes: &mut [u8]) {
        self.view.overlay(offset, bytes);
    }

    /// What sectors show now, where a fault will show it still after a write.
    pub fn before_write(
        &self,
        fault: Option<DiskFault>,
        image: &Image,
        offset: u64,
        len: u64,
    ) -> Vec<(u64, Content)> {
        let stays = match fault {
            Some(DiskFault::LostWrite) => true,
            Some(DiskFault::MisdirectedWrite { by }) => by % image.sectors() > 0,
            _ => false,
        };
        let sectors = offset / SECTOR..(offset + len) / SECTOR;
        sectors.filter(|_| stays).map(|s| (s, self.view.seen(image, s))).collect()
    }

    /// The truth was written: `bytes`, or zeroes, from `offset` on.
    pub fn after_write(
        &mut self,
        fault: Option<DiskFault>,
        image: &Image,
        (offset, len): (u64, u64),
        old: Vec<(u64, Content)>,
        told: &mut Vec<Injected>,
    ) {
        let sectors = offset / SECTOR..(offset + len) / SECTOR;
        sectors.clone().for_each(|sector| self.view.heal(sector, told));
        match fault {
            Some(DiskFault::LostWrite) => self.show(image, old, Family::LostWrite, told),
            Some(DiskFault::MisdirectedWrite { by }) if by % image.sectors() > 0 => {
                // Both ends, the wrong one last: it may be one of the right ones.
                let astray = sectors.map(|s| (elsewhere(image, s, by), content(image.sector(s))));
                let all: Vec<_> = old.into_iter().chain(astray).collect();
                self.show(image, all, Family::MisdirectedWrite, told);
            }
            _ => {}
        }
    }

    /// Sectors show this from now on; counted once.
    fn show(
        &mut self,
        image: &Image,
        what: impl IntoIterator<Item = (u64, Content)>,
        by: Family,
        told: &mut Vec<Injected>,
    ) {
        let mut differs = false;
        for (sector, content) in what {
            differs |= self.view.show(image, sector, content, by, told);
        }
        if differs {
            self.counts.note(by);
        }
    }
}

fn elsewhere(image: &Image, sector: u64, by: u64) -> u64 {
    let sectors = image.sectors();
    (sector + by % sectors) % sectors
}
