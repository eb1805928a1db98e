//! Guest memory by I/O virtual address.

use super::map::lookup;
use super::{Access, Gap, Iotlb, PAGE, RingMap};
use crate::memory::{MemoryTable, Segment};
use core::cell::Cell;
use core::iter::FusedIterator;
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

/// What translates the addresses of one ring.
#[derive(Clone, Copy, Debug)]
pub struct Translator<'a> {
    /// What the front-end has told.
    pub tlb: &'a Iotlb,
    /// Where its user addresses are.
    pub table: &'a MemoryTable,
    /// The ring, which is known whatever the IOTLB has forgotten.
    pub ring: &'a RingMap,
}

impl<'a> Translator<'a> {
    /// Guest-physical address of a byte that may be used like this, and how
    /// many follow it there.
    pub fn find(&self, iova: u64, access: Access) -> Option<(u64, u64)> {
        self.ring.find(iova, access).or_else(|| {
            lookup(self.tlb, self.table, iova, access).map(|(_, guest, len)| (guest, len))
        })
    }

    /// True if the byte can be used like this now.
    pub fn is_filled(&self, gap: &Gap) -> bool {
        lookup(self.tlb, self.table, gap.iova, gap.access).is_some()
    }

    /// Add the guest-physical pieces of buffers to `into`, and the pages of them
    /// that do not translate to `gaps`, of which no more are looked for when
    /// there are `max_gaps`. Pieces that follow each other become one.
    ///
    /// False if no translation helps: there are more than `max` pieces, or
    /// addresses beyond 64 bits.
    pub fn segments(
        &self,
        from: &[Segment],
        access: Access,
        into: &mut Vec<Segment>,
        max: usize,
        gaps: &mut Vec<Gap>,
        max_gaps: usize,
    ) -> bool {
        for segment in from {
            let begin = into.len();
            let (mut at, mut left) = (Some(segment.addr), u64::from(segment.len));
            while left > 0 {
                let Some(iova) = at else { return false };
                let Some((guest, there)) = self.find(iova, access) else {
                    if gaps.len() >= max_gaps {
                        return true;
                    }
                    gaps.push(Gap { iova, access });
                    let step = (PAGE - iova % PAGE).min(left);
                    (at, left) = (iova.checked_add(step), left - step);
                    continue;
                };
                let take = there.min(left);
                (at, left) = (iova.checked_add(take), left - take);
                let full = into.len() >= max;
                match into[begin..].last_mut() {
                    Some(last) if last.addr + u64::from(last.len) == guest => {
                        last.len += take as u32;
                    }
                    _ if full => return false,
                    _ => into.push(Segment { addr: guest, len: take as u32 }),
                }
            }
        }
        true
    }
}

/// Guest memory as the device sees it: what its accesses name are I/O virtual
/// addresses.
#[derive(Debug)]
pub struct Space<'a, M> {
    mem: &'a M,
    translator: Translator<'a>,
    /// The last access that failed because of this.
    gap: Cell<Option<Gap>>,
}

impl<'a, M: GuestMemory> Space<'a, M> {
    /// `mem` is by guest-physical address.
    pub fn new(mem: &'a M, translator: Translator<'a>) -> Self {
        Self { mem, translator, gap: Cell::new(None) }
    }

    /// How it translates.
    pub fn translator(&self) -> Translator<'a> {
        self.translator
    }

    /// What the last access failed for, if it did for want of a translation
    /// since this was last asked.
    pub fn take_gap(&self) -> Option<Gap> {
        self.gap.take()
    }

    fn find(&self, iova: u64, access: Access) -> Result<(u64, u64), GuestMemoryError> {
        self.translator.find(iova, access).ok_or_else(|| {
            self.gap.set(Some(Gap { iova, access }));
            GuestMemoryError::InvalidGuestAddress(GuestAddress(iova))
        })
    }
}

fn access(permissions: Permissions) -> Access {
    match permissions {
        Permissions::No => Access::from_bits(0),
        Permissions::Read => Access::READ,
        Permissions::Write => Access::WRITE,
        Permissions::ReadWrite => Access::BOTH,
    }
}

impl<M: GuestMemory> GuestMemory for Space<'_, M> {
    type PhysicalMemory = M::PhysicalMemory;
    type Bitmap = M::Bitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, permissions: Permissions) -> bool {
        self.get_slices(addr, count, permissions)
            .is_ok_and(|mut slices| slices.all(|slice| slice.is_ok()))
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        permissions: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        let access = access(permissions);
        let (mut at, mut left) = (Some(addr.0), count as u64);
        let pieces = core::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let end = GuestMemoryError::GuestAddressOverflow;
            let found = at.ok_or(end).and_then(|iova| Ok((iova, self.find(iova, access)?)));
            Some(found.map(|(iova, (guest, there))| {
                let take = there.min(left);
                (at, left) = (iova.checked_add(take), left - take);
                (guest, take as usize)
            }))
        });
        let slices = pieces.flat_map(move |piece| {
            let slices = piece.and_then(|(guest, len)| {
                self.mem.get_slices(GuestAddress(guest), len, permissions)
            });
            let (slices, error) = match slices {
                Ok(slices) => (Some(slices), None),
                Err(error) => (None, Some(Err(error))),
            };
            slices.into_iter().flatten().chain(error)
        });
        Ok(UntilError { slices, ended: false })
    }
}

/// Slices up to the first that is none.
struct UntilError<I> {
    slices: I,
    ended: bool,
}

impl<'a, B, I> Iterator for UntilError<I>
where
    B: BitmapSlice,
    I: Iterator<Item = Result<VolatileSlice<'a, B>, GuestMemoryError>>,
{
    type Item = I::Item;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.slices.next();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

impl<'a, B, I> FusedIterator for UntilError<I>
where
    B: BitmapSlice,
    I: Iterator<Item = Result<VolatileSlice<'a, B>, GuestMemoryError>>,
{
}

impl<'a, B, I> GuestMemorySliceIterator<'a, B> for UntilError<I>
where
    B: BitmapSlice,
    I: Iterator<Item = Result<VolatileSlice<'a, B>, GuestMemoryError>>,
{
}
