//! Taking over a packed ring that another driver has used.

use super::{PackedDriver, PackedPosition, Slots};
use crate::driver::chain::RingFeatures;
use crate::driver::error::{DriverError, DriverMisuse};
use crate::driver::layout::RingLayout;

/// A chain that another driver has put into a ring and not got back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its buffer id.
    pub id: u16,
    /// Entries of the ring it took, not 0.
    pub descs: u16,
    /// Bytes the device may write.
    pub writable: u64,
}

impl PackedDriver {
    /// Take over a ring that another driver has used. Memory is not touched.
    ///
    /// `avail` is where that driver would have put its next descriptor, `used`
    /// where it would have looked for the next used one, and `outstanding` all
    /// chains it had not got back by then, in any order. None of it can be read
    /// off the ring: used descriptors are written over those of other chains.
    pub fn attach(
        layout: RingLayout,
        features: RingFeatures,
        avail: PackedPosition,
        used: PackedPosition,
        outstanding: &[Outstanding],
    ) -> Result<Self, DriverError> {
        let size = layout.size;
        let mut driver = Self::idle(layout, features, avail)?;
        if used.index >= size {
            return Err(DriverMisuse::Position { index: used.index, size }.into());
        }
        let expected = used.distance(avail, size);
        let got = outstanding.iter().fold(0u32, |sum, c| sum.saturating_add(c.descs.into()));
        if expected != got || expected > u32::from(size) {
            return Err(DriverMisuse::OutstandingDescriptors { expected, got }.into());
        }
        driver.slots = Slots::new(&ids_with(outstanding, size), size)?;
        for &Outstanding { id, descs, writable } in outstanding {
            if !driver.slots.adopt(id, descs, writable) {
                return Err(DriverMisuse::BadOutstanding { head: id }.into());
            }
        }
        driver.next_used = used;
        // Not more than the ring has entries, by the check above.
        driver.free_count = size - expected as u16;
        driver.published_chains = outstanding.len() as u16;
        Ok(driver)
    }
}

/// Ids for every entry: those in use, and small ones for the others.
fn ids_with(outstanding: &[Outstanding], size: u16) -> Vec<u16> {
    let mut ids: Vec<u16> = outstanding.iter().map(|chain| chain.id).collect();
    ids.sort_unstable();
    // A second chain with the same id is refused when its turn comes.
    ids.dedup();
    let taken = ids.clone();
    let others = (0..=u16::MAX).filter(|id| taken.binary_search(id).is_err());
    ids.extend(others.take(usize::from(size).saturating_sub(taken.len())));
    ids
}
