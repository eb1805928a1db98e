//! The memory table: what SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG leave.

use super::MapRegion;
use crate::bugs::{self, Bug};
use crate::wire::MemRegion;

/// Regions a table may hold, the answer to GET_MAX_MEM_SLOTS. QEMU uses at
/// most 512 on x86, of which some are never memory.
pub const MAX_REGIONS: u32 = 509;

/// Grain of guest addresses, user addresses and file offsets, in bytes. Sizes
/// have none: libblkio shares regions that end inside a page.
pub const PAGE_SIZE: u64 = 4096;

/// Why a region cannot be in the table, or is not. The table is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryFault {
    /// A region of no bytes.
    #[error("memory region at {guest_addr:#x} has size 0, expected at least {PAGE_SIZE}")]
    Empty {
        /// Guest-physical address.
        guest_addr: u64,
    },
    /// A field is not a multiple of the page size.
    #[error("memory region {field} {got:#x} is not a multiple of {PAGE_SIZE}")]
    Unaligned {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        got: u64,
    },
    /// Start plus size leaves the 64-bit address space.
    #[error("memory region {field} {start:#x} plus size {size:#x} overflows 64 bits")]
    Overflow {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        start: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Two regions share guest-physical or user addresses.
    #[error("memory region at {field} {got:#x} overlaps the region at {other:#x}")]
    Overlap {
        /// Which kind of address.
        field: &'static str,
        /// Start of the new region.
        got: u64,
        /// Start of the region that is in the table.
        other: u64,
    },
    /// No slot left.
    #[error("memory table holds {MAX_REGIONS} regions, no slot left for one at {guest_addr:#x}")]
    TooMany {
        /// Guest-physical address of the region refused.
        guest_addr: u64,
    },
    /// Nothing to remove.
    #[error(
        "no memory region at guest address {guest_addr:#x}, user address {user_addr:#x}, size {size:#x} to remove"
    )]
    Unknown {
        /// Guest-physical address.
        guest_addr: u64,
        /// User address.
        user_addr: u64,
        /// Size in bytes.
        size: u64,
    },
}

/// Regions of guest memory, ordered by guest-physical address; none overlap,
/// neither by guest-physical nor by user address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTable {
    regions: Vec<MapRegion>,
}

impl MemoryTable {
    /// A table of these regions, or what is wrong with the first bad one.
    pub fn from_regions(regions: impl IntoIterator<Item = MapRegion>) -> Result<Self, MemoryFault> {
        let mut table = Self::default();
        for r in regions {
            table.add(r)?;
        }
        Ok(table)
    }

    /// The regions by ascending guest-physical address.
    pub fn regions(&self) -> &[MapRegion] {
        &self.regions
    }

    /// True if there is no memory.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Put a region in.
    // spec: vhost-user, "Memory region description"
    pub fn add(&mut self, new: MapRegion) -> Result<(), MemoryFault> {
        check(&new.region)?;
        if self.regions.len() >= MAX_REGIONS as usize {
            return Err(MemoryFault::TooMany { guest_addr: new.region.guest_addr });
        }
        let r = &new.region;
        for old in &self.regions {
            let o = &old.region;
            if overlap(r.guest_addr, r.size, o.guest_addr, o.size) {
                return Err(MemoryFault::Overlap {
                    field: "guest address",
                    got: r.guest_addr,
                    other: o.guest_addr,
                });
            }
            if overlap(r.user_addr, r.size, o.user_addr, o.size) {
                return Err(MemoryFault::Overlap {
                    field: "user address",
                    got: r.user_addr,
                    other: o.user_addr,
                });
            }
        }
        let at = self.regions.partition_point(|o| o.region.guest_addr < r.guest_addr);
        self.regions.insert(at, new);
        Ok(())
    }

    /// Take a region out. The file offset plays no part in the match.
    // spec: vhost-user, VHOST_USER_REM_MEM_REG
    pub fn remove(&mut self, gone: &MemRegion) -> Result<MapRegion, MemoryFault> {
        let at = self.regions.iter().position(|o| {
            let o = &o.region;
            (o.guest_addr, o.user_addr, o.size) == (gone.guest_addr, gone.user_addr, gone.size)
        });
        match at {
            Some(at) => Ok(self.regions.remove(at)),
            None => Err(MemoryFault::Unknown {
                guest_addr: gone.guest_addr,
                user_addr: gone.user_addr,
                size: gone.size,
            }),
        }
    }

    /// Guest-physical address of `len` bytes at a user address, if they lie in
    /// one region.
    pub fn user_to_guest(&self, user_addr: u64, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|o| {
            let o = &o.region;
            let at = user_addr.checked_sub(o.user_addr)?;
            let end = at.checked_add(len)?;
            let inside = end <= o.size || bugs::on(Bug::RegionByStartOnly);
            inside.then(|| o.guest_addr.wrapping_add(at))
        })
    }

    /// Guest-physical address of a user address, and how many bytes from there
    /// on lie in the same region, at least one.
    pub fn find_user(&self, user_addr: u64) -> Option<(u64, u64)> {
        self.regions.iter().find_map(|o| {
            let o = &o.region;
            let at = user_addr.checked_sub(o.user_addr)?;
            let left = o.size.checked_sub(at).filter(|left| *left > 0)?;
            Some((o.guest_addr.wrapping_add(at), left))
        })
    }
}

fn check(r: &MemRegion) -> Result<(), MemoryFault> {
    if r.size == 0 {
        return Err(MemoryFault::Empty { guest_addr: r.guest_addr });
    }
    let fields = [
        ("guest address", r.guest_addr),
        ("user address", r.user_addr),
        ("mmap offset", r.mmap_offset),
    ];
    for (field, got) in fields {
        if !got.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryFault::Unaligned { field, got });
        }
    }
    for (field, start) in fields {
        if start.checked_add(r.size).is_none() {
            return Err(MemoryFault::Overflow { field, start, size: r.size });
        }
    }
    Ok(())
}

/// Both ranges were checked not to overflow.
fn overlap(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a < b + b_len && b < a + a_len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Handle;

    fn region(guest_addr: u64, size: u64, user_addr: u64, mmap_offset: u64) -> MapRegion {
        let region = MemRegion { guest_addr, size, user_addr, mmap_offset };
        MapRegion { region, handle: Handle(1) }
    }

    #[test]
    fn memory_table_refuses_what_cannot_be_mapped_and_stays_as_it_was() {
        let mut t = MemoryTable::from_regions([region(0x10000, 0x4000, 0x7000_0000, 0)]).unwrap();
        let before = t.clone();
        let end = u64::MAX - 0xfff;
        for (bad, text) in [
            (region(0, 0, 0, 0), "memory region at 0x0 has size 0, expected at least 4096"),
            (
                region(0x10, 0x1000, 0, 0),
                "memory region guest address 0x10 is not a multiple of 4096",
            ),
            (
                region(0, 0x1000, 0, 0x800),
                "memory region mmap offset 0x800 is not a multiple of 4096",
            ),
            (
                region(end, 0x2000, 0, 0),
                "memory region guest address 0xfffffffffffff000 plus size 0x2000 overflows 64 bits",
            ),
            (
                region(0, 0x2000, 0, end),
                "memory region mmap offset 0xfffffffffffff000 plus size 0x2000 overflows 64 bits",
            ),
            (
                region(0x13000, 0x1000, 0, 0),
                "memory region at guest address 0x13000 overlaps the region at 0x10000",
            ),
            (
                region(0x20000, 0x1000, 0x7000_3000, 0),
                "memory region at user address 0x70003000 overlaps the region at 0x70000000",
            ),
        ] {
            assert_eq!(t.add(bad).unwrap_err().to_string(), text);
            assert_eq!(t, before);
        }
        t.add(region(0x1000, 0x3b10, 0x1000, 0)).unwrap();
    }

    #[test]
    fn memory_table_holds_at_most_the_slots_it_promised() {
        let mut t = MemoryTable::default();
        for i in 0..u64::from(MAX_REGIONS) {
            t.add(region(i * 0x2000, 0x1000, i * 0x2000, 0)).unwrap();
        }
        let over = region(0x4000_0000, 0x1000, 0x4000_0000, 0);
        assert_eq!(t.add(over), Err(MemoryFault::TooMany { guest_addr: 0x4000_0000 }));
    }

    #[test]
    fn memory_table_removes_by_place_and_size_and_ignores_the_offset() {
        let mut t = MemoryTable::from_regions([region(0x1000, 0x1000, 0x9000, 0x3000)]).unwrap();
        let other = region(0x1000, 0x2000, 0x9000, 0x3000).region;
        assert!(matches!(t.remove(&other), Err(MemoryFault::Unknown { size: 0x2000, .. })));
        assert!(t.remove(&region(0x1000, 0x1000, 0x9000, 0).region).is_ok());
        assert!(t.is_empty());
    }

    #[test]
    fn memory_user_addresses_translate_only_inside_one_region() {
        let t = MemoryTable::from_regions([
            region(0x0, 0x1000, 0x10000, 0),
            region(0x1000, 0x1000, 0x11000, 0x1000),
        ])
        .unwrap();
        assert_eq!(t.user_to_guest(0x10ff0, 16), Some(0xff0));
        assert_eq!(t.user_to_guest(0x10ff0, 17), None);
        assert_eq!(t.user_to_guest(0x11010, 16), Some(0x1010));
        assert_eq!(t.user_to_guest(0xffff, 1), None);
        assert_eq!(t.user_to_guest(u64::MAX, u64::MAX), None);
    }
}
