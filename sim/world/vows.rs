//! What a back-end owes its driver and its operator, beside what the documents
//! promise to guests: it is written beside `Output`, `Event` and `SuspendPolicy`
//! of the core, and in DESIGN.md, section 3.

use super::World;
use crate::oracle::{RegionView, Violation};
use crate::topology::Ring;
use midflight::backend::{CHAINS_PER_CALL, CHAINS_UNDIVIDED, Event};
use midflight::blk::ReqId;
use std::collections::BTreeMap;

/// What one back-end process has said so far.
#[derive(Debug, Default)]
pub(super) struct Vows {
    /// Requests it has asked for and was not told of, and their vrings.
    asked: BTreeMap<ReqId, u16>,
    /// The newest of all.
    newest: Option<u64>,
    /// Nothing in flight is cancelled before this moment.
    grace_over: Option<u64>,
    /// It has asked for the store and not given it back.
    store: bool,
}

pub(super) fn vow(message: impl Into<String>) -> Violation {
    Violation::new("vows", message)
}

impl Vows {
    /// A request goes to the disk.
    pub fn asks(&mut self, id: ReqId, vring: u16) -> Result<(), Violation> {
        if self.newest.is_some_and(|newest| newest >= id.epoch) {
            return Err(vow(format!("{id} is not the first with its epoch")));
        }
        self.newest = Some(id.epoch);
        self.asked.insert(id, vring);
        if self.store { Ok(()) } else { Err(vow(format!("{id} without the store"))) }
    }

    /// The core is told that a request is over.
    pub fn told(&mut self, id: ReqId) {
        self.asked.remove(&id);
    }

    pub fn acquires(&mut self) -> Result<(), Violation> {
        match std::mem::replace(&mut self.store, true) {
            true => Err(vow("the store is asked for twice")),
            false => Ok(()),
        }
    }

    pub fn releases(&mut self) -> Result<(), Violation> {
        if let Some(id) = self.asked.keys().next() {
            return Err(vow(format!("the store is given back, and {id} is there still")));
        }
        match std::mem::replace(&mut self.store, false) {
            true => Ok(()),
            false => Err(vow("the store is given back twice")),
        }
    }

    pub fn cancels(&self, id: ReqId, now: u64) -> Result<(), Violation> {
        match self.grace_over {
            Some(at) if at <= now => Ok(()),
            Some(at) => {
                Err(vow(format!("{id} is cancelled, and has {} ns of its grace", at - now)))
            }
            None => Err(vow(format!("{id} is cancelled, and nothing is being suspended"))),
        }
    }

    /// The connection is over.
    pub fn hung_up(&mut self) {
        self.grace_over = None;
    }

    /// What is reported is true.
    pub fn says(
        &mut self,
        event: &Event,
        now: u64,
        grace: u64,
        packed: bool,
    ) -> Result<(), Violation> {
        match *event {
            Event::VringRunning { vring, next_avail, used, resubmitted, .. } => {
                self.grace_over = None;
                // Of packed ones chains have lengths, which are not told.
                if packed {
                    return match resubmitted > 0 && next_avail == used {
                        false => Ok(()),
                        true => Err(vow(format!(
                            "vring {vring} goes on at {next_avail:#06x}, with {resubmitted} in flight"
                        ))),
                    };
                }
                let expected = used.wrapping_add(resubmitted);
                if next_avail != expected {
                    return Err(vow(format!(
                        "vring {vring} goes on at {next_avail}, expected {expected}: {used} used and {resubmitted} in flight"
                    )));
                }
            }
            Event::BaseContradicted { vring, base, used, inflight }
                if !packed && [used, used.wrapping_add(inflight)].contains(&(base as u16)) =>
            {
                return Err(vow(format!(
                    "base {base} of vring {vring} is called wrong: {used} used, {inflight} in flight"
                )));
            }
            Event::VringStopped { vring, .. } => {
                if let Some((id, _)) = self.asked.iter().find(|(_, of)| **of == vring) {
                    return Err(vow(format!("vring {vring} is at rest, and {id} is at the disk")));
                }
            }
            Event::Draining { vring, inflight: 0 } | Event::Suspending { vring, inflight: 0 } => {
                return Err(vow(format!("a stop of vring {vring} waits for nothing")));
            }
            Event::Suspending { .. } => {
                self.grace_over.get_or_insert(now + grace);
            }
            _ => {}
        }
        Ok(())
    }
}

/// How far a vring is.
pub(super) struct Progress {
    available: u64,
    fetched: u64,
}

impl World<'_> {
    /// A step is over, and nobody died.
    pub(super) fn check_vows(&self) -> Result<(), Violation> {
        let Some(back) = &self.here.back else { return Ok(()) };
        let (counts, asked) = (back.core.requests_in_flight(), back.vows.asked.len());
        if counts != asked {
            return Err(vow(format!("{asked} requests are at the disk, the core counts {counts}")));
        }
        if back.conn.is_none() && back.core.is_idle() && !back.handles.is_empty() {
            return Err(vow("a descriptor of the connection that has ended is still open"));
        }
        Ok(())
    }

    /// A stop without the front-end's word that requests may stay leaves none.
    // spec: vhost-user, VHOST_USER_GET_VRING_BASE
    pub(super) fn check_drained(&self, vring: u16) -> Result<(), Violation> {
        let left = self.flagged(vring).unwrap_or(0);
        // What a guest has broken, nobody can finish.
        let broken = self.guest.borrow().sabotage(vring).is_some();
        if left > 0 && !self.here.front.may_leave && !broken {
            return Err(vow(format!(
                "a stop of vring {vring} that was to drain it leaves {left} requests in flight"
            )));
        }
        Ok(())
    }

    /// Entries of a vring in its region.
    fn flagged(&self, vring: u16) -> Option<u64> {
        let region = self.here.check.inflight?;
        self.arena.with_image(region, |bytes| {
            let part = bytes.len() / usize::from(self.topology.queues);
            let bytes = bytes.get(part * usize::from(vring)..)?.get(..part)?;
            Some(RegionView { queues: 1, ..RegionView::of(bytes, &self.topology) }.flagged())
        })
    }

    /// How far a vring of the guest's host is, for [`Self::check_pace`].
    pub(super) fn progress(&self, vring: u16) -> Option<Progress> {
        // Between lives a batch may be open, that counts twice.
        if self.here.id != self.guest_at || !self.here.back.as_ref()?.runs(vring) {
            return None;
        }
        let available = self.oracle.borrow().ledger().published_count(vring);
        Some(Progress { available, fetched: self.fetched(vring)? })
    }

    /// Chains that were fetched from a vring of which no batch is open.
    pub(super) fn fetched(&self, vring: u16) -> Option<u64> {
        // Of a ring that its guest has broken nobody knows.
        if self.guest.borrow().sabotage(vring).is_some() {
            return None;
        }
        Some(self.oracle.borrow().ledger().used_count(vring) + self.flagged(vring)?)
    }

    /// Of a few chains one call fetches all, of many half: nobody waits for
    /// long, neither the guest nor whatever else the process looks after.
    pub(super) fn check_pace(&self, vring: u16, before: &Progress) -> Result<(), Violation> {
        let Some(after) = self.progress(vring) else { return Ok(()) };
        let there = before.available.saturating_sub(before.fetched);
        let (few, most) = (u64::from(CHAINS_UNDIVIDED), u64::from(CHAINS_PER_CALL));
        let of = |there: u64| there.div_ceil(2).clamp(few, most);
        // Of a packed ring a back-end counts descriptors, of which there are more.
        let packed = self.topology.ring == Ring::Packed;
        // The guest may have added some meanwhile.
        let most = if packed { most } else { of(after.available.saturating_sub(before.fetched)) };
        let got = after.fetched.saturating_sub(before.fetched);
        // It may have been told to fetch nothing.
        if got > 0 && (got < of(there).min(there) || got > most) {
            return Err(vow(format!("of {there} chains in vring {vring} a kick fetches {got}")));
        }
        Ok(())
    }
}
