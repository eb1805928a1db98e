//! The words of a ring that driver and device both look at.
//!
//! Who must be woken is decided by a handful of loads, stores and fences of
//! these. Both sides reach them by this trait, so that a model checker can be
//! put in the place of guest memory and try every order there is
//! (`tests/notifications.rs`). For guest memory it is what vm-memory does, and
//! costs nothing more.

use core::sync::atomic::{self, Ordering};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Memory by guest-physical address, in the host's byte order. `None`: there is
/// none at that address.
pub trait Words {
    /// Load 16 bits in one piece.
    fn load_u16(&self, at: u64, order: Ordering) -> Option<u16>;
    /// Store 16 bits in one piece.
    fn store_u16(&self, at: u64, value: u16, order: Ordering) -> Option<()>;
    /// Load 32 bits in one piece.
    fn load_u32(&self, at: u64, order: Ordering) -> Option<u32>;
    /// Store 32 bits in one piece.
    fn store_u32(&self, at: u64, value: u32, order: Ordering) -> Option<()>;
    /// Store 64 bits in one piece.
    fn store_u64(&self, at: u64, value: u64, order: Ordering) -> Option<()>;
    /// Read what another word says is there and does not change.
    fn copy_out(&self, at: u64, bytes: &mut [u8]) -> Option<()>;
    /// Write what another word will say is there.
    fn copy_in(&self, at: u64, bytes: &[u8]) -> Option<()>;
    /// Whatever was stored before is seen before anything is loaded after: a
    /// fence that is sequentially consistent.
    fn fence(&self);
}

impl<M: GuestMemory + ?Sized> Words for M {
    #[inline]
    fn load_u16(&self, at: u64, order: Ordering) -> Option<u16> {
        self.load(GuestAddress(at), order).ok().map(u16::from_le)
    }

    #[inline]
    fn store_u16(&self, at: u64, value: u16, order: Ordering) -> Option<()> {
        self.store(value.to_le(), GuestAddress(at), order).ok()
    }

    #[inline]
    fn load_u32(&self, at: u64, order: Ordering) -> Option<u32> {
        self.load(GuestAddress(at), order).ok().map(u32::from_le)
    }

    #[inline]
    fn store_u32(&self, at: u64, value: u32, order: Ordering) -> Option<()> {
        self.store(value.to_le(), GuestAddress(at), order).ok()
    }

    #[inline]
    fn store_u64(&self, at: u64, value: u64, order: Ordering) -> Option<()> {
        self.store(value.to_le(), GuestAddress(at), order).ok()
    }

    #[inline]
    fn copy_out(&self, at: u64, bytes: &mut [u8]) -> Option<()> {
        self.read_slice(bytes, GuestAddress(at)).ok()
    }

    #[inline]
    fn copy_in(&self, at: u64, bytes: &[u8]) -> Option<()> {
        self.write_slice(bytes, GuestAddress(at)).ok()
    }

    #[inline]
    fn fence(&self) {
        atomic::fence(Ordering::SeqCst);
    }
}
