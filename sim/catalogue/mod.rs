//! The catalogue of deliberate mistakes: which runs provoke each, which oracle
//! has to notice, and how many seeds that takes.
//!
//! An instrument that finds nothing proves nothing until it was seen to find
//! something. Each entry breaks one rule; the canary breaks none and must fail
//! all the same, so that a report that says "caught" is known to mean it.

mod entries;
mod hunt;
mod table;

use crate::profile::Policy;
use crate::world::Story;
pub use entries::ENTRIES;
pub use hunt::{Found, Row, Switch, hunt, measure};
use midflight::bugs::Bug;
pub use table::{markdown, text};

/// Who makes the mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The core.
    Core(Bug),
    /// Whoever migrates: the image of the inflight region is taken before the
    /// vrings are stopped, and misses the last batch.
    ImageDropsLastBatch,
    /// Nobody. The judges are told to fail at the first completion.
    Canary,
}

/// A mistake, where it shows, and who has to notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is done wrong.
    pub mistake: Mistake,
    /// What seeds are drawn into.
    pub story: Story,
    /// The oracles that may notice, the usual one first.
    pub oracles: &'static [&'static str],
}

impl Entry {
    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.name(),
            Mistake::ImageDropsLastBatch => "ImageDropsLastBatch",
            Mistake::Canary => "Canary",
        }
    }

    /// What it is about.
    pub const fn family(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.family().name(),
            Mistake::ImageDropsLastBatch => "migration",
            Mistake::Canary => "canary",
        }
    }

    /// What is done wrong, in a sentence.
    pub const fn mistake(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.mistake(),
            Mistake::ImageDropsLastBatch => {
                "The region is copied before the vrings are stopped, and misses the last batch."
            }
            Mistake::Canary => "Nothing; the judges are told to fail at the first completion.",
        }
    }

    /// The rule that is broken.
    pub const fn rule(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.rule(),
            Mistake::ImageDropsLastBatch => "vhost-user, Inflight I/O tracking",
            Mistake::Canary => "",
        }
    }

    /// The project that had it; empty if none is known.
    pub const fn reference(&self) -> &'static str {
        match self.mistake {
            Mistake::Core(bug) => bug.reference(),
            Mistake::ImageDropsLastBatch | Mistake::Canary => "",
        }
    }

    /// Whether it is the one that must fail without a mistake.
    pub const fn is_canary(&self) -> bool {
        matches!(self.mistake, Mistake::Canary)
    }
}

/// Runs in which the guest migrates.
const MIGRATES: Story = Story::Migration(None);
/// Runs in which every stop suspends.
const SUSPENDS: Story = Story::Migration(Some(Policy::Suspend));
/// Runs in which every stop drains.
const DRAINS: Story = Story::Migration(Some(Policy::Drain));
