//! The driver's side of a split ring.

mod attach;
mod in_order;
mod notify;

use super::access::{Desc, F_INDIRECT, load_u16, read, store_u16, write_desc, write_table, zero};
use super::chain::{Buffer, Indirect, RingFeatures, Used, check_buffers};
use super::error::{DeviceFault, DriverError, DriverMisuse};
use super::layout::{DESC_SIZE, RingLayout};
use crate::words::Words;
use core::sync::atomic::Ordering;
use in_order::InOrder;
use vm_memory::GuestMemory;

/// What the driver knows of the chain that starts at a descriptor.
#[derive(Clone, Copy, Debug, Default)]
struct Chain {
    /// Ring descriptors it takes; 0 says that no chain starts here.
    descs: u16,
    /// The device has been told of it.
    published: bool,
    /// Bytes the device may write.
    writable: u64,
}

/// The driver's side of a split ring: free list, indexes, outstanding chains.
///
/// The free list and the lengths of chains are private, so that nothing the
/// device writes can lead the driver astray.
// spec: virtio 1.2, "Split Virtqueues"
#[derive(Clone, Debug)]
pub struct SplitDriver {
    layout: RingLayout,
    features: RingFeatures,
    /// Successor of each descriptor, in its chain or in the free list.
    links: Vec<u16>,
    chains: Vec<Chain>,
    free_head: u16,
    free_count: u16,
    /// Heads in the available ring beyond `avail_idx`.
    staged: Vec<u16>,
    /// `avail.idx` as last stored.
    avail_idx: u16,
    /// `avail_idx` at the last decision about a kick.
    kick_idx: u16,
    /// Index of the next used element to reap.
    next_used: u16,
    /// Chains that the device holds.
    outstanding: u16,
    /// Chains by the order in which they have to come back, if that is agreed.
    in_order: Option<InOrder>,
    broken: Option<DeviceFault>,
}

impl SplitDriver {
    /// Zero the ring in memory and start it at index 0. Calls are enabled.
    pub fn start<M: GuestMemory + ?Sized>(
        mem: &M,
        layout: RingLayout,
        features: RingFeatures,
    ) -> Result<Self, DriverError> {
        let mut driver = Self::idle(layout, features)?;
        driver.reset(mem)?;
        Ok(driver)
    }

    /// Forget every chain, zero the ring in memory and start over at index 0,
    /// as after a device reset. Calls are enabled.
    pub fn reset<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<(), DriverError> {
        let RingLayout { size, desc, avail, used } = self.layout;
        zero(mem, desc, RingLayout::desc_bytes(size))?;
        zero(mem, avail, RingLayout::avail_bytes(size))?;
        zero(mem, used, RingLayout::used_bytes(size))?;
        let in_order = self.in_order.is_some();
        *self = Self::idle(self.layout, self.features)?;
        self.in_order = in_order.then(InOrder::default);
        Ok(())
    }

    /// Put a chain into the ring, without telling the device: that is
    /// [`SplitDriver::publish`]. Returns the head that the chain comes back with.
    ///
    /// With `indirect` the buffers after the first `indirect.direct` go into a
    /// table; such a chain may be longer than the ring.
    // spec: virtio 1.2, "Placing Buffers Into The Descriptor Table"
    pub fn add_chain<M: GuestMemory + ?Sized>(
        &mut self,
        mem: &M,
        buffers: &[Buffer],
        indirect: Option<Indirect>,
    ) -> Result<u16, DriverError> {
        self.check_broken()?;
        let writable = check_buffers(buffers)?;
        let (direct, table) = self.cut(buffers, indirect)?;
        let descs = direct.len() as u64 + u64::from(table.is_some());
        if descs > u64::from(self.free_count) {
            return Err(DriverError::RingFull {
                needed: u32::try_from(descs).unwrap_or(u32::MAX),
                free: self.free_count,
            });
        }
        // No state of ours changes before the last store that can fail.
        if let Some((addr, rest)) = table {
            write_table(mem, addr, rest)?;
        }
        let head = self.free_head;
        let mut at = head;
        let mut left = descs;
        for buffer in direct {
            left -= 1;
            let next = (left > 0).then(|| self.links[usize::from(at)]);
            write_desc(mem, self.layout.desc_entry(at), Desc::of(buffer, next))?;
            at = self.links[usize::from(at)];
        }
        if let Some((addr, rest)) = table {
            let len = (rest.len() as u64 * DESC_SIZE) as u32;
            let entry = Desc { addr, len, flags: F_INDIRECT, next: 0 };
            write_desc(mem, self.layout.desc_entry(at), entry)?;
            at = self.links[usize::from(at)];
        }
        // spec: virtio 1.2, "Updating The Available Ring"
        let slot = self.avail_idx.wrapping_add(self.staged.len() as u16);
        let entry = self.layout.avail_entry(slot);
        store_u16(mem, entry, head, Ordering::Relaxed)?;

        self.free_head = at;
        self.free_count -= descs as u16;
        self.chains[usize::from(head)] = Chain { descs: descs as u16, published: false, writable };
        self.staged.push(head);
        Ok(head)
    }

    /// Tell the device of every chain added since the last call by one store of
    /// `avail.idx`. Returns how many they are; 0 stores nothing.
    pub fn publish<W: Words + ?Sized>(&mut self, mem: &W) -> Result<u16, DriverError> {
        self.check_broken()?;
        let count = self.staged.len() as u16;
        if count == 0 {
            return Ok(0);
        }
        let idx = self.avail_idx.wrapping_add(count);
        // The device must see descriptors and entries before the index.
        // spec: virtio 1.2, "Updating idx"
        store_u16(mem, self.layout.avail_idx(), idx, Ordering::Release)?;
        self.avail_idx = idx;
        self.outstanding += count;
        for head in self.staged.drain(..) {
            self.chains[usize::from(head)].published = true;
            if let Some(order) = &mut self.in_order {
                order.published(head);
            }
        }
        Ok(count)
    }

    /// The next chain that the device has returned, `None` when there is none.
    /// After a [`DeviceFault`] every call reports it again until the reset.
    // spec: virtio 1.2, "Receiving Used Buffers From The Device"
    pub fn reap<W: Words + ?Sized>(&mut self, mem: &W) -> Result<Option<Used>, DriverError> {
        self.check_broken()?;
        let used = load_u16(mem, self.layout.used_idx(), Ordering::Acquire)?;
        let index = self.next_used;
        let ready = used.wrapping_sub(index);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.outstanding {
            return Err(self.break_ring(DeviceFault::UsedAhead {
                used,
                reaped: index,
                outstanding: self.outstanding,
            }));
        }
        let skipped = self.in_order.as_mut().and_then(InOrder::skipped);
        let (id, len) = match skipped {
            Some(next) => (u32::from(next.head), next.len),
            None => {
                let mut element = [0; 8];
                read(mem, self.layout.used_entry(index), &mut element)?;
                let id = u32::from_le_bytes([element[0], element[1], element[2], element[3]]);
                let len = u32::from_le_bytes([element[4], element[5], element[6], element[7]]);
                match self.in_order.as_mut().map(|order| order.element(index, id, len, ready)) {
                    None => (id, Some(len)),
                    Some(Ok(next)) => (u32::from(next.head), next.len),
                    Some(Err(fault)) => return Err(self.break_ring(fault)),
                }
            }
        };
        let chain = u16::try_from(id)
            .ok()
            .and_then(|head| Some((head, *self.chains.get(usize::from(head))?)))
            .filter(|(_, chain)| chain.descs > 0 && chain.published);
        let Some((head, chain)) = chain else {
            return Err(self.break_ring(DeviceFault::NotAHead { index, id }));
        };
        // Of a buffer without an element all of it counts as written.
        let len = len.unwrap_or_else(|| u32::try_from(chain.writable).unwrap_or(u32::MAX));
        if u64::from(len) > chain.writable {
            return Err(self.break_ring(DeviceFault::LenTooLong {
                head,
                len,
                writable: chain.writable,
            }));
        }
        self.free_chain(head, chain.descs);
        self.outstanding -= 1;
        self.next_used = index.wrapping_add(1);
        Ok(Some(Used { head, len }))
    }

    /// Where the ring lies.
    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// `avail.idx` as last stored.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// Index of the next used element to reap.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Chains that the device holds or whose used elements were not reaped.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Ring descriptors that are free.
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

    fn idle(layout: RingLayout, features: RingFeatures) -> Result<Self, DriverError> {
        layout.check()?;
        let entries = usize::from(layout.size);
        let mut driver = Self {
            layout,
            features,
            links: vec![0; entries],
            chains: vec![Chain::default(); entries],
            free_head: 0,
            free_count: 0,
            staged: Vec::with_capacity(entries),
            avail_idx: 0,
            kick_idx: 0,
            next_used: 0,
            outstanding: 0,
            in_order: None,
            broken: None,
        };
        driver.relink_free(&vec![false; entries]);
        Ok(driver)
    }

    /// Chain every descriptor that is not taken into the free list.
    fn relink_free(&mut self, taken: &[bool]) {
        self.free_head = 0;
        self.free_count = 0;
        for index in (0..self.layout.size).rev() {
            if !taken[usize::from(index)] {
                self.links[usize::from(index)] = self.free_head;
                self.free_head = index;
                self.free_count += 1;
            }
        }
    }

    fn check_broken(&self) -> Result<(), DriverError> {
        self.broken.map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// Which buffers are ordinary descriptors, and which go to a table.
    #[expect(clippy::type_complexity)]
    fn cut<'a>(
        &self,
        buffers: &'a [Buffer],
        indirect: Option<Indirect>,
    ) -> Result<(&'a [Buffer], Option<(u64, &'a [Buffer])>), DriverError> {
        let Some(Indirect { table, direct }) = indirect else {
            return Ok((buffers, None));
        };
        if !self.features.indirect {
            return Err(DriverMisuse::IndirectNotNegotiated.into());
        }
        let empty = DriverMisuse::EmptyTable {
            direct,
            buffers: u32::try_from(buffers.len()).unwrap_or(u32::MAX),
        };
        let (first, rest) = buffers
            .split_at_checked(usize::from(direct))
            .filter(|(_, rest)| !rest.is_empty())
            .ok_or(empty)?;
        Ok((first, Some((table, rest))))
    }

    fn free_chain(&mut self, head: u16, descs: u16) {
        let mut tail = head;
        for _ in 1..descs {
            tail = self.links[usize::from(tail)];
        }
        self.links[usize::from(tail)] = self.free_head;
        self.free_head = head;
        self.free_count += descs;
        self.chains[usize::from(head)] = Chain::default();
    }
}
