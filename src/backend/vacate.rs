//! Memory that is taken away while the device works.
//!
//! The new table is in force at once: what is fetched from now on cannot use a
//! region that has left it. What was fetched before and does use it goes on with
//! the memory as it was, and the front-end, which may free the memory when it
//! has the answer, gets the answer when the last of these requests is done. So
//! nothing else waits, and new requests cannot put the answer off.
// spec: vhost-user, VHOST_USER_REM_MEM_REG

use super::answer::Reply;
use super::setup::Pending;
use super::{Backend, FrontendFault};
use crate::Handle;
use crate::memory::{MapRegion, MemoryTable};
use crate::wire::FrontendReplyBody;
use crate::wire::features::virtio;
use vm_memory::GuestMemory;

/// Regions that have left the table and are still used.
#[derive(Debug)]
pub(super) struct Vacating {
    gone: Vec<Handle>,
    reply: Reply,
    /// The answer, if it is more than an acknowledgement.
    told: Option<FrontendReplyBody<Handle>>,
}

impl Vacating {
    /// The handles of the regions.
    pub fn into_gone(self) -> Vec<Handle> {
        self.gone
    }
}

impl<M: GuestMemory> Backend<M> {
    /// With GPA_ADDRESSES a front-end has no addresses of its own: a region is at
    /// its guest-physical address, and so are the rings. Where an IOMMU is in
    /// between, the agreement does not count.
    // spec: vhost-user, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES
    pub(super) fn check_user_addresses(
        &self,
        message: &'static str,
        table: &MemoryTable,
    ) -> Result<(), FrontendFault> {
        let agreed = self.session.protocol & self.dialect().gpa_addresses() != 0;
        if !agreed || self.session.features & virtio::ACCESS_PLATFORM != 0 {
            return Ok(());
        }
        let differs = |r: &&MapRegion| r.region.user_addr != r.region.guest_addr;
        match table.regions().iter().find(differs).map(|r| r.region) {
            Some(r) => Err(FrontendFault::UserAddress {
                message,
                user_addr: r.user_addr,
                guest_addr: r.guest_addr,
            }),
            None => Ok(()),
        }
    }

    /// A new table is mapped; `before` is the memory that it replaces.
    pub(super) fn vacate(
        &mut self,
        before: Option<M>,
        table: MemoryTable,
        reply: Reply,
        told: Option<FrontendReplyBody<Handle>>,
    ) {
        let old = core::mem::replace(&mut self.table, table);
        let left = |r: &&MapRegion| !self.table.regions().contains(r);
        let gone: Vec<MapRegion> = old.regions().iter().filter(left).copied().collect();
        let waits = self.requests.vacate(|addr, len| {
            gone.iter().any(|r| {
                // Neither overflows: regions are checked when they are added,
                // and segments lie inside them.
                let region = r.region;
                addr < region.guest_addr + region.size
                    && region.guest_addr < addr.saturating_add(len)
            })
        });
        if waits > 0 {
            self.vacated = before;
        }
        let gone = gone.iter().map(|r| r.handle).collect();
        self.go_on_vacating(Vacating { gone, reply, told });
    }

    pub(super) fn go_on_vacating(&mut self, vacating: Vacating) {
        if self.requests.vacating() > 0 {
            self.pending = Pending::Vacate(vacating);
            return;
        }
        self.vacated = None;
        self.release(vacating.gone);
        match vacating.told {
            Some(body) => self.answer(vacating.reply, body),
            None => self.answer_ok(vacating.reply),
        }
    }
}
