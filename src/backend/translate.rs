//! How a chain's addresses become guest-physical.
//!
//! Two ways, known to the compiler: [`Direct`] does nothing, [`Translated`] asks
//! the IOTLB. A chain is translated whole or not at all, and before it counts as
//! fetched: what lacks a page leaves nothing behind that a stop, a crash or a
//! successor would have to know about.

use super::iommu::{GAPS_AT_A_TIME, was_refused};
use crate::iommu::{Access, Gap, Space, Translator};
use crate::memory::Segment;
use crate::vring::GuestFault;
use crate::vring::chain::Chain;
use vm_memory::GuestMemory;

/// Pieces that the buffers of one chain may fall into: 8 MiB of single pages,
/// and nothing that Linux would ask for by default. More is answered IOERR.
pub(super) const MAX_PIECES: usize = 2048;

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prepared {
    /// Its buffers are guest-physical.
    Ready,
    /// A page of it was refused, but not that of the status byte.
    Refused {
        /// Guest-physical address of the status byte.
        status_addr: u64,
    },
    /// Pages of it are not known.
    Missing,
}

/// What rings and chains are read through.
pub(super) trait AddressSpace {
    /// Memory by the addresses that the guest has put in its ring.
    type View: GuestMemory;
    /// Whether a chain may have to wait.
    const WAITS: bool;

    fn view(&self) -> &Self::View;

    /// What `walk` has found, by guest-physical address. `Err` is a chain that
    /// cannot be answered.
    fn translate(
        &mut self,
        head: u16,
        chain: &mut Chain,
        walk: Result<(), GuestFault>,
    ) -> Result<Prepared, GuestFault>;

    /// The buffers of the chain translated last, as the guest named them.
    fn named(&self) -> &[Segment];
}

/// No IOMMU: addresses are guest-physical.
pub(super) struct Direct<'a, M>(pub &'a M);

impl<M: GuestMemory> AddressSpace for Direct<'_, M> {
    type View = M;
    const WAITS: bool = false;

    fn view(&self) -> &M {
        self.0
    }

    fn translate(
        &mut self,
        _head: u16,
        _chain: &mut Chain,
        walk: Result<(), GuestFault>,
    ) -> Result<Prepared, GuestFault> {
        walk.map(|()| Prepared::Ready)
    }

    fn named(&self) -> &[Segment] {
        &[]
    }
}

/// Lists that are used again for every chain.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pieces: Chain,
    named: Vec<Segment>,
    /// What the chain lacks.
    pub gaps: Vec<Gap>,
}

/// Addresses are those of the front-end's IOMMU.
pub(super) struct Translated<'a, M> {
    pub space: Space<'a, M>,
    /// What was refused to the chain that is looked at.
    pub refused: &'a mut Vec<Gap>,
    pub scratch: &'a mut Scratch,
}

impl<M: GuestMemory> Translated<'_, M> {
    fn translator(&self) -> Translator<'_> {
        self.space.translator()
    }

    /// Wait for the status byte, or find that there is no answering.
    fn refused(&mut self, head: u16, last: Segment) -> Result<Prepared, GuestFault> {
        let addr = last.addr.checked_add(u64::from(last.len) - 1);
        let fault = GuestFault::Status { head, addr: addr.unwrap_or(last.addr) };
        let gap = Gap { iova: addr.ok_or(fault)?, access: Access::WRITE };
        if let Some((status_addr, _)) = self.translator().find(gap.iova, gap.access) {
            return Ok(Prepared::Refused { status_addr });
        }
        if was_refused(self.refused, &gap) {
            return Err(fault);
        }
        self.scratch.gaps.clear();
        self.scratch.gaps.push(gap);
        Ok(Prepared::Missing)
    }

    fn prepare(
        &mut self,
        head: u16,
        chain: &mut Chain,
        walk: Result<(), GuestFault>,
    ) -> Result<Prepared, GuestFault> {
        let gap = self.space.take_gap();
        self.scratch.gaps.clear();
        self.scratch.named.clear();
        if let Err(fault) = walk {
            // A descriptor in memory that is not known yet is not broken.
            return match gap.filter(|gap| !was_refused(self.refused, gap)) {
                Some(gap) => {
                    self.scratch.gaps.push(gap);
                    Ok(Prepared::Missing)
                }
                None => Err(fault),
            };
        }
        let Some(&last) = chain.writable.last() else {
            return Err(GuestFault::NoStatus { head });
        };
        let translator = self.space.translator();
        let Scratch { pieces, named, gaps } = &mut *self.scratch;
        named.extend(chain.readable.iter().chain(&chain.writable));
        pieces.readable.clear();
        pieces.writable.clear();
        let mut possible = true;
        for (from, access, into) in [
            (&chain.readable, Access::READ, &mut pieces.readable),
            (&chain.writable, Access::WRITE, &mut pieces.writable),
        ] {
            let most = (MAX_PIECES, GAPS_AT_A_TIME);
            possible &= translator.segments(from, access, into, most.0, gaps, most.1);
        }
        if !possible || gaps.iter().any(|gap| was_refused(self.refused, gap)) {
            return self.refused(head, last);
        }
        if !gaps.is_empty() {
            return Ok(Prepared::Missing);
        }
        chain.data_limit = MAX_PIECES;
        core::mem::swap(&mut chain.readable, &mut pieces.readable);
        core::mem::swap(&mut chain.writable, &mut pieces.writable);
        Ok(Prepared::Ready)
    }
}

impl<'a, M: GuestMemory> AddressSpace for Translated<'a, M> {
    type View = Space<'a, M>;
    const WAITS: bool = true;

    fn view(&self) -> &Space<'a, M> {
        &self.space
    }

    fn translate(
        &mut self,
        head: u16,
        chain: &mut Chain,
        walk: Result<(), GuestFault>,
    ) -> Result<Prepared, GuestFault> {
        let prepared = self.prepare(head, chain, walk);
        if prepared != Ok(Prepared::Missing) {
            self.refused.clear();
        }
        prepared
    }

    fn named(&self) -> &[Segment] {
        &self.scratch.named
    }
}
