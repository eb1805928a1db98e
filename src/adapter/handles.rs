//! Descriptors from the front-end, behind the tokens that the core knows.

use crate::Handle;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use slab::Slab;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Table of descriptors; the token is the index.
#[derive(Default)]
pub struct Handles(Slab<Entry>);

struct Entry {
    fd: OwnedFd,
    /// A write can be tried without asking first.
    nonblocking: bool,
}

impl Handles {
    /// Keep a descriptor until [`Handles::release`].
    pub fn insert(&mut self, fd: OwnedFd) -> Handle {
        let nonblocking = fcntl_getfl(&fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        let index = self.0.insert(Entry { fd, nonblocking });
        // A process cannot have as many descriptors as a `u32` can count.
        Handle(u32::try_from(index).expect("fewer descriptors than u32 can count"))
    }

    /// The descriptor behind a token.
    pub fn get(&self, handle: Handle) -> Option<BorrowedFd<'_>> {
        self.0.get(handle.0 as usize).map(|entry| entry.fd.as_fd())
    }

    /// Close.
    pub fn release(&mut self, handle: Handle) {
        self.0.try_remove(handle.0 as usize);
    }

    /// Close all, and say how many there were.
    pub fn clear(&mut self) -> usize {
        let count = self.0.len();
        self.0.clear();
        count
    }

    /// Add one to an event descriptor.
    ///
    /// The peer may share an eventfd that blocks and fill it up, and a write
    /// would then wait for the peer. Descriptors that came without O_NONBLOCK
    /// are therefore asked first; setting the flag is not ours to do, because it
    /// belongs to the open file that the peer reads from.
    pub fn signal(&self, handle: Handle) {
        let Some(entry) = self.0.get(handle.0 as usize) else {
            return;
        };
        if !entry.nonblocking {
            let mut fds = [PollFd::new(&entry.fd, PollFlags::OUT)];
            let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if !matches!(poll(&mut fds, Some(&zero)), Ok(1)) {
                return;
            }
        }
        // A full eventfd is as loud as it can be; a broken one is the peer's
        // own loss.
        let _ = rustix::io::write(&entry.fd, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn count(fd: impl AsFd) -> u64 {
        let mut buf = [0; 8];
        rustix::io::read(fd, &mut buf).unwrap();
        u64::from_ne_bytes(buf)
    }

    #[test]
    fn handles_signal_adds_one_with_and_without_nonblock() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let mut handles = Handles::default();
            let handle = handles.insert(eventfd(0, flags).unwrap());
            handles.signal(handle);
            handles.signal(handle);
            assert_eq!(count(handles.get(handle).unwrap()), 2);
        }
    }

    #[test]
    fn handles_signal_never_waits_for_a_peer_that_filled_its_eventfd() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let mut handles = Handles::default();
            let fd = eventfd(0, flags).unwrap();
            rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            let handle = handles.insert(fd);
            handles.signal(handle);
            assert_eq!(count(handles.get(handle).unwrap()), u64::MAX - 1);
        }
    }

    #[test]
    fn handles_release_closes_and_clear_closes_the_rest() {
        let mut handles = Handles::default();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (a, b) = (handles.insert(write.try_clone().unwrap()), handles.insert(write));
        handles.release(a);
        assert!(handles.get(a).is_none() && handles.get(b).is_some());
        assert_eq!(handles.clear(), 1);
        // Both writing ends are gone: the reading end is at its end.
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    }
}
