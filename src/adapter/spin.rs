//! Whether to look again for a while before going to sleep.
//!
//! Waking a sleeping thread on another CPU costs a guest that has one request
//! outstanding several times what the request itself costs. Looking again and
//! again costs CPU time. So the loop spins only if the last waits were short,
//! and never for long: an idle daemon sleeps.

use crate::time::Duration;

/// The longest spin. A wait that is longer is not worth spinning for.
const MAX: Duration = Duration::from_micros(32);
/// The first spin after a short wait.
const FIRST: Duration = Duration::from_micros(4);

/// Learns from each wait how long to spin before the next.
#[derive(Debug, Default)]
pub struct Spin(Duration);

impl Spin {
    /// How long to spin before sleeping.
    pub fn limit(&self) -> Duration {
        self.0
    }

    /// The last wait, spin and sleep together, took this long.
    pub fn learn(&mut self, waited: Duration) {
        if waited <= self.0 {
            return;
        }
        self.0 = if waited > MAX { Duration::ZERO } else { (self.0 * 2).clamp(FIRST, MAX) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spin_grows_with_short_waits_and_ends_with_a_long_one() {
        let mut spin = Spin::default();
        assert_eq!(spin.limit(), Duration::ZERO);
        let short = Duration::from_micros(20);
        let limits: Vec<u128> = (0..5)
            .map(|_| {
                spin.learn(short);
                spin.limit().as_micros()
            })
            .collect();
        assert_eq!(limits, [4, 8, 16, 32, 32]);
        spin.learn(Duration::from_micros(33));
        assert_eq!(spin.limit(), Duration::ZERO);
    }
}
