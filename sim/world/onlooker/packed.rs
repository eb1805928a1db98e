//! The same with packed rings.
// spec: vhost-user, "Inflight I/O tracking", queue_region_packed

use super::{broken, same_plan};
use crate::oracle::{PackedAsked, PackedReading, Violation};
use midflight::inflight::{self, InflightFault};
use midflight::vring::RingFormat;

/// Ways to spoil a region; see [`Case::spoil`].
pub const WAYS: u64 = 18;

/// A region that is looked at.
pub struct Case {
    pub region: PackedReading,
    /// What was spoiled.
    pub how: &'static str,
}

impl Case {
    fn view(&self) -> Result<inflight::RegionView<'_>, InflightFault> {
        let PackedReading { bytes, queues, entries, .. } = &self.region;
        inflight::RegionView::of(RingFormat::Packed, bytes, *queues, *entries)
    }

    /// Headers are shown as they are.
    pub fn headers(&self) -> Result<(), Violation> {
        let fault =
            |e: InflightFault| Violation::new("onlooker", format!("a good region is refused: {e}"));
        let PackedReading { queues, vring, .. } = self.region;
        let view = self.view().map_err(fault)?;
        let h = view.packed_header(vring).map_err(fault)?;
        let shown =
            (h.features, h.version, h.desc_num, h.free_head, h.old_free_head, h.used, h.old_used);
        if self.region.header() != shown {
            let there = self.region.header();
            return broken(format!("the header says {there:?}, shown is {shown:?}"));
        }
        if view.offset(vring) != (self.region.stride() * usize::from(vring)) as u64 {
            let offset = view.offset(vring);
            return broken(format!("the part of vring {vring} is said to be at {offset}"));
        }
        match view.packed_header(queues) {
            Ok(_) => broken(format!("there is a header of vring {queues}, of {queues}")),
            Err(_) => Ok(()),
        }
    }

    /// What the core would do is what the bytes ask for.
    pub fn plan(&self) -> Result<(), Violation> {
        let asked = self.region.asked();
        let PackedReading { vring, size, was_used, .. } = &self.region;
        let place =
            |index: u16, wrap| usize::from(index) + usize::from(if wrap { 0 } else { *size });
        let planned = self.view().and_then(|view| {
            view.packed_plan(*vring, *size, |at| was_used[place(at.index, at.wrap)])
        });
        let planned = planned.map(|plan| {
            plan.map(|p| PackedAsked {
                batch: p.batch.into(),
                published: p.published,
                free_head: p.free_head,
                used: (p.positions.used.index, p.positions.used.wrap),
                live: p.live,
            })
        });
        same_plan(*vring, self.how, &asked, &planned)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let start = self.region.stride() * usize::from(self.region.vring) + at;
        self.region.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn entry(entry: u16) -> usize {
        32 + 32 * usize::from(entry)
    }

    /// Spoil one thing. The neighbours of a limit are both tried.
    pub fn spoil(&mut self, way: u64) {
        let PackedReading { queues, entries, size, .. } = self.region;
        let (.., old_free, (used, wrap), _) = self.region.header();
        let chain = self.region.some_chain();
        let old = |ahead: u32| {
            let rounds = 2 * u32::from(size);
            let place = u32::from(used) + if wrap == 0 { u32::from(size) } else { 0 };
            let place = (place + rounds - ahead) % rounds;
            ((place % u32::from(size)) as u16, u8::from(place < u32::from(size)))
        };
        match (way, chain) {
            (0, _) => (self.how = "version", self.put_u16(8, 2)).0,
            (1, _) => (self.how = "desc_num", self.put_u16(10, entries + 1)).0,
            (2 | 3, _) => {
                self.how = "an index that the ring has not";
                self.put_u16(if way == 2 { 16 } else { 18 }, size);
            }
            (4 | 5, _) => {
                self.how = "a wrap counter of 2";
                self.put(if way == 4 { 20 } else { 21 }, &[2]);
            }
            (6 | 7, _) => {
                self.how = "a batch of the whole ring, or of one more";
                let (index, wrap) = old(u32::from(size) + u32::from(way == 7));
                self.put_u16(18, index);
                self.put(21, &[wrap]);
            }
            (8, _) => {
                self.how = "an entry that is free twice";
                self.put_u16(Self::entry(old_free.min(entries - 1)) + 2, old_free);
            }
            (9, _) => {
                self.how = "a flag that is 2";
                self.put(Self::entry(entries - 1), &[2]);
            }
            (10, _) => {
                self.how = "entries that are nowhere";
                self.put_u16(12, entries);
                self.put_u16(14, entries);
            }
            (11, _) => {
                self.how = "a free entry that is in flight";
                self.put(Self::entry(old_free.min(entries - 1)), &[1]);
            }
            (12, Some((head, _))) => {
                self.how = "a chain that is longer";
                self.put_u16(Self::entry(head) + 6, entries + 1);
            }
            (13, Some((head, last))) => {
                self.how = "a chain that ends elsewhere";
                self.put_u16(Self::entry(head) + 4, last + 1);
            }
            (14, _) => {
                self.how = "a ring larger than its part";
                self.region.size = entries + 1;
            }
            (15, _) => (self.how = "a vring without a part", self.region.vring = queues).0,
            (16, _) => {
                self.how = "bytes that are not there";
                self.region.bytes.truncate((31 + 32 * usize::from(entries)) * usize::from(queues));
            }
            _ => (self.how = "nobody has used it", self.put_u16(8, 0)).0,
        }
    }
}
