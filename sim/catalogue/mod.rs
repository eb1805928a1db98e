//! The catalogue of deliberate mistakes: which runs provoke each, which oracle
//! has to notice, and how many seeds that takes.
//!
//! An instrument that finds nothing proves nothing until it was seen to find
//! something. Each entry breaks one rule; the canary breaks none and must fail
//! all the same, so that a report that says "caught" is known to mean it.

mod entries;
mod hunt;
mod table;

use crate::profile::ProfileName;
use crate::world::Slip;
pub use entries::ENTRIES;
pub use hunt::{Effort, Found, Row, Switch, hunt, measure};
use midflight::bugs::Bug;
pub use table::{markdown, text, verdict};

/// Who makes the mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The core.
    Core(Bug),
    /// Somebody beside it.
    World(Slip),
}

/// A mistake, where it shows, and who has to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is done wrong.
    pub mistake: Mistake,
    /// What seeds are drawn into.
    pub profile: ProfileName,
    /// Settings that are given instead of drawn, by name.
    pub given: &'static [(&'static str, &'static str)],
    /// The oracles that may notice, the usual one first.
    pub oracles: &'static [&'static str],
}

impl Entry {
    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.name(),
            Mistake::World(Slip::EarlyImage) => "ImageDropsLastBatch",
            Mistake::World(Slip::Canary) => "Canary",
            Mistake::World(Slip::Moody) => "Moody",
        }
    }

    /// What it is about.
    pub const fn family(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.family().name(),
            Mistake::World(Slip::EarlyImage) => "migration",
            Mistake::World(_) => "canary",
        }
    }

    /// What is done wrong, in a sentence.
    pub const fn mistake(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.mistake(),
            Mistake::World(Slip::EarlyImage) => {
                "The region is copied before the vrings are stopped, and misses the last batch."
            }
            Mistake::World(Slip::Canary) => "Nothing, but the first completion has to fail.",
            Mistake::World(Slip::Moody) => "Every run decides a little differently.",
        }
    }

    /// The rule that is broken.
    pub const fn rule(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.rule(),
            Mistake::World(Slip::EarlyImage) => "vhost-user, Inflight I/O tracking",
            Mistake::World(_) => "midflight, DESIGN.md",
        }
    }

    /// The project that had it; empty if none is known.
    pub const fn reference(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.reference(),
            Mistake::World(_) => "",
        }
    }

    /// Whether it is the one that must fail without a mistake.
    pub const fn is_canary(&self) -> bool {
        matches!(self.mistake, Mistake::World(Slip::Canary))
    }
}
