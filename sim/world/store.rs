//! The store that both hosts share: whose it is, and what becomes of requests
//! that are cancelled or come too late.

use super::{Event, World};
use crate::disk::{Disk, Job, Landing};
use crate::memory::Mem;
use crate::oracle::Violation;
use crate::topology::Policy;
use crate::trace::{BackEvent, Lane, Verb, What};
use midflight::blk::{Completion, DiskError, ReqId};

impl World<'_> {
    /// The disk moves bytes for this host.
    pub(super) fn with_disk<T>(&mut self, act: impl FnOnce(&mut Disk, &Mem) -> T) -> T {
        self.arena.set_disk_writes(true);
        let result = act(&mut self.disk, &self.here.guest_memory.mem);
        self.arena.set_disk_writes(false);
        if self.disk.has_news() {
            self.spread_news();
        }
        result
    }

    /// The image has a lock, and one host at a time holds it.
    pub(super) fn acquire_store(&mut self) {
        let Some(back) = &mut self.here.back else { return };
        back.wants_store = true;
        match self.store {
            None if self.here.awake => self.say_back(BackEvent::WaitsForStore, 0, 0),
            None => self.store = Some(self.here.id),
            Some(id) if id == self.here.id => {}
            Some(_) => self.say_back(BackEvent::WaitsForStore, 0, 0),
        }
    }

    /// This host's back-end holds the lock no more: it gave it back or died, and
    /// the kernel has waited for its I/O.
    pub(super) fn give_store_back(&mut self) {
        if self.store != Some(self.here.id) {
            return;
        }
        self.store = None;
        if let Some(there) = &self.there {
            let id = there.id;
            let delay = self.host_delay();
            self.scheduler.after(delay, (id, Event::StoreFree));
        }
    }

    /// The lock is free, maybe; who waits for it takes it.
    pub(super) fn store_free(&mut self) -> Result<(), Violation> {
        // Whoever gets the lock looks first whether its front-end is there still:
        // a host that hands over closes the connection before it lets go.
        let gone = self.here.back.as_ref().and_then(|b| b.conn);
        if let Some(conn) = gone.filter(|conn| self.here.front.conn != Some(*conn)) {
            self.back_hangup(conn)?;
        }
        let Some(back) = self.here.back.as_mut().filter(|b| b.wants_store) else { return Ok(()) };
        if self.store.is_some() || self.here.awake {
            return Ok(());
        }
        let held = back.take_held();
        self.store = Some(self.here.id);
        self.say_back(BackEvent::HasStore, 0, 0);
        held.into_iter().try_for_each(|id| self.issue(id))
    }

    /// The connection is gone: what waits for the store is over.
    pub(super) fn give_held_up(&mut self) {
        let Some(back) = &mut self.here.back else { return };
        let (life, held) = (back.life, back.take_held());
        for id in held {
            self.push_finished(life, Completion { id, result: Err(DiskError::Cancelled) });
        }
    }

    fn say_back(&mut self, event: BackEvent, a: u64, b: u64) {
        self.trace.say(Lane::Back, What::Back { event, a, b });
    }

    /// The core wants a request to be over soon.
    pub(super) fn cancel(&mut self, id: ReqId) {
        let Some(back) = &mut self.here.back else { return };
        let (life, held) = (back.life, back.drop_held(id));
        let plan = self.topology.migration.as_ref().map(|m| (m.policy, m.cancel));
        self.say_back(BackEvent::Cancels, id.slot.into(), id.epoch);
        let over = Completion { id, result: Err(DiskError::Cancelled) };
        if held {
            return self.push_finished(life, over);
        }
        // If the disk does not know it, its completion is on its way.
        let (Some(key), Some((policy, cancel))) = (self.disk.find(life, id), plan) else { return };
        match (policy, cancel) {
            (Policy::Unsafe, _) => {
                let job = self.disk.job(key).map(|job| (job.request, job.vring, job.head));
                if let Some((key, after)) = self.disk.set_adrift(key) {
                    if let Some((request, vring, head)) = job {
                        self.trace.say(Lane::Disk, What::Adrift { request, vring, head });
                    }
                    self.schedule(after, Event::DiskDone(key));
                }
                self.push_finished(life, over);
            }
            (_, Some(most)) => {
                let delay = self.disk.cancel_after(most);
                self.schedule(delay, Event::DiskCancel(key));
            }
            (_, None) => {}
        }
    }

    /// The disk has come to a cancel.
    pub(super) fn disk_cancel(&mut self, key: u64) -> Result<(), Violation> {
        let Some(job) = self.with_disk(|disk, mem| disk.cancelled(key, mem)) else {
            return self.disk_done(key);
        };
        self.stats.cancelled += 1;
        let over = Completion { id: job.id, result: Err(DiskError::Cancelled) };
        self.push_finished(job.life, over);
        Ok(())
    }

    /// The front-end is told that a vring is at rest.
    pub(super) fn at_rest(&mut self, life: u32, vring: u16) {
        self.here.check.quiet[usize::from(vring)] = true;
        self.here.check.resetting = false;
        self.disk.disown(life, vring);
        self.oracle.borrow_mut().stopped(vring);
    }

    /// A request has one owner: when it goes to the store, nobody else's try at
    /// it is there.
    pub(super) fn check_only_owner(&self, job: &Job) -> Result<(), Violation> {
        if !self.oracle.borrow().judges().late {
            return Ok(());
        }
        match self.disk.other_owner(job) {
            None => Ok(()),
            Some(other) => Err(Violation::new(
                "ownership",
                format!(
                    "request {} (vring {}, head {}) goes to the store for back-end {}, and that of back-end {} is there still",
                    job.request, job.vring, job.head, job.life, other.life
                ),
            )),
        }
    }

    /// A job is about to move its bytes: not if its vring was said to be at rest.
    // spec: vhost-user, "Ring states"
    pub(super) fn check_landing(&mut self, key: u64) -> Result<(), Violation> {
        let Some(Landing { job, over }) = self.disk.landing(key) else { return Ok(()) };
        let Job { request, vring, head, verb, .. } = job;
        if matches!(verb, Verb::Flush | Verb::GetId | Verb::Unknown) {
            return Ok(());
        }
        let (sector, sectors) = (job.offset / 512, job.len / 512);
        let owner = self.here.id;
        if verb != Verb::Read {
            self.stats.landings += 1;
            for (sector, sectors, over) in runs(&over) {
                let what = What::Landing { owner, request, sector, sectors, over };
                self.trace.say(Lane::Disk, what);
            }
        }
        if !self.oracle.borrow().judges().late {
            return Ok(());
        }
        let oracle = if verb == Verb::Read { "quiet" } else { "late-write" };
        Err(Violation::new(
            oracle,
            format!(
                "request {request} (vring {vring}, head {head}, {} {sectors} sectors @{sector}) moves bytes after host {} said that its vring is at rest",
                verb.name(),
                if owner == 0 { 'A' } else { 'B' },
            ),
        ))
    }
}

/// Neighbouring sectors with the same tag, as first sector, count and tag.
fn runs(over: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for (sector, tag) in over {
        match runs.last_mut() {
            Some((_, count, last)) if last == tag => *count += 1,
            _ => runs.push((*sector, 1, *tag)),
        }
    }
    runs
}
