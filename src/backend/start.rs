//! A vring begins to run: its place is checked, what a predecessor left is
//! taken over, and the ring is looked at once without being asked.

use super::fetch::Broken;
use super::in_order::InOrder;
use super::setup::InflightMemory;
use super::vring::{Run, Vring, ring_log};
use super::{Backend, Event, FrontendFault, Output};
use crate::bugs::{self, Bug};
use crate::inflight::{InflightFault, Recovery, Region};
use crate::iommu::{Space, Translator};
use crate::marks::{self, Mark};
use crate::time::Instant;
use crate::vring::{GuestFault, Ring, RingAddresses, RingFormat, SplitRing};
use crate::wire::VringAddr;
use crate::wire::features::virtio;
use vm_memory::GuestMemory;

/// A ring whose place was checked, with what a predecessor left in it.
struct Taken {
    ring: Ring,
    region: Option<Region>,
    recovery: Recovery,
    /// What SET_VRING_BASE said.
    base: u32,
    /// It fits what ring and region say.
    plausible: bool,
    /// The guest has made the ring such that it cannot run.
    broken: Option<GuestFault>,
}

impl<M: GuestMemory> Backend<M> {
    /// To be called when a vring has become started or enabled. Does nothing
    /// unless it is both. A fault leaves the vring as it was.
    // spec: vhost-user, "Ring states"
    pub(super) fn start_vring(&mut self, now: Instant, vring: u16) -> Result<(), FrontendFault> {
        let v = &self.vrings[usize::from(vring)];
        if !v.started || !v.enabled {
            return Ok(());
        }
        if v.run.is_none() {
            if self.translates() && !self.find_ring(vring)? {
                return Ok(());
            }
            let taken = self.take_up(vring)?;
            self.begin(now, vring, taken);
        }
        // A kick before this moment was not looked at, and a front-end need not
        // kick at all.
        if !bugs::on(Bug::KickRequired) {
            self.fetch(now, vring);
        }
        Ok(())
    }

    /// A front-end without protocol features has no message to enable vrings;
    /// they are enabled with its features. All of them start or none does: a
    /// refusal takes the features back, and no ring may run by features that
    /// are not in force.
    // spec: vhost-user, "Ring states"
    pub(super) fn enable_all(&mut self, now: Instant) -> Result<(), FrontendFault> {
        let mut ready = Vec::new();
        for vring in 0..self.config.num_queues {
            let v = &self.vrings[usize::from(vring)];
            if !v.started || v.run.is_some() {
                continue;
            }
            // One whose place is not known yet starts when it is.
            if !self.translates() || self.find_ring(vring)? {
                ready.push((vring, self.take_up(vring)?));
            }
        }
        self.vrings.iter_mut().for_each(|v| v.enabled = true);
        for (vring, taken) in ready {
            self.begin(now, vring, taken);
        }
        for vring in 0..self.config.num_queues {
            self.fetch(now, vring);
        }
        Ok(())
    }

    /// Everything that can be refused. What is stored into the inflight region
    /// here is recovery, which may be done any number of times.
    fn take_up(&self, vring: u16) -> Result<Taken, FrontendFault> {
        if self.postcopy.holds_fetching() {
            return Err(FrontendFault::MemoryNotAcknowledged { vring });
        }
        if self.is_transferring() {
            return Err(FrontendFault::Transferring { message: "a start" });
        }
        let v = &self.vrings[usize::from(vring)];
        let format = self.session.ring_format();
        let base = v.base.unwrap_or(format.first_base());
        // Sizes and bases may have come before it was agreed on what they mean.
        if !format.has_size(v.size) {
            let (got, max) = (v.size.into(), self.config.queue_size_max);
            return Err(FrontendFault::VringSize { vring, format, got, max });
        }
        if !format.has_base(base, v.size) {
            return Err(match format {
                RingFormat::Split => FrontendFault::VringBase { vring, got: base },
                RingFormat::Packed => {
                    FrontendFault::VringPositions { vring, got: base, size: v.size }
                }
            });
        }
        let unmapped = || FrontendFault::VringUnmapped { vring };
        let mem = self.memory.as_ref().ok_or_else(unmapped)?;
        let event_idx = self.session.features & virtio::EVENT_IDX != 0;
        let forget = self.was_reset(v);
        let opening = Opening { vring, format, size: v.size, event_idx, base, forget };
        if self.translates() {
            let VringAddr { desc, avail, used, .. } =
                v.addr.ok_or(FrontendFault::VringUnset { vring })?;
            let (tlb, table) = (&self.iommu.tlb, &self.table);
            let space = Space::new(mem, Translator { tlb, table, ring: &v.iommu.map });
            opening.open(&space, RingAddresses { desc, avail, used }, self.inflight.as_ref())
        } else {
            let at = v.place(vring, format, &self.table)?;
            opening.open(mem, at, self.inflight.as_ref())
        }
    }

    /// True if the guest has reset this vring alone: it is started again on the
    /// region it was stopped with, and not where it was stopped. Nothing of what
    /// was in flight then belongs to the ring that starts now.
    // spec: virtio 1.2, "Virtqueue Reset"
    fn was_reset(&self, v: &Vring) -> bool {
        let agreed = self.session.features & virtio::RING_RESET != 0;
        agreed && v.told.is_some_and(|told| Some(told) != v.base)
    }

    fn begin(&mut self, now: Instant, vring: u16, taken: Taken) {
        let Taken { ring, region, recovery, base, plausible, broken } = taken;
        let v = &self.vrings[usize::from(vring)];
        let inflight = recovery.resubmit.len() as u16;
        let used = ring.used();
        let next = ring.next_avail();
        // What a predecessor stored and did not live to mark. Data and status
        // need no such care: what it had not published is written again.
        let log = self.session.log_in_force(&self.log);
        if let Some((log, used)) = log.zip(ring_log(log, v.addr.as_ref(), &v.iommu.map))
            && !bugs::on(Bug::LogNotMended)
        {
            marks::hit(Mark::LogMended);
            ring.log_all(&used);
            log.published();
        }

        let (size, slots) = (v.size, usize::from(ring.slots()));
        let in_order = self.session.features & virtio::IN_ORDER != 0;
        self.vrings[usize::from(vring)].run = Some(Run {
            ring,
            region,
            taken: vec![false; slots],
            at_disk: 0,
            batch: Vec::with_capacity(slots),
            in_order: in_order.then(|| InOrder::new(slots as u16)),
            stopping: false,
            suspending: false,
            broken: false,
            more: false,
            poll_at: Instant::ZERO,
        });
        if !plausible {
            self.event(Event::BaseContradicted { vring, base, used, inflight });
        }
        self.event(Event::VringRunning {
            vring,
            size,
            next_avail: next,
            used,
            resubmitted: inflight,
        });
        if let Some(fault) = broken {
            self.broken(vring, Broken::Guest(fault));
        }
        // A stop is over when a vring starts; the next one has its own grace.
        self.cancel_at = None;
        // The lower half of a base is the used index of a split ring at 0, and of
        // a packed one the available position, where used is as well at first.
        // And whoever has had a region in use has had a guest.
        let is_first = used == self.session.ring_format().first_base() as u16;
        self.start_cache(is_first && recovery.fresh);
        if !self.store {
            self.store = true;
            self.out.push_back(Output::AcquireStore);
        }
        if bugs::on(Bug::ResubmitAfterFetch) {
            self.fetch(now, vring);
        }
        // Resubmission is complete before anything new is fetched.
        self.resubmit(vring, &recovery.resubmit);
        // A predecessor may have died between publishing and calling.
        if !bugs::on(Bug::NoCallAfterRecovery) {
            self.call(vring);
        }
    }
}

/// Where a split ring goes on; false if the base contradicts that.
///
/// What the base means depends on how the front-end came by it: after a stop it
/// counts the requests in flight, after a crash it does not. The region knows,
/// so the base is only a check, except where nobody has tracked anything.
fn place_split<M: GuestMemory>(
    ring: &mut SplitRing,
    mem: &M,
    recovery: &Recovery,
    base: u16,
) -> Result<bool, GuestFault> {
    let (used, inflight) = (ring.used_idx(), recovery.resubmit.len() as u16);
    let next = match () {
        () if recovery.fresh || bugs::on_when(Bug::BaseTrusted, || inflight > 0) => base,
        () if bugs::on_when(Bug::BasePlusInflight, || inflight > 0) => base.wrapping_add(inflight),
        () if bugs::on(Bug::UnfinishedSkipped) => ring.avail_idx(mem)?,
        () => used.wrapping_add(inflight),
    };
    marks::hit_when(Mark::BaseAfterCrash, || inflight > 0 && base == used);
    marks::hit_when(Mark::BaseAfterStop, || inflight > 0 && base == next);
    ring.set_next_avail(next);
    Ok(base == used || base == used.wrapping_add(inflight))
}

/// What a vring is started with.
struct Opening {
    vring: u16,
    format: RingFormat,
    size: u16,
    event_idx: bool,
    base: u32,
    /// The guest has reset it: what its region says is of the past.
    forget: bool,
}

impl Opening {
    /// Take up a ring by the addresses that `view` has, and what a predecessor
    /// left in flight.
    fn open<V: GuestMemory, M: GuestMemory>(
        &self,
        view: &V,
        at: RingAddresses,
        inflight: Option<&InflightMemory<M>>,
    ) -> Result<Taken, FrontendFault> {
        let &Self { vring, format, size, event_idx, base, forget } = self;
        let unmapped = |_: GuestFault| FrontendFault::VringUnmapped { vring };
        let mut ring = Ring::new(view, format, size, at, event_idx, base).map_err(unmapped)?;
        let mut broken = None;
        let (region, recovery) = match inflight {
            Some(i) => {
                let shape = i.shape.taken_for(format)?;
                if forget {
                    shape.forget(&i.memory, vring)?;
                }
                match Region::attach(&i.memory, &shape, vring, view, &mut ring) {
                    Ok((region, recovery)) => (Some(region), recovery),
                    // Any guest can do that to its ring, so it costs the guest
                    // this vring and nobody anything else.
                    Err(InflightFault::NotMadeAvailable { at, .. }) => {
                        broken = Some(GuestFault::TakenBack { at });
                        (None, Recovery { fresh: true, ..Recovery::default() })
                    }
                    Err(fault) => return Err(fault.into()),
                }
            }
            None => (None, Recovery { fresh: true, ..Recovery::default() }),
        };
        let plausible = match &mut ring {
            Ring::Split(ring) => {
                place_split(ring, view, &recovery, base as u16).map_err(unmapped)?
            }
            // After a crash the base is what was said last, however long ago
            // that was. Where nobody has tracked anything it must not count
            // requests that are in flight.
            Ring::Packed(ring) => {
                !recovery.fresh || broken.is_some() || ring.positions().ahead(size) == Some(0)
            }
        };
        Ok(Taken { ring, region, recovery, base, plausible, broken })
    }
}
