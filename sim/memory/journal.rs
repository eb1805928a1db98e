//! One order over the stores of the back-end to all shared memory.
//!
//! Beside the memory lies a shadow: the image as it was before the step the
//! back-end is in. Stores of everybody else reach the shadow at once, stores
//! of the back-end when the step is over. A killed process has done a prefix
//! of its stores, so a crash copies the shadow back over what the step has
//! touched and does the first *k* stores again.

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
}

/// Image of a region.
struct Shadow {
    bytes: Vec<u8>,
    /// Everything outside of this was never written.
    touched: std::ops::Range<usize>,
    /// By page: stored to by anybody but back-end and disk.
    dirty: Vec<bool>,
}

impl Shadow {
    fn mark(&mut self, at: usize, len: usize) {
        self.dirty[at / PAGE..=(at + len - 1) / PAGE].fill(true);
    }

    fn touch(&mut self, at: usize, len: usize) -> &mut [u8] {
        let touched = &mut self.touched;
        *touched = if touched.start == touched.end {
            at..at + len
        } else {
            touched.start.min(at)..touched.end.max(at + len)
        };
        &mut self.bytes[at..at + len]
    }
}

impl Journal {
    pub(super) fn add_region(&mut self, len: usize) -> u32 {
        let dirty = vec![false; len.div_ceil(PAGE)];
        self.shadows.push(Shadow { bytes: vec![0; len], touched: 0..0, dirty });
        u32::try_from(self.shadows.len() - 1).expect("a handful of regions")
    }

    pub(super) fn saw(
        &mut self,
        region: u32,
        offset: usize,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) -> Option<Meeting> {
        match self.writer {
            _ if len == 0 => return None,
            Writer::Nobody => return None,
            Writer::Others => {
                let shadow = &mut self.shadows[region as usize];
                read(shadow.touch(offset, len));
                shadow.mark(offset, len);
                return None;
            }
            Writer::Disk => {
                read(self.shadows[region as usize].touch(offset, len));
                return None;
            }
            Writer::BackEnd => {}
        }
        let index = self.stores.len() as u64;
        let meets = self.race.as_ref().is_some_and(|race| race.at == index);
        let old = if meets { self.image(region, offset, len) } else { Vec::new() };
        let data = self.data.len();
        self.data.resize(data + len, 0);
        read(&mut self.data[data..]);
        self.stores.push(Store {
            region,
            offset: offset as u64,
            len: u32::try_from(len).expect("a region is below 4 GiB"),
            data,
        });
        let race = if meets { self.race.take() } else { None };
        race.map(|race| Meeting { race, old })
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

    /// What of a region may not be zero.
    pub(super) fn touched(&self, region: u32) -> std::ops::Range<usize> {
        self.shadows[region as usize].touched.clone()
    }

    /// The first `count` stores have surely happened.
    pub(super) fn settle(&mut self, count: usize) {
        for store in &self.stores[self.settled..count] {
            self.shadows[store.region as usize]
                .touch(store.offset as usize, store.len as usize)
                .copy_from_slice(&self.data[store.data..][..store.len as usize]);
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

    pub(super) fn untouch(&mut self, region: u32) {
        let shadow = &mut self.shadows[region as usize];
        shadow.touched = 0..0;
        shadow.dirty.fill(false);
    }

    /// Pages that the guest has stored to since the last call.
    pub(super) fn take_dirty(&mut self, region: u32) -> Vec<u64> {
        let dirty = &mut self.shadows[region as usize].dirty;
        let pages = (0u64..).zip(dirty.iter()).filter_map(|(page, dirty)| dirty.then_some(page));
        let pages = pages.collect();
        dirty.fill(false);
        pages
    }
}
