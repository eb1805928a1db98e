//! Payload structures, byte for byte.
//!
//! They are C structures in the sender's byte order: both ends live on the same
//! machine. Tail padding is on the wire; it is written as 0 and not looked at.
//!
//! A `read` here wants as many bytes as the structure has. The length was
//! checked against the tables of `codes` and `reply` before.

use super::codes::MAX_CONFIG;
use super::error::FieldFault;
use super::{
    ConfigPayload, InflightDescription, Iotlb, LogDescription, MemRegion, PayloadSize, ShmemConfig,
    ShmemMap, TransferState, VringAddr, VringArea, VringState, WireError,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most regions in a memory table.
// spec: vhost-user, "Multiple memory regions description"
pub(super) const MAX_REGIONS: usize = 8;
/// Says that no descriptor comes along, in a vring index with flags.
pub(super) const NOFD: u64 = 1 << 8;

impl VringState {
    pub(super) fn read(mut b: &[u8]) -> Self {
        Self { index: b.get_u32_ne(), num: b.get_u32_ne() }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u32_ne(self.index);
        out.put_u32_ne(self.num);
    }

    /// For a number that can only be 0 or 1.
    pub(super) fn check_switch(self) -> Result<(), FieldFault> {
        check("num", "0 or 1", self.num.into(), self.num <= 1)
    }
}

impl VringAddr {
    pub(super) fn read(mut b: &[u8]) -> Self {
        Self {
            index: b.get_u32_ne(),
            flags: b.get_u32_ne(),
            desc: b.get_u64_ne(),
            used: b.get_u64_ne(),
            avail: b.get_u64_ne(),
            log: b.get_u64_ne(),
        }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u32_ne(self.index);
        out.put_u32_ne(self.flags);
        out.put_u64_ne(self.desc);
        out.put_u64_ne(self.used);
        out.put_u64_ne(self.avail);
        out.put_u64_ne(self.log);
    }
}

impl MemRegion {
    fn read_bare(b: &mut &[u8]) -> Self {
        Self {
            guest_addr: b.get_u64_ne(),
            size: b.get_u64_ne(),
            user_addr: b.get_u64_ne(),
            mmap_offset: b.get_u64_ne(),
        }
    }

    fn write_bare(self, out: &mut BytesMut) {
        out.put_u64_ne(self.guest_addr);
        out.put_u64_ne(self.size);
        out.put_u64_ne(self.user_addr);
        out.put_u64_ne(self.mmap_offset);
    }

    /// A region that has a message to itself has padding in front.
    pub(super) fn read(mut b: &[u8]) -> Self {
        b.advance(8);
        Self::read_bare(&mut b)
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u64_ne(0);
        self.write_bare(out);
    }
}

/// Read a memory table.
///
/// The document draws it with eight slots, but front-ends send only those in
/// use. Both forms are taken; what the unused slots hold is nobody's business.
pub(super) fn read_table(message: &'static str, mut b: &[u8]) -> Result<Vec<MemRegion>, WireError> {
    let got = u32::try_from(b.len()).unwrap_or(u32::MAX);
    let count = b.get_u32_ne();
    b.advance(4);
    check_regions(count.into()).map_err(|fault| fault.received_in(message))?;
    let expected = 8 + 32 * count;
    let all_slots = 8 + 32 * MAX_REGIONS as u32;
    if got != expected && got != all_slots {
        return Err(WireError::Size { message, expected: PayloadSize::Exactly(expected), got });
    }
    Ok((0..count).map(|_| MemRegion::read_bare(&mut b)).collect())
}

pub(super) fn write_table(regions: impl ExactSizeIterator<Item = MemRegion>, out: &mut BytesMut) {
    out.put_u32_ne(regions.len() as u32);
    out.put_u32_ne(0);
    for region in regions {
        region.write_bare(out);
    }
}

pub(super) fn check_regions(count: u64) -> Result<(), FieldFault> {
    let fits = (1..=MAX_REGIONS as u64).contains(&count);
    check("number of regions", "1 to 8", count, fits)
}

impl LogDescription {
    pub(super) fn read(mut b: &[u8]) -> Self {
        Self { size: b.get_u64_ne(), offset: b.get_u64_ne() }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u64_ne(self.size);
        out.put_u64_ne(self.offset);
    }
}

impl ConfigPayload {
    pub(super) fn read(message: &'static str, mut b: &[u8]) -> Result<Self, WireError> {
        let offset = b.get_u32_ne();
        let size = b.get_u32_ne();
        let flags = b.get_u32_ne();
        check("size", "the length of the content", size.into(), size as usize == b.len())
            .map_err(|fault| fault.received_in(message))?;
        Ok(Self {
            offset,
            flags,
            // A copy, so that whoever keeps these few bytes does not keep the
            // decoder's whole buffer alive.
            data: Bytes::copy_from_slice(b),
        })
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u32_ne(self.offset);
        out.put_u32_ne(self.data.len() as u32);
        out.put_u32_ne(self.flags);
        out.put_slice(&self.data);
    }

    pub(super) fn check_size(&self) -> Result<(), FieldFault> {
        let size = self.data.len() as u64;
        check("size", "at most 256", size, size <= MAX_CONFIG.into())
    }
}

impl InflightDescription {
    pub(super) fn read(mut b: &[u8]) -> Self {
        Self {
            mmap_size: b.get_u64_ne(),
            mmap_offset: b.get_u64_ne(),
            num_queues: b.get_u16_ne(),
            queue_size: b.get_u16_ne(),
        }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u64_ne(self.mmap_size);
        out.put_u64_ne(self.mmap_offset);
        out.put_u16_ne(self.num_queues);
        out.put_u16_ne(self.queue_size);
        out.put_u32_ne(0);
    }
}

impl Iotlb {
    pub(super) fn read(mut b: &[u8]) -> Self {
        Self {
            iova: b.get_u64_ne(),
            size: b.get_u64_ne(),
            user_addr: b.get_u64_ne(),
            perm: b.get_u8(),
            kind: b.get_u8(),
        }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u64_ne(self.iova);
        out.put_u64_ne(self.size);
        out.put_u64_ne(self.user_addr);
        out.put_u8(self.perm);
        out.put_u8(self.kind);
        out.put_bytes(0, 6);
    }

    // spec: vhost-user, "An IOTLB message"
    pub(super) fn check(self) -> Result<(), FieldFault> {
        let Self { perm, kind, .. } = self;
        check("permissions", "0 to 3", perm.into(), perm <= 3)?;
        check("type", "1 to 4", kind.into(), (1..=4).contains(&kind))
    }
}

impl VringArea {
    pub(super) fn read(mut b: &[u8]) -> Self {
        Self { index: b.get_u64_ne(), size: b.get_u64_ne(), offset: b.get_u64_ne() }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u64_ne(self.index);
        out.put_u64_ne(self.size);
        out.put_u64_ne(self.offset);
    }
}

impl TransferState {
    pub(super) fn read(mut b: &[u8]) -> Self {
        Self { direction: b.get_u32_ne(), phase: b.get_u32_ne() }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u32_ne(self.direction);
        out.put_u32_ne(self.phase);
    }

    // spec: vhost-user, "Device state transfer parameters"
    pub(super) fn check(self) -> Result<(), FieldFault> {
        let Self { direction, phase } = self;
        check("direction", "0 or 1", direction.into(), direction <= 1)?;
        check("phase", "0", phase.into(), phase == 0)
    }
}

impl ShmemMap {
    pub(super) fn read(mut b: &[u8]) -> Self {
        let shmid = b.get_u8();
        b.advance(7);
        Self {
            shmid,
            fd_offset: b.get_u64_ne(),
            shm_offset: b.get_u64_ne(),
            len: b.get_u64_ne(),
            flags: b.get_u64_ne(),
        }
    }

    pub(super) fn write(self, out: &mut BytesMut) {
        out.put_u8(self.shmid);
        out.put_bytes(0, 7);
        out.put_u64_ne(self.fd_offset);
        out.put_u64_ne(self.shm_offset);
        out.put_u64_ne(self.len);
        out.put_u64_ne(self.flags);
    }
}

impl ShmemConfig {
    pub(super) fn read(mut b: &[u8]) -> Self {
        let nregions = b.get_u32_ne();
        b.advance(4);
        let mut sizes = Box::new([0; 256]);
        sizes.fill_with(|| b.get_u64_ne());
        Self { nregions, sizes }
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u32_ne(self.nregions);
        out.put_u32_ne(0);
        for &size in self.sizes.iter() {
            out.put_u64_ne(size);
        }
    }

    pub(super) fn check(&self) -> Result<(), FieldFault> {
        let got = u64::from(self.nregions);
        check("number of regions", "at most 256", got, got <= 256)
    }
}

pub(super) fn read_u64(mut b: &[u8]) -> u64 {
    b.get_u64_ne()
}

pub(super) fn read_uuid(mut b: &[u8]) -> [u8; 16] {
    let mut uuid = [0; 16];
    b.copy_to_slice(&mut uuid);
    uuid
}

/// The vring index and whether the NOFD bit is set.
pub(super) fn read_vring_file(b: &[u8]) -> Result<(u8, bool), FieldFault> {
    let got = read_u64(b);
    check("vring index", "0 to 255 and perhaps bit 8", got, got <= 0x1ff)?;
    Ok((got as u8, got & NOFD != 0))
}

fn check(
    field: &'static str,
    expected: &'static str,
    got: u64,
    fits: bool,
) -> Result<(), FieldFault> {
    if fits { Ok(()) } else { Err(FieldFault { field, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut out);
        out
    }

    #[test]
    fn payload_tail_padding_is_on_the_wire() {
        let inflight =
            InflightDescription { mmap_size: 1, mmap_offset: 2, num_queues: 3, queue_size: 4 };
        let bytes = written(|out| inflight.write(out));
        assert_eq!(bytes.len(), 24);
        assert_eq!(bytes[16..20], [3u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat());
        let iotlb = Iotlb { iova: 1, size: 2, user_addr: 3, perm: 2, kind: 3 };
        let bytes = written(|out| iotlb.write(out));
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[24..], [2, 3, 0, 0, 0, 0, 0, 0]);
        let map = ShmemMap { shmid: 9, fd_offset: 1, shm_offset: 2, len: 3, flags: 1 };
        let bytes = written(|out| map.write(out));
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[..8], [9, 0, 0, 0, 0, 0, 0, 0]);
        let config = ShmemConfig { nregions: 1, sizes: Box::new([7; 256]) };
        assert_eq!(written(|out| config.write(out)).len(), 2056);
    }

    #[test]
    fn payload_vring_addr_has_used_before_avail() {
        let addr = VringAddr { index: 1, flags: 0, desc: 2, used: 3, avail: 4, log: 5 };
        let bytes = written(|out| addr.write(out));
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[16..24], 3u64.to_ne_bytes());
        assert_eq!(bytes[24..32], 4u64.to_ne_bytes());
    }

    #[test]
    fn payload_full_table_of_eight_slots_yields_only_the_regions_counted() {
        let mut bytes = BytesMut::zeroed(264);
        bytes[..4].copy_from_slice(&2u32.to_ne_bytes());
        bytes[8..16].copy_from_slice(&0x1000u64.to_ne_bytes());
        let table = read_table("SET_MEM_TABLE", &bytes).unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table[0].guest_addr, 0x1000);
    }

    #[test]
    fn payload_table_between_the_two_forms_is_refused() {
        let mut bytes = BytesMut::zeroed(8 + 32 * 3);
        bytes[..4].copy_from_slice(&2u32.to_ne_bytes());
        assert_eq!(
            read_table("SET_MEM_TABLE", &bytes).unwrap_err().to_string(),
            "SET_MEM_TABLE has a payload of 104 bytes, expected 72"
        );
    }
}
