//! The `Bitmap` that sees every store to shared memory.

use super::journal::{Journal, Meeting, Writer};
use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Weak;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Tells the journal of every store into one region, in program order.
///
/// vm-memory calls `mark_dirty` right after each store, so reading the range
/// back gives exactly the bytes that this store has put there.
pub struct StoreLog {
    region: u32,
    journal: Rc<RefCell<Journal>>,
    mapping: OnceCell<Weak<MmapRegion<StoreLog>>>,
}

impl StoreLog {
    pub(super) fn new(region: u32, journal: Rc<RefCell<Journal>>) -> Self {
        Self { region, journal, mapping: OnceCell::new() }
    }

    /// Tell the log where its own bytes are; before that it sees nothing.
    pub(super) fn attach(&self, mapping: Weak<MmapRegion<StoreLog>>) {
        assert!(self.mapping.set(mapping).is_ok(), "a region is attached once");
    }

    fn saw(&self, offset: usize, len: usize) {
        let Some(mapping) = self.mapping.get().and_then(Weak::upgrade) else {
            return;
        };
        // A store that runs over the end of the region is impossible;
        // vm-memory checks before it stores.
        let Ok(slice) = mapping.get_slice(offset, len) else {
            return;
        };
        let meeting = self.journal.borrow_mut().saw(self.region, offset, len, |into| {
            slice.copy_to(into);
        });
        if let Some(meeting) = meeting {
            self.meet(meeting, &slice);
        }
    }

    /// Let somebody act next to the store that was just seen.
    fn meet(&self, Meeting { race, old }: Meeting, slice: &VolatileSlice<'_, LogSlice<'_>>) {
        let mut new = vec![0; old.len()];
        slice.copy_to(&mut new);
        // What is before this moment stays, whenever the back-end dies.
        self.journal.borrow_mut().settle(race.happened());
        let set_writer = |writer| self.journal.borrow_mut().set_writer(writer);
        let put = |bytes: &[u8]| {
            set_writer(Writer::Nobody);
            slice.copy_from(bytes);
        };
        // Between its loads and this store the back-end has looked at nothing,
        // so acting "before" it can be done after the fact.
        if race.before {
            put(&old);
        }
        set_writer(Writer::Others);
        (race.act)();
        if race.before {
            put(&new);
        }
        set_writer(Writer::BackEnd);
    }
}

impl fmt::Debug for StoreLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreLog(region {})", self.region)
    }
}

/// A part of a [`StoreLog`]'s region.
#[derive(Clone, Copy, Debug)]
pub struct LogSlice<'a> {
    log: &'a StoreLog,
    base: usize,
}

impl<'a> WithBitmapSlice<'a> for StoreLog {
    type S = LogSlice<'a>;
}

impl Bitmap for StoreLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.saw(offset, len);
    }

    /// Nobody asks the simulator's log for pages.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> LogSlice<'_> {
        LogSlice { log: self, base: offset }
    }
}

impl WithBitmapSlice<'_> for LogSlice<'_> {
    type S = Self;
}

impl BitmapSlice for LogSlice<'_> {}

impl Bitmap for LogSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log.saw(self.base + offset, len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { log: self.log, base: self.base + offset }
    }
}
