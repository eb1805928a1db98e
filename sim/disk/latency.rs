//! How long a disk takes, from whole-number tables.

use crate::choices::Stream;
use crate::settings::Value;

/// How a disk behaves in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nearly at once, nearly in order.
    Quick,
    /// A spread of 100: completions overtake each other freely.
    Spread,
    /// Slow throughout: a kill or stop finds much outstanding.
    Slow,
    /// Always so many microseconds, for a few requests at a time: what a
    /// measurement wants. Never drawn.
    Fixed(u64),
}

impl Pace {
    /// Every pace, for drawing one.
    pub const ALL: [Self; 3] = [Self::Quick, Self::Spread, Self::Slow];

    /// Microseconds, one in sixteen each.
    const fn table(self) -> [u64; 16] {
        match self {
            Self::Fixed(us) => [us; 16],
            Self::Quick => [2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 8, 12],
            Self::Spread => [5, 8, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500],
            Self::Slow => [
                600, 650, 700, 750, 800, 850, 900, 950, 1000, 1050, 1100, 1150, 1200, 1250, 1300,
                1400,
            ],
        }
    }

    /// Whether requests wait for one another.
    pub const fn has_lanes(self) -> bool {
        matches!(self, Self::Fixed(_))
    }

    /// Nanoseconds until a request is done.
    pub fn draw(self, stream: &mut Stream) -> u64 {
        let us = *stream.pick("latency", &self.table());
        us * 1_000 + stream.below("latency.ns", 1_000)
    }
}

impl Value for Pace {
    const EXPECTED: &'static str = "quick, spread, slow or a number of microseconds";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "quick" => Some(Self::Quick),
            "spread" => Some(Self::Spread),
            "slow" => Some(Self::Slow),
            us => us.parse().ok().filter(|us| *us <= 10_000_000).map(Self::Fixed),
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Fixed(us) => us.to_string(),
            other => other.to_string(),
        }
    }
}

impl core::fmt::Display for Pace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Quick => f.write_str("quick"),
            Self::Spread => f.write_str("spread"),
            Self::Slow => f.write_str("slow"),
            Self::Fixed(us) => write!(f, "{us} us each"),
        }
    }
}
