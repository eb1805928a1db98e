//! VIRTIO_F_IN_ORDER as the driver sees it: buffers come back in the order they
//! were made available, and one used element may stand for a whole batch.
// spec: virtio 1.2, "In-order use of descriptors"

use super::SplitDriver;
use crate::driver::error::{DeviceFault, DriverMisuse};
use std::collections::VecDeque;

/// What is needed to make up for elements that the device has left out.
#[derive(Clone, Debug, Default)]
pub(super) struct InOrder {
    /// Heads that the device holds, as they were made available.
    published: VecDeque<u16>,
    /// Of a batch with one element: heads not reaped yet, and what the element
    /// says of the last of them.
    left: u16,
    last_len: u32,
}

/// The next chain that came back.
pub(super) struct Next {
    pub head: u16,
    /// Bytes written; `None` if the device has not said: all there are.
    pub len: Option<u32>,
}

impl InOrder {
    pub fn published(&mut self, head: u16) {
        self.published.push_back(head);
    }

    /// A chain of a batch whose only element was read before.
    pub fn skipped(&mut self) -> Option<Next> {
        if self.left == 0 {
            return None;
        }
        let head = self.published.pop_front()?;
        self.left -= 1;
        Some(Next { head, len: (self.left == 0).then_some(self.last_len) })
    }

    /// The chain that the element at `index` is about, or begins with, of
    /// `ready` chains that were used.
    pub fn element(
        &mut self,
        index: u16,
        id: u32,
        len: u32,
        ready: u16,
    ) -> Result<Next, DeviceFault> {
        let at = self.published.iter().position(|head| u32::from(*head) == id);
        let Some(at) = at else { return Err(DeviceFault::NotAHead { index, id }) };
        // `at` is less than the ring's size.
        if at as u16 >= ready {
            let expected = self.published[0];
            return Err(DeviceFault::OutOfOrder { index, id, expected });
        }
        self.left = at as u16 + 1;
        self.last_len = len;
        self.skipped().ok_or(DeviceFault::NotAHead { index, id })
    }
}

impl SplitDriver {
    /// IN_ORDER was agreed on: a device that uses buffers in another order has
    /// broken the ring. Legal while the device holds no chain.
    pub fn expect_in_order(&mut self) -> Result<(), DriverMisuse> {
        if self.outstanding > 0 || !self.staged.is_empty() {
            return Err(DriverMisuse::OrderUnknown { outstanding: self.outstanding });
        }
        self.in_order = Some(InOrder::default());
        Ok(())
    }
}
