//! The split ring, on virtio-queue.
//!
//! virtio-queue reads the available ring; publishing is ours, because a batch is
//! published by one store of the used index, which the inflight region's argument
//! rests on, and so are notifications, because they are model-checked.
// spec: virtio 1.2, "Split Virtqueues"

use super::GuestFault;
use crate::bugs::{self, Bug, Slip};
use crate::dirty::RingLog;
use crate::marks::{self, Mark};
use crate::words::Words;
use core::sync::atomic::Ordering;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u16 = 1;

/// Guest-physical addresses of the three parts of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table, or descriptor ring of a packed one: aligned to 16.
    pub desc: u64,
    /// Available ring: aligned to 2. Driver event area of a packed ring:
    /// aligned to 4.
    pub avail: u64,
    /// Used ring, or device event area of a packed ring: aligned to 4.
    pub used: u64,
}

impl RingAddresses {
    /// Bytes of descriptor table, available ring and used ring.
    pub fn sizes(size: u16) -> [u64; 3] {
        let n = u64::from(size);
        [16 * n, 6 + 2 * n, 6 + 8 * n]
    }

    /// Bytes of descriptor ring, driver and device event area of a packed ring.
    pub fn packed_sizes(size: u16) -> [u64; 3] {
        [16 * u64::from(size), 4, 4]
    }
}

/// A chain to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its name: the head of a split ring's chain, the slot of a packed one's.
    pub head: u16,
    /// Bytes written to its writable part.
    pub len: u32,
}

/// The device side of one split ring, while it runs.
#[derive(Debug)]
pub struct SplitRing {
    queue: Queue,
    /// Used index at the last decision to call or not.
    called_at: u16,
    /// A wish that a deliberate mistake has read too early.
    early_wish: Slip<u16>,
}

impl SplitRing {
    /// Take up a ring. `size` is a power of two up to 32768.
    ///
    /// The used index is read from guest memory, since whoever ran the ring
    /// before left it there; fetching starts at 0 until told otherwise.
    pub fn new<M: GuestMemory>(
        mem: &M,
        size: u16,
        at: RingAddresses,
        event_idx: bool,
    ) -> Result<Self, GuestFault> {
        let part = |part| move |_: Error| GuestFault::Ring { part };
        let mut queue = Queue::new(size).map_err(part("ring"))?;
        queue
            .try_set_desc_table_address(GuestAddress(at.desc))
            .map_err(part("descriptor table"))?;
        queue.try_set_avail_ring_address(GuestAddress(at.avail)).map_err(part("available ring"))?;
        queue.try_set_used_ring_address(GuestAddress(at.used)).map_err(part("used ring"))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(mem) {
            return Err(GuestFault::Ring { part: "ring" });
        }
        let used = queue.used_idx(mem, Ordering::Acquire).map_err(part("used ring"))?.0;
        let used = if bugs::on_when(Bug::UsedIdxNotReread, || used != 0) { 0 } else { used };
        queue.set_next_used(used);
        Ok(Self { queue, called_at: used, early_wish: Slip::default() })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Index of the next available entry to fetch.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Start fetching here.
    pub fn set_next_avail(&mut self, index: u16) {
        self.queue.set_next_avail(index);
    }

    /// The used index, as last published.
    pub fn used_idx(&self) -> u16 {
        self.queue.next_used()
    }

    /// The available index the guest has stored.
    pub fn avail_idx<W: Words + ?Sized>(&self, mem: &W) -> Result<u16, GuestFault> {
        let at = self.queue.avail_ring() + 2;
        mem.load_u16(at, Ordering::Acquire).ok_or(GuestFault::Ring { part: "available ring" })
    }

    /// Guest-physical address of the descriptor table.
    pub fn desc_table(&self) -> u64 {
        self.queue.desc_table()
    }

    /// F1: the next available head, `None` if there is none.
    #[inline]
    pub fn pop<M: GuestMemory>(&mut self, mem: &M) -> Result<Option<u16>, GuestFault> {
        let (next, size) = (self.queue.next_avail(), self.queue.size());
        let gone = GuestFault::Ring { part: "available ring" };
        let avail = self.avail_idx(mem)?;
        let ahead = avail.wrapping_sub(next);
        if ahead == 0 {
            return Ok(None);
        }
        let mut heads = self.queue.iter(mem).map_err(|e| match e {
            Error::InvalidAvailRingIndex => GuestFault::AvailJump { avail, next, ahead, size },
            _ => gone,
        })?;
        let head = heads.next().ok_or(gone)?.head_index();
        if head >= size {
            return Err(GuestFault::Head { head, size });
        }
        Ok(Some(head))
    }

    /// C4: publish a batch by one store of the used index.
    ///
    /// Elements are logged before the index that makes them count, the index
    /// right after it is stored: before, its page could be copied without it. A
    /// kill between the two is mended by whoever starts the ring next, who logs
    /// all of it.
    pub fn publish<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        batch: &[Used],
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        self.publish_marked(mem, batch, |at, len| {
            if let Some(log) = &log {
                log.mark(at, len);
            }
        })
    }

    /// The same; `mark` is told each offset in the used ring, and how many bytes
    /// were stored there.
    pub fn publish_marked<W: Words + ?Sized>(
        &mut self,
        mem: &W,
        batch: &[Used],
        mark: impl Fn(u64, u64),
    ) -> Result<(), GuestFault> {
        let gone = GuestFault::Ring { part: "used ring" };
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut index = self.queue.next_used();
        self.early_wish.keep(Bug::WishReadEarly, || wish(&self.queue, mem).ok());
        for used in batch {
            let beyond = bugs::on_when(Bug::SlotBeyondRing, || index / size % 2 == 1);
            let slot = index % size + if beyond { size } else { 0 };
            let at = ring + 4 + 8 * u64::from(slot);
            // struct virtq_used_elem { le32 id; le32 len; }
            let id = if bugs::on_when(Bug::UsedIdIsSlot, || slot != used.head) {
                slot
            } else {
                used.head
            };
            let len = used.len - u32::from(bugs::on(Bug::UsedLenWithoutStatus));
            let element = u64::from(id) | u64::from(len) << 32;
            mem.copy_in(at, &element.to_le_bytes()).ok_or(gone)?;
            mark(at - ring, 8);
            if !bugs::on_when(Bug::UsedIdxSaturates, || index == u16::MAX) {
                index = index.wrapping_add(1);
            }
        }
        let first = self.queue.next_used();
        marks::hit_when(Mark::BatchOfMany, || batch.len() > 1);
        marks::hit_when(Mark::BatchWrapsRing, || first % size + batch.len() as u16 > size);
        marks::hit_when(Mark::BatchWrapsIndex, || index < first);
        mem.store_u16(ring + 2, index, Ordering::Release).ok_or(gone)?;
        self.queue.set_next_used(index);
        mark(2, 2);
        Ok(())
    }

    /// Whether the guest wants to be called for what was published since this
    /// was last asked.
    // spec: virtio 1.2, "Used Buffer Notification Suppression"
    pub fn needs_call<W: Words + ?Sized>(&mut self, mem: &W) -> Result<bool, GuestFault> {
        let (old, new) = (self.called_at, self.queue.next_used());
        self.called_at = new;
        // The used index must be visible before the guest's wish is read, or
        // both sides may sleep.
        mem.fence();
        let wish = match self.early_wish.take() {
            Some(early) => early,
            None => wish(&self.queue, mem)?,
        };
        if by_event(&self.queue) {
            let event = wish;
            if bugs::on_when(Bug::EventWithoutWrap, || new < old) {
                return Ok(old <= event && event < new);
            }
            if bugs::on_when(Bug::EventOfLastOnly, || new.wrapping_sub(old) > 1) {
                return Ok(new.wrapping_sub(1) == event);
            }
            let wanted = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
            marks::hit(if wanted { Mark::CallByEvent } else { Mark::NoCallByEvent });
            return Ok(wanted);
        }
        let wanted = new != old && wish & NO_INTERRUPT == 0;
        marks::hit(if wanted { Mark::CallByFlag } else { Mark::NoCallByFlag });
        Ok(wanted)
    }

    /// Ask the guest for a kick when it makes more available. True if there is
    /// more already, in which case that kick may never come.
    pub fn enable_kicks<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        log: Option<RingLog<'_, L>>,
    ) -> Result<bool, GuestFault> {
        let events = self.queue.event_idx_enabled();
        if bugs::on_when(Bug::AvailEventNotMoved, || events)
            || bugs::on_when(Bug::KicksStayOff, || !events)
        {
            return Ok(self.avail_idx(mem)? != self.next_avail());
        }
        let more = self.ask_for_kicks(mem);
        self.log_wish(log);
        more
    }

    /// The same, without a dirty log.
    pub fn ask_for_kicks<W: Words + ?Sized>(&self, mem: &W) -> Result<bool, GuestFault> {
        let (ring, next) = (self.queue.used_ring(), self.next_avail());
        let (offset, wish) = match self.queue.event_idx_enabled() {
            true => (4 + 8 * u64::from(self.queue.size()), next),
            false => (0, 0),
        };
        let gone = GuestFault::Ring { part: "used ring" };
        mem.store_u16(ring + offset, wish, Ordering::Relaxed).ok_or(gone)?;
        // The wish must be visible before the ring is looked at once more.
        mem.fence();
        Ok(self.avail_idx(mem)? != next)
    }

    /// Tell the guest that kicks are not needed for now.
    pub fn disable_kicks<M: GuestMemory, L: GuestMemory>(
        &mut self,
        mem: &M,
        log: Option<RingLog<'_, L>>,
    ) -> Result<(), GuestFault> {
        let told = self.decline_kicks(mem);
        if !self.queue.event_idx_enabled() {
            self.log_wish(log);
        }
        told
    }

    /// The same, without a dirty log.
    pub fn decline_kicks<W: Words + ?Sized>(&self, mem: &W) -> Result<(), GuestFault> {
        // With indexes there is nothing to store: no index is passed.
        if self.queue.event_idx_enabled() {
            return Ok(());
        }
        let ring = self.queue.used_ring();
        mem.store_u16(ring, NO_NOTIFY, Ordering::Relaxed)
            .ok_or(GuestFault::Ring { part: "used ring" })
    }

    /// The wish for kicks is in the flags, or behind the elements.
    fn log_wish<M: GuestMemory>(&self, log: Option<RingLog<'_, M>>) {
        let Some(log) = log else { return };
        if bugs::on(Bug::WishNotLogged) {
            return;
        }
        if self.queue.event_idx_enabled() {
            log.mark(4 + 8 * u64::from(self.queue.size()), 2);
        } else {
            log.mark(0, 2);
        }
    }

    /// Everything in the used ring counts as written: whoever ran it before may
    /// have died between a store and its mark.
    pub fn log_all<M: GuestMemory>(&self, log: &RingLog<'_, M>) {
        log.mark(0, RingAddresses::sizes(self.queue.size())[2]);
    }
}

/// The guest says by an index, and not by a flag, when it wants to be called.
fn by_event(queue: &Queue) -> bool {
    queue.event_idx_enabled() || bugs::on(Bug::EventIdxPresumed)
}

/// `used_event` where indexes were agreed on, else the flags.
fn wish<W: Words + ?Sized>(queue: &Queue, mem: &W) -> Result<u16, GuestFault> {
    let offset = if by_event(queue) { 4 + 2 * u64::from(queue.size()) } else { 0 };
    mem.load_u16(queue.avail_ring() + offset, Ordering::Relaxed)
        .ok_or(GuestFault::Ring { part: "available ring" })
}
