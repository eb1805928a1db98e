//! Names of profiles, and seeds as they are said.

use crate::choices::SCHEMA;
use core::fmt;
use core::str::FromStr;

/// A profile by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProfileName {
    /// Nothing goes wrong.
    Quiet,
    /// Kills, pauses, lost connections; in some runs the guest migrates.
    #[default]
    Mixed,
    /// The guest migrates in every run.
    Migration,
    /// Everything that can go wrong.
    Storm,
    /// Like mixed, with a guest that breaks the rules.
    Hostile,
    /// Like mixed, with a front-end that changes what it can while the vrings run.
    Control,
}

impl ProfileName {
    /// Every profile.
    pub const ALL: [Self; 6] =
        [Self::Quiet, Self::Mixed, Self::Migration, Self::Storm, Self::Hostile, Self::Control];

    /// As it is said.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Mixed => "mixed",
            Self::Migration => "migration",
            Self::Storm => "storm",
            Self::Hostile => "hostile",
            Self::Control => "control",
        }
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ProfileName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|name| name.name() == text)
            .ok_or_else(|| format!("expected one of {}, got {text}", names.join(", ")))
    }
}

/// A seed: it reads `3:storm:0x8f3a21c04be7d915`, which is schema, profile and
/// number. Under one schema it means the same run for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeedId {
    /// What is drawn from the number.
    pub profile: ProfileName,
    /// The number.
    pub number: u64,
}

impl fmt::Display for SeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEMA}:{}:{:#x}", self.profile, self.number)
    }
}

impl FromStr for SeedId {
    type Err = String;

    /// A whole seed, or a number alone for the mixed profile.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        let [schema, profile, number] = parts[..] else {
            return parse_number(text)
                .map(|number| Self { profile: ProfileName::default(), number })
                .map_err(|_| {
                    format!("expected a seed such as {SCHEMA}:storm:0x1f, or a number, got {text}")
                });
        };
        if schema != SCHEMA.to_string() {
            return Err(format!(
                "seed {text} is of schema {schema}, this simulator draws schema {SCHEMA}: only a scenario document survives that"
            ));
        }
        Ok(Self { profile: profile.parse()?, number: parse_number(number)? })
    }
}

/// A number, decimal or with 0x.
///
/// # Errors
/// If it is none, or not below 2^64.
pub fn parse_number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|e| format!("{text}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_read_as_they_are_said() {
        let seed = SeedId { profile: ProfileName::Storm, number: 0x8f3a_21c0_4be7_d915 };
        assert_eq!(seed.to_string(), format!("{SCHEMA}:storm:0x8f3a21c04be7d915"));
        assert_eq!(seed.to_string().parse(), Ok(seed));
        assert_eq!("17".parse(), Ok(SeedId { profile: ProfileName::Mixed, number: 17 }));
        assert_eq!("0x11".parse::<SeedId>().map(|s| s.number), Ok(17));
        for wrong in ["", "x", "1:storm:0x1", "3:gale:1", "3:storm:", "3:storm:1:1", "2:storm:1"] {
            assert!(wrong.parse::<SeedId>().is_err(), "{wrong}");
        }
    }
}
