//! SIGTERM and SIGINT: the first asks for a clean stop, the second ends the
//! process at once. SIGHUP: look how large the image is.

use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code after a second signal.
const AT_ONCE: i32 = 1;

/// What the signal handlers have to say.
pub struct Signals {
    /// The reading end of the pipe that they write to.
    pipe: OwnedFd,
    stop: Arc<AtomicBool>,
    measure: Arc<AtomicBool>,
}

/// What the operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// A clean stop; from the first time on.
    pub stop: bool,
    /// To look how large the image is; since the last call.
    pub measure: bool,
}

impl Signals {
    /// Take over these signals for the rest of the process's life.
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
        let measure = Arc::new(AtomicBool::new(false));
        flag::register(SIGHUP, Arc::clone(&measure))?;
        pipe::register(SIGHUP, write)?;
        Ok(Self { pipe: read, stop: stopping, measure })
    }

    /// What was asked for.
    pub fn take(&self) -> Asked {
        let mut buf = [0; 16];
        // Emptied before the flags are read: a signal after that is told again.
        while matches!(rustix::io::read(&self.pipe, &mut buf), Ok(n) if n > 0) {}
        Asked {
            stop: self.stop.load(Ordering::SeqCst),
            measure: self.measure.swap(false, Ordering::SeqCst),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
