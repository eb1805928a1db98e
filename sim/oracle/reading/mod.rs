//! What a region asks of whoever takes it over, as the document has it, and
//! what contradicts it: also for bytes that nobody wrote in good faith.
// spec: vhost-user, "Inflight I/O tracking", queue_region_split

mod packed;

use super::region::Part;
pub use packed::{PackedAsked, PackedReading};

/// A region, a vring, and what is known of its ring.
#[derive(Clone, Debug)]
pub struct Reading {
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
    /// Used index of its ring.
    pub used_idx: u16,
    /// Available index of its ring.
    pub avail_idx: u16,
}

/// What the bytes ask of a successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Heads to clear, last first.
    pub published: Vec<u16>,
    /// Counters and heads to resubmit, in the order of fetching.
    pub live: Vec<(u64, u16)>,
    /// Last head of the last batch.
    pub last_batch_head: u16,
}

/// First bytes of a part: features, version, entries, last head, used index.
pub type HeaderFields = (u64, u16, u16, u16, u16);

impl Reading {
    /// Bytes of a part.
    pub fn stride(&self) -> usize {
        self.bytes.len() / usize::from(self.queues)
    }

    fn part(&self) -> Part<'_> {
        Part(&self.bytes[self.stride() * usize::from(self.vring)..][..self.stride()])
    }

    /// The header of the part.
    pub fn header(&self) -> HeaderFields {
        let part = self.part();
        let (last, used) = (part.last_batch_head(), part.used_idx());
        (part.features(), part.version(), part.desc_num(), last, used)
    }

    /// The document's algorithm for who reconnects, and what contradicts it.
    pub fn asked(&self) -> Result<Option<Asked>, &'static str> {
        let Self { size, used_idx, avail_idx, .. } = *self;
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
}
