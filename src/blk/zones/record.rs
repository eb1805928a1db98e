//! The file of zones, byte by byte. Everything is little endian.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4096 | header: magic, version, geometry, checksum |
//! | 4096 | 16 each | zones |
//! | next multiple of 4096 | 32 each | appends |
//!
//! A record is written by itself and crosses no sector, so it is there wholly
//! or not at all; its checksum tells garbage from a record, not a torn one.

use super::{Append, AppendId, Geometry, Zone, ZoneState};

/// Bytes of the header.
pub const HEADER: usize = 4096;
/// Bytes of a zone.
pub const ZONE: usize = 16;
/// Bytes of an append.
pub const APPEND: usize = 32;

const MAGIC: &[u8; 8] = b"midzones";
const VERSION: u32 = 1;
const CLEARING: u8 = 1;

/// What is wrong with bytes that should be a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Not our file.
    #[error("it does not begin as a file of zones does")]
    Magic,
    /// From the future.
    #[error("it has version {0}, expected 1")]
    Version(u32),
    /// The header is garbage.
    #[error("the checksum of its header is wrong")]
    Header,
    /// A zone is garbage.
    #[error("zone {0} is not a zone")]
    Zone(u32),
}

/// Where a zone is in the file.
pub fn zone_at(zone: u32) -> u64 {
    HEADER as u64 + u64::from(zone) * ZONE as u64
}

/// Where the appends begin.
pub fn appends_at(geometry: &Geometry) -> u64 {
    zone_at(geometry.zones()).next_multiple_of(4096)
}

/// The header for these zones.
pub fn header(geometry: &Geometry) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&geometry.zone_sectors.to_le_bytes());
    bytes[16..24].copy_from_slice(&geometry.capacity.to_le_bytes());
    bytes[24..28].copy_from_slice(&geometry.conventional.to_le_bytes());
    let sum = checksum(&bytes[..28], 0);
    bytes[28..32].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The zones that a header is for.
pub fn read_header(bytes: &[u8; HEADER]) -> Result<Geometry, BadRecord> {
    if &bytes[..8] != MAGIC {
        return Err(BadRecord::Magic);
    }
    match u32_at(bytes, 8) {
        VERSION => {}
        other => return Err(BadRecord::Version(other)),
    }
    if u32_at(bytes, 28) != checksum(&bytes[..28], 0) {
        return Err(BadRecord::Header);
    }
    Ok(Geometry {
        capacity: u64_at(bytes, 16),
        zone_sectors: u32_at(bytes, 12),
        conventional: u32_at(bytes, 24),
    })
}

/// One zone.
pub fn zone(number: u32, zone: &Zone) -> [u8; ZONE] {
    let mut bytes = [0; ZONE];
    bytes[..8].copy_from_slice(&zone.wp.to_le_bytes());
    bytes[8] = zone.state as u8;
    bytes[9] = if zone.clearing { CLEARING } else { 0 };
    let sum = checksum(&bytes[..12], number);
    bytes[12..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The zone in a record.
pub fn read_zone(number: u32, bytes: &[u8; ZONE]) -> Result<Zone, BadRecord> {
    let bad = Err(BadRecord::Zone(number));
    if u32_at(bytes, 12) != checksum(&bytes[..12], number) {
        return bad;
    }
    let state = match bytes[8] {
        0 => ZoneState::NotWritePointer,
        1 => ZoneState::Empty,
        2 => ZoneState::ImplicitlyOpen,
        3 => ZoneState::ExplicitlyOpen,
        4 => ZoneState::Closed,
        14 => ZoneState::Full,
        _ => return bad,
    };
    let clearing = match bytes[9] {
        0 => false,
        CLEARING => true,
        _ => return bad,
    };
    Ok(Zone { state, wp: u64_at(bytes, 0), clearing })
}

/// One append, or a slot that has none.
pub fn append(slot: u32, append: Option<&(AppendId, Append)>) -> [u8; APPEND] {
    let mut bytes = [0; APPEND];
    if let Some((id, append)) = append {
        bytes[..8].copy_from_slice(&append.sector.to_le_bytes());
        bytes[8..16].copy_from_slice(&id.order.to_le_bytes());
        // No append has more sectors than fit its request.
        bytes[16..20].copy_from_slice(&(append.sectors as u32).to_le_bytes());
        bytes[20..22].copy_from_slice(&id.vring.to_le_bytes());
        bytes[22..24].copy_from_slice(&id.head.to_le_bytes());
        let sum = checksum(&bytes[..28], slot);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// The append in a record. Garbage says as much as nothing: an append without
/// record has not been written.
pub fn read_append(slot: u32, bytes: &[u8; APPEND]) -> Option<(AppendId, Append)> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let id = AppendId { vring: u16_at(20), head: u16_at(22), order: u64_at(bytes, 8) };
    let append = Append { sector: u64_at(bytes, 0), sectors: u64::from(u32_at(bytes, 16)) };
    (append.sectors != 0 && u32_at(bytes, 28) == checksum(&bytes[..28], slot))
        .then_some((id, append))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}

/// FNV-1a, seeded with the record's number.
fn checksum(bytes: &[u8], number: u32) -> u32 {
    let all = number.to_le_bytes();
    all.iter()
        .chain(bytes)
        .fold(0x811c_9dc5, |sum: u32, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_records_read_back_and_garbage_does_not() {
        let geometry = Geometry { capacity: 0x1_0000_0005, zone_sectors: 1 << 19, conventional: 3 };
        assert_eq!(read_header(&header(&geometry)), Ok(geometry));
        let mut spoiled = header(&geometry);
        spoiled[16] ^= 1;
        assert_eq!(read_header(&spoiled), Err(BadRecord::Header));
        assert_eq!(read_header(&[0; HEADER]), Err(BadRecord::Magic));
        for state in [ZoneState::Empty, ZoneState::Closed, ZoneState::Full] {
            for clearing in [false, true] {
                let it = Zone { state, wp: 0x1234_5678_9abc, clearing };
                let bytes = zone(7, &it);
                assert_eq!(read_zone(7, &bytes), Ok(it));
                assert_eq!(read_zone(8, &bytes), Err(BadRecord::Zone(8)), "of another zone");
            }
        }
        assert_eq!(read_zone(0, &[0; ZONE]), Err(BadRecord::Zone(0)));
        let id = AppendId { vring: 2, head: 300, order: u64::MAX };
        let it = (id, Append { sector: 77, sectors: 8 });
        assert_eq!(read_append(4, &append(4, Some(&it))), Some(it));
        assert_eq!(read_append(5, &append(4, Some(&it))), None);
        assert_eq!(read_append(4, &append(4, None)), None);
        assert_eq!(appends_at(&geometry) % 4096, 0);
    }
}
