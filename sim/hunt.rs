//! Deliberate mistakes, and which oracle has to find each.

use crate::memory::Arena;
use crate::oracle::{Judges, Violation};
use crate::profile::ProfileName;
use crate::run::run;
use crate::scenario::Story;
use crate::topology::Policy;
use crate::world::{Options, Slip};
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
    pub profile: ProfileName,
    /// What a stop does, instead of a drawn policy.
    pub policy: Option<Policy>,
    /// The right oracles.
    pub oracles: &'static [&'static str],
    /// Oracles that see something else of it, and are passed over until a right
    /// one speaks.
    pub beside: &'static [&'static str],
}

const fn core(bug: Bug, profile: ProfileName, oracles: &'static [&'static str]) -> Trial {
    Trial { mistake: Mistake::Core(bug), profile, policy: None, oracles, beside: &[] }
}

const MIXED: ProfileName = ProfileName::Mixed;
const MIGRATES: ProfileName = ProfileName::Migration;

/// Every mistake there is.
pub const TRIALS: [Trial; 13] = [
    core(Bug::ClearBeforePublish, MIXED, &["region"]),
    core(Bug::ResubmitInRingOrder, MIXED, &["order"]),
    core(Bug::FreshRegionAtFaceValue, MIXED, &["region"]),
    core(Bug::UsedIdxNotCopied, MIXED, &["region"]),
    core(Bug::BaseTrusted, MIXED, &["rings"]),
    core(Bug::BasePlusInflight, MIGRATES, &["rings"]),
    Trial {
        // Old reads land too, in guest memory.
        beside: &["quiet"],
        policy: Some(Policy::Suspend),
        ..core(Bug::ReplyBeforeCancelled, MIGRATES, &["late-write", "ownership"])
    },
    core(Bug::UsedRingNotLogged, MIGRATES, &["dirty"]),
    core(Bug::StatusNotLogged, MIGRATES, &["dirty"]),
    core(Bug::LogAfterPublish, MIGRATES, &["dirty"]),
    core(Bug::ResubmitAfterFetch, MIXED, &["order"]),
    // The region is not up to date when the stop is answered, which is seen
    // before it is stored to.
    Trial { beside: &["region"], ..core(Bug::RegionAfterReply, MIGRATES, &["quiet"]) },
    Trial {
        mistake: Mistake::ImageDropsLastBatch,
        profile: MIGRATES,
        policy: None,
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
            Mistake::Core(bug) => (Some(bug), None),
            Mistake::ImageDropsLastBatch => (None, Some(Slip::EarlyImage)),
        };
        let options = Options { judges, slip, ..Options::default() };
        let mut story = Story::of(self.profile);
        if let Some(policy) = self.policy {
            story = story.with("migration.policy", policy.name());
        }
        set(bug);
        let found = (0..limit).find_map(|seed| {
            each(seed);
            let scenario = story.scenario(seed).expect("the policy is a setting");
            let violation = run(&mut arena, &scenario, &options).verdict.err()?;
            (!self.beside.contains(&violation.oracle)).then_some((seed, violation))
        });
        set(None);
        found
    }
}
