//! The IOMMU of the client's guest: page tables that the back-end asks.
//!
//! I/O virtual addresses have the numbers of guest-physical ones. What is not
//! mapped is not there for the back-end, though, and that is what counts. It is
//! in force while the guest has accepted VIRTIO_F_ACCESS_PLATFORM; rings are
//! mapped by themselves.

use super::{Client, ClientError, PAGE, USER, ring_stride};
use crate::frontend::{Command, Event, Translation};
use crate::wire::features::virtio;
use std::collections::BTreeMap;

/// Page tables, and what was asked of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Iommu {
    /// Access by page.
    pages: BTreeMap<u64, u8>,
    counts: IommuUse,
}

/// How often the back-end has asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IommuUse {
    /// Pages asked for.
    pub misses: u64,
    /// Of these, how many it did not get.
    pub refused: u64,
    /// What it has reported as failed.
    pub failures: u64,
}

impl Client {
    /// True if the guest's addresses go through page tables.
    pub(super) fn has_iommu(&self) -> bool {
        self.accepted.unwrap_or(0) & virtio::ACCESS_PLATFORM != 0
    }

    /// Let the device at the pages of a range: 1 read, 2 write, 3 both.
    pub fn iommu_map(&mut self, addr: u64, len: u64, access: u8) {
        let last = addr + len.max(1) - 1;
        self.iommu.pages.extend((addr / PAGE..=last / PAGE).map(|page| (page, access)));
    }

    /// Take the pages of a range away, and wait until the device uses them no
    /// more.
    pub fn iommu_unmap(&mut self, addr: u64, len: u64) -> Result<(), ClientError> {
        let (first, last) = (addr / PAGE, (addr + len.max(1) - 1) / PAGE);
        self.iommu.pages.retain(|page, _| *page < first || *page > last);
        let (iova, size) = (first * PAGE, (last - first + 1) * PAGE);
        let event = Event::IotlbInvalidated { iova, size };
        self.events.retain(|e| *e != event);
        self.command(Command::Invalidate { iova, size })?;
        self.wait("the invalidation", |c| c.events.contains(&event))
    }

    /// What was asked so far.
    pub fn iommu_use(&self) -> IommuUse {
        self.iommu.counts
    }

    pub(super) fn map_rings(&mut self) {
        let len = self.queues.len() as u64 * ring_stride(self.config.ring_size);
        self.iommu_map(0, len, 3);
    }

    /// The answer to a question of the back-end.
    pub(super) fn translation(&mut self, iova: u64, access: u8) -> Command {
        self.iommu.counts.misses += 1;
        let found = self.iommu.pages.get(&(iova / PAGE)).filter(|has| **has & access == access);
        self.iommu.counts.refused += u64::from(found.is_none());
        let page = iova & !(PAGE - 1);
        let translation = |access: &u8| Translation {
            iova: page,
            size: PAGE,
            user_addr: USER + page,
            access: *access,
        };
        Command::AnswerMiss(found.map(translation))
    }

    pub(super) fn access_failed(&mut self) {
        self.iommu.counts.failures += 1;
    }
}
