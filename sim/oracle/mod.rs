//! Judges, written from the promises of the vhost-user and VIRTIO documents.
//!
//! They share no code with `midflight` itself: rings and the inflight region
//! are decoded here a second time, from the byte layouts in the documents.

mod calls;
mod cause;
mod dirty;
mod durability;
mod excuses;
#[cfg(test)]
mod fault_tests;
mod ledger;
mod order;
mod promise;
mod reading;
mod region;
mod rings;
mod sectors;
pub mod session;
mod stores;
mod wake;

use crate::disk::faults::{Injected, Try};
use crate::disk::{Image, Job};
use crate::memory::Mem;
use crate::trace::Verb;
use calls::Calls;
pub use dirty::Pair;
pub use ledger::{Ask, Expect, Ledger, SERIAL};
pub use promise::promise;
pub use reading::{Asked, PackedAsked, PackedReading, Reading};
pub use region::RegionView;
pub use rings::{PackedView, RingView, SplitView};
use sectors::Sectors;
use std::cell::RefCell;
pub use stores::GuestStore;
use stores::{Step, Watch};

/// A promise was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{oracle}: {message}")]
pub struct Violation {
    /// Which oracle noticed.
    pub oracle: &'static str,
    /// What it expected and what it saw.
    pub message: String,
}

/// What kind of promise it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something happened that must not.
    Safety,
    /// Something did not happen that must.
    Liveness,
}

impl Violation {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        if self.oracle == "liveness" { Kind::Liveness } else { Kind::Safety }
    }

    /// Its message without the numbers of this run: the same in every run that
    /// breaks the same promise in the same way.
    pub fn cause(&self) -> String {
        cause::blank(&self.message)
    }

    /// Build one.
    pub fn new(oracle: &'static str, message: impl Into<String>) -> Self {
        Self { oracle, message: message.into() }
    }
}

/// Which oracles work. All of them, but for proofs that one would do without
/// another, and to see what they cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judges {
    /// Those that look at a request a few times in its life: ledger, sectors,
    /// durability, order, notification. Without them requests are counted, not
    /// judged.
    pub cheap: bool,
    /// Those that look at every store or at all of memory: inflight region,
    /// stores, quiet vrings, memory that was handed over.
    pub costly: bool,
    /// Look into the inflight region.
    pub region: bool,
    /// Look at requests whose vring is said to be at rest. Without it, only
    /// what a guest can notice counts.
    pub late: bool,
    /// Hear of the faults that were injected into the disk. Without it, every
    /// fault looks like a mistake.
    pub excuses: bool,
}

impl Judges {
    /// Only those that cost little.
    pub const CHEAP: Self =
        Self { cheap: true, costly: false, region: true, late: true, excuses: true };
    /// None: for measurements.
    pub const NONE: Self = Self { cheap: false, ..Self::CHEAP };
}

impl Default for Judges {
    fn default() -> Self {
        Self { costly: true, ..Self::CHEAP }
    }
}

/// All oracles of one run.
pub struct Oracle {
    judges: Judges,
    /// Order of everything the guest could observe.
    tick: u64,
    ledger: Ledger,
    sectors: Sectors,
    order: order::Order,
    /// `VIRTIO_F_IN_ORDER` is agreed on.
    in_order: bool,
    write_through: bool,
    /// The flush of the back-end's own that it owes for its cache being off has
    /// done nothing, by a fault.
    own_flush_lied: bool,
    /// Tick at which the latest flush that was acknowledged was asked for.
    flushed: u64,
    /// Completed in the middle of a step, to be checked at its end.
    unchecked: Vec<u64>,
    calls: Calls,
    step: RefCell<Step>,
    /// By vring: requests fetched when the region was looked at last, and whether
    /// a back-end ran the vring then.
    fetched: Vec<(u64, bool)>,
    /// By vring: the guest has broken its rules, and nothing is promised for it.
    spoiled: Vec<bool>,
}

impl Oracle {
    /// Oracles for rings that start at `first_index` with nothing outstanding.
    pub fn new(judges: Judges, rings: Vec<RingView>, sectors: u64, write_through: bool) -> Self {
        let queues = rings.len();
        let calls = Calls::new(false, &rings);
        Self {
            judges,
            tick: 1,
            ledger: Ledger::new(rings),
            sectors: Sectors::new(sectors),
            order: order::Order::new(queues),
            in_order: false,
            write_through,
            own_flush_lied: false,
            flushed: 0,
            unchecked: Vec::new(),
            calls,
            step: RefCell::default(),
            fetched: vec![(0, false); queues],
            spoiled: vec![false; queues],
        }
    }

    /// Whether requests have to be used in the order they were made available.
    pub fn with_in_order(mut self, on: bool) -> Self {
        self.in_order = on;
        self
    }

    /// Whether both sides say by indexes when they want to be woken.
    pub fn with_event_idx(mut self, on: bool) -> Self {
        let rings: Vec<_> = (0..self.ledger.vrings()).map(|v| *self.ledger.ring(v)).collect();
        self.calls = Calls::new(on, &rings);
        self
    }

    /// The guest has broken the rules of a vring: what is in flight on it is
    /// excused, and what its ring says means nothing.
    pub fn spoiled(&mut self, vring: u16) {
        self.spoiled[usize::from(vring)] = true;
        self.calls.called(vring);
    }

    /// Whether it has.
    pub fn is_spoiled(&self, vring: u16) -> bool {
        self.spoiled.get(usize::from(vring)).is_some_and(|spoiled| *spoiled)
    }

    /// The requests and what became of them.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The guest has put a request into its ring; not visible yet.
    pub fn offered(&mut self, ask: Ask) {
        self.ledger.offered(ask);
    }

    /// The guest has stored an available index.
    pub fn published(&mut self, mem: &Mem, vring: u16) -> Result<(), Violation> {
        self.tick += 1;
        let before = self.ledger.ring(vring).avail_place();
        while let Some(id) = self.ledger.scan_avail(mem, vring, self.tick)? {
            let ask = self.ledger.ask(id);
            if ask.expect == Expect::Ok && self.judges.cheap {
                self.sectors.submitted(ask, self.tick);
            }
        }
        if self.judges.cheap {
            self.calls.offered(mem, vring, self.ledger.ring(vring), before);
        }
        Ok(())
    }

    /// The back-end has made these stores to guest memory in one step.
    pub fn check_stores<'s>(
        &self,
        mem: &Mem,
        stores: impl Iterator<Item = (GuestStore, &'s [u8])>,
    ) -> Result<(), Violation> {
        let mut watch = Watch::new(&self.ledger, mem, &self.step, &self.spoiled);
        for (store, value) in stores {
            watch.store(store, value)?;
        }
        Ok(())
    }

    /// Stores of the back-end have become visible: look for used entries. The
    /// number of them in the vring that has most. Without `image` in the middle
    /// of a step, in which the disk does nothing.
    pub fn after_stores(&mut self, mem: &Mem, image: Option<&Image>) -> Result<u64, Violation> {
        self.tick += 1;
        let mut most = 0;
        for vring in 0..self.ledger.vrings() {
            if self.is_spoiled(vring) {
                continue;
            }
            let before = self.ledger.used_count(vring);
            while let Some(id) = self.ledger.scan_used(mem, vring)? {
                if !self.judges.cheap {
                    continue;
                }
                if self.in_order {
                    let used = self.ledger.used_count(vring);
                    order::check_used(vring, used, self.ledger.ask(id))?;
                }
                let done = self.ledger.verdict(mem, id)?;
                let ask = self.ledger.ask(id);
                if ask.expect != Expect::Ok {
                    continue;
                }
                if ask.verb == Verb::Read && done.ok {
                    self.sectors.check_read(mem, ask)?;
                }
                self.sectors.completed(ask, done.ok, self.tick);
                if done.ok && ask.verb == Verb::Flush && !self.ledger.has_lied(id) {
                    self.flushed = self.flushed.max(ask.published.unwrap_or(0));
                }
                if done.ok {
                    self.unchecked.push(id);
                }
            }
            most = most.max(self.ledger.used_count(vring) - before);
        }
        if let Some(image) = image {
            for id in &self.unchecked {
                self.check_durable(*id, image)?;
            }
            self.unchecked.clear();
        }
        Ok(most)
    }

    fn check_durable(&self, id: u64, image: &Image) -> Result<(), Violation> {
        let ask = self.ledger.ask(id);
        match ask.verb {
            // spec: virtio 1.2, "Device Operation": a flush covers the writes
            // that were complete when it was submitted.
            Verb::Flush if self.ledger.has_lied(id) => Ok(()),
            Verb::Flush => {
                let submitted = ask.published.unwrap_or(self.tick);
                durability::check(&self.sectors, image, submitted, |_| true, "flush")
            }
            Verb::Write | Verb::WriteZeroes if self.write_through => {
                let range = ask.sector..ask.sector + ask.sectors;
                let now = self.tick + 1;
                durability::check(
                    &self.sectors,
                    image,
                    now,
                    |s| range.contains(&s),
                    "write-through",
                )
            }
            _ => Ok(()),
        }
    }

    /// A back-end has asked the disk.
    pub fn issued(&mut self, job: &Job) -> Result<(), Violation> {
        if !self.judges.cheap || self.is_spoiled(job.vring) {
            return Ok(());
        }
        let Ask { order, request, .. } = *self.ledger.check_issue(job)?;
        self.order.issued(job.conn, job.vring, order, request)
    }

    /// Compare some memory of a destination with what its source last held.
    /// `open`: a back-end of the source was lost while it logged, so buffers of
    /// requests in flight may differ.
    pub fn check_arrival(&self, pair: &Pair<'_>, open: bool) -> Result<(), Violation> {
        if !self.judges.costly {
            return Ok(());
        }
        // Who looks away from old requests does not see where their reads land.
        dirty::check(&self.ledger, pair, open || !self.judges.late)
    }

    /// A front-end was told that a vring is at rest.
    pub fn stopped(&mut self, vring: u16) {
        self.ledger.stopped(vring);
        self.order.stopped(vring);
    }

    /// The guest has reset the device and begins anew, with these rings. Changes
    /// that were under way may have happened.
    pub fn reset(&mut self, rings: Vec<RingView>) {
        self.tick += 1;
        for (vring, ring) in (0..).zip(rings) {
            self.calls.reset(vring, &ring);
            self.order.stopped(vring);
            for request in self.ledger.reset(vring, ring) {
                let ask = self.ledger.ask(request);
                if ask.expect == Expect::Ok && self.judges.cheap {
                    self.sectors.completed(ask, false, self.tick);
                }
            }
        }
    }

    /// The vring on whose behalf somebody may store to this guest address.
    pub fn vring_of(&self, addr: u64) -> Option<u16> {
        dirty::vring_of(&self.ledger, addr)
    }

    /// Which oracles work.
    pub fn judges(&self) -> Judges {
        self.judges
    }

    /// The disk is done with a try of a request.
    pub fn disk_done(&mut self, of: Try, ok: bool) -> Result<(), Violation> {
        self.ledger.answered(of, ok)
    }

    /// A fault of the disk has taken effect: what it excuses is excused.
    pub fn injected(&mut self, injected: &Injected) {
        if !self.judges.excuses {
            return;
        }
        let excuses = &mut self.sectors.excuses;
        match injected {
            Injected::Fails { of, sector, .. } => self.ledger.fails(*of, *sector),
            Injected::Lies { of } if of.request == u64::MAX => self.own_flush_lied = true,
            Injected::Lies { of } => self.ledger.lies(*of),
            Injected::Shows { sector, content, .. } => {
                excuses.show(*sector, content.clone(), self.tick);
            }
            Injected::Heals { sector } => excuses.heal(*sector, self.tick),
            Injected::Forgets { sector } => excuses.lapse(*sector, self.tick),
            // A second report excuses nothing.
            Injected::Again { .. } => {}
        }
    }

    /// The guest was told that its write cache is off. It will not flush any more,
    /// so everything that it was given back has to be durable.
    // spec: virtio 1.2, "Block Device", "Device Operation": writeback
    pub fn cache_off(&mut self, image: &Image) -> Result<(), Violation> {
        if std::mem::take(&mut self.own_flush_lied) || !self.judges.cheap {
            return Ok(());
        }
        self.tick += 1;
        self.write_through = true;
        durability::check(&self.sectors, image, self.tick, |_| true, "write-through")
    }

    /// The guest turns its write cache on: what is completed from here on is
    /// promised by a flush only.
    pub fn cache_on(&mut self) {
        if std::mem::take(&mut self.write_through) {
            self.tick += 1;
            self.flushed = self.tick;
        }
    }

    /// Power was lost at the disk, and with it what waited in its cache.
    pub fn power_lost(&mut self) {
        if !self.judges.excuses {
            return;
        }
        self.tick += 1;
        let promised = if self.write_through { self.tick } else { self.flushed };
        self.sectors.power_lost(promised);
    }

    /// Everything is done: the disk holds nothing but what the guest may find.
    pub fn at_rest(&self, image: &Image) -> Result<(), Violation> {
        if self.judges.cheap { self.sectors.check_image(image) } else { Ok(()) }
    }

    /// The inflight region must be recoverable now. `runs`: vrings that a live
    /// back-end runs, where no batch is open between its steps. `changed`: vrings,
    /// one bit each, of which something was stored since it was looked at last;
    /// requests that were made available since then are not fetched and change
    /// nothing.
    pub fn check_region(
        &mut self,
        mem: &Mem,
        region: RegionView<'_>,
        runs: impl Fn(u16) -> bool,
        changed: u64,
    ) -> Result<(), Violation> {
        if !self.judges.region || !self.judges.costly {
            return Ok(());
        }
        for vring in 0..self.ledger.vrings() {
            let (alive, (_, before)) = (runs(vring), self.fetched[usize::from(vring)]);
            if self.is_spoiled(vring) || (changed >> vring & 1 == 0 && before == alive) {
                continue;
            }
            let fetched = region::check(&self.ledger, mem, region, vring, alive)?;
            self.fetched[usize::from(vring)] = (fetched, alive);
        }
        Ok(())
    }
}
