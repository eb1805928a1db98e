//! Taking over a ring that another driver has used.

use super::{Chain, SplitDriver};
use crate::driver::access::{
    Desc, F_INDIRECT, F_NEXT, F_WRITE, load_u16, read_desc, table_writable,
};
use crate::driver::chain::RingFeatures;
use crate::driver::error::{DriverError, DriverMisuse};
use crate::driver::layout::RingLayout;
use core::sync::atomic::Ordering;
use vm_memory::GuestMemory;

impl SplitDriver {
    /// Take over a ring that another driver has used.
    ///
    /// `reaped` is the used index up to which that driver had looked, and
    /// `outstanding` the heads of all chains it had not got back by then, in
    /// any order: neither can be read off a ring whose device completes out of
    /// order. An idle ring is taken over with its used index and no heads.
    pub fn attach<M: GuestMemory + ?Sized>(
        mem: &M,
        layout: RingLayout,
        features: RingFeatures,
        reaped: u16,
        outstanding: &[u16],
    ) -> Result<Self, DriverError> {
        let mut driver = Self::idle(layout, features)?;
        driver.avail_idx = load_u16(mem, layout.avail_idx(), Ordering::Relaxed)?;
        driver.kick_idx = driver.avail_idx;
        driver.next_used = reaped;
        let expected = driver.avail_idx.wrapping_sub(reaped);
        let got = u32::try_from(outstanding.len()).unwrap_or(u32::MAX);
        if u32::from(expected) != got {
            return Err(DriverMisuse::OutstandingCount { expected, got }.into());
        }
        let mut taken = vec![false; usize::from(layout.size)];
        for &head in outstanding {
            driver.adopt_chain(mem, head, &mut taken)?;
        }
        driver.outstanding = expected;
        driver.relink_free(&taken);
        Ok(driver)
    }

    /// Read one outstanding chain back from the descriptor table.
    fn adopt_chain<M: GuestMemory + ?Sized>(
        &mut self,
        mem: &M,
        head: u16,
        taken: &mut [bool],
    ) -> Result<(), DriverError> {
        let bad = DriverError::from(DriverMisuse::BadOutstanding { head });
        let mut chain = Chain { published: true, ..Chain::default() };
        let mut at = head;
        loop {
            let slot = taken.get_mut(usize::from(at)).ok_or(bad)?;
            if core::mem::replace(slot, true) {
                return Err(bad);
            }
            chain.descs += 1;
            let Desc { addr, len, flags, next } = read_desc(mem, self.layout.desc_entry(at))?;
            if flags & F_INDIRECT != 0 {
                chain.writable += table_writable(mem, addr, len)?;
            } else if flags & F_WRITE != 0 {
                chain.writable += u64::from(len);
            }
            if flags & F_NEXT == 0 {
                break;
            }
            self.links[usize::from(at)] = next;
            at = next;
        }
        self.chains[usize::from(head)] = chain;
        Ok(())
    }
}
