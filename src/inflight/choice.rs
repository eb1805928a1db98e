//! The guest's choice about its write cache, where a successor finds it.
//!
//! No front-end says it again when it connects again, and the configuration
//! space, which is where the guest has put it, is the back-end's. But the inflight
//! region comes back, after a crash as after a migration, and the back-end that
//! allocates it may make its parts as long as it likes. Between the last entry of
//! the first part and the second part are some bytes that nobody uses, because
//! parts are rounded up to 64; their last eight are ours. They are 0 in a region
//! of anybody else, and that is no choice.
// spec: vhost-user, "Inflight I/O tracking"

use super::layout::RegionShape;
use super::split::RegionGone;
use core::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// What nobody writes there by accident; the lowest byte is the choice.
const MAGIC: u64 = 0x6d69_6466_6c63_6800;
const OFF: u64 = MAGIC | 2;
const ON: u64 = MAGIC | 1;

/// True if the write cache was on when this was stored; `None` if the region
/// does not say, or has no room for it.
pub fn load_choice<M: GuestMemory>(mem: &M, shape: &RegionShape) -> Option<bool> {
    let at = GuestAddress(shape.spare()?);
    match mem.load::<u64>(at, Ordering::Acquire).ok()? {
        ON => Some(true),
        OFF => Some(false),
        _ => None,
    }
}

/// Leave the choice for a successor, if there is room. One store of eight bytes:
/// there is either the old choice or the new one.
pub fn store_choice<M: GuestMemory>(
    mem: &M,
    shape: &RegionShape,
    on: bool,
) -> Result<(), RegionGone> {
    let Some(offset) = shape.spare() else { return Ok(()) };
    let value = if on { ON } else { OFF };
    super::store(mem, offset, value)
}

#[cfg(test)]
mod tests {
    use super::super::{region_size, region_size_of};
    use super::*;
    use crate::vring::RingFormat;
    use crate::wire::InflightDescription;
    use vm_memory::GuestMemoryMmap;

    fn shape(mmap_size: u64, num_queues: u16, queue_size: u16) -> RegionShape {
        let d = InflightDescription { mmap_size, mmap_offset: 0, num_queues, queue_size };
        RegionShape::new(&d).unwrap()
    }

    #[test]
    fn inflight_choice_is_kept_beside_the_entries_of_every_size() {
        for (queues, size) in [(1, 1), (1, 2), (1, 128), (4, 128), (3, 256), (1, 32768)] {
            let bytes = region_size(queues, size);
            let shape = shape(bytes, queues, size);
            let at = shape.spare().unwrap();
            assert!(at >= 16 + 16 * u64::from(size), "behind the last entry");
            assert!(at + 8 <= bytes / u64::from(queues), "before the next part");
            let mem: GuestMemoryMmap =
                GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap();
            assert_eq!(load_choice(&mem, &shape), None);
            for on in [false, true, false] {
                store_choice(&mem, &shape, on).unwrap();
                assert_eq!(load_choice(&mem, &shape), Some(on));
            }
            mem.write_obj(0x0101_0101_0101_0101u64, GuestAddress(at)).unwrap();
            assert_eq!(load_choice(&mem, &shape), None, "rubbish is no choice");
        }
    }

    #[test]
    fn inflight_choice_of_packed_vrings_is_behind_their_longer_entries() {
        for (size, room) in [(128, true), (6, true), (7, false), (1, false)] {
            let mmap_size = region_size_of(RingFormat::Packed, 1, size);
            let d =
                InflightDescription { mmap_size, mmap_offset: 0, num_queues: 1, queue_size: size };
            let at = RegionShape::of(RingFormat::Packed, &d).unwrap().spare();
            assert_eq!(at.is_some(), room, "queue size {size}");
            assert!(at.is_none_or(|at| at >= 32 + 32 * u64::from(size)));
        }
    }

    #[test]
    fn inflight_choice_has_no_place_in_a_region_without_a_gap() {
        let shape = shape(2 * 2064, 2, 128);
        let mem: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4128)]).unwrap();
        store_choice(&mem, &shape, false).unwrap();
        assert_eq!(load_choice(&mem, &shape), None);
        let mut bytes = vec![0; 4128];
        mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert!(bytes.iter().all(|b| *b == 0), "nothing was stored");
    }
}
