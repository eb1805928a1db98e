//! The file, mapped: streams are as large as the guest's memory.

use crate::adapter::error::{Refusal, describe};
use crate::adapter::sigbus;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::path::Path;

/// A file's bytes.
pub struct Mapped {
    start: *mut core::ffi::c_void,
    len: usize,
    /// Ends before the mapping does.
    guard: Option<sigbus::Guard>,
    name: String,
    /// Faults of this thread before.
    hits: u32,
}

impl Mapped {
    /// Map all of a regular file that is not empty.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let name = path.display().to_string();
        let cannot = |what: &str, e| Refusal(format!("cannot {what} {name}: {}", describe(e)));
        // Opening a FIFO must not wait for its other end.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = open(path, flags, Mode::empty()).map_err(|e| cannot("open", e))?;
        let stat = fstat(&fd).map_err(|e| cannot("inspect", e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Refusal(format!("{name} is not a regular file")));
        }
        let len = usize::try_from(stat.st_size).unwrap_or(0);
        if len == 0 {
            return Err(Refusal(format!(
                "{name}: expected a stream or a region, got an empty file"
            )));
        }
        sigbus::install().map_err(|e| Refusal(format!("cannot start: {e}")))?;
        // SAFETY: a new private mapping, placed by the kernel.
        let start = unsafe {
            mmap(core::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, &fd, 0)
                .map_err(|e| cannot("map", e))?
        };
        let guard = sigbus::Guard::new(start as usize, len, rustix::param::page_size());
        Ok(Self { start, len, guard, name, hits: sigbus::hits() })
    }

    /// All bytes. If the file shrinks in the meantime there are zeroes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped from `open` to `drop`, which borrowing forbids. Nobody
        // in this process writes to it, and what other processes do to a file
        // that is being read is for every reader of files to bear: no byte is
        // relied upon to be the same twice.
        unsafe { core::slice::from_raw_parts(self.start.cast::<u8>(), self.len) }
    }

    /// Fails if part of the file was gone while it was read.
    pub fn still_whole(&self) -> Result<(), Refusal> {
        if sigbus::hits() == self.hits {
            return Ok(());
        }
        Err(Refusal(format!("{} became shorter while it was read", self.name)))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the mapping that `open` made; nothing borrows it any more.
        // It cannot fail, and if it did the mapping would only stay.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}
