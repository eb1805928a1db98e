//! Split rings, read from their byte layout.
// spec: virtio 1.2, "Split Virtqueues"

use super::Violation;
use crate::memory::Mem;
use vm_memory::GuestAddress;

/// Where a ring lies and how far the oracle has read it.
#[derive(Clone, Copy, Debug)]
pub struct RingView {
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Next available index to read.
    pub avail_seen: u16,
    /// Next used index to read.
    pub used_seen: u16,
}

pub(super) fn u16_at(mem: &Mem, addr: u64) -> u16 {
    u16::from_le_bytes(mem.load16(addr).expect("rings lie in guest memory"))
}

fn u32_at(mem: &Mem, addr: u64) -> u32 {
    let mut bytes = [0; 4];
    mem.read_slice(&mut bytes, GuestAddress(addr)).expect("rings lie in guest memory");
    u32::from_le_bytes(bytes)
}

impl RingView {
    /// Addresses of the used ring.
    pub fn used_range(&self) -> std::ops::Range<u64> {
        self.used..self.used + 6 + 8 * u64::from(self.size)
    }

    /// Used index in memory.
    pub fn used_index(&self, mem: &Mem) -> u16 {
        u16_at(mem, self.used + 2)
    }

    /// Head of the used element with this index.
    pub fn used_head(&self, mem: &Mem, index: u16) -> u16 {
        u32_at(mem, self.used + 4 + 8 * u64::from(index % self.size)) as u16
    }

    /// Available index in memory.
    pub fn avail_index(&self, mem: &Mem) -> u16 {
        u16_at(mem, self.avail + 2)
    }

    /// The next head the guest has made available.
    pub fn next_avail(&mut self, mem: &Mem) -> Option<u16> {
        if self.avail_index(mem) == self.avail_seen {
            return None;
        }
        let slot = u64::from(self.avail_seen % self.size);
        self.avail_seen = self.avail_seen.wrapping_add(1);
        Some(u16_at(mem, self.avail + 4 + 2 * slot))
    }

    /// The next used element.
    pub fn next_used(&mut self, mem: &Mem, vring: u16) -> Result<Option<(u32, u32)>, Violation> {
        let index = self.used_index(mem);
        let ahead = index.wrapping_sub(self.used_seen);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.size {
            return Err(Violation::new(
                "rings",
                format!(
                    "vring {vring}: used index went from {} to {index}, more than the ring's {} entries",
                    self.used_seen, self.size
                ),
            ));
        }
        let at = self.used + 4 + 8 * u64::from(self.used_seen % self.size);
        self.used_seen = self.used_seen.wrapping_add(1);
        Ok(Some((u32_at(mem, at), u32_at(mem, at + 4))))
    }
}
