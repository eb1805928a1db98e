//! What a packed ring tells, and is told, when its inflight region is taken
//! over from a predecessor that may have died at any store.

#[cfg(feature = "bugs")]
use super::ChainTable;
use super::{AVAIL, GONE, PackedRing, Position, Positions, USED, is_available};
use crate::vring::GuestFault;
use core::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

impl PackedRing {
    /// True if the entry at a used position is no longer the driver's that was
    /// fetched from there: it was used, perhaps even made available again.
    // spec: vhost-user, "Inflight I/O tracking": "When reconnecting", packed
    pub fn was_published<M: GuestMemory>(&self, mem: &M, at: Position) -> Result<bool, GuestFault> {
        Ok(!is_available(self.flags(mem, at)?, at.wrap))
    }

    /// The entries from the used position to the available one are in flight, so
    /// the driver made them available and does not touch them. Returns those
    /// that a predecessor marked as used without publishing them; or, as an
    /// error, the first that cannot be in flight.
    pub fn unpublished<M: GuestMemory>(
        &self,
        mem: &M,
        positions: Positions,
    ) -> Result<Result<Vec<Position>, Position>, GuestFault> {
        let (mut at, mut found) = (positions.used, Vec::new());
        while at != positions.avail {
            let flags = self.flags(mem, at)?;
            if !is_available(flags, at.wrap) {
                // The driver waits for the first one, so that one would be
                // published.
                let used = if at.wrap { AVAIL | USED } else { 0 };
                if at == positions.used || flags & (AVAIL | USED) != used {
                    return Ok(Err(at));
                }
                found.push(at);
            }
            at = at.after(1, self.size);
        }
        Ok(Ok(found))
    }

    /// The entry at a used position was stored by a predecessor that did not
    /// live to publish it: make it the driver's again.
    pub fn take_back<M: GuestMemory>(&self, mem: &M, at: Position) -> Result<(), GuestFault> {
        let flags = self.flags(mem, at)? & !(AVAIL | USED);
        let flags = flags | if at.wrap { AVAIL } else { USED };
        let addr = GuestAddress(self.place(at) + 14);
        mem.store(flags.to_le(), addr, Ordering::Release).map_err(|_| GONE)
    }

    /// For a deliberate mistake: chains as they are in the ring from here on.
    #[cfg(feature = "bugs")]
    pub fn read_again<M: GuestMemory>(
        &self,
        mem: &M,
        mut at: Position,
        table: &mut ChainTable,
        slots: impl Iterator<Item = u16>,
    ) -> Result<(), GuestFault> {
        for slot in slots {
            let entries: Vec<u16> = table.entries(slot).map(|(entry, _)| entry).collect();
            for entry in entries {
                table.fill(entry, self.descriptor(mem, at)?);
                at = at.after(1, self.size);
            }
        }
        Ok(())
    }
}
