//! Carry out a request with plain system calls, in the calling thread.

use super::op::Op;
use super::{bounce, erase, zeroes};
use crate::adapter::image::Image;
use crate::adapter::memory::Iov;
use crate::blk::{DiskError, DiskOp};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;
use std::os::fd::AsRawFd as _;

/// Do all of `op`, and store how it ended.
pub fn perform(image: &Image, op: &mut Op) {
    op.result = run(image, op);
}

fn run(image: &Image, op: &mut Op) -> Result<(), DiskError> {
    match op.kind {
        DiskOp::Read { .. } | DiskOp::Write { .. } => {
            transfer(image, op)?;
            // The data is durable; where it counts as written has to be as well.
            if op.durable() { sync_companion(image) } else { Ok(()) }
        }
        DiskOp::Flush => sync(image),
        DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } | DiskOp::SecureErase => {
            while let Some(range) = op.range() {
                match op.kind {
                    DiskOp::Discard { .. } => discard(image, range.offset, range.len)?,
                    DiskOp::SecureErase => erase::range(image, range.offset, range.len)?,
                    _ => zeroes::write(image, range.offset, range.len, range.unmap)?,
                }
                op.range_done();
            }
            if op.durable() { sync(image) } else { Ok(()) }
        }
        // Somebody above the engines turns these into others, or answers them.
        DiskOp::ZoneAppend { .. } | DiskOp::ZoneReport { .. } | DiskOp::Zone { .. } => {
            Err(DiskError::Unsupported)
        }
    }
}

/// Make every finished write durable.
pub fn sync(image: &Image) -> Result<(), DiskError> {
    retry(|| fdatasync(image.fd())).map_err(os)?;
    sync_companion(image)
}

fn sync_companion(image: &Image) -> Result<(), DiskError> {
    match image.companion() {
        Some(companion) => retry(|| fdatasync(companion)).map_err(os),
        None => Ok(()),
    }
}

fn transfer(image: &Image, op: &mut Op) -> Result<(), DiskError> {
    while !op.is_moved() {
        if image.misaligned(op.left()) {
            return bounce::transfer(image, op);
        }
        match call(image, op) {
            Ok(0) => return Err(op.short()),
            Ok(n) => op.advance(n as u64),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(os(errno)),
        }
    }
    Ok(())
}

/// One call for the next pieces, the plainest that does it.
fn call(image: &Image, op: &Op) -> Result<usize, Errno> {
    let window = op.window();
    let (fd, offset) = (image.fd().as_raw_fd(), op.offset as libc::off_t);
    let (iov, count) = (window.as_ptr().cast::<libc::iovec>(), window.len() as libc::c_int);
    let flags = if op.durable() { libc::RWF_DSYNC } else { 0 };
    // SAFETY: `iov` points to `count` descriptors of memory that stays mapped
    // while the request is counted on its table. If the peer has truncated it,
    // the call fails with EFAULT.
    let n = unsafe {
        match (op.kind, window) {
            (DiskOp::Read { .. }, [Iov(one)]) => libc::pread(fd, one.iov_base, one.iov_len, offset),
            (DiskOp::Read { .. }, _) => libc::preadv(fd, iov, count, offset),
            (_, [Iov(one)]) if flags == 0 => libc::pwrite(fd, one.iov_base, one.iov_len, offset),
            _ => libc::pwritev2(fd, iov, count, offset, flags),
        }
    };
    usize::try_from(n).map_err(|_| last_errno())
}

fn discard(image: &Image, offset: u64, len: u64) -> Result<(), DiskError> {
    if image.is_block() {
        return retry(|| image.block_discard(offset, len)).map_err(os);
    }
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match retry(|| fallocate(image.fd(), mode, offset, len)) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(DiskError::Unsupported),
        other => other.map_err(os),
    }
}

/// Call again as long as a signal interrupts.
pub fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The error number of the last system call in this thread.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// An error number as the core knows it.
pub fn os(errno: Errno) -> DiskError {
    DiskError::Os(errno.raw_os_error())
}
