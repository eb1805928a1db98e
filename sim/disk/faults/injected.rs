//! What was really injected: the oracles' excuse, and what is counted.

use super::Family;
use crate::disk::{Job, SECTOR};
use midflight::blk::Completion;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// Content of one sector.
pub type Content = Box<[u8; SECTOR as usize]>;

/// One try of a request at the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// The guest's request.
    pub request: u64,
    /// Vring it came from.
    pub vring: u16,
    /// Head of its chain.
    pub head: u16,
    /// Life of the back-end that asked.
    pub life: u32,
    /// Connection it asked over.
    pub conn: u32,
}

impl From<&Job> for Try {
    fn from(job: &Job) -> Self {
        let Job { request, vring, head, life, conn, .. } = *job;
        Self { request, vring, head, life, conn }
    }
}

/// A fault has taken effect, or has come to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injected {
    /// This try ends with an error.
    Fails {
        /// Which.
        of: Try,
        /// The sector that is to blame, if one is.
        sector: Option<u64>,
        /// The fault; `None`: an error that a profile drew.
        by: Option<Family>,
    },
    /// From now on a sector shows these bytes.
    Shows {
        /// Which.
        sector: u64,
        /// What reads find.
        content: Content,
        /// The fault.
        by: Family,
    },
    /// From now on a sector shows what it holds.
    Heals {
        /// Which.
        sector: u64,
    },
    /// What has been written to a sector so far is no longer promised to become
    /// durable.
    Forgets {
        /// Which.
        sector: u64,
    },
    /// This flush is acknowledged and has done nothing.
    Lies {
        /// Which.
        of: Try,
    },
    /// A completion comes a second time.
    Again {
        /// The try that is over.
        of: Try,
        /// What is reported.
        completion: Completion,
        /// Nanoseconds from the first report.
        after: u64,
    },
}

impl Injected {
    /// The fault, where it begins.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::Fails { by, .. } => *by,
            Self::Shows { by, .. } => Some(*by),
            Self::Forgets { .. } => Some(Family::FailedFlush),
            Self::Lies { .. } => Some(Family::LyingFlush),
            Self::Again { .. } => Some(Family::Duplicate),
            Self::Heals { .. } => None,
        }
    }

    /// What it is about, for a trace: the sector, or else the request.
    pub fn about(&self) -> u64 {
        match self {
            Self::Fails { sector: Some(sector), .. }
            | Self::Shows { sector, .. }
            | Self::Forgets { sector }
            | Self::Heals { sector } => *sector,
            Self::Fails { of, .. } | Self::Lies { of } | Self::Again { of, .. } => of.request,
        }
    }
}

/// How often each family has taken effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Family::ALL.len()]);

impl Counts {
    /// How often one has.
    pub fn of(&self, family: Family) -> u64 {
        self.0[family as usize]
    }

    /// Once more.
    pub fn note(&mut self, family: Family) {
        self.0[family as usize] += 1;
    }

    /// Add another run's.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, n)| *sum += n);
    }

    /// All of them together.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// By name, those that are not 0.
impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let some = Family::ALL.into_iter().filter(|family| self.of(*family) > 0);
        serializer.collect_map(some.map(|family| (family.name(), self.of(family))))
    }
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut counts = Self::default();
        for (name, count) in BTreeMap::<String, u64>::deserialize(deserializer)? {
            let unknown = || D::Error::custom(format!("expected a family of faults, got {name}"));
            counts.0[Family::by_name(&name).ok_or_else(unknown)? as usize] = count;
        }
        Ok(counts)
    }
}

impl core::fmt::Display for Counts {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let some = Family::ALL.into_iter().filter(|family| self.of(*family) > 0);
        let words: Vec<String> = some.map(|of| format!("{} {}", self.of(of), of.name())).collect();
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_fault_counts_are_read_as_they_are_printed() {
        let mut counts = Counts::default();
        counts.note(Family::LostWrite);
        counts.note(Family::LostWrite);
        counts.note(Family::Stall);
        let text = serde_json::to_string(&counts).unwrap();
        assert_eq!(text, r#"{"lost-write":2,"stall":1}"#);
        assert_eq!(serde_json::from_str::<Counts>(&text).unwrap(), counts);
        assert!(serde_json::from_str::<Counts>(r#"{"moonlight":1}"#).is_err());
    }
}
