//! What a run tells of stores, calls and kicks, and what it asks about a
//! back-end that rests.

use super::calls::Rest;
use super::session::Standing;
use super::{GuestStore, Oracle, RegionView, RingView, Violation, region};
use crate::memory::Mem;

impl Oracle {
    /// One of those stores has happened: if it tells a driver of something used, a
    /// call may be owed.
    pub fn stored(&mut self, mem: &Mem, store: GuestStore, value: &[u8]) {
        if !self.judges.cheap {
            return;
        }
        for vring in 0..self.ledger.vrings() {
            if self.spoiled[usize::from(vring)] {
                continue;
            }
            if let Some(told) = self.ledger.ring(vring).told(store, value) {
                self.calls.published(mem, vring, &self.ledger, told);
            }
        }
    }

    /// Vrings, one bit each, in whose ring a store begins.
    pub fn rings_at(&self, store: GuestStore) -> u64 {
        let hit = |vring: &u16| self.ledger.ring(*vring).is_device_part(store.addr);
        (0..self.ledger.vrings()).filter(hit).fold(0, |hits, vring| hits | 1 << vring)
    }

    /// The back-end hears of kicks.
    pub fn kick_heard(&mut self, vring: u16) {
        self.calls.kick_heard(vring);
    }

    /// The back-end has called.
    pub fn called(&mut self, vring: u16) {
        self.calls.called(vring);
    }

    /// The back-end's step is over. `runs`: vrings it has taken up; `None`: it
    /// died in this step.
    pub fn check_calls(
        &mut self,
        mem: &Mem,
        runs: Option<&dyn Fn(u16) -> bool>,
    ) -> Result<(), Violation> {
        match runs {
            _ if !self.judges.cheap => Ok(()),
            Some(runs) => self.calls.check_paid(mem, |vring| self.ledger.ring(vring), runs),
            None => {
                self.calls.died();
                Ok(())
            }
        }
    }

    /// The back-end does nothing more for a vring that may be fetched from until
    /// it is kicked. To be asked right after [`check_region`](Self::check_region).
    pub fn check_sleep(&self, mem: &Mem, vring: u16) -> Result<(), Violation> {
        if !self.judges.region || !self.judges.costly || self.is_spoiled(vring) {
            return Ok(());
        }
        let (fetched, _) = self.fetched[usize::from(vring)];
        let fetched_all = fetched == self.ledger.available_count(vring);
        self.calls.check_sleep(mem, self.ledger.ring(vring), Rest { vring, fetched_all })
    }

    /// The inflight region knows of a request that goes to the disk.
    pub fn check_known(
        &self,
        region: RegionView<'_>,
        vring: u16,
        head: u16,
    ) -> Result<(), Violation> {
        match self.judges.region && self.judges.costly && !self.is_spoiled(vring) {
            true => region::check_issue(region, vring, head),
            false => Ok(()),
        }
    }

    /// Where a vring stands by its ring and its part of the region.
    pub fn at_stop(
        &self,
        mem: &Mem,
        region: Option<RegionView<'_>>,
        vring: u16,
    ) -> Result<Standing, Violation> {
        let live = match region {
            Some(region) => region::live(&self.ledger, mem, region, vring, false)?,
            None => Default::default(),
        };
        let ring = self.ledger.ring(vring);
        let used = match ring {
            RingView::Split(split) => split.used_index(mem).into(),
            RingView::Packed(packed) => packed.used_seen,
        };
        Ok(Standing {
            used: ring.base(used, used),
            told: ring.base(ring.after(used, live.steps), used),
            inflight: live.names.len() as u16,
            packed: matches!(ring, RingView::Packed(_)),
        })
    }
}
