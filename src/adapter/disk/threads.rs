//! The engine for systems without io_uring: threads that block for us. It also
//! helps the io_uring engine with what that cannot do.

use super::op::Op;
use super::sync;
use crate::adapter::image::Image;
use crate::blk::ReqId;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// A pool that grows with its work up to a limit.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    limit: usize,
    /// Given to the pool and not reaped.
    outstanding: usize,
}

struct Shared {
    image: Arc<Image>,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<Box<Op>>>,
    /// Counts up with each batch of finished requests. It is watched for
    /// edges and never read.
    event: OwnedFd,
}

#[derive(Default)]
struct Queue {
    ops: VecDeque<Box<Op>>,
    idle: usize,
    stop: bool,
}

impl Threads {
    /// A pool of at most `limit` threads; none is started before there is work.
    pub fn new(image: Arc<Image>, limit: usize) -> rustix::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            shared: Arc::new(Shared {
                image,
                queue: Mutex::default(),
                work: Condvar::new(),
                done: Mutex::default(),
                event,
            }),
            workers: Vec::new(),
            limit,
            outstanding: 0,
        })
    }

    /// Readable, edge-triggered, whenever there is something to reap.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Hand over one request.
    pub fn submit(&mut self, op: Box<Op>) {
        self.outstanding += 1;
        let mut queue = lock(&self.shared.queue);
        queue.ops.push_back(op);
        let short_of_hands = queue.ops.len() > queue.idle;
        drop(queue);
        if short_of_hands && self.workers.len() < self.limit {
            let shared = Arc::clone(&self.shared);
            let worker = std::thread::Builder::new()
                .name("midflight-io".into())
                .spawn(move || work(&shared));
            match worker {
                Ok(worker) => self.workers.push(worker),
                Err(error) if self.workers.is_empty() => {
                    // Nobody else would ever do it.
                    say!("cannot start a thread, disk I/O blocks: {error}");
                    let op = lock(&self.shared.queue).ops.pop_front();
                    if let Some(mut op) = op {
                        sync::perform(&self.shared.image, &mut op);
                        finish(&self.shared, op);
                    }
                }
                Err(_) => self.limit = self.workers.len(),
            }
        }
        self.shared.work.notify_one();
    }

    /// Take a request back that no thread has begun with.
    pub fn cancel(&mut self, id: ReqId) -> Option<Box<Op>> {
        let mut queue = lock(&self.shared.queue);
        let at = queue.ops.iter().position(|op| op.id == id)?;
        self.outstanding -= 1;
        queue.ops.remove(at)
    }

    /// Move what is finished to `out`.
    pub fn reap(&mut self, out: &mut Vec<Box<Op>>) {
        if self.outstanding > 0 {
            let mut done = lock(&self.shared.done);
            self.outstanding -= done.len();
            out.append(&mut done);
        }
    }
}

impl Drop for Threads {
    /// Waits for the requests that threads are working on: their memory is
    /// unmapped next. Those in the queue are forgotten.
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so itself.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut queue = lock(&shared.queue);
    loop {
        if queue.stop {
            return;
        }
        let Some(mut op) = queue.ops.pop_front() else {
            queue.idle += 1;
            queue = shared.work.wait(queue).unwrap_or_else(|e| e.into_inner());
            queue.idle -= 1;
            continue;
        };
        drop(queue);
        sync::perform(&shared.image, &mut op);
        finish(shared, op);
        queue = lock(&shared.queue);
    }
}

fn finish(shared: &Shared, op: Box<Op>) {
    let mut done = lock(&shared.done);
    let first = done.is_empty();
    done.push(op);
    drop(done);
    // Whoever finds the list empty wakes the loop; it takes all that it finds.
    if first {
        let _ = rustix::io::write(&shared.event, &1u64.to_ne_bytes());
    }
}

/// A poisoned lock guards plain lists, which are whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
