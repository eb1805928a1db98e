//! One host or two: a guest, a front-end and a back-end on each, one disk, and
//! what connects them.

mod back;
mod death;
mod events;
mod front;
mod host;
mod link;
mod migrate;
mod objects;
mod outcome;
mod race;
mod store;
mod vows;
mod wishes;

use crate::choices::{Component, Ratio, Stream};
use crate::disk::Disk;
use crate::guest::Guest;
use crate::guest::memory::ring_view;
use crate::hash::Rolling;
use crate::memory::{Arena, Mem};
use crate::oracle::{Judges, Oracle, RegionView, SERIAL, Violation};
use crate::profile::{Policy, Profile};
use crate::scheduler::Scheduler;
use crate::trace::{Lane, Trace, What};
use back::Answer;
use host::Host;
use link::Piece;
use midflight::backend::{MapFailed, MapRegion, Output};
use midflight::blk::DeviceConfig;
use migrate::Migrating;
use objects::{Object, ObjectId, Objects};
pub use outcome::{CrashPoint, Outcome, Stats, StepShape};
use std::cell::RefCell;
use std::rc::Rc;
use vm_memory::GuestMemoryRegion;

/// Something that will happen.
enum Event {
    GuestTurn(u16),
    GuestCall(u16),
    Pause,
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
    /// Kill this life of the back-end between two steps.
    Kill(u32),
    /// Ask this life of the back-end to end.
    Shutdown(u32),
    /// This connection breaks though nobody dies.
    Break(u32),
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

/// Where the next kill falls.
struct Kill {
    stream: Stream,
    left: u64,
    /// Instead of drawing: the only kill falls here.
    exact: Option<CrashPoint>,
}

/// What a seed is drawn into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Story {
    /// One host: kills, pauses, lost connections.
    #[default]
    Mixed,
    /// The guest migrates as well; with this policy instead of a drawn one.
    Migration(Option<Policy>),
}

impl Story {
    /// Draw a profile.
    pub fn draw(self, seed: u64) -> Profile {
        match self {
            Self::Mixed => Profile::draw(seed),
            Self::Migration(policy) => Profile::draw_migration(seed, policy),
        }
    }
}

/// What a run is asked for beside its seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keep the events.
    pub trace: bool,
    /// Which oracles work.
    pub judges: Judges,
    /// Kill once, exactly here, beside what the profile wants.
    pub kill_at: Option<CrashPoint>,
    /// Note the shape of every step of the back-end.
    pub shapes: bool,
    /// What seeds are drawn into, by [`run`](crate::run::run).
    pub story: Story,
    /// A mistake on purpose: who migrates reads the inflight region before the
    /// vrings are stopped, so that it misses the last batch.
    pub slip: bool,
}

/// See the module.
pub struct World<'a> {
    profile: Profile,
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
    pauses_left: u64,
    breaks_left: u64,
    host: Stream,
    link: Stream,
    race: Stream,
    outputs: Vec<Output>,
    stats: Stats,
    settling_since: Option<u64>,
    migration: Option<Migrating>,
    /// Host whose back-end has the shared store.
    store: Option<u8>,
    slip: bool,
    /// Steps of the back-end so far.
    steps: u64,
    shapes: Option<Vec<StepShape>>,
}

impl<'a> World<'a> {
    /// A world by profile, nothing has happened.
    pub fn new(
        arena: &'a mut Arena,
        seed: u64,
        profile: Profile,
        options: &Options,
    ) -> Result<Self, Violation> {
        arena.reset();
        let mut objects = Objects::default();
        let here = Box::new(Host::new(0, arena, &mut objects, &profile)?);
        let stream = |component| Stream::new(seed, component);
        let there = match profile.migration {
            Some(_) => Some(Box::new(Host::new(1, arena, &mut objects, &profile)?)),
            None => None,
        };
        let guest = Guest::new(here.guest_memory.mem.clone(), stream(Component::Guest), &profile)?;
        let device = DeviceConfig {
            num_queues: profile.queues,
            queue_size_max: 128,
            serial: SERIAL,
            ..DeviceConfig::with_capacity(profile.sectors * 512)
        };
        let rings =
            (0..profile.queues).map(|v| ring_view(&guest.layout(v), profile.first_index)).collect();
        let oracle = Oracle::new(options.judges, rings, profile.sectors, !profile.flush);
        let disk =
            Disk::new(stream(Component::Disk), profile.sectors, profile.pace, profile.disk_errors);
        let kill =
            Kill { stream: stream(Component::Kill), left: profile.kills, exact: options.kill_at };
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
            scheduler: Scheduler::new(),
            objects,
            front_stream: stream(Component::Front),
            last_life: 0,
            next_conn: 1,
            kill,
            pauses_left: profile.pauses,
            breaks_left: profile.breaks,
            host: stream(Component::Host),
            link: stream(Component::Link),
            race: stream(Component::Race),
            outputs: Vec::new(),
            stats: Stats::default(),
            settling_since: None,
            migration: profile
                .migration
                .map(|plan| Migrating::new(stream(Component::Migration), plan)),
            store: None,
            slip: options.slip,
            steps: 0,
            shapes: options.shapes.then(Vec::new),
            profile,
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
        *self.host.pick("host.delay", &[200, 500, 1_000, 2_000, 5_000, 20_000])
    }

    /// How long a process leaves finished requests lying: a batch gathers.
    fn reap_delay(&mut self) -> u64 {
        self.host.below("host.reap", 1_000 * self.profile.gather + 1)
    }

    /// One whole message; its first four bytes are its code.
    fn say_sent(&mut self, to_back: bool, bytes: &[u8], objects: &[ObjectId]) {
        let code = bytes.first_chunk().map_or(0, |code| u32::from_ne_bytes(*code));
        let (bytes, handles) = (bytes.len() as u64, objects.len() as u64);
        self.trace.say(Lane::Link, What::Sent { to_back, code, bytes, handles });
    }

    fn send_to_back(&mut self, conn: u32, bytes: &[u8], objects: Vec<ObjectId>) {
        self.say_sent(true, bytes, &objects);
        for piece in link::cut(&mut self.link, self.profile.split, bytes, objects) {
            let latency = 1_000 + self.link.below("link.latency", 20_000);
            let at = self.here.to_back.arrival(self.now(), latency);
            self.schedule_at(at, Event::ToBack(conn, piece));
        }
    }

    fn send_to_front(&mut self, conn: u32, bytes: &[u8], objects: Vec<ObjectId>) {
        self.say_sent(false, bytes, &objects);
        for piece in link::cut(&mut self.link, self.profile.split, bytes, objects) {
            let latency = 1_000 + self.link.below("link.latency", 20_000);
            let at = self.here.to_front.arrival(self.now(), latency);
            self.schedule_at(at, Event::ToFront(conn, piece));
        }
    }

    /// The back-end's end is closed; the front-end reads what was sent first.
    fn hang_up_front(&mut self, conn: u32) {
        let latency = 1_000 + self.link.below("link.latency", 20_000);
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
        if self.kill.left == 0 {
            return;
        }
        self.kill.left -= 1;
        let life = self.last_life;
        if self.kill.stream.chance("kill.gentle", self.profile.gentle) {
            let delay = 1_000 * self.kill.stream.range("kill.after", 1, 4_000);
            self.schedule(delay, Event::Shutdown(life));
        } else if self.kill.stream.chance("kill.idle", self.profile.kill_idle) {
            let delay = 1_000 * self.kill.stream.range("kill.after", 1, 4_000);
            self.schedule(delay, Event::Kill(life));
        } else {
            let stores = self.kill.stream.below("kill.stores", self.profile.kill_stores);
            self.here.stores_left = Some(stores);
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
        let mem = self.arena.view(&view);
        debug_assert!(
            vm_memory::GuestMemoryBackend::iter(&mem).all(|r| r.len() > 0),
            "regions are not empty"
        );
        Ok(mem)
    }

    fn check_region(&self) -> Result<(), Violation> {
        // The guest, and with it the truth, may be elsewhere.
        let Some(region) = self.here.check.inflight.filter(|_| self.here.id == self.guest_at)
        else {
            return Ok(());
        };
        self.arena.with_image(region, |bytes| {
            let view = RegionView { bytes, queues: self.profile.queues };
            let runs = |vring| self.here.back.as_ref().is_some_and(|b| b.runs(vring));
            self.oracle.borrow().check_region(&self.here.guest_memory.mem, view, runs)
        })
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
        self.kill.left == 0
            && self.guest_host().stores_left.is_none()
            && self.migration.as_ref().is_none_or(Migrating::is_over)
            && self.kill.exact.is_none()
            && self.pauses_left == 0
            && self.breaks_left == 0
    }

    /// Run to the end.
    pub fn run(mut self) -> Outcome {
        let verdict = self.run_events().and_then(|()| self.final_checks());
        self.stats.events = self.scheduler.done();
        self.stats.requests = self.oracle.borrow().ledger().completed_count();
        Outcome {
            hash: self.hash(),
            profile: self.profile,
            verdict,
            stats: self.stats,
            at: self.scheduler.now(),
            trace: self.trace,
            shapes: self.shapes.unwrap_or_default(),
        }
    }

    /// Everything that happened and every decision behind it.
    fn hash(&self) -> u64 {
        let mut hash = Rolling::new();
        hash.u64(self.trace.hash());
        let guest = self.guest.borrow();
        let streams = [
            guest.stream(),
            self.disk.stream(),
            &self.kill.stream,
            &self.front_stream,
            &self.link,
            &self.host,
            &self.race,
        ];
        for stream in streams.into_iter().chain(self.migration.as_ref().map(|m| &m.stream)) {
            hash.u64(stream.count());
            hash.u64(stream.hash());
        }
        hash.finish()
    }

    fn final_checks(&mut self) -> Result<(), Violation> {
        // Comparing all memory is dear; a share of the runs is enough.
        let deep = self.host.chance("deep", Ratio::new(1, 16));
        if deep && let Some((region, at)) = self.arena.unseen_store() {
            let message = format!("byte {at} of region {region} was stored past the log");
            return Err(Violation::new("memory", message));
        }
        self.oracle.borrow().at_rest(self.disk.image())
    }
}
