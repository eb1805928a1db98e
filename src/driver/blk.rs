//! virtio-blk requests over a ring of either format.

use super::access::{read, write};
use super::chain::{Buffer, Indirect, RingFeatures};
use super::error::{DeviceFault, DriverError, DriverMisuse};
use super::framing::{Framing, Span};
use super::layout::RingLayout;
use super::ring::DriverRing;
use vm_memory::GuestMemory;

const HEADER_LEN: u32 = 16;
const SEGMENT_LEN: u64 = 16;
/// What the driver puts where the device must write a status.
const STATUS_UNWRITTEN: u8 = 0xff;

/// What the guest wants of the disk. Sectors have 512 bytes.
// spec: virtio 1.2, "Device Operation"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkOp<'a> {
    /// Read into the data buffers.
    In {
        /// First sector.
        sector: u64,
    },
    /// Write what the data buffers hold.
    Out {
        /// First sector.
        sector: u64,
    },
    /// Make durable what was completed before. No data.
    Flush,
    /// Read the serial number into 20 bytes of data.
    GetId,
    /// Give up the content of these ranges. The driver writes the 16-byte
    /// segments into the data buffers.
    Discard(&'a [RangeSegment]),
    /// Zero these ranges; data as for `Discard`.
    WriteZeroes(&'a [RangeSegment]),
    /// Make sure that the content of these ranges is gone; data as for
    /// `Discard`.
    SecureErase(&'a [RangeSegment]),
    /// Read how worn the disk is, into at least 6 bytes of data.
    GetLifetime,
    /// Append what the data buffers hold to a zone. The status takes
    /// [`APPEND_STATUS_LEN`] bytes: in front of it is where the data went.
    // spec: virtio 1.3, "Device Operation", struct virtio_blk_req_za
    ZoneAppend {
        /// First sector of the zone.
        sector: u64,
    },
    /// Read descriptors of zones into the data buffers.
    ZoneReport {
        /// A sector of the first one.
        sector: u64,
    },
    /// Do something to a zone. No data.
    Zone {
        /// What.
        action: ZoneOp,
        /// First sector of the zone; 0 for all zones.
        sector: u64,
    },
    /// Any other type, known to the device or not.
    Other {
        /// Number in the header.
        kind: u32,
        /// Sector in the header.
        sector: u64,
        /// The device writes the data buffers; otherwise it reads them.
        writable: bool,
    },
}

/// Bytes that the status of a [`BlkOp::ZoneAppend`] takes.
pub const APPEND_STATUS_LEN: u32 = 9;

/// What can be done to a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneOp {
    /// Open it explicitly.
    Open,
    /// Close it.
    Close,
    /// Fill it up.
    Finish,
    /// Empty it.
    Reset,
    /// Empty all zones.
    ResetAll,
}

/// One range of DISCARD, WRITE_ZEROES or SECURE_ERASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeSegment {
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub num_sectors: u32,
    /// Bit 0: unmap. Others are reserved.
    pub flags: u32,
}

/// A request and the caller's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkRequest<'a> {
    /// What to do.
    pub op: BlkOp<'a>,
    /// Comes back with the completion.
    pub token: u64,
}

/// Guest memory for one request. It belongs to the device until the request
/// is reaped.
#[derive(Clone, Copy, Debug)]
pub struct RequestBuffers<'a> {
    /// 16 bytes for the header.
    pub header: u64,
    /// Data, in order; its length is that of the request.
    pub data: &'a [Span],
    /// One byte for the status, or [`APPEND_STATUS_LEN`] for an append.
    pub status: u64,
    /// Room for an indirect table, 16 bytes for each descriptor, if the framing
    /// asks for one.
    pub table: Option<u64>,
}

/// The device's verdict on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkStatus {
    /// Done.
    Ok,
    /// Failed.
    IoErr,
    /// Not a request that this device knows.
    Unsupp,
    /// Nothing that can be done to this zone.
    ZoneInvalidCmd,
    /// Not at the write pointer.
    ZoneUnalignedWp,
    /// Too many zones would be open.
    ZoneOpenResource,
    /// Too many zones would be active.
    ZoneActiveResource,
}

impl BlkStatus {
    /// The byte in guest memory.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoErr => 1,
            Self::Unsupp => 2,
            Self::ZoneInvalidCmd => 3,
            Self::ZoneUnalignedWp => 4,
            Self::ZoneOpenResource => 5,
            Self::ZoneActiveResource => 6,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Ok),
            1 => Some(Self::IoErr),
            2 => Some(Self::Unsupp),
            3 => Some(Self::ZoneInvalidCmd),
            4 => Some(Self::ZoneUnalignedWp),
            5 => Some(Self::ZoneOpenResource),
            6 => Some(Self::ZoneActiveResource),
            _ => None,
        }
    }
}

/// A request that the device has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkDone {
    /// The caller's name for it.
    pub token: u64,
    /// Name its chain had: head of a split ring, buffer id of a packed one.
    pub head: u16,
    /// Verdict.
    pub status: BlkStatus,
    /// Bytes the device says it wrote, status byte included.
    pub len: u32,
    /// Sector that an append went to.
    pub appended: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    token: u64,
    status: u64,
    /// The status is behind the sector of an append.
    append: bool,
    /// `used.len` that a success must report at least.
    expected_len: u64,
}

/// A block driver on one ring: requests in, verdicts out.
#[derive(Clone, Debug)]
pub struct BlkDriver {
    ring: DriverRing,
    /// By the ring's place for the chain.
    pending: Vec<Option<Pending>>,
    scratch: Vec<Buffer>,
    /// VIRTIO_BLK_F_ZONED was accepted.
    zoned: bool,
}

impl BlkDriver {
    /// Zero the ring in memory and start it; see [`DriverRing::start`].
    pub fn start<M: GuestMemory + ?Sized>(
        mem: &M,
        layout: RingLayout,
        features: RingFeatures,
    ) -> Result<Self, DriverError> {
        Ok(Self::over(DriverRing::start(mem, layout, features)?))
    }

    /// Use a ring that has no chains of others outstanding, or whose
    /// completions the caller takes from [`BlkDriver::ring_mut`].
    pub fn over(ring: impl Into<DriverRing>) -> Self {
        let ring = ring.into();
        let entries = usize::from(ring.layout().size);
        Self { ring, pending: vec![None; entries], scratch: Vec::new(), zoned: false }
    }

    /// The device is zoned: it may answer with the statuses that only such a
    /// device has.
    pub fn accept_zones(&mut self) {
        self.zoned = true;
    }

    /// Write header, segments and an unwritten status into guest memory and put
    /// the chain into the ring; [`BlkDriver::publish`] tells the device.
    ///
    /// Lengths are checked only as far as the request could not be built
    /// otherwise: a device must cope with data that is no multiple of a sector.
    pub fn submit<M: GuestMemory + ?Sized>(
        &mut self,
        mem: &M,
        request: &BlkRequest<'_>,
        buffers: &RequestBuffers<'_>,
        framing: &Framing,
    ) -> Result<u16, DriverError> {
        let data_len: u64 = buffers.data.iter().map(|span| u64::from(span.len)).sum();
        let wire = Wire::of(&request.op);
        if let Some(expected) = wire.data_len
            && expected != data_len
        {
            return Err(DriverMisuse::DataLength { expected, got: data_len }.into());
        }
        self.scratch.clear();
        let header = Span { addr: buffers.header, len: HEADER_LEN };
        let append = matches!(request.op, BlkOp::ZoneAppend { .. });
        let status_len = if append { APPEND_STATUS_LEN } else { 1 };
        let status = Span { addr: buffers.status, len: status_len };
        let scratch = &mut self.scratch;
        framing.cut(header, buffers.data, wire.writable, status, scratch);
        let indirect = match framing.indirect_after {
            None => None,
            Some(direct) => {
                let table = buffers.table.ok_or(DriverMisuse::NoTable)?;
                // A packed ring has no chain of both kinds.
                let direct = if self.ring.as_packed().is_some() { 0 } else { direct };
                Some(Indirect { table, direct })
            }
        };
        let mut raw = [0; HEADER_LEN as usize];
        raw[0..4].copy_from_slice(&wire.kind.to_le_bytes());
        raw[8..16].copy_from_slice(&wire.sector.to_le_bytes());
        write(mem, buffers.header, &raw)?;
        if let BlkOp::Discard(ranges) | BlkOp::WriteZeroes(ranges) | BlkOp::SecureErase(ranges) =
            request.op
        {
            write_segments(mem, buffers.data, ranges)?;
        }
        let status = buffers.status + u64::from(status_len) - 1;
        write(mem, status, &[STATUS_UNWRITTEN])?;
        let head = self.ring.add_chain(mem, &self.scratch, indirect)?;
        let slot = self.ring.slot_of(head).ok_or(DriverMisuse::UnknownRequest { head })?;
        self.pending[usize::from(slot)] = Some(Pending {
            token: request.token,
            status,
            append,
            expected_len: u64::from(status_len) + if wire.fills_data { data_len } else { 0 },
        });
        Ok(head)
    }

    /// See [`DriverRing::publish`].
    pub fn publish<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<u16, DriverError> {
        self.ring.publish(mem)
    }

    /// See [`DriverRing::kick_needed`].
    pub fn kick_needed<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<bool, DriverError> {
        self.ring.kick_needed(mem)
    }

    /// The next completed request, `None` when there is none.
    pub fn reap<M: GuestMemory + ?Sized>(
        &mut self,
        mem: &M,
    ) -> Result<Option<BlkDone>, DriverError> {
        let Some(used) = self.ring.reap(mem)? else {
            return Ok(None);
        };
        let head = used.head;
        let slot = self.ring.slot_of(head);
        let pending = slot.and_then(|slot| self.pending[usize::from(slot)].take());
        let pending = pending.ok_or(DriverMisuse::UnknownRequest { head })?;
        let mut byte = [0];
        read(mem, pending.status, &mut byte)?;
        let known = BlkStatus::from_code(byte[0]);
        let Some(status) = known.filter(|status| self.zoned || status.code() < 3) else {
            let fault = DeviceFault::BadStatus { head, status: byte[0] };
            return Err(self.ring.break_ring(fault));
        };
        // The status byte is always written, the data only by a success.
        let expected = match status {
            BlkStatus::Ok => pending.expected_len,
            _ => 1,
        };
        if u64::from(used.len) < expected {
            let fault = DeviceFault::LenTooShort { head, len: used.len, expected };
            return Err(self.ring.break_ring(fault));
        }
        let appended = if pending.append && status == BlkStatus::Ok {
            let mut sector = [0; 8];
            read(mem, pending.status - 8, &mut sector)?;
            Some(u64::from_le_bytes(sector))
        } else {
            None
        };
        Ok(Some(BlkDone { token: pending.token, head, status, len: used.len, appended }))
    }

    /// Names in the ring and tokens of the requests that are not reaped yet; of
    /// a split ring by rising head.
    pub fn pending(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        (0u16..)
            .zip(&self.pending)
            .filter_map(|(slot, p)| Some((self.ring.name_of(slot)?, (*p)?.token)))
    }

    /// Forget everything; see [`DriverRing::reset`].
    pub fn reset<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<(), DriverError> {
        self.ring.reset(mem)?;
        self.pending.fill(None);
        Ok(())
    }

    /// The ring below.
    pub fn ring(&self) -> &DriverRing {
        &self.ring
    }

    /// The ring below, for calls and for chains that are no block requests.
    pub fn ring_mut(&mut self) -> &mut DriverRing {
        &mut self.ring
    }
}

/// An operation as its header says it.
struct Wire {
    kind: u32,
    sector: u64,
    writable: bool,
    /// A success writes all of the data.
    fills_data: bool,
    /// The only data length that makes sense.
    data_len: Option<u64>,
}

impl Wire {
    fn of(op: &BlkOp<'_>) -> Self {
        let plain = |kind, sector| Self {
            kind,
            sector,
            writable: false,
            fills_data: false,
            data_len: None,
        };
        let ranges = |kind, ranges: &[RangeSegment]| Self {
            data_len: Some(ranges.len() as u64 * SEGMENT_LEN),
            ..plain(kind, 0)
        };
        match *op {
            BlkOp::In { sector } => Self { writable: true, fills_data: true, ..plain(0, sector) },
            BlkOp::Out { sector } => plain(1, sector),
            BlkOp::Flush => Self { data_len: Some(0), ..plain(4, 0) },
            BlkOp::GetId => Self { writable: true, ..plain(8, 0) },
            BlkOp::Discard(list) => ranges(11, list),
            BlkOp::WriteZeroes(list) => ranges(13, list),
            BlkOp::SecureErase(list) => ranges(14, list),
            BlkOp::GetLifetime => Self { writable: true, ..plain(10, 0) },
            BlkOp::ZoneAppend { sector } => plain(15, sector),
            BlkOp::ZoneReport { sector } => Self { writable: true, ..plain(16, sector) },
            BlkOp::Zone { action, sector } => {
                let kind = match action {
                    ZoneOp::Open => 18,
                    ZoneOp::Close => 20,
                    ZoneOp::Finish => 22,
                    ZoneOp::Reset => 24,
                    ZoneOp::ResetAll => 26,
                };
                Self { data_len: Some(0), ..plain(kind, sector) }
            }
            BlkOp::Other { kind, sector, writable } => Self { writable, ..plain(kind, sector) },
        }
    }
}

/// Lay the segments out over the data buffers, whose lengths add up to theirs.
fn write_segments<M: GuestMemory + ?Sized>(
    mem: &M,
    data: &[Span],
    ranges: &[RangeSegment],
) -> Result<(), DriverError> {
    let mut bytes = Vec::with_capacity(ranges.len() * SEGMENT_LEN as usize);
    for range in ranges {
        bytes.extend_from_slice(&range.sector.to_le_bytes());
        bytes.extend_from_slice(&range.num_sectors.to_le_bytes());
        bytes.extend_from_slice(&range.flags.to_le_bytes());
    }
    let mut rest = bytes.as_slice();
    for span in data {
        let (piece, tail) = rest.split_at(span.len as usize);
        write(mem, span.addr, piece)?;
        rest = tail;
    }
    Ok(())
}
