//! Readiness, edge-triggered.
//!
//! Edges fit event descriptors that are signalled and never read: every signal
//! is one event, and one that was pending when the descriptor was added
//! counts. They fit the control socket too: whether it is read depends on what
//! the back-end wants, not on what the kernel has.

use crate::time::{Duration, Instant};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client may be waiting.
    Listener,
    /// The control socket can be read, was closed, or can be written.
    Control,
    /// The same for the back-end's channel.
    Channel,
    /// The device's state can be read or written.
    State,
    /// A signal came.
    Signal,
    /// The disk has finished something.
    Disk,
    /// A vring was kicked.
    Kick(u16),
}

/// Tokens of kicks start here, one for each vring.
const KICK: u64 = 1 << 16;

impl Source {
    fn token(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Listener => 0,
            Self::Control => 1,
            Self::Signal => 2,
            Self::Disk => 3,
            Self::Channel => 4,
            Self::State => 5,
            Self::Kick(vring) => KICK + u64::from(vring),
        })
    }

    fn from_token(token: u64) -> Self {
        match token {
            0 => Self::Listener,
            1 => Self::Control,
            2 => Self::Signal,
            3 => Self::Disk,
            4 => Self::Channel,
            5 => Self::State,
            kick => Self::Kick((kick - KICK) as u16),
        }
    }
}

/// An epoll instance with room for the events of one wait.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// An empty set.
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(64),
        })
    }

    /// Watch `fd` for edges.
    pub fn add(&self, fd: impl AsFd, source: Source) -> rustix::io::Result<()> {
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if matches!(source, Source::Control | Source::Channel | Source::State) {
            flags |= epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
        }
        epoll::add(&self.epoll, fd, source.token(), flags)
    }

    /// Watch `fd` no more.
    pub fn remove(&self, fd: impl AsFd) {
        // Not there: nothing to do.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Wait until something is ready (`true`) or `until` has come; `None` waits
    /// forever.
    pub fn wait(&mut self, now: Instant, until: Option<Instant>) -> rustix::io::Result<bool> {
        let timeout = until.map(|until| timespec(until.saturating_since(now)));
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => Ok(!self.events.is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// The next of what became ready.
    pub fn next(&mut self) -> Option<Source> {
        self.events.pop().map(|event| Source::from_token(event.data.u64()))
    }
}

fn timespec(wait: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn ready(poller: &mut Poller) -> Vec<Source> {
        poller.wait(Instant::ZERO, Some(Instant::ZERO)).unwrap();
        std::iter::from_fn(|| poller.next()).collect()
    }

    #[test]
    fn poller_reports_each_signal_of_an_eventfd_that_is_never_read() {
        let mut poller = Poller::new().unwrap();
        let kick = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        poller.add(&kick, Source::Kick(65535)).unwrap();
        assert_eq!(ready(&mut poller), [Source::Kick(65535)], "pending counts");
        assert_eq!(ready(&mut poller), []);
        for _ in 0..3 {
            rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
            assert_eq!(ready(&mut poller), [Source::Kick(65535)]);
            assert_eq!(ready(&mut poller), []);
        }
        poller.remove(&kick);
        rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(ready(&mut poller), []);
    }

    #[test]
    fn poller_waits_to_the_microsecond() {
        let mut poller = Poller::new().unwrap();
        let start = std::time::Instant::now();
        for _ in 0..20 {
            let until = Instant::from_nanos(100_000);
            poller.wait(Instant::ZERO, Some(until)).unwrap();
        }
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(2), "waited {waited:?}");
    }
}
