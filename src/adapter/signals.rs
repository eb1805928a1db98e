//! SIGTERM and SIGINT: the first asks for a clean stop, the second ends the
//! process at once.

use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Exit code after a second signal.
const AT_ONCE: i32 = 1;

/// The reading end of the pipe that the signal handlers write to.
pub struct Signals(OwnedFd);

impl Signals {
    /// Take over both signals for the rest of the process's life.
    ///
    /// SIGPIPE needs nothing: the Rust runtime ignores it from the start.
    pub fn install() -> std::io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Actions run in the order of their registration: the first signal
            // finds the flag clear and sets it, the second finds it set.
            flag::register_conditional_shutdown(signal, AT_ONCE, Arc::clone(&stopping))?;
            flag::register(signal, Arc::clone(&stopping))?;
            pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self(read))
    }

    /// Whether a stop was asked for since the last call.
    pub fn take(&self) -> bool {
        let mut buf = [0; 16];
        let mut any = false;
        while matches!(rustix::io::read(&self.0, &mut buf), Ok(n) if n > 0) {
            any = true;
        }
        any
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
