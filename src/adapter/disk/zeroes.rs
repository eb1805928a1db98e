//! Write zeroes, by the cheapest means that the file knows.

use super::bounce::Buffer;
use super::sync::{os, retry};
use crate::adapter::image::Image;
use crate::blk::DiskError;
use rustix::fs::fallocate;
use rustix::io::Errno;

/// Bytes of zeroes written at a time where nothing cheaper works.
const CHUNK: u64 = 256 * 1024;

/// Make the range read as zeroes; `unmap` allows to deallocate it.
// spec: virtio 1.2, "Device Operation" (block device)
pub fn write(image: &Image, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
    while let Some(mode) = image.zero_mode(unmap) {
        match retry(|| fallocate(image.fd(), mode, offset, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => image.forget_zero_mode(mode),
            other => return other.map_err(os),
        }
    }
    let buffer = Buffer::zeroed(CHUNK.min(len) as usize);
    let mut done = 0;
    while done < len {
        let piece = &buffer.bytes()[..CHUNK.min(len - done) as usize];
        match retry(|| rustix::io::pwrite(image.fd(), piece, offset + done)).map_err(os)? {
            0 => {
                return Err(DiskError::Short { expected: len, moved: done });
            }
            n => done += n as u64,
        }
    }
    Ok(())
}
