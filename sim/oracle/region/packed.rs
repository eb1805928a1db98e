//! A part for a packed ring.
// spec: vhost-user, "Inflight I/O tracking", queue_region_packed

use super::Live;
use crate::memory::Mem;
use crate::oracle::PackedView;
use crate::oracle::rings::Desc;

/// NEXT, WRITE and INDIRECT: what a successor needs of the flags.
const KIND: u16 = 7;

/// One vring's part.
#[derive(Clone, Copy)]
pub(in crate::oracle) struct PackedPart<'a>(pub &'a [u8]);

/// What the fields of one entry and those linked to it say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::oracle) struct Chain {
    /// Its buffer id.
    pub name: u16,
    /// Its entries, the head first.
    pub entries: Vec<u16>,
}

/// Where completion is, by the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::oracle) struct Position {
    /// First entry that is free.
    pub free_head: u16,
    /// Next used index, and the wrap counter.
    pub used: (u16, u8),
}

impl PackedPart<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("as many bytes")
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn at(entry: u16) -> usize {
        32 + 32 * usize::from(entry)
    }

    pub fn features(&self) -> u64 {
        u64::from_le_bytes(self.bytes(0))
    }

    pub fn version(&self) -> u16 {
        self.u16(8)
    }

    pub fn desc_num(&self) -> u16 {
        self.u16(10)
    }

    /// How it is, with what is under way.
    pub fn current(&self) -> Position {
        Position { free_head: self.u16(12), used: (self.u16(16), self.0[20]) }
    }

    /// How it was when the last batch was closed.
    pub fn old(&self) -> Position {
        Position { free_head: self.u16(14), used: (self.u16(18), self.0[21]) }
    }

    pub fn flag(&self, entry: u16) -> u8 {
        self.0[Self::at(entry)]
    }

    /// Entries that there are room for.
    fn room(&self) -> u16 {
        ((self.0.len() - 32) / 32) as u16
    }

    pub fn inflight(&self, entry: u16) -> bool {
        entry < self.room() && self.flag(entry) == 1
    }

    pub fn next(&self, entry: u16) -> u16 {
        self.u16(Self::at(entry) + 2)
    }

    pub fn last(&self, entry: u16) -> u16 {
        self.u16(Self::at(entry) + 4)
    }

    pub fn num(&self, entry: u16) -> u16 {
        self.u16(Self::at(entry) + 6)
    }

    pub fn counter(&self, entry: u16) -> u64 {
        u64::from_le_bytes(self.bytes(Self::at(entry) + 8))
    }

    fn desc(&self, entry: u16) -> Desc {
        let at = Self::at(entry);
        Desc {
            id: self.u16(at + 16),
            flags: self.u16(at + 18),
            len: u32::from_le_bytes(self.bytes(at + 20)),
            addr: u64::from_le_bytes(self.bytes(at + 24)),
        }
    }

    /// The chain whose head has this entry; `None` if its links do not lead to
    /// where it says that it ends.
    pub fn chain(&self, head: u16) -> Option<Chain> {
        let mut entries = Vec::new();
        let mut at = head;
        if self.num(head) > self.room() {
            return None;
        }
        for _ in 0..self.num(head) {
            if at >= self.room() {
                return None;
            }
            entries.push(at);
            at = self.next(at);
        }
        let last = *entries.last()?;
        (last == self.last(head)).then(|| Chain { name: self.desc(last).id, entries })
    }

    /// What the document's algorithm makes of the two positions.
    pub fn settled(&self, ring: &PackedView, mem: &Mem) -> Result<Position, String> {
        let (now, old) = (self.current(), self.old());
        if now.used == old.used {
            return Ok(old);
        }
        let (index, wrap) = old.used;
        if index >= ring.size || wrap > 1 {
            return Err(format!("old_used_idx is {index}, with wrap {wrap}"));
        }
        Ok(if ring.was_used(mem, place(ring, old.used)) { now } else { old })
    }

    /// Entries from this one on that are free; each once.
    pub fn free(&self, first: u16) -> Result<Vec<bool>, String> {
        let mut free = vec![false; usize::from(self.desc_num())];
        let mut at = first;
        while let Some(entry) = free.get_mut(usize::from(at)) {
            if std::mem::replace(entry, true) {
                return Err(format!("entry {at} is free twice"));
            }
            at = self.next(at);
        }
        Ok(free)
    }

    pub(super) fn live(&self, ring: &PackedView, mem: &Mem, alive: bool) -> Result<Live, String> {
        if self.version() == 0 {
            return Ok(Live::default());
        }
        if self.desc_num() > self.room() || self.desc_num() < ring.size {
            return Err(format!("it has {} entries", self.desc_num()));
        }
        if alive && self.current() != self.old() {
            return Err(format!(
                "{:?} is not {:?}, and no batch is open",
                self.current(),
                self.old()
            ));
        }
        let settled = self.settled(ring, mem)?;
        if settled.used.0 >= ring.size || settled.used.1 > 1 {
            return Err(format!("used_idx is {:?}", settled.used));
        }
        let used = place(ring, settled.used);
        if used != ring.used_seen {
            return Err(format!(
                "a successor would go on at used index {:?}, the ring is at {:?}",
                ring.index(used),
                ring.index(ring.used_seen)
            ));
        }
        let mut taken = self.free(settled.free_head)?;
        let mut chains = Vec::new();
        for head in 0..self.desc_num() {
            match self.flag(head) {
                0 => continue,
                1 if taken[usize::from(head)] => continue,
                1 => {}
                other => return Err(format!("entry {head} has flag {other}")),
            }
            let chain = self
                .chain(head)
                .ok_or_else(|| format!("the chain of entry {head} does not end where it says"))?;
            chains.push((self.counter(head), chain));
        }
        for entry in chains.iter().flat_map(|(_, chain)| &chain.entries) {
            match taken.get_mut(usize::from(*entry)) {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(format!("entry {entry} is of two chains, or free")),
            }
        }
        if let Some(lost) = taken.iter().position(|taken| !taken) {
            return Err(format!("entry {lost} is neither free nor of a chain in flight"));
        }
        chains.sort_by_key(|(counter, _)| *counter);
        let steps = chains.iter().map(|(_, chain)| chain.entries.len() as u16).sum();
        let heads = chains.iter().map(|(_, chain)| chain.entries[0]).collect();
        let names = chains.iter().map(|(_, chain)| chain.name).collect();
        Ok(Live { names, heads, steps })
    }

    /// The entries of the chain with this head are what its descriptors in the
    /// ring were.
    pub(super) fn check_copy(&self, head: u16, descs: &[Desc]) -> Result<(), String> {
        let mut at = head;
        for desc in descs {
            if kind(self.desc(at)) != kind(*desc) {
                return Err(format!(
                    "entry {at} is {:x?}, the descriptor in the ring was {desc:x?}",
                    self.desc(at)
                ));
            }
            at = self.next(at);
        }
        match usize::from(self.num(head)) == descs.len() {
            true => Ok(()),
            false => Err(format!("entry {head} has the head of {} descriptors", descs.len())),
        }
    }
}

/// What matters of a descriptor in the middle of a chain.
fn kind(desc: Desc) -> (u64, u32, u16) {
    (desc.addr, desc.len, desc.flags & KIND)
}

fn place(ring: &PackedView, (index, wrap): (u16, u8)) -> u32 {
    u32::from(index) + if wrap == 0 { u32::from(ring.size) } else { 0 }
}
