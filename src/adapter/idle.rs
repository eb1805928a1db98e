//! Whether to stay awake for a moment when there is nothing to do.
//!
//! To sleep and be woken costs both sides: us the way through the scheduler,
//! the guest the interrupt to a processor that sleeps, on a virtual machine
//! ten times as much as a small read. A guest that waits for every request
//! sends the next one before we would be fast asleep. So the loop looks a few
//! times more before it sleeps, but only where the last wait says that this is
//! enough, and only while requests come few at a time: those that come in
//! large batches share the cost, and processor time is better saved.

use crate::time::{Duration, Instant};

/// How long to stay awake at most. The iothreads of QEMU do so by default, too.
const AWAKE: Duration = Duration::from_micros(32);
/// Requests between two waits that are few.
const FEW: u32 = 4;

/// What is known about the last wait and the work before it.
#[derive(Debug, Default)]
pub struct Idle {
    /// The last wait was short.
    short: bool,
    /// Requests since then.
    requests: u32,
}

impl Idle {
    /// One more request.
    pub fn worked(&mut self) {
        self.requests = self.requests.saturating_add(1);
    }

    /// Whether to go on looking, in a wait that began at `start`.
    pub fn stays_awake(&self, start: Instant, now: Instant) -> bool {
        self.short && self.requests <= FEW && now.saturating_since(start) < AWAKE
    }

    /// A wait is over.
    pub fn waited(&mut self, start: Instant, now: Instant) {
        self.short = now.saturating_since(start) < AWAKE;
        self.requests = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_stays_awake_only_after_a_short_wait_and_little_work() {
        let at = |us: u64| Instant::from_nanos(us * 1000);
        let mut idle = Idle::default();
        idle.worked();
        assert!(!idle.stays_awake(at(0), at(0)), "nothing is known yet");
        idle.waited(at(0), at(20));
        (0..FEW).for_each(|_| idle.worked());
        assert!(idle.stays_awake(at(20), at(51)));
        assert!(!idle.stays_awake(at(20), at(52)), "long enough");
        idle.worked();
        assert!(!idle.stays_awake(at(20), at(20)), "a large batch");
        idle.waited(at(20), at(40));
        assert!(idle.stays_awake(at(40), at(40)));
        // It was not enough, so the next wait begins asleep.
        idle.waited(at(40), at(100));
        assert!(!idle.stays_awake(at(100), at(100)));
    }
}
