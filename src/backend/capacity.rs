//! The size of the store, and what a front-end believes about it.
//!
//! A request is held against the size of the moment it is fetched at. That the
//! front-end's is another is said as soon as a vring runs: while none does, a
//! back-end says nothing, and front-ends have been seen to drop what they hear
//! before they have started their device. A front-end that comes back does not
//! read the configuration again either, so whoever has not read it on this
//! connection is told, and compares for itself.
// spec: vhost-user, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, and "Ring states"

use super::channel::Asked;
use super::{Backend, Event};
use crate::wire::features::protocol;
use crate::wire::{BackendRequest, ConfigPayload};
use vm_memory::GuestMemory;

/// Bytes of the configuration space that say how large the device is.
// spec: virtio 1.2, "Block Device", struct virtio_blk_config: capacity
const CAPACITY_FIELD: u32 = 8;

impl<M: GuestMemory> Backend<M> {
    /// Size of the device in bytes, as the guest is told.
    pub fn capacity(&self) -> u64 {
        self.config.capacity
    }

    /// The store has another size now; half a block at its end is no part of the
    /// device. A zoned device stays as it is: somebody would have to say in what
    /// state the zones at its end are.
    pub(super) fn set_capacity(&mut self, bytes: u64) {
        if self.config.zoned.is_some() {
            return;
        }
        let from = self.config.capacity;
        let to = bytes - bytes % u64::from(self.config.logical_block_size);
        if to != from {
            self.config.capacity = to;
            self.change_due = true;
            self.event(Event::CapacityChanged { from, to });
        }
    }

    /// The front-end has read this much of the configuration space.
    pub(super) fn config_read(&mut self, read: &ConfigPayload) {
        if read.offset == 0 && read.data.len() >= CAPACITY_FIELD as usize {
            self.change_due = false;
        }
    }

    /// Say that the configuration is to be read again, if that is due and can be
    /// said. One notice at a time: the answer to one tells that it was read, and
    /// what has changed since then follows.
    pub(super) fn tell_change(&mut self) {
        if self.change_due
            && self.session.protocol & protocol::CONFIG != 0
            && self.has_channel()
            && self.running_vring().is_some()
            && !self.is_due(Asked::Change)
        {
            self.change_due = false;
            self.ask(BackendRequest::ConfigChangeMsg, Asked::Change);
        }
    }
}
