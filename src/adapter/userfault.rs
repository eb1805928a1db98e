//! Page faults that the front-end resolves: postcopy's end of guest memory.
//!
//! The front-end reads from the userfaultfd that is opened here, puts missing
//! pages into the shared memory and wakes whoever waits for them. It does that
//! whether or not it gets answers from us, so any thread may wait, the one that
//! serves the main channel included.
//!
//! What must not happen is that a page never comes and is taken for zeroes: a
//! guest's write would put them on the disk. So when the front-end goes away,
//! memory is *cut*: every access fails, by SIGBUS or EFAULT, as it does in memory
//! that was truncated. A thread of its own watches for that, because the others
//! may all wait for a page.
// spec: vhost-user, VHOST_USER_POSTCOPY_ADVISE

pub mod ioctl;

use super::error::describe;
use super::socket::Socket;
use crate::backend::MapFailed;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Whether a userfaultfd can be opened here that works for this purpose: for
/// shared memory, and for page faults inside system calls.
pub fn is_available() -> bool {
    try_one().is_ok()
}

fn try_one() -> rustix::io::Result<()> {
    let page = rustix::param::page_size();
    let file = memfd_create("midflight-probe", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, page as u64)?;
    let fd = ioctl::open()?;
    // SAFETY: a new mapping at an address of the kernel's choice, touched by
    // nobody and unmapped at once.
    unsafe {
        let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let base = mmap(core::ptr::null_mut(), page, flags.0, flags.1, &file, 0)?;
        let registered = ioctl::register(&fd, base as usize, page);
        munmap(base, page)?;
        registered
    }
}

/// A userfaultfd and the memory that is registered with it.
#[derive(Debug)]
pub struct Faults {
    fd: OwnedFd,
    /// Start and length of mappings. The lock is held while a mapping is
    /// replaced and while one leaves, so that nothing is replaced that is not
    /// ours any more. Nobody touches guest memory while holding it.
    ranges: Mutex<Vec<(usize, usize)>>,
    /// A file of no bytes, to put in place of memory that is cut.
    nothing: OwnedFd,
}

impl Faults {
    fn new() -> rustix::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            fd: ioctl::open()?,
            ranges: Mutex::default(),
            nothing: memfd_create("midflight-nothing", MemfdFlags::CLOEXEC)?,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, usize)>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Register a mapping that nobody has touched. It stays so until what is
    /// returned is dropped, which has to be before it is unmapped.
    pub fn register(self: &Arc<Self>, start: usize, len: usize) -> rustix::io::Result<Missing> {
        // SAFETY: advice about memory of ours. A huge page would have to be
        // filled as a whole.
        let _ = unsafe { madvise(start as *mut _, len, Advice::LinuxNoHugepage) };
        let mut ranges = self.lock();
        ioctl::register(&self.fd, start, len)?;
        ranges.push((start, len));
        Ok(Missing { faults: Arc::clone(self), start })
    }

    /// All pages are there: whoever still waits finds them.
    fn finish(&self) {
        for (start, len) in self.lock().drain(..) {
            ioctl::unregister(&self.fd, start, len);
        }
    }

    /// The pages that are missing will never come: accesses fail from now on.
    fn cut(&self) {
        for (start, len) in self.lock().drain(..) {
            // SAFETY: replaces a mapping of ours by one that can be unmapped
            // like it. What accesses it meanwhile is treated as if the file had
            // been truncated.
            let replaced = unsafe {
                mmap(
                    start as *mut _,
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE,
                    &self.nothing,
                    0,
                )
            };
            match replaced {
                Ok(_) => ioctl::wake(&self.fd, start, len),
                // Waiting forever is better than writing zeroes.
                Err(errno) => say!("cannot cut the memory of a front-end: {}", describe(errno)),
            }
        }
    }
}

/// A mapping that is registered.
#[derive(Debug)]
pub struct Missing {
    faults: Arc<Faults>,
    start: usize,
}

impl Drop for Missing {
    fn drop(&mut self) {
        self.faults.lock().retain(|(start, _)| *start != self.start);
    }
}

/// Postcopy of the client that is served.
#[derive(Default)]
pub struct Postcopy(Option<(Arc<Faults>, Watch)>);

impl Postcopy {
    /// Open a userfaultfd for this client; a copy of it is to go to the client.
    pub fn open(&mut self, client: Option<&Socket>) -> Result<OwnedFd, MapFailed> {
        self.close(false);
        let system = |e: std::io::Error| MapFailed(format!("cannot open a userfaultfd: {e}"));
        let errno = |e: Errno| MapFailed(format!("cannot open a userfaultfd: {}", describe(e)));
        let client = client.ok_or_else(|| MapFailed("the front-end is gone".into()))?;
        let faults = Faults::new().map_err(errno)?;
        let theirs = faults.fd.try_clone().map_err(system)?;
        let client = client.as_fd().try_clone_to_owned().map_err(system)?;
        let watch = Watch::start(client, Arc::clone(&faults)).map_err(system)?;
        self.0 = Some((faults, watch));
        Ok(theirs)
    }

    /// What was opened last.
    pub fn current(&self) -> Result<&Arc<Faults>, MapFailed> {
        let (faults, _) = self.0.as_ref().ok_or_else(|| MapFailed("no userfaultfd".into()))?;
        Ok(faults)
    }

    /// Let nobody wait any more. If not `all_there`, let them fail.
    pub fn close(&mut self, all_there: bool) {
        if let Some((faults, watch)) = self.0.take() {
            drop(watch);
            if all_there {
                faults.finish();
            } else {
                faults.cut();
            }
        }
    }
}

/// A thread that cuts memory when the front-end goes away.
struct Watch {
    quit: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(client: OwnedFd, faults: Arc<Faults>) -> std::io::Result<Self> {
        let quit = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mine = Arc::clone(&quit);
        let thread = std::thread::Builder::new().name("postcopy".into()).spawn(move || {
            loop {
                let mut fds =
                    [PollFd::new(&client, PollFlags::RDHUP), PollFd::new(&*mine, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Err(Errno::INTR) => {}
                    Ok(_) if !fds[1].revents().is_empty() => return,
                    Ok(_) | Err(_) => return faults.cut(),
                }
            }
        })?;
        Ok(Self { quit, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.quit, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
