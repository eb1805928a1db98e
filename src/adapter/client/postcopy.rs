//! A guest that runs before its memory has come: pages are put where the guest
//! or the back-end waits for them, and all the others in the end.
//!
//! ```text
//! take_over, discard_pages, postcopy, start … postcopy_end
//! ```
//!
//! A thread does it, because the guest waits for pages in its own thread, and the
//! back-end in the one that would answer.

use super::{Client, ClientError, ClientMemory, PAGE, system};
use crate::Handle;
use crate::adapter::handles::Handles;
use crate::adapter::userfault::ioctl;
use crate::frontend::{Command, Event, Phase};
use crate::wire::MemRegion;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{FallocateFlags, fallocate};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

/// Where pages come from: fills one page, given its guest-physical address.
pub type PageSource = Box<dyn FnMut(u64, &mut [u8]) + Send>;

/// What was waited for so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Page faults of the guest.
    pub guest: u64,
    /// Page faults of back-ends.
    pub backend: u64,
}

/// Postcopy under way.
pub(super) struct Postcopy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), ClientError>>>,
    /// Of the back-end that was advised last, until its addresses are known.
    pub(super) advised: Option<Handle>,
}

struct Shared {
    /// For the guest's own accesses.
    ours: OwnedFd,
    /// The guest's memory as it is mapped here.
    base: u64,
    size: u64,
    backends: Mutex<Vec<Backend>>,
    /// Signalled when something of this has changed.
    changed: OwnedFd,
    /// Nobody wants pages any more.
    quit: AtomicBool,
    /// Put every page there and end.
    finish: AtomicBool,
    guest: AtomicU64,
    backend: AtomicU64,
}

/// A back-end and where it has the guest's memory.
struct Backend {
    faults: OwnedFd,
    bases: Vec<(MemRegion, u64)>,
}

impl Client {
    /// Make these pages missing, because what they hold is out of date. Only
    /// before [`Client::postcopy`].
    pub fn discard_pages(&self, pages: &[u64]) -> Result<(), ClientError> {
        let region = self.memory.find_region(GuestAddress(0));
        let file = region.and_then(|region| region.file_offset());
        for page in pages {
            let Some(file) = file else { break };
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file.file(), mode, file.start() + page, PAGE)
                .map_err(|e| system("cannot discard a page", e))?;
        }
        Ok(())
    }

    /// Let the guest start before its memory is there: from now on pages that
    /// are missing come from `source` when they are touched.
    pub fn postcopy(&mut self, source: PageSource) -> Result<(), ClientError> {
        let shared = Arc::new(Shared::new(&self.memory, self.config.memory_size)?);
        let mine = Arc::clone(&shared);
        let what = "cannot start a thread";
        let thread = std::thread::Builder::new()
            .name("pages".into())
            .spawn(move || mine.serve(source))
            .map_err(|source| ClientError::System { what, source })?;
        self.postcopy = Some(Postcopy { shared, thread: Some(thread), advised: None });
        self.postcopy_again()
    }

    /// The same for the next back-end, which begins without any page.
    pub(super) fn postcopy_again(&mut self) -> Result<(), ClientError> {
        self.command(Command::PostcopyAdvise)?;
        self.command(Command::PostcopyListen)
    }

    /// Put every page there and end postcopy; how often pages were waited for.
    pub fn postcopy_end(&mut self) -> Result<PageCounts, ClientError> {
        let Some(mut postcopy) = self.postcopy.take() else {
            return Ok(PageCounts::default());
        };
        postcopy.shared.finish.store(true, Ordering::Release);
        postcopy.shared.signal();
        if let Some(thread) = postcopy.thread.take() {
            let panicked = |_| ClientError::System {
                what: "the thread that brings pages",
                source: std::io::Error::other("panicked"),
            };
            thread.join().map_err(panicked)??;
        }
        let counts = postcopy.shared.counts();
        self.events.retain(|event| *event != Event::PostcopyEnded);
        self.wait("the start", |c| c.phase() != Phase::Starting)?;
        self.command(Command::PostcopyEnd)?;
        self.wait("the end of postcopy", |c| c.events.contains(&Event::PostcopyEnded))?;
        Ok(counts)
    }

    /// How often pages were waited for so far.
    pub fn page_counts(&self) -> PageCounts {
        self.postcopy.as_ref().map_or(PageCounts::default(), |p| p.shared.counts())
    }

    /// Whether memory is still coming.
    pub(super) fn is_incomplete(&self) -> bool {
        self.postcopy.is_some()
    }
}

impl Postcopy {
    /// The back-end's memory is mapped: what its page faults mean.
    pub(super) fn mapped(
        &mut self,
        bases: &[(MemRegion, u64)],
        handles: &mut Handles,
    ) -> std::io::Result<()> {
        if let Some(handle) = self.advised.take() {
            let fd = handles.get(handle).map(|fd| fd.try_clone_to_owned());
            handles.release(handle);
            if let Some(faults) = fd {
                let backend = Backend { faults: faults?, bases: Vec::new() };
                self.shared.lock().push(backend);
            }
        }
        if let Some(backend) = self.shared.lock().last_mut() {
            backend.bases.extend_from_slice(bases);
        }
        self.shared.signal();
        Ok(())
    }
}

impl Drop for Postcopy {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Release);
        self.shared.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn new(memory: &ClientMemory, size: u64) -> Result<Self, ClientError> {
        let what = "cannot have page faults resolved";
        let base = memory.get_host_address(GuestAddress(0)).map_err(|e| ClientError::System {
            what,
            source: std::io::Error::other(e.to_string()),
        })? as u64;
        let ours = ioctl::open().map_err(|e| system(what, e))?;
        ioctl::register(&ours, base as usize, size as usize).map_err(|e| system(what, e))?;
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| system(what, e))?;
        Ok(Self {
            ours,
            base,
            size,
            backends: Mutex::default(),
            changed,
            quit: AtomicBool::new(false),
            finish: AtomicBool::new(false),
            guest: AtomicU64::new(0),
            backend: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Backend>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }

    fn counts(&self) -> PageCounts {
        PageCounts {
            guest: self.guest.load(Ordering::Relaxed),
            backend: self.backend.load(Ordering::Relaxed),
        }
    }

    /// Until the end: whoever waits for a page gets it.
    fn serve(&self, mut source: PageSource) -> Result<(), ClientError> {
        loop {
            if self.quit.load(Ordering::Acquire) {
                ioctl::unregister(&self.ours, self.base as usize, self.size as usize);
                return Ok(());
            }
            if self.finish.load(Ordering::Acquire) {
                for page in (0..self.size).step_by(PAGE as usize) {
                    self.bring(page, &mut source)?;
                }
                ioctl::unregister(&self.ours, self.base as usize, self.size as usize);
                return Ok(());
            }
            self.wait()?;
            for page in self.wanted() {
                self.bring(page, &mut source)?;
            }
        }
    }

    fn wait(&self) -> Result<(), ClientError> {
        let what = "cannot wait for page faults";
        let backends: Vec<OwnedFd> = self
            .lock()
            .iter()
            .filter_map(|backend| backend.faults.as_fd().try_clone_to_owned().ok())
            .collect();
        let fds = [&self.ours, &self.changed].into_iter().chain(&backends);
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(system(what, e)),
        }
        let _ = rustix::io::read(&self.changed, &mut [0; 8]);
        Ok(())
    }

    /// Pages that are waited for, by guest-physical address.
    fn wanted(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        while let Ok(Some(address)) = ioctl::next_fault(&self.ours) {
            self.guest.fetch_add(1, Ordering::Relaxed);
            pages.push((address - self.base) & !(PAGE - 1));
        }
        // A back-end that is gone has nothing to say.
        for backend in self.lock().iter() {
            while let Ok(Some(address)) = ioctl::next_fault(&backend.faults) {
                self.backend.fetch_add(1, Ordering::Relaxed);
                pages.extend(backend.guest_page(address));
            }
        }
        pages
    }

    /// Put a page there, unless it is, and wake whoever waits for it.
    fn bring(&self, page: u64, source: &mut PageSource) -> Result<(), ClientError> {
        let mut bytes = [0; PAGE as usize];
        source(page, &mut bytes);
        // One step: nobody finds half of it. It wakes the guest if it was not
        // there; else the guest may have asked just before it came.
        let copied = ioctl::copy(&self.ours, self.base + page, &bytes);
        copied.map_err(|e| system("cannot place a page", e))?;
        ioctl::wake(&self.ours, (self.base + page) as usize, PAGE as usize);
        for backend in self.lock().iter() {
            if let Some(address) = backend.own_address(page) {
                ioctl::wake(&backend.faults, address as usize, PAGE as usize);
            }
        }
        Ok(())
    }
}

impl Backend {
    fn guest_page(&self, address: u64) -> Option<u64> {
        self.bases.iter().find_map(|(region, base)| {
            let at = address.checked_sub(*base).filter(|at| *at < region.size)?;
            Some((region.guest_addr + at) & !(PAGE - 1))
        })
    }

    fn own_address(&self, page: u64) -> Option<u64> {
        self.bases.iter().find_map(|(region, base)| {
            let at = page.checked_sub(region.guest_addr).filter(|at| *at < region.size)?;
            Some(base + at)
        })
    }
}
