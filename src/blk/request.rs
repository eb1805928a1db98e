//! From the buffers of a chain to what the disk is asked, or to an answer.
//!
//! Where descriptors begin and end has no meaning: the readable bytes are one
//! stream that starts with the header, the writable bytes are one stream that
//! ends with the status.
// spec: virtio 1.2, "Block Device", "Device Operation"

mod ranges;
mod zoned;

use super::config::{DeviceConfig, SECTOR_SIZE, SEG_MAX};
use super::disk::{ByteRange, DiskOp};
use super::zones::ZoneFault;
use crate::bugs::{self, Bug};
use crate::marks::{self, Mark};
use crate::memory::Segment;
use crate::vring::GuestFault;
use crate::vring::chain::Chain;
use virtio_bindings::virtio_blk as v;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Bytes of the request header: type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Type of GET_LIFETIME, which the kernel's header does not name.
const VIRTIO_BLK_T_GET_LIFETIME: u32 = 10;

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
    /// Nothing that can be done to this zone.
    ZoneInvalidCmd = v::VIRTIO_BLK_S_ZONE_INVALID_CMD as u8,
    /// Not at the write pointer.
    ZoneUnalignedWp = v::VIRTIO_BLK_S_ZONE_UNALIGNED_WP as u8,
    /// Too many zones would be open.
    ZoneOpenResource = v::VIRTIO_BLK_S_ZONE_OPEN_RESOURCE as u8,
    /// Too many zones would be active.
    ZoneActiveResource = v::VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE as u8,
}

impl Status {
    /// How a guest is told that it broke a rule of zones. One that has not
    /// accepted VIRTIO_BLK_F_ZONED knows only that it failed.
    pub fn of_zones(fault: ZoneFault, zoned: bool) -> Self {
        match fault {
            _ if !zoned => Self::IoErr,
            ZoneFault::InvalidCommand => Self::ZoneInvalidCmd,
            ZoneFault::UnalignedWritePointer => Self::ZoneUnalignedWp,
            ZoneFault::OpenResource => Self::ZoneOpenResource,
            ZoneFault::ActiveResource => Self::ZoneActiveResource,
        }
    }
}

/// What was agreed on with the driver, as far as it matters to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The write cache is off.
    pub durable: bool,
    /// The driver knows zones.
    pub zoned: bool,
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The disk has to do something. The chain's readable or writable part now
    /// holds exactly the data segments of a write or read; of an append the
    /// writable part holds the place of its sector.
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
/// `ranges` is filled with those of a DISCARD, WRITE_ZEROES or SECURE_ERASE.
pub fn parse<M: GuestMemory>(
    mem: &M,
    config: &DeviceConfig,
    mode: Mode,
    head: u16,
    chain: &mut Chain,
    ranges: &mut Vec<ByteRange>,
) -> Result<Parsed, GuestFault> {
    ranges.clear();
    let status_addr = take_status(mem, head, &mut chain.writable)?;
    let action = match take_header(mem, &mut chain.readable) {
        Some(header) => {
            let data_limit = match chain.data_limit {
                0 => SEG_MAX as usize,
                limit => limit,
            };
            Request { mem, config, mode, header, data_limit }.action(chain, ranges)
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
    mode: Mode,
    header: Header,
    /// Data segments it may have.
    data_limit: usize,
}

impl<M: GuestMemory> Request<'_, M> {
    fn action(&self, chain: &mut Chain, ranges: &mut Vec<ByteRange>) -> Action {
        // A device that is read only is so for every guest, also for one that
        // did not accept VIRTIO_BLK_F_RO.
        let read_only = self.config.read_only;
        let durable = self.mode.durable;
        match self.header.kind {
            v::VIRTIO_BLK_T_IN => {
                self.transfer(&chain.writable, Permissions::Write, |offset| DiskOp::Read { offset })
            }
            v::VIRTIO_BLK_T_OUT if read_only => IOERR,
            v::VIRTIO_BLK_T_OUT => self.transfer(&chain.readable, Permissions::Read, |offset| {
                DiskOp::Write { offset, durable }
            }),
            v::VIRTIO_BLK_T_FLUSH if bugs::on(Bug::FlushAtOnce) => DONE,
            v::VIRTIO_BLK_T_FLUSH => Action::Disk(DiskOp::Flush),
            v::VIRTIO_BLK_T_GET_ID => self.fill(&chain.writable, &self.config.serial),
            VIRTIO_BLK_T_GET_LIFETIME => match self.config.lifetime {
                Some(lifetime) => self.get_lifetime(&chain.writable, &lifetime.bytes()),
                None => UNSUPP,
            },
            v::VIRTIO_BLK_T_DISCARD
            | v::VIRTIO_BLK_T_WRITE_ZEROES
            | v::VIRTIO_BLK_T_SECURE_ERASE
                if read_only =>
            {
                IOERR
            }
            v::VIRTIO_BLK_T_DISCARD if self.config.can_discard() => {
                self.discard(&chain.readable, ranges)
            }
            v::VIRTIO_BLK_T_WRITE_ZEROES if self.config.can_write_zeroes() => {
                self.write_zeroes(&chain.readable, ranges)
            }
            v::VIRTIO_BLK_T_SECURE_ERASE if self.config.can_secure_erase() => {
                self.secure_erase(chain, ranges)
            }
            kind => match &self.config.zoned {
                Some(zoned) if self.mode.zoned => self.zoned(kind, zoned, chain),
                _ if bugs::on(Bug::UnknownTypeSucceeds) => DONE,
                _ => UNSUPP,
            },
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
            None if access == Permissions::Read && self.ends_within_a_block_of_a_zone(len) => {
                self.refuse(ZoneFault::UnalignedWritePointer)
            }
            None => IOERR,
        }
    }

    fn refuse(&self, fault: ZoneFault) -> Action {
        Action::Answer { status: Status::of_zones(fault, self.mode.zoned), written: 0 }
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
    fn fill(&self, data: &[Segment], answer: &[u8]) -> Action {
        let mut left = answer;
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
        let written = answer.len() - left.len();
        Action::Answer { status: Status::Ok, written: written as u32 }
    }

    /// GET_LIFETIME: three numbers, and not half of one.
    fn get_lifetime(&self, data: &[Segment], answer: &[u8]) -> Action {
        let room: u64 = data.iter().map(|s| u64::from(s.len)).sum();
        if room < answer.len() as u64 { IOERR } else { self.fill(data, answer) }
    }
}
