//! The front-end process: when it connects, starts and stops, and what it
//! tells the core about guest memory.

mod boot;
mod line;

pub use boot::new;
use boot::{accepted_features, first_base};

use super::link::Inbox;
use super::objects::Handles;
use super::parting::{Frozen, Parting};
use super::{Event, UNFIT_LIVES, World};
use crate::guest::memory::user;
use crate::memory::RegionId;
use crate::oracle::Violation;
use crate::topology::{Policy, Ring};
use crate::trace::{FrontEvent, Lane, What};
use midflight::Handle;
use midflight::frontend::{
    self, Base, Command, DeviceState, Failure, Frontend, Input, Output, Phase, Start, VringStart,
};
use midflight::time::Instant;
use midflight::wire::{InflightDescription, MemRegion};
use std::collections::VecDeque;

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
}
