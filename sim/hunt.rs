//! Deliberate mistakes, and which oracle has to find each.

use crate::memory::Arena;
use crate::oracle::{Judges, Violation};
use crate::profile::Policy;
use crate::run::run;
use crate::world::{Options, Story};
use midflight::bugs::Bug;

/// Who makes the mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The core.
    Core(Bug),
    /// Whoever migrates: the image of the inflight region is taken before the
    /// vrings are stopped, and misses the last batch.
    ImageDropsLastBatch,
}

/// A mistake, where it shows, and who has to notice first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What is done wrong.
    pub mistake: Mistake,
    /// What seeds are drawn into.
    pub story: Story,
    /// The right oracles.
    pub oracles: &'static [&'static str],
    /// Oracles that see something else of it, and are passed over until a right
    /// one speaks.
    pub beside: &'static [&'static str],
}

const fn core(bug: Bug, story: Story, oracles: &'static [&'static str]) -> Trial {
    Trial { mistake: Mistake::Core(bug), story, oracles, beside: &[] }
}

const MIGRATES: Story = Story::Migration(None);

/// Every mistake there is.
pub const TRIALS: [Trial; 13] = [
    core(Bug::ClearBeforePublish, Story::Mixed, &["region"]),
    core(Bug::ResubmitInRingOrder, Story::Mixed, &["order"]),
    core(Bug::FreshRegionAtFaceValue, Story::Mixed, &["region"]),
    core(Bug::UsedIdxNotCopied, Story::Mixed, &["region"]),
    core(Bug::BaseTrusted, Story::Mixed, &["rings"]),
    core(Bug::BasePlusInflight, MIGRATES, &["rings"]),
    Trial {
        // Old reads land too, in guest memory.
        beside: &["quiet"],
        ..core(
            Bug::ReplyBeforeCancelled,
            Story::Migration(Some(Policy::Suspend)),
            &["late-write", "ownership"],
        )
    },
    core(Bug::UsedRingNotLogged, MIGRATES, &["dirty"]),
    core(Bug::StatusNotLogged, MIGRATES, &["dirty"]),
    core(Bug::LogAfterPublish, MIGRATES, &["dirty"]),
    core(Bug::ResubmitAfterFetch, Story::Mixed, &["order"]),
    // The region is not up to date when the stop is answered, which is seen
    // before it is stored to.
    Trial { beside: &["region"], ..core(Bug::RegionAfterReply, MIGRATES, &["quiet"]) },
    Trial {
        mistake: Mistake::ImageDropsLastBatch,
        story: MIGRATES,
        oracles: &["region"],
        beside: &[],
    },
];

impl Trial {
    /// Its name.
    pub fn name(&self) -> String {
        match self.mistake {
            Mistake::Core(bug) => format!("{bug:?}"),
            Mistake::ImageDropsLastBatch => "ImageDropsLastBatch".into(),
        }
    }

    /// Try seeds until it is found; which seed, and what was seen. `set` is
    /// `midflight::bugs::set`, which exists only where the core has its mistakes
    /// built in; `each` is told the seed that is tried.
    pub fn hunt(
        &self,
        set: impl Fn(Option<Bug>),
        judges: Judges,
        limit: u64,
        mut each: impl FnMut(u64),
    ) -> Option<(u64, Violation)> {
        let mut arena = Arena::new();
        let (bug, slip) = match self.mistake {
            Mistake::Core(bug) => (Some(bug), false),
            Mistake::ImageDropsLastBatch => (None, true),
        };
        let options = Options { judges, story: self.story, slip, ..Options::default() };
        set(bug);
        let found = (0..limit).find_map(|seed| {
            each(seed);
            let violation = run(&mut arena, seed, &options).verdict.err()?;
            (!self.beside.contains(&violation.oracle)).then_some((seed, violation))
        });
        set(None);
        found
    }
}
