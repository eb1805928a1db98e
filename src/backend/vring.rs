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
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::inflight::SplitRegion;
use crate::memory::MemoryTable;
use crate::time::Instant;
use crate::vring::{RingAddresses, SplitRing, Used};
use crate::wire::VringAddr;

/// A vring's settings, and its ring while it is started and was enabled.
#[derive(Debug)]
pub(super) struct Vring {
    pub size: u16,
    pub addr: Option<VringAddr>,
    /// Next available index to start from.
    pub base: u16,
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
}

/// What exists only from start to stop.
#[derive(Debug)]
pub(super) struct Run {
    pub ring: SplitRing,
    pub region: Option<SplitRegion>,
    /// By head: fetched and not published.
    pub taken: Vec<bool>,
    /// Requests the disk works on. A chain that broke the ring is taken but
    /// not here: nothing will ever complete it. Nor is one that was cancelled.
    pub at_disk: u16,
    /// Completed and not published: the batch in the making.
    pub batch: Vec<Used>,
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
    /// Heads fetched and not published: what the region has in flight.
    pub fn in_flight(&self) -> u16 {
        self.taken.iter().filter(|taken| **taken).count() as u16
    }
}

impl Vring {
    pub fn new(size: u16) -> Self {
        Self {
            size,
            addr: None,
            base: 0,
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
        }
    }

    /// True if new chains may be fetched.
    pub fn fetches(&self) -> bool {
        let enabled = self.enabled || bugs::on_when(Bug::DisabledFetches, || self.run.is_some());
        enabled && self.run.as_ref().is_some_and(|r| !r.stopping && !r.broken)
    }

    /// The guest-physical address that the used ring's dirty bits are counted
    /// from, if it is to be logged.
    // spec: vhost-user, VHOST_USER_SET_VRING_ADDR: VHOST_VRING_F_LOG
    pub fn used_log(&self) -> Option<u64> {
        const F_LOG: u32 = 1;
        self.addr.as_ref().filter(|addr| addr.flags & F_LOG != 0).map(|addr| addr.log)
    }

    /// Where the ring lies by a memory table.
    pub fn place(&self, vring: u16, table: &MemoryTable) -> Result<RingAddresses, FrontendFault> {
        let addr = self.addr.ok_or(FrontendFault::VringUnset { vring })?;
        let [desc_len, avail_len, used_len] = RingAddresses::sizes(self.size);
        let find = |part, got, len| {
            table.user_to_guest(got, len).ok_or(FrontendFault::VringPlace { vring, part, got, len })
        };
        Ok(RingAddresses {
            desc: find("descriptor table", addr.desc, desc_len)?,
            avail: find("available ring", addr.avail, avail_len)?,
            used: find("used ring", addr.used, used_len)?,
        })
    }
}

/// Alignment of the parts of a split ring.
// spec: virtio 1.2, "Split Virtqueues"
pub(super) fn check_alignment(vring: u16, addr: &VringAddr) -> Result<(), FrontendFault> {
    let parts = [
        ("descriptor table", addr.desc, 16),
        ("available ring", addr.avail, 2),
        ("used ring", addr.used, 4),
    ];
    for (part, got, align) in parts {
        if !got.is_multiple_of(align) {
            return Err(FrontendFault::VringAlign { vring, part, got, align });
        }
    }
    Ok(())
}
