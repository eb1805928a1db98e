//! SIGINT and SIGTERM: the first asks to stop, the second does it.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Which signal has come.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Listen from now on.
    pub fn listen() -> Result<Self, String> {
        let came = Self::default();
        let once = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds what the first has left.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&once))
                .and_then(|_| flag::register(signal, Arc::clone(&once)))
                .and_then(|_| flag::register_usize(signal, Arc::clone(&came.0), signal as usize))
                .map_err(|e| format!("cannot listen to signals: {e}"))?;
        }
        Ok(came)
    }

    /// The number of the signal that has come.
    pub fn came(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::Relaxed)).ok().filter(|signal| *signal > 0)
    }
}
