//! The envelope of the inflight region in a migration stream.
//!
//! ```text
//! 05  17 "vhost-user-blk/inflight"       be32 1
//!     be64 size    be16 queue_size
//! 05  1c "vhost-inflight-region/buffer"  be32 0
//!     size bytes: the region of all queues, as it is in shared memory
//! ```

use super::cursor::{Cursor, SUBSECTION};
use super::fault::{StreamFault, What};

const OUTER: &str = "vhost-user-blk/inflight";
const OUTER_VERSION: u32 = 1;
const INNER: &str = "vhost-inflight-region/buffer";
const INNER_VERSION: u32 = 0;

/// Bytes around the region.
const ENVELOPE: usize = (2 + OUTER.len() + 4) + (8 + 2) + (2 + INNER.len() + 4);

/// Largest region there can be, in bytes: 1024 queues of 32768 entries of 32
/// bytes, a header each.
pub const REGION_MAX: u64 = 1024 * (32768 + 2) * 32;

/// The inflight region as a migration carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InflightSubsection<'a> {
    /// Queue size of the device, 1 to 32768: entries of each part. The number
    /// of queues is not in the stream; the destination's device has it.
    pub queue_size: u16,
    /// Parts of all queues, in host byte order.
    ///
    /// Empty, with queue size 0, if the device was never started. QEMU writes
    /// that, but cannot load it: whoever migrates such a device leaves the
    /// subsection out.
    pub region: &'a [u8],
}

impl<'a> InflightSubsection<'a> {
    /// Bytes of [`encode`](Self::encode).
    pub fn encoded_len(&self) -> usize {
        ENVELOPE + self.region.len()
    }

    /// Append the bytes that QEMU 11.1 sends.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        put_name(out, OUTER, OUTER_VERSION);
        out.extend((self.region.len() as u64).to_be_bytes());
        out.extend(self.queue_size.to_be_bytes());
        put_name(out, INNER, INNER_VERSION);
        out.extend(self.region);
    }

    /// Read the subsection at `at`; also the offset of what follows it.
    ///
    /// Strict: QEMU skips subsections it does not expect and takes sizes that
    /// contradict each other, this refuses both. Whether the region fits the
    /// device's queues is for [`InflightImage`](super::InflightImage).
    pub fn decode(bytes: &'a [u8], at: usize) -> Result<(Self, usize), StreamFault> {
        let mut cursor = Cursor::new(bytes, at);
        cursor.subsection(OUTER, OUTER_VERSION)?;
        let before = cursor.clone();
        let size = cursor.be64("inflight region size")?;
        if size > REGION_MAX {
            let of = "inflight region size";
            return Err(before.fault(What::TooLarge { of, most: REGION_MAX, got: size }));
        }
        let queue_size = cursor.be16("inflight queue size")?;
        if (size == 0) != (queue_size == 0) {
            return Err(before.fault(What::HalfRegion { size, queue_size }));
        }
        cursor.subsection(INNER, INNER_VERSION)?;
        let region = cursor.take(size, "inflight region")?;
        Ok((Self { queue_size, region }, cursor.at()))
    }
}

fn put_name(out: &mut Vec<u8>, name: &str, version: u32) {
    out.push(SUBSECTION);
    // Both names are constants shorter than 256 bytes.
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    out.extend(version.to_be_bytes());
}
