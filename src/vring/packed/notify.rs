//! Calls and kicks of a packed ring.

use super::event::Wish;
use super::{PackedRing, is_available};
use crate::dirty::RingLog;
use crate::marks::{self, Mark};
use crate::vring::GuestFault;
use core::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

impl PackedRing {
    /// Whether the guest wants to be called for what was published since this
    /// was last asked.
    // spec: virtio 1.2, "Packed Virtqueues", "Driver and Device Event Suppression"
    pub fn needs_call<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, GuestFault> {
        let (old, new) = (self.called_at, self.positions.used);
        self.called_at = new;
        // What was published must be visible before the guest's wish is read,
        // or both sides may wait for each other.
        fence(Ordering::SeqCst);
        let bits: u32 = mem
            .load(GuestAddress(self.at.avail), Ordering::Relaxed)
            .map_err(|_| GuestFault::Ring { part: "driver event area" })?;
        let wish = Wish::from_bits(u32::from_le(bits), self.event_idx);
        let wanted = wish.wants(old, new, self.size);
        marks::hit(match (wish, wanted) {
            (Wish::At(_), true) => Mark::CallByEvent,
            (Wish::At(_), false) => Mark::NoCallByEvent,
            (_, true) => Mark::CallByFlag,
            (_, false) => Mark::NoCallByFlag,
        });
        Ok(wanted)
    }

    /// Ask the guest for a kick when it makes more available. True if there is
    /// more already, in which case that kick may never come.
    pub fn enable_kicks<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        log: Option<RingLog<'_, L>>,
    ) -> Result<bool, GuestFault> {
        let next = self.positions.avail;
        let wish = if self.event_idx { Wish::At(next) } else { Wish::Always };
        self.store_wish(mem, wish, log)?;
        // The wish must be visible before the ring is looked at once more.
        fence(Ordering::SeqCst);
        Ok(is_available(self.flags(mem, next)?, next.wrap))
    }

    /// Tell the guest that kicks are not needed for now.
    pub fn disable_kicks<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        self.store_wish(mem, Wish::Never, log)
    }

    fn store_wish<M: GuestMemory, L: GuestMemory>(
        &self,
        mem: &M,
        wish: Wish,
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        let at = GuestAddress(self.at.used);
        mem.store(wish.bits().to_le(), at, Ordering::Release)
            .map_err(|_| GuestFault::Ring { part: "device event area" })?;
        if let Some(log) = log {
            log.mark(0, 4);
        }
        Ok(())
    }
}
