//! Who wakes whom: kicks for the device, calls for the driver.

use super::SplitDriver;
use crate::driver::access::{load_u16, store_u16};
use crate::driver::error::DriverError;
use crate::words::Words;
use core::sync::atomic::Ordering;

/// `avail.flags`: the driver wants no calls.
const NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no kicks.
const NO_NOTIFY: u16 = 1;

impl SplitDriver {
    /// Whether the device wants a kick for what was published since the last
    /// call. Asking is deciding: the next call speaks of later chains only.
    // spec: virtio 1.2, "Notifying The Device"
    pub fn kick_needed<W: Words + ?Sized>(&mut self, mem: &W) -> Result<bool, DriverError> {
        let (old, new) = (self.kick_idx, self.avail_idx);
        if old == new {
            return Ok(false);
        }
        // The store of avail.idx must be seen before the device's wish is read:
        // otherwise both sides may think that the other one will look again.
        mem.fence();
        let needed = if self.features.event_idx {
            let event = load_u16(mem, self.layout.avail_event(), Ordering::Relaxed)?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load_u16(mem, self.layout.used_flags(), Ordering::Relaxed)? & NO_NOTIFY == 0
        };
        self.kick_idx = new;
        Ok(needed)
    }

    /// Ask for a call at the next used element. `true`: one is there already,
    /// so reap before going to sleep.
    pub fn enable_calls<W: Words + ?Sized>(&mut self, mem: &W) -> Result<bool, DriverError> {
        self.enable_calls_after(mem, 1)
    }

    /// Ask for a call once `count` more elements are used; without EVENT_IDX
    /// that is the next one. `true`: they are there already.
    // spec: virtio 1.2, "Used Buffer Notification Suppression"
    pub fn enable_calls_after<W: Words + ?Sized>(
        &mut self,
        mem: &W,
        count: u16,
    ) -> Result<bool, DriverError> {
        let mut count = count.max(1);
        if self.features.event_idx {
            let event = self.next_used.wrapping_add(count - 1);
            store_u16(mem, self.layout.used_event(), event, Ordering::Relaxed)?;
        } else {
            count = 1;
            store_u16(mem, self.layout.avail_flags(), 0, Ordering::Relaxed)?;
        }
        // The device reads the wish after it stores used.idx; whoever comes
        // second must see the other's store.
        mem.fence();
        let used = load_u16(mem, self.layout.used_idx(), Ordering::Acquire)?;
        Ok(used.wrapping_sub(self.next_used) >= count)
    }

    /// Ask for no calls. A device may still send some.
    pub fn disable_calls<W: Words + ?Sized>(&mut self, mem: &W) -> Result<(), DriverError> {
        if self.features.event_idx {
            // With EVENT_IDX the flag must stay 0; an index just passed is not
            // reached again for 65535 elements.
            let event = self.next_used.wrapping_sub(1);
            store_u16(mem, self.layout.used_event(), event, Ordering::Relaxed)
        } else {
            let addr = self.layout.avail_flags();
            store_u16(mem, addr, NO_INTERRUPT, Ordering::Relaxed)
        }
    }
}
