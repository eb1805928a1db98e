//! Disk I/O: straight between the image and guest memory.
//!
//! Which engine does it is decided once, at start-up, and known to the
//! compiler: an `enum`, no dynamic dispatch. Requests are recycled, so a
//! request that finds a used one allocates nothing.

// Requests travel between queues and threads; boxed, they move as a pointer.
#![allow(clippy::vec_box)]

mod bounce;
mod erase;
mod inline;
mod op;
mod sync;
mod threads;
mod throttle;
mod uring;
mod zeroes;
mod zoned;

use super::error::Refusal;
use super::image::Image;
use super::memory::Memory;
use crate::backend::CHAINS_PER_CALL;
use crate::blk::{Completion, DiskError, DiskRequest, ReqId};
use crate::time::Instant;
use inline::Inline;
use op::Op;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use threads::Threads;
use throttle::{Held, Throttle};
use uring::Uring;

pub(super) use sync::last_errno;
pub use zoned::ZoneFile;
use zoned::{Gate, Zoned};

/// Threads of the fallback engine. Few disks gain from more at once, and each
/// is idle memory.
const THREADS: usize = 16;

/// Which engine the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// The best that works.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// A pool of threads.
    Threads,
    /// In the calling thread.
    Inline,
}

enum Engine {
    Uring(Box<Uring>),
    Inline(Inline),
    Threads(Threads),
}

/// The disk, as the event loop sees it.
pub struct Disk {
    engine: Engine,
    throttle: Option<Throttle>,
    /// Requests to use again.
    free: Vec<Box<Op>>,
    /// Finished, not yet reported.
    finished: Vec<Box<Op>>,
    /// Started, not yet reported.
    inflight: usize,
    /// The engine wants to be pumped at once: it says so, or has got a request
    /// since, which nothing else may wake the loop for. What the core does about
    /// a completion, after the pump that brought it, can be to start another.
    retry: bool,
    /// The image is divided into zones.
    zoned: Option<Box<Zoned>>,
    /// What zones have let go, to be given to the engine.
    released: Vec<Gate>,
    /// The store is ours: requests may go on to the engine.
    open: bool,
    /// Came while the store was not ours.
    held: VecDeque<Box<Op>>,
    /// Cancelled while an engine worked on them: not to be slowed down when
    /// they come back.
    hurried: Vec<ReqId>,
}

impl Disk {
    /// Open an engine for `image`. The second value is the line for the
    /// operator if it is not the one that was hoped for.
    ///
    /// # Errors
    /// The engine that was asked for does not work here.
    pub fn new(
        image: Arc<Image>,
        choice: EngineChoice,
        throttle_latency_us: Option<u64>,
        zones: Option<ZoneFile>,
    ) -> io::Result<(Self, Option<String>)> {
        let zoned = zones.map(|file| Box::new(Zoned::new(Arc::clone(&image), file)));
        let threads = |image| Threads::new(image, THREADS).map(Engine::Threads);
        let mut line = None;
        let engine = match choice {
            EngineChoice::Inline => Engine::Inline(Inline::new(image)),
            EngineChoice::Auto if image.is_in_memory() => Engine::Inline(Inline::new(image)),
            EngineChoice::Threads => threads(image)?,
            EngineChoice::Uring => Engine::Uring(Box::new(Uring::new(image)?)),
            EngineChoice::Auto => match Uring::new(Arc::clone(&image)) {
                Ok(uring) => Engine::Uring(Box::new(uring)),
                Err(error) => {
                    line = Some(format!(
                        "io_uring is refused ({error}), using up to {THREADS} threads for disk I/O"
                    ));
                    threads(image)?
                }
            },
        };
        let disk = Self {
            engine,
            throttle: throttle_latency_us.map(Throttle::new),
            free: Vec::new(),
            // Room for a batch from the start: how large the first ones are is
            // a matter of luck.
            finished: Vec::with_capacity(usize::from(CHAINS_PER_CALL)),
            inflight: 0,
            retry: false,
            zoned,
            released: Vec::new(),
            open: false,
            held: VecDeque::new(),
            hurried: Vec::new(),
        };
        Ok((disk, line))
    }

    /// Name of the engine, for the operator.
    pub fn name(&self) -> &'static str {
        match self.engine {
            Engine::Uring(_) => "io-uring",
            Engine::Inline(_) => "inline",
            Engine::Threads(_) => "threads",
        }
    }

    /// Descriptors that become readable, edge-triggered, when [`Disk::pump`] has
    /// something to report.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match &self.engine {
            Engine::Uring(uring) => uring.fds().into(),
            Engine::Inline(_) => Vec::new(),
            Engine::Threads(threads) => vec![threads.fd()],
        }
    }

    /// Start a request on the current guest memory. Nothing is given to the
    /// kernel before [`Disk::pump`].
    pub fn start(&mut self, now: Instant, request: &DiskRequest<'_>, memory: &mut Memory) {
        let mut op = self.free.pop().unwrap_or_else(Op::empty);
        op.reset(request.id, request.op);
        op.set_ranges(request.ranges.iter().copied());
        (op.vring, op.head) = (request.vring, request.head);
        (op.order, op.again) = (request.order, request.again);
        self.inflight += 1;
        if !request.segments.is_empty() {
            op.epoch = memory.translate(request.segments, op.iov_mut());
            if op.epoch.is_none() {
                op.result = Err(DiskError::Os(libc::EFAULT));
                self.finished.push(op);
                return;
            }
            op.measure();
        }
        if self.open {
            self.admit(now, op);
        } else {
            self.held.push_back(op);
        }
    }

    /// Do nothing and report a failure: the memory that asked for it is gone.
    pub fn refuse(&mut self, request: &DiskRequest<'_>) {
        let mut op = self.free.pop().unwrap_or_else(Op::empty);
        op.reset(request.id, request.op);
        op.result = Err(DiskError::Os(libc::EFAULT));
        self.inflight += 1;
        self.finished.push(op);
    }

    /// The store is ours from now on; what was kept back goes to the engine.
    ///
    /// # Errors
    /// How far its zones are written cannot be found out. Nothing is given to
    /// the engine then.
    pub fn open(&mut self, now: Instant) -> Result<(), Refusal> {
        if let Some(zoned) = &mut self.zoned {
            zoned.open()?;
        }
        self.open = true;
        while let Some(op) = self.held.pop_front() {
            self.admit(now, op);
        }
        Ok(())
    }

    /// The store is not ours any more: keep back what comes.
    pub fn close(&mut self) {
        self.open = false;
        if let Some(zoned) = &mut self.zoned {
            zoned.close();
        }
    }

    /// A vring runs that has begun with so many requests of a predecessor.
    pub fn vring_runs(&mut self, vring: u16, resubmitted: u16) {
        if let Some(zoned) = &mut self.zoned {
            zoned.vring_runs(vring, resubmitted);
        }
    }

    /// The store will not be ours: what was kept back is over.
    pub fn give_up(&mut self) {
        while let Some(op) = self.held.pop_front() {
            self.cancelled(op);
        }
    }

    fn admit(&mut self, now: Instant, op: Box<Op>) {
        // In the order of arrival, and nothing further on keeps that.
        let gate = match &mut self.zoned {
            None => Some(Gate::Go(op)),
            Some(zoned) => zoned.admit(op),
        };
        self.pass(now, gate);
    }

    fn pass(&mut self, now: Instant, gate: Option<Gate>) {
        let op = match gate {
            None => return,
            Some(Gate::Over(op)) => return self.finished.push(op),
            Some(Gate::Go(op)) => op,
        };
        let op = match &mut self.throttle {
            None => op,
            Some(throttle) => match throttle.admit(now, op) {
                Some(op) => op,
                None => return,
            },
        };
        self.submit(op);
    }

    /// See to it that a request is over soon. Its completion comes like any
    /// other, and says [`DiskError::Cancelled`] only when nothing of it can
    /// reach the disk or guest memory any more.
    ///
    /// What no engine has seen is cancelled at once. An engine that has begun
    /// is asked to stop, and whatever it answers is waited for.
    pub fn cancel(&mut self, id: ReqId) {
        if let Some(at) = self.held.iter().position(|op| op.id == id) {
            let op = self.held.remove(at).expect("a position that was just found");
            return self.cancelled(op);
        }
        if let Some(op) = self.zoned.as_mut().and_then(|zoned| zoned.cancel(id)) {
            return self.cancelled(op);
        }
        match self.throttle.as_mut().and_then(|throttle| throttle.take(id)) {
            Some(Held::Before(op)) => return self.cancelled(op),
            // Done long ago, only not told.
            Some(Held::After(mut op)) => {
                op.due = Instant::ZERO;
                return self.finished.push(op);
            }
            None => {}
        }
        let taken = match &mut self.engine {
            Engine::Uring(uring) => uring.cancel(id),
            Engine::Threads(threads) => threads.cancel(id),
            Engine::Inline(_) => None,
        };
        match taken {
            Some(op) => self.cancelled(op),
            None if self.throttle.is_some() => self.hurried.push(id),
            None => {}
        }
    }

    fn cancelled(&mut self, mut op: Box<Op>) {
        op.result = Err(DiskError::Cancelled);
        op.due = Instant::ZERO;
        self.finished.push(op);
    }

    fn submit(&mut self, op: Box<Op>) {
        self.retry = true;
        match &mut self.engine {
            Engine::Uring(uring) => uring.submit(op),
            Engine::Inline(inline) => inline.submit(op),
            Engine::Threads(threads) => threads.submit(op),
        }
    }

    /// Give what was started to the kernel in one call, and append all that is
    /// finished to `out`.
    ///
    /// # Errors
    /// The engine is broken; nothing more can be expected of it.
    pub fn pump(
        &mut self,
        now: Instant,
        memory: &mut Memory,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        while let Some(op) = self.throttle.as_mut().and_then(|t| t.next_to_submit(now)) {
            self.submit(op);
        }
        match &mut self.engine {
            Engine::Uring(uring) => {
                self.retry = uring.pump(&mut self.finished)?;
            }
            Engine::Inline(inline) => {
                self.retry = false;
                inline.reap(&mut self.finished);
            }
            Engine::Threads(threads) => {
                self.retry = false;
                threads.reap(&mut self.finished);
            }
        }
        let mut finished = core::mem::take(&mut self.finished);
        for mut op in finished.drain(..) {
            if let Some(zoned) = &mut self.zoned {
                zoned.finished(&mut op, &mut self.released);
            }
            if let Some(at) = self.hurried.iter().position(|id| *id == op.id) {
                self.hurried.swap_remove(at);
                op.due = Instant::ZERO;
            }
            let op = match &mut self.throttle {
                None => op,
                Some(throttle) => match throttle.finish(now, op) {
                    Some(op) => op,
                    None => continue,
                },
            };
            self.report(op, memory, out);
        }
        self.finished = finished;
        while let Some(op) = self.throttle.as_mut().and_then(|t| t.next_to_report(now)) {
            self.report(op, memory, out);
        }
        // The engine looks at these in the next round.
        self.retry |= !self.released.is_empty();
        for gate in core::mem::take(&mut self.released) {
            self.pass(now, Some(gate));
        }
        Ok(())
    }

    fn report(&mut self, op: Box<Op>, memory: &mut Memory, out: &mut Vec<Completion>) {
        if let Some(epoch) = op.epoch {
            memory.release(epoch);
        }
        out.push(Completion { id: op.id, result: op.result });
        self.inflight -= 1;
        self.free.push(op);
    }

    /// When [`Disk::pump`] has something to do even if no descriptor becomes
    /// readable.
    pub fn deadline(&self) -> Option<Instant> {
        if self.retry || !self.finished.is_empty() {
            return Some(Instant::ZERO);
        }
        self.throttle.as_ref().and_then(Throttle::deadline)
    }

    /// Requests started and not reported.
    pub fn inflight(&self) -> usize {
        self.inflight
    }
}

#[cfg(test)]
mod tests;
