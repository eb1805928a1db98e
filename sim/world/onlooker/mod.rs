//! Whoever only looks at a region is told what lies there: the core's second
//! way to a region, which `midflight inspect` and a destination go.
//!
//! The region is also looked at with one field spoiled. A successor that takes
//! a region that contradicts itself completes requests that nobody made, so
//! each spoiled one has to be refused, or to mean what its bytes say.
// spec: vhost-user, "Inflight I/O tracking", queue_region_split

mod packed;

use super::World;
use crate::memory::Mem;
use crate::oracle::{Asked, PackedReading, PackedView, Reading, RegionView, RingView, Violation};
use midflight::inflight::{self, InflightFault, RingState};

/// Ways to spoil a region; see [`Case::spoil`].
const WAYS: u64 = 14;

/// A region that is looked at.
struct Case {
    region: Reading,
    /// What was spoiled.
    how: &'static str,
}

impl World<'_> {
    /// Look at the parts of vrings that nobody runs, and at a spoiled copy of
    /// each; the number of steps says how it is spoiled.
    pub(super) fn check_onlooker(&self, bytes: &[u8]) -> Result<(), Violation> {
        let queues = self.topology.queues;
        let runs = |vring| self.here.back.as_ref().is_some_and(|b| b.runs(vring));
        let oracle = self.oracle.borrow();
        let mem = &self.here.guest_memory.mem;
        // Of a region that nobody has used there is nothing to tell.
        let entries = RegionView::of(bytes, &self.topology).entries();
        let Some(entries) = entries.filter(|_| oracle.judges().region) else { return Ok(()) };
        for vring in (0..queues).filter(|vring| !runs(*vring)) {
            let ring = match oracle.ledger().ring(vring) {
                RingView::Split(ring) => ring,
                RingView::Packed(ring) => {
                    let region = packed_reading(bytes, [queues, entries, vring], ring, mem);
                    let mut case = packed::Case { region, how: "nothing" };
                    case.headers()?;
                    case.plan()?;
                    case.spoil(self.steps % packed::WAYS);
                    case.plan()?;
                    continue;
                }
            };
            let region = Reading {
                bytes: bytes.to_vec(),
                queues,
                entries,
                vring,
                size: ring.size,
                used_idx: ring.used_index(mem),
                avail_idx: ring.avail_index(mem),
            };
            let mut case = Case { region, how: "nothing" };
            case.headers()?;
            case.plan()?;
            case.spoil(self.steps % WAYS);
            case.plan()?;
        }
        Ok(())
    }
}

fn packed_reading(
    bytes: &[u8],
    [queues, entries, vring]: [u16; 3],
    ring: &PackedView,
    mem: &Mem,
) -> PackedReading {
    let places = 0..2 * u32::from(ring.size);
    PackedReading {
        bytes: bytes.to_vec(),
        queues,
        entries,
        vring,
        size: ring.size,
        was_used: places.map(|place| ring.was_used(mem, place)).collect(),
    }
}

/// What the core would do is what the bytes ask for, or both say no.
fn same_plan<T: PartialEq + core::fmt::Debug, A: core::fmt::Debug, P: core::fmt::Debug>(
    vring: u16,
    how: &str,
    asked: &Result<T, A>,
    planned: &Result<T, P>,
) -> Result<(), Violation> {
    match (asked, planned) {
        (Ok(asked), Ok(planned)) if asked == planned => Ok(()),
        (Err(_), Err(_)) => Ok(()),
        _ => broken(format!(
            "vring {vring} (spoiled: {how}): the region asks for {asked:?}, a successor would do {planned:?}"
        )),
    }
}

fn broken(message: String) -> Result<(), Violation> {
    Err(Violation::new("onlooker", message))
}

impl Case {
    fn view(&self) -> Result<inflight::RegionView<'_>, InflightFault> {
        let Reading { bytes, queues, entries, .. } = &self.region;
        inflight::RegionView::new(bytes, *queues, *entries)
    }

    /// Headers are shown as they are.
    fn headers(&self) -> Result<(), Violation> {
        let fault =
            |e: InflightFault| Violation::new("onlooker", format!("a good region is refused: {e}"));
        let Reading { queues, entries, vring, .. } = self.region;
        let view = self.view().map_err(fault)?;
        let guess = inflight::RegionView::guess_queue_size(&self.region.bytes).map_err(fault)?;
        let shape = (view.shape().num_queues, view.shape().queue_size, guess);
        let offset = view.offset(vring);
        let shown = view.header(vring).map_err(fault)?;
        let inflight::Header { features, version, desc_num, last_batch_head, used_idx } = shown;
        let there = self.region.header();
        if there != (features, version, desc_num, last_batch_head, used_idx) {
            return broken(format!("the header says {there:?}, shown is {shown:?}"));
        }
        if offset != (self.region.stride() * usize::from(vring)) as u64 {
            return broken(format!("the part of vring {vring} is said to be at {offset}"));
        }
        if shape != (queues, entries, entries) {
            return broken(format!("a region of {queues} vrings is said to be {shape:?}"));
        }
        match view.header(queues) {
            Ok(_) => broken(format!("there is a header of vring {queues}, of {queues}")),
            Err(_) => Ok(()),
        }
    }

    /// What the core would do is what the bytes ask for.
    fn plan(&self) -> Result<(), Violation> {
        let asked = self.region.asked();
        let Reading { vring, size, used_idx, avail_idx, .. } = self.region;
        let ring = RingState { size, used_idx, avail_idx };
        let planned = self.view().and_then(|view| view.plan(vring, ring)).map(|plan| {
            plan.map(|p| Asked {
                published: p.published,
                live: p.live,
                last_batch_head: p.last_batch_head,
            })
        });
        same_plan(vring, self.how, &asked, &planned)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let start = self.region.stride() * usize::from(self.region.vring) + at;
        self.region.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn flag(&mut self, head: u16, value: u8) {
        self.put(16 + 16 * usize::from(head), &[value]);
    }

    /// Spoil one thing. The neighbours of a limit are both tried.
    fn spoil(&mut self, way: u64) {
        let Reading { queues, entries, size, used_idx, avail_idx, .. } = self.region;
        let (_, _, _, last, _) = self.region.header();
        match way {
            0 => (self.how = "version", self.put_u16(8, 2)).0,
            1 => (self.how = "desc_num", self.put_u16(10, entries + 1)).0,
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
                self.flag(entries - 1, 1);
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
                self.region.size = entries + 1;
            }
            11 => (self.how = "a vring without a part", self.region.vring = queues).0,
            12 => {
                self.how = "bytes that are not there";
                self.region.bytes.truncate((15 + 16 * usize::from(entries)) * usize::from(queues));
            }
            _ => (self.how = "nobody has used it", self.put_u16(8, 0)).0,
        }
    }
}
