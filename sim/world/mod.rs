//! One host or two: a guest, a front-end and a back-end on each, one disk, and
//! what connects them.

mod awake;
mod back;
mod control;
mod death;
mod events;
mod excuses;
mod front;
mod host;
mod link;
mod migrate;
mod objects;
mod onlooker;
mod outcome;
mod parting;
mod plan;
mod power;
mod race;
mod reset;
mod store;
mod trouble;
mod vows;
mod wishes;

use crate::choices::{Clock, Component, Made, Ratio, Stream};
use crate::disk::Disk;
use crate::guest::Guest;
use crate::guest::memory::ring_view;
use crate::hash::Rolling;
use crate::memory::{Arena, Mem};
use crate::oracle::session::Bases;
use crate::oracle::{Judges, Oracle, RegionView, SERIAL, Violation};
use crate::scenario::{Control, KillAt, MAX_RING, Scenario, Successor, Trouble};
use crate::scheduler::Scheduler;
use crate::topology::{Ring, Topology};
use crate::trace::{Lane, Trace, What};
use back::Answer;
use bytes::Bytes;
use host::Host;
use link::Piece;
use midflight::backend::{MapFailed, MapRegion, Output};
use midflight::blk::{Completion, DeviceConfig};
use midflight::frontend;
use migrate::Migrating;
use objects::{Object, ObjectId, Objects};
pub use outcome::{CrashPoint, Outcome, Stats, StepShape};
use plan::Plan;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Something that will happen.
enum Event {
    GuestTurn(u16),
    GuestCall(u16),
    Pause,
    /// The front-end changes something, and enables a vring again.
    Control,
    Enable(u32, u16),
    Resume,
    FrontConnect,
    FrontRead,
    FrontTimer(u64),
    FrontHangup(u32),
    ToBack(u32, Piece),
    ToFront(u32, Piece),
    BackStart,
    BackRead(u32),
    BackKick(u16),
    BackTimer(u32, u64),
    BackReap(u32),
    BackAnswer(u32, Answer),
    DiskApply(u64),
    DiskDone(u64),
    /// A completion is reported a second time.
    DiskAgain(u32, Completion),
    /// The node with the disk loses power.
    PowerLoss,
    /// Kill this life of the back-end between two steps.
    Kill(u32),
    /// Ask this life of the back-end to end.
    Shutdown(u32),
    /// Something happens to this connection though nobody dies.
    Trouble(u32, Trouble),
    /// What the front-end said before it breaks this connection has had its time.
    Parted(u32),
    /// The front-end's owner has it try again.
    FrontRetry,
    /// The source of a migration that is over wakes, and sleeps again.
    Wake,
    Sleep,
    BackHangup(u32),
    /// The disk has come to a cancel.
    DiskCancel(u64),
    /// The store's lock was given back.
    StoreFree,
    /// Begin a migration.
    Migrate,
    /// The link takes the next pages of this attempt.
    Copy(u64),
    /// Everything of this attempt has arrived.
    Arrive(u64),
    /// Nothing will.
    LinkLost(u64),
}

/// Nanoseconds that a back-end lives which the device cannot use.
const UNFIT_LIVES: u64 = 2_000_000;

/// Where kills fall.
struct Kill {
    stream: Stream,
    /// For this life and those after it.
    planned: VecDeque<(KillAt, Successor)>,
    /// Beside those: moments by step, the next one first.
    exact: VecDeque<CrashPoint>,
}

/// A mistake of somebody beside the core, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    /// Who migrates reads the inflight region before the vrings are stopped, so
    /// that it misses the last batch.
    EarlyImage,
    /// The first completion counts as a broken promise.
    Canary,
    /// Every run decides a little differently.
    Moody,
}

/// What a run is asked for beside its scenario.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keep the events.
    pub trace: bool,
    /// Which oracles work.
    pub judges: Judges,
    /// Kill exactly here, beside what the scenario wants: moments in rising
    /// order.
    pub kill_at: Vec<CrashPoint>,
    /// Note the shape of every step of the back-end.
    pub shapes: bool,
    /// Keep every decision.
    pub keep_choices: bool,
    /// A mistake on purpose.
    pub slip: Option<Slip>,
}

/// See the module.
pub struct World<'a> {
    topology: Topology,
    arena: &'a mut Arena,
    /// The host in focus.
    here: Box<Host>,
    /// The other one, where there are two.
    there: Option<Box<Host>>,
    /// Host on which the guest runs.
    guest_at: u8,
    guest: Rc<RefCell<Guest>>,
    device: DeviceConfig,
    oracle: Rc<RefCell<Oracle>>,
    disk: Disk,
    trace: Trace,
    /// Each event with the host it belongs to.
    scheduler: Scheduler<(u8, Event)>,
    objects: Objects,
    front_stream: Stream,
    /// Back-end process started last, on either host.
    last_life: u32,
    next_conn: u32,
    kill: Kill,
    /// Pauses to come: microseconds after the vrings run.
    pauses: VecDeque<u64>,
    /// The same for what happens to connections.
    troubles: VecDeque<(u64, Trouble)>,
    /// Changes to come: microseconds after the last.
    controls: VecDeque<(u64, Control)>,
    /// The guest has a write cache that it can turn off, and does so.
    cache_means: bool,
    /// Losses of power to come: microseconds from the start.
    power_losses: VecDeque<u64>,
    host: Stream,
    link: Stream,
    race: Stream,
    outputs: Vec<Output>,
    front_outputs: Vec<frontend::Output>,
    stats: Stats,
    settling_since: Option<u64>,
    migration: Option<Migrating>,
    /// Host whose back-end has the shared store.
    store: Option<u8>,
    slip: Option<Slip>,
    /// For who keeps decisions.
    clock: Option<Clock>,
    /// By vring: a back-end has said that the guest broke its rules.
    reported: Vec<bool>,
    /// By vring: what was said about where it goes on.
    bases: Vec<Bases>,
    excuses: Vec<String>,
    /// Steps of the back-end so far.
    steps: u64,
    /// Vrings, one bit each, whose place in the region has to be looked at.
    changed: u64,
    shapes: Option<Vec<StepShape>>,
}

impl<'a> World<'a> {
    /// The world of a scenario, nothing has happened.
    pub fn new(
        arena: &'a mut Arena,
        scenario: &Scenario,
        options: &Options,
    ) -> Result<Self, Violation> {
        let topology = scenario.topology.clone();
        let plan = Plan::of(scenario);
        let cache_means = topology.flush && plan.turns_cache();
        arena.reset();
        let mut objects = Objects::default();
        let here = Box::new(Host::new(0, arena, &mut objects, &topology)?);
        let clock = options.keep_choices.then(Clock::default);
        let stream = |component| Stream::of(&scenario.choices, component, clock.as_ref());
        let there = match topology.migration {
            Some(_) => Some(Box::new(Host::new(1, arena, &mut objects, &topology)?)),
            None => None,
        };
        let mem = here.guest_memory.mem.clone();
        let guest = Guest::new(mem, stream(Component::Guest), &topology, plan.todo)?;
        let device = DeviceConfig {
            num_queues: topology.queues,
            queue_size_max: MAX_RING,
            serial: SERIAL,
            packed: topology.ring == Ring::Packed,
            in_order: topology.in_order,
            ..DeviceConfig::with_capacity(topology.sectors * 512)
        };
        let rings = (0..topology.queues)
            .map(|v| ring_view(topology.ring, &guest.layout(v), topology.first_index))
            .collect();
        let oracle = Oracle::new(options.judges, rings, topology.sectors, !topology.flush)
            .with_event_idx(topology.event_idx)
            .with_in_order(topology.in_order);
        let disk = Disk::new(
            stream(Component::Disk),
            topology.sectors,
            topology.pace,
            topology.disk_errors,
        )
        .with_faults(&plan.faults, stream(Component::Power));
        let exact = options.kill_at.iter().copied().collect();
        let kill = Kill { stream: stream(Component::Kill), planned: plan.kills, exact };
        Ok(Self {
            arena,
            here,
            there,
            guest_at: 0,
            guest: Rc::new(RefCell::new(guest)),
            device,
            oracle: Rc::new(RefCell::new(oracle)),
            disk,
            trace: Trace::new(options.trace),
            scheduler: Scheduler::with_causes(options.trace),
            objects,
            front_stream: stream(Component::Front),
            last_life: 0,
            next_conn: 1,
            kill,
            pauses: plan.pauses,
            troubles: plan.troubles,
            cache_means,
            controls: plan.controls,
            power_losses: plan.faults.power_losses().collect(),
            host: stream(Component::Host),
            link: stream(Component::Link),
            race: stream(Component::Race),
            outputs: Vec::new(),
            front_outputs: Vec::new(),
            stats: Stats::default(),
            settling_since: None,
            migration: topology.migration.map(|settings| {
                Migrating::new(stream(Component::Migration), settings, plan.migrations)
            }),
            store: None,
            slip: options.slip,
            clock,
            reported: vec![false; usize::from(topology.queues)],
            bases: vec![Bases::default(); usize::from(topology.queues)],
            excuses: Vec::new(),
            steps: 0,
            changed: u64::MAX,
            shapes: options.shapes.then(Vec::new),
            topology,
        })
    }

    fn now(&self) -> u64 {
        self.scheduler.now()
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.scheduler.after(after, (self.here.id, event));
    }

    fn schedule_at(&mut self, at: u64, event: Event) {
        self.scheduler.at(at, (self.here.id, event));
    }

    /// Put a host into focus.
    fn focus(&mut self, id: u8) {
        if self.here.id != id
            && let Some(there) = &mut self.there
        {
            std::mem::swap(&mut self.here, there);
            self.trace.set_host(id);
        }
    }

    /// Latency of something the kernel does.
    fn host_delay(&mut self) -> u64 {
        *self.host.pick("delay", &[200, 500, 1_000, 2_000, 5_000, 20_000])
    }

    /// How long a process leaves finished requests lying: a batch gathers.
    fn reap_delay(&mut self) -> u64 {
        self.host.below("reap", 1_000 * self.topology.gather + 1)
    }

    /// One whole message; its first four bytes are its code.
    fn say_sent(&mut self, to_back: bool, bytes: &[u8], objects: &[ObjectId]) {
        let code = bytes.first_chunk().map_or(0, |code| u32::from_ne_bytes(*code));
        let (bytes, handles) = (bytes.len() as u64, objects.len() as u64);
        self.trace.say(Lane::Link, What::Sent { to_back, code, bytes, handles });
    }

    fn send_to_back(&mut self, conn: u32, bytes: Bytes, objects: Vec<ObjectId>) {
        self.say_sent(true, &bytes, &objects);
        for piece in link::cut(&mut self.link, self.topology.split, bytes, objects) {
            let latency = 1_000 + self.link.below("latency", 20_000);
            let at = self.here.to_back.arrival(self.now(), latency);
            self.schedule_at(at, Event::ToBack(conn, piece));
        }
    }

    fn send_to_front(&mut self, conn: u32, bytes: Bytes, objects: Vec<ObjectId>) {
        self.say_sent(false, &bytes, &objects);
        for piece in link::cut(&mut self.link, self.topology.split, bytes, objects) {
            let latency = 1_000 + self.link.below("latency", 20_000);
            let at = self.here.to_front.arrival(self.now(), latency);
            self.schedule_at(at, Event::ToFront(conn, piece));
        }
    }

    /// The back-end's end is closed; the front-end reads what was sent first.
    fn hang_up_front(&mut self, conn: u32) {
        let latency = 1_000 + self.link.below("latency", 20_000);
        let at = self.here.to_front.arrival(self.now(), latency);
        self.schedule_at(at, Event::FrontHangup(conn));
    }

    fn signal_call(&mut self, vring: u16) {
        let counter = &mut self.here.calls[usize::from(vring)];
        counter.count += 1;
        if !counter.waking {
            counter.waking = true;
            let delay = self.host_delay();
            self.schedule(delay, Event::GuestCall(vring));
        }
    }

    /// Plan the death of the back-end that has just started.
    fn plan_kill(&mut self) {
        self.here.stores_left = None;
        let life = self.last_life;
        if self.here.back.as_ref().is_some_and(|back| back.kind.is_unfit()) {
            // Somebody notices, and puts the right one in its place.
            self.schedule(UNFIT_LIVES, Event::Kill(life));
            return;
        }
        let Some((at, next)) = self.kill.planned.pop_front() else { return };
        self.here.next = next;
        match at {
            KillAt::Never => {}
            KillAt::Asked { after } => self.schedule(1_000 * after, Event::Shutdown(life)),
            KillAt::Idle { after } => self.schedule(1_000 * after, Event::Kill(life)),
            KillAt::Stores(stores) => self.here.stores_left = Some(stores),
        }
    }

    /// A view of guest memory as the back-end wants it mapped.
    fn map_guest(&self, regions: &[MapRegion]) -> Result<Mem, MapFailed> {
        let failed = |why: &str| MapFailed(why.into());
        let back = self.here.back.as_ref().ok_or_else(|| failed("no process"))?;
        let mut view = Vec::new();
        for map in regions {
            let object = back.handles.get(map.handle).ok_or_else(|| failed("handle is closed"))?;
            let Object::Memory(region) = self.objects.get(object) else {
                return Err(failed("not memory"));
            };
            if map.region.mmap_offset != 0 || map.region.size != self.arena.len(region) {
                return Err(failed("not the whole of the memory"));
            }
            view.push((map.region.guest_addr, region));
        }
        view.sort_unstable();
        Ok(self.arena.view(&view))
    }

    /// After something may have changed that no step of a back-end here tells.
    fn check_whole_region(&mut self) -> Result<(), Violation> {
        self.changed = u64::MAX;
        self.check_region()
    }

    fn check_region(&mut self) -> Result<(), Violation> {
        // The guest, and with it the truth, may be elsewhere.
        let Some(region) = self.here.check.inflight.filter(|_| self.here.id == self.guest_at)
        else {
            return Ok(());
        };
        self.arena.with_image(region, |bytes| {
            let view = RegionView::of(bytes, &self.topology);
            let runs = |vring| self.here.back.as_ref().is_some_and(|b| b.runs(vring));
            let mem = &self.here.guest_memory.mem;
            self.oracle.borrow_mut().check_region(mem, view, runs, self.changed)?;
            self.check_onlooker(bytes)
        })?;
        self.changed = 0;
        Ok(())
    }

    /// The host with the guest.
    fn guest_host(&self) -> &Host {
        match &self.there {
            Some(there) if there.id == self.guest_at => there,
            _ => &self.here,
        }
    }

    /// No more trouble will be made.
    fn is_settling(&self) -> bool {
        self.kill.planned.is_empty()
            && self.guest_host().stores_left.is_none()
            && self.migration.as_ref().is_none_or(Migrating::is_over)
            && self.kill.exact.is_empty()
            && self.pauses.is_empty()
            && self.troubles.is_empty()
            && self.controls.is_empty()
            && self.power_losses.is_empty()
    }

    /// Run to the end.
    pub fn run(mut self) -> Outcome {
        let verdict = self.run_events().and_then(|()| self.final_checks());
        self.stats.events = self.scheduler.done();
        self.stats.disk_faults = self.disk.fault_counts();
        self.stats.requests = self.oracle.borrow().ledger().completed_count();
        let made = self.made();
        self.note_spoiled();
        Outcome {
            made,
            excuses: std::mem::take(&mut self.excuses),
            hash: self.hash(),
            topology: self.topology,
            verdict,
            stats: self.stats,
            at: self.scheduler.now(),
            trace: self.trace,
            shapes: self.shapes.unwrap_or_default(),
        }
    }

    /// Look at every stream, in their order.
    fn each_stream(&self, mut look: impl FnMut(&Stream)) {
        let guest = self.guest.borrow();
        look(guest.stream());
        look(&self.front_stream);
        look(&self.link);
        look(self.disk.stream());
        look(&self.kill.stream);
        look(&self.host);
        look(&self.race);
        if let Some(migration) = &self.migration {
            look(&migration.stream);
        }
        if let Some(power) = self.disk.fault_stream() {
            look(power);
        }
    }

    /// Everything that happened and every decision behind it.
    fn hash(&self) -> u64 {
        let mut hash = Rolling::new();
        hash.u64(self.trace.hash());
        self.each_stream(|stream| {
            hash.u64(stream.count());
            hash.u64(stream.hash());
        });
        hash.finish()
    }

    /// Every decision, if they were kept.
    fn made(&self) -> Vec<(Component, Vec<Made>)> {
        let mut made = Vec::new();
        if self.clock.is_none() {
            return made;
        }
        self.each_stream(|stream| made.push((stream.component(), stream.made().to_vec())));
        made
    }

    fn final_checks(&mut self) -> Result<(), Violation> {
        // Comparing all memory is dear; a share of the runs is enough.
        let deep = self.host.chance("deep", Ratio::new(1, 16));
        let deep = deep && self.oracle.borrow().judges().costly;
        if deep && let Some((region, at)) = self.arena.unseen_store() {
            let message = format!("byte {at} of region {region} was stored past the log");
            return Err(Violation::new("memory", message));
        }
        self.oracle.borrow().at_rest(self.disk.image())
    }
}
