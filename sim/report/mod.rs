//! A report over many seeds, or over a share of them: what was asked, how far it
//! came, and what it came to. Reports of all shards join to that of the whole.

mod merge;
mod ranges;
mod totals;

use crate::choices::SCHEMA;
pub use merge::{MergeError, merge};
pub use ranges::Ranges;
use serde::{Deserialize, Serialize};
pub use totals::{Failure, FailureKind, Totals, seed_hash};

/// Of what is written here, not of what seeds mean.
pub const FORMAT: u64 = 1;

/// What was asked: two reports join only if this is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What a seed means.
    pub schema: u64,
    /// What numbers are drawn into.
    pub profile: String,
    /// What every stop does with requests in flight, if it was given.
    pub policy: Option<String>,
    /// Settings that were given.
    pub given: Vec<(String, String)>,
    /// Every seed was run twice.
    pub twice: bool,
    /// First number.
    pub first: u64,
    /// The number after the last.
    pub end: u64,
    /// Shares in which the numbers are dealt out.
    pub shards: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u64,
    /// What was asked.
    pub request: Request,
    /// Which share this is, from 0: it has the numbers `first + shard`,
    /// `first + shard + shards` and so on.
    pub shard: u64,
    /// Positions in this share that are done.
    pub done: Ranges,
    /// Microseconds of CPU time, all threads together: the only figure here that
    /// is not the same every time.
    pub cpu_us: u64,
    /// What the seeds that are done came to.
    pub totals: Totals,
}

/// A text is not a report that this build can go on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Not JSON, or not of this shape.
    #[error("expected a report, got something else: {0}")]
    Shape(String),
    /// Written by another version.
    #[error("expected a report of format {FORMAT}, got {0}")]
    Format(u64),
    /// Its seeds mean something else here.
    #[error("expected seeds of schema {SCHEMA}, got {0}")]
    Schema(u64),
    /// Its numbers contradict each other.
    #[error("expected a report that fits together, got one with {0}")]
    Contradiction(&'static str),
}

impl Report {
    /// Nothing is done yet.
    pub fn new(request: Request, shard: u64) -> Self {
        let (done, totals) = (Ranges::default(), Totals::default());
        Self { format: FORMAT, request, shard, done, cpu_us: 0, totals }
    }

    /// Seeds of this share.
    pub fn count(&self) -> u64 {
        let Request { first, end, shards, .. } = self.request;
        (end - first).saturating_sub(self.shard).div_ceil(shards)
    }

    /// The number at a position of this share.
    pub fn number(&self, position: u64) -> u64 {
        self.request.first + self.shard + position * self.request.shards
    }

    /// Every seed of the share is done.
    pub fn is_complete(&self) -> bool {
        self.done.count() == self.count()
    }

    /// Add what the positions from `first` to before `end` came to.
    pub fn add(&mut self, first: u64, end: u64, totals: &Totals) {
        self.done.add(first, end);
        self.totals.add(totals);
    }

    /// As text, to be kept.
    pub fn print(&self) -> String {
        // Numbers, names and strings: nothing in it can fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Read it again.
    ///
    /// # Errors
    /// If this build cannot go on with it, or it contradicts itself.
    pub fn parse(text: &str) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let shape = |e: serde_json::Error| ReportError::Shape(e.to_string());
        // A later format may have other fields: say that, not which one.
        let Format { format } = serde_json::from_str(text).map_err(shape)?;
        if format != FORMAT {
            return Err(ReportError::Format(format));
        }
        let report: Self = serde_json::from_str(text).map_err(shape)?;
        report.check()?;
        Ok(report)
    }

    fn check(&self) -> Result<(), ReportError> {
        let Request { schema, first, end, shards, .. } = self.request;
        if schema != SCHEMA {
            return Err(ReportError::Schema(schema));
        }
        let wrong = ReportError::Contradiction;
        if first >= end {
            return Err(wrong("no seeds"));
        }
        if self.shard >= shards {
            return Err(wrong("a shard that is not one of its shards"));
        }
        if !self.done.are_sound(self.count()) {
            return Err(wrong("positions done that it has not"));
        }
        if self.done.count() != self.totals.seeds {
            return Err(wrong("another number of runs than of positions done"));
        }
        Ok(())
    }
}
