//! Descriptors of a packed ring in guest memory, little-endian.

use super::position::PackedPosition;
use crate::driver::access::{F_INDIRECT, F_NEXT, F_WRITE, load_u16, read, store_u16, write};
use crate::driver::chain::Buffer;
use crate::driver::error::DriverError;
use crate::driver::layout::DESC_SIZE;
use crate::words::Words;
use core::sync::atomic::Ordering;
use vm_memory::GuestMemory;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Offset of the flags in a descriptor.
const FLAGS: u64 = 14;

/// One descriptor as the driver makes it available.
// spec: virtio 1.2, "The Virtqueue Descriptor Table" of "Packed Virtqueues"
#[derive(Clone, Copy, Debug)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl Desc {
    /// A buffer, which another one follows or not.
    pub(super) fn buffer(buffer: &Buffer, id: u16, more: bool, at: PackedPosition) -> Self {
        let write = if buffer.writable { F_WRITE } else { 0 };
        let next = if more { F_NEXT } else { 0 };
        let flags = write | next | available(at.wrap);
        Self { addr: buffer.addr, len: buffer.len, id, flags }
    }

    /// A table of so many descriptors.
    pub(super) fn table(addr: u64, count: usize, id: u16, at: PackedPosition) -> Self {
        let len = (count as u64 * DESC_SIZE) as u32;
        Self { addr, len, id, flags: F_INDIRECT | available(at.wrap) }
    }

    /// Everything but the flags, which say whose the descriptor is.
    pub(super) fn write_body<W: Words + ?Sized>(
        &self,
        mem: &W,
        entry: u64,
    ) -> Result<(), DriverError> {
        let mut raw = [0; FLAGS as usize];
        raw[0..8].copy_from_slice(&self.addr.to_le_bytes());
        raw[8..12].copy_from_slice(&self.len.to_le_bytes());
        raw[12..14].copy_from_slice(&self.id.to_le_bytes());
        write(mem, entry, &raw)
    }

    pub(super) fn write_flags<W: Words + ?Sized>(
        &self,
        mem: &W,
        entry: u64,
        order: Ordering,
    ) -> Result<(), DriverError> {
        store_u16(mem, entry + FLAGS, self.flags, order)
    }
}

/// Bits of a descriptor that belongs to the device in a round with this counter.
const fn available(wrap: bool) -> u16 {
    if wrap { AVAIL } else { USED }
}

/// Bits of a descriptor that the device has given back in such a round.
const fn used(wrap: bool) -> u16 {
    if wrap { AVAIL | USED } else { 0 }
}

/// Mark an entry as one that was given back in a round with this counter.
pub(super) fn write_used<M: GuestMemory + ?Sized>(
    mem: &M,
    entry: u64,
    wrap: bool,
) -> Result<(), DriverError> {
    store_u16(mem, entry + FLAGS, used(wrap), Ordering::Relaxed)
}

/// Buffer id and length of a used descriptor, `None` while the entry is not one.
// spec: virtio 1.2, "Receiving Used Buffers From The Device" of "Packed Virtqueues"
pub(super) fn read_used<W: Words + ?Sized>(
    mem: &W,
    entry: u64,
    wrap: bool,
) -> Result<Option<(u16, u32)>, DriverError> {
    let flags = load_u16(mem, entry + FLAGS, Ordering::Acquire)?;
    if flags & (AVAIL | USED) != used(wrap) {
        return Ok(None);
    }
    let mut raw = [0; 6];
    read(mem, entry + 8, &mut raw)?;
    let [a, b, c, d, e, f] = raw;
    // Without the flag nothing was written, and the length means nothing.
    // spec: virtio 1.2, "Element Address and Length"
    let len = if flags & F_WRITE != 0 { u32::from_le_bytes([a, b, c, d]) } else { 0 };
    Ok(Some((u16::from_le_bytes([e, f]), len)))
}

/// Fill an indirect table. Its descriptors follow each other without links.
// spec: virtio 1.2, "Indirect Flag: Scatter-Gather Support"
pub(super) fn write_table<W: Words + ?Sized>(
    mem: &W,
    table: u64,
    buffers: &[Buffer],
) -> Result<(), DriverError> {
    for (i, buffer) in (0u64..).zip(buffers) {
        let entry = table
            .checked_add(i * DESC_SIZE)
            .ok_or(DriverError::NoMemory { addr: table, len: DESC_SIZE as u32 })?;
        let flags = if buffer.writable { F_WRITE } else { 0 };
        let desc = Desc { addr: buffer.addr, len: buffer.len, id: 0, flags };
        desc.write_body(mem, entry)?;
        desc.write_flags(mem, entry, Ordering::Relaxed)?;
    }
    Ok(())
}
