//! Both hosts awake at once.
//!
//! The source of a migration that is over runs its vrings once more, as if the
//! migration had failed. Who may do that is not for the protocol to say; what
//! keeps the disk whole is that the destination has the lock of the store. The
//! model does not give that lock to a host that only thinks it has the guest:
//! whoever breaks a lock has to know that its holder is dead, and its guest too.

use super::{Event, World};
use crate::oracle::Violation;
use crate::trace::{Lane, Moving, What};
use midflight::frontend::Phase;

impl World<'_> {
    /// The source in focus wakes, if the guest has gone and its store with it.
    pub(super) fn wake(&mut self) -> Result<(), Violation> {
        let elsewhere = self.here.id != self.guest_at && self.store == Some(self.guest_at);
        if !elsewhere || self.here.front.phase() != Phase::Ready {
            return Ok(());
        }
        self.stats.wakes += 1;
        self.here.awake = true;
        self.trace.say(Lane::Host, What::Moving { step: Moving::SourceWakes, a: 0, b: 0 });
        self.front_go()
    }

    /// Somebody has seen it.
    pub(super) fn sleep(&mut self) -> Result<(), Violation> {
        if !std::mem::take(&mut self.here.awake) {
            return Ok(());
        }
        self.trace.say(Lane::Host, What::Moving { step: Moving::SourceSleeps, a: 0, b: 0 });
        self.leave()
    }

    /// Have the source wake, which is the host that is not in focus.
    pub(super) fn plan_wake(&mut self, us: u64) {
        let source = 1 - self.here.id;
        let delay = self.host_delay();
        self.scheduler.after(delay, (source, Event::Wake));
        self.scheduler.after(delay + 1_000 * us, (source, Event::Sleep));
    }
}
