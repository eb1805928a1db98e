//! What both ring formats say about chains.

use super::error::DriverMisuse;

/// Ring features the driver may use: those both sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX: kicks and calls are suppressed by index.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC: chains may live in tables of their own.
    pub indirect: bool,
    /// VIRTIO_F_RING_PACKED: the ring is a packed one.
    pub packed: bool,
}

/// One piece of guest memory in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address of the first byte.
    pub addr: u64,
    /// Bytes, not 0.
    pub len: u32,
    /// The device writes it; otherwise it reads it.
    pub writable: bool,
}

/// Where an indirect table goes, and how much of the chain goes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indirect {
    /// Guest-physical address of the table; 16 bytes for each buffer in it.
    pub table: u64,
    /// Buffers kept as ordinary descriptors before the one that names the
    /// table. 0 in a packed ring, which knows no such chains.
    pub direct: u16,
}

/// A chain that the device has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Name of the chain in the ring, free for the next one already: its head
    /// in a split ring, its buffer id in a packed one.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// Legality of a chain's buffers, and the writable bytes in them.
pub(super) fn check_buffers(buffers: &[Buffer]) -> Result<u64, DriverMisuse> {
    let mut writable = 0;
    let mut in_part = false;
    if buffers.is_empty() {
        return Err(DriverMisuse::EmptyBuffer);
    }
    for &Buffer { addr, len, writable: w } in buffers {
        if len == 0 {
            return Err(DriverMisuse::EmptyBuffer);
        }
        if addr.checked_add(u64::from(len) - 1).is_none() {
            return Err(DriverMisuse::BufferOverflow { addr, len });
        }
        if in_part && !w {
            return Err(DriverMisuse::ReadableAfterWritable);
        }
        in_part = w;
        if w {
            writable += u64::from(len);
        }
    }
    Ok(writable)
}
