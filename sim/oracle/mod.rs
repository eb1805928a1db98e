//! Judges, written from the promises of the vhost-user and VIRTIO documents.
//!
//! They share no code with `midflight` itself: rings and the inflight region
//! are decoded here a second time, from the byte layouts in the documents.

mod cause;
mod dirty;
mod durability;
mod ledger;
mod order;
mod promise;
mod reading;
mod region;
mod rings;
mod sectors;
mod stores;

use crate::disk::{Image, Job};
use crate::memory::Mem;
use crate::trace::Verb;
pub use dirty::Pair;
pub use ledger::{Ask, Expect, Ledger, SERIAL};
pub use promise::promise;
pub use reading::{Asked, Reading};
pub use region::RegionView;
pub use rings::RingView;
use sectors::Sectors;
pub use stores::GuestStore;
use stores::Watch;

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
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judges {
    /// Look into the inflight region.
    pub region: bool,
    /// Look at requests whose vring is said to be at rest. Without it, only
    /// what a guest can notice counts.
    pub late: bool,
}

impl Default for Judges {
    fn default() -> Self {
        Self { region: true, late: true }
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
    write_through: bool,
    /// Completed in the middle of a step, to be checked at its end.
    unchecked: Vec<u64>,
}

impl Oracle {
    /// Oracles for rings that start at `first_index` with nothing outstanding.
    pub fn new(judges: Judges, rings: Vec<RingView>, sectors: u64, write_through: bool) -> Self {
        let queues = rings.len();
        Self {
            judges,
            tick: 1,
            ledger: Ledger::new(rings),
            sectors: Sectors::new(sectors),
            order: order::Order::new(queues),
            write_through,
            unchecked: Vec::new(),
        }
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
        while let Some(id) = self.ledger.scan_avail(mem, vring, self.tick)? {
            let ask = self.ledger.ask(id);
            if ask.expect == Expect::Ok {
                self.sectors.submitted(ask, self.tick);
            }
        }
        Ok(())
    }

    /// The back-end has made these stores to guest memory in one step.
    pub fn check_stores<'s>(
        &self,
        mem: &Mem,
        stores: impl Iterator<Item = (GuestStore, &'s [u8])>,
    ) -> Result<(), Violation> {
        let mut watch = Watch::new(&self.ledger, mem);
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
            let before = self.ledger.used_count(vring);
            while let Some(id) = self.ledger.scan_used(mem, vring)? {
                let done = self.ledger.verdict(mem, id)?;
                let ask = self.ledger.ask(id);
                if ask.expect != Expect::Ok {
                    continue;
                }
                if ask.verb == Verb::Read && done.ok {
                    self.sectors.check_read(mem, ask)?;
                }
                self.sectors.completed(ask, done.ok, self.tick);
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
        let Ask { order, request, .. } = *self.ledger.check_issue(job)?;
        self.order.issued(job.conn, job.vring, order, request)
    }

    /// Compare some memory of a destination with what its source last held.
    /// `open`: a back-end of the source was lost while it logged, so buffers of
    /// requests in flight may differ.
    pub fn check_arrival(&self, pair: &Pair<'_>, open: bool) -> Result<(), Violation> {
        // Who looks away from old requests does not see where their reads land.
        dirty::check(&self.ledger, pair, open || !self.judges.late)
    }

    /// A front-end was told that a vring is at rest.
    pub fn stopped(&mut self, vring: u16) {
        self.ledger.stopped(vring);
        self.order.stopped(vring);
    }

    /// The vring on whose behalf somebody may store to this guest address.
    pub fn vring_of(&self, addr: u64) -> Option<u16> {
        dirty::vring_of(&self.ledger, addr)
    }

    /// Which oracles work.
    pub fn judges(&self) -> Judges {
        self.judges
    }

    /// The disk has reported an error for a request.
    pub fn disk_failed(&mut self, vring: u16, head: u16) {
        self.ledger.disk_failed(vring, head);
    }

    /// Everything is done: the disk holds nothing but what the guest may find.
    pub fn at_rest(&self, image: &Image) -> Result<(), Violation> {
        self.sectors.check_image(image)
    }

    /// The inflight region must be recoverable now. `runs`: vrings that a live
    /// back-end runs, where no batch is open between its steps.
    pub fn check_region(
        &self,
        mem: &Mem,
        region: RegionView<'_>,
        runs: impl Fn(u16) -> bool,
    ) -> Result<(), Violation> {
        if !self.judges.region {
            return Ok(());
        }
        for vring in 0..self.ledger.vrings() {
            region::check(&self.ledger, mem, region, vring, runs(vring))?;
        }
        Ok(())
    }
}
