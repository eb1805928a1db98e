//! The guest moves from one host to the other.
//!
//! ```text
//! Idle → Logging → Copying (rounds, guest runs) → Stopping → Final → InTransit → Arriving → Idle
//!                     └──────────────┴──────────────┴──────────┴─ broken off ───→ Idle
//! ```
//!
//! This is the part of QEMU beside its vhost-user front-end: it copies memory by
//! the dirty log and by what it sees of the guest's own stores, stops the guest,
//! and hands over what the front-end says. Copying has a file of its own, and so
//! has what happens at the destination.

mod arrive;
mod copy;

use super::objects::Object;
use super::{Event, Slip, World};
use crate::choices::Stream;
use crate::guest::memory::REGIONS;
use crate::memory::{PAGE, RegionId};
use crate::oracle::{RegionView, Violation};
use crate::scenario::{Fate, Migrate};
use crate::topology::{Migration, Policy};
use crate::trace::{Lane, Moving, What};
use midflight::frontend::{Command, DeviceState, Phase};
use midflight::migration::InflightSubsection;
use midflight::wire::LogDescription;
use std::collections::{BTreeSet, VecDeque};

/// Bytes of a dirty log for all of guest memory.
pub(super) const LOG_SIZE: u64 = {
    let last = REGIONS[REGIONS.len() - 1];
    ((last.guest + last.size) / (8 * PAGE as u64)).next_multiple_of(8)
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Idle,
    /// The back-end is told to log.
    Logging,
    /// Rounds of copying.
    Copying,
    /// The guest stands still, vrings are being stopped.
    Stopping,
    /// What is left is copied.
    Final,
    /// Everything is on its way.
    InTransit,
    /// Everything is there, vrings are being started.
    Arriving,
}

/// What is handed over beside memory.
#[derive(Clone, Debug)]
struct Image {
    state: DeviceState,
    /// The inflight region, as QEMU's stream has it.
    stream: Option<Vec<u8>>,
}

/// A page by region and number.
type Page = (u8, u64);

/// See the module.
pub(super) struct Migrating {
    pub stream: Stream,
    plan: Migration,
    /// Migrations still to be begun.
    left: VecDeque<Migrate>,
    pub stage: Stage,
    /// Number of this attempt; events of an older one mean nothing.
    attempt: u64,
    source: u8,
    fate: Fate,
    round: u64,
    /// To be copied.
    pages: BTreeSet<Page>,
    /// When the guest was stopped.
    paused_at: u64,
    /// Life of the source's back-end when it was told to stop.
    life: u32,
    /// A back-end of the source was lost while it logged.
    open: bool,
    image: Option<Image>,
    /// The region as it was before the vrings were stopped.
    early_region: Option<Vec<u8>>,
}

impl Migrating {
    pub fn new(stream: Stream, plan: Migration, left: VecDeque<Migrate>) -> Self {
        Self {
            stream,
            plan,
            left,
            stage: Stage::Idle,
            attempt: 0,
            source: 0,
            fate: Fate::Completes,
            round: 0,
            pages: BTreeSet::new(),
            paused_at: 0,
            life: 0,
            open: false,
            image: None,
            early_region: None,
        }
    }

    /// No migration is under way and none will be begun.
    pub fn is_over(&self) -> bool {
        self.left.is_empty() && self.stage == Stage::Idle
    }

    /// No migration is under way.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// The guest stands still because of this.
    pub fn holds_guest(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Logging | Stage::Copying)
    }

    /// This host's vrings are being stopped for a hand-over.
    pub fn stops(&self, host: u8) -> bool {
        self.stage == Stage::Stopping && self.source == host
    }
}

impl World<'_> {
    /// Plan the next migration, if one is left.
    pub(super) fn plan_migration(&mut self) {
        let next = self.migration.as_ref().and_then(|m| m.left.front());
        if let Some(after) = next.map(|migrate| migrate.after) {
            self.schedule(1_000 * after, Event::Migrate);
        }
    }

    fn migrating(&mut self) -> &mut Migrating {
        self.migration.as_mut().expect("there is a migration in this world")
    }

    fn say_moving(&mut self, step: Moving, a: u64, b: u64) {
        self.trace.say(Lane::Host, What::Moving { step, a, b });
    }

    /// Begin one.
    pub(super) fn migrate(&mut self) -> Result<(), Violation> {
        let m = self.migrating();
        if m.stage != Stage::Idle || m.left.is_empty() {
            return Ok(());
        }
        self.focus(self.guest_at);
        let front = &self.here.front;
        if front.phase() != Phase::Running
            || front.parting.is_some()
            || self.guest.borrow().is_paused()
        {
            self.schedule(100_000, Event::Migrate);
            return Ok(());
        }
        let source = self.here.id;
        let m = self.migrating();
        m.fate = m.left.pop_front().map_or(Fate::Completes, |migrate| migrate.fate);
        (m.attempt, m.stage) = (m.attempt + 1, Stage::Logging);
        (m.source, m.round, m.open, m.image) = (source, 0, false, None);
        let attempt = m.attempt;
        self.say_moving(Moving::Begins, attempt, 0);
        self.stats.migrations += 1;

        self.focus(1 - source);
        self.leave()?;
        self.incoming()?;

        self.focus(source);
        let log = self.arena.region(LOG_SIZE);
        let object = self.objects.add(Object::Memory(log));
        let handle = self.here.front.handles.open(object);
        self.here.log = Some(log);
        self.here.check.logs.push(log);
        for id in self.here.guest_memory.ids {
            self.arena.take_dirty(id);
        }
        let log = LogDescription { size: LOG_SIZE, offset: 0 };
        self.front_command(Command::LogOn { log, handle })
    }

    /// A new front-end waits on this host for what will arrive.
    fn incoming(&mut self) -> Result<(), Violation> {
        self.here.front =
            super::front::new(&mut self.objects, &self.topology, &self.here.guest_memory)?;
        self.here.front.expect_arrival();
        for counter in self.here.kicks.iter_mut().chain(&mut self.here.calls) {
            counter.count = 0;
        }
        self.here.check.set_inflight(None);
        self.here.awake = false;
        if self.here.back.is_none() && !self.here.restarting {
            self.start_back()?;
        }
        self.front_command(Command::Connect)
    }

    /// This host's front-end has nothing to do with the guest any more.
    pub(super) fn leave(&mut self) -> Result<(), Violation> {
        match self.here.front.phase() {
            Phase::Idle => Ok(()),
            _ => self.front_command(Command::Disconnect),
        }
    }

    fn stop_guest(&mut self, pages: u64) -> Result<(), Violation> {
        let now = self.now();
        let life = self.here.back.as_ref().map_or(0, |b| b.life);
        self.early_image();
        let m = self.migrating();
        (m.stage, m.paused_at, m.life) = (Stage::Stopping, now, life);
        let drain = m.plan.policy == Policy::Drain;
        self.guest.borrow_mut().pause(true);
        self.say_moving(Moving::Stops, pages, 0);
        self.front_stop(if drain { Command::Stop } else { Command::Suspend })
    }

    /// Vrings are at rest.
    pub(super) fn on_stopped(&mut self) -> Result<(), Violation> {
        let mut pages = self.take_dirty();
        let m = self.migrating();
        pages.append(&mut m.pages);
        let count = pages.len() as u64;
        m.pages = pages;
        m.stage = Stage::Final;
        let (attempt, fate) = (m.attempt, m.fate);
        let inflight = self.region_flags();
        self.stats.carried += inflight;
        self.say_moving(Moving::Remainder, count, inflight);
        if fate == Fate::BrokenOffAtRest {
            return self.break_off();
        }
        self.schedule(1_000, Event::Copy(attempt));
        Ok(())
    }

    /// The connection is gone before the bases came. If its back-end is dead,
    /// rings and region tell everything, as in any other crash; one that lives
    /// is still at work.
    pub(super) fn on_lost_while_stopping(&mut self) -> Result<(), Violation> {
        let life = self.here.back.as_ref().map(|b| b.life);
        let m = self.migrating();
        m.open = true;
        let dead = life != Some(m.life);
        if !dead || m.stream.below("lost.goes on", 2) == 0 {
            return self.break_off();
        }
        self.say_moving(Moving::WithoutBases, 0, 0);
        // A dead process may have stored an index and not lived to log it; QEMU
        // counts the used rings as written when it lets go of them.
        for vring in 0..self.topology.queues {
            let parts = self.oracle.borrow().ledger().ring(vring).device_parts();
            for part in parts.into_iter().filter(|part| !part.is_empty()) {
                let region = (0u8..)
                    .zip(REGIONS)
                    .find(|(_, r)| (r.guest..r.guest + r.size).contains(&part.start));
                let (region, first) = region.map_or((0, 0), |(i, r)| (i, r.guest));
                let pages =
                    (part.start - first) / PAGE as u64..=(part.end - 1 - first) / PAGE as u64;
                self.migrating().pages.extend(pages.map(|page| (region, page)));
            }
        }
        self.on_stopped()
    }

    /// The inflight region of the host in focus.
    fn region(&self) -> Option<RegionId> {
        let (_, handle) = self.here.front.inflight()?;
        match self.objects.get(self.here.front.handles.get(handle)?) {
            Object::Memory(region) => Some(region),
            _ => None,
        }
    }

    fn region_bytes(&self) -> Option<Vec<u8>> {
        Some(self.arena.with_image(self.region()?, <[u8]>::to_vec))
    }

    fn region_flags(&self) -> u64 {
        let count = |bytes: &[u8]| RegionView::of(bytes, &self.topology).flagged();
        self.region().map_or(0, |region| self.arena.with_image(region, count))
    }

    /// A mistake on purpose: the region is read before the vrings are stopped.
    fn early_image(&mut self) {
        let early = if self.slip == Some(Slip::EarlyImage) { self.region_bytes() } else { None };
        self.migrating().early_region = early;
    }

    fn hand_over(&mut self) -> Result<(), Violation> {
        let state = self.here.front.device_state()?;
        let mut region = self.region_bytes();
        let m = self.migrating();
        if let Some(early) = m.early_region.take() {
            region = Some(early);
        }
        let stream = region.map(|region| {
            let mut stream = Vec::new();
            let queue_size = state.queue_size;
            InflightSubsection { queue_size, region: &region }.encode(&mut stream);
            stream
        });
        let len = stream.as_ref().map_or(0, |s| s.len() as u64);
        m.image = Some(Image { state, stream });
        m.stage = Stage::InTransit;
        let (attempt, lost) = (m.attempt, m.fate == Fate::LinkLost);
        let takes = 1_000 * m.plan.latency + m.plan.page_ns * len.div_ceil(PAGE as u64);
        self.say_moving(Moving::HandsOver, len, 0);
        let event = if lost { Event::LinkLost(attempt) } else { Event::Arrive(attempt) };
        self.schedule(if lost { 5 * takes } else { takes }, event);
        Ok(())
    }

    pub(super) fn link_lost(&mut self, attempt: u64) -> Result<(), Violation> {
        if self.migrating().attempt != attempt || self.migrating().stage != Stage::InTransit {
            return Ok(());
        }
        self.say_moving(Moving::LinkLost, 0, 0);
        self.break_off()
    }

    /// The guest stays with the source, which is in focus.
    fn break_off(&mut self) -> Result<(), Violation> {
        let m = self.migrating();
        let held = m.holds_guest();
        (m.stage, m.image) = (Stage::Idle, None);
        m.pages.clear();
        let source = m.source;
        self.stats.broken_off += 1;
        self.say_moving(Moving::BrokenOff, 0, 0);
        self.focus(1 - source);
        self.leave()?;
        self.focus(source);
        self.front_command(Command::LogOff)?;
        self.plan_migration();
        if held { self.front_go() } else { Ok(()) }
    }

    /// A back-end of the host in focus died or was left.
    pub(super) fn note_loss(&mut self) {
        let here = self.here.id;
        if let Some(m) = self.migration.as_mut().filter(|m| m.source == here) {
            m.open = true;
        }
    }
}
