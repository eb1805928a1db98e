//! Where zones begin and end. Everything is in sectors of 512 bytes.

/// Most zones a device may have: a report of all is a few MiB then.
const MAX_ZONES: u64 = 1 << 16;

/// Zones as their operator wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZonedConfig {
    /// Sectors of a zone: a power of two, at least one logical block.
    pub zone_sectors: u32,
    /// So many zones at the start of the disk are conventional: they are written
    /// in any order.
    pub conventional: u32,
    /// Most zones that may be open; 0: any number.
    pub max_open: u32,
    /// Most zones that may be open or closed; 0: any number.
    pub max_active: u32,
    /// Largest append, in sectors: whole logical blocks, at most 1008, which is
    /// what `seg_max` segments of 4096 bytes hold. 0: there are no appends.
    pub max_append_sectors: u32,
}

impl ZonedConfig {
    /// Check every range stated at the fields, for a disk of `capacity` sectors
    /// in blocks of `block` sectors.
    pub(in crate::blk) fn validate(&self, capacity: u64, block: u32) -> Result<(), &'static str> {
        let (zone, append) = (self.zone_sectors, self.max_append_sectors);
        if !zone.is_power_of_two() || zone < block {
            return Err("expected a size that is a power of two and at least one logical block");
        }
        let zones = self.geometry(capacity).zones();
        if !(1..=MAX_ZONES).contains(&capacity.div_ceil(u64::from(zone))) {
            return Err("expected 1 to 65536 of them");
        }
        if self.conventional > zones {
            return Err("there are fewer than are to be conventional");
        }
        if !append.is_multiple_of(block) || append > 1008 {
            return Err("expected appends of whole blocks and at most 1008 sectors");
        }
        let (open, active) = (self.max_open, self.max_active);
        if active != 0 && (open == 0 || open > active) {
            return Err("more may be open than active");
        }
        Ok(())
    }

    /// The zones of a disk of `capacity` sectors.
    pub fn geometry(&self, capacity: u64) -> Geometry {
        Geometry { capacity, zone_sectors: self.zone_sectors, conventional: self.conventional }
    }
}

/// The zones of a disk. All have the same size except for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Sectors of a zone.
    pub zone_sectors: u32,
    /// Zones at the start that are conventional.
    pub conventional: u32,
}

impl Geometry {
    /// How many there are.
    pub fn zones(&self) -> u32 {
        self.capacity.div_ceil(u64::from(self.zone_sectors)) as u32
    }

    /// The zone of a sector that is on the disk.
    pub fn zone_of(&self, sector: u64) -> u32 {
        (sector / u64::from(self.zone_sectors)) as u32
    }

    /// First sector of a zone.
    pub fn start(&self, zone: u32) -> u64 {
        u64::from(zone) * u64::from(self.zone_sectors)
    }

    /// First sector behind a zone.
    pub fn end(&self, zone: u32) -> u64 {
        self.start(zone + 1).min(self.capacity)
    }

    /// It may be written in any order.
    pub fn is_conventional(&self, zone: u32) -> bool {
        zone < self.conventional
    }
}
