//! Secure erase: what was there cannot be had back from this device.
//!
//! A block device is asked to do it. A file can only be written over, which
//! reaches the old data only where the file system writes in place;
//! [`Image::refuses_erase`] knows where.

use super::bounce::Buffer;
use super::sync::{os, retry};
use crate::adapter::image::Image;
use crate::blk::DiskError;

/// Bytes of zeroes written at a time.
const CHUNK: u64 = 1024 * 1024;

/// Erase a range. It is durable when the image has been made so.
// spec: virtio 1.2, "Device Operation", VIRTIO_BLK_T_SECURE_ERASE
pub fn range(image: &Image, offset: u64, len: u64) -> Result<(), DiskError> {
    if image.is_block() {
        return retry(|| image.block_secure_discard(offset, len)).map_err(os);
    }
    // Never by fallocate(2): it would give the blocks away as they are.
    let buffer = Buffer::zeroed(CHUNK.min(len) as usize);
    let mut done = 0;
    while done < len {
        let piece = &buffer.bytes()[..CHUNK.min(len - done) as usize];
        match retry(|| rustix::io::pwrite(image.fd(), piece, offset + done)).map_err(os)? {
            0 => return Err(DiskError::Short { expected: len, moved: done }),
            n => done += n as u64,
        }
    }
    Ok(())
}
