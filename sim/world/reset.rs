//! The guest resets the device and goes on: the front-end stops the vrings,
//! says so, and the guest begins anew on rings with nothing in them.
// spec: virtio 1.2, "Device Reset"; vhost-user, VHOST_USER_RESET_DEVICE

use super::World;
use crate::guest::memory::ring_view;
use crate::oracle::Violation;
use midflight::frontend::{Command, Phase};

impl World<'_> {
    /// What a guest has broken is reported by a back-end, or would be.
    pub(super) fn begin_reset(&mut self) -> Result<(), Violation> {
        let spoiled = (0..self.topology.queues).any(|v| self.oracle.borrow().is_spoiled(v));
        if spoiled || self.here.front.phase() != Phase::Running {
            return Ok(());
        }
        self.pause()?;
        self.here.front.resets = self.guest.borrow().is_paused();
        Ok(())
    }

    /// The back-end is lost while the device is being reset. Nobody needs to be
    /// told any more; true if that was all that was left to do. A stop that was
    /// not answered leaves requests at the disk, so then nothing is reset.
    pub(super) fn reset_cut_short(&mut self) -> Result<bool, Violation> {
        if !self.here.front.resets {
            return Ok(false);
        }
        if !self.here.front.bases_known() {
            self.here.front.resets = false;
            return Ok(false);
        }
        self.front_command(Command::Reset)?;
        Ok(true)
    }

    /// The device is reset.
    pub(super) fn on_reset(&mut self) -> Result<(), Violation> {
        self.stats.resets += 1;
        self.here.front.begins_anew();
        self.here.check.set_inflight(None);
        let queues = 0..self.topology.queues;
        let rings = queues
            .clone()
            .map(|v| {
                let layout = self.guest.borrow().layout(v);
                ring_view(self.topology.ring, &layout, self.topology.first_index)
            })
            .collect();
        let mut oracle = self.oracle.borrow_mut();
        oracle.reset(rings);
        let used: Vec<u64> = queues.map(|v| oracle.ledger().used_count(v)).collect();
        drop(oracle);
        self.guest.borrow_mut().reset(&used)?;
        self.resume()
    }
}
