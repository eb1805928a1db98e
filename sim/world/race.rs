//! The guest has processors of its own: it may act between any two stores of a
//! step of the back-end.
//!
//! Only stores are seen, so the moments between two loads of the back-end are
//! not told apart: the guest acts right before or right after a store.

use super::World;
use crate::guest::Turn;
use crate::guest::memory::{GuestMemory, REGIONS};
use crate::memory::{Arena, Mem, Race, RegionId, Store, Stores};
use crate::oracle::{GuestStore, Oracle, Violation};
use crate::trace::{Lane, Trace, What};
use std::cell::RefCell;
use std::rc::Rc;

/// Stores of a step are looked at up to this one.
const LATEST: u64 = 12;

/// What the guest did, once it did it.
struct Acted {
    result: Result<Turn, Violation>,
    trace: Trace,
}

/// A race that may come to pass in the next step.
pub(super) struct Planned {
    vring: u16,
    at: u64,
    before: bool,
    acted: Rc<RefCell<Option<Acted>>>,
}

impl Planned {
    /// Stores that have happened when the guest acts.
    fn happened(&self) -> u64 {
        self.at + u64::from(!self.before)
    }
}

impl World<'_> {
    /// Draw whether the guest acts in the step that follows.
    pub(super) fn plan_race(&mut self) -> Option<Planned> {
        // A guest acts on memory of the host it is on.
        if self.guest.borrow().is_paused()
            || self.here.id != self.guest_at
            || !self.race.chance("race", self.topology.races)
        {
            return None;
        }
        let planned = Planned {
            vring: self.race.below("vring", self.topology.queues.into()) as u16,
            at: self.race.below("at", LATEST),
            before: self.race.below("before", 2) == 1,
            acted: Rc::default(),
        };
        let (vring, happened) = (planned.vring, planned.happened());
        let (guest, oracle) = (Rc::clone(&self.guest), Rc::clone(&self.oracle));
        let acted = Rc::clone(&planned.acted);
        let check = self.here.check.clone();
        let act = Box::new(move || {
            let mut trace = Trace::new(true);
            let oracle = &mut oracle.borrow_mut();
            let result = check
                .run(oracle, 0, happened)
                .map(|()| check.publications(oracle, 0, happened))
                .and_then(|_| oracle.after_stores(&check.mem, None))
                .and_then(|_| guest.borrow_mut().turn(vring, oracle, &mut trace));
            *acted.borrow_mut() = Some(Acted { result, trace });
        });
        self.arena.plan_race(Race { at: planned.at, before: planned.before, act });
        Some(planned)
    }

    /// The step is over: how many of its stores were judged, and how many a
    /// guest has seen, so that they must have happened.
    pub(super) fn settle_race(&mut self, race: Option<Planned>) -> Result<(u64, u64), Violation> {
        let Some(race) = race else { return Ok((0, 0)) };
        let Some(Acted { result, trace }) = race.acted.take() else { return Ok((0, 0)) };
        self.stats.races += 1;
        let (vring, store, before) = (race.vring, race.at, race.before);
        self.trace.say(Lane::Guest, What::Race { vring, store, before });
        for event in trace.events() {
            self.trace.say(event.lane, event.what);
        }
        self.after_turn(vring, result?);
        Ok((race.happened(), race.happened()))
    }
}

/// Judges stores of the back-end, in the middle of a step or at its end.
#[derive(Clone)]
pub(super) struct StoreCheck {
    stores: Stores,
    mem: Mem,
    ids: [RegionId; 3],
    /// Where guest addresses mean nothing.
    pub inflight: Option<RegionId>,
    /// Regions before it, which a process that was left may use still.
    former: Vec<RegionId>,
    /// Dirty logs: the one in use, and older ones that may be in use still.
    pub logs: Vec<RegionId>,
    /// By vring: the front-end was told that it is at rest.
    pub quiet: Vec<bool>,
    /// They are at rest because of a reset that is not answered yet: reads under
    /// way may still land, and are logged.
    pub resetting: bool,
    /// Bytes of the inflight region for each vring.
    pub part: u64,
}

impl StoreCheck {
    pub fn new(arena: &Arena, memory: &GuestMemory, queues: u16) -> Self {
        Self {
            stores: arena.stores(),
            mem: memory.mem.clone(),
            ids: memory.ids,
            inflight: None,
            former: Vec::new(),
            logs: Vec::new(),
            quiet: vec![true; usize::from(queues)],
            resetting: false,
            part: 1,
        }
    }

    /// From now on this is the host's inflight region.
    pub fn set_inflight(&mut self, region: Option<RegionId>) {
        let old = std::mem::replace(&mut self.inflight, region);
        self.former.extend(old.filter(|old| Some(*old) != region));
    }

    /// The device is being reset.
    pub fn resets(&mut self) {
        self.resetting |= self.quiet.contains(&false);
        self.quiet.fill(true);
    }

    /// After the answer to a stop nothing of the vring is stored to.
    // spec: vhost-user, "Ring states"
    fn check_quiet(&self, oracle: &Oracle, store: &Store) -> Result<(), Violation> {
        let (vring, what) = if Some(store.region) == self.inflight {
            ((store.offset / self.part) as u16, "the inflight region")
        } else if self.logs.contains(&store.region) {
            if self.resetting {
                return Ok(());
            }
            let Some(vring) = self.quiet.iter().position(|quiet| !quiet) else {
                return Err(not_quiet("the dirty log", "every vring"));
            };
            (vring as u16, "the dirty log")
        } else if self.former.contains(&store.region) {
            return Ok(());
        } else {
            match oracle.vring_of(self.guest_addr(store)) {
                Some(vring) => (vring, "guest memory"),
                // Where that is allowed is for another oracle to say.
                None => return Ok(()),
            }
        };
        match self.quiet.get(usize::from(vring)) {
            Some(true) => Err(not_quiet(what, &format!("vring {vring}"))),
            _ => Ok(()),
        }
    }

    fn guest_addr(&self, store: &Store) -> u64 {
        let at = self.ids.iter().position(|id| *id == store.region);
        // A region that is neither has no guest address.
        at.map_or(u64::MAX / 2, |i| REGIONS[i].guest) + store.offset
    }

    /// Of the stores of the step from one to before another, which have happened,
    /// note those that publish. Vrings, one bit each, whose used ring or part of
    /// the inflight region any store of the step has changed.
    pub fn publications(&self, oracle: &mut Oracle, from: u64, to: u64) -> u64 {
        let mut changed = 0;
        self.stores.with(|stores| {
            for (i, (store, bytes)) in (0u64..).zip(stores) {
                if Some(store.region) == self.inflight {
                    changed |= 1 << (store.offset / self.part).min(63);
                } else if self.ids.contains(&store.region) {
                    let at = GuestStore { addr: self.guest_addr(store), len: store.len.into() };
                    let hit = oracle.rings_at(at);
                    changed |= hit;
                    if hit != 0 && (from..to).contains(&i) {
                        oracle.stored(&self.mem, at, bytes);
                    }
                }
            }
        });
        changed
    }

    /// Judge the stores of the step from one to before another.
    pub fn run(&self, oracle: &Oracle, from: u64, to: u64) -> Result<(), Violation> {
        if !oracle.judges().costly {
            return Ok(());
        }
        let in_turn = |i: u64| (from..to).contains(&i);
        if self.quiet.contains(&true) {
            self.stores.with(|stores| {
                let mut turn = (0u64..).zip(stores).filter(|(i, _)| in_turn(*i));
                turn.try_for_each(|(_, (store, _))| self.check_quiet(oracle, store))
            })?;
        }
        self.stores.with(|stores| {
            let other = |s: &Store| {
                Some(s.region) == self.inflight
                    || self.former.contains(&s.region)
                    || self.logs.contains(&s.region)
            };
            let guest = (0u64..).zip(stores).filter(|(i, (s, _))| in_turn(*i) && !other(s)).map(
                |(_, (s, bytes))| {
                    (GuestStore { addr: self.guest_addr(s), len: u64::from(s.len) }, bytes)
                },
            );
            oracle.check_stores(&self.mem, guest)
        })
    }
}

fn not_quiet(what: &str, who: &str) -> Violation {
    let message = format!("back-end stores to {what} after it said that {who} is at rest");
    Violation::new("quiet", message)
}
