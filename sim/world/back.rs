//! The back-end process: one step at a time, and the moment of its death.

use super::link::Inbox;
use super::objects::{Handles, Object, ObjectId};
use super::{CrashPoint, Event, StepShape, World};
use crate::disk::Job;
use crate::memory::Mem;
use crate::oracle::Violation;
use crate::trace::{BackEvent, Lane, Verb, Wake, What};
use midflight::backend::{
    self, Backend, CloseReason, Command, Input, MapFailed, MapRegion, Output,
};
use midflight::blk::{Completion, DeviceConfig, DiskOp, DiskRequest, ReqId};
use midflight::time::Instant;

/// A back-end process that lives.
pub struct BackProcess {
    core: Backend<Mem>,
    /// Which one this is, from 1.
    pub life: u32,
    pub handles: Handles,
    /// The connection it has, by number.
    pub conn: Option<u32>,
    pub inbox: Inbox,
    /// What it watches as the kick of each vring.
    watch: Vec<Option<ObjectId>>,
    /// Finished by the disk, not told yet.
    finished: Vec<Completion>,
    reaping: bool,
    reading: bool,
    timer: Option<u64>,
    /// Vrings it has taken up.
    runs: Vec<bool>,
}

/// An answer the process owes its core.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To `Output::Map`.
    Map(Vec<MapRegion>),
    /// To `Output::AllocInflight`.
    Alloc(u64),
    /// To `Output::MapInflight`.
    MapInflight { object: Option<ObjectId>, offset: u64, size: u64 },
}

/// How much of a step happened before the process died.
struct Death {
    kept: u64,
    cut: u32,
    outputs: usize,
}

fn contract(message: impl Into<String>) -> Violation {
    Violation::new("contract", message)
}

impl BackProcess {
    pub fn new(config: DeviceConfig, life: u32) -> Result<Self, Violation> {
        let vrings = usize::from(config.num_queues);
        let core = Backend::new(config).map_err(|e| contract(e.to_string()))?;
        Ok(Self {
            core,
            life,
            handles: Handles::default(),
            conn: None,
            inbox: Inbox::default(),
            watch: vec![None; vrings],
            finished: Vec::new(),
            reaping: false,
            reading: false,
            timer: None,
            runs: vec![false; vrings],
        })
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
        if self.back.is_none() {
            return Ok(false);
        }
        let race = self.plan_race();
        let Some(back) = &mut self.back else { return Ok(false) };
        self.arena.begin_step();
        let handled = back.core.handle_input(now, input);
        let mut outputs = std::mem::take(&mut self.outputs);
        outputs.extend(std::iter::from_fn(|| back.core.poll_output()));
        self.arena.end_step();
        handled.map_err(|e| contract(format!("input {} refused: {e}", wake.name())))?;

        let stores = self.arena.step_len();
        let (checked, seen) = self.settle_race(race)?;
        if stores > 0 {
            self.check.run(&self.oracle.borrow(), checked, u64::MAX)?;
        }
        self.stats.stores += stores;
        let count = outputs.len() as u64;
        self.trace.say(Lane::Back, What::Step { wake, stores, outputs: count });
        self.note_shape(stores, count);
        let death = self.due_death(stores, outputs.len(), seen);
        self.steps += 1;
        match &death {
            None => self.arena.commit(),
            Some(death) => self.arena.crash(death.kept, death.cut),
        }
        if stores > 0 {
            let used = self
                .oracle
                .borrow_mut()
                .after_stores(&self.guest_memory.mem, Some(self.disk.image()))?;
            self.stats.largest_batch = self.stats.largest_batch.max(used);
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
            self.die(death.kept, stores, happened as u64, count)?;
            return Ok(false);
        }
        if stores > 0 {
            self.check_region()?;
        }
        self.arm_timer();
        self.arm_reading();
        Ok(true)
    }

    fn note_shape(&mut self, stores: u64, outputs: u64) {
        let Some(shapes) = &mut self.shapes else { return };
        let len = |index| {
            self.arena.with_store(index, |store, _| if store.is_single() { 0 } else { store.len })
        };
        shapes.push(StepShape { stores: (0..stores).map(len).collect(), outputs });
    }

    /// Whether the process dies in this step, and where.
    /// The first `seen` stores were seen by a guest and have happened.
    fn due_death(&mut self, stores: u64, outputs: usize, seen: u64) -> Option<Death> {
        if let Some(exact) = self.kill.exact.filter(|e| e.step == self.steps) {
            let CrashPoint { kept, cut, outputs, .. } = exact;
            self.kill.exact = None;
            return Some(Death { kept, cut, outputs: outputs as usize });
        }
        let left = self.kill.stores_left?;
        if stores == 0 {
            return None;
        }
        if left > stores {
            self.kill.stores_left = Some(left - stores);
            return None;
        }
        self.kill.stores_left = None;
        let kept = left.max(seen);
        if kept == stores {
            // Every store has happened; of the wishes, some.
            let outputs = self.kill.stream.below("kill.outputs", outputs as u64 + 1) as usize;
            return Some(Death { kept, cut: 0, outputs });
        }
        let cut = self.arena.with_store(kept, |store, _| match store.is_single() {
            true => 0,
            false => store.len,
        });
        let cut = self.kill.stream.below("kill.cut", u64::from(cut)) as u32;
        // The process carries out its wishes when the core has returned.
        Some(Death { kept, cut, outputs: 0 })
    }

    /// The process is gone, now.
    pub(super) fn die(
        &mut self,
        kept: u64,
        stores: u64,
        outputs_kept: u64,
        outputs: u64,
    ) -> Result<(), Violation> {
        let Some(back) = self.back.take() else { return Ok(()) };
        let life = back.life;
        let moved = self.disk.process_died(life, &self.guest_memory.mem);
        self.stats.kills += 1;
        self.trace
            .say(Lane::Host, What::Killed { life, kept, stores, outputs_kept, outputs, moved });
        self.check_region()?;
        if let Some(conn) = back.conn {
            self.hang_up_front(conn);
        }
        self.next_life = life + 1;
        let delay = 1_000 * self.kill.stream.range("restart", 10, 2_000);
        self.schedule(delay, Event::BackStart);
        Ok(())
    }

    /// The process was asked to end, and does.
    fn exit(&mut self) -> Result<(), Violation> {
        let Some(back) = self.back.take() else { return Ok(()) };
        let life = back.life;
        if let Some(job) = self.disk.held_for(life) {
            let message = format!(
                "back-end ends while the disk works on head {} of vring {}",
                job.head, job.vring
            );
            return Err(contract(message));
        }
        self.stats.shutdowns += 1;
        self.trace.say(Lane::Host, What::Exited { life });
        if let Some(conn) = back.conn {
            self.hang_up_front(conn);
        }
        self.next_life = life + 1;
        let delay = 1_000 * self.kill.stream.range("restart", 10, 2_000);
        self.schedule(delay, Event::BackStart);
        self.check_region()
    }

    pub(super) fn shutdown(&mut self, life: u32) -> Result<(), Violation> {
        if self.back.as_ref().is_some_and(|b| b.life == life && b.conn.is_some()) {
            self.back_step(Wake::Command, Input::Command(Command::Shutdown))?;
        }
        Ok(())
    }

    /// A new process, listening.
    pub(super) fn start_back(&mut self) -> Result<(), Violation> {
        let life = self.next_life;
        self.back = Some(BackProcess::new(self.device.clone(), life)?);
        self.trace.say(Lane::Host, What::Started { life });
        self.plan_kill();
        Ok(())
    }

    fn carry_out(&mut self, output: Output) -> Result<(), Violation> {
        let Some(back) = &mut self.back else { return Ok(()) };
        let life = back.life;
        let open = |back: &BackProcess, handle| {
            back.handles
                .get(handle)
                .ok_or_else(|| contract(format!("back-end names {handle}, which is not open")))
        };
        match output {
            Output::Send { bytes, handles } => {
                let objects =
                    handles.iter().map(|h| open(back, *h)).collect::<Result<Vec<_>, _>>()?;
                let conn = back.conn.ok_or_else(|| contract("sends without a connection"))?;
                self.send_to_front(conn, &bytes, objects);
            }
            Output::Map { regions } => {
                let delay = self.host_delay();
                self.schedule(delay, Event::BackAnswer(life, Answer::Map(regions)));
            }
            Output::Unmap => {}
            Output::AllocInflight { size } => {
                let delay = self.host_delay();
                self.schedule(delay, Event::BackAnswer(life, Answer::Alloc(size)));
            }
            Output::MapInflight { handle, offset, size } => {
                let object = back.handles.get(handle);
                let delay = self.host_delay();
                let answer = Answer::MapInflight { object, offset, size };
                self.schedule(delay, Event::BackAnswer(life, answer));
            }
            Output::WatchKick { vring, handle } => {
                let object = handle.map(|h| open(back, h)).transpose()?;
                back.watch[usize::from(vring)] = object;
                self.wake_kick(vring);
            }
            Output::Call { vring, handle } => {
                let object = open(back, handle)?;
                self.trace.say(Lane::Back, What::Call { vring });
                if let Object::Call(vring) = self.objects.get(object) {
                    self.signal_call(vring);
                }
            }
            Output::Err { vring, handle } => {
                open(back, handle)?;
                return Err(Violation::new(
                    "rings",
                    format!("back-end says that the guest broke vring {vring}"),
                ));
            }
            Output::Disk(id) => self.issue(id)?,
            Output::MapLog { .. } => return Err(contract("no front-end here has a dirty log")),
            Output::Cancel(id) => return Err(contract(format!("nobody suspends {id} here"))),
            // One back-end at a time has the store here.
            Output::AcquireStore | Output::ReleaseStore => {}
            Output::Release(handle) => {
                if !back.handles.close(handle) {
                    return Err(contract(format!("back-end releases {handle} twice")));
                }
            }
            Output::Close(CloseReason::Shutdown) => self.exit()?,
            Output::Close(reason) => {
                let conn = back.conn.take().ok_or_else(|| contract("closes no connection"))?;
                back.inbox = Inbox::default();
                self.hang_up_front(conn);
                return Err(Violation::new("contract", format!("back-end closes: {reason}")));
            }
            Output::Event(event) => self.back_event(event)?,
        }
        Ok(())
    }

    fn issue(&mut self, id: ReqId) -> Result<(), Violation> {
        let Some(back) = &self.back else { return Ok(()) };
        let request = back
            .core
            .request(id)
            .ok_or_else(|| contract(format!("{id} goes to the disk, but nobody knows it")))?;
        let job = job(&request, back.life, back.conn.unwrap_or(0));
        self.stats.disk_requests += 1;
        let Job { vring, head, verb, offset, len, .. } = job;
        let (sector, sectors) = (offset / 512, len / 512);
        self.trace.say(Lane::Disk, What::Issued { vring, head, verb, sector, sectors });
        self.oracle.borrow_mut().issued(&job)?;
        let plan = self.disk.submit(job);
        self.schedule(plan.apply_after, Event::DiskApply(plan.key));
        self.schedule(plan.done_after, Event::DiskDone(plan.key));
        Ok(())
    }

    fn back_event(&mut self, event: backend::Event) -> Result<(), Violation> {
        use backend::Event as E;
        let Some(back) = &mut self.back else { return Ok(()) };
        let what = match event {
            E::VringRunning { vring, next_avail, used, resubmitted, .. } => {
                back.runs[usize::from(vring)] = true;
                self.stats.resubmitted += u64::from(resubmitted);
                self.stats.recoveries += u64::from(resubmitted > 0);
                What::VringRunning { vring, next_avail, used, resubmitted }
            }
            E::VringStopped { vring, base } => {
                back.runs[usize::from(vring)] = false;
                What::VringStopped { vring, base }
            }
            E::Negotiated { features, protocol } => {
                What::Back { event: BackEvent::Negotiated, a: features, b: protocol }
            }
            E::BaseContradicted { vring, base, .. } => {
                What::Back { event: BackEvent::BaseContradicted, a: vring.into(), b: base.into() }
            }
            E::DiskFailed { vring, head, .. } => {
                What::Back { event: BackEvent::DiskFailed, a: vring.into(), b: head.into() }
            }
            E::LateCompletion(id) => {
                What::Back { event: BackEvent::LateCompletion, a: id.slot.into(), b: id.epoch }
            }
            E::Draining { vring, inflight } => {
                What::Back { event: BackEvent::Draining, a: vring.into(), b: inflight.into() }
            }
            E::Suspending { .. } | E::Suspended { .. } | E::LogMapped { .. } => {
                return Err(contract(format!("nobody asked for {event:?}")));
            }
            E::VringBroken { vring, fault } => {
                return Err(Violation::new("rings", format!("vring {vring} broken: {fault}")));
            }
            E::Refused(fault) => {
                return Err(Violation::new("session", format!("back-end refuses: {fault}")));
            }
        };
        self.trace.say(Lane::Back, what);
        Ok(())
    }

    /// The connection broke, and nobody died.
    pub(super) fn back_hangup(&mut self, conn: u32) -> Result<(), Violation> {
        let Some(back) = self.back.as_mut().filter(|b| b.conn == Some(conn)) else {
            return Ok(());
        };
        back.conn = None;
        back.runs.fill(false);
        back.inbox = Inbox::default();
        self.trace.say(Lane::Link, What::Hangup { to_back: true });
        self.back_step(Wake::PeerClosed, Input::PeerClosed)?;
        Ok(())
    }

    /// The back-end takes a connection, if it is there and has no other.
    pub(super) fn accept(&mut self) -> Result<Option<u32>, Violation> {
        let free = |b: &&mut BackProcess| b.conn.is_none() && b.core.is_idle();
        let Some(back) = self.back.as_mut().filter(free) else { return Ok(None) };
        let conn = self.next_conn;
        self.next_conn += 1;
        back.conn = Some(conn);
        Ok(self.back_step(Wake::Connected, Input::Connected)?.then_some(conn))
    }

    /// The process reads its socket.
    pub(super) fn back_read(&mut self, life: u32) -> Result<(), Violation> {
        let Some(back) = self.back.as_mut().filter(|b| b.life == life) else { return Ok(()) };
        back.reading = false;
        let wanted = back.core.wanted();
        let Some(piece) = back.inbox.read(wanted) else { return Ok(()) };
        let handles: Vec<_> = piece.objects.iter().map(|o| back.handles.open(*o)).collect();
        self.trace.say(
            Lane::Link,
            What::Delivered {
                to_back: true,
                bytes: piece.bytes.len() as u64,
                handles: handles.len() as u64,
            },
        );
        self.back_step(Wake::Received, Input::Received { bytes: &piece.bytes, handles })?;
        Ok(())
    }

    pub(super) fn arm_reading(&mut self) {
        let Some(back) = &mut self.back else { return };
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
        let Some(back) = &mut self.back else { return };
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
        let Some(back) = self.back.as_mut().filter(|b| b.life == life) else { return Ok(()) };
        // A timer that was moved has left its old event behind.
        if back.timer == Some(at) {
            back.timer = None;
            self.back_step(Wake::Timeout, Input::Timeout)?;
        }
        Ok(())
    }

    /// A kick arrives at the process.
    pub(super) fn back_kick(&mut self, vring: u16) -> Result<(), Violation> {
        let counter = &mut self.kicks[usize::from(vring)];
        counter.waking = false;
        let watched = self.back.as_ref().is_some_and(|b| b.watch[usize::from(vring)].is_some());
        if watched && counter.count > 0 {
            // Reading the counter takes all signals at once.
            counter.count = 0;
            self.back_step(Wake::Kick, Input::Kick { vring })?;
        }
        Ok(())
    }

    /// Let a pending kick wake the process, if it watches.
    pub(super) fn wake_kick(&mut self, vring: u16) {
        let watched = self.back.as_ref().is_some_and(|b| b.watch[usize::from(vring)].is_some());
        let counter = &mut self.kicks[usize::from(vring)];
        if watched && counter.count > 0 && !counter.waking {
            counter.waking = true;
            let delay = self.host_delay();
            self.schedule(delay, Event::BackKick(vring));
        }
    }

    /// The disk reports to the process that asked.
    pub(super) fn disk_done(&mut self, key: u64) -> Result<(), Violation> {
        let Some((job, result)) = self.disk.finish(key, &self.guest_memory.mem) else {
            return Ok(());
        };
        let Job { vring, head, .. } = job;
        self.trace.say(Lane::Disk, What::Done { vring, head, ok: result.is_ok() });
        if result.is_err() {
            self.oracle.borrow_mut().disk_failed(vring, head);
        }
        if let Some(back) = self.back.as_mut().filter(|b| b.life == job.life) {
            back.finished.push(Completion { id: job.id, result });
            if !back.reaping {
                back.reaping = true;
                let life = back.life;
                let delay = self.reap_delay();
                self.schedule(delay, Event::BackReap(life));
            }
        }
        Ok(())
    }

    /// The process collects what the disk has finished: one batch.
    pub(super) fn back_reap(&mut self, life: u32) -> Result<(), Violation> {
        let Some(back) = self.back.as_mut().filter(|b| b.life == life) else { return Ok(()) };
        back.reaping = false;
        let finished = std::mem::take(&mut back.finished);
        if !finished.is_empty() {
            self.back_step(Wake::DiskDone, Input::DiskDone(&finished))?;
        }
        Ok(())
    }

    /// The process has mapped or allocated something.
    pub(super) fn back_answer(&mut self, life: u32, answer: Answer) -> Result<(), Violation> {
        if self.back.as_ref().is_none_or(|b| b.life != life || b.conn.is_none()) {
            return Ok(());
        }
        match answer {
            Answer::Map(regions) => {
                let mapped = self.map_guest(&regions);
                self.back_step(Wake::Mapped, Input::Mapped(mapped))?;
            }
            Answer::Alloc(size) => {
                let region = self.arena.region(size);
                let object = self.objects.add(Object::Memory(region));
                let Some(back) = &mut self.back else { return Ok(()) };
                let handle = back.handles.open(object);
                self.back_step(Wake::InflightAllocated, Input::InflightAllocated(Ok(handle)))?;
            }
            Answer::MapInflight { object, offset, size } => {
                let mapped = self.map_inflight(object, offset, size);
                self.back_step(Wake::InflightMapped, Input::InflightMapped(mapped))?;
            }
        }
        Ok(())
    }

    fn map_inflight(
        &mut self,
        object: Option<ObjectId>,
        offset: u64,
        size: u64,
    ) -> Result<Mem, MapFailed> {
        let failed = |why: &str| MapFailed(why.into());
        let object = object.ok_or_else(|| failed("not an open descriptor"))?;
        let Object::Memory(region) = self.objects.get(object) else {
            return Err(failed("not memory"));
        };
        if offset != 0 || size != self.arena.len(region) {
            return Err(failed("not the whole of the memory"));
        }
        self.check.inflight = Some(region);
        Ok(self.arena.view(&[(0, region)]))
    }
}

/// The core's request in the words of the simulator.
fn job(request: &DiskRequest<'_>, life: u32, conn: u32) -> Job {
    let segments: Vec<_> = request.segments.iter().map(|s| (s.addr, s.len)).collect();
    let moved = segments.iter().map(|(_, len)| u64::from(*len)).sum();
    let (verb, offset, len, durable) = match request.op {
        DiskOp::Read { offset } => (Verb::Read, offset, moved, false),
        DiskOp::Write { offset, durable } => (Verb::Write, offset, moved, durable),
        DiskOp::Flush => (Verb::Flush, 0, 0, false),
        DiskOp::Discard { offset, len, durable } => (Verb::Discard, offset, len, durable),
        DiskOp::WriteZeroes { offset, len, durable, .. } => {
            (Verb::WriteZeroes, offset, len, durable)
        }
    };
    let DiskRequest { id, vring, head, .. } = *request;
    Job { id, life, conn, vring, head, verb, offset, len, durable, segments }
}
