//! What vrings need to run: guest memory, an inflight region, perhaps a dirty
//! log. All are the driver's to map, so the message that asks for them waits for an answer, and
//! every message behind it waits too.

use super::answer::Reply;
use super::cache::Settling;
use super::vacate::Vacating;
use super::{ApiMisuse, Backend, Event, FrontendFault, MapFailed, MapRegion, Output};
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::dirty::DirtyLog;
use crate::inflight::{InflightFault, RegionShape, region_size_of};
use crate::iommu::Range;
use crate::marks::{self, Mark};
use crate::memory::MemoryTable;
use crate::time::Instant;
use crate::vring::RingFormat;
use crate::wire::features::virtio;
use crate::wire::{FrontendReplyBody, InflightDescription, LogDescription, MemRegion};
use vm_memory::GuestMemory;

/// A message that waits for the driver or for the disk.
#[derive(Debug)]
pub(super) enum Pending {
    /// None does.
    None,
    /// The driver maps a new table.
    Map(MemoryChange),
    /// The driver maps a new table whose pages are to come later.
    MapMissing(MemoryChange),
    /// The driver opens a userfaultfd.
    OpenFaults(Reply),
    /// A region is out of the table; requests that use it have to finish.
    Vacate(Vacating),
    /// The driver allocates an inflight region.
    AllocInflight(InflightDescription, Reply),
    /// The driver maps an inflight region.
    MapInflight(RegionShape, Handle, Reply),
    /// The driver maps a dirty log of this size.
    MapLog(u64, Handle, Reply),
    /// GET_VRING_BASE: the disk works for the vring.
    Stop(Stopping),
    /// IOTLB_MSG: requests in flight use addresses that are taken back.
    Invalidate(Range, Reply),
    /// SET_CONFIG: volatile writes to be made durable.
    Settle(Settling),
    /// CHECK_DEVICE_STATE: the state is on its way.
    CheckState(Reply),
    /// RESET_DEVICE: requests in flight.
    Reset(Reply),
}

impl Pending {
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// When a vring that is being suspended has had its time.
    pub fn cancel_at(&self) -> Option<Instant> {
        match self {
            Self::Stop(stopping) => stopping.cancel_at,
            _ => None,
        }
    }

    /// True if no vring may fetch until this is over.
    pub fn holds_fetching(&self) -> bool {
        matches!(self, Self::Map(_) | Self::MapMissing(_) | Self::Settle(_) | Self::Reset(_))
    }

    pub fn take(&mut self) -> Self {
        core::mem::replace(self, Self::None)
    }
}

/// A vring that stops.
#[derive(Debug)]
pub(super) struct Stopping {
    pub vring: u16,
    /// When to cancel what is in flight; `None` if it is drained, or cancelled
    /// already.
    pub cancel_at: Option<Instant>,
    pub reply: Reply,
}

/// A new memory table on its way in.
#[derive(Debug)]
pub(super) struct MemoryChange {
    table: MemoryTable,
    /// Handles that are not needed if it is refused.
    new: Vec<Handle>,
    /// Regions that came with it, as they came.
    pub(super) sent: Vec<MemRegion>,
    pub(super) reply: Reply,
}

impl MemoryChange {
    /// The table.
    pub fn table(&self) -> &MemoryTable {
        &self.table
    }

    /// The handles that came with it.
    pub fn into_new(self) -> Vec<Handle> {
        self.new
    }
}

/// The inflight region of this connection.
#[derive(Debug)]
pub(super) struct InflightMemory<M> {
    pub memory: M,
    pub shape: RegionShape,
}

impl<M: GuestMemory> Backend<M> {
    pub(super) fn set_mem_table(
        &mut self,
        regions: Vec<(MemRegion, Handle)>,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let new: Vec<Handle> = regions.iter().map(|(_, handle)| *handle).collect();
        let sent = regions.iter().map(|(region, _)| *region).collect();
        let regions = regions.into_iter().map(|(region, handle)| MapRegion { region, handle });
        let table = MemoryTable::from_regions(regions)?;
        self.change_memory("SET_MEM_TABLE", MemoryChange { table, new, sent, reply })
    }

    pub(super) fn add_mem_reg(
        &mut self,
        region: MemRegion,
        handle: Handle,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let mut table = self.table.clone();
        table.add(MapRegion { region, handle })?;
        let change = MemoryChange { table, new: vec![handle], sent: vec![region], reply };
        self.change_memory("ADD_MEM_REG", change)
    }

    pub(super) fn rem_mem_reg(
        &mut self,
        region: MemRegion,
        extra: Option<Handle>,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let mut table = self.table.clone();
        table.remove(&region)?;
        let change = MemoryChange { table, new: Vec::new(), sent: Vec::new(), reply };
        self.change_memory("REM_MEM_REG", change)?;
        self.release(extra);
        Ok(())
    }

    /// Rings that run must keep their place. Requests in flight keep their
    /// buffers, see [`vacate`](super::vacate); nothing waits for them here.
    fn change_memory(
        &mut self,
        message: &'static str,
        change: MemoryChange,
    ) -> Result<(), FrontendFault> {
        self.check_user_addresses(message, &change.table)?;
        let format = self.session.ring_format();
        for (vring, v) in (0..).zip(&self.vrings) {
            let place = |table| v.place(vring, format, table);
            let keeps = match self.translates() {
                true => v.iommu.map.holds(&change.table),
                false => place(&change.table) == place(&self.table),
            };
            if v.run.is_some() && !keeps {
                return Err(FrontendFault::MemoryInUse { message, vring });
            }
        }
        let regions = change.table.regions().to_vec();
        if self.postcopy.listens() {
            self.out.push_back(Output::MapMissing { regions });
            self.pending = Pending::MapMissing(change);
        } else {
            self.out.push_back(Output::Map { regions });
            self.pending = Pending::Map(change);
        }
        Ok(())
    }

    pub(super) fn mapped(
        &mut self,
        now: Instant,
        result: Result<M, MapFailed>,
    ) -> Result<(), ApiMisuse> {
        let change = match self.pending.take() {
            Pending::Map(change) => change,
            other => {
                self.pending = other;
                return Err(ApiMisuse::NotAskedFor("a memory mapping"));
            }
        };
        self.take_memory(change, result, None);
        self.fetch_all(now);
        Ok(())
    }

    /// Put a new table in force and answer, in postcopy with what is to be told,
    /// or refuse it.
    pub(super) fn take_memory(
        &mut self,
        change: MemoryChange,
        result: Result<M, MapFailed>,
        told: Option<FrontendReplyBody<Handle>>,
    ) {
        match result {
            Ok(memory) => {
                marks::hit_when(Mark::MemoryAdded, || self.memory.is_some());
                let stale = bugs::on_when(Bug::StaleMemoryTable, || self.memory.is_some());
                let before = if stale { None } else { self.memory.replace(memory) };
                self.vacate(before, change.table, change.reply, told);
            }
            Err(MapFailed(why)) => {
                self.release(change.new);
                let message = change.reply.message();
                self.refuse(change.reply, FrontendFault::Map { message, why });
            }
        }
    }

    pub(super) fn fetch_all(&mut self, now: Instant) {
        for vring in 0..self.config.num_queues {
            self.fetch(now, vring);
        }
    }

    // spec: vhost-user, VHOST_USER_GET_INFLIGHT_FD
    pub(super) fn get_inflight_fd(
        &mut self,
        asked: InflightDescription,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        self.check_queues(asked.num_queues)?;
        let format = self.format_for_region();
        let size = region_size_of(format, asked.num_queues, asked.queue_size);
        let description = InflightDescription { mmap_size: size, mmap_offset: 0, ..asked };
        RegionShape::of(format, &description)?;
        let one = || region_size_of(format, 1, asked.queue_size);
        let short = bugs::on_when(Bug::InflightForOneVring, || size != one());
        let size = if short { one() } else { size };
        self.out.push_back(Output::AllocInflight { size });
        self.pending = Pending::AllocInflight(description, reply);
        Ok(())
    }

    /// The kind of vring that a new region has room for. Front-ends are known
    /// that ask for a region before they say which it is; what holds packed
    /// vrings holds split ones too.
    fn format_for_region(&self) -> RingFormat {
        let unknown = self.session.features == 0 && self.offered & virtio::RING_PACKED != 0;
        if unknown { RingFormat::Packed } else { self.session.ring_format() }
    }

    pub(super) fn inflight_allocated(
        &mut self,
        result: Result<Handle, MapFailed>,
    ) -> Result<(), ApiMisuse> {
        let (description, reply) = match self.pending.take() {
            Pending::AllocInflight(description, reply) => (description, reply),
            other => {
                self.pending = other;
                self.release(result.ok());
                return Err(ApiMisuse::NotAskedFor("an inflight region"));
            }
        };
        match result {
            Ok(handle) => {
                self.answer(reply, FrontendReplyBody::Inflight(description, handle));
                self.release([handle]);
            }
            Err(MapFailed(why)) => {
                let message = reply.message();
                self.refuse(reply, FrontendFault::Map { message, why });
            }
        }
        Ok(())
    }

    // spec: vhost-user, VHOST_USER_SET_INFLIGHT_FD
    pub(super) fn set_inflight_fd(
        &mut self,
        d: InflightDescription,
        handle: Handle,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        self.check_queues(d.num_queues)?;
        let shape = RegionShape::of(self.session.ring_format(), &d)?;
        if let Some(vring) = self.running_vring() {
            let message = reply.message();
            return Err(FrontendFault::VringRunning { message, vring });
        }
        self.out.push_back(Output::MapInflight {
            handle,
            offset: d.mmap_offset,
            size: d.mmap_size,
        });
        self.pending = Pending::MapInflight(shape, handle, reply);
        Ok(())
    }

    pub(super) fn inflight_mapped(
        &mut self,
        result: Result<M, MapFailed>,
    ) -> Result<(), ApiMisuse> {
        let (shape, handle, reply) = match self.pending.take() {
            Pending::MapInflight(shape, handle, reply) => (shape, handle, reply),
            other => {
                self.pending = other;
                return Err(ApiMisuse::NotAskedFor("a mapping of an inflight region"));
            }
        };
        // The mapping outlives the descriptor.
        self.release([handle]);
        let message = reply.message();
        let checked = match result {
            Err(MapFailed(why)) => Err(FrontendFault::Map { message, why }),
            Ok(memory) => match shape.check_headers(&memory) {
                Ok(()) => Ok(InflightMemory { memory, shape }),
                Err(fault) => Err(fault.into()),
            },
        };
        match checked {
            Ok(inflight) => {
                self.inflight = Some(inflight);
                self.vrings.iter_mut().for_each(|v| v.told = None);
                self.answer_ok(reply);
            }
            Err(fault) => self.refuse(reply, fault),
        }
        Ok(())
    }

    /// The log in force, if there is one, goes on being written until the new
    /// one is mapped. One store of a pointer replaces it, so every write is in
    /// the one or the other, and the front-end keeps both.
    // spec: vhost-user, VHOST_USER_SET_LOG_BASE
    pub(super) fn set_log_base(
        &mut self,
        log: LogDescription,
        handle: Handle,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        let LogDescription { size, offset } = log;
        self.out.push_back(Output::MapLog { handle, offset, size });
        self.pending = Pending::MapLog(size, handle, reply);
        Ok(())
    }

    pub(super) fn log_mapped(&mut self, result: Result<M, MapFailed>) -> Result<(), ApiMisuse> {
        let (size, handle, reply) = match self.pending.take() {
            Pending::MapLog(size, handle, reply) => (size, handle, reply),
            other => {
                self.pending = other;
                return Err(ApiMisuse::NotAskedFor("a mapping of a dirty log"));
            }
        };
        self.release([handle]);
        match result {
            Ok(memory) => {
                marks::hit(if self.log.is_some() { Mark::LogReplaced } else { Mark::LogMapped });
                self.log = Some(DirtyLog::new(memory, size));
                self.event(Event::LogMapped { size });
                if bugs::on_when(Bug::LogBaseUnanswered, || !reply.need_reply) {
                    return Ok(());
                }
                self.answer(reply, FrontendReplyBody::U64(0));
            }
            Err(MapFailed(why)) => {
                let message = reply.message();
                self.refuse(reply, FrontendFault::Map { message, why });
            }
        }
        Ok(())
    }

    fn check_queues(&self, got: u16) -> Result<(), InflightFault> {
        let expected = self.config.num_queues;
        if got > expected {
            return Err(InflightFault::TooManyQueues { expected, got });
        }
        Ok(())
    }
}
