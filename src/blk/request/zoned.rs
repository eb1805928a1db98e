//! Requests that only a zoned device knows, and what a write to a zone may not
//! be.
// spec: virtio 1.3, "Block Device", "Device Operation": requests of zoned devices

use super::{Action, IOERR, Request, UNSUPP, reachable};
use crate::blk::config::SECTOR_SIZE;
use crate::blk::disk::{DiskOp, ZoneAction};
use crate::blk::zones::{self, ZoneFault, ZonedConfig};
use crate::memory::Segment;
use crate::vring::chain::Chain;
use virtio_bindings::virtio_blk as v;
use vm_memory::{GuestMemory, Permissions};

/// Bytes in front of the status of an append, for the sector it went to.
const APPEND_SECTOR_SIZE: u32 = 8;

impl<M: GuestMemory> Request<'_, M> {
    /// A write to a zone that is not a whole number of blocks, but on the disk.
    pub(super) fn ends_within_a_block_of_a_zone(&self, len: u64) -> bool {
        let Some(zoned) = &self.config.zoned else { return false };
        let geometry = zoned.geometry(self.config.capacity / SECTOR_SIZE);
        let start = self.header.sector;
        let end = start.checked_add(len.div_ceil(SECTOR_SIZE));
        end.is_some_and(|end| end <= geometry.capacity)
            && len > 0
            && !geometry.is_conventional(geometry.zone_of(start))
    }

    pub(super) fn zoned(&self, kind: u32, zoned: &ZonedConfig, chain: &mut Chain) -> Action {
        let action = match kind {
            v::VIRTIO_BLK_T_ZONE_REPORT => return self.zone_report(zoned, chain),
            v::VIRTIO_BLK_T_ZONE_APPEND if self.config.read_only => return IOERR,
            v::VIRTIO_BLK_T_ZONE_APPEND => return self.zone_append(zoned, chain),
            v::VIRTIO_BLK_T_ZONE_OPEN => ZoneAction::Open,
            v::VIRTIO_BLK_T_ZONE_CLOSE => ZoneAction::Close,
            v::VIRTIO_BLK_T_ZONE_FINISH => ZoneAction::Finish,
            v::VIRTIO_BLK_T_ZONE_RESET => ZoneAction::Reset,
            v::VIRTIO_BLK_T_ZONE_RESET_ALL => ZoneAction::ResetAll,
            _ => return UNSUPP,
        };
        if self.config.read_only {
            return IOERR;
        }
        match self.header.sector {
            _ if action == ZoneAction::ResetAll => Action::Disk(DiskOp::Zone { action, offset: 0 }),
            sector if sector < self.config.capacity / SECTOR_SIZE => {
                Action::Disk(DiskOp::Zone { action, offset: sector * SECTOR_SIZE })
            }
            _ => self.refuse(ZoneFault::InvalidCommand),
        }
    }

    fn zone_report(&self, zoned: &ZonedConfig, chain: &mut Chain) -> Action {
        let data = &mut chain.writable;
        if !data.iter().all(|s| reachable(self.mem, s.addr, s.len, Permissions::Write)) {
            return IOERR;
        }
        let room = data.iter().map(|s| u64::from(s.len)).sum();
        let geometry = zoned.geometry(self.config.capacity / SECTOR_SIZE);
        let sector = self.header.sector;
        let Some(count) = zones::reported(&geometry, sector, room) else {
            return self.refuse(ZoneFault::InvalidCommand);
        };
        // Nothing is written behind the last zone.
        let size = zones::HEADER_SIZE + count as usize * zones::DESCRIPTOR_SIZE;
        keep_front(data, size as u32);
        Action::Disk(DiskOp::ZoneReport { offset: sector * SECTOR_SIZE })
    }

    fn zone_append(&self, zoned: &ZonedConfig, chain: &mut Chain) -> Action {
        let room: u32 = chain.writable.iter().map(|s| s.len).sum();
        let Some(unused) = room.checked_sub(APPEND_SECTOR_SIZE) else { return IOERR };
        // The sector is right in front of the status.
        skip_front(&mut chain.writable, unused);
        let accessible = |data: &[Segment], access| {
            data.iter().all(|s| reachable(self.mem, s.addr, s.len, access))
        };
        if chain.readable.len() > self.data_limit
            || !accessible(&chain.writable, Permissions::Write)
            || !accessible(&chain.readable, Permissions::Read)
        {
            return IOERR;
        }
        let len: u64 = chain.readable.iter().map(|s| u64::from(s.len)).sum();
        let block = u64::from(self.config.logical_block_size);
        let sector = self.header.sector;
        match zoned.max_append_sectors {
            0 => UNSUPP,
            max if len > u64::from(max) * SECTOR_SIZE => self.refuse(ZoneFault::InvalidCommand),
            _ if len == 0 || sector >= self.config.capacity / SECTOR_SIZE => {
                self.refuse(ZoneFault::InvalidCommand)
            }
            _ if !len.is_multiple_of(block) => self.refuse(ZoneFault::UnalignedWritePointer),
            _ => Action::Disk(DiskOp::ZoneAppend {
                offset: sector * SECTOR_SIZE,
                len,
                durable: self.mode.durable,
            }),
        }
    }
}

/// Leave the first `keep` bytes.
fn keep_front(segments: &mut Vec<Segment>, mut keep: u32) {
    segments.retain_mut(|segment| {
        segment.len = segment.len.min(keep);
        keep -= segment.len;
        segment.len > 0
    });
}

/// Take away the first `skip` bytes.
fn skip_front(segments: &mut Vec<Segment>, mut skip: u32) {
    segments.retain_mut(|segment| {
        let cut = segment.len.min(skip);
        skip -= cut;
        segment.addr = segment.addr.wrapping_add(u64::from(cut));
        segment.len -= cut;
        segment.len > 0
    });
}
