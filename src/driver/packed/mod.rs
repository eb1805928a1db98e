//! The driver's side of a packed ring.

mod attach;
mod desc;
mod notify;
mod position;
mod slots;

use super::access::zero;
use super::chain::{Buffer, Indirect, RingFeatures, Used, check_buffers};
use super::error::{DeviceFault, DriverError, DriverMisuse};
use super::layout::{EVENT_SIZE, RingLayout};
use crate::words::Words;
pub use attach::Outstanding;
use core::sync::atomic::Ordering;
use desc::{Desc, read_used, write_table, write_used};
pub use position::PackedPosition;
use slots::Slots;
use vm_memory::GuestMemory;

/// The driver's side of a packed ring: positions, buffer ids, outstanding chains.
///
/// Lengths of chains are private, so that nothing the device writes can lead
/// the driver astray; the ring itself forgets them when it is written over.
// spec: virtio 1.2, "Packed Virtqueues"
#[derive(Clone, Debug)]
pub struct PackedDriver {
    layout: RingLayout,
    features: RingFeatures,
    slots: Slots,
    /// Ids of chains in the ring that the device does not know of yet.
    staged: Vec<u16>,
    /// The first descriptor of them, whose flags are not stored yet.
    first: Option<(u64, Desc)>,
    /// Entry of the next descriptor to write.
    next_avail: PackedPosition,
    /// Where the descriptors begin that the device does not know of.
    published: PackedPosition,
    /// Entry of the next used descriptor to reap.
    next_used: PackedPosition,
    /// `published` at the last decision about a kick, and entries since then.
    kick_from: PackedPosition,
    unkicked: u32,
    free_count: u16,
    /// Chains published and reaped, counted as the indexes of a split ring do.
    published_chains: u16,
    reaped_chains: u16,
    broken: Option<DeviceFault>,
}

impl PackedDriver {
    /// Zero the ring in memory and start it at entry 0 with both wrap counters
    /// 1. Calls are enabled.
    pub fn start<M: GuestMemory + ?Sized>(
        mem: &M,
        layout: RingLayout,
        features: RingFeatures,
    ) -> Result<Self, DriverError> {
        Self::start_at(mem, layout, features, PackedPosition::START)
    }

    /// The same, with the ring as other drivers and devices leave it that have
    /// used every entry up to `at` and whose chains have all come back.
    pub fn start_at<M: GuestMemory + ?Sized>(
        mem: &M,
        layout: RingLayout,
        features: RingFeatures,
        at: PackedPosition,
    ) -> Result<Self, DriverError> {
        let driver = Self::idle(layout, features, at)?;
        driver.clear(mem)?;
        // Entries behind the position were used in this round, the others in
        // the round before it.
        for index in 0..layout.size {
            let wrap = if index < at.index { at.wrap } else { !at.wrap };
            write_used(mem, layout.packed_entry(index), wrap)?;
        }
        Ok(driver)
    }

    /// Forget every chain, zero the ring in memory and start over at entry 0,
    /// as after a device reset. Calls are enabled; buffer ids are kept.
    pub fn reset<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<(), DriverError> {
        self.clear(mem)?;
        let ids = self.slots.ids();
        *self = Self::idle(self.layout, self.features, PackedPosition::START)?;
        self.slots = Slots::new(&ids, self.layout.size)?;
        Ok(())
    }

    /// Name buffers by these ids, one for each entry of the ring and all
    /// different; the last is taken first. Without this call they are 0 to
    /// size - 1. Legal while no chain is in the ring.
    pub fn use_ids(&mut self, ids: &[u16]) -> Result<(), DriverError> {
        let slots = Slots::new(ids, self.layout.size)?;
        if !self.slots.all_free() {
            return Err(DriverMisuse::BufferIds { size: self.layout.size }.into());
        }
        self.slots = slots;
        Ok(())
    }

    /// Put a chain into the ring, without telling the device: that is
    /// [`PackedDriver::publish`]. Returns the buffer id that the chain comes
    /// back with.
    ///
    /// With `indirect` all buffers go into a table; such a chain may be longer
    /// than the ring.
    // spec: virtio 1.2, "Supplying Buffers to The Device" of "Packed Virtqueues"
    pub fn add_chain<W: Words + ?Sized>(
        &mut self,
        mem: &W,
        buffers: &[Buffer],
        indirect: Option<Indirect>,
    ) -> Result<u16, DriverError> {
        self.check_broken()?;
        let writable = check_buffers(buffers)?;
        self.check_indirect(indirect)?;
        let needed = if indirect.is_some() { 1 } else { buffers.len() };
        let full = DriverError::RingFull {
            needed: u32::try_from(needed).unwrap_or(u32::MAX),
            free: self.free_count,
        };
        let descs = u16::try_from(needed).ok().filter(|n| *n <= self.free_count).ok_or(full)?;
        let id = self.slots.next_id().ok_or(full)?;
        // No state of ours changes before the last store that can fail.
        let mut first = self.first;
        if let Some(Indirect { table, .. }) = indirect {
            write_table(mem, table, buffers)?;
            let desc = Desc::table(table, buffers.len(), id, self.next_avail);
            self.put(mem, self.next_avail, desc, &mut first)?;
        } else {
            for (i, buffer) in (0..descs).zip(buffers) {
                let at = self.next_avail.advance(i, self.layout.size);
                let last = i + 1 == descs;
                // The id stands in the last descriptor; a device that looks for
                // it in another one finds a wrong one.
                // spec: virtio 1.2, "Element ID" (packed virtqueues)
                let said = if last { id } else { !id };
                let desc = Desc::buffer(buffer, said, !last, at);
                self.put(mem, at, desc, &mut first)?;
            }
        }
        self.first = first;
        self.next_avail = self.next_avail.advance(descs, self.layout.size);
        self.free_count -= descs;
        self.slots.take(descs, writable);
        self.staged.push(id);
        Ok(id)
    }

    /// Tell the device of every chain added since the last call by one store,
    /// that of the first descriptor's flags. Returns how many chains they are;
    /// 0 stores nothing.
    pub fn publish<W: Words + ?Sized>(&mut self, mem: &W) -> Result<u16, DriverError> {
        self.check_broken()?;
        let Some((entry, desc)) = self.first else {
            return Ok(0);
        };
        // A device reads descriptors one after the other, so none behind this
        // one is seen before it; and it must see them all then.
        desc.write_flags(mem, entry, Ordering::Release)?;
        self.first = None;
        self.unkicked += self.published.distance(self.next_avail, self.layout.size);
        self.published = self.next_avail;
        let count = self.staged.len() as u16;
        self.published_chains = self.published_chains.wrapping_add(count);
        for id in self.staged.drain(..) {
            self.slots.publish(id);
        }
        Ok(count)
    }

    /// The next chain that the device has returned, `None` when there is none.
    /// After a [`DeviceFault`] every call reports it again until the reset.
    pub fn reap<W: Words + ?Sized>(&mut self, mem: &W) -> Result<Option<Used>, DriverError> {
        self.check_broken()?;
        let PackedPosition { index, wrap } = self.next_used;
        let Some((id, len)) = read_used(mem, self.layout.packed_entry(index), wrap)? else {
            return Ok(None);
        };
        let Some(chain) = self.slots.get(id).copied().filter(|chain| chain.published) else {
            return Err(self.break_ring(DeviceFault::NotAHead { index, id: u32::from(id) }));
        };
        if u64::from(len) > chain.writable {
            let writable = chain.writable;
            return Err(self.break_ring(DeviceFault::LenTooLong { head: id, len, writable }));
        }
        // The device skips as many entries as the chain had.
        self.next_used = self.next_used.advance(chain.descs, self.layout.size);
        self.free_count += chain.descs;
        self.slots.release(id);
        self.reaped_chains = self.reaped_chains.wrapping_add(1);
        Ok(Some(Used { head: id, len }))
    }

    /// Where the ring lies.
    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// Entry behind the last descriptor that the device has been told of.
    pub fn avail_position(&self) -> PackedPosition {
        self.published
    }

    /// Entry of the next used descriptor to reap.
    pub fn used_position(&self) -> PackedPosition {
        self.next_used
    }

    /// Chains published so far, modulo 65536.
    pub fn published_chains(&self) -> u16 {
        self.published_chains
    }

    /// Chains reaped so far, modulo 65536.
    pub fn reaped_chains(&self) -> u16 {
        self.reaped_chains
    }

    /// Chains that the device holds or whose used descriptors were not reaped.
    pub fn outstanding(&self) -> u16 {
        self.published_chains.wrapping_sub(self.reaped_chains)
    }

    /// Entries of the ring that are free.
    pub fn free_descriptors(&self) -> u16 {
        self.free_count
    }

    /// What the device did wrong, if it did.
    pub fn broken(&self) -> Option<DeviceFault> {
        self.broken
    }

    pub(super) fn break_ring(&mut self, fault: DeviceFault) -> DriverError {
        self.broken = Some(fault);
        fault.into()
    }

    /// A small number for a buffer id: less than the ring's size, and no other
    /// id's. `None` for an id that this driver does not use.
    pub(super) fn slot_of(&self, id: u16) -> Option<u16> {
        self.slots.slot_of(id)
    }

    pub(super) fn id_of(&self, slot: u16) -> Option<u16> {
        self.slots.id_of(slot)
    }

    fn idle(
        layout: RingLayout,
        features: RingFeatures,
        at: PackedPosition,
    ) -> Result<Self, DriverError> {
        layout.check_packed()?;
        let size = layout.size;
        if at.index >= size {
            return Err(DriverMisuse::Position { index: at.index, size }.into());
        }
        let ids: Vec<u16> = (0..size).collect();
        Ok(Self {
            layout,
            features,
            slots: Slots::new(&ids, size)?,
            staged: Vec::with_capacity(usize::from(size)),
            first: None,
            next_avail: at,
            published: at,
            next_used: at,
            kick_from: at,
            unkicked: 0,
            free_count: size,
            published_chains: 0,
            reaped_chains: 0,
            broken: None,
        })
    }

    fn clear<M: GuestMemory + ?Sized>(&self, mem: &M) -> Result<(), DriverError> {
        let RingLayout { size, desc, avail, used } = self.layout;
        zero(mem, desc, RingLayout::desc_bytes(size))?;
        zero(mem, avail, EVENT_SIZE)?;
        zero(mem, used, EVENT_SIZE)
    }

    /// Write a descriptor; of the first one since the last publication without
    /// its flags, so that the device does not see it yet.
    fn put<W: Words + ?Sized>(
        &self,
        mem: &W,
        at: PackedPosition,
        desc: Desc,
        first: &mut Option<(u64, Desc)>,
    ) -> Result<(), DriverError> {
        let entry = self.layout.packed_entry(at.index);
        desc.write_body(mem, entry)?;
        if first.is_none() {
            *first = Some((entry, desc));
            return Ok(());
        }
        desc.write_flags(mem, entry, Ordering::Relaxed)
    }

    fn check_broken(&self) -> Result<(), DriverError> {
        self.broken.map_or(Ok(()), |fault| Err(fault.into()))
    }

    fn check_indirect(&self, indirect: Option<Indirect>) -> Result<(), DriverMisuse> {
        match indirect {
            Some(_) if !self.features.indirect => Err(DriverMisuse::IndirectNotNegotiated),
            Some(Indirect { direct, .. }) if direct > 0 => {
                Err(DriverMisuse::DirectBeforeTable { direct })
            }
            _ => Ok(()),
        }
    }
}
