//! The device status, which the guest's driver writes and the front-end passes
//! on.
//!
//! It is kept for the front-end and nothing depends on it. In particular a
//! status of 0 resets nothing: QEMU sends it after every stop, also when the
//! machine is only paused, and does not repeat memory, descriptors or protocol
//! features afterwards. What resets the device is RESET_DEVICE.
// spec: vhost-user, VHOST_USER_SET_STATUS

use super::{Backend, FrontendFault};
use vm_memory::GuestMemory;

/// The device is in a state that only a reset leads out of.
// spec: virtio 1.2, "Device Status Field"
const DEVICE_NEEDS_RESET: u8 = 0x40;

impl<M: GuestMemory> Backend<M> {
    pub(super) fn set_status(&mut self, got: u64) -> Result<(), FrontendFault> {
        let status = u8::try_from(got).map_err(|_| FrontendFault::Status { got })?;
        // This bit is the device's to set, and front-ends write back what they
        // have read.
        self.session.status = status & !DEVICE_NEEDS_RESET;
        Ok(())
    }

    /// What was set, and whether a guest has broken one of its rings.
    pub(super) fn status(&self) -> u64 {
        let broken = self.vrings.iter().any(|v| v.run.as_ref().is_some_and(|run| run.broken));
        let needs_reset = if broken { DEVICE_NEEDS_RESET } else { 0 };
        u64::from(self.session.status | needs_reset)
    }
}
