//! A part for a split ring.
// spec: vhost-user, "Inflight I/O tracking", queue_region_split

use super::Live;
use crate::memory::Mem;
use crate::oracle::{Ledger, SplitView};

/// One vring's part.
pub(in crate::oracle) struct Part<'a>(pub &'a [u8]);

impl Part<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    pub fn features(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().expect("eight bytes"))
    }

    pub fn desc_num(&self) -> u16 {
        self.u16(10)
    }

    pub fn version(&self) -> u16 {
        self.u16(8)
    }

    pub fn last_batch_head(&self) -> u16 {
        self.u16(12)
    }

    pub fn used_idx(&self) -> u16 {
        self.u16(14)
    }

    pub fn flag(&self, head: u16) -> u8 {
        self.0[16 + 16 * usize::from(head)]
    }

    pub fn inflight(&self, head: u16) -> bool {
        self.flag(head) == 1
    }

    pub fn next(&self, head: u16) -> u16 {
        self.u16(16 + 16 * usize::from(head) + 6)
    }

    pub fn counter(&self, head: u16) -> u64 {
        let at = 16 + 16 * usize::from(head) + 8;
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }
}

impl Part<'_> {
    /// Whether just these are flagged, so many, and rise by counter.
    fn holds(&self, flagged: u64, expected: impl Iterator<Item = u16>) -> bool {
        let (mut count, mut last) = (0, None);
        for head in expected {
            if !self.inflight(head) {
                return false;
            }
            let before = last.replace(self.counter(head));
            if before.is_some_and(|before| before >= self.counter(head)) {
                return false;
            }
            count += 1;
        }
        count == flagged
    }
}

/// Heads that a successor would resubmit, in its order.
pub(super) fn live(
    part: Part<'_>,
    ring: &SplitView,
    mem: &Mem,
    alive: bool,
) -> Result<Live, String> {
    let mut found: Vec<u16> = Vec::new();
    if part.version() != 0 {
        found.extend((0..ring.size).filter(|head| part.inflight(*head)));
        let used = ring.used_index(mem);
        let batch = used.wrapping_sub(part.used_idx());
        if batch > ring.size {
            return Err(format!(
                "used_idx of the region is {}, the ring's is {used}: no batch is that long",
                part.used_idx()
            ));
        }
        if alive && batch != 0 {
            return Err(format!(
                "used_idx of the region is {}, the ring's is {used}, and no batch is open",
                part.used_idx()
            ));
        }
        let mut head = part.last_batch_head();
        for _ in 0..batch {
            if head >= ring.size {
                return Err(format!("batch links head {head} of {}", ring.size));
            }
            found.retain(|h| *h != head);
            head = part.next(head);
        }
    }
    found.sort_by_key(|head| part.counter(*head));
    Ok(Live { steps: found.len() as u16, names: found, heads: Vec::new() })
}

impl Part<'_> {
    /// Requests that were fetched, if no batch is open and the part is just as it
    /// should be.
    pub(super) fn at_rest(
        &self,
        ledger: &Ledger,
        vring: u16,
        ring: &SplitView,
        mem: &Mem,
    ) -> Option<u64> {
        if self.version() == 0 || self.used_idx() != ring.used_index(mem) {
            return None;
        }
        let flagged = (0..ring.size).filter(|head| self.inflight(*head)).count() as u64;
        let fetched = ledger.used_count(vring) + flagged;
        let expected = ledger.outstanding(vring).take_while(|ask| ask.order < fetched);
        self.holds(flagged, expected.map(|ask| ask.head)).then_some(fetched)
    }
}
