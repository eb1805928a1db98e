//! What the disk under the device can do at once and prefers, and how worn it is.

/// Most ranges one DISCARD, WRITE_ZEROES or SECURE_ERASE may be allowed to
/// have: as many as Linux puts into one request.
pub const MAX_RANGES: u32 = 256;

/// Alignment and sizes of requests that the disk likes best.
// spec: virtio 1.2, "Block Device", struct virtio_blk_topology
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Logical blocks of a physical block, as a power of two: 0 to 16.
    pub physical_block_exp: u8,
    /// Logical blocks before the first aligned one.
    pub alignment_offset: u8,
    /// Smallest size that is no loss, in logical blocks.
    pub min_io_size: u16,
    /// Best size, in logical blocks; 0: none is known.
    pub opt_io_size: u32,
}

impl Topology {
    /// What is said of a disk that says nothing: physical blocks of 4096 bytes
    /// or one logical block, none misaligned, no preference.
    pub fn plain(logical_block_size: u32) -> Self {
        let exp = (4096 / logical_block_size).max(1).ilog2();
        Self { physical_block_exp: exp as u8, alignment_offset: 0, min_io_size: 1, opt_io_size: 0 }
    }
}

/// How much one request for ranges may ask for. Sectors have 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Ranges of one request, 1 to [`MAX_RANGES`].
    pub ranges: u32,
    /// Sectors of one range of a DISCARD, not 0.
    pub discard_sectors: u32,
    /// Sectors that ranges of a DISCARD should be aligned to; 0: one logical
    /// block.
    pub discard_alignment: u32,
    /// Sectors of one range of a WRITE_ZEROES, not 0.
    pub write_zeroes_sectors: u32,
    /// Sectors of one range of a SECURE_ERASE, not 0.
    pub secure_erase_sectors: u32,
    /// Sectors that ranges of a SECURE_ERASE should be aligned to; 0: one
    /// logical block.
    pub secure_erase_alignment: u32,
}

impl Default for RangeLimits {
    fn default() -> Self {
        Self {
            ranges: MAX_RANGES,
            // 1 GiB.
            discard_sectors: 1 << 21,
            discard_alignment: 0,
            // 64 MiB: a disk that cannot do it quickly has to write them.
            write_zeroes_sectors: 1 << 17,
            secure_erase_sectors: 1 << 17,
            secure_erase_alignment: 0,
        }
    }
}

/// How worn the disk is, as it answers GET_LIFETIME.
// spec: virtio 1.2, "Device Operation", struct virtio_blk_lifetime
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Reserved blocks consumed: 0 not known, 1 less than 80 %, 2 80 %, 3 90 %.
    pub pre_eol_info: u8,
    /// Wear of SLC cells in steps of 10 %, rounded up: 1 to 10, 11 exceeded, 0
    /// not known.
    pub typ_a: u8,
    /// Wear of MLC cells, likewise.
    pub typ_b: u8,
}

impl Lifetime {
    /// Bytes of the answer.
    pub const SIZE: usize = 6;

    /// No value is a reserved one: those must never be sent.
    pub fn is_valid(&self) -> bool {
        self.pre_eol_info <= 3 && self.typ_a <= 11 && self.typ_b <= 11
    }

    /// The answer as the guest reads it, little endian.
    pub fn bytes(&self) -> [u8; Self::SIZE] {
        [self.pre_eol_info, 0, self.typ_a, 0, self.typ_b, 0]
    }
}
