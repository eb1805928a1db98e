//! A guest that moves: the dirty log, and everything that is not in guest
//! memory, from one client to another.
//!
//! ```text
//! source        log_on, take_dirty and copy while the guest runs, suspend,
//!               take_dirty and copy the rest, hand_over
//! destination   take_over, start
//! ```
//!
//! Until the destination starts, the source may [`start`](Client::start) again.

use super::{Client, ClientError, ClientMemory, PAGE, sealed_memory, system};
use crate::Handle;
use crate::driver::BlkDriver;
use crate::frontend::{Command, DeviceState, Event, Phase};
use crate::wire::LogDescription;
use core::sync::atomic::{AtomicU64, Ordering};
use std::mem;
use std::os::fd::OwnedFd;
use vm_memory::bitmap::{AtomicBitmap, Bitmap as _};
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, VolatileMemory as _,
};

/// Bytes of guest memory that eight bytes of a log stand for.
const WORD_OF_LOG: u64 = 64 * PAGE;

/// Largest inflight region that is carried.
const REGION_MAX: u64 = 64 << 20;

/// A guest between two clients: everything but its memory.
#[derive(Clone, Debug)]
pub struct Handover {
    /// What the front-end knows.
    pub state: DeviceState,
    /// Bytes of the inflight region; empty if there is none.
    pub region: Vec<u8>,
    /// Features that the guest has accepted.
    accepted: Option<u64>,
    /// The guest's drivers.
    drivers: Vec<Option<BlkDriver>>,
}

/// A dirty log in use.
pub(super) struct DirtyLog {
    memory: GuestMemoryMmap<()>,
    handle: Handle,
    /// Pages of a log that this one has replaced.
    older: Vec<u64>,
    /// Nothing has been copied yet.
    all: bool,
}

impl DirtyLog {
    /// Read and clear: the pages written, by rising address.
    fn take(&self, pages: &mut Vec<u64>, size: u64) {
        for word in 0..size.div_ceil(WORD_OF_LOG) {
            let slice = self.memory.get_slice(GuestAddress(8 * word), 8).ok();
            let bits = slice.as_ref().and_then(|s| s.get_atomic_ref::<AtomicU64>(0).ok());
            // Acquire: whoever sees the bit sees what was written to the page.
            let bits = bits.map_or(0, |bits| bits.swap(0, Ordering::Acquire));
            // The log is bytes; its bits are in the same order in a little-endian word.
            push_pages(pages, word, u64::from_le(bits));
        }
    }
}

impl Client {
    /// Have the back-end log what it writes, in a new log. Called again it
    /// replaces the log, and nothing of the old one is lost.
    pub fn log_on(&mut self) -> Result<(), ClientError> {
        self.log_up_to(self.memory_end())
    }

    /// The same, for memory up to `end`.
    pub(super) fn log_up_to(&mut self, end: u64) -> Result<(), ClientError> {
        let size = 8 * end.div_ceil(WORD_OF_LOG);
        let (memory, fd) = sealed_memory("midflight-log", size)?;
        let handle = self.handles.insert(fd);
        let is_answer = |e: &Event| {
            matches!(e, Event::Logging | Event::NotLogging | Event::Disconnected { .. })
        };
        self.events.retain(|event| !is_answer(event));
        let log = LogDescription { size, offset: 0 };
        if let Err(error) = self.command(Command::LogOn { log, handle }) {
            self.handles.release(handle);
            return Err(error);
        }
        let mut new = DirtyLog { memory, handle, older: Vec::new(), all: self.log.is_none() };
        if self.phase() == Phase::Running {
            self.wait("the log", |c| c.events.iter().any(is_answer))?;
            let refused = self.events.iter().find_map(|event| match event {
                Event::Refused { message, status } => Some((*message, *status)),
                _ => None,
            });
            if self.events.iter().any(|e| matches!(e, Event::NotLogging)) {
                self.handles.release(handle);
                let (message, status) = refused.unwrap_or_default();
                return Err(ClientError::Refused { message, status });
            }
        }
        if let Some(old) = self.log.take() {
            // The back-end has let go of it, so this is all there will be.
            old.take(&mut new.older, self.config.memory_size);
            self.handles.release(old.handle);
            new.older.extend(old.older);
            new.all = old.all;
        }
        self.log = Some(new);
        Ok(())
    }

    /// Log no more, as when a migration was cancelled.
    pub fn log_off(&mut self) -> Result<(), ClientError> {
        self.events.retain(|event| !matches!(event, Event::NotLogging));
        self.command(Command::LogOff)?;
        self.wait("the end of the log", |c| c.events.contains(&Event::NotLogging))?;
        if let Some(log) = self.log.take() {
            self.handles.release(log.handle);
        }
        Ok(())
    }

    /// Pages of guest memory, by address, that back-end or guest have written
    /// since they were taken last; all of them the first time.
    ///
    /// Copy them afterwards: what is written from now on is in the next set.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        let size = self.config.memory_size;
        let mut pages = Vec::new();
        // What the guest writes is logged by its hypervisor: this is one.
        if let Some(region) = self.memory.find_region(GuestAddress(0)) {
            let guest: &AtomicBitmap = (**region).bitmap();
            pages.extend(
                (0..size / PAGE)
                    .map(|page| page * PAGE)
                    .filter(|page| usize::try_from(*page).is_ok_and(|at| guest.dirty_at(at))),
            );
            for page in &pages {
                guest.reset_addr_range(*page as usize, 1);
            }
        }
        if let Some(log) = &mut self.log {
            pages.append(&mut log.older);
            log.take(&mut pages, size);
            if mem::take(&mut log.all) {
                pages = (0..size / PAGE).map(|page| page * PAGE).collect();
            }
        }
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// Copy pages to another guest's memory.
    pub fn copy_pages(&self, pages: &[u64], to: &ClientMemory) -> Result<(), ClientError> {
        let mut bytes = [0; PAGE as usize];
        let what = "cannot copy a page";
        let failed = |e: vm_memory::GuestMemoryError| ClientError::System {
            what,
            source: std::io::Error::other(e.to_string()),
        };
        for page in pages {
            self.memory.read_slice(&mut bytes, GuestAddress(*page)).map_err(failed)?;
            to.write_slice(&bytes, GuestAddress(*page)).map_err(failed)?;
        }
        Ok(())
    }

    /// Like [`stop`](Client::stop), but what is in flight stays in the inflight
    /// region, if that was agreed on.
    pub fn suspend(&mut self) -> Result<Vec<(u16, u32)>, ClientError> {
        self.stop_by(Command::Suspend)
    }

    /// Everything but memory, once the vrings are stopped. This client can go
    /// on itself if it is not used.
    pub fn hand_over(&self) -> Result<Handover, ClientError> {
        let state = self.frontend.device_state()?;
        let mut region = Vec::new();
        if let Some((description, handle)) = self.frontend.inflight() {
            let too_big = |wanted| ClientError::TooBig { room: REGION_MAX, wanted };
            let size = description.mmap_size;
            if size > REGION_MAX {
                return Err(too_big(size));
            }
            region.resize(size as usize, 0);
            let fd = self.handles.get(handle).ok_or_else(|| too_big(size))?;
            let mut done = 0;
            while done < region.len() {
                let at = description.mmap_offset + done as u64;
                let n = rustix::io::pread(fd, &mut region[done..], at)
                    .map_err(|e| system("cannot read the inflight region", e))?;
                if n == 0 {
                    return Err(ClientError::TooBig { room: done as u64, wanted: size });
                }
                done += n;
            }
        }
        let drivers = self.queues.iter().map(|queue| queue.driver.clone()).collect();
        Ok(Handover { state, region, accepted: self.accepted, drivers })
    }

    /// Become the guest of another client, whose memory was copied here.
    pub fn take_over(&mut self, handover: Handover) -> Result<(), ClientError> {
        let Handover { mut state, region, accepted, drivers } = handover;
        let inflight = match &mut state.inflight {
            Some(description) if !region.is_empty() => {
                description.mmap_offset = 0;
                // spec: vhost-user, "Inflight I/O tracking": the front-end
                // provides the memory when the requests come from elsewhere.
                let fd = region_memory(&region)?;
                Some(self.handles.insert(fd))
            }
            _ => None,
        };
        if let Err(error) = self.command(Command::Adopt { state, inflight }) {
            if let Some(handle) = inflight {
                self.handles.release(handle);
            }
            return Err(error);
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure.into());
        }
        self.accepted = accepted;
        for (queue, driver) in self.queues.iter_mut().zip(drivers) {
            if let Some(driver) = &driver {
                queue.layout = *driver.ring().layout();
            }
            queue.driver = driver;
        }
        Ok(())
    }
}

fn push_pages(pages: &mut Vec<u64>, word: u64, mut bits: u64) {
    while bits != 0 {
        let bit = u64::from(bits.trailing_zeros());
        pages.push(word * WORD_OF_LOG + bit * PAGE);
        bits &= bits - 1;
    }
}

/// Memory for the region of another host.
fn region_memory(bytes: &[u8]) -> Result<OwnedFd, ClientError> {
    let (memory, fd) = sealed_memory::<()>("vhost-inflight", bytes.len() as u64)?;
    memory.write_slice(bytes, GuestAddress(0)).map_err(|e| ClientError::System {
        what: "cannot fill the inflight region",
        source: std::io::Error::other(e.to_string()),
    })?;
    Ok(fd)
}
