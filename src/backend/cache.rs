//! The write cache of the device: whether a write may complete before it is
//! durable.
//!
//! The guest chooses by one byte of the configuration space and relies on its
//! choice from then on. A back-end that comes later has to keep to it without
//! being told: no front-end repeats the byte when it connects again, and some show
//! the guest a copy of their own. So a choice is never taken back here, not by a
//! reset either; it is left in the inflight region for a successor; and
//! where nobody knows what the guest believes, the cache is off, which is slow at
//! worst.
//!
//! | at the start of a vring, with CONFIG_WCE in force | cache |
//! |---|---|
//! | the region says off | off |
//! | the region says on, nothing else was said on this connection | on |
//! | no word in the region, the byte was written on this connection | as written |
//! | no word, the byte was read before the first start, the ring is new | as read |
//! | none of these | off |
// spec: virtio 1.2, "Block Device", "Device Initialization" and "Device Operation":
// writeback. "The cache mode after reset can be either writeback or writethrough."

use super::answer::Reply;
use super::setup::Pending;
use super::{Backend, Event, FrontendFault, Output};
use crate::blk::{DiskOp, ReqId, WRITEBACK_OFFSET};
use crate::inflight::{RegionShape, load_choice, store_choice};
use crate::time::Instant;
use crate::wire::ConfigPayload;
use crate::wire::features::virtio;
use vm_memory::GuestMemory;

/// How it is known that the guest believes what is in force here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    /// It is not.
    Unknown,
    /// The front-end has read the byte on this connection, before it started
    /// anything: what it shows to a guest that begins is what we answered.
    Read,
    /// It has written the byte on this connection, or the region says it.
    Told,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct WriteCache {
    on: bool,
    basis: Basis,
    /// A vring has run and stopped on this connection: a ring that is in use
    /// already was used here.
    used: bool,
    /// The region is still to hear that the cache was turned on.
    record_due: bool,
    /// It is off, and a flush has been done here since the last volatile write,
    /// be it one of ours or of a predecessor.
    settled: bool,
}

impl Default for WriteCache {
    fn default() -> Self {
        Self { on: true, basis: Basis::Unknown, used: false, record_due: false, settled: false }
    }
}

impl WriteCache {
    /// The guest is to believe that writes may wait in a cache.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Another back-end has handed its guest's choice over.
    pub fn take_over(&mut self, on: bool) {
        self.set(on, Basis::Told);
    }

    /// A vring that ran has stopped.
    pub fn vring_stopped(&mut self) {
        self.used = true;
    }
}

/// Writes that are volatile have to be made durable, because the guest will
/// flush no more.
#[derive(Debug)]
pub(super) struct Settling {
    /// What makes them so, once nothing is in flight any more.
    flush: Option<ReqId>,
    /// It could not.
    pub failed: bool,
    reply: Reply,
}

impl Settling {
    pub fn is_flush(&self, id: ReqId) -> bool {
        self.flush == Some(id)
    }
}

impl<M: GuestMemory> Backend<M> {
    /// The byte as the front-end reads it.
    // spec: virtio 1.2, "Block Device", "Device Requirements: Device
    // Initialization": 0 if the guest cannot flush.
    pub(super) fn writeback_shown(&self) -> bool {
        let has = |bit| self.session.features & bit != 0;
        self.cache.on && (has(virtio::BLK_FLUSH) || !has(virtio::BLK_CONFIG_WCE))
    }

    /// The front-end has read this part of the configuration space.
    pub(super) fn cache_read(&mut self, read: &ConfigPayload) {
        let byte = WRITEBACK_OFFSET as usize;
        let start = read.offset as usize;
        let covered = (start..start + read.data.len()).contains(&byte);
        let begins = self.running_vring().is_none() && !self.cache.used;
        if covered && begins && self.cache.basis == Basis::Unknown {
            self.cache.basis = Basis::Read;
        }
    }

    /// The write cache byte is the only field a guest may write. True if the
    /// answer comes later.
    ///
    /// Writes that are in flight, or have completed, when the cache is turned
    /// off are promised nothing by the document. But Linux flushes no more from
    /// then on, not for them either, and so they are made durable before the
    /// answer.
    pub(super) fn set_config(
        &mut self,
        config: &ConfigPayload,
        reply: Reply,
    ) -> Result<bool, FrontendFault> {
        let (WRITEBACK_OFFSET, &[value @ (0 | 1)]) = (config.offset, &config.data[..]) else {
            return Err(FrontendFault::Config {
                message: "SET_CONFIG",
                offset: config.offset,
                len: config.data.len() as u32,
                expected: "the write cache byte at offset 32, 0 or 1",
            });
        };
        let (on, was_on) = (value == 1, self.cache.on);
        self.cache.on = on;
        self.cache.basis = Basis::Told;
        if on != was_on {
            self.event(Event::WriteCache { on, known: true });
        }
        // The region may say off too early, but not on: a front-end that never
        // gets the answer goes on with what was before.
        self.cache.record_due = on;
        if on {
            self.cache.settled = false;
            return Ok(false);
        }
        self.record_cache(false);
        // A guest writes the byte while its vrings run, and the store is ours then.
        let means =
            self.session.features & virtio::BLK_CONFIG_WCE != 0 && self.running_vring().is_some();
        let settles = means && !self.cache.settled && !self.config.read_only;
        if settles {
            self.pending = Pending::Settle(Settling { flush: None, failed: false, reply });
        }
        Ok(settles)
    }

    /// Something has happened since the cache was turned on. So the answer was
    /// sent by now, and the front-end can read it even if this back-end is gone.
    pub(super) fn keep_cache_on(&mut self) {
        if core::mem::take(&mut self.cache.record_due) {
            self.record_cache(true);
        }
    }

    fn record_cache(&mut self, on: bool) {
        if let Some((memory, shape)) = self.region_of_choice()
            && load_choice(memory, &shape) != Some(on)
        {
            // A region that cannot be written is found out by the next request.
            let _ = store_choice(memory, &shape, on);
        }
    }

    /// The region, by the kind of its vrings: where the entries end depends on it.
    fn region_of_choice(&self) -> Option<(&M, RegionShape)> {
        let i = self.inflight.as_ref()?;
        Some((&i.memory, i.shape.taken_for(self.session.ring_format()).ok()?))
    }

    /// A vring is about to run, at the place where a new ring begins or elsewhere:
    /// decide by the table above.
    pub(super) fn start_cache(&mut self, is_new: bool) {
        if self.session.features & virtio::BLK_CONFIG_WCE == 0 {
            return;
        }
        let recorded = self.region_of_choice().and_then(|(m, shape)| load_choice(m, &shape));
        let before = self.cache;
        match (recorded, before.basis) {
            (Some(false), _) => self.cache.set(false, Basis::Told),
            (Some(true), Basis::Unknown) => self.cache.set(true, Basis::Told),
            (Some(true), _) | (None, Basis::Told) => {}
            (None, Basis::Read) if before.used || is_new => {}
            (None, _) => self.cache.set(false, Basis::Unknown),
        }
        let WriteCache { on, basis, .. } = self.cache;
        if on != before.on {
            self.event(Event::WriteCache { on, known: basis != Basis::Unknown });
        }
        if basis != Basis::Unknown && !self.cache.record_due {
            self.record_cache(on);
        }
    }

    /// First everything in flight, then a flush, then the answer. Nothing is
    /// fetched meanwhile, so that is as long as one turn of the disk.
    pub(super) fn go_on_settling(&mut self, now: Instant, settling: Settling) {
        let Settling { flush, failed, reply } = settling;
        // An end leaves the question open: the region says off, and the guest, who
        // gets no answer, goes on flushing.
        if !self.requests.is_empty() || self.shutdown && flush.is_none() {
            self.pending = Pending::Settle(settling);
            return;
        }
        if flush.is_none() {
            let id = self.requests.insert_own(DiskOp::Flush);
            self.out.push_back(Output::Disk(id));
            self.pending = Pending::Settle(Settling { flush: Some(id), failed, reply });
            return;
        }
        self.cache.settled = !failed;
        if failed {
            self.answer_failure(reply);
        } else {
            self.answer_ok(reply);
        }
        for vring in 0..self.config.num_queues {
            self.fetch(now, vring);
        }
    }
}

impl WriteCache {
    fn set(&mut self, on: bool, basis: Basis) {
        (self.on, self.basis) = (on, basis);
    }
}
