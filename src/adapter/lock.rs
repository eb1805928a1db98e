//! The lock on the image: one writer at a time, and no writer before the last
//! write of its predecessor has landed.
//!
//! The second half is why a lock is taken at all. A daemon killed in the middle
//! of I/O leaves writes behind that the kernel still carries out. Its successor
//! submits the same requests again, and then newer ones; an old write that
//! lands after a newer one would undo it. flock(2) belongs to the open file,
//! and requests in an io_uring, as well as threads inside a system call, hold
//! the open file until they are done. So the lock becomes free exactly when the
//! dead daemon's last write is over, and who has it need not fear a late write.
//!
//! The lock is held while a vring runs or a request is at the disk, and not
//! longer: in a migration two daemons have the image open, and the one at the
//! source lets go when its last vring has stopped. Nobody waits with a message
//! for the lock. Requests that come before it is there are kept back by the
//! disk, which for the back-end is a disk that is slow.

use super::error::{Refusal, describe};
use super::image::Image;
use crate::time::{Duration, Instant};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::sync::Arc;

/// How long to wait for another owner.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look: flock(2) has no event that could be waited for without a
/// thread.
const INTERVAL: Duration = Duration::from_millis(2);

/// The lock, and whether it is wanted.
#[derive(Debug)]
pub struct StoreLock {
    image: Arc<Image>,
    /// For messages.
    name: String,
    operation: FlockOperation,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Somebody else has it.
    Waiting {
        end: Instant,
        next: Instant,
    },
    Held,
}

impl StoreLock {
    /// A lock on `image`, shared if it is only read. Nothing is locked yet.
    pub fn new(image: Arc<Image>, name: String, read_only: bool) -> Self {
        let operation = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        Self { image, name, operation, state: State::Free }
    }

    /// Want it.
    pub fn acquire(&mut self, now: Instant) {
        if self.state == State::Free {
            self.state = State::Waiting { end: now + PATIENCE, next: now };
        }
    }

    /// Look whether it can be had; true from the moment on that it is held.
    ///
    /// # Errors
    /// It was not free for [`PATIENCE`]; it is not wanted any more then.
    pub fn poll(&mut self, now: Instant) -> Result<bool, Refusal> {
        let State::Waiting { end, next } = self.state else {
            return Ok(self.state == State::Held);
        };
        if now < next {
            return Ok(false);
        }
        loop {
            match flock(self.image.fd(), self.operation) {
                Ok(()) => {
                    self.state = State::Held;
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if now < end => {
                    if next + PATIENCE == end {
                        say!("{} is in use, waiting for its lock", self.name);
                    }
                    self.state = State::Waiting { end, next: now + INTERVAL };
                    return Ok(false);
                }
                Err(errno) => {
                    self.state = State::Free;
                    return Err(Refusal(match errno {
                        Errno::WOULDBLOCK => format!(
                            "{} is in use: its lock was not free for {} s",
                            self.name,
                            PATIENCE.as_secs()
                        ),
                        errno => format!("cannot lock {}: {}", self.name, describe(errno)),
                    }));
                }
            }
        }
    }

    /// Let another owner have it.
    pub fn release(&mut self) {
        if self.state == State::Held {
            // The only error there is for a descriptor that is open and was
            // locked is an interruption, which this call cannot have.
            let _ = flock(self.image.fd(), FlockOperation::Unlock);
        }
        self.state = State::Free;
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { next, .. } => Some(next),
            State::Free | State::Held => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::image::ImageOptions;
    use std::path::Path;

    fn open(path: &Path, read_only: bool) -> StoreLock {
        let options = ImageOptions { read_only, direct: false, logical_block_size: None };
        let image = Arc::new(Image::open(path, options).unwrap());
        StoreLock::new(image, "image".into(), read_only)
    }

    fn wants(lock: &mut StoreLock, now: Instant) -> bool {
        lock.acquire(now);
        lock.poll(now).unwrap()
    }

    #[test]
    fn lock_is_shared_by_readers_waited_for_by_a_writer_and_free_after_release_or_close() {
        let path = std::env::temp_dir().join(format!("midflight-lock-{}", std::process::id()));
        std::fs::write(&path, [0; 512]).unwrap();
        let now = Instant::ZERO;
        let (mut a, mut b) = (open(&path, true), open(&path, true));
        let mut c = open(&path, false);
        assert_eq!(c.poll(now), Ok(false), "nobody wants it");
        assert!(wants(&mut a, now) && wants(&mut b, now));
        assert!(!wants(&mut c, now));
        a.release();
        let due = c.deadline().unwrap();
        assert!(due > now);
        assert_eq!(c.poll(due), Ok(false));
        // A reader that goes without a word, as a process does that is killed.
        drop(b);
        assert_eq!(c.poll(due), Ok(false), "not looked at before it is due");
        let due = c.deadline().unwrap();
        assert_eq!((c.poll(due), c.deadline()), (Ok(true), None));
        // The next one loses patience, and may come back.
        assert!(!wants(&mut a, now));
        let refusal = a.poll(now + PATIENCE).unwrap_err();
        assert_eq!(refusal.0, "image is in use: its lock was not free for 5 s");
        c.release();
        assert!(wants(&mut a, now));
        std::fs::remove_file(&path).unwrap();
    }
}
