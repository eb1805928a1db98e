//! The front-end process: when it connects, starts and stops, and what it
//! tells the core about guest memory.

use super::back::dialect;
use super::link::Inbox;
use super::objects::{Handles, Object, Objects};
use super::parting::{Frozen, Parting};
use super::{Event, UNFIT_LIVES, World};
use crate::guest::memory::{GuestMemory, REGIONS, user};
use crate::memory::RegionId;
use crate::oracle::Violation;
use crate::topology::{Policy, Ring, Topology};
use crate::trace::{FrontEvent, Lane, What};
use midflight::Handle;
use midflight::frontend::{
    self, Base, Command, DeviceState, Failure, Frontend, FrontendConfig, Input, Output, Phase,
    Start, VringStart, VringWiring,
};
use midflight::time::{Duration, Instant};
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{Dialect, InflightDescription, MemRegion};
use std::collections::VecDeque;

/// Bytes of the configuration space through the write zeroes fields.
// spec: virtio 1.2, "Block Device", "Device configuration layout"
const CONFIG_LEN: u16 = 60;

/// From the loss of a connection to the next attempt.
const BACKOFF: Duration = Duration::from_micros(300);

/// The front-end process. It lives for the whole run.
pub struct FrontProcess {
    core: Frontend,
    pub handles: Handles,
    /// The connection it has, by number.
    pub conn: Option<u32>,
    pub inbox: Inbox,
    pub kicks: Vec<Handle>,
    pub calls: Vec<Handle>,
    /// Guest memory, without what is plugged in.
    pub memory: Vec<(MemRegion, Handle)>,
    /// Some is plugged in.
    pub plugged: bool,
    /// Changes that were asked for on this connection, and whether they are to
    /// be taken.
    pub changes: VecDeque<bool>,
    /// Dirty logs that were changed beside a migration, and are not yet in force.
    pub own_logs: u64,
    /// The connection that it has said the last word on.
    pub leaves: Option<u32>,
    /// The vrings are being stopped for a reset of the device.
    pub resets: bool,
    /// One of its changes was to be refused.
    pub asks_in_vain: bool,
    timer: Option<u64>,
    reading: bool,
    /// The owner wants the vrings to run.
    wanted: bool,
    /// The last stop told where to go on.
    bases_known: bool,
    /// The back-end it is connected to cannot be used.
    pub unfit: bool,
    /// It does not reach anybody before this moment.
    pub gone_until: u64,
    /// The connection on which it has said nonsense, on purpose.
    pub nonsense_on: Option<u32>,
    /// Values of the write cache byte that are on their way.
    pub cache_writes: VecDeque<bool>,
    started_before: bool,
    /// What it said before it breaks its connection.
    pub parting: Option<Parting>,
    /// A region that it has forged.
    pub forged: Option<RegionId>,
    /// What must not move after it.
    pub frozen: Option<Frozen>,
    /// The stop that was asked for last may leave requests in flight.
    pub may_leave: bool,
}

impl FrontProcess {
    pub fn phase(&self) -> Phase {
        self.core.phase()
    }

    /// The last stop told where to go on.
    pub fn bases_known(&self) -> bool {
        self.bases_known
    }

    /// After a reset of the device.
    pub fn begins_anew(&mut self) {
        (self.resets, self.started_before, self.bases_known) = (false, false, false);
    }

    /// It has a connection on which it goes on.
    pub fn goes_on(&self) -> bool {
        self.phase() == Phase::Running && self.parting.is_none() && self.leaves != self.conn
    }

    /// Messages wait for an answer to one before them.
    pub fn has_more_to_say(&self) -> bool {
        self.core.awaiting().is_some()
    }

    pub fn inflight(&self) -> Option<(InflightDescription, Handle)> {
        self.core.inflight()
    }

    pub fn device_state(&self) -> Result<DeviceState, Violation> {
        self.core.device_state().map_err(|e| contract(format!("front-end: {e}")))
    }

    /// Start nothing before something arrives.
    pub fn expect_arrival(&mut self) {
        (self.wanted, self.started_before, self.bases_known) = (false, true, true);
    }

    pub fn set_bases_known(&mut self, known: bool) {
        self.bases_known = known;
    }
}

fn contract(message: impl Into<String>) -> Violation {
    Violation::new("contract", message)
}

/// A front-end that owns the guest's memory and signals.
pub fn new(
    objects: &mut Objects,
    topology: &Topology,
    guest_memory: &GuestMemory,
) -> Result<FrontProcess, Violation> {
    let mut handles = Handles::default();
    let mut open = |object| handles.open(objects.add(object));
    let queues = topology.queues;
    let memory: Vec<_> = REGIONS
        .iter()
        .zip(guest_memory.ids)
        .map(|(r, id)| {
            let region =
                MemRegion { guest_addr: r.guest, size: r.size, user_addr: r.user, mmap_offset: 0 };
            (region, open(Object::Memory(id)))
        })
        .collect();
    let kicks = (0..queues).map(|v| open(Object::Kick(v))).collect();
    let calls: Vec<_> = (0..queues).map(|v| open(Object::Call(v))).collect();
    let wiring = calls
        .iter()
        .map(|call| VringWiring { call: Some(*call), err: Some(open(Object::Err)) })
        .collect();
    let mut core = Frontend::new(config(topology), wiring).map_err(|e| contract(e.to_string()))?;
    core.handle_input(Instant::ZERO, Input::Command(Command::SetMemory(memory.clone())))
        .map_err(|e| contract(e.to_string()))?;
    Ok(FrontProcess {
        core,
        handles,
        conn: None,
        inbox: Inbox::default(),
        kicks,
        calls,
        memory,
        plugged: false,
        changes: VecDeque::new(),
        own_logs: 0,
        leaves: None,
        resets: false,
        asks_in_vain: false,
        timer: None,
        reading: false,
        wanted: true,
        bases_known: false,
        unfit: false,
        gone_until: 0,
        nonsense_on: None,
        cache_writes: VecDeque::new(),
        started_before: false,
        parting: None,
        forged: None,
        frozen: None,
        may_leave: false,
    })
}

impl World<'_> {
    fn front_step(&mut self, input: Input<'_>) -> Result<(), Violation> {
        let now = Instant::from_nanos(self.now());
        let front = &mut self.here.front;
        front.core.handle_input(now, input).map_err(|e| contract(format!("front-end: {e}")))?;
        let mut outputs = std::mem::take(&mut self.front_outputs);
        outputs.extend(std::iter::from_fn(|| front.core.poll_output()));
        // One of them may lead to the next step.
        let done = outputs.drain(..).try_for_each(|output| self.front_output(output));
        self.front_outputs = outputs;
        done?;
        self.arm_front_timer();
        Ok(())
    }

    pub(super) fn front_command(&mut self, command: Command) -> Result<(), Violation> {
        self.front_step(Input::Command(command))
    }

    /// Connect for the first time.
    pub(super) fn front_begin(&mut self) -> Result<(), Violation> {
        self.front_command(Command::Connect)
    }

    fn front_output(&mut self, output: Output) -> Result<(), Violation> {
        let front = &mut self.here.front;
        match output {
            Output::Connect => {
                self.trace.say(Lane::Front, What::Connecting);
                let delay = self.host_delay();
                self.schedule(delay, Event::FrontConnect);
            }
            Output::Send { bytes, handles } => {
                let objects = handles
                    .iter()
                    .map(|h| {
                        front.handles.get(*h).ok_or_else(|| contract(format!("{h} is not open")))
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                let conn = front.conn.ok_or_else(|| contract("sends without a connection"))?;
                self.send_to_back(conn, bytes, objects);
            }
            Output::ChannelSend { .. } => return Err(contract("there is no channel to send on")),
            Output::Release(handle) => {
                if !front.handles.close(handle) {
                    return Err(contract(format!("front-end releases {handle} twice")));
                }
            }
            Output::Close(Failure::Disconnected) => {
                if let Some(conn) = front.conn.take() {
                    front.inbox = Inbox::default();
                    let delay = self.host_delay();
                    self.schedule(delay, Event::BackHangup(conn));
                }
            }
            Output::Close(failure) if self.is_unfit(&failure) => {
                self.stats.unfit += 1;
                if let Some(conn) = self.here.front.conn.take() {
                    self.here.front.inbox = Inbox::default();
                    let delay = self.host_delay();
                    self.schedule(delay, Event::BackHangup(conn));
                }
            }
            Output::Close(failure) => {
                return Err(Violation::new("session", format!("front-end closes: {failure}")));
            }
            Output::Event(event) => self.front_event(event)?,
        }
        Ok(())
    }

    fn front_event(&mut self, event: frontend::Event) -> Result<(), Violation> {
        use frontend::Event as E;
        let say = match event {
            E::Ready { .. } => FrontEvent::Ready,
            E::Running => FrontEvent::Running,
            E::Stopped { .. } => FrontEvent::Stopped,
            E::Disconnected { failure: Failure::BackendClosed, .. } => FrontEvent::Lost,
            E::Disconnected { failure: Failure::ConnectFailed(_), .. } => FrontEvent::NotThere,
            E::Logging | E::NotLogging if self.here.front.own_logs > 0 => {
                self.here.front.own_logs -= 1;
                return Ok(());
            }
            E::Logging => FrontEvent::Logging,
            E::NotLogging => FrontEvent::NotLogging,
            E::Disconnected { failure: Failure::Disconnected, .. } => FrontEvent::Left,
            E::Reset => return self.on_reset(),
            E::RawReply(reply) if !self.here.front.changes.is_empty() => {
                return self.changed(&reply);
            }
            E::RawReply(reply) => return self.parted(&reply),
            E::ConfigWritten => return self.cache_written(true),
            // Its flush has failed.
            E::Refused { message: "SET_CONFIG", .. } => return self.cache_written(false),
            E::Disconnected { failure, .. } if self.is_unfit(&failure) => FrontEvent::Unfit,
            other => return Err(Violation::new("session", format!("front-end: {other:?}"))),
        };
        let here = self.here.id;
        let stopping = self.migration.as_ref().is_some_and(|m| m.stops(here));
        self.trace.say(Lane::Front, What::Front(say));
        match say {
            // A driver that has accepted nothing yet has nothing to insist on.
            FrontEvent::Ready if self.here.front.unfit && !self.here.front.started_before => {}
            FrontEvent::Ready if self.here.front.wanted => self.start_vrings()?,
            FrontEvent::Running => {
                self.vrings_run();
                self.on_logging();
                self.on_running();
            }
            FrontEvent::Logging => self.on_logging(),
            FrontEvent::Stopped => {
                self.here.front.bases_known = true;
                match stopping {
                    true => {
                        self.here.front.resets = false;
                        self.on_stopped()?
                    }
                    false if self.here.front.resets => return self.front_command(Command::Reset),
                    false => self.plan_resume(),
                }
            }
            FrontEvent::Lost | FrontEvent::Unfit => {
                self.here.front.conn = None;
                if self.here.front.phase() == Phase::Failed {
                    self.schedule(UNFIT_LIVES, Event::FrontRetry);
                }
                self.note_loss();
                if stopping {
                    return self.on_lost_while_stopping();
                }
                if self.reset_cut_short()? {
                    return Ok(());
                }
                // A pause that was cut short goes on without its answer.
                if !self.here.front.wanted && !self.here.front.bases_known {
                    self.plan_resume();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The back-end is one that the device cannot use, and this says so.
    fn is_unfit(&self, failure: &Failure) -> bool {
        self.here.front.unfit
            && matches!(failure, Failure::BackendUnfit(_) | Failure::BackendRefused { .. })
    }

    /// Whoever looks after the host has the front-end try again.
    pub(super) fn front_retry(&mut self) -> Result<(), Violation> {
        match self.here.front.phase() {
            Phase::Failed => self.front_command(Command::Connect),
            _ => Ok(()),
        }
    }

    fn start_vrings(&mut self) -> Result<(), Violation> {
        let front = &mut self.here.front;
        let mut vrings = Vec::new();
        for index in 0..self.topology.queues {
            let layout = self.guest.borrow().layout(index);
            let base = if !front.started_before {
                Base::At(first_base(&self.topology, layout.size))
            } else if front.bases_known {
                Base::Kept
            } else if self.topology.ring == Ring::Packed {
                // The same, which is of no use.
                Base::Last
            } else {
                // What QEMU does after its back-end has died.
                let used = layout.load_used_idx(&self.here.guest_memory.mem);
                let used = used.ok_or_else(|| contract("the used ring is not in memory"))?;
                Base::At(u32::from(used))
            };
            vrings.push(VringStart {
                index,
                size: layout.size,
                desc: user(layout.desc),
                avail: user(layout.avail),
                used: user(layout.used),
                base,
                kick: (!self.topology.polled).then(|| front.kicks[usize::from(index)]),
                call: Some(front.calls[usize::from(index)]),
            });
        }
        front.started_before = true;
        front.bases_known = false;
        self.here.check.quiet.fill(false);
        self.here.check.resetting = false;
        let features = accepted_features(&self.topology, self.cache_means);
        self.front_command(Command::Start(Start { features: Some(features), vrings }))
    }

    /// The back-end runs every vring: kick them, let the guest go on.
    fn vrings_run(&mut self) {
        let kicked = if self.topology.first_kick { self.topology.queues } else { 0 };
        for vring in 0..kicked {
            self.here.kicks[usize::from(vring)].count += 1;
            self.wake_kick(vring);
        }
        if self.here.id != self.guest_at {
            return;
        }
        if self.guest.borrow().is_paused() {
            self.guest.borrow_mut().pause(false);
            self.stats.pauses += 1;
            self.trace.say(Lane::Guest, What::Paused { on: false });
            let missed = self.guest.borrow_mut().take_missed();
            for vring in missed {
                self.schedule(0, Event::GuestTurn(vring));
            }
        }
        if let Some(after) = self.pauses.pop_front() {
            self.schedule(1_000 * after, Event::Pause);
        }
        if let Some((after, trouble)) = self.troubles.pop_front() {
            let conn = self.here.front.conn.unwrap_or(0);
            self.schedule(1_000 * after, Event::Trouble(conn, trouble));
        }
    }

    /// Stop the guest, then the vrings.
    pub(super) fn pause(&mut self) -> Result<(), Violation> {
        if self.here.front.core.phase() != Phase::Running
            || self.here.id != self.guest_at
            || self.here.front.parting.is_some()
            || self.guest.borrow().is_paused()
        {
            return Ok(());
        }
        self.guest.borrow_mut().pause(true);
        self.trace.say(Lane::Guest, What::Paused { on: true });
        self.front_stop(Command::Stop)
    }

    pub(super) fn front_stop(&mut self, how: Command) -> Result<(), Violation> {
        self.here.front.wanted = false;
        let plan = self
            .topology
            .migration
            .as_ref()
            .filter(|plan| plan.policy != Policy::Drain && plan.agreed);
        // With a message for it, only that one leaves anything.
        self.here.front.may_leave =
            plan.is_some_and(|plan| !plan.by_message || how == Command::Suspend);
        self.front_command(how)
    }

    /// Run vrings, now or as soon as there is a back-end.
    pub(super) fn front_go(&mut self) -> Result<(), Violation> {
        self.here.front.wanted = true;
        if self.here.front.core.phase() == Phase::Ready { self.start_vrings() } else { Ok(()) }
    }

    fn plan_resume(&mut self) {
        let delay = 1_000 * self.front_stream.range("pause.for", 1, 500);
        self.schedule(delay, Event::Resume);
    }

    pub(super) fn resume(&mut self) -> Result<(), Violation> {
        let held = self.migration.as_ref().is_some_and(super::migrate::Migrating::holds_guest);
        if self.here.id != self.guest_at || held {
            return Ok(());
        }
        self.front_go()
    }

    /// An attempt to connect meets a back-end that listens, or nobody.
    pub(super) fn front_connect(&mut self) -> Result<(), Violation> {
        if self.here.front.core.phase() != Phase::Connecting {
            return Ok(());
        }
        let gone = self.now() < self.here.front.gone_until;
        match if gone { None } else { self.accept()? } {
            Some(conn) => {
                self.here.front.conn = Some(conn);
                self.here.front.unfit =
                    self.here.back.as_ref().is_some_and(|back| back.kind.is_unfit());
                self.here.front.inbox = Inbox::default();
                self.here.front.changes.clear();
                self.here.front.cache_writes.clear();
                self.here.front.own_logs = 0;
                self.front_step(Input::Connected { channel: None })
            }
            None => self.front_step(Input::ConnectFailed("nobody listens".into())),
        }
    }

    pub(super) fn arm_front_reading(&mut self) {
        if !self.here.front.reading && !self.here.front.inbox.is_empty() {
            self.here.front.reading = true;
            let delay = self.host_delay();
            self.schedule(delay, Event::FrontRead);
        }
    }

    pub(super) fn front_read(&mut self) -> Result<(), Violation> {
        self.here.front.reading = false;
        if self.here.front.conn.is_none() {
            return Ok(());
        }
        let wanted = self.here.front.core.wanted();
        let Some(piece) = self.here.front.inbox.read(wanted) else { return Ok(()) };
        let handles: Vec<_> =
            piece.objects.iter().map(|o| self.here.front.handles.open(*o)).collect();
        let (bytes, count) = (piece.bytes.len() as u64, handles.len() as u64);
        self.trace.say(Lane::Link, What::Delivered { to_back: false, bytes, handles: count });
        self.front_step(Input::Received { bytes: &piece.bytes, handles })?;
        if self.here.front.inbox.is_closed() {
            return self.front_closed();
        }
        self.arm_front_reading();
        Ok(())
    }

    /// Nothing more comes on this connection; what has come is read first.
    pub(super) fn front_hangup(&mut self, conn: u32) -> Result<(), Violation> {
        if self.here.front.conn != Some(conn) {
            return Ok(());
        }
        self.here.front.inbox.close();
        if self.here.front.inbox.is_closed() { self.front_closed() } else { Ok(()) }
    }

    fn front_closed(&mut self) -> Result<(), Violation> {
        self.trace.say(Lane::Link, What::Hangup { to_back: false });
        (self.here.front.conn, self.here.front.parting) = (None, None);
        self.here.front.inbox = Inbox::default();
        self.front_step(Input::PeerClosed)
    }

    fn arm_front_timer(&mut self) {
        let due = self.here.front.core.poll_timeout().map(|(at, _)| at.as_nanos().max(self.now()));
        if due != self.here.front.timer {
            self.here.front.timer = due;
            if let Some(at) = due {
                self.schedule_at(at, Event::FrontTimer(at));
            }
        }
    }

    pub(super) fn front_timer(&mut self, at: u64) -> Result<(), Violation> {
        if self.here.front.timer != Some(at) {
            return Ok(());
        }
        self.here.front.timer = None;
        self.front_step(Input::Timeout)
    }
}

fn config(topology: &Topology) -> FrontendConfig {
    let mut accepted = protocol::MQ
        | protocol::CONFIG
        | protocol::INFLIGHT_SHMFD
        | protocol::RESET_DEVICE
        | protocol::LOG_SHMFD;
    let mut numbers = Dialect::default();
    if let Some(plan) = &topology.migration {
        numbers = dialect(plan);
        if plan.policy != Policy::Drain && plan.agreed {
            accepted |= numbers.get_vring_base_inflight() | numbers.get_vring_base_skip_drain();
        }
    }
    if topology.reply_ack {
        accepted |= protocol::REPLY_ACK;
    }
    if topology.mem_slots {
        accepted |= protocol::CONFIGURE_MEM_SLOTS;
    }
    FrontendConfig {
        virtio_features: accepted_features(topology, true),
        protocol_features: accepted,
        queue_size: topology.region_size,
        config_len: CONFIG_LEN,
        dialect: numbers,
        reconnect_backoff: Some(BACKOFF),
        ..FrontendConfig::new(topology.queues)
    }
}

/// Where a vring begins, with nothing in flight.
// spec: vhost-user, "Vring descriptor indices for packed virtqueues"
fn first_base(topology: &Topology, size: u16) -> u32 {
    let first = u32::from(topology.first_index);
    let size = u32::from(size);
    match topology.ring {
        Ring::Split => first,
        Ring::Packed => {
            let wrap = u32::from((first / size).is_multiple_of(2));
            ((first % size) | (wrap << 15)) * 0x1_0001
        }
    }
}

/// What the guest's driver accepts.
fn accepted_features(topology: &Topology, cache: bool) -> u64 {
    let mut features = virtio::VERSION_1
        | virtio::BLK_BLK_SIZE
        | virtio::BLK_SEG_MAX
        | virtio::BLK_DISCARD
        | virtio::BLK_WRITE_ZEROES;
    let wanted = [
        (topology.event_idx, virtio::EVENT_IDX),
        (topology.indirect, virtio::INDIRECT_DESC),
        (topology.flush, virtio::BLK_FLUSH),
        (cache, virtio::BLK_CONFIG_WCE),
        (topology.queues > 1, virtio::BLK_MQ),
        (topology.ring == Ring::Packed, virtio::RING_PACKED),
        (topology.in_order, virtio::IN_ORDER),
    ];
    for (on, bit) in wanted {
        if on {
            features |= bit;
        }
    }
    features
}
