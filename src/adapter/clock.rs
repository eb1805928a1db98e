//! The daemon's clock, as the core wants it: nanoseconds since the start.

use crate::time::Instant;

/// Counts from the moment it was made.
pub struct Clock(std::time::Instant);

impl Clock {
    /// Start at zero now.
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// The time since the start; never goes back.
    pub fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
