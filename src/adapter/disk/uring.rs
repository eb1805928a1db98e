//! The engine for files and block devices: io_uring.

use super::op::Op;
use super::sync;
use super::threads::Threads;
use crate::adapter::image::Image;
use crate::blk::{DiskError, DiskOp, ReqId};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Requests submitted by one system call, at most.
const SUBMIT: u32 = 256;
/// Requests in the ring at once; more wait in a queue of ours, so that the
/// kernel never has to keep completions elsewhere.
const INFLIGHT: u32 = 4096;
/// Threads for what io_uring cannot do.
const HELPERS: usize = 4;
/// The image, as registered.
const IMAGE: Fixed = Fixed(0);

/// User data of cancellations; requests have the number of their place.
const CANCEL: u64 = u64::MAX;

/// A ring with one file.
pub struct Uring {
    ring: IoUring,
    image: Arc<Image>,
    /// Given to the kernel, by user data.
    inflight: Slab<Box<Op>>,
    /// In `inflight` but not yet in the ring.
    waiting: VecDeque<usize>,
    helpers: Threads,
    /// Signalled by the kernel when there is something to reap. The ring itself
    /// can be polled too, but not for work that is deferred to us.
    event: OwnedFd,
    /// Completions wait in the kernel until we enter it.
    deferred: bool,
}

impl Uring {
    /// Set up a ring. Fails where the kernel, or a filter, does not want it.
    pub fn new(image: Arc<Image>) -> io::Result<Self> {
        // One thread submits and reaps, so completions need not interrupt it.
        // Kernels before 6.1 do not know this and get a plain ring.
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_coop_taskrun()
            .setup_cqsize(INFLIGHT)
            .setup_submit_all()
            .dontfork()
            .build(SUBMIT);
        let (ring, deferred) = match modern {
            Ok(ring) => (ring, true),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                let ring = IoUring::builder().setup_cqsize(INFLIGHT).dontfork().build(SUBMIT)?;
                (ring, false)
            }
            Err(e) => return Err(e),
        };
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_submit_stable() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_files(&[image.fd().as_raw_fd()])?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            helpers: Threads::new(Arc::clone(&image), HELPERS)?,
            image,
            inflight: Slab::new(),
            waiting: VecDeque::new(),
            event,
            deferred,
        })
    }

    /// Readable, edge-triggered, whenever there may be something to reap.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.event.as_fd(), self.helpers.fd()]
    }

    /// Queue one request; [`Uring::pump`] gives it to the kernel.
    pub fn submit(&mut self, op: Box<Op>) {
        let unmap = op.range().is_some_and(|range| range.unmap);
        let elsewhere = match op.kind {
            DiskOp::Read { .. } | DiskOp::Write { .. } => self.image.misaligned(op.left()),
            DiskOp::Flush => false,
            DiskOp::Discard { .. } => self.image.is_block(),
            DiskOp::WriteZeroes { .. } => self.image.zero_mode(unmap).is_none(),
            DiskOp::SecureErase
            | DiskOp::ZoneAppend { .. }
            | DiskOp::ZoneReport { .. }
            | DiskOp::Zone { .. } => true,
        };
        // Two files are made durable by two calls.
        if elsewhere || op.durable() && self.image.companion().is_some() {
            self.helpers.submit(op);
            return;
        }
        let key = self.inflight.insert(op);
        self.push(key);
    }

    /// Ask the kernel to stop a request, whose completion then comes soon, or
    /// take it back if the kernel has not seen it.
    ///
    /// A place is given to another request only after the completion of the one
    /// before was reaped; by then the cancellation, which is earlier in the
    /// ring than that request, has been looked at. So it never hits a request
    /// that was not meant.
    pub fn cancel(&mut self, id: ReqId) -> Option<Box<Op>> {
        let Some((key, op)) = self.inflight.iter_mut().find(|(_, op)| op.id == id) else {
            return self.helpers.cancel(id);
        };
        op.cancelled = true;
        if let Some(at) = self.waiting.iter().position(|waiting| *waiting == key) {
            self.waiting.remove(at);
            return Some(self.inflight.remove(key));
        }
        let entry = opcode::AsyncCancel::new(key as u64).build().user_data(CANCEL);
        // SAFETY: the entry points to nothing.
        if unsafe { self.ring.submission().push(&entry) }.is_err() && self.call().is_ok() {
            // SAFETY: as above. Without room even now, the request just takes
            // its time.
            let _ = unsafe { self.ring.submission().push(&entry) };
        }
        None
    }

    fn push(&mut self, key: usize) {
        let in_ring = self.inflight.len() - self.waiting.len();
        if !self.waiting.is_empty() || in_ring > INFLIGHT as usize {
            self.waiting.push_back(key);
            return;
        }
        let entry = entry(&self.image, &self.inflight[key]).user_data(key as u64);
        // SAFETY: the entry points to pieces and memory that stay where they
        // are until its completion: `inflight` holds the request, and the
        // memory table is kept while the request is counted on it.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            // The submission ring is full. Room is made by entering the kernel.
            let entered = self.call();
            // SAFETY: as above.
            if entered.is_err() || unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.waiting.push_back(key);
            }
        }
    }

    /// Give queued requests to the kernel, all in one call, and move what is
    /// finished to `out`. `true` if there is more to do at once.
    pub fn pump(&mut self, out: &mut Vec<Box<Op>>) -> io::Result<bool> {
        // Most requests that the page cache can answer are finished during the
        // call; a signal for those would only wake the loop for nothing.
        self.ring.completion().disable_eventfd();
        if self.wants_entering() {
            match self.call() {
                Ok(()) => {}
                // The kernel is short of memory or has to get rid of completions.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {}
                Err(e) => return Err(e),
            }
        }
        self.reap(out);
        self.ring.completion().enable_eventfd();
        // Something may have finished just before the signal was switched on.
        fence(Ordering::SeqCst);
        Ok(self.wants_entering() || !self.ring.completion().is_empty())
    }

    /// Requests wait for submission, or completions for us.
    fn wants_entering(&mut self) -> bool {
        let submission = self.ring.submission();
        !submission.is_empty() || (self.deferred && submission.taskrun())
    }

    fn call(&mut self) -> io::Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        loop {
            // Enter also runs what the kernel has deferred to us.
            const GETEVENTS: u32 = 1;
            // SAFETY: no argument is passed that could be wrong.
            match unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(to_submit, 0, GETEVENTS, None)
            } {
                Ok(_) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn reap(&mut self, out: &mut Vec<Box<Op>>) {
        self.helpers.reap(out);
        loop {
            let Some(cqe) = self.ring.completion().next() else {
                break;
            };
            // Whether a request could be stopped is told by its own completion.
            if cqe.user_data() != CANCEL {
                self.completed(cqe.user_data() as usize, cqe.result(), out);
            }
        }
        while !self.waiting.is_empty()
            && self.inflight.len() - self.waiting.len() < INFLIGHT as usize
            && !self.ring.submission().is_full()
        {
            let Some(key) = self.waiting.pop_front() else {
                break;
            };
            let entry = entry(&self.image, &self.inflight[key]).user_data(key as u64);
            // SAFETY: as in `push`; there is room.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.waiting.push_front(key);
                break;
            }
        }
    }

    fn completed(&mut self, key: usize, result: i32, out: &mut Vec<Box<Op>>) {
        let op = &mut self.inflight[key];
        match next(op, result) {
            // What was begun need not be ended: it will be executed again, as
            // a whole.
            Next::Done(Err(DiskError::Os(libc::ECANCELED))) | Next::Again | Next::Elsewhere
                if op.cancelled =>
            {
                op.result = Err(DiskError::Cancelled);
                out.push(self.inflight.remove(key));
            }
            Next::Done(result) => {
                op.result = result;
                out.push(self.inflight.remove(key));
            }
            Next::Again => self.push(key),
            Next::Elsewhere => {
                let op = self.inflight.remove(key);
                self.helpers.submit(op);
            }
        }
    }
}

impl Drop for Uring {
    /// The kernel writes into guest memory until the last completion, so the
    /// ring must not go before.
    fn drop(&mut self) {
        let mut done = Vec::new();
        self.waiting.drain(..).for_each(|key| {
            self.inflight.remove(key);
        });
        while !self.inflight.is_empty() {
            if self.ring.submit_and_wait(1).is_err() {
                // Never seen. Leaking is safe, unmapping is not.
                core::mem::forget(core::mem::take(&mut self.inflight));
                return;
            }
            self.reap(&mut done);
        }
    }
}

enum Next {
    Done(Result<(), DiskError>),
    /// There is more to do, by io_uring.
    Again,
    /// There is more to do, but not by io_uring.
    Elsewhere,
}

/// What to do after the kernel has answered.
fn next(op: &mut Op, result: i32) -> Next {
    if result < 0 {
        let errno = Errno::from_raw_os_error(-result);
        return match (op.kind, errno) {
            (_, Errno::INTR) => Next::Again,
            // A thread can wait for what a ring cannot, and knows more ways.
            (_, Errno::AGAIN) => Next::Elsewhere,
            (
                DiskOp::WriteZeroes { .. } | DiskOp::Discard { .. },
                Errno::OPNOTSUPP | Errno::INVAL,
            ) if !op.syncing => Next::Elsewhere,
            _ => Next::Done(Err(sync::os(errno))),
        };
    }
    match op.kind {
        DiskOp::Flush => Next::Done(Ok(())),
        DiskOp::Discard { durable } | DiskOp::WriteZeroes { durable } => {
            op.range_done();
            if op.range().is_some() {
                Next::Again
            } else if durable && !op.syncing {
                op.syncing = true;
                Next::Again
            } else {
                Next::Done(Ok(()))
            }
        }
        DiskOp::SecureErase
        | DiskOp::ZoneAppend { .. }
        | DiskOp::ZoneReport { .. }
        | DiskOp::Zone { .. } => Next::Elsewhere,
        DiskOp::Read { .. } | DiskOp::Write { .. } => {
            op.advance(result as u64);
            if op.is_moved() {
                Next::Done(Ok(()))
            } else if result == 0 {
                Next::Done(Err(op.short()))
            } else {
                Next::Again
            }
        }
    }
}

/// The submission that does the next step of `op`.
fn entry(image: &Image, op: &Op) -> squeue::Entry {
    let flags = if op.durable() { libc::RWF_DSYNC } else { 0 };
    let window = op.window();
    match (op.kind, window) {
        // The plain forms spare the kernel the copy of a descriptor.
        (DiskOp::Read { .. }, [one]) => {
            opcode::Read::new(IMAGE, one.0.iov_base.cast(), clamp(one.0.iov_len))
                .offset(op.offset)
                .build()
        }
        (DiskOp::Write { .. }, [one]) => {
            opcode::Write::new(IMAGE, one.0.iov_base.cast(), clamp(one.0.iov_len))
                .offset(op.offset)
                .rw_flags(flags)
                .build()
        }
        (DiskOp::Read { .. }, many) => {
            opcode::Readv::new(IMAGE, many.as_ptr().cast(), many.len() as u32)
                .offset(op.offset)
                .build()
        }
        (DiskOp::Write { .. }, many) => {
            opcode::Writev::new(IMAGE, many.as_ptr().cast(), many.len() as u32)
                .offset(op.offset)
                .rw_flags(flags)
                .build()
        }
        (DiskOp::Flush, _) => fdatasync(),
        (DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. }, _) if op.syncing => fdatasync(),
        (DiskOp::Discard { .. }, _) => fallocate(op, Image::punch_mode()),
        (DiskOp::WriteZeroes { .. }, _) => {
            // Another request may have found out meanwhile that no mode works;
            // this one then finds out for itself.
            let unmap = op.range().is_some_and(|range| range.unmap);
            fallocate(op, image.zero_mode(unmap).unwrap_or(Image::punch_mode()))
        }
        // Never put into a ring, see `submit`.
        (
            DiskOp::SecureErase
            | DiskOp::ZoneAppend { .. }
            | DiskOp::ZoneReport { .. }
            | DiskOp::Zone { .. },
            _,
        ) => opcode::Nop::new().build(),
    }
}

fn fdatasync() -> squeue::Entry {
    opcode::Fsync::new(IMAGE).flags(FsyncFlags::DATASYNC).build()
}

fn fallocate(op: &Op, mode: rustix::fs::FallocateFlags) -> squeue::Entry {
    let (offset, len) = op.range().map_or((0, 0), |range| (range.offset, range.len));
    opcode::Fallocate::new(IMAGE, len).offset(offset).mode(mode.bits() as i32).build()
}

/// The kernel moves less than 2 GiB at a time anyway; the rest is a short
/// transfer to be continued.
fn clamp(len: usize) -> u32 {
    len.min(1 << 30) as u32
}
