//! What the guest itself has spoiled is excused, and said.

use super::World;

impl World<'_> {
    /// Every vring whose rules the guest has plainly broken was found out.
    pub(super) fn sabotage_is_seen(&self) -> bool {
        let guest = self.guest.borrow();
        (0u16..).zip(&self.reported).all(|(vring, reported)| {
            *reported || guest.sabotage(vring).is_none_or(|(how, _)| !how.is_plain())
        })
    }

    /// Trouble is over: kicks that were lost come now. Whether there were any.
    pub(super) fn give_lost_kicks(&mut self) -> bool {
        self.focus(self.guest_at);
        let lost = self.guest.borrow_mut().take_lost_kicks();
        for vring in &lost {
            self.excuses.push(format!("vring {vring} waited for a kick that was lost"));
            self.here.kicks[usize::from(*vring)].count += 1;
            self.wake_kick(*vring);
        }
        !lost.is_empty()
    }

    /// Say what was lost with vrings that the guest has broken.
    pub(super) fn note_spoiled(&mut self) {
        for vring in 0..self.topology.queues {
            let sabotage = self.guest.borrow().sabotage(vring);
            if let Some((how, requests)) = sabotage {
                self.excuses.push(format!(
                    "vring {vring}: its guest broke the rules ({}), with {requests} requests in flight",
                    how.name()
                ));
            }
        }
    }
}
