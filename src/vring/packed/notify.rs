//! Calls and kicks of a packed ring.

use super::event::Wish;
use super::{PackedRing, is_available};
use crate::dirty::RingLog;
use crate::marks::{self, Mark};
use crate::vring::GuestFault;
use crate::words::Words;
use core::sync::atomic::Ordering;
use vm_memory::GuestMemory;

impl PackedRing {
    /// Whether the guest wants to be called for what was published since this
    /// was last asked.
    // spec: virtio 1.2, "Packed Virtqueues", "Driver and Device Event Suppression"
    pub fn needs_call<W: Words + ?Sized>(&mut self, mem: &W) -> Result<bool, GuestFault> {
        let (old, new) = (self.called_at, self.positions.used);
        self.called_at = new;
        // What was published must be visible before the guest's wish is read,
        // or both sides may wait for each other.
        mem.fence();
        let bits = mem
            .load_u32(self.at.avail, Ordering::Relaxed)
            .ok_or(GuestFault::Ring { part: "driver event area" })?;
        let wish = Wish::from_bits(bits, self.event_idx);
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
        self.store_wish(mem, self.next_kick())?;
        log_wish(log);
        self.look_again(mem)
    }

    /// The same, without a dirty log.
    pub fn ask_for_kicks<W: Words + ?Sized>(&self, mem: &W) -> Result<bool, GuestFault> {
        self.store_wish(mem, self.next_kick())?;
        self.look_again(mem)
    }

    fn next_kick(&self) -> Wish {
        if self.event_idx { Wish::At(self.positions.avail) } else { Wish::Always }
    }

    fn look_again<W: Words + ?Sized>(&self, mem: &W) -> Result<bool, GuestFault> {
        // The wish must be visible before the ring is looked at once more.
        mem.fence();
        let next = self.positions.avail;
        Ok(is_available(self.flags(mem, next)?, next.wrap))
    }

    /// Tell the guest that kicks are not needed for now.
    pub fn disable_kicks<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        self.decline_kicks(mem)?;
        log_wish(log);
        Ok(())
    }

    /// The same, without a dirty log.
    pub fn decline_kicks<W: Words + ?Sized>(&self, mem: &W) -> Result<(), GuestFault> {
        self.store_wish(mem, Wish::Never)
    }

    fn store_wish<W: Words + ?Sized>(&self, mem: &W, wish: Wish) -> Result<(), GuestFault> {
        mem.store_u32(self.at.used, wish.bits(), Ordering::Release)
            .ok_or(GuestFault::Ring { part: "device event area" })
    }
}

fn log_wish<M: GuestMemory>(log: Option<RingLog<'_, M>>) {
    if let Some(log) = log {
        log.mark(0, 4);
    }
}
