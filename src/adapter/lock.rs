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
//! The lock is taken at start-up. It will have to move to the first start of a
//! vring once two daemons take part in a migration over one shared image.

use super::error::{Refusal, describe};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait for a predecessor's writes.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look.
const INTERVAL: Duration = Duration::from_millis(10);

/// Lock the image, shared if it is only read, and keep the lock as long as its
/// file is open.
pub fn lock(image: impl AsFd, path: &Path, read_only: bool) -> Result<(), Refusal> {
    lock_within(image, path, read_only, PATIENCE)
}

fn lock_within(
    image: impl AsFd,
    path: &Path,
    read_only: bool,
    patience: Duration,
) -> Result<(), Refusal> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let end = Instant::now() + patience;
    loop {
        match flock(image.as_fd(), operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(INTERVAL),
            Err(Errno::WOULDBLOCK) => {
                return Err(Refusal(format!(
                    "{} is in use: its lock was not free for {} s",
                    path.display(),
                    patience.as_secs_f32()
                )));
            }
            Err(errno) => {
                return Err(Refusal(format!(
                    "cannot lock {}: {}",
                    path.display(),
                    describe(errno)
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> std::fs::File {
        std::fs::File::open(path).unwrap()
    }

    #[test]
    fn lock_shared_twice_but_exclusive_once_and_free_after_close() {
        let path = std::env::temp_dir().join(format!("midflight-lock-{}", std::process::id()));
        std::fs::write(&path, b"x").unwrap();
        let short = Duration::from_millis(30);
        let (a, b) = (open(&path), open(&path));
        lock_within(&a, &path, true, short).unwrap();
        lock_within(&b, &path, true, short).unwrap();
        let c = open(&path);
        let refusal = lock_within(&c, &path, false, short).unwrap_err();
        assert!(refusal.0.contains("is in use"), "{refusal}");
        drop(a);
        // The second holder leaves while the third is waiting.
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || lock_within(&c, &path, false, PATIENCE)
        });
        std::thread::sleep(Duration::from_millis(30));
        drop(b);
        waiter.join().unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
