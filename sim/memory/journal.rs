//! One order over the stores of the back-end to all shared memory.
//!
//! Beside the memory lies a shadow: the image as it was before the step the
//! back-end is in. Stores of everybody else reach the shadow at once, stores
//! of the back-end when the step is over. A killed process has done a prefix
//! of its stores, so a crash copies the shadow back over what the step has
//! touched and does the first *k* stores again.

use super::log::StoreLog;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use vm_memory::{AtomicInteger, MmapRegion, VolatileMemory};

/// Bytes of a page, as a dirty log counts them.
pub const PAGE: usize = 4096;

/// One store of the back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Region, in order of creation.
    pub region: u32,
    /// First byte in the region.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    data: usize,
}

impl Store {
    /// Whether a processor can do it in one piece. Longer or crooked ones may
    /// be cut by a kill.
    pub fn is_single(&self) -> bool {
        matches!(self.len, 1 | 2 | 4 | 8) && self.offset.is_multiple_of(u64::from(self.len))
    }

    pub(super) fn data_range(&self) -> std::ops::Range<usize> {
        self.data..self.data + self.len as usize
    }
}

/// Whose stores are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Writer {
    /// Guest, front-end, migration: whoever runs the guest sees its stores.
    #[default]
    Others,
    /// The disk, for a back-end: only the back-end's log knows of it.
    Disk,
    /// The back-end, in a step.
    BackEnd,
    /// Nobody: the simulator moves an image about.
    Nobody,
}

/// Somebody who acts between two stores of a step: another processor.
pub struct Race {
    /// Store of the step.
    pub at: u64,
    /// Before that store, instead of after it.
    pub before: bool,
    /// What happens then.
    pub act: Box<dyn FnOnce()>,
}

impl Race {
    /// Number of stores that have happened when it does.
    pub(super) fn happened(&self) -> usize {
        self.at as usize + usize::from(!self.before)
    }
}

/// A store at which somebody else acts, and the bytes it has replaced.
pub(super) struct Meeting {
    pub race: Race,
    pub old: Vec<u8>,
    pub mapping: Arc<MmapRegion<StoreLog>>,
}

/// See the module.
#[derive(Default)]
pub struct Journal {
    writer: Writer,
    race: Option<Race>,
    stores: Vec<Store>,
    /// So many of them are in the shadow already: somebody has seen them.
    settled: usize,
    data: Vec<u8>,
    shadows: Vec<Shadow>,
    /// Contents that were given a name.
    contents: u64,
}

/// Image of a region.
struct Shadow {
    /// What it is the image of. The mapping's own log knows this journal, so
    /// whoever made both has to part them again.
    mapping: Arc<MmapRegion<StoreLog>>,
    bytes: Vec<u8>,
    /// By page.
    pages: Vec<Page>,
}

/// What is known of a page.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Name of its content: two pages with the same are equal. 0: zeroes.
    content: u64,
    /// Stored to by anybody but back-end and disk.
    dirty: bool,
}

impl Shadow {
    /// A place gets a content of this name.
    fn mark(&mut self, at: usize, len: usize, content: u64, dirty: bool) {
        for page in &mut self.pages[at / PAGE..=(at + len - 1) / PAGE] {
            page.content = content;
            page.dirty |= dirty;
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8], content: u64, dirty: bool) {
        self.mark(at, bytes.len(), content, dirty);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn page(&self, page: usize) -> &[u8] {
        let at = page * PAGE;
        &self.bytes[at..(at + PAGE).min(self.bytes.len())]
    }
}

/// Copy bytes of a mapping.
fn read(mapping: &MmapRegion<StoreLog>, offset: usize, into: &mut [u8]) {
    // Most stores are small, and a load is quicker than a copy.
    match into.len() {
        1 if let Some(byte) = load::<AtomicU8>(mapping, offset) => into[0] = byte,
        2 if let Some(word) = load::<AtomicU16>(mapping, offset) => {
            into.copy_from_slice(&word.to_ne_bytes());
        }
        8 if let Some(word) = load::<AtomicU64>(mapping, offset) => {
            into.copy_from_slice(&word.to_ne_bytes());
        }
        len => {
            // vm-memory has checked this before it stored there.
            mapping.get_slice(offset, len).expect("a store inside its region").copy_to(into);
        }
    }
}

/// A number in a mapping, if it is aligned.
pub(super) fn load<A: AtomicInteger>(
    mapping: &MmapRegion<StoreLog>,
    offset: usize,
) -> Option<A::V> {
    Some(mapping.get_atomic_ref::<A>(offset).ok()?.load(Ordering::Relaxed))
}

impl Journal {
    pub(super) fn add_region(&mut self, mapping: Arc<MmapRegion<StoreLog>>) {
        let len = mapping.size();
        let pages = vec![Page::default(); len.div_ceil(PAGE)];
        self.shadows.push(Shadow { mapping, bytes: vec![0; len], pages });
    }

    /// Forget every region, so that their mappings can go away.
    pub(super) fn part(&mut self) {
        self.shadows.clear();
    }

    pub(super) fn saw(&mut self, region: u32, offset: usize, len: usize) -> Option<Meeting> {
        if len == 0 {
            return None;
        }
        let shadow = self.shadows.get_mut(region as usize)?;
        match self.writer {
            Writer::Nobody => return None,
            Writer::Others | Writer::Disk => {
                self.contents += 1;
                shadow.mark(offset, len, self.contents, self.writer == Writer::Others);
                read(&shadow.mapping, offset, &mut shadow.bytes[offset..offset + len]);
                return None;
            }
            Writer::BackEnd => {}
        }
        let data = self.data.len();
        self.data.resize(data + len, 0);
        read(&shadow.mapping, offset, &mut self.data[data..]);
        let index = self.stores.len() as u64;
        let race = self.race.take_if(|race| race.at == index);
        let meeting = race.map(|race| {
            let old = self.image(region, offset, len);
            let mapping = Arc::clone(&self.shadows[region as usize].mapping);
            Meeting { race, old, mapping }
        });
        self.stores.push(Store {
            region,
            offset: offset as u64,
            len: u32::try_from(len).expect("a region is below 4 GiB"),
            data,
        });
        meeting
    }

    /// Bytes as the stores of this step have left them so far.
    fn image(&self, region: u32, offset: usize, len: usize) -> Vec<u8> {
        let mut image = self.shadow(region)[offset..offset + len].to_vec();
        for store in self.stores.iter().filter(|s| s.region == region) {
            let at = store.offset as usize;
            for (i, byte) in (at..).zip(self.bytes(store)) {
                if let Some(place) = i.checked_sub(offset).and_then(|i| image.get_mut(i)) {
                    *place = *byte;
                }
            }
        }
        image
    }

    pub(super) fn set_writer(&mut self, writer: Writer) {
        self.writer = writer;
    }

    pub(super) fn set_race(&mut self, race: Option<Race>) {
        self.race = race;
    }

    pub(super) fn stores(&self) -> &[Store] {
        &self.stores
    }

    pub(super) fn bytes(&self, store: &Store) -> &[u8] {
        &self.data[store.data..][..store.len as usize]
    }

    pub(super) fn shadow(&self, region: u32) -> &[u8] {
        &self.shadows[region as usize].bytes
    }

    /// The first `count` stores have surely happened.
    pub(super) fn settle(&mut self, count: usize) {
        for store in &self.stores[self.settled..count] {
            self.contents += 1;
            let bytes = &self.data[store.data..][..store.len as usize];
            let shadow = &mut self.shadows[store.region as usize];
            shadow.put(store.offset as usize, bytes, self.contents, false);
        }
        self.settled = count;
    }

    pub(super) fn commit(&mut self) {
        self.settle(self.stores.len());
        self.forget();
    }

    /// Stores that are not in the shadow, what was stored, and how many came
    /// before.
    pub(super) fn take_unsettled(&mut self) -> (Vec<Store>, Vec<u8>, u64) {
        let stores = self.stores.split_off(self.settled);
        let data = std::mem::take(&mut self.data);
        let settled = self.settled as u64;
        self.forget();
        (stores, data, settled)
    }

    /// Forget the step.
    pub(super) fn forget(&mut self) {
        self.stores.clear();
        self.data.clear();
        self.settled = 0;
    }

    /// Make the image of a region zeroes. Pages that were not.
    pub(super) fn wipe(&mut self, region: u32) -> Vec<usize> {
        let Shadow { bytes, pages, .. } = &mut self.shadows[region as usize];
        let mut wiped = Vec::new();
        for (at, (page, bytes)) in pages.iter_mut().zip(bytes.chunks_mut(PAGE)).enumerate() {
            if std::mem::take(page).content != 0 {
                bytes.fill(0);
                wiped.push(at);
            }
        }
        wiped
    }

    /// Make a page of one region like that of another; whether it was not.
    pub(super) fn copy_page(&mut self, from: u32, to: u32, page: usize) -> bool {
        let [from, to] = self
            .shadows
            .get_disjoint_mut([from as usize, to as usize])
            .expect("two regions of this arena");
        let content = from.pages[page].content;
        if content == to.pages[page].content {
            return false;
        }
        to.put(page * PAGE, from.page(page), content, true);
        true
    }

    /// A page of two regions, if it may not be the same in both.
    pub(super) fn pair(&self, regions: [u32; 2], page: usize) -> Option<[&[u8]; 2]> {
        let shadows = regions.map(|region| &self.shadows[region as usize]);
        let [source, destination] = shadows.map(|shadow| shadow.pages[page].content);
        (source != destination).then(|| shadows.map(|shadow| shadow.page(page)))
    }

    /// Pages that the guest has stored to since the last call.
    pub(super) fn take_dirty(&mut self, region: u32) -> Vec<u64> {
        let pages = (0u64..).zip(&mut self.shadows[region as usize].pages);
        pages.filter_map(|(at, page)| std::mem::take(&mut page.dirty).then_some(at)).collect()
    }
}
