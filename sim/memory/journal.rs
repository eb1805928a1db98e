//! One order over the stores of the back-end to all shared memory.
//!
//! Beside the memory lies a shadow: the image as it was before the step the
//! back-end is in. Stores of everybody else reach the shadow at once, stores
//! of the back-end when the step is over. A killed process has done a prefix
//! of its stores, so a crash copies the shadow back over what the step has
//! touched and does the first *k* stores again.

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

/// See the module.
#[derive(Default)]
pub struct Journal {
    armed: bool,
    stores: Vec<Store>,
    data: Vec<u8>,
    shadows: Vec<Shadow>,
}

/// Image of a region.
struct Shadow {
    bytes: Vec<u8>,
    /// Everything outside of this was never written.
    touched: std::ops::Range<usize>,
}

impl Shadow {
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
        self.shadows.push(Shadow { bytes: vec![0; len], touched: 0..0 });
        u32::try_from(self.shadows.len() - 1).expect("a handful of regions")
    }

    pub(super) fn saw(
        &mut self,
        region: u32,
        offset: usize,
        len: usize,
        read: impl FnOnce(&mut [u8]),
    ) {
        if len == 0 {
            return;
        }
        if self.armed {
            let data = self.data.len();
            self.data.resize(data + len, 0);
            read(&mut self.data[data..]);
            self.stores.push(Store {
                region,
                offset: offset as u64,
                len: u32::try_from(len).expect("a region is below 4 GiB"),
                data,
            });
        } else {
            read(self.shadows[region as usize].touch(offset, len));
        }
    }

    pub(super) fn arm(&mut self) {
        debug_assert!(self.stores.is_empty(), "the last step was not settled");
        self.armed = true;
    }

    pub(super) fn disarm(&mut self) {
        self.armed = false;
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

    pub(super) fn commit(&mut self) {
        for store in &self.stores {
            self.shadows[store.region as usize]
                .touch(store.offset as usize, store.len as usize)
                .copy_from_slice(&self.data[store.data..][..store.len as usize]);
        }
        self.stores.clear();
        self.data.clear();
    }

    pub(super) fn take(&mut self) -> (Vec<Store>, Vec<u8>) {
        (std::mem::take(&mut self.stores), std::mem::take(&mut self.data))
    }

    pub(super) fn untouch(&mut self, region: u32) {
        self.shadows[region as usize].touched = 0..0;
    }
}
