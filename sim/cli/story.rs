//! What numbers are drawn into, as it is typed.

use super::PolicyName;
use clap::ValueEnum;
use midflight_sim::oracle::Judges;
use midflight_sim::profile::{ProfileName, SeedId, parse_number};
use midflight_sim::report::Request;
use midflight_sim::scenario::Story;
use midflight_sim::topology::Policy;
use midflight_sim::world::Options;

#[derive(Clone, Debug, clap::Args)]
pub struct StoryArgs {
    /// What numbers are drawn into: quiet, mixed, migration, storm, hostile or control
    #[arg(long)]
    profile: Option<ProfileName>,
    /// A setting to give instead of drawing it, as in kills=3 or
    /// migration.grace=20; `show` prints those of the world
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    given: Vec<(String, String)>,
    /// Migrate, and let every stop do this with requests in flight
    ///
    /// `unsafe` says that cancelled requests are over when they are not.
    #[arg(long, value_enum)]
    policy: Option<PolicyName>,
}

pub fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("expected KEY=VALUE, got {text}"))?;
    Ok((key.into(), value.into()))
}

impl StoryArgs {
    /// As they were given for a report.
    pub fn of(request: &Request) -> Result<Self, String> {
        let policy = request.policy.as_deref();
        Ok(Self {
            profile: Some(request.profile.parse()?),
            given: request.given.clone(),
            policy: policy.map(|name| PolicyName::from_str(name, false)).transpose()?,
        })
    }

    /// Something of it was typed.
    pub fn is_typed(&self) -> bool {
        self.profile.is_some() || self.policy.is_some() || !self.given.is_empty()
    }

    pub fn given(&self) -> &[(String, String)] {
        &self.given
    }

    pub fn policy_name(&self) -> Option<String> {
        self.policy().map(|policy| policy.name().into())
    }

    fn policy(&self) -> Option<Policy> {
        self.policy.map(Policy::from)
    }

    pub fn story(&self) -> Story {
        let policy = self.policy();
        let default = if policy.is_some() { ProfileName::Migration } else { ProfileName::Mixed };
        let mut story = Story::of(self.profile.unwrap_or(default));
        if let Some(policy) = policy {
            story = story.with("migration.policy", policy.name());
        }
        story.given.extend(self.given.iter().cloned());
        story
    }

    /// A story and a number from a seed as it is typed: a whole one brings its
    /// profile.
    pub fn seed(&self, text: &str) -> Result<(Story, u64), String> {
        let story = self.story();
        if !text.contains(':') {
            return Ok((story, parse_number(text)?));
        }
        let seed: SeedId = text.parse()?;
        match self.profile {
            Some(profile) if profile != seed.profile => {
                Err(format!("expected a seed of profile {profile}, got {seed}"))
            }
            _ => Ok((Story { profile: seed.profile, ..story }, seed.number)),
        }
    }

    pub fn options(&self) -> Options {
        // With the mistake made on purpose, see what a guest would see of it.
        let late = self.policy() != Some(Policy::Unsafe);
        Options { judges: Judges { late, ..Judges::default() }, ..Options::default() }
    }

    /// As it has to be typed again, with a blank before it.
    pub fn again(&self) -> String {
        let mut text = String::new();
        if let Some(profile) = self.profile {
            text += &format!(" --profile {profile}");
        }
        if let Some(policy) = self.policy() {
            text += &format!(" --policy {}", policy.name());
        }
        for (key, value) in &self.given {
            text += &format!(" --set {key}={value}");
        }
        text
    }
}
