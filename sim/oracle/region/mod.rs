//! The inflight region, read from the byte layouts in the document: at every
//! moment a successor must find exactly the requests that were fetched and not
//! used, in the order in which they were fetched.
// spec: vhost-user, "Inflight I/O tracking"

mod packed;
mod split;
#[cfg(test)]
mod tests;

use super::{Ledger, RingView, Violation};
use crate::memory::Mem;
use crate::topology::{Ring, Topology};
pub(super) use packed::{PackedPart, Position};
pub(super) use split::Part;

/// The region's bytes.
#[derive(Clone, Copy, Debug)]
pub struct RegionView<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// Vrings that share it.
    pub queues: u16,
    /// Whether they are packed.
    pub packed: bool,
}

/// What a successor would resubmit, by the names of chains in its order, and
/// how far that moves the places of the ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Live {
    pub names: Vec<u16>,
    /// Their entries, where those are not by name.
    pub heads: Vec<u16>,
    pub steps: u16,
}

impl<'a> RegionView<'a> {
    /// The region of a world with these vrings.
    pub fn of(bytes: &'a [u8], topology: &Topology) -> Self {
        Self { bytes, queues: topology.queues, packed: topology.ring == Ring::Packed }
    }

    /// Bytes for each vring.
    pub fn stride(&self) -> u64 {
        self.bytes.len() as u64 / u64::from(self.queues.max(1))
    }

    fn part(&self, vring: u16) -> &'a [u8] {
        let stride = self.bytes.len() / usize::from(self.queues.max(1));
        &self.bytes[stride * usize::from(vring)..][..stride]
    }

    /// Entries of each part, once somebody has used the region.
    pub fn entries(&self) -> Option<u16> {
        let first = Part(self.bytes.get(..self.stride() as usize)?);
        (first.version() != 0).then(|| first.desc_num())
    }

    /// Entries that are marked as in flight.
    pub fn flagged(&self) -> u64 {
        // A header is as long as an entry in either layout.
        let entry = if self.packed { 32 } else { 16 };
        let parts = self.bytes.chunks_exact(self.stride().max(1) as usize);
        let entries = parts.flat_map(|part| part[entry..].chunks_exact(entry));
        entries.filter(|entry| entry[0] == 1).count() as u64
    }

    /// The head or buffer id of the chain with this entry.
    pub fn name(&self, vring: u16, entry: u16) -> Option<u16> {
        match self.packed {
            true => PackedPart(self.part(vring)).chain(entry).map(|chain| chain.name),
            false => Some(entry),
        }
    }
}

fn broken(vring: u16, message: String) -> Violation {
    Violation::new("region", format!("vring {vring}: {message}"))
}

/// A request goes to the disk, so its entry says that it is in flight.
pub(super) fn check_issue(region: RegionView<'_>, vring: u16, entry: u16) -> Result<(), Violation> {
    let part = region.part(vring);
    let inflight = match region.packed {
        true => PackedPart(part).inflight(entry),
        false => Part(part).inflight(entry),
    };
    match inflight {
        true => Ok(()),
        false => Err(broken(
            vring,
            format!("head {entry} goes to the disk, and its entry is not in flight"),
        )),
    }
}

/// What a successor would resubmit. `alive`: the back-end is between two steps,
/// so the last batch is closed.
pub(super) fn live(
    ledger: &Ledger,
    mem: &Mem,
    region: RegionView<'_>,
    vring: u16,
    alive: bool,
) -> Result<Live, Violation> {
    let part = region.part(vring);
    match ledger.ring(vring) {
        RingView::Split(ring) => split::live(Part(part), ring, mem, alive),
        RingView::Packed(ring) => PackedPart(part).live(ring, mem, alive),
    }
    .map_err(|message| broken(vring, message))
}

/// How many requests of the vring were fetched since the start of the run.
pub(super) fn check(
    ledger: &Ledger,
    mem: &Mem,
    region: RegionView<'_>,
    vring: u16,
    alive: bool,
) -> Result<u64, Violation> {
    // Mostly no batch is open and all is well, and then no list is needed.
    if let RingView::Split(ring) = ledger.ring(vring)
        && let Some(fetched) = Part(region.part(vring)).at_rest(ledger, vring, ring, mem)
    {
        return Ok(fetched);
    }
    let Live { names: found, heads, .. } = live(ledger, mem, region, vring, alive)?;
    let fetched = ledger.used_count(vring) + found.len() as u64;
    let due = || ledger.outstanding(vring).take_while(|ask| ask.order < fetched);
    if !due().map(|ask| ask.head).eq(found.iter().copied()) {
        let expected: Vec<u16> = due().map(|ask| ask.head).collect();
        let message = format!(
            "a successor would resubmit heads {found:?}, but {fetched} were fetched and of those {expected:?} are not used"
        );
        return Err(broken(vring, message));
    }
    if let RingView::Packed(_) = ledger.ring(vring) {
        let part = PackedPart(region.part(vring));
        for (ask, head) in due().zip(heads) {
            part.check_copy(head, ledger.descs(ask.request))
                .map_err(|message| broken(vring, message))?;
        }
    }
    Ok(fetched)
}
