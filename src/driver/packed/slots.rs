//! Buffer ids, and what the driver knows of the chains that have them.

use crate::driver::error::DriverMisuse;

/// A chain in the ring, or a place for one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    /// Its buffer id, kept while the place is free.
    pub(super) id: u16,
    /// Entries of the ring it takes; 0 says that the place is free.
    pub(super) descs: u16,
    /// The device has been told of it.
    pub(super) published: bool,
    /// Bytes the device may write.
    pub(super) writable: u64,
}

/// As many places for chains as the ring has entries.
///
/// A buffer id means nothing to the device but that it comes back. So ids need
/// not be small, nor follow the order of descriptors; the one that was free
/// last is taken first.
// spec: virtio 1.2, "Element ID" (packed virtqueues)
#[derive(Clone, Debug)]
pub(super) struct Slots {
    chains: Vec<Chain>,
    free: Vec<u16>,
    /// Place by id, sorted.
    by_id: Vec<(u16, u16)>,
}

impl Slots {
    /// Places with these ids, all different; the last one is taken first.
    pub(super) fn new(ids: &[u16], size: u16) -> Result<Self, DriverMisuse> {
        let refused = DriverMisuse::BufferIds { size };
        if ids.len() != usize::from(size) {
            return Err(refused);
        }
        let mut by_id: Vec<(u16, u16)> = ids.iter().copied().zip(0..size).collect();
        by_id.sort_unstable();
        if by_id.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(refused);
        }
        let chains = ids.iter().map(|id| Chain { id: *id, ..Chain::default() }).collect();
        Ok(Self { chains, free: (0..size).collect(), by_id })
    }

    pub(super) fn all_free(&self) -> bool {
        self.free.len() == self.chains.len()
    }

    /// Id that the next chain gets. There is one for each entry of the ring,
    /// and a chain takes one at least, so a ring with room has one.
    pub(super) fn next_id(&self) -> Option<u16> {
        self.free.last().map(|slot| self.chains[usize::from(*slot)].id)
    }

    /// Give the next id to a chain.
    pub(super) fn take(&mut self, descs: u16, writable: u64) {
        if let Some(slot) = self.free.pop() {
            let chain = &mut self.chains[usize::from(slot)];
            *chain = Chain { id: chain.id, descs, published: false, writable };
        }
    }

    /// Give this id to a chain that the device has; `false` if that cannot be.
    pub(super) fn adopt(&mut self, id: u16, descs: u16, writable: u64) -> bool {
        let Some(slot) = self.slot_of(id) else { return false };
        let Some(at) = self.free.iter().position(|free| *free == slot) else { return false };
        self.free.remove(at);
        self.chains[usize::from(slot)] = Chain { id, descs, published: true, writable };
        descs > 0
    }

    /// The chain with this id, if one has it.
    pub(super) fn get(&self, id: u16) -> Option<&Chain> {
        let chain = &self.chains[usize::from(self.slot_of(id)?)];
        (chain.descs > 0).then_some(chain)
    }

    pub(super) fn publish(&mut self, id: u16) {
        if let Some(slot) = self.slot_of(id) {
            self.chains[usize::from(slot)].published = true;
        }
    }

    pub(super) fn release(&mut self, id: u16) {
        if let Some(slot) = self.slot_of(id) {
            self.chains[usize::from(slot)] = Chain { id, ..Chain::default() };
            self.free.push(slot);
        }
    }

    /// Place of an id, less than the ring's size.
    pub(super) fn slot_of(&self, id: u16) -> Option<u16> {
        let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[at].1)
    }

    /// Id of a place.
    pub(super) fn id_of(&self, slot: u16) -> Option<u16> {
        self.chains.get(usize::from(slot)).map(|chain| chain.id)
    }

    pub(super) fn ids(&self) -> Vec<u16> {
        self.chains.iter().map(|chain| chain.id).collect()
    }
}
