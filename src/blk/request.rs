//! From the buffers of a chain to what the disk is asked, or to an answer.
//!
//! Where descriptors begin and end has no meaning: the readable bytes are one
//! stream that starts with the header, the writable bytes are one stream that
//! ends with the status.
// spec: virtio 1.2, "Block Device", "Device Operation"

use super::config::{DeviceConfig, SECTOR_SIZE, SEG_MAX};
use super::disk::DiskOp;
use crate::bugs::{self, Bug};
use crate::marks::{self, Mark};
use crate::memory::Segment;
use crate::vring::GuestFault;
use crate::vring::chain::Chain;
use virtio_bindings::virtio_blk as v;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Bytes of the request header: type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Bytes of a discard or write zeroes segment.
const RANGE_SIZE: u64 = 16;

/// The status byte that ends every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = v::VIRTIO_BLK_S_OK as u8,
    /// Refused or failed.
    IoErr = v::VIRTIO_BLK_S_IOERR as u8,
    /// Not something this device does.
    Unsupp = v::VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The disk has to do something. The chain's readable or writable part now
    /// holds exactly the data segments of a write or read.
    Disk(DiskOp),
    /// The answer is known. `written` data bytes are in the buffer.
    Answer {
        /// Status for the guest.
        status: Status,
        /// Data bytes written.
        written: u32,
    },
}

/// A request that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What to do.
    pub action: Action,
    /// Guest-physical address of the status byte; it is inside guest memory.
    pub status_addr: u64,
}

const IOERR: Action = Action::Answer { status: Status::IoErr, written: 0 };
const UNSUPP: Action = Action::Answer { status: Status::Unsupp, written: 0 };
const DONE: Action = Action::Answer { status: Status::Ok, written: 0 };

/// Read a request out of its chain. Only a chain that leaves no way to answer
/// is a fault; everything else becomes a status.
///
/// `durable` says that the write cache is off.
pub fn parse<M: GuestMemory>(
    mem: &M,
    config: &DeviceConfig,
    durable: bool,
    head: u16,
    chain: &mut Chain,
) -> Result<Parsed, GuestFault> {
    let status_addr = take_status(mem, head, &mut chain.writable)?;
    let action = match take_header(mem, &mut chain.readable) {
        Some(header) => {
            let data_limit = match chain.data_limit {
                0 => SEG_MAX as usize,
                limit => limit,
            };
            Request { mem, config, durable, header, data_limit }.action(chain)
        }
        None => IOERR,
    };
    Ok(Parsed { action, status_addr })
}

/// Cut the last byte off the writable part.
fn take_status<M: GuestMemory>(
    mem: &M,
    head: u16,
    writable: &mut Vec<Segment>,
) -> Result<u64, GuestFault> {
    let last = writable.last_mut().ok_or(GuestFault::NoStatus { head })?;
    last.len -= 1;
    marks::hit_when(Mark::StatusWithData, || last.len > 0);
    let offset = if bugs::on(Bug::StatusAtDescriptorStart) { 0 } else { last.len };
    let addr = last.addr.wrapping_add(u64::from(offset));
    if last.len == 0 {
        writable.pop();
    }
    if addr.checked_add(1).is_none() || !reachable(mem, addr, 1, Permissions::Write) {
        return Err(GuestFault::Status { head, addr });
    }
    Ok(addr)
}

/// Cut the header off the readable part; `None` if there is not enough, or if
/// it cannot be read.
fn take_header<M: GuestMemory>(mem: &M, readable: &mut Vec<Segment>) -> Option<Header> {
    let mut bytes = [0; HEADER_SIZE];
    let (mut filled, mut used_up) = (0, 0);
    for segment in readable.iter_mut() {
        let take = (HEADER_SIZE - filled).min(segment.len as usize);
        mem.read_slice(&mut bytes[filled..filled + take], GuestAddress(segment.addr)).ok()?;
        filled += take;
        segment.addr = segment.addr.wrapping_add(take as u64);
        segment.len -= take as u32;
        if bugs::on(Bug::HeaderFillsDescriptor) {
            segment.len = 0;
        }
        marks::hit_when(Mark::HeaderInPieces, || used_up > 0);
        marks::hit_when(Mark::HeaderWithData, || segment.len > 0);
        if segment.len > 0 {
            break;
        }
        used_up += 1;
        if filled == HEADER_SIZE {
            break;
        }
    }
    readable.drain(..used_up);
    if filled < HEADER_SIZE {
        return None;
    }
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = bytes;
    Some(Header { kind: u32::from_le_bytes([t0, t1, t2, t3]), sector: u64::from_le_bytes(sector) })
}

fn reachable<M: GuestMemory>(mem: &M, addr: u64, len: u32, access: Permissions) -> bool {
    let (at, size) = (GuestAddress(addr), len as usize);
    let pieces = || mem.get_slices(at, size, access).is_ok_and(|pieces| pieces.count() > 1);
    if bugs::on_when(Bug::BorderRefused, pieces) {
        return false;
    }
    mem.check_range(GuestAddress(addr), len as usize, access)
}

struct Header {
    kind: u32,
    sector: u64,
}

struct Request<'a, M> {
    mem: &'a M,
    config: &'a DeviceConfig,
    durable: bool,
    header: Header,
    /// Data segments it may have.
    data_limit: usize,
}

impl<M: GuestMemory> Request<'_, M> {
    fn action(&self, chain: &mut Chain) -> Action {
        // A device that is read only is so for every guest, also for one that
        // did not accept VIRTIO_BLK_F_RO.
        let read_only = self.config.read_only;
        match self.header.kind {
            v::VIRTIO_BLK_T_IN => {
                self.transfer(&chain.writable, Permissions::Write, |offset| DiskOp::Read { offset })
            }
            v::VIRTIO_BLK_T_OUT if read_only => IOERR,
            v::VIRTIO_BLK_T_OUT => self.transfer(&chain.readable, Permissions::Read, |offset| {
                DiskOp::Write { offset, durable: self.durable }
            }),
            v::VIRTIO_BLK_T_FLUSH if bugs::on(Bug::FlushAtOnce) => DONE,
            v::VIRTIO_BLK_T_FLUSH => Action::Disk(DiskOp::Flush),
            v::VIRTIO_BLK_T_GET_ID => self.get_id(&chain.writable),
            v::VIRTIO_BLK_T_DISCARD | v::VIRTIO_BLK_T_WRITE_ZEROES if read_only => IOERR,
            v::VIRTIO_BLK_T_DISCARD if self.config.discard => self.discard(&chain.readable),
            v::VIRTIO_BLK_T_WRITE_ZEROES if self.config.write_zeroes => {
                self.write_zeroes(&chain.readable)
            }
            _ if bugs::on(Bug::UnknownTypeSucceeds) => DONE,
            _ => UNSUPP,
        }
    }

    /// IN and OUT: the segments are the data.
    fn transfer(
        &self,
        data: &[Segment],
        access: Permissions,
        op: impl FnOnce(u64) -> DiskOp,
    ) -> Action {
        if data.len() > self.data_limit {
            return IOERR;
        }
        if !data.iter().all(|s| reachable(self.mem, s.addr, s.len, access)) {
            return IOERR;
        }
        let len = data.iter().map(|s| u64::from(s.len)).sum();
        match self.place(self.header.sector, len) {
            Some(_) if len == 0 => DONE,
            Some(offset) => Action::Disk(op(offset)),
            None => IOERR,
        }
    }

    /// Byte offset of `len` bytes at `sector`, if that is a place on the disk.
    fn place(&self, sector: u64, len: u64) -> Option<u64> {
        let block = u64::from(self.config.logical_block_size);
        let overflow =
            bugs::on_when(Bug::SectorOverflow, || sector.checked_mul(SECTOR_SIZE).is_none());
        if overflow {
            let offset = sector.wrapping_mul(SECTOR_SIZE);
            return (offset.wrapping_add(len) <= self.config.capacity).then_some(offset);
        }
        let offset = sector.checked_mul(SECTOR_SIZE)?;
        let end = offset.checked_add(len)?;
        let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block)
            || bugs::on(Bug::PartialSectorAccepted);
        let capacity = self.config.capacity;
        let over = bugs::on_when(Bug::CapacityOffByOne, || end == capacity + SECTOR_SIZE);
        (aligned && (end <= capacity || over)).then_some(offset)
    }

    /// GET_ID: 20 bytes, or as many as there is room for.
    fn get_id(&self, data: &[Segment]) -> Action {
        let mut left = &self.config.serial[..];
        for segment in data {
            let (now, later) = left.split_at(left.len().min(segment.len as usize));
            if self.mem.write_slice(now, GuestAddress(segment.addr)).is_err() {
                return IOERR;
            }
            if later.is_empty() && bugs::on(Bug::SerialTerminated) {
                let end = segment.addr + now.len() as u64;
                let _ = self.mem.write_obj(0u8, GuestAddress(end));
            }
            left = later;
        }
        let written = self.config.serial.len() - left.len();
        Action::Answer { status: Status::Ok, written: written as u32 }
    }

    fn discard(&self, data: &[Segment]) -> Action {
        let range = match self.range(data) {
            Ok(range) => range,
            Err(answer) => return answer,
        };
        // No flag has a meaning for a discard.
        if range.flags != 0 && !bugs::on(Bug::DiscardFlagAccepted) {
            return UNSUPP;
        }
        self.ranged(range, self.config.max_discard_sectors(), |offset, len| DiskOp::Discard {
            offset,
            len,
            durable: self.durable,
        })
    }

    fn write_zeroes(&self, data: &[Segment]) -> Action {
        let range = match self.range(data) {
            Ok(range) => range,
            Err(answer) => return answer,
        };
        if range.flags & !v::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return UNSUPP;
        }
        let unmap = range.flags != 0;
        if bugs::on(Bug::WriteZeroesDiscards) {
            return self.ranged(range, self.config.max_write_zeroes_sectors(), |offset, len| {
                DiskOp::Discard { offset, len, durable: self.durable }
            });
        }
        self.ranged(range, self.config.max_write_zeroes_sectors(), |offset, len| {
            DiskOp::WriteZeroes { offset, len, unmap, durable: self.durable }
        })
    }

    fn ranged(&self, range: Range, max: u32, op: impl FnOnce(u64, u64) -> DiskOp) -> Action {
        let len = u64::from(range.num_sectors) * SECTOR_SIZE;
        match self.place(range.sector, len) {
            _ if range.num_sectors > max => IOERR,
            Some(_) if len == 0 => DONE,
            Some(offset) => Action::Disk(op(offset, len)),
            None => IOERR,
        }
    }

    /// The one range of a discard or write zeroes request.
    fn range(&self, data: &[Segment]) -> Result<Range, Action> {
        let len: u64 = data.iter().map(|s| u64::from(s.len)).sum();
        // max_discard_seg and max_write_zeroes_seg are 1.
        if len != RANGE_SIZE {
            return Err(IOERR);
        }
        let mut bytes = [0; RANGE_SIZE as usize];
        let mut at = 0;
        for s in data {
            let end = at + s.len as usize;
            let read = self.mem.read_slice(&mut bytes[at..end], GuestAddress(s.addr));
            read.map_err(|_| IOERR)?;
            at = end;
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        Ok(Range {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            num_sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes(flags),
        })
    }
}

/// struct virtio_blk_discard_write_zeroes
struct Range {
    sector: u64,
    num_sectors: u32,
    flags: u32,
}
