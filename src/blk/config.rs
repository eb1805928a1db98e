//! What the device is: size, limits, abilities. Fixed while it runs.

/// The device as its operator configured it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Size in bytes, a multiple of `logical_block_size`.
    pub capacity: u64,
    /// Smallest addressable unit: a power of two, 512 to 4096 bytes...
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
}
