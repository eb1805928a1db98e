//! The inflight region, read from the byte layout in the document: at every
//! moment a successor must find exactly the requests that were fetched and not
//! used, in the order in which they were fetched.
// spec: vhost-user, "Inflight I/O tracking"

use super::{Ledger, Violation};
use crate::memory::Mem;

/// The region's bytes.
#[derive(Clone, Copy, Debug)]
pub struct RegionView<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// Vrings that share it.
    pub queues: u16,
}

impl RegionView<'_> {
    /// Bytes for each vring.
    pub fn stride(&self) -> u64 {
        self.bytes.len() as u64 / u64::from(self.queues.max(1))
    }

    /// Entries of each part, once somebody has used the region.
    pub fn entries(&self) -> Option<u16> {
        let first = Part(self.bytes.get(..self.stride() as usize)?);
        (first.version() != 0).then(|| first.desc_num())
    }

    /// Entries that are marked as in flight.
    pub fn flagged(&self) -> u64 {
        let parts = self.bytes.chunks_exact(self.stride().max(1) as usize);
        let entries = parts.flat_map(|part| part[16..].chunks_exact(16));
        entries.filter(|entry| entry[0] == 1).count() as u64
    }
}

/// One vring's part.
pub(super) struct Part<'a>(pub &'a [u8]);

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

/// A request goes to the disk, so its entry says that it is in flight.
pub(super) fn check_issue(region: RegionView<'_>, vring: u16, head: u16) -> Result<(), Violation> {
    let stride = region.bytes.len() / usize::from(region.queues.max(1));
    let part = Part(&region.bytes[stride * usize::from(vring)..][..stride]);
    if part.inflight(head) {
        return Ok(());
    }
    let message =
        format!("vring {vring}: head {head} goes to the disk, and its entry is not in flight");
    Err(Violation::new("region", message))
}

/// Heads that a successor would resubmit, in its order. `alive`: the back-end
/// is between two steps, so the last batch is closed.
pub(super) fn live(
    ledger: &Ledger,
    mem: &Mem,
    region: RegionView<'_>,
    vring: u16,
    alive: bool,
) -> Result<Vec<u16>, Violation> {
    let broken =
        |message: String| Err(Violation::new("region", format!("vring {vring}: {message}")));
    let stride = region.bytes.len() / usize::from(region.queues.max(1));
    let part = Part(&region.bytes[stride * usize::from(vring)..][..stride]);
    let ring = ledger.ring(vring);
    let mut found: Vec<u16> = Vec::new();
    if part.version() != 0 {
        found.extend((0..ring.size).filter(|head| part.inflight(*head)));
        let used = ring.used_index(mem);
        let batch = used.wrapping_sub(part.used_idx());
        if batch > ring.size {
            return broken(format!(
                "used_idx of the region is {}, the ring's is {used}: no batch is that long",
                part.used_idx()
            ));
        }
        if alive && batch != 0 {
            return broken(format!(
                "used_idx of the region is {}, the ring's is {used}, and no batch is open",
                part.used_idx()
            ));
        }
        let mut head = part.last_batch_head();
        for _ in 0..batch {
            if head >= ring.size {
                return broken(format!("batch links head {head} of {}", ring.size));
            }
            found.retain(|h| *h != head);
            head = part.next(head);
        }
    }
    found.sort_by_key(|head| part.counter(*head));
    Ok(found)
}

/// How many requests of the vring were fetched since the start of the run.
pub(super) fn check(
    ledger: &Ledger,
    mem: &Mem,
    region: RegionView<'_>,
    vring: u16,
    alive: bool,
) -> Result<u64, Violation> {
    let stride = region.bytes.len() / usize::from(region.queues.max(1));
    let part = Part(&region.bytes[stride * usize::from(vring)..][..stride]);
    let ring = ledger.ring(vring);
    // Mostly no batch is open and all is well, and then no list is needed.
    if part.version() != 0 && part.used_idx() == ring.used_index(mem) {
        let flagged = (0..ring.size).filter(|head| part.inflight(*head)).count() as u64;
        let fetched = ledger.used_count(vring) + flagged;
        let expected = ledger.outstanding(vring).take_while(|ask| ask.order < fetched);
        if part.holds(flagged, expected.map(|ask| ask.head)) {
            return Ok(fetched);
        }
    }
    let found = live(ledger, mem, region, vring, alive)?;
    let fetched = ledger.used_count(vring) + found.len() as u64;
    let expected: Vec<u16> = ledger
        .outstanding(vring)
        .take_while(|ask| ask.order < fetched)
        .map(|ask| ask.head)
        .collect();
    if found != expected {
        let message = format!(
            "vring {vring}: a successor would resubmit heads {found:?}, but {fetched} were fetched and of those {expected:?} are not used"
        );
        return Err(Violation::new("region", message));
    }
    Ok(fetched)
}
