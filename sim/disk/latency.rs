//! How long a disk takes, from whole-number tables.

use crate::choices::Stream;

/// How a disk behaves in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nearly at once, nearly in order.
    Quick,
    /// A spread of 100: completions overtake each other freely.
    Spread,
    /// Slow throughout: a kill or stop finds much outstanding.
    Slow,
}

impl Pace {
    /// Every pace, for drawing one.
    pub const ALL: [Self; 3] = [Self::Quick, Self::Spread, Self::Slow];

    /// Microseconds, one in sixteen each.
    const fn table(self) -> [u64; 16] {
        match self {
            Self::Quick => [2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 8, 12],
            Self::Spread => [5, 8, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500],
            Self::Slow => [
                600, 650, 700, 750, 800, 850, 900, 950, 1000, 1050, 1100, 1150, 1200, 1250, 1300,
                1400,
            ],
        }
    }

    /// Nanoseconds until a request is done.
    pub fn draw(self, stream: &mut Stream) -> u64 {
        let us = *stream.pick("disk.latency", &self.table());
        us * 1_000 + stream.below("disk.latency.ns", 1_000)
    }
}

impl core::fmt::Display for Pace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Quick => "quick",
            Self::Spread => "spread",
            Self::Slow => "slow",
        })
    }
}
