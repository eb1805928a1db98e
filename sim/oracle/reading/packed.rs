//! The same for packed rings.
// spec: vhost-user, "Inflight I/O tracking", queue_region_packed

use crate::oracle::region::{PackedPart, Position};

/// A region, a vring, and what is known of its ring.
#[derive(Clone, Debug)]
pub struct PackedReading {
    /// All of the region.
    pub bytes: Vec<u8>,
    /// Vrings that share it.
    pub queues: u16,
    /// Entries of each part.
    pub entries: u16,
    /// Which vring.
    pub vring: u16,
    /// Entries of its ring.
    pub size: u16,
    /// By place in the ring, two rounds of it: the descriptor there is not
    /// available, nor was it made so since it was fetched.
    pub was_used: Vec<bool>,
}

/// What the bytes ask of a successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedAsked {
    /// Ring entries of the batch that was begun and not closed.
    pub batch: u32,
    /// That batch counts.
    pub published: bool,
    /// First free entry.
    pub free_head: u16,
    /// Used index and wrap counter to go on at.
    pub used: (u16, bool),
    /// Counters and entries to resubmit, in the order of fetching.
    pub live: Vec<(u64, u16)>,
}

/// First bytes of a part: features, version, entries, both free heads, both used
/// indexes with their wrap counters.
pub type PackedFields = (u64, u16, u16, u16, u16, (u16, u8), (u16, u8));

impl PackedReading {
    /// Bytes of a part.
    pub fn stride(&self) -> usize {
        self.bytes.len() / usize::from(self.queues)
    }

    fn part(&self) -> PackedPart<'_> {
        PackedPart(&self.bytes[self.stride() * usize::from(self.vring)..][..self.stride()])
    }

    /// The header of the part.
    pub fn header(&self) -> PackedFields {
        let part = self.part();
        let (now, old) = (part.current(), part.old());
        let (version, entries) = (part.version(), part.desc_num());
        (part.features(), version, entries, now.free_head, old.free_head, now.used, old.used)
    }

    /// First entry of a chain in flight, and its last.
    pub fn some_chain(&self) -> Option<(u16, u16)> {
        let asked = self.asked().ok()??;
        let (_, head) = *asked.live.first()?;
        Some((head, self.part().last(head)))
    }

    /// The document's algorithm for who reconnects, and what contradicts it.
    pub fn asked(&self) -> Result<Option<PackedAsked>, &'static str> {
        let need = 32 + 32 * usize::from(self.entries);
        if self.stride() < need || !self.stride().is_multiple_of(8) {
            return Err("the parts do not fit");
        }
        if self.vring >= self.queues {
            return Err("the vring has no part");
        }
        if self.size > self.entries {
            return Err("the ring has more entries than its part");
        }
        let part = self.part();
        match part.version() {
            0 => return Ok(None),
            1 if part.desc_num() == self.entries => {}
            1 => return Err("another number of entries"),
            _ => return Err("another version"),
        }
        let (now, old) = (part.current(), part.old());
        let place = |Position { used: (index, wrap), .. }: Position| match wrap {
            _ if index >= self.size => Err("a used index leaves the ring"),
            1 => Ok(u32::from(index)),
            0 => Ok(u32::from(index) + u32::from(self.size)),
            _ => Err("a wrap counter is neither"),
        };
        let (to, from) = (place(now)?, place(old)?);
        let rounds = 2 * u32::from(self.size);
        let batch = (to + rounds - from) % rounds;
        if batch > u32::from(self.size) {
            return Err("the batch is longer than the ring");
        }
        let published = batch > 0 && self.was_used[from as usize];
        let settled = if published { now } else { old };
        let mut taken = part.free(settled.free_head).map_err(|_| "an entry is free twice")?;
        if (0..self.entries).any(|entry| part.flag(entry) > 1) {
            return Err("an entry is neither in flight nor not");
        }
        let (mut live, mut names, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for head in (0..self.entries).filter(|e| part.inflight(*e) && !taken[usize::from(*e)]) {
            let chain = part.chain(head).ok_or("a chain does not end where it says")?;
            live.push((part.counter(head), head));
            if names.contains(&chain.name) {
                return Err("a buffer id is of two chains");
            }
            names.push(chain.name);
            entries.extend(chain.entries);
        }
        for entry in &entries {
            match taken.get_mut(usize::from(*entry)) {
                Some(taken) if !*taken => *taken = true,
                _ => return Err("an entry is of two chains, or free"),
            }
        }
        if taken.contains(&false) {
            return Err("an entry is nowhere");
        }
        if entries.len() > usize::from(self.size) {
            return Err("more is in flight than the ring has");
        }
        live.sort_unstable();
        let used = (settled.used.0, settled.used.1 == 1);
        Ok(Some(PackedAsked { batch, published, free_head: settled.free_head, used, live }))
    }
}
