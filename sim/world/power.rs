//! Faults of the disk, as the world hears of them, and losses of power.

use super::{Event, World};
use crate::disk::faults::Injected;
use crate::oracle::Violation;
use crate::trace::{Lane, What};

impl World<'_> {
    /// Faults of the disk have taken effect: the oracles hear what is excused.
    pub(super) fn spread_news(&mut self) {
        for injected in self.disk.take_news() {
            self.oracle.borrow_mut().injected(&injected);
            if let Some(family) = injected.family() {
                let about = injected.about();
                self.trace.say(Lane::Disk, What::Injected { family, about });
            }
            if let Injected::Again { of, completion, after } = injected {
                self.schedule(after, Event::DiskAgain(of.life, completion));
            }
        }
    }

    /// Losses of power come at their time.
    pub(super) fn plan_power_losses(&mut self) {
        for at in 0..self.power_losses.len() {
            self.schedule_at(1_000 * self.power_losses[at], Event::PowerLoss);
        }
    }

    /// The node with the disk loses power: back-ends run there, so they die, and
    /// the cache is gone. Guest memory and inflight region are elsewhere, and
    /// nobody tells the guest.
    pub(super) fn power_loss(&mut self) -> Result<(), Violation> {
        self.power_losses.pop_front();
        let focus = self.here.id;
        for id in 0..=u8::from(self.there.is_some()) {
            self.focus(id);
            self.die(0, 0, 0, 0)?;
        }
        self.focus(focus);
        let sectors = self.disk.power_loss();
        self.stats.sectors_lost += sectors;
        self.trace.say(Lane::Disk, What::PowerLost { sectors });
        self.oracle.borrow_mut().power_lost();
        Ok(())
    }
}
