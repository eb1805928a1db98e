//! A run, written down: the world, what happens in it, and the choices that
//! matter. A run is a function of this and of nothing else.

mod action;
mod check;
mod control;
mod document;

use crate::choices::Choices;
use crate::oracle::Violation;
use crate::profile::{Profile, ProfileName, SeedId};
use crate::topology::Topology;
pub use action::{Action, Fate, KillAt, Migrate, Request, Successor, Trouble};
pub use check::MAX_RING;
pub use control::Control;
pub use document::DocumentError;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Where it came from; of no consequence for the run.
    pub origin: Option<SeedId>,
    /// A mistake that is made on purpose, by name.
    pub mistake: Option<String>,
    /// What has to come of it: the oracle that speaks, and the cause in its
    /// words; `None`: every promise is kept.
    pub expect: Option<Expected>,
    /// The world.
    pub topology: Topology,
    /// What happens in it.
    pub actions: Vec<Action>,
    /// Everything else that is decided.
    pub choices: Choices,
}

/// How a run ends that breaks a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The oracle that speaks.
    pub oracle: String,
    /// The cause, as [`Violation::cause`](crate::oracle::Violation::cause) has it.
    pub cause: String,
}

/// The run for newcomers: its one kill finds requests in flight.
pub const TOUR: &str = include_str!("tour.scn");

/// A careless suspend: an old write lands on new data after a migration.
pub const LATE_WRITE: &str = include_str!("late-write.scn");

impl Expected {
    /// It is what came.
    pub fn is_met_by(&self, violation: &Violation) -> bool {
        violation.oracle == self.oracle && violation.cause() == self.cause
    }
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of_seed(seed: SeedId) -> Self {
        let profile = Profile::draw(seed.profile, seed.number);
        Self { origin: Some(seed), ..Self::of_profile(&profile, seed.number) }
    }

    /// The scenario of a profile of one's own.
    pub fn of_profile(profile: &Profile, number: u64) -> Self {
        Self {
            origin: None,
            mistake: None,
            expect: None,
            actions: profile.actions(number),
            topology: profile.topology.clone(),
            choices: Choices::drawn(number),
        }
    }
}

/// What numbers are drawn into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Story {
    /// The profile.
    pub profile: ProfileName,
    /// Settings that are given instead of drawn, by name.
    pub given: Vec<(String, String)>,
}

impl Story {
    /// A profile as it is drawn.
    pub fn of(profile: ProfileName) -> Self {
        Self { profile, given: Vec::new() }
    }

    /// The same with a setting given.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.given.push((key.into(), value.into()));
        self
    }

    /// The seed of a number.
    pub fn seed(&self, number: u64) -> SeedId {
        SeedId { profile: self.profile, number }
    }

    /// The profile of a number.
    ///
    /// # Errors
    /// If a setting that is given does not exist or fit.
    pub fn profile(&self, number: u64) -> Result<Profile, crate::settings::SettingError> {
        let mut profile = Profile::draw(self.profile, number);
        self.given.iter().try_for_each(|(key, value)| profile.change(key, value))?;
        if !self.given.is_empty() {
            profile.topology.fit();
        }
        Ok(profile)
    }

    /// The scenario of a number.
    ///
    /// # Errors
    /// If a setting that is given does not exist or fit.
    pub fn scenario(&self, number: u64) -> Result<Scenario, crate::settings::SettingError> {
        let profile = self.profile(number)?;
        // A run with a setting of one's own is not the seed's any more.
        let origin = self.given.is_empty().then(|| self.seed(number));
        Ok(Scenario { origin, ..Scenario::of_profile(&profile, number) })
    }
}
