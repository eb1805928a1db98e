//! How a back-end process ends, and how the next one begins.

use super::back::{BackProcess, contract, suspend_policy};
use super::{CrashPoint, Event, Slip, World};
use crate::oracle::Violation;
use crate::trace::{Lane, Wake, What};
use midflight::backend::{Command, Input};
use std::cell::Cell;

/// How much of a step happened before the process died.
pub(super) struct Death {
    pub kept: u64,
    pub cut: u32,
    pub outputs: usize,
}

impl World<'_> {
    /// Whether the process dies in this step, and where.
    /// The first `seen` stores were seen by a guest and have happened.
    pub(super) fn due_death(&mut self, stores: u64, outputs: usize, seen: u64) -> Option<Death> {
        if self.kill.exact.front().is_some_and(|exact| exact.step == self.steps)
            && let Some(CrashPoint { kept, cut, outputs, .. }) = self.kill.exact.pop_front()
        {
            return Some(Death { kept, cut, outputs: outputs as usize });
        }
        let left = self.here.stores_left?;
        if stores == 0 {
            return None;
        }
        if left > stores {
            self.here.stores_left = Some(left - stores);
            return None;
        }
        self.here.stores_left = None;
        let kept = left.max(seen);
        if kept == stores {
            // Every store has happened; of the wishes, some.
            let outputs = self.kill.stream.below("outputs", outputs as u64 + 1) as usize;
            return Some(Death { kept, cut: 0, outputs });
        }
        let cut = self.arena.with_store(kept, |store, _| match store.is_single() {
            true => 0,
            false => store.len,
        });
        let cut = self.kill.stream.below("cut", u64::from(cut)) as u32;
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
        let Some(back) = self.here.back.take() else { return Ok(()) };
        let life = back.life;
        let moved = self.with_disk(|disk, mem| disk.process_died(life, mem));
        self.stats.kills += 1;
        self.trace
            .say(Lane::Host, What::Killed { life, kept, stores, outputs_kept, outputs, moved });
        self.check_whole_region()?;
        if let Some(conn) = back.conn {
            self.hang_up_front(conn);
        }
        self.give_store_back();
        self.note_loss();
        self.plan_restart();
        Ok(())
    }

    /// Somebody starts a new process, some time.
    fn plan_restart(&mut self) {
        self.here.restarting = true;
        let delay = 1_000 * self.kill.stream.range("restart", 10, 2_000);
        self.schedule(delay, Event::BackStart);
    }

    /// The process was asked to end, and does.
    pub(super) fn exit(&mut self) -> Result<(), Violation> {
        let Some(back) = self.here.back.take() else { return Ok(()) };
        let life = back.life;
        if let Some(job) = self.disk.held_for(life).filter(|_| !self.disk.has_adrift()) {
            let message = format!(
                "back-end ends while the disk works on head {} of vring {}",
                job.head, job.vring
            );
            return Err(contract(message));
        }
        self.stats.shutdowns += 1;
        self.give_store_back();
        self.note_loss();
        self.trace.say(Lane::Host, What::Exited { life });
        if let Some(conn) = back.conn {
            self.hang_up_front(conn);
        }
        self.plan_restart();
        self.check_whole_region()
    }

    pub(super) fn shutdown(&mut self, life: u32) -> Result<(), Violation> {
        let connected = |b: &&mut BackProcess| b.life == life && b.conn.is_some();
        if let Some(back) = self.here.back.as_mut().filter(connected) {
            back.ending = true;
            self.back_step(Wake::Command, Input::Command(Command::Shutdown))?;
        }
        Ok(())
    }

    /// A new process, listening.
    pub(super) fn start_back(&mut self) -> Result<(), Violation> {
        self.here.restarting = false;
        if self.slip == Some(Slip::Moody) && self.last_life == 0 && mood() {
            self.host.below("mood", 9);
        }
        self.last_life += 1;
        let life = self.last_life;
        let suspend = self.topology.migration.as_ref().and_then(suspend_policy);
        let kind = std::mem::take(&mut self.here.next);
        self.here.back = Some(BackProcess::new(&self.device, kind, suspend, life)?);
        self.trace.say(Lane::Host, What::Started { life });
        self.plan_kill();
        Ok(())
    }
}

/// Something that no run may depend on: how often this was asked before. True
/// every other time.
fn mood() -> bool {
    std::thread_local! {
        static ASKED: Cell<u64> = const { Cell::new(0) };
    }
    ASKED.set(ASKED.get() + 1);
    ASKED.get().is_multiple_of(2)
}
