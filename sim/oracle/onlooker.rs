//! Whoever only looks at a region is told what lies there: the core's second
//! way to a region, which `midflight inspect` and a destination go.
//!
//! The region is also looked at with one field spoiled. A successor that takes
//! a region that contradicts itself completes requests that nobody made, so
//! each spoiled one has to be refused, or to mean what its bytes say.
// spec: vhost-user, "Inflight I/O tracking", queue_region_split

use super::region::Part;
use super::{RegionView, RingView, Violation};
use crate::memory::Mem;
use midflight::inflight::{self, RingState};

/// The part of the region that is looked at.
struct Case {
    bytes: Vec<u8>,
    queues: u16,
    entries: u16,
    vring: u16,
    ring: RingState,
    /// What was spoiled.
    how: &'static str,
}

/// What the bytes ask of a successor.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// Last first.
    published: Vec<u16>,
    /// In the order of fetching.
    live: Vec<(u64, u16)>,
    last_batch_head: u16,
}

/// Ways to spoil a region; see [`spoil`].
const WAYS: u64 = 14;

/// Look at a part, and at one spoiled copy of it; `turn` says which.
pub(super) fn check(
    view: &RingView,
    mem: &Mem,
    region: RegionView<'_>,
    vring: u16,
    turn: u64,
) -> Result<(), Violation> {
    let stride = region.stride() as usize;
    let first = Part(&region.bytes[..stride]);
    if first.version() == 0 {
        return Ok(());
    }
    let ring = RingState {
        size: view.size,
        used_idx: view.used_index(mem),
        avail_idx: view.avail_index(mem),
    };
    let (bytes, queues, entries) = (region.bytes.to_vec(), region.queues, first.desc_num());
    let mut case = Case { bytes, queues, entries, vring, ring, how: "nothing" };
    case.headers()?;
    case.plan()?;
    case.spoil(turn % WAYS);
    case.plan()
}

fn broken(message: String) -> Result<(), Violation> {
    Err(Violation::new("onlooker", message))
}

impl Case {
    fn stride(&self) -> usize {
        self.bytes.len() / usize::from(self.queues)
    }

    fn part(&self) -> Part<'_> {
        Part(&self.bytes[self.stride() * usize::from(self.vring)..][..self.stride()])
    }

    fn view(&self) -> Result<inflight::RegionView<'_>, inflight::InflightFault> {
        inflight::RegionView::new(&self.bytes, self.queues, self.entries)
    }

    /// Headers are shown as they are.
    fn headers(&self) -> Result<(), Violation> {
        let fault = |e: inflight::InflightFault| {
            Violation::new("onlooker", format!("a good region is refused: {e}"))
        };
        let view = self.view().map_err(fault)?;
        let guess = inflight::RegionView::guess_queue_size(&self.bytes).map_err(fault)?;
        let shape = (view.shape().num_queues, view.shape().queue_size, guess);
        let offset = view.offset(self.vring);
        let shown = view.header(self.vring).map_err(fault)?;
        let part = self.part();
        let there = inflight::Header {
            features: part.features(),
            version: part.version(),
            desc_num: part.desc_num(),
            last_batch_head: part.last_batch_head(),
            used_idx: part.used_idx(),
        };
        if shown != there {
            return broken(format!("the header says {there:?}, shown is {shown:?}"));
        }
        if offset != (self.stride() * usize::from(self.vring)) as u64 {
            return broken(format!("the part of vring {} is said to be at {offset}", self.vring));
        }
        if shape != (self.queues, self.entries, self.entries) {
            return broken(format!("a region of {} vrings is said to be {shape:?}", self.queues));
        }
        match view.header(self.queues) {
            Ok(_) => broken(format!("there is a header of vring {}, of {0}", self.queues)),
            Err(_) => Ok(()),
        }
    }

    /// What the core would do is what the bytes ask for.
    fn plan(&self) -> Result<(), Violation> {
        let asked = self.asked();
        let planned = self.view().and_then(|view| view.plan(self.vring, self.ring));
        let planned = planned.map(|plan| {
            plan.map(|p| Asked {
                published: p.published,
                live: p.live,
                last_batch_head: p.last_batch_head,
            })
        });
        match (&asked, &planned) {
            (Ok(asked), Ok(planned)) if asked == planned => Ok(()),
            (Err(_), Err(_)) => Ok(()),
            _ => broken(format!(
                "vring {} (spoiled: {}): the region asks for {asked:?}, a successor would do {planned:?}",
                self.vring, self.how
            )),
        }
    }

    /// The document's algorithm for who reconnects, and what contradicts it.
    fn asked(&self) -> Result<Option<Asked>, &'static str> {
        let RingState { size, used_idx, avail_idx } = self.ring;
        let need = 16 + 16 * usize::from(self.entries);
        if self.stride() < need || !self.stride().is_multiple_of(8) {
            return Err("the parts do not fit");
        }
        if self.vring >= self.queues {
            return Err("the vring has no part");
        }
        if size > self.entries {
            return Err("the ring has more entries than its part");
        }
        let part = self.part();
        match part.version() {
            0 => return Ok(None),
            1 if part.desc_num() == self.entries => {}
            1 => return Err("another number of entries"),
            _ => return Err("another version"),
        }
        let ahead = used_idx.wrapping_sub(part.used_idx());
        if ahead > size {
            return Err("the batch is longer than the ring");
        }
        let mut published = Vec::new();
        let mut head = part.last_batch_head();
        for _ in 0..ahead {
            if head >= size || published.contains(&head) {
                return Err("the batch leaves the table or meets itself");
            }
            published.push(head);
            head = part.next(head);
        }
        if (0..self.entries).any(|head| part.flag(head) > 1) {
            return Err("an entry is neither in flight nor not");
        }
        let heads = (0..self.entries).filter(|h| part.inflight(*h) && !published.contains(h));
        let mut live: Vec<_> = heads.map(|head| (part.counter(head), head)).collect();
        if (size..self.entries).any(|head| part.inflight(head)) {
            return Err("a head is in flight that the ring has not");
        }
        if live.len() > usize::from(avail_idx.wrapping_sub(used_idx)) {
            return Err("more is in flight than was made available");
        }
        live.sort_unstable();
        Ok(Some(Asked { published, live, last_batch_head: part.last_batch_head() }))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let start = self.stride() * usize::from(self.vring) + at;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn flag(&mut self, head: u16, value: u8) {
        self.put(16 + 16 * usize::from(head), &[value]);
    }

    /// Spoil one thing. The neighbours of a limit are both tried.
    fn spoil(&mut self, way: u64) {
        let RingState { size, used_idx, avail_idx } = self.ring;
        let last = self.part().last_batch_head();
        match way {
            0 => (self.how = "version", self.put_u16(8, 2)).0,
            1 => (self.how = "desc_num", self.put_u16(10, self.entries + 1)).0,
            2 => {
                self.how = "a batch of one more than the ring";
                self.put_u16(14, used_idx.wrapping_sub(size + 1));
            }
            3 | 4 => {
                // All heads in turn, and one more head that the ring has not.
                self.how = "a batch of the whole ring";
                for head in 1..size {
                    self.put_u16(16 + 16 * usize::from(head) + 6, head - 1);
                }
                self.put_u16(12, if way == 3 { size - 1 } else { size });
                self.put_u16(14, used_idx.wrapping_sub(if way == 3 { size } else { 1 }));
            }
            5 => {
                self.how = "a head linked twice";
                self.put_u16(16 + 16 * usize::from(last % size) + 6, last);
                self.put_u16(14, used_idx.wrapping_sub(2));
            }
            6 => {
                self.how = "a flag that is 2";
                self.flag(size - 1, 2);
            }
            7 => {
                self.how = "a flag beyond the ring";
                self.flag(self.entries - 1, 1);
            }
            8 | 9 => {
                // As many as were made available, or one more.
                self.how = "flags";
                let available = avail_idx.wrapping_sub(used_idx);
                for head in 0..size {
                    self.flag(head, u8::from(head < available + u16::from(way == 9)));
                }
                self.put_u16(14, used_idx);
            }
            10 => {
                self.how = "a ring larger than its part";
                self.ring.size = self.entries + 1;
            }
            11 => (self.how = "a vring without a part", self.vring = self.queues).0,
            12 => {
                self.how = "bytes that are not there";
                self.bytes
                    .truncate((15 + 16 * usize::from(self.entries)) * usize::from(self.queues));
            }
            _ => (self.how = "nobody has used it", self.put_u16(8, 0)).0,
        }
    }
}
