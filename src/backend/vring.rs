//! One vring as the front-end set it up, and what of it runs.
//!
//! | event | stopped | started, disabled | running |
//! |---|---|---|---|
//! | SET_VRING_KICK, VRING_KICK | started, or running if enabled | same | same, new descriptor |
//! | SET_VRING_ENABLE 1 | remembered | running | same |
//! | SET_VRING_ENABLE 0 | remembered | same | fetches no more, completes what it has |
//! | GET_VRING_BASE | same | stopped | stopped once nothing is at the disk |
//! | RESET_DEVICE | stopped, disabled | stopped, disabled | stopped, disabled, nothing completed |
// spec: vhost-user, "Ring states"

use super::FrontendFault;
use super::in_order::InOrder;
use super::iommu::VringIommu;
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::dirty::{DirtyLog, RingLog};
use crate::inflight::Region;
use crate::iommu::{Access, Range, RingMap};
use crate::memory::MemoryTable;
use crate::time::Instant;
use crate::vring::{Ring, RingAddresses, RingFormat, Used};
use crate::wire::VringAddr;
use vm_memory::GuestMemory;

/// A vring's settings, and its ring while it is started and was enabled.
#[derive(Debug)]
pub(super) struct Vring {
    pub size: u16,
    pub addr: Option<VringAddr>,
    /// Where to start from, in the form of SET_VRING_BASE; `None`: nobody has
    /// said, so at the beginning.
    pub base: Option<u32>,
    /// The answer to the last GET_VRING_BASE, as long as the inflight region is
    /// still the one of then.
    pub told: Option<u32>,
    pub started: bool,
    pub enabled: bool,
    pub kick: Option<Handle>,
    /// Started without a kick descriptor: look for work by the clock.
    pub polled: bool,
    pub call: Option<Handle>,
    /// The guest looks for used entries by itself.
    pub call_polled: bool,
    /// A call by message is to be sent.
    pub call_due: bool,
    pub err: Option<Handle>,
    /// Nobody wants to know that the vring is broken.
    pub err_polled: bool,
    pub run: Option<Run>,
    /// What it has to do with the front-end's IOMMU; nothing without one.
    pub iommu: VringIommu,
}

/// What exists only from start to stop.
#[derive(Debug)]
pub(super) struct Run {
    pub ring: Ring,
    pub region: Option<Region>,
    /// By slot: fetched and not published.
    pub taken: Vec<bool>,
    /// Requests the disk works on. A chain that broke the ring is taken but
    /// not here: nothing will ever complete it. Nor is one that was cancelled.
    pub at_disk: u16,
    /// Completed and not published: the batch in the making.
    pub batch: Vec<Used>,
    /// What is fetched and not published, if that has to be in order.
    pub in_order: Option<InOrder>,
    /// GET_VRING_BASE came: fetch no more.
    pub stopping: bool,
    /// The rest of what is in flight was cancelled, or will be: what comes back
    /// cancelled stays in the inflight region.
    pub suspending: bool,
    /// The guest broke the ring: fetch no more.
    pub broken: bool,
    /// There may be more to fetch than one call was allowed to.
    pub more: bool,
    /// When to look again, if polled.
    pub poll_at: Instant,
}

impl Run {
    /// A request has its status: it joins the batch, or waits for its turn.
    #[inline]
    pub fn finished(&mut self, used: Used) {
        match &mut self.in_order {
            Some(order) if !bugs::on(Bug::OrderIgnored) => order.finish(used),
            Some(_) => self.batch.push(used),
            None => self.batch.push(used),
        }
    }

    /// Heads fetched and not published: what the region has in flight.
    pub fn in_flight(&self) -> u16 {
        self.taken_slots().count() as u16
    }

    /// Their slots.
    pub fn taken_slots(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.taken).filter(|(_, taken)| **taken).map(|(slot, _)| slot)
    }
}

impl Vring {
    pub fn new(size: u16) -> Self {
        Self {
            size,
            addr: None,
            base: None,
            told: None,
            started: false,
            enabled: false,
            kick: None,
            polled: false,
            call: None,
            call_polled: false,
            call_due: false,
            err: None,
            err_polled: false,
            run: None,
            iommu: VringIommu::default(),
        }
    }

    /// True if new chains may be fetched.
    pub fn fetches(&self) -> bool {
        let enabled = self.enabled || bugs::on_when(Bug::DisabledFetches, || self.run.is_some());
        let may = enabled && !self.iommu.holds_fetching();
        may && self.run.as_ref().is_some_and(|r| !r.stopping && !r.broken)
    }

    /// The parts of the ring, by the addresses given, and what is done there.
    pub fn parts(&self, format: RingFormat) -> Option<[(Range, Access); 3]> {
        let addr = self.addr.as_ref()?;
        let [desc, avail, used] = format.sizes(self.size);
        let of_desc = match format {
            RingFormat::Split => Access::READ,
            // Used descriptors are written where available ones were.
            RingFormat::Packed => Access::BOTH,
        };
        Some([
            (Range::new(addr.desc, desc)?, of_desc),
            (Range::new(addr.avail, avail)?, Access::READ),
            (Range::new(addr.used, used)?, Access::BOTH),
        ])
    }

    /// Where the ring lies by a memory table.
    pub fn place(
        &self,
        vring: u16,
        format: RingFormat,
        table: &MemoryTable,
    ) -> Result<RingAddresses, FrontendFault> {
        let addr = self.addr.ok_or(FrontendFault::VringUnset { vring })?;
        let [desc_len, avail_len, used_len] = format.sizes(self.size);
        let [desc, avail, used] = parts(format);
        let find = |part, got, len| {
            table.user_to_guest(got, len).ok_or(FrontendFault::VringPlace { vring, part, got, len })
        };
        Ok(RingAddresses {
            desc: find(desc, addr.desc, desc_len)?,
            avail: find(avail, addr.avail, avail_len)?,
            used: find(used, addr.used, used_len)?,
        })
    }
}

/// The log as a ring has it, if it is to be logged.
///
/// The bits of a used ring, or of a device event area, are counted from a
/// guest-physical address of the front-end's choice. With an IOMMU that address
/// is one of the guest's, the area's own: bits are counted where it really lies.
// spec: vhost-user, VHOST_USER_SET_VRING_ADDR: VHOST_VRING_F_LOG
pub(super) fn ring_log<'a, M: GuestMemory>(
    log: Option<&'a DirtyLog<M>>,
    addr: Option<&VringAddr>,
    map: &'a RingMap,
) -> Option<RingLog<'a, M>> {
    const F_LOG: u32 = 1;
    let addr = addr.filter(|addr| addr.flags & F_LOG != 0)?;
    let log = log?;
    Some(if map.is_empty() {
        RingLog::new(log, addr.log)
    } else {
        RingLog::mapped(log, map, addr.used)
    })
}

/// What the three addresses of SET_VRING_ADDR are of.
fn parts(format: RingFormat) -> [&'static str; 3] {
    match format {
        RingFormat::Split => ["descriptor table", "available ring", "used ring"],
        RingFormat::Packed => ["descriptor ring", "driver event area", "device event area"],
    }
}

/// Alignment of the parts of a ring.
// spec: virtio 1.2, "Split Virtqueues" and "Packed Virtqueues"
pub(super) fn check_alignment(
    vring: u16,
    format: RingFormat,
    addr: &VringAddr,
) -> Result<(), FrontendFault> {
    let [desc, avail, used] = parts(format);
    let of_avail = if format == RingFormat::Packed { 4 } else { 2 };
    let parts = [(desc, addr.desc, 16), (avail, addr.avail, of_avail), (used, addr.used, 4)];
    for (part, got, align) in parts {
        if !got.is_multiple_of(align) {
            return Err(FrontendFault::VringAlign { vring, part, got, align });
        }
    }
    Ok(())
}
