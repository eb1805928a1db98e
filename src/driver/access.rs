//! Descriptors and ring words in guest memory, little-endian.

use super::chain::Buffer;
use super::error::DriverError;
use super::layout::DESC_SIZE;
use crate::words::Words;
use core::sync::atomic::Ordering;
use vm_memory::GuestMemory;

pub(super) const F_NEXT: u16 = 1;
pub(super) const F_WRITE: u16 = 2;
pub(super) const F_INDIRECT: u16 = 4;

/// One descriptor.
// spec: virtio 1.2, "The Virtqueue Descriptor Table"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Desc {
    /// The descriptor of a buffer that `next` follows.
    pub(super) fn of(buffer: &Buffer, next: Option<u16>) -> Self {
        let write = if buffer.writable { F_WRITE } else { 0 };
        let chained = if next.is_some() { F_NEXT } else { 0 };
        Self { addr: buffer.addr, len: buffer.len, flags: write | chained, next: next.unwrap_or(0) }
    }
}

pub(super) fn write_desc<M: GuestMemory + ?Sized>(
    mem: &M,
    at: u64,
    desc: Desc,
) -> Result<(), DriverError> {
    let mut raw = [0; DESC_SIZE as usize];
    raw[0..8].copy_from_slice(&desc.addr.to_le_bytes());
    raw[8..12].copy_from_slice(&desc.len.to_le_bytes());
    raw[12..14].copy_from_slice(&desc.flags.to_le_bytes());
    raw[14..16].copy_from_slice(&desc.next.to_le_bytes());
    write(mem, at, &raw)
}

pub(super) fn read_desc<M: GuestMemory + ?Sized>(mem: &M, at: u64) -> Result<Desc, DriverError> {
    let mut raw = [0; DESC_SIZE as usize];
    read(mem, at, &mut raw)?;
    let word = u128::from_le_bytes(raw);
    Ok(Desc {
        addr: word as u64,
        len: (word >> 64) as u32,
        flags: (word >> 96) as u16,
        next: (word >> 112) as u16,
    })
}

/// Fill an indirect table.
// spec: virtio 1.2, "Indirect Descriptors"
pub(super) fn write_table<M: GuestMemory + ?Sized>(
    mem: &M,
    table: u64,
    buffers: &[Buffer],
) -> Result<(), DriverError> {
    let last = buffers.len() - 1;
    for (i, buffer) in buffers.iter().enumerate() {
        // Links count entries of the table.
        let next = (i < last).then_some((i + 1) as u16);
        write_desc(mem, table_entry(table, i as u64)?, Desc::of(buffer, next))?;
    }
    Ok(())
}

/// Writable bytes of the buffers in an indirect table that a driver once wrote.
pub(super) fn table_writable<M: GuestMemory + ?Sized>(
    mem: &M,
    table: u64,
    bytes: u32,
) -> Result<u64, DriverError> {
    let mut sum = 0;
    for i in 0..u64::from(bytes) / DESC_SIZE {
        let desc = read_desc(mem, table_entry(table, i)?)?;
        if desc.flags & F_WRITE != 0 {
            sum += u64::from(desc.len);
        }
    }
    Ok(sum)
}

fn table_entry(table: u64, index: u64) -> Result<u64, DriverError> {
    table.checked_add(index * DESC_SIZE).ok_or_else(|| no_memory(table, DESC_SIZE as usize))
}

pub(super) fn zero<M: GuestMemory + ?Sized>(
    mem: &M,
    addr: u64,
    bytes: u64,
) -> Result<(), DriverError> {
    const ZEROES: [u8; 512] = [0; 512];
    let mut done = 0;
    while done < bytes {
        let piece = (bytes - done).min(512);
        write(mem, addr + done, &ZEROES[..piece as usize])?;
        done += piece;
    }
    Ok(())
}

pub(super) fn write<W: Words + ?Sized>(
    mem: &W,
    addr: u64,
    bytes: &[u8],
) -> Result<(), DriverError> {
    mem.copy_in(addr, bytes).ok_or_else(|| no_memory(addr, bytes.len()))
}

pub(super) fn read<W: Words + ?Sized>(
    mem: &W,
    addr: u64,
    bytes: &mut [u8],
) -> Result<(), DriverError> {
    mem.copy_out(addr, bytes).ok_or_else(|| no_memory(addr, bytes.len()))
}

pub(super) fn load_u16<W: Words + ?Sized>(
    mem: &W,
    addr: u64,
    order: Ordering,
) -> Result<u16, DriverError> {
    mem.load_u16(addr, order).ok_or_else(|| no_memory(addr, 2))
}

pub(super) fn load_u32<W: Words + ?Sized>(
    mem: &W,
    addr: u64,
    order: Ordering,
) -> Result<u32, DriverError> {
    mem.load_u32(addr, order).ok_or_else(|| no_memory(addr, 4))
}

pub(super) fn store_u32<W: Words + ?Sized>(
    mem: &W,
    addr: u64,
    value: u32,
    order: Ordering,
) -> Result<(), DriverError> {
    mem.store_u32(addr, value, order).ok_or_else(|| no_memory(addr, 4))
}

pub(super) fn store_u16<W: Words + ?Sized>(
    mem: &W,
    addr: u64,
    value: u16,
    order: Ordering,
) -> Result<(), DriverError> {
    mem.store_u16(addr, value, order).ok_or_else(|| no_memory(addr, 2))
}

fn no_memory(addr: u64, len: usize) -> DriverError {
    DriverError::NoMemory { addr, len: u32::try_from(len).unwrap_or(u32::MAX) }
}
