//! The run loop, and what each event does.

use super::migrate::Migrating;
use super::{Event, World};
use crate::disk::Job;
use crate::guest::Turn;
use crate::oracle::Violation;
use crate::trace::{Lane, What};

/// Events a whole run may take.
const MAX_EVENTS: u64 = 400_000;
/// Events from the end of trouble to the end of the run.
const MAX_SETTLE_EVENTS: u64 = 60_000;

impl World<'_> {
    pub(super) fn run_events(&mut self) -> Result<(), Violation> {
        self.trace.clock(0, 0, 0);
        self.start_back()?;
        self.front_begin()?;
        self.plan_migration();
        self.plan_power_losses();
        self.plan_control();
        for vring in 0..self.topology.queues {
            let delay = 1_000 * self.host.below("first", 2_000);
            self.schedule(delay, Event::GuestTurn(vring));
        }
        loop {
            let Some((host, event)) = self.scheduler.advance() else {
                if self.give_lost_kicks() {
                    continue;
                }
                return Err(self.stuck("nothing is left to happen"));
            };
            let done = self.scheduler.done();
            self.trace.clock(self.scheduler.now(), done, self.scheduler.cause());
            if let Some(clock) = &self.clock {
                clock.set(self.scheduler.now());
            }
            self.focus(host);
            self.happen(event)?;
            let over = self.migration.as_ref().is_none_or(Migrating::is_over);
            let parted = self.guest_host().front.parting.is_none();
            if over
                && self.guest.borrow().is_done()
                && self.sabotage_is_seen()
                && !self.disk.has_adrift()
                && parted
            {
                return Ok(());
            }
            if self.settling_since.is_none() && self.is_settling() {
                self.settling_since = Some(done);
                self.trace.say(Lane::Host, What::Settling);
            }
            if self.settling_since.is_some_and(|since| done - since > MAX_SETTLE_EVENTS)
                || done > MAX_EVENTS
            {
                return Err(self.stuck("events go on, but requests do not end"));
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::GuestTurn(vring) => self.guest_turn(vring)?,
            Event::GuestCall(vring) => {
                let counter = &mut self.here.calls[usize::from(vring)];
                counter.waking = false;
                counter.count = 0;
                // A guest that has moved was told there.
                if self.here.id != self.guest_at {
                    return Ok(());
                }
                self.trace.say(Lane::Guest, What::Interrupted { vring });
                self.guest_turn(vring)?;
            }
            Event::Pause => self.pause()?,
            Event::Control => self.control()?,
            Event::Enable(conn, vring) => self.enable_again(conn, vring)?,
            Event::Resume => self.resume()?,
            Event::FrontConnect => self.front_connect()?,
            Event::FrontRead => self.front_read()?,
            Event::FrontTimer(at) => self.front_timer(at)?,
            Event::FrontHangup(conn) => self.front_hangup(conn)?,
            Event::ToBack(conn, piece) => {
                if let Some(back) = self.here.back.as_mut().filter(|b| b.conn == Some(conn)) {
                    back.inbox.push(piece);
                    self.arm_reading();
                }
            }
            Event::ToFront(conn, piece) => {
                if self.here.front.conn == Some(conn) {
                    self.here.front.inbox.push(piece);
                    self.arm_front_reading();
                }
            }
            Event::BackStart => self.start_back()?,
            Event::BackRead(life) => self.back_read(life)?,
            Event::BackKick(vring) => self.back_kick(vring)?,
            Event::BackTimer(life, at) => self.back_timer(life, at)?,
            Event::BackReap(life) => self.back_reap(life)?,
            Event::BackAnswer(conn, answer) => self.back_answer(conn, answer)?,
            Event::DiskApply(key) => {
                self.check_landing(key)?;
                let place = |job: &Job| What::Applied { vring: job.vring, head: job.head };
                if let Some(what) = self.with_disk(|disk, mem| disk.apply(key, mem).map(place)) {
                    self.trace.say(Lane::Disk, what);
                }
            }
            Event::DiskDone(key) => self.disk_done(key)?,
            Event::DiskAgain(life, completion) => self.push_finished(life, completion),
            Event::PowerLoss => self.power_loss()?,
            Event::Kill(life) => {
                if self.here.back.as_ref().is_some_and(|b| b.life == life) {
                    self.die(0, 0, 0, 0)?;
                }
            }
            Event::Trouble(conn, trouble) => self.trouble(conn, trouble)?,
            Event::Parted(conn) => self.parted_at(conn)?,
            Event::FrontRetry => self.front_retry()?,
            Event::Wake => self.wake()?,
            Event::Sleep => self.sleep()?,
            Event::Shutdown(life) => self.shutdown(life)?,
            Event::BackHangup(conn) => self.back_hangup(conn)?,
            Event::DiskCancel(key) => self.disk_cancel(key)?,
            Event::StoreFree => self.store_free()?,
            Event::Migrate => self.migrate()?,
            Event::Copy(attempt) => self.copy(attempt)?,
            Event::Arrive(attempt) => self.arrive(attempt)?,
            Event::LinkLost(attempt) => self.link_lost(attempt)?,
        }
        Ok(())
    }

    fn guest_turn(&mut self, vring: u16) -> Result<(), Violation> {
        self.focus(self.guest_at);
        let turn =
            self.guest.borrow_mut().turn(vring, &mut self.oracle.borrow_mut(), &mut self.trace)?;
        self.after_turn(vring, turn);
        Ok(())
    }

    /// What the guest wants after its turn.
    pub(super) fn after_turn(&mut self, vring: u16, turn: Turn) {
        if turn.kick {
            self.here.kicks[usize::from(vring)].count += 1;
            self.wake_kick(vring);
        }
        if let Some(after) = turn.again_after {
            self.schedule(after, Event::GuestTurn(vring));
        }
    }

    /// Why nothing goes on, as far as the rings tell.
    fn stuck(&self, how: &str) -> Violation {
        let oracle = self.oracle.borrow();
        let ledger = oracle.ledger();
        for vring in 0..self.topology.queues {
            let unseen = ledger.used_count(vring) - self.guest.borrow().reaped(vring);
            if unseen > 0 {
                return Violation::new(
                    "notification",
                    format!(
                        "{how}: vring {vring} has {unseen} used entries the guest was never called for"
                    ),
                );
            }
        }
        for vring in 0..self.topology.queues {
            if oracle.is_spoiled(vring) && !self.reported[usize::from(vring)] {
                return Violation::new(
                    "rings",
                    format!("{how}: the guest broke vring {vring}, and no back-end said so"),
                );
            }
            if oracle.is_spoiled(vring) {
                continue;
            }
            if let Some(ask) = ledger.outstanding(vring).next() {
                return Violation::new(
                    "liveness",
                    format!(
                        "{how}: request {} (vring {vring}, head {}, {}) was never completed; {}",
                        ask.request,
                        ask.head,
                        ask.verb.name(),
                        match ledger.issued_in(ask.request) {
                            Some(life) => format!("back-end {life} had asked the disk for it"),
                            None => "no back-end ever asked the disk for it".into(),
                        }
                    ),
                );
            }
        }
        Violation::new("liveness", format!("{how}: the guest waits for nothing"))
    }
}
