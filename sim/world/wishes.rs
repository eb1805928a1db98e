//! What the back-end process does for its core: wishes and answers.

use super::back::{Answer, BackProcess, contract};
use super::link::Inbox;
use super::objects::{Object, ObjectId};
use super::vows::vow;
use super::{Event, World};
use crate::disk::Job;
use crate::memory::{Mem, RegionId};
use crate::oracle::{RegionView, Violation, session};
use crate::topology::Ring;
use crate::trace::{BackEvent, Lane, Verb, Wake, What};
use midflight::backend::{self, CloseReason, Input, MapFailed, Output};
use midflight::blk::{DiskOp, DiskRequest, ReqId};

impl World<'_> {
    pub(super) fn carry_out(&mut self, output: Output) -> Result<(), Violation> {
        let now = self.now();
        let Some(back) = &mut self.here.back else { return Ok(()) };
        // No two lives share a connection; an answer to one that is gone is late.
        let (life, conn) = (back.life, back.conn.unwrap_or(0));
        let open = |back: &BackProcess, handle| {
            back.handles
                .get(handle)
                .ok_or_else(|| contract(format!("back-end names {handle}, which is not open")))
        };
        if let Output::Disk(id) = output
            && let Some(request) = back.core.request(id)
            && !request.own
        {
            let (vring, head) = (request.vring, request.head);
            back.session.check_fetch(vring, head)?;
            if let Some(region) = self.here.check.inflight {
                self.arena.with_image(region, |bytes| {
                    let view = RegionView::of(bytes, &self.topology);
                    self.oracle.borrow().check_known(view, vring, head)
                })?;
            }
        }
        match output {
            Output::Send { bytes, handles } => {
                let objects =
                    handles.iter().map(|h| open(back, *h)).collect::<Result<Vec<_>, _>>()?;
                let conn = back.conn.ok_or_else(|| contract("sends without a connection"))?;
                let stopped = session::stop_answer(&bytes);
                // Without a stop, vrings end only by a reset of the device.
                let reset = std::mem::take(&mut back.stopped);
                self.send_to_front(conn, bytes, objects);
                if let Some(base) = stopped {
                    if let Some(at) = self.at_stop(base.vring)? {
                        session::check_answer(base, at)?;
                    }
                    if let Some(bases) = self.bases.get_mut(usize::from(base.vring)) {
                        bases.told = Some(base.index);
                    }
                    self.check_drained(base.vring)?;
                    self.at_rest(life, base.vring);
                } else {
                    for vring in reset {
                        self.at_rest(life, vring);
                    }
                }
            }
            Output::Map { regions } => {
                back.mapped = true;
                let delay = self.host_delay();
                self.schedule(delay, Event::BackAnswer(conn, Answer::Map(regions)));
            }
            Output::OpenFaults | Output::MapMissing { .. } | Output::CloseFaults { .. } => {
                return Err(contract("wants postcopy, which is not offered"));
            }
            Output::Unmap => {
                back.mapped = false;
                if let Some(vring) = back.runs.iter().position(|runs| *runs) {
                    return Err(vow(format!("memory is unmapped while vring {vring} runs")));
                }
            }
            Output::AllocInflight { size } => {
                let delay = self.host_delay();
                self.schedule(delay, Event::BackAnswer(conn, Answer::Alloc(size)));
            }
            Output::MapInflight { handle, offset, size } => {
                let object = back.handles.get(handle);
                let delay = self.host_delay();
                let answer = Answer::MapInflight { object, offset, size };
                self.schedule(delay, Event::BackAnswer(conn, answer));
            }
            Output::ChannelSend { .. } | Output::WatchChannel { handle: Some(_) } => {
                return Err(contract("a channel is used that no front-end gave"));
            }
            Output::WatchChannel { handle: None } => {}
            Output::SaveState { .. } | Output::LoadState { .. } => {
                return Err(contract("a device state is transferred that nobody wants"));
            }
            Output::WatchKick { vring, handle } => {
                let object = handle.map(|h| open(back, h)).transpose()?;
                back.watch[usize::from(vring)] = object;
                self.wake_kick(vring);
            }
            Output::Call { vring, handle } => {
                let object = open(back, handle)?;
                self.trace.say(Lane::Back, What::Call { vring });
                if self.here.id == self.guest_at {
                    self.oracle.borrow_mut().called(vring);
                }
                if let Object::Call(vring) = self.objects.get(object) {
                    self.signal_call(vring);
                }
            }
            Output::Err { vring, handle } => {
                open(back, handle)?;
                // Memory of a host that the guest has left is whatever is being
                // copied into it.
                let left = self.here.id != self.guest_at;
                if !left && !self.oracle.borrow().is_spoiled(vring) {
                    return Err(Violation::new(
                        "rings",
                        format!("back-end says that the guest broke vring {vring}"),
                    ));
                }
            }
            Output::Disk(id) if back.ending => {
                return Err(contract(format!(
                    "{id} is fetched after the back-end was asked to end"
                )));
            }
            Output::Disk(id) => {
                let vring = back.core.request(id).filter(|r| !r.own).map_or(u16::MAX, |r| r.vring);
                back.vows.asks(id, vring)?;
                if self.store == Some(self.here.id) {
                    self.issue(id)?;
                } else {
                    back.held.push(id);
                }
            }
            Output::MapLog { handle, offset, size } => {
                let object = back.handles.get(handle);
                let delay = self.host_delay();
                let answer = Answer::MapLog { object, offset, size };
                self.schedule(delay, Event::BackAnswer(conn, answer));
            }
            Output::Cancel(id) => {
                back.vows.cancels(id, now)?;
                self.cancel(id);
            }
            Output::AcquireStore => {
                back.vows.acquires()?;
                self.acquire_store();
            }
            Output::ReleaseStore => {
                back.vows.releases()?;
                back.wants_store = false;
                self.give_store_back();
            }
            Output::Release(handle) => {
                if !back.handles.close(handle) {
                    return Err(contract(format!("back-end releases {handle} twice")));
                }
            }
            Output::Close(CloseReason::Shutdown) => self.exit()?,
            Output::Close(reason) => {
                let conn = back.conn.take().ok_or_else(|| contract("closes no connection"))?;
                back.inbox = Inbox::default();
                let unfit = back.kind.is_unfit();
                back.runs.fill(false);
                back.vows.hung_up();
                self.give_held_up();
                self.hang_up_front(conn);
                let expected = match &reason {
                    CloseReason::FrontendMisbehaved(fault) => self.expects(fault),
                    CloseReason::Shutdown => false,
                };
                if expected {
                    self.note_loss();
                } else if !unfit {
                    return Err(Violation::new("contract", format!("back-end closes: {reason}")));
                }
            }
            Output::Event(event) => self.back_event(event)?,
        }
        Ok(())
    }

    pub(super) fn issue(&mut self, id: ReqId) -> Result<(), Violation> {
        let Some(back) = &self.here.back else { return Ok(()) };
        let request = back
            .core
            .request(id)
            .ok_or_else(|| contract(format!("{id} goes to the disk, but nobody knows it")))?;
        // No guest has asked for what is the back-end's own.
        let own = request.own;
        let name = self.chain_name(request.vring, request.head).filter(|_| !own);
        let holder =
            name.and_then(|name| self.oracle.borrow().ledger().holder(request.vring, name));
        if self.here.id != self.guest_at {
            let message = format!(
                "request of vring {}, head {} goes to the store for a host that has no guest",
                request.vring, request.head
            );
            return Err(Violation::new("ownership", message));
        }
        let asker = (back.life, back.conn.unwrap_or(0));
        let job = job(&request, asker, name.unwrap_or(request.head), holder.unwrap_or(u64::MAX));
        self.stats.disk_requests += 1;
        let Job { vring, head, verb, offset, len, .. } = job;
        let (sector, sectors) = (offset / 512, len / 512);
        self.trace.say(Lane::Disk, What::Issued { vring, head, verb, sector, sectors });
        if !own {
            self.oracle.borrow_mut().issued(&job)?;
            self.check_only_owner(&job)?;
        }
        let plan = self.disk.submit(self.scheduler.now(), job);
        self.schedule(plan.apply_after, Event::DiskApply(plan.key));
        self.schedule(plan.done_after, Event::DiskDone(plan.key));
        Ok(())
    }

    /// The guest's name for a chain that the core names so: of a packed ring the
    /// buffer id, which is in the region.
    fn chain_name(&self, vring: u16, head: u16) -> Option<u16> {
        if self.topology.ring == Ring::Split {
            return Some(head);
        }
        let region = self.here.check.inflight?;
        self.arena
            .with_image(region, |bytes| RegionView::of(bytes, &self.topology).name(vring, head))
    }

    pub(super) fn back_event(&mut self, event: backend::Event) -> Result<(), Violation> {
        use backend::Event as E;
        let now = self.now();
        let Some(back) = &mut self.here.back else { return Ok(()) };
        let packed = self.topology.ring == Ring::Packed;
        back.vows.says(&event, now, back.grace, packed)?;
        let unfit = back.kind.is_unfit();
        let what = match event {
            E::VringRunning { vring, next_avail, used, resubmitted, .. } => {
                back.runs[usize::from(vring)] = true;
                self.stats.resubmitted += u64::from(resubmitted);
                self.stats.recoveries += u64::from(resubmitted > 0);
                What::VringRunning { vring, next_avail, used, resubmitted }
            }
            E::VringStopped { vring, base } => {
                back.runs[usize::from(vring)] = false;
                back.stopped.push(vring);
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
                self.stats.late_completions += 1;
                What::Back { event: BackEvent::LateCompletion, a: id.slot.into(), b: id.epoch }
            }
            E::Draining { vring, inflight } => {
                What::Back { event: BackEvent::Draining, a: vring.into(), b: inflight.into() }
            }
            E::Suspending { vring, inflight } => {
                What::Back { event: BackEvent::Suspending, a: vring.into(), b: inflight.into() }
            }
            E::Suspended { vring, inflight } => {
                self.stats.suspended += u64::from(inflight);
                What::Back { event: BackEvent::Suspended, a: vring.into(), b: inflight.into() }
            }
            // What comes of it is judged by what is durable.
            E::WriteCache { .. } | E::FlushFailed(_) => return Ok(()),
            E::CapacityChanged { .. }
            | E::ChannelLost(_)
            | E::RequestRefused { .. }
            | E::StateSaved
            | E::StateLoaded { .. }
            | E::StateFailed(_)
            | E::IovaRefused { .. }
            | E::IommuAtRest(_) => {
                return Err(contract("something is reported that has not happened"));
            }
            E::LogMapped { size } => What::Back { event: BackEvent::LogMapped, a: size, b: 0 },
            E::VringBroken { vring, .. } if self.oracle.borrow().is_spoiled(vring) => {
                self.stats.broken += 1;
                self.reported[usize::from(vring)] = true;
                What::Back { event: BackEvent::VringBroken, a: vring.into(), b: 0 }
            }
            E::VringBroken { vring, .. } if self.here.id != self.guest_at => {
                What::Back { event: BackEvent::VringBroken, a: vring.into(), b: 0 }
            }
            E::VringBroken { vring, fault } => {
                return Err(Violation::new("rings", format!("vring {vring} broken: {fault}")));
            }
            E::PostcopyListening | E::PostcopyEnded => {
                return Err(contract("says postcopy, which is not offered"));
            }
            E::Refused(fault) if self.expects(&fault) => return Ok(()),
            E::Refused(_) if unfit => return Ok(()),
            E::Refused(fault) => {
                return Err(Violation::new("session", format!("back-end refuses: {fault}")));
            }
        };
        self.trace.say(Lane::Back, what);
        Ok(())
    }

    /// The process has mapped or allocated something.
    pub(super) fn back_answer(&mut self, conn: u32, answer: Answer) -> Result<(), Violation> {
        if self.here.back.as_ref().is_none_or(|b| b.conn != Some(conn)) {
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
                let Some(back) = &mut self.here.back else { return Ok(()) };
                let handle = back.handles.open(object);
                self.back_step(Wake::InflightAllocated, Input::InflightAllocated(Ok(handle)))?;
            }
            Answer::MapLog { object, offset, size } => {
                let mapped = self.map_whole(object, offset, size).map(|(_, mem)| mem);
                self.back_step(Wake::LogMapped, Input::LogMapped(mapped))?;
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
        let (region, mem) = self.map_whole(object, offset, size)?;
        if self.here.front.forged != Some(region) {
            self.watch_region(region);
        }
        Ok(mem)
    }

    /// From now on, this is the inflight region of the host.
    pub(super) fn watch_region(&mut self, region: RegionId) {
        self.here.check.set_inflight(Some(region));
        self.changed = u64::MAX;
        self.here.check.part = self.arena.len(region) / u64::from(self.topology.queues);
    }

    fn map_whole(
        &self,
        object: Option<ObjectId>,
        offset: u64,
        size: u64,
    ) -> Result<(RegionId, Mem), MapFailed> {
        let failed = |why: &str| MapFailed(why.into());
        let object = object.ok_or_else(|| failed("not an open descriptor"))?;
        let Object::Memory(region) = self.objects.get(object) else {
            return Err(failed("not memory"));
        };
        if offset != 0 || size != self.arena.len(region) {
            return Err(failed("not the whole of the memory"));
        }
        Ok((region, self.arena.view(&[(0, region)])))
    }
}

/// The vring of what is the back-end's own: there is none.
const OWN: u16 = u16::MAX;

/// The core's request in the words of the simulator.
fn job(request: &DiskRequest<'_>, (life, conn): (u32, u32), head: u16, holder: u64) -> Job {
    let segments: Vec<_> = request.segments.iter().map(|s| (s.addr, s.len)).collect();
    let moved = segments.iter().map(|(_, len)| u64::from(*len)).sum();
    let (verb, offset, len, durable) = match request.op {
        DiskOp::Read { offset } => (Verb::Read, offset, moved, false),
        DiskOp::Write { offset, durable } => (Verb::Write, offset, moved, durable),
        DiskOp::Flush => (Verb::Flush, 0, 0, false),
        DiskOp::Discard { durable } => {
            let (offset, len) = only_range(request);
            (Verb::Discard, offset, len, durable)
        }
        DiskOp::WriteZeroes { durable } => {
            let (offset, len) = only_range(request);
            (Verb::WriteZeroes, offset, len, durable)
        }
        // Not offered by the devices of this world.
        DiskOp::SecureErase
        | DiskOp::ZoneAppend { .. }
        | DiskOp::ZoneReport { .. }
        | DiskOp::Zone { .. } => panic!("{:?} was never asked for", request.op),
    };
    let DiskRequest { id, own, vring, .. } = *request;
    let vring = if own { OWN } else { vring };
    Job { id, life, conn, request: holder, vring, head, verb, offset, len, durable, segments }
}

/// This world's guests name one range at a time.
fn only_range(request: &DiskRequest<'_>) -> (u64, u64) {
    match request.ranges {
        [one] => (one.offset, one.len),
        other => panic!("{} ranges, of which one was asked for", other.len()),
    }
}
