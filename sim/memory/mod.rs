//! Memory that guest, back-end, disk and front-end share, with every store of
//! the back-end on record.

mod journal;
mod log;
mod view;

use journal::{Journal, Writer};
pub use journal::{PAGE, Race, Store};
pub use log::{LogSlice, StoreLog};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
pub use view::Mem;
use view::Span;
use vm_memory::{MmapRegion, VolatileMemory, mmap::MmapRegionBuilder};

/// The stores of the step that is open or has ended.
#[derive(Clone)]
pub struct Stores(Rc<RefCell<Journal>>);

impl Stores {
    /// Look at them, in order.
    pub fn with<T>(&self, look: impl FnOnce(&mut dyn Iterator<Item = (&Store, &[u8])>) -> T) -> T {
        let journal = self.0.borrow();
        look(&mut journal.stores().iter().map(|store| (store, journal.bytes(store))))
    }
}

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
    /// Regions that are not handed out, by size.
    free: BTreeMap<usize, Vec<RegionId>>,
}

impl Drop for Arena {
    /// Mappings and journal know each other.
    fn drop(&mut self) {
        self.journal.borrow_mut().part();
    }
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
        Self { journal: Rc::default(), regions: Vec::new(), free: BTreeMap::new() }
    }

    /// Forget the run: every region is zero and free again.
    pub fn reset(&mut self) {
        let mut journal = self.journal.borrow_mut();
        journal.set_writer(Writer::Others);
        journal.set_race(None);
        // A run may have ended in the middle of a step; what that has stored
        // has to be made zero again as well.
        journal.commit();
        drop(journal);
        // The last come first, so that a run finds its regions in one order.
        for (id, region) in self.regions.iter_mut().enumerate().rev() {
            if std::mem::take(&mut region.used) {
                self.free.entry(region.mapping.size()).or_default().push(id as RegionId);
            }
        }
    }

    /// A zeroed region of this many bytes.
    pub fn region(&mut self, len: u64) -> RegionId {
        let size = usize::try_from(len).expect("regions of the simulator are small");
        let free = self.free.get_mut(&size).and_then(Vec::pop);
        let id = free.unwrap_or_else(|| self.map(size));
        self.regions[id as usize].used = true;
        self.zero(id);
        id
    }

    // The arena lives in one thread; the `Arc` is what vm-memory asks for.
    #[allow(clippy::arc_with_non_send_sync)]
    fn map(&mut self, size: usize) -> RegionId {
        let id = RegionId::try_from(self.regions.len()).expect("a handful of regions");
        let log = StoreLog::new(id, Rc::clone(&self.journal));
        let mapping = MmapRegionBuilder::new_with_bitmap(size, log)
            .with_mmap_prot(3) // readable and writable
            .build()
            .expect("anonymous memory for the simulator");
        let mapping = Arc::new(mapping);
        self.journal.borrow_mut().add_region(Arc::clone(&mapping));
        self.regions.push(Region { mapping, used: false });
        id
    }

    fn zero(&self, id: RegionId) {
        let wiped = self.journal.borrow_mut().wipe(id);
        let size = self.regions[id as usize].mapping.size();
        self.as_nobody(|| {
            for page in wiped {
                let len = PAGE.min(size - page * PAGE);
                self.slice(id, page * PAGE, len).copy_from(&[0u8; PAGE][..len]);
            }
        });
    }

    /// Store to memory without the journal's knowledge, which has it already.
    fn as_nobody(&self, act: impl FnOnce()) {
        self.journal.borrow_mut().set_writer(Writer::Nobody);
        act();
        self.journal.borrow_mut().set_writer(Writer::Others);
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
    pub fn view(&self, regions: &[(u64, RegionId)]) -> Mem {
        let span = |(addr, id): &(u64, RegionId)| {
            Span::new(*addr, Arc::clone(&self.regions[*id as usize].mapping))
        };
        Mem::new(regions.iter().map(span))
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
        debug_assert_eq!(self.step_len(), 0, "the last step was not settled");
        self.journal.borrow_mut().set_writer(Writer::BackEnd);
    }

    /// From now on, stores are the disk's, or somebody else's again.
    pub fn set_disk_writes(&self, on: bool) {
        let writer = if on { Writer::Disk } else { Writer::Others };
        self.journal.borrow_mut().set_writer(writer);
    }

    /// Pages of a region that were stored to since the last call, by anybody
    /// but back-ends and disk.
    pub fn take_dirty(&self, id: RegionId) -> Vec<u64> {
        self.journal.borrow_mut().take_dirty(id)
    }

    /// Put bytes into a region, as nobody in the world.
    pub fn put(&self, id: RegionId, offset: u64, bytes: &[u8]) {
        self.write(id, offset, bytes);
    }

    /// Copy a page of one region to the same place in another.
    pub fn copy_page(&self, from: RegionId, to: RegionId, page: u64) {
        let page = page as usize;
        let changed = self.journal.borrow_mut().copy_page(from, to, page);
        if !changed {
            return;
        }
        let len = PAGE.min(self.len(from) as usize - page * PAGE);
        self.as_nobody(|| {
            let from = self.slice(from, page * PAGE, len);
            from.copy_to_volatile_slice(self.slice(to, page * PAGE, len));
        });
    }

    /// Look at each page of two regions of one size that was not copied from one
    /// to the other since it was written: its offset in bytes, and how it is in
    /// either.
    pub fn each_pair<E>(
        &self,
        regions: [RegionId; 2],
        mut look: impl FnMut(u64, [&[u8]; 2]) -> Result<(), E>,
    ) -> Result<(), E> {
        let journal = self.journal.borrow();
        (0..self.len(regions[0]).div_ceil(PAGE as u64)).try_for_each(|page| {
            match journal.pair(regions, page as usize) {
                Some(bytes) => look(page * PAGE as u64, bytes),
                None => Ok(()),
            }
        })
    }

    /// In the next step, let somebody else act between two stores.
    pub fn plan_race(&self, race: Race) {
        self.journal.borrow_mut().set_race(Some(race));
    }

    /// The stores of a step, for somebody who acts in the middle of it.
    pub fn stores(&self) -> Stores {
        Stores(Rc::clone(&self.journal))
    }

    /// The back-end has returned; its stores wait for `commit` or `crash`.
    pub fn end_step(&self) {
        let mut journal = self.journal.borrow_mut();
        journal.set_writer(Writer::Others);
        journal.set_race(None);
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

    /// All stores of the step have happened.
    pub fn commit(&self) {
        self.journal.borrow_mut().commit();
    }

    /// Only the first `keep` stores have happened, and the first `cut` bytes of
    /// the one after.
    pub fn crash(&self, keep: u64, cut: u32) {
        let (stores, data, settled) = self.journal.borrow_mut().take_unsettled();
        debug_assert!(keep >= settled, "what somebody has seen has happened");
        // Nobody sees these pages become dirty but a log.
        self.set_disk_writes(true);
        for store in &stores {
            let old = self.journal.borrow().shadow(store.region)[store.offset as usize..]
                [..store.len as usize]
                .to_vec();
            self.write(store.region, store.offset, &old);
        }
        for (index, store) in (settled..).zip(&stores) {
            let len = match index.cmp(&keep) {
                std::cmp::Ordering::Less => store.len,
                std::cmp::Ordering::Equal => cut.min(store.len),
                std::cmp::Ordering::Greater => 0,
            };
            let bytes = &data[store.data_range()][..len as usize];
            self.write(store.region, store.offset, bytes);
        }
        self.set_disk_writes(false);
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
            journal.shadow(id).chunks(PAGE).enumerate().find_map(|(page, shadow)| {
                let mut now = [0; PAGE];
                let now = &mut now[..shadow.len()];
                region.mapping.get_slice(page * PAGE, now.len()).ok()?.copy_to(now);
                if *now == *shadow {
                    return None;
                }
                let at = now.iter().zip(shadow).position(|(is, was)| is != was)?;
                Some((id, (page * PAGE + at) as u64))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use vm_memory::{Bytes, GuestAddress};

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
    fn memory_somebody_else_acts_before_or_after_a_store() {
        for before in [true, false] {
            let (arena, id, mem) = arena();
            mem.write_obj(7u8, GuestAddress(0x1000)).unwrap();
            let seen = Rc::new(RefCell::new(0u8));
            let (other, note) = (mem.clone(), Rc::clone(&seen));
            let act = Box::new(move || {
                *note.borrow_mut() = other.read_obj(GuestAddress(0x1000)).unwrap();
                other.write_obj(99u8, GuestAddress(0x1010)).unwrap();
            });
            arena.plan_race(Race { at: 1, before, act });
            arena.begin_step();
            mem.write_obj(8u8, GuestAddress(0x1000)).unwrap();
            mem.write_obj(9u8, GuestAddress(0x1000)).unwrap();
            let back: u8 = mem.read_obj(GuestAddress(0x1010)).unwrap();
            arena.end_step();
            assert_eq!((*seen.borrow(), back), (if before { 8 } else { 9 }, 99));
            // The other's store is none of the back-end's, and survives it.
            assert_eq!(arena.step_len(), 2);
            // The back-end can only die after what the other has seen.
            let (keep, left) = if before { (1, 8) } else { (2, 9) };
            arena.crash(keep, 0);
            assert_eq!((byte(&arena, id, 0), byte(&arena, id, 0x10)), (left, 99));
            assert_eq!(arena.unseen_store(), None);
        }
    }

    #[test]
    fn memory_is_zero_again_after_a_run_that_ended_in_a_step() {
        let (mut arena, id, mem) = arena();
        arena.begin_step();
        mem.write_slice(&[1; 100], GuestAddress(0x1800)).unwrap();
        arena.reset();
        assert_eq!(arena.region(4096), id);
        let mut got = [1; 100];
        mem.read_slice(&mut got, GuestAddress(0x1800)).unwrap();
        assert_eq!(got, [0; 100]);
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
