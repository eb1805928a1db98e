//! Many discards given to the kernel at once, which it may then put into one
//! request: only io_uring can ask for that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

// Numbers from linux/io_uring.h and linux/blkdev.h.
const URING_CMD: u8 = 46;
const DISCARD: u64 = 0x1200;
const GETEVENTS: u32 = 1;
const OFFSET_ENTRIES: i64 = 0x1000_0000;

/// Where things are in the shared pages, as the kernel says.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    cpu: u32,
    idle: u32,
    features: u32,
    wq: u32,
    reserved: [u32; 3],
    /// head, tail, mask, entries, flags, dropped, array, ...
    sq: [u32; 10],
    /// head, tail, mask, entries, overflow, completions, ...
    cq: [u32; 10],
}

fn check(result: i64, what: &str) -> Result<i64, String> {
    if result < 0 { Err(format!("{what}: {}", io::Error::last_os_error())) } else { Ok(result) }
}

fn map(fd: i64, len: usize, offset: i64) -> Result<*mut u8, String> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of a descriptor that is ours.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd as i32, offset) };
    if at == libc::MAP_FAILED {
        return Err(format!("map: {}", io::Error::last_os_error()));
    }
    Ok(at.cast())
}

/// Discards `count` ranges of `len` bytes, `step` apart.
pub fn discard_all(
    file: &File,
    offset: u64,
    len: u64,
    step: u64,
    count: u64,
) -> Result<(), String> {
    let entries = (count as u32).next_power_of_two();
    let mut p = Parameters::default();
    // SAFETY: the kernel fills the parameters, which have its layout (120 bytes).
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, &raw mut p) };
    let fd = check(fd, "setup")?;
    let rings = (p.sq[6] + p.sq_entries * 4).max(p.cq[5] + p.cq_entries * 16) as usize;
    let ring = map(fd, rings, 0)?;
    let sqes = map(fd, p.sq_entries as usize * 64, OFFSET_ENTRIES)?;
    for i in 0..count {
        // SAFETY: inside the mappings, by the numbers the kernel has given.
        unsafe {
            let sqe = sqes.add(i as usize * 64);
            sqe.write(URING_CMD);
            sqe.add(4).cast::<i32>().write(file.as_raw_fd());
            sqe.add(8).cast::<u64>().write(DISCARD);
            sqe.add(16).cast::<u64>().write(offset + i * step);
            sqe.add(32).cast::<u64>().write(i);
            sqe.add(48).cast::<u64>().write(len);
            ring.add(p.sq[6] as usize).cast::<u32>().add(i as usize).write(i as u32);
        }
    }
    // SAFETY: the tail, which the kernel reads.
    let tail = unsafe { &*ring.add(p.sq[1] as usize).cast::<AtomicU32>() };
    tail.store(count as u32, Ordering::Release);
    // SAFETY: no signal mask.
    let entered = unsafe {
        libc::syscall(libc::SYS_io_uring_enter, fd, count, count, GETEVENTS, 0_u64, 0_u64)
    };
    check(entered, "enter")?;
    for i in 0..count as usize {
        // SAFETY: the kernel has filled as many completions as were waited for.
        let result =
            unsafe { ring.add(p.cq[5] as usize + i * 16).add(8).cast::<i32>().read_volatile() };
        if result != 0 {
            return Err(format!("discard {i}: {}", io::Error::from_raw_os_error(-result)));
        }
    }
    // SAFETY: nobody uses any of this any more.
    unsafe {
        libc::munmap(ring.cast(), rings);
        libc::munmap(sqes.cast(), p.sq_entries as usize * 64);
        libc::close(fd as i32);
    }
    Ok(())
}
