//! A detour for O_DIRECT: guests may use buffers that are less aligned than
//! the host's disk needs.

use super::op::Op;
use super::sync::{os, retry};
use crate::adapter::image::Image;
use crate::adapter::memory::Iov;
use crate::adapter::sigbus;
use crate::blk::{DiskError, DiskOp};
use rustix::fs::fdatasync;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// Bytes moved at a time.
const CHUNK: u64 = 1024 * 1024;
/// Alignment of the detour; no disk needs more.
const ALIGN: usize = 4096;

/// Memory aligned for any disk.
pub struct Buffer {
    start: *mut u8,
    len: usize,
}

impl Buffer {
    /// `len` bytes of zeroes.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Self { start, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(1), ALIGN).expect("a bounded length and a power of two")
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this length, initialised, and borrowed with `self`.
        unsafe { core::slice::from_raw_parts(self.start, self.len) }
    }

    /// What it holds, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout.
        unsafe { dealloc(self.start, Self::layout(self.len)) }
    }
}

/// Do what is left of a read or write by way of an aligned buffer.
pub fn transfer(image: &Image, op: &mut Op) -> Result<(), DiskError> {
    let left = op.len - op.moved;
    let mut buffer = Buffer::zeroed(CHUNK.min(left) as usize);
    while !op.is_moved() {
        let size = CHUNK.min(op.len - op.moved) as usize;
        let moved = match op.kind {
            DiskOp::Read { .. } => {
                let piece = &mut buffer.bytes_mut()[..size];
                let n =
                    retry(|| rustix::io::pread(image.fd(), &mut *piece, op.offset)).map_err(os)?;
                scatter(op.left(), &piece[..n]);
                n
            }
            _ => {
                let piece = &mut buffer.bytes_mut()[..size];
                let hits = sigbus::hits();
                gather(op.left(), piece);
                if sigbus::hits() != hits {
                    // Not what the guest has there.
                    return Err(DiskError::Os(libc::EFAULT));
                }
                retry(|| rustix::io::pwrite(image.fd(), &*piece, op.offset)).map_err(os)?
            }
        };
        if moved == 0 {
            return Err(op.short());
        }
        op.advance(moved as u64);
    }
    if op.durable() {
        retry(|| fdatasync(image.fd())).map_err(os)?;
    }
    Ok(())
}

/// Copy `from` to guest memory.
pub fn scatter(to: &[Iov], mut from: &[u8]) {
    for Iov(piece) in to {
        let n = piece.iov_len.min(from.len());
        // SAFETY: the piece stays mapped while the request is counted on its
        // table. The guest may write at the same time; it then garbles its own
        // data, since nothing here depends on what is copied. If the peer has
        // truncated the memory, the SIGBUS handler puts zeroes there.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), piece.iov_base.cast(), n) };
        from = &from[n..];
    }
}

/// Copy from guest memory until `to` is full.
fn gather(from: &[Iov], mut to: &mut [u8]) {
    for Iov(piece) in from {
        let n = piece.iov_len.min(to.len());
        // SAFETY: as in `scatter`.
        unsafe { core::ptr::copy_nonoverlapping(piece.iov_base.cast(), to.as_mut_ptr(), n) };
        to = &mut to[n..];
    }
}
