//! Memory that guest, back-end, disk and front-end share, with every store of
//! the back-end on record.

mod journal;
mod log;

use journal::Journal;
pub use journal::Store;
pub use log::{LogSlice, StoreLog};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use vm_memory::{
    GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileMemory,
    mmap::MmapRegionBuilder,
};

/// What the core sees as guest memory and as an inflight region.
pub type Mem = GuestMemoryMmap<StoreLog>;

/// One region of the arena.
struct Region {
    mapping: Arc<MmapRegion<StoreLog>>,
    /// Handed out in this run.
    used: bool,
}

/// All shared memory of one world. Mapping memory costs system calls, so an
/// arena is made once and reset for the next run.
pub struct Arena {
    journal: Rc<RefCell<Journal>>,
    regions: Vec<Region>,
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

/// Number of a region in its arena.
pub type RegionId = u32;

impl Arena {
    /// No memory yet.
    pub fn new() -> Self {
        Self { journal: Rc::default(), regions: Vec::new() }
    }

    /// Forget the run: every region is zero and free again.
    pub fn reset(&mut self) {
        let mut journal = self.journal.borrow_mut();
        journal.disarm();
        journal.take();
        drop(journal);
        for region in &mut self.regions {
            region.used = false;
        }
    }

    /// A zeroed region of this many bytes.
    pub fn region(&mut self, len: u64) -> RegionId {
        let size = usize::try_from(len).expect("regions of the simulator are small");
        let free = self.regions.iter().position(|r| !r.used && r.mapping.size() == size);
        let index = free.unwrap_or_else(|| self.map(size));
        self.regions[index].used = true;
        let id = index as RegionId;
        self.zero(id);
        id
    }

    // The arena lives in one thread; the `Arc` is what vm-memory asks for.
    #[allow(clippy::arc_with_non_send_sync)]
    fn map(&mut self, size: usize) -> usize {
        let id = self.journal.borrow_mut().add_region(size);
        let log = StoreLog::new(id, Rc::clone(&self.journal));
        let mapping = MmapRegionBuilder::new_with_bitmap(size, log)
            .with_mmap_prot(3) // readable and writable
            .build()
            .expect("anonymous memory for the simulator");
        let mapping = Arc::new(mapping);
        mapping.bitmap().attach(Arc::downgrade(&mapping));
        self.regions.push(Region { mapping, used: false });
        self.regions.len() - 1
    }

    fn zero(&self, id: RegionId) {
        let touched = self.journal.borrow().touched(id);
        if touched.start < touched.end {
            let zeroes = vec![0u8; touched.len()];
            self.slice(id, touched.start, zeroes.len()).copy_from(&zeroes);
        }
        self.journal.borrow_mut().untouch(id);
    }

    fn slice(
        &self,
        id: RegionId,
        offset: usize,
        len: usize,
    ) -> vm_memory::VolatileSlice<'_, LogSlice<'_>> {
        self.regions[id as usize].mapping.get_slice(offset, len).expect("inside the region")
    }

    /// A view of regions at guest addresses, in rising order.
    #[allow(clippy::arc_with_non_send_sync)]
    pub fn view(&self, regions: &[(u64, RegionId)]) -> Mem {
        let regions = regions
            .iter()
            .map(|(addr, id)| {
                let mapping = Arc::clone(&self.regions[*id as usize].mapping);
                let region = GuestRegionMmap::with_arc(mapping, GuestAddress(*addr))
                    .expect("guest addresses do not overflow");
                Arc::new(region)
            })
            .collect();
        Mem::from_arc_regions(regions).expect("regions in order and apart")
    }

    /// Bytes of a region.
    pub fn len(&self, id: RegionId) -> u64 {
        self.regions[id as usize].mapping.size() as u64
    }

    /// Whether there is no region at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The image between steps of the back-end. Only right while no step is
    /// open.
    pub fn with_image<T>(&self, id: RegionId, look: impl FnOnce(&[u8]) -> T) -> T {
        look(self.journal.borrow().shadow(id))
    }

    /// From now on, stores are the back-end's.
    pub fn begin_step(&self) {
        self.journal.borrow_mut().arm();
    }

    /// The back-end has returned; its stores wait for `commit` or `crash`.
    pub fn end_step(&self) {
        self.journal.borrow_mut().disarm();
    }

    /// Number of stores of the open or ended step.
    pub fn step_len(&self) -> u64 {
        self.journal.borrow().stores().len() as u64
    }

    /// Look at store `index` of the ended step and what it wrote.
    pub fn with_store<T>(&self, index: u64, look: impl FnOnce(&Store, &[u8]) -> T) -> T {
        let journal = self.journal.borrow();
        let store = &journal.stores()[index as usize];
        look(store, journal.bytes(store))
    }

    /// Look at every store of the ended step, in order.
    pub fn with_stores<T>(
        &self,
        look: impl FnOnce(&mut dyn Iterator<Item = (&Store, &[u8])>) -> T,
    ) -> T {
        let journal = self.journal.borrow();
        look(&mut journal.stores().iter().map(|store| (store, journal.bytes(store))))
    }

    /// All stores of the step have happened.
    pub fn commit(&self) {
        self.journal.borrow_mut().commit();
    }

    /// Only the first `keep` stores have happened, and the first `cut` bytes of
    /// the one after.
    pub fn crash(&self, keep: u64, cut: u32) {
        let (stores, data) = self.journal.borrow_mut().take();
        for store in &stores {
            let old = self.journal.borrow().shadow(store.region)[store.offset as usize..]
                [..store.len as usize]
                .to_vec();
            self.write(store.region, store.offset, &old);
        }
        for (index, store) in (0u64..).zip(&stores) {
            let len = match index.cmp(&keep) {
                std::cmp::Ordering::Less => store.len,
                std::cmp::Ordering::Equal => cut.min(store.len),
                std::cmp::Ordering::Greater => 0,
            };
            let bytes = &data[store.data_range()][..len as usize];
            self.write(store.region, store.offset, bytes);
        }
    }

    fn write(&self, id: RegionId, offset: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.slice(id, offset as usize, bytes.len()).copy_from(bytes);
        }
    }

    /// First byte that differs between a region and what the journal has seen
    /// of it: somebody stored without telling.
    pub fn unseen_store(&self) -> Option<(RegionId, u64)> {
        let journal = self.journal.borrow();
        (0u32..).zip(&self.regions).find_map(|(id, region)| {
            if !region.used {
                return None;
            }
            let mut now = vec![0u8; region.mapping.size()];
            region.mapping.get_slice(0, now.len()).ok()?.copy_to(&mut now);
            let shadow = journal.shadow(id);
            if now == shadow {
                return None;
            }
            let at = (0u64..).zip(now.iter().zip(shadow)).find(|(_, (a, b))| a != b)?;
            Some((id, at.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use vm_memory::Bytes;

    fn arena() -> (Arena, RegionId, Mem) {
        let mut arena = Arena::new();
        let id = arena.region(4096);
        let mem = arena.view(&[(0x1000, id)]);
        (arena, id, mem)
    }

    fn byte(arena: &Arena, id: RegionId, at: usize) -> u8 {
        arena.with_image(id, |b| b[at])
    }

    #[test]
    fn memory_crash_keeps_a_prefix_of_the_stores() {
        for keep in 0..=3u64 {
            let (arena, id, mem) = arena();
            mem.write_slice(&[9, 9, 9], GuestAddress(0x1000)).unwrap();
            arena.begin_step();
            mem.write_slice(&[1], GuestAddress(0x1000)).unwrap();
            mem.write_slice(&[2], GuestAddress(0x1001)).unwrap();
            mem.write_slice(&[3], GuestAddress(0x1000)).unwrap();
            arena.end_step();
            assert_eq!(arena.step_len(), 3);
            arena.crash(keep, 0);
            let want = [[9, 9, 9], [1, 9, 9], [1, 2, 9], [3, 2, 9]][keep as usize];
            let mut got = [0; 3];
            mem.read_slice(&mut got, GuestAddress(0x1000)).unwrap();
            assert_eq!(got, want);
            assert_eq!(arena.unseen_store(), None);
            assert_eq!(byte(&arena, id, 0), want[0]);
        }
    }

    #[test]
    fn memory_crash_may_cut_a_long_store() {
        let (arena, _, mem) = arena();
        arena.begin_step();
        mem.write_slice(&[7; 20], GuestAddress(0x1003)).unwrap();
        arena.end_step();
        assert!(!arena.with_store(0, |s, _| s.is_single()));
        arena.crash(0, 12);
        let mut got = [0; 20];
        mem.read_slice(&mut got, GuestAddress(0x1003)).unwrap();
        assert_eq!(got[..12], [7; 12]);
        assert_eq!(got[12..], [0; 8]);
    }

    #[test]
    fn memory_atomic_stores_and_other_regions_share_one_order() {
        let mut arena = Arena::new();
        let (a, b) = (arena.region(4096), arena.region(1088));
        let guest = arena.view(&[(0, a)]);
        let inflight = arena.view(&[(0, b)]);
        arena.begin_step();
        guest.store(5u16, GuestAddress(2), Ordering::Release).unwrap();
        inflight.write_obj(6u16, GuestAddress(14)).unwrap();
        guest.store(7u16, GuestAddress(2), Ordering::Release).unwrap();
        arena.end_step();
        let seen: Vec<(u32, u64, u32)> = (0..arena.step_len())
            .map(|i| arena.with_store(i, |s, _| (s.region, s.offset, s.len)))
            .collect();
        assert_eq!(seen, [(a, 2, 2), (b, 14, 2), (a, 2, 2)]);
        assert_eq!(arena.with_store(0, |_, bytes| bytes.to_vec()), [5, 0]);
        arena.commit();
        assert_eq!(byte(&arena, a, 2), 7);
    }

    #[test]
    fn memory_is_zero_again_after_a_reset() {
        let (mut arena, id, mem) = arena();
        mem.write_slice(&[1; 100], GuestAddress(0x1800)).unwrap();
        arena.reset();
        assert_eq!(arena.region(4096), id);
        let mut got = [1; 100];
        mem.read_slice(&mut got, GuestAddress(0x1800)).unwrap();
        assert_eq!(got, [0; 100]);
        assert_eq!(arena.unseen_store(), None);
    }
}
