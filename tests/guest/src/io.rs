//! Aligned buffers, direct I/O and the block device ioctls.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const PAGE: usize = 4096;

// Numbers from linux/fs.h; the libc crate has none of them.
const BLKDISCARD: u32 = 0x1277;
const BLKSECDISCARD: u32 = 0x127d;
const BLKZEROOUT: u32 = 0x127f;

/// Memory for direct I/O: page-aligned, so that the kernel hands the very
/// pages to the device.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer of `len` bytes.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Self { memory, start, len }
    }

    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.len, "buffer of {} bytes asked for {len}", self.len);
        &mut self.memory[self.start..self.start + len]
    }
}

/// Opens a disk by its name in /dev past the page cache.
pub fn open(disk: &str, write: bool) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/dev/{disk}"))
        .map_err(|error| format!("cannot open {disk}: {error}"))
}

fn range_ioctl(file: &File, request: u32, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: these requests read two u64 from the pointer and nothing else.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, range.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// BLKDISCARD: the device may drop the range.
pub fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, BLKDISCARD, offset, len)
}

/// BLKSECDISCARD: the device must make sure that nobody gets the range back.
pub fn secure_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, BLKSECDISCARD, offset, len)
}

/// BLKZEROOUT: write zeroes that must not deallocate.
pub fn zero_out(file: &File, offset: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, BLKZEROOUT, offset, len)
}

/// fallocate(PUNCH_HOLE): write zeroes that may deallocate, and which the
/// kernel refuses instead of writing zero pages itself.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes `byte` over the range.
pub fn fill(file: &File, offset: u64, len: u64, byte: u8) -> Result<(), String> {
    for_chunks(offset, len, |buffer, at| {
        buffer.fill(byte);
        file.write_all_at(buffer, at).map_err(|error| format!("write at {at}: {error}"))
    })
}

/// Checks that all of the range reads back as `byte`.
pub fn expect(file: &File, offset: u64, len: u64, byte: u8) -> Result<(), String> {
    for_chunks(offset, len, |buffer, at| {
        // Poison: a read that transfers nothing must not look right.
        buffer.fill(!byte);
        file.read_exact_at(buffer, at).map_err(|error| format!("read at {at}: {error}"))?;
        match buffer.iter().position(|found| *found != byte) {
            None => Ok(()),
            Some(index) => Err(format!(
                "byte {} is {:#04x}, expected {byte:#04x}",
                at + index as u64,
                buffer[index]
            )),
        }
    })
}

fn for_chunks(
    offset: u64,
    len: u64,
    mut each: impl FnMut(&mut [u8], u64) -> Result<(), String>,
) -> Result<(), String> {
    const CHUNK: u64 = 256 * 1024;
    let mut buffer = Buffer::new(CHUNK as usize);
    let mut at = offset;
    while at < offset + len {
        let size = CHUNK.min(offset + len - at);
        each(buffer.bytes(size as usize), at)?;
        at += size;
    }
    Ok(())
}
