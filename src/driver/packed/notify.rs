//! Who wakes whom: kicks for the device, calls for the driver.

use super::desc::read_used;
use super::{PackedDriver, PackedPosition};
use crate::driver::access::{load_u32, store_u32};
use crate::driver::error::DriverError;
use crate::words::Words;
use core::sync::atomic::Ordering;

// Values of the flags in an event suppression structure.
// spec: virtio 1.2, "Event Suppression Structure Format"
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const DESC: u16 = 2;

impl PackedDriver {
    /// Whether the device wants a kick for what was published since the last
    /// call. Asking is deciding: the next call speaks of later chains only.
    // spec: virtio 1.2, "Sending Available Buffer Notifications"
    pub fn kick_needed<W: Words + ?Sized>(&mut self, mem: &W) -> Result<bool, DriverError> {
        if self.unkicked == 0 {
            return Ok(false);
        }
        // The descriptors must be seen before the device's wish is read:
        // otherwise both sides may think that the other one will look again.
        mem.fence();
        // Position and flags are one wish, so they are read by one load.
        let wish = load_u32(mem, self.layout.used, Ordering::Relaxed)?;
        let event = PackedPosition::from_word(wish as u16);
        let needed = match (wish >> 16) as u16 & 3 {
            DISABLE => false,
            DESC if self.features.event_idx => {
                self.kick_from.distance(event, self.layout.size) < self.unkicked
            }
            _ => true,
        };
        self.kick_from = self.published;
        self.unkicked = 0;
        Ok(needed)
    }

    /// Ask for a call at the next used descriptor: with EVENT_IDX by its
    /// position, otherwise by the flag. `true`: one is there already, so reap
    /// before going to sleep.
    pub fn enable_calls<W: Words + ?Sized>(&mut self, mem: &W) -> Result<bool, DriverError> {
        self.enable_calls_after(mem, 1)
    }

    /// Ask for a call once the device has come `count` entries further, which
    /// takes at most as many chains; without EVENT_IDX that is the next one.
    /// `true`: it has already.
    // spec: virtio 1.2, "Driver and Device Event Suppression"
    pub fn enable_calls_after<W: Words + ?Sized>(
        &mut self,
        mem: &W,
        count: u16,
    ) -> Result<bool, DriverError> {
        if !self.features.event_idx {
            return self.enable_calls_by_flag(mem);
        }
        let count = count.clamp(1, self.layout.size);
        let event = self.next_used.advance(count - 1, self.layout.size);
        self.wish(mem, event.word(), DESC)?;
        self.used_further(mem, count)
    }

    /// Ask for a call whenever anything is used, by the flag. Legal with
    /// EVENT_IDX too. `true`: something is there already.
    pub fn enable_calls_by_flag<W: Words + ?Sized>(
        &mut self,
        mem: &W,
    ) -> Result<bool, DriverError> {
        self.wish(mem, 0, ENABLE)?;
        self.used_further(mem, 1)
    }

    /// Ask for no calls. A device may still send some.
    pub fn disable_calls<W: Words + ?Sized>(&mut self, mem: &W) -> Result<(), DriverError> {
        self.wish(mem, 0, DISABLE)
    }

    fn wish<W: Words + ?Sized>(
        &self,
        mem: &W,
        position: u16,
        flags: u16,
    ) -> Result<(), DriverError> {
        let word = u32::from(position) | u32::from(flags) << 16;
        store_u32(mem, self.layout.avail, word, Ordering::Relaxed)
    }

    /// Whether the device has come `count` entries further than the driver.
    fn used_further<W: Words + ?Sized>(&self, mem: &W, count: u16) -> Result<bool, DriverError> {
        // The device reads the wish after it stores a used descriptor; whoever
        // comes second must see the other's store.
        mem.fence();
        let (mut at, mut seen) = (self.next_used, 0);
        while seen < count {
            let entry = self.layout.packed_entry(at.index);
            let Some((id, _)) = read_used(mem, entry, at.wrap)? else {
                return Ok(false);
            };
            // An id that is no chain's ends the ring as soon as it is reaped.
            let Some(chain) = self.slots.get(id) else {
                return Ok(true);
            };
            seen = seen.saturating_add(chain.descs);
            at = at.advance(chain.descs, self.layout.size);
        }
        Ok(true)
    }
}
