//! Requests for ranges of the disk: discard, write zeroes, secure erase.
// spec: virtio 1.2, "Block Device", "Device Operation"

use super::{Action, DONE, IOERR, Request, UNSUPP};
use crate::blk::config::SECTOR_SIZE;
use crate::blk::disk::{ByteRange, DiskOp};
use crate::bugs::{self, Bug};
use crate::memory::Segment;
use crate::vring::chain::Chain;
use virtio_bindings::virtio_blk as v;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Bytes of a discard, write zeroes or secure erase segment.
const RANGE_SIZE: usize = 16;

impl<M: GuestMemory> Request<'_, M> {
    pub(super) fn discard(&self, data: &[Segment], ranges: &mut Vec<ByteRange>) -> Action {
        // No flag has a meaning for a discard.
        let flags = if bugs::on(Bug::DiscardFlagAccepted) { u32::MAX } else { 0 };
        let op = DiskOp::Discard { durable: self.mode.durable };
        self.ranged(data, ranges, (flags, self.config.max_discard_sectors()), op)
    }

    pub(super) fn write_zeroes(&self, data: &[Segment], ranges: &mut Vec<ByteRange>) -> Action {
        let durable = self.mode.durable;
        let op = match bugs::on(Bug::WriteZeroesDiscards) {
            true => DiskOp::Discard { durable },
            false => DiskOp::WriteZeroes { durable },
        };
        let flags = v::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        self.ranged(data, ranges, (flags, self.config.max_write_zeroes_sectors()), op)
    }

    pub(super) fn secure_erase(&self, chain: &Chain, ranges: &mut Vec<ByteRange>) -> Action {
        let max = self.config.limits.secure_erase_sectors;
        // Linux takes the lowest bit of a type for the direction of its
        // data. That is right for every other request; of this one it
        // says that the device fills the buffers, and the ranges are in
        // what the device is to write.
        let data = if chain.readable.is_empty() { &chain.writable } else { &chain.readable };
        self.ranged(data, ranges, (0, max), DiskOp::SecureErase)
    }

    /// A request for ranges, which have only these flags and at most so many
    /// sectors each. It is refused as a whole or done as a whole.
    fn ranged(
        &self,
        data: &[Segment],
        ranges: &mut Vec<ByteRange>,
        (flags, max): (u32, u32),
        op: DiskOp,
    ) -> Action {
        let len: u64 = data.iter().map(|s| u64::from(s.len)).sum();
        let most = u64::from(self.config.limits.ranges) * RANGE_SIZE as u64;
        if len == 0 || !len.is_multiple_of(RANGE_SIZE as u64) || len > most {
            return IOERR;
        }
        let (mut unknown_flag, mut misplaced) = (false, false);
        let (mut bytes, mut filled) = ([0; RANGE_SIZE], 0);
        for segment in data {
            let (mut addr, mut left) = (segment.addr, segment.len as usize);
            while left > 0 {
                let take = left.min(RANGE_SIZE - filled);
                let to = &mut bytes[filled..filled + take];
                if self.mem.read_slice(to, GuestAddress(addr)).is_err() {
                    return IOERR;
                }
                (addr, left) = (addr.wrapping_add(take as u64), left - take);
                filled = (filled + take) % RANGE_SIZE;
                if filled > 0 {
                    continue;
                }
                let range = Range::read(&bytes);
                unknown_flag |= range.flags & !flags != 0;
                let len = u64::from(range.num_sectors) * SECTOR_SIZE;
                match self.place(range.sector, len) {
                    Some(offset) if range.num_sectors <= max => {
                        let unmap = range.flags & v::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
                        if len > 0 {
                            ranges.push(ByteRange { offset, len, unmap });
                        }
                    }
                    _ => misplaced = true,
                }
            }
        }
        match () {
            // What the device does not know comes before what it does not like.
            () if unknown_flag => UNSUPP,
            () if misplaced => IOERR,
            () if ranges.is_empty() => DONE,
            () => Action::Disk(op),
        }
    }
}

/// struct virtio_blk_discard_write_zeroes
struct Range {
    sector: u64,
    num_sectors: u32,
    flags: u32,
}

impl Range {
    fn read(bytes: &[u8; RANGE_SIZE]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            num_sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes(flags),
        }
    }
}
