//! The `Bitmap` that sees every store to shared memory.

use super::journal::{Journal, Meeting, Writer};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{VolatileMemory, VolatileSlice};

/// Tells the journal of every store into one region, in program order.
///
/// vm-memory calls `mark_dirty` right after each store, so reading the range
/// back gives exactly the bytes that this store has put there.
pub struct StoreLog {
    region: u32,
    journal: Rc<RefCell<Journal>>,
}

impl StoreLog {
    pub(super) fn new(region: u32, journal: Rc<RefCell<Journal>>) -> Self {
        Self { region, journal }
    }

    #[inline]
    fn saw(&self, offset: usize, len: usize) {
        let meeting = self.journal.borrow_mut().saw(self.region, offset, len);
        if let Some(meeting) = meeting {
            let mapping = std::sync::Arc::clone(&meeting.mapping);
            if let Ok(slice) = mapping.get_slice(offset, len) {
                self.meet(meeting, &slice);
            }
        }
    }

    /// Let somebody act next to the store that was just seen.
    fn meet(&self, Meeting { race, old, .. }: Meeting, slice: &VolatileSlice<'_, LogSlice<'_>>) {
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
    #[inline]
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
