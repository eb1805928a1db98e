//! What the device is: size, limits, abilities, and how the guest sees them.
// spec: virtio 1.2, "Block Device", struct virtio_blk_config

use super::limits::{Lifetime, MAX_RANGES, RangeLimits, Topology};
use super::zones::ZonedConfig;
use virtio_bindings::virtio_blk as v;
use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Unit of `capacity` and of every sector number, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// Data segments a request may have.
pub const SEG_MAX: u32 = 126;

/// Bytes of the configuration space, through the zoned characteristics.
pub const CONFIG_SIZE: usize = 96;

/// Offset of the write cache byte, the only one a guest may write.
pub const WRITEBACK_OFFSET: u32 = 32;

/// Feature bit of GET_LIFETIME, which the kernel's header does not name.
const VIRTIO_BLK_F_LIFETIME: u32 = 15;

/// The zoned model whose zones have to be written in sequence.
const HOST_MANAGED: u8 = 1;

/// The device as its operator configured it. Fixed while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Size in bytes, a multiple of `logical_block_size`.
    pub capacity: u64,
    /// Smallest unit of a request, in bytes: a power of two, 512 to 65536.
    pub logical_block_size: u32,
    /// Number of vrings, 1 to 256.
    pub num_queues: u16,
    /// Largest ring size accepted: a power of two, 2 to 32768.
    pub queue_size_max: u16,
    /// Refuse everything that changes the disk.
    pub read_only: bool,
    /// Answer to GET_ID, NUL padded.
    pub serial: [u8; 20],
    /// The disk can discard.
    pub discard: bool,
    /// The disk can write zeroes.
    pub write_zeroes: bool,
    /// The disk can erase for good, and is to be asked to.
    pub secure_erase: bool,
    /// How much one request for ranges may ask for.
    pub limits: RangeLimits,
    /// What the disk prefers; `None`: nothing is known.
    pub topology: Option<Topology>,
    /// Answer to GET_LIFETIME; `None`: it is not offered.
    pub lifetime: Option<Lifetime>,
    /// The disk is divided into zones.
    pub zoned: Option<ZonedConfig>,
    /// Offer VIRTIO_F_ACCESS_PLATFORM: the front-end may have an IOMMU between
    /// the guest's memory and the device.
    pub access_platform: bool,
    /// Offer kicks and calls by message, for front-ends that want them.
    pub inband: bool,
    /// Requests are used in the order they became available. Off unless asked
    /// for: a guest that accepts it waits for the slowest.
    pub in_order: bool,
    /// A guest may reset one queue while the others go on. Off unless asked
    /// for: the front-end has to pass such a reset on.
    pub ring_reset: bool,
    /// Packed vrings are offered.
    pub packed: bool,
}

/// The configuration makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a block size.
    #[error("logical block size {0}, expected a power of two from 512 to 65536")]
    LogicalBlockSize(u32),
    /// Half a block at the end.
    #[error("capacity {capacity} is not a multiple of the logical block size {block}")]
    Capacity {
        /// Bytes.
        capacity: u64,
        /// Bytes.
        block: u32,
    },
    /// Vring indexes are 8 bits wide on the wire.
    #[error("number of queues {0}, expected 1 to 256")]
    NumQueues(u16),
    /// A limit of 0 or beyond all measure.
    #[error("limit on {what} is {got}, expected 1 to {max}")]
    Limit {
        /// Which.
        what: &'static str,
        /// Value.
        got: u32,
        /// Largest value.
        max: u32,
    },
    /// A value that the document reserves.
    #[error("lifetime {0:?}, expected at most 3 for reserved blocks and at most 11 for wear")]
    Lifetime(Lifetime),
    /// The zones cannot be so.
    #[error("zones: {0}")]
    Zones(&'static str),
    /// Not a ring size.
    #[error("queue size {0}, expected a power of two from 2 to 32768")]
    QueueSize(u16),
}

impl DeviceConfig {
    /// A writable disk of `capacity` bytes with one queue and every ability of a
    /// disk; its vrings are split.
    pub fn with_capacity(capacity: u64) -> Self {
        Self {
            capacity,
            logical_block_size: 512,
            num_queues: 1,
            queue_size_max: 1024,
            read_only: false,
            serial: [0; 20],
            discard: true,
            write_zeroes: true,
            secure_erase: false,
            limits: RangeLimits::default(),
            topology: None,
            lifetime: None,
            zoned: None,
            access_platform: false,
            inband: false,
            in_order: false,
            ring_reset: false,
            packed: false,
        }
    }

    /// Check every range stated at the fields.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let block = self.logical_block_size;
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(ConfigError::LogicalBlockSize(block));
        }
        if !self.capacity.is_multiple_of(u64::from(block)) {
            return Err(ConfigError::Capacity { capacity: self.capacity, block });
        }
        if !(1..=256).contains(&self.num_queues) {
            return Err(ConfigError::NumQueues(self.num_queues));
        }
        let size = self.queue_size_max;
        if !size.is_power_of_two() || !(2..=32768).contains(&size) {
            return Err(ConfigError::QueueSize(size));
        }
        let l = &self.limits;
        for (what, got, max) in [
            ("ranges", l.ranges, MAX_RANGES),
            ("sectors of a discard", l.discard_sectors, u32::MAX),
            ("sectors of a write zeroes", l.write_zeroes_sectors, u32::MAX),
            ("sectors of a secure erase", l.secure_erase_sectors, u32::MAX),
        ] {
            if !(1..=max).contains(&got) {
                return Err(ConfigError::Limit { what, got, max });
            }
        }
        if let Some(lifetime) = self.lifetime.filter(|lifetime| !lifetime.is_valid()) {
            return Err(ConfigError::Lifetime(lifetime));
        }
        match &self.zoned {
            // A secure erase of a zone would have to be a reset of it, and a
            // reset promises no such thing.
            Some(_) if self.secure_erase => Err(ConfigError::Zones("they cannot be erased")),
            Some(zoned) => zoned
                .validate(self.capacity / SECTOR_SIZE, block / SECTOR_SIZE as u32)
                .map_err(ConfigError::Zones),
            None => Ok(()),
        }
    }

    /// Virtio feature bits of the device and its rings, without those of
    /// vhost-user itself.
    pub fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            v::VIRTIO_BLK_F_SEG_MAX,
            v::VIRTIO_BLK_F_BLK_SIZE,
            v::VIRTIO_BLK_F_TOPOLOGY,
            v::VIRTIO_BLK_F_FLUSH,
            v::VIRTIO_BLK_F_CONFIG_WCE,
        ];
        if self.num_queues > 1 {
            bits.push(v::VIRTIO_BLK_F_MQ);
        }
        if self.access_platform {
            bits.push(VIRTIO_F_ACCESS_PLATFORM);
        }
        if self.read_only {
            bits.push(v::VIRTIO_BLK_F_RO);
        }
        if self.in_order {
            bits.push(VIRTIO_F_IN_ORDER);
        }
        if self.ring_reset {
            bits.push(VIRTIO_F_RING_RESET);
        }
        if self.can_discard() {
            bits.push(v::VIRTIO_BLK_F_DISCARD);
        }
        if self.can_write_zeroes() {
            bits.push(v::VIRTIO_BLK_F_WRITE_ZEROES);
        }
        if self.can_secure_erase() {
            bits.push(v::VIRTIO_BLK_F_SECURE_ERASE);
        }
        if self.lifetime.is_some() {
            bits.push(VIRTIO_BLK_F_LIFETIME);
        }
        if self.zoned.is_some() {
            bits.push(v::VIRTIO_BLK_F_ZONED);
        }
        if self.packed {
            bits.push(VIRTIO_F_RING_PACKED);
        }
        bits.iter().fold(0, |all, bit| all | 1 << bit)
    }

    /// DISCARD is offered. A host-managed device has zones to reset instead.
    pub fn can_discard(&self) -> bool {
        self.discard && !self.read_only && self.zoned.is_none()
    }

    /// WRITE_ZEROES is offered. In a zone it would be a write that no rule is
    /// written for.
    pub fn can_write_zeroes(&self) -> bool {
        self.write_zeroes && !self.read_only && self.zoned.is_none()
    }

    /// SECURE_ERASE is offered.
    pub fn can_secure_erase(&self) -> bool {
        self.secure_erase && !self.read_only
    }

    /// Most sectors of one discarded range.
    pub fn max_discard_sectors(&self) -> u32 {
        if self.can_discard() { self.limits.discard_sectors } else { 0 }
    }

    /// Most sectors of one zeroed range.
    pub fn max_write_zeroes_sectors(&self) -> u32 {
        if self.can_write_zeroes() { self.limits.write_zeroes_sectors } else { 0 }
    }

    /// The configuration space as the guest reads it, little endian.
    pub fn space(&self, writeback: bool) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        let block_sectors = self.logical_block_size / SECTOR_SIZE as u32;
        put(0, &(self.capacity / SECTOR_SIZE).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &self.logical_block_size.to_le_bytes());
        let t = self.topology.unwrap_or(Topology::plain(self.logical_block_size));
        put(24, &[t.physical_block_exp, t.alignment_offset]);
        put(26, &t.min_io_size.to_le_bytes());
        put(28, &t.opt_io_size.to_le_bytes());
        put(32, &[u8::from(writeback)]);
        put(34, &self.num_queues.to_le_bytes());
        let l = &self.limits;
        let aligned = |sectors: u32| if sectors == 0 { block_sectors } else { sectors };
        if self.can_discard() {
            put(36, &l.discard_sectors.to_le_bytes());
            put(40, &l.ranges.to_le_bytes());
            put(44, &aligned(l.discard_alignment).to_le_bytes());
        }
        if self.can_write_zeroes() {
            put(48, &l.write_zeroes_sectors.to_le_bytes());
            put(52, &l.ranges.to_le_bytes());
            put(56, &[1]);
        }
        if self.can_secure_erase() {
            put(60, &l.secure_erase_sectors.to_le_bytes());
            put(64, &l.ranges.to_le_bytes());
            put(68, &aligned(l.secure_erase_alignment).to_le_bytes());
        }
        if let Some(z) = &self.zoned {
            put(72, &z.zone_sectors.to_le_bytes());
            put(76, &z.max_open.to_le_bytes());
            put(80, &z.max_active.to_le_bytes());
            put(84, &z.max_append_sectors.to_le_bytes());
            put(88, &self.logical_block_size.to_le_bytes());
            put(92, &[HOST_MANAGED]);
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blk_config_space_has_its_fields_where_the_guest_looks() {
        let mut c = DeviceConfig::with_capacity(1 << 20);
        c.num_queues = 4;
        let s = c.space(true);
        assert_eq!(s[0..8], 2048u64.to_le_bytes());
        assert_eq!(s[12..16], 126u32.to_le_bytes());
        assert_eq!(s[20..24], 512u32.to_le_bytes());
        assert_eq!(s[24], 3);
        assert_eq!(s[32], 1);
        assert_eq!(s[34..36], 4u16.to_le_bytes());
        assert_eq!(s[36..48], [0, 0, 0x20, 0, 0, 1, 0, 0, 1, 0, 0, 0]);
        assert_eq!(s[48..57], [0, 0, 2, 0, 0, 1, 0, 0, 1]);
        assert_eq!(c.space(false)[32], 0);
    }

    #[test]
    fn blk_read_only_device_offers_nothing_that_writes() {
        let mut c = DeviceConfig::with_capacity(1 << 20);
        let writable = c.features();
        c.read_only = true;
        let gone = writable & !c.features();
        assert_eq!(gone, 1 << v::VIRTIO_BLK_F_DISCARD | 1 << v::VIRTIO_BLK_F_WRITE_ZEROES);
        assert_eq!(c.features() & !writable, 1 << v::VIRTIO_BLK_F_RO);
        assert_eq!(c.space(true)[36..], [0; 60]);
    }

    #[test]
    fn blk_erase_lifetime_and_zones_are_offered_only_when_asked_for() {
        let mut c = DeviceConfig::with_capacity(8 << 20);
        let plain = c.features();
        assert_eq!(plain >> 15 & 7, 0);
        assert_eq!(c.space(true)[60..], [0; 36]);
        c.secure_erase = true;
        c.lifetime = Some(Lifetime { pre_eol_info: 1, typ_a: 2, typ_b: 11 });
        c.limits.secure_erase_alignment = 8;
        assert_eq!(c.validate(), Ok(()));
        assert_eq!(c.features() ^ plain, 3 << 15);
        assert_eq!(c.space(true)[60..72], [0, 0, 2, 0, 0, 1, 0, 0, 8, 0, 0, 0]);
        c.read_only = true;
        assert_eq!(c.features() >> 15 & 7, 1, "a disk that is only read can be worn");

        let mut c = DeviceConfig::with_capacity(8 << 20);
        c.zoned = Some(ZonedConfig {
            zone_sectors: 4096,
            conventional: 1,
            max_open: 2,
            max_active: 3,
            max_append_sectors: 64,
        });
        assert_eq!(c.validate(), Ok(()));
        let gone = 1 << v::VIRTIO_BLK_F_DISCARD | 1 << v::VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(c.features() ^ plain, 1 << v::VIRTIO_BLK_F_ZONED | gone);
        let s = c.space(true);
        assert_eq!(s[72..80], [0, 16, 0, 0, 2, 0, 0, 0]);
        assert_eq!(s[80..96], [3, 0, 0, 0, 64, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0]);
        c.secure_erase = true;
        assert_eq!(c.validate().unwrap_err().to_string(), "zones: they cannot be erased");
    }

    #[test]
    fn blk_topology_and_limits_of_the_disk_are_shown() {
        let mut c = DeviceConfig::with_capacity(1 << 20);
        c.topology = Some(Topology {
            physical_block_exp: 4,
            alignment_offset: 7,
            min_io_size: 16,
            opt_io_size: 256,
        });
        c.limits = RangeLimits {
            ranges: 5,
            discard_sectors: 100,
            discard_alignment: 16,
            write_zeroes_sectors: 200,
            ..RangeLimits::default()
        };
        let s = c.space(true);
        assert_eq!(s[24..32], [4, 7, 16, 0, 0, 1, 0, 0]);
        assert_eq!(s[36..48], [100, 0, 0, 0, 5, 0, 0, 0, 16, 0, 0, 0]);
        assert_eq!(s[48..57], [200, 0, 0, 0, 5, 0, 0, 0, 1]);
        c.limits.ranges = 257;
        assert_eq!(
            c.validate().unwrap_err().to_string(),
            "limit on ranges is 257, expected 1 to 256"
        );
    }

    #[test]
    fn blk_config_that_makes_no_sense_is_refused() {
        let bad = |change: fn(&mut DeviceConfig)| {
            let mut c = DeviceConfig::with_capacity(1 << 20);
            change(&mut c);
            c.validate().unwrap_err().to_string()
        };
        assert_eq!(
            bad(|c| c.logical_block_size = 513),
            "logical block size 513, expected a power of two from 512 to 65536"
        );
        assert_eq!(
            bad(|c| c.capacity = 513),
            "capacity 513 is not a multiple of the logical block size 512"
        );
        assert_eq!(bad(|c| c.num_queues = 0), "number of queues 0, expected 1 to 256");
        assert_eq!(
            bad(|c| c.queue_size_max = 3),
            "queue size 3, expected a power of two from 2 to 32768"
        );
    }
}
