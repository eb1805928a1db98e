//! The back-end process: one step at a time, and the moment of its death.

use super::link::Inbox;
use super::objects::{Handles, Object, ObjectId};
use super::vows::Vows;
use super::{Event, Slip, StepShape, World};
use crate::choices::Ratio;
use crate::disk::Job;
use crate::memory::Mem;
use crate::oracle::session::{self, Session, Standing};
use crate::oracle::{RegionView, Violation};
use crate::scenario::Successor;
use crate::topology::{Migration, Policy};
use crate::trace::{Lane, Wake, What};
use midflight::backend::{Backend, Input, MapRegion, SuspendPolicy};
use midflight::blk::{Completion, DeviceConfig, DiskError, ReqId};
use midflight::time::{Duration, Instant};
use midflight::wire::Dialect;

/// A back-end process that lives.
pub struct BackProcess {
    pub core: Backend<Mem>,
    /// Which one this is, from 1.
    pub life: u32,
    /// What it offers, next to the device.
    pub kind: Successor,
    pub handles: Handles,
    /// The connection it has, by number.
    pub conn: Option<u32>,
    pub inbox: Inbox,
    /// What it watches as the kick of each vring.
    pub watch: Vec<Option<ObjectId>>,
    /// Finished by the disk, not told yet.
    finished: Vec<Completion>,
    reaping: bool,
    reading: bool,
    timer: Option<u64>,
    /// It was asked to end.
    pub ending: bool,
    /// Vrings it has taken up.
    pub runs: Vec<bool>,
    /// Vrings that have stopped, and the front-end is about to be told.
    pub stopped: Vec<u16>,
    /// It has guest memory mapped.
    pub mapped: bool,
    /// What it and its front-end have said, by the bytes.
    pub session: Session,
    /// Requests that wait until the store is this host's.
    pub held: Vec<ReqId>,
    /// It has asked for the store.
    pub wants_store: bool,
    /// Nanoseconds that requests in flight have at a stop.
    pub grace: u64,
    pub vows: Vows,
}

/// An answer the process owes its core.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To `Output::Map`.
    Map(Vec<MapRegion>),
    /// To `Output::AllocInflight`.
    Alloc(u64),
    /// To `Output::MapLog`.
    MapLog { object: Option<ObjectId>, offset: u64, size: u64 },
    /// To `Output::MapInflight`.
    MapInflight { object: Option<ObjectId>, offset: u64, size: u64 },
}

pub(super) fn contract(message: impl Into<String>) -> Violation {
    Violation::new("contract", message)
}

impl BackProcess {
    pub fn new(
        device: &DeviceConfig,
        kind: Successor,
        suspend: Option<SuspendPolicy>,
        life: u32,
    ) -> Result<Self, Violation> {
        let config = offers(device, kind);
        let vrings = usize::from(config.num_queues.max(device.num_queues));
        let grace = suspend.map_or(0, |policy| policy.grace.as_nanos() as u64);
        let core = match suspend {
            None => Backend::new(config),
            Some(policy) => Backend::with_suspend(config, policy),
        };
        let core = core.map_err(|e| contract(e.to_string()))?;
        Ok(Self {
            core,
            life,
            kind,
            handles: Handles::default(),
            conn: None,
            inbox: Inbox::default(),
            watch: vec![None; vrings],
            finished: Vec::new(),
            reaping: false,
            reading: false,
            timer: None,
            ending: false,
            runs: vec![false; vrings],
            stopped: Vec::new(),
            mapped: false,
            session: Session::new(vrings as u16),
            held: Vec::new(),
            wants_store: false,
            grace,
            vows: Vows::default(),
        })
    }

    /// Requests that waited for the store.
    pub fn take_held(&mut self) -> Vec<ReqId> {
        std::mem::take(&mut self.held)
    }

    /// Whether this request waited for the store; it does so no longer.
    pub fn drop_held(&mut self, id: ReqId) -> bool {
        let at = self.held.iter().position(|held| *held == id);
        at.map(|at| self.held.remove(at)).is_some()
    }

    /// Whether it has taken up this vring, so that no batch is open between
    /// its steps.
    pub fn runs(&self, vring: u16) -> bool {
        self.runs[usize::from(vring)]
    }
}

impl World<'_> {
    /// Let the core handle something. `Ok(false)`: the process died over it.
    pub(super) fn back_step(
        &mut self,
        wake: Wake,
        input: Input<'_, Mem>,
    ) -> Result<bool, Violation> {
        let now = Instant::from_nanos(self.now());
        if self.here.back.is_none() {
            return Ok(false);
        }
        let race = self.plan_race();
        let Some(back) = &mut self.here.back else { return Ok(false) };
        self.arena.begin_step();
        let handled = back.core.handle_input(now, input);
        let mut outputs = std::mem::take(&mut self.outputs);
        outputs.extend(std::iter::from_fn(|| back.core.poll_output()));
        self.arena.end_step();
        handled.map_err(|e| contract(format!("input {} refused: {e}", wake.name())))?;

        let stores = self.arena.step_len();
        let (checked, seen) = self.settle_race(race)?;
        if stores > 0 && !self.here.awake {
            self.here.check.run(&self.oracle.borrow(), checked, u64::MAX)?;
        }
        self.stats.stores += stores;
        let count = outputs.len() as u64;
        self.trace.say(Lane::Back, What::Step { wake, stores, outputs: count });
        self.note_shape(stores, count);
        let death = self.due_death(stores, outputs.len(), seen);
        self.steps += 1;
        let guest_is_here = self.here.id == self.guest_at;
        if stores > 0 && guest_is_here {
            let kept = death.as_ref().map_or(stores, |d| d.kept);
            let oracle = &mut self.oracle.borrow_mut();
            self.changed |= self.here.check.publications(oracle, checked, kept);
        } else if stores > 0 {
            self.changed = u64::MAX;
        }
        match &death {
            None => self.arena.commit(),
            Some(death) => self.arena.crash(death.kept, death.cut),
        }
        // What is stored where the guest is not, it never sees.
        if stores > 0 && guest_is_here {
            let used = self
                .oracle
                .borrow_mut()
                .after_stores(&self.here.guest_memory.mem, Some(self.disk.image()))?;
            self.stats.largest_batch = self.stats.largest_batch.max(used);
            if used > 0 && self.slip == Some(Slip::Canary) {
                return Err(Violation::new("canary", "a request completed, as it should"));
            }
        }
        let happened = death.as_ref().map_or(outputs.len(), |d| d.outputs);
        let mut result = Ok(());
        for output in outputs.drain(..).take(happened) {
            result = result.and_then(|()| self.carry_out(output));
        }
        outputs.clear();
        self.outputs = outputs;
        result?;
        if let Some(death) = death {
            self.oracle.borrow_mut().check_calls(&self.here.guest_memory.mem, None)?;
            self.die(death.kept, stores, happened as u64, count)?;
            return Ok(false);
        }
        self.check_vows()?;
        self.check_calls(guest_is_here)?;
        if stores > 0 {
            self.check_region()?;
            self.check_sleep()?;
        }
        self.arm_timer();
        self.arm_reading();
        Ok(true)
    }

    /// What the step has published is told by now, if anybody wants to be.
    fn check_calls(&mut self, guest_is_here: bool) -> Result<(), Violation> {
        let mut oracle = self.oracle.borrow_mut();
        let mem = &self.here.guest_memory.mem;
        match &self.here.back {
            Some(back) if guest_is_here => oracle.check_calls(mem, Some(&|vring| back.runs(vring))),
            Some(_) => Ok(()),
            None => oracle.check_calls(mem, None),
        }
    }

    /// A back-end that is not about to look by itself waits to be kicked.
    fn check_sleep(&mut self) -> Result<(), Violation> {
        let now = Instant::from_nanos(self.now());
        let Some(back) = self.here.back.as_ref().filter(|b| b.conn.is_some() && !b.ending) else {
            return Ok(());
        };
        let awake = back.core.poll_timeout().is_some_and(|(at, _)| at <= now);
        // Who waits for something else first looks when that is there.
        let waits = back.core.wanted() == 0;
        if awake || waits || self.topology.polled || self.here.id != self.guest_at {
            return Ok(());
        }
        let mem = &self.here.guest_memory.mem;
        let mut asleep = (0..self.topology.queues).filter(|v| back.session.may_fetch(*v));
        asleep.try_for_each(|vring| self.oracle.borrow().check_sleep(mem, vring))
    }

    /// Used index and requests in flight of a vring of this host, as guest
    /// memory and region have them; `None` if the guest is elsewhere.
    pub(super) fn at_stop(&self, vring: u16) -> Result<Option<Standing>, Violation> {
        let oracle = self.oracle.borrow();
        let judged = oracle.judges().region && !oracle.is_spoiled(vring);
        if self.here.id != self.guest_at || !judged {
            return Ok(None);
        }
        let mem = &self.here.guest_memory.mem;
        let found = match self.here.check.inflight {
            None => oracle.at_stop(mem, None, vring),
            Some(region) => self.arena.with_image(region, |bytes| {
                oracle.at_stop(mem, Some(RegionView::of(bytes, &self.topology)), vring)
            }),
        };
        found.map(Some)
    }

    fn note_shape(&mut self, stores: u64, outputs: u64) {
        let Some(shapes) = &mut self.shapes else { return };
        let len = |index| {
            self.arena.with_store(index, |store, _| if store.is_single() { 0 } else { store.len })
        };
        shapes.push(StepShape { stores: (0..stores).map(len).collect(), outputs });
    }

    /// The connection broke, and nobody died.
    pub(super) fn back_hangup(&mut self, conn: u32) -> Result<(), Violation> {
        let Some(back) = self.here.back.as_mut().filter(|b| b.conn == Some(conn)) else {
            return Ok(());
        };
        back.conn = None;
        back.runs.fill(false);
        back.vows.hung_up();
        back.inbox = Inbox::default();
        self.trace.say(Lane::Link, What::Hangup { to_back: true });
        self.give_held_up();
        self.note_loss();
        self.back_step(Wake::PeerClosed, Input::PeerClosed)?;
        Ok(())
    }

    /// The back-end takes a connection, if it is there and has no other.
    pub(super) fn accept(&mut self) -> Result<Option<u32>, Violation> {
        let free = |b: &&mut BackProcess| b.conn.is_none() && b.core.is_idle();
        let Some(back) = self.here.back.as_mut().filter(free) else { return Ok(None) };
        let conn = self.next_conn;
        self.next_conn += 1;
        back.conn = Some(conn);
        back.session = Session::new(self.topology.queues);
        Ok(self.back_step(Wake::Connected, Input::Connected)?.then_some(conn))
    }

    /// The process reads its socket.
    pub(super) fn back_read(&mut self, life: u32) -> Result<(), Violation> {
        let Some(back) = self.here.back.as_mut().filter(|b| b.life == life) else { return Ok(()) };
        back.reading = false;
        let wanted = back.core.wanted();
        let Some(piece) = back.inbox.read(wanted) else { return Ok(()) };
        let handles: Vec<_> = piece.objects.iter().map(|o| back.handles.open(*o)).collect();
        for base in back.session.heard(&piece.bytes) {
            if let Some(at) = self.at_stop(base.vring)? {
                session::check_start(base, at, &self.bases[usize::from(base.vring)])?;
            }
            self.bases[usize::from(base.vring)].set = Some(base.index);
        }
        self.trace.say(
            Lane::Link,
            What::Delivered {
                to_back: true,
                bytes: piece.bytes.len() as u64,
                handles: handles.len() as u64,
            },
        );
        self.back_step(Wake::Received, Input::Received { bytes: &piece.bytes, handles })?;
        self.note_parting();
        Ok(())
    }

    pub(super) fn arm_reading(&mut self) {
        let Some(back) = &mut self.here.back else { return };
        if back.reading || back.inbox.is_empty() || back.core.wanted() == 0 {
            return;
        }
        back.reading = true;
        let life = back.life;
        let delay = self.host_delay();
        self.schedule(delay, Event::BackRead(life));
    }

    fn arm_timer(&mut self) {
        let now = self.now();
        let Some(back) = &mut self.here.back else { return };
        let due = back.core.poll_timeout().map(|(at, _)| at.as_nanos().max(now));
        if due != back.timer {
            back.timer = due;
            if let Some(at) = due {
                let life = back.life;
                self.schedule(at - now, Event::BackTimer(life, at));
            }
        }
    }

    pub(super) fn back_timer(&mut self, life: u32, at: u64) -> Result<(), Violation> {
        let Some(back) = self.here.back.as_mut().filter(|b| b.life == life) else { return Ok(()) };
        // A timer that was moved has left its old event behind.
        if back.timer == Some(at) {
            back.timer = None;
            self.back_step(Wake::Timeout, Input::Timeout)?;
        }
        Ok(())
    }

    /// A kick arrives at the process.
    pub(super) fn back_kick(&mut self, vring: u16) -> Result<(), Violation> {
        let watched = self.is_watched(vring);
        let counter = &mut self.here.kicks[usize::from(vring)];
        counter.waking = false;
        if watched && counter.count > 0 {
            // Reading the counter takes all signals at once.
            counter.count = 0;
            // A host that only thinks it has the guest hears its own kicks.
            if self.here.id == self.guest_at {
                self.oracle.borrow_mut().kick_heard(vring);
            }
            let before = self.progress(vring);
            let lives = self.back_step(Wake::Kick, Input::Kick { vring })?;
            if let Some(before) = before.filter(|_| lives) {
                self.check_pace(vring, &before)?;
            }
        }
        Ok(())
    }

    /// Let a pending kick wake the process, if it watches.
    /// The back-end would see a kick.
    fn is_watched(&self, vring: u16) -> bool {
        let watch = self.here.back.as_ref().and_then(|back| back.watch[usize::from(vring)]);
        watch.is_some_and(|object| self.objects.get(object) == Object::Kick(vring))
    }

    pub(super) fn wake_kick(&mut self, vring: u16) {
        let watched = self.is_watched(vring);
        let counter = &mut self.here.kicks[usize::from(vring)];
        if watched && counter.count > 0 && !counter.waking {
            counter.waking = true;
            let delay = self.host_delay();
            self.schedule(delay, Event::BackKick(vring));
        }
    }

    /// The disk reports to the process that asked.
    pub(super) fn disk_done(&mut self, key: u64) -> Result<(), Violation> {
        if let Some(at) = self.disk.hold_back(self.now(), key) {
            self.schedule_at(at, Event::DiskDone(key));
            return Ok(());
        }
        self.check_landing(key)?;
        let adrift = self.disk.is_adrift(key);
        let Some((job, result)) = self.with_disk(|disk, mem| disk.finish(key, mem)) else {
            return Ok(());
        };
        let Job { vring, head, .. } = job;
        self.trace.say(Lane::Disk, What::Done { vring, head, ok: result.is_ok() });
        self.oracle.borrow_mut().disk_done((&job).into(), result.is_ok())?;
        // A system may also give up what nobody has cancelled.
        let gives_up = result.is_err() && self.host.chance("gives up", Ratio::new(1, 4));
        let result = if gives_up { Err(DiskError::Cancelled) } else { result };
        // Its driver has said long ago that it is over.
        if !adrift {
            self.push_finished(job.life, Completion { id: job.id, result });
        }
        Ok(())
    }

    /// A request of this life is over, for its driver.
    pub(super) fn push_finished(&mut self, life: u32, completion: Completion) {
        let Some(back) = self.here.back.as_mut().filter(|b| b.life == life) else { return };
        back.finished.push(completion);
        if !back.reaping {
            back.reaping = true;
            let delay = self.reap_delay();
            self.schedule(delay, Event::BackReap(life));
        }
    }

    /// The process collects what the disk has finished: one batch.
    pub(super) fn back_reap(&mut self, life: u32) -> Result<(), Violation> {
        let Some(back) = self.here.back.as_mut().filter(|b| b.life == life) else { return Ok(()) };
        back.reaping = false;
        let mut finished = std::mem::take(&mut back.finished);
        if finished.is_empty() {
            return Ok(());
        }
        finished.iter().for_each(|done| back.vows.told(done.id));
        self.back_step(Wake::DiskDone, Input::DiskDone(&finished))?;
        // The list is made once.
        finished.clear();
        if let Some(back) = self.here.back.as_mut().filter(|b| b.finished.capacity() == 0) {
            back.finished = finished;
        }
        Ok(())
    }
}

/// What a back-end offers in the place of one for this device.
fn offers(device: &DeviceConfig, kind: Successor) -> DeviceConfig {
    let mut config = device.clone();
    match kind {
        Successor::Same => {}
        Successor::MoreQueues => config.num_queues += 2,
        Successor::LargerRings => config.queue_size_max *= 2,
        Successor::FewerQueues => config.num_queues = (config.num_queues - 1).max(1),
        Successor::FewerFeatures => config.discard = false,
        Successor::SmallerRings => config.queue_size_max = 2,
    }
    config
}

/// How a back-end suspends, if it does.
pub(super) fn suspend_policy(plan: &Migration) -> Option<SuspendPolicy> {
    (plan.policy != Policy::Drain)
        .then(|| SuspendPolicy { grace: Duration::from_micros(plan.grace), dialect: dialect(plan) })
}

/// The numbers both halves use.
pub(super) fn dialect(plan: &Migration) -> Dialect {
    if plan.by_message { Dialect::SKIP_DRAIN_45 } else { Dialect::QEMU_11_1 }
}
