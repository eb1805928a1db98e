//! The answer to a report.
// spec: virtio 1.3, "Device Operation", struct virtio_blk_zone_report

use super::{Geometry, Zone, ZoneState};

/// Bytes in front of the descriptors.
pub const HEADER_SIZE: usize = 64;
/// Bytes of one zone.
pub const DESCRIPTOR_SIZE: usize = 64;

const CONVENTIONAL: u8 = 1;
const SEQUENTIAL_WRITE_REQUIRED: u8 = 2;

/// How many zones from that of `sector` fit into `room` bytes. `None` if not
/// even the header does or there is no such sector.
pub fn reported(geometry: &Geometry, sector: u64, room: u64) -> Option<u32> {
    let room = room.checked_sub(HEADER_SIZE as u64)? / DESCRIPTOR_SIZE as u64;
    if sector >= geometry.capacity {
        return None;
    }
    let left = geometry.zones() - geometry.zone_of(sector);
    Some(room.min(u64::from(left)) as u32)
}

/// The header of a report of so many zones.
pub fn header(zones: u32) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    bytes[..8].copy_from_slice(&u64::from(zones).to_le_bytes());
    bytes
}

/// One zone in a report.
pub fn descriptor(geometry: &Geometry, number: u32, zone: &Zone) -> [u8; DESCRIPTOR_SIZE] {
    let mut bytes = [0; DESCRIPTOR_SIZE];
    let start = geometry.start(number);
    bytes[..8].copy_from_slice(&(geometry.end(number) - start).to_le_bytes());
    bytes[8..16].copy_from_slice(&start.to_le_bytes());
    bytes[16..24].copy_from_slice(&zone.wp.to_le_bytes());
    bytes[24] = match zone.state {
        ZoneState::NotWritePointer => CONVENTIONAL,
        _ => SEQUENTIAL_WRITE_REQUIRED,
    };
    bytes[25] = zone.state as u8;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_report_has_what_there_is_room_for() {
        let g = Geometry { capacity: 1000, zone_sectors: 256, conventional: 1 };
        assert_eq!(reported(&g, 0, 63), None);
        assert_eq!(reported(&g, 0, 64), Some(0));
        assert_eq!(reported(&g, 0, 191), Some(1));
        assert_eq!(reported(&g, 0, 4096), Some(4));
        assert_eq!(reported(&g, 300, 4096), Some(3), "a sector in the middle of a zone");
        assert_eq!(reported(&g, 1000, 4096), None);
        let zone = Zone { state: ZoneState::Closed, wp: 800, clearing: false };
        let bytes = descriptor(&g, 3, &zone);
        assert_eq!(bytes[..8], (1000u64 - 768).to_le_bytes(), "the last one is smaller");
        assert_eq!(bytes[8..16], 768u64.to_le_bytes());
        assert_eq!(bytes[16..24], 800u64.to_le_bytes());
        assert_eq!(bytes[24..28], [2, 4, 0, 0]);
        assert_eq!(header(4)[..9], [4, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
