//! What many runs came to, so that parts of it add up to the whole in any order.

use crate::hash::Rolling;
use crate::oracle::{Kind, Violation};
use crate::world::{Outcome, Stats};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Numbers kept of one kind of failure; of the others, only how many there are.
const NUMBERS: usize = 16;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Runs.
    pub seeds: u64,
    /// Virtual nanoseconds of all runs.
    pub virtual_ns: u64,
    /// The sum over all runs of a hash of number and trace hash.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub hash: u64,
    /// Counters together; of those that are a most, the most.
    pub counters: Stats,
    /// Kinds of failure, by oracle and cause.
    pub failures: Vec<Failure>,
}

/// Runs that failed in the same way: the same oracle spoke, for the same cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Who noticed.
    pub oracle: String,
    /// Its message without the numbers.
    pub cause: String,
    /// What kind of promise was broken.
    pub kind: FailureKind,
    /// Runs.
    pub count: u64,
    /// The lowest numbers of those, rising.
    pub numbers: Vec<u64>,
    /// The message of the lowest.
    pub message: String,
}

/// What a failure means for the exit code; the graver one is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Two runs of one seed differ.
    Nondeterminism,
    /// Something happened that must not.
    Safety,
    /// Something did not happen that must.
    Liveness,
}

impl From<Kind> for FailureKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Safety => Self::Safety,
            Kind::Liveness => Self::Liveness,
        }
    }
}

/// What a run adds to the hash of many.
pub fn seed_hash(number: u64, hash: u64) -> u64 {
    let mut mixed = Rolling::new();
    mixed.u64(number);
    mixed.u64(hash);
    mixed.finish()
}

impl Totals {
    /// Add the run of a number.
    pub fn run(&mut self, number: u64, outcome: &Outcome) {
        self.seeds += 1;
        self.virtual_ns += outcome.at;
        self.hash = self.hash.wrapping_add(seed_hash(number, outcome.hash));
        self.counters.add(&outcome.stats);
        if let Err(violation) = &outcome.verdict {
            self.failure(Failure::of(number, violation));
        }
    }

    /// Add a number whose two runs differ, as `message` says.
    pub fn difference(&mut self, number: u64, message: String) {
        self.seeds += 1;
        let (oracle, cause) = ("twice".into(), "two runs of one seed differ".into());
        let (kind, numbers) = (FailureKind::Nondeterminism, vec![number]);
        self.failure(Failure { oracle, cause, kind, count: 1, numbers, message });
    }

    /// Add what other runs came to.
    pub fn add(&mut self, other: &Self) {
        let Self { seeds, virtual_ns, hash, counters, failures } = other;
        self.seeds += seeds;
        self.virtual_ns += virtual_ns;
        self.hash = self.hash.wrapping_add(*hash);
        self.counters.add(counters);
        failures.iter().for_each(|failure| self.failure(failure.clone()));
    }

    /// Number of runs that failed.
    pub fn failed(&self) -> u64 {
        self.failures.iter().map(|failure| failure.count).sum()
    }

    fn failure(&mut self, new: Failure) {
        let key = |f: &Failure| (f.kind, f.oracle.clone(), f.cause.clone());
        match self.failures.binary_search_by_key(&key(&new), key) {
            Ok(at) => self.failures[at].join(new),
            Err(at) => self.failures.insert(at, new),
        }
    }
}

impl Failure {
    fn of(number: u64, violation: &Violation) -> Self {
        Self {
            oracle: violation.oracle.into(),
            cause: violation.cause(),
            kind: violation.kind().into(),
            count: 1,
            numbers: vec![number],
            message: violation.message.clone(),
        }
    }

    fn join(&mut self, other: Self) {
        self.count += other.count;
        if other.numbers.first() < self.numbers.first() {
            self.message = other.message;
        }
        self.numbers.extend(other.numbers);
        self.numbers.sort_unstable();
        self.numbers.truncate(NUMBERS);
    }
}

/// As text, because many readers of JSON round such large numbers.
fn to_hex<S: Serializer>(hash: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{hash:016x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(numbers: &[u64]) -> Totals {
        let mut totals = Totals::default();
        for number in numbers {
            totals.seeds += 1;
            totals.hash = totals.hash.wrapping_add(seed_hash(*number, 7 * number));
            let violation = Violation::new("ledger", format!("request {number} was used twice"));
            totals.failure(Failure::of(*number, &violation));
        }
        totals
    }

    #[test]
    fn report_totals_add_up_in_any_order() {
        let whole = failing(&(0..40).collect::<Vec<_>>());
        let mut parts = failing(&(0..40).filter(|n| n % 3 == 2).collect::<Vec<_>>());
        parts.add(&failing(&(0..40).rev().filter(|n| n % 3 == 0).collect::<Vec<_>>()));
        parts.add(&failing(&(0..40).filter(|n| n % 3 == 1).collect::<Vec<_>>()));
        assert_eq!(parts, whole);
        assert_eq!(whole.failures.len(), 1, "the same in another run is counted, not kept");
        assert_eq!((whole.failed(), whole.failures[0].numbers.len()), (40, NUMBERS));
        assert_eq!(whole.failures[0].message, "request 0 was used twice");
    }

    #[test]
    fn report_totals_keep_what_differs_apart() {
        let mut totals = failing(&[3]);
        totals.difference(2, "decision 5 of disk".into());
        let violation = Violation::new("liveness", "request 3 was used twice");
        totals.failure(Failure::of(3, &violation));
        let kinds: Vec<_> = totals.failures.iter().map(|f| f.kind).collect();
        let (first, second, third) =
            (FailureKind::Nondeterminism, FailureKind::Safety, FailureKind::Liveness);
        assert_eq!(kinds, [first, second, third], "the gravest first");
    }

    #[test]
    fn report_hash_notices_hashes_that_change_places() {
        let sum = |pairs: [(u64, u64); 2]| {
            pairs.iter().fold(0_u64, |sum, (n, h)| sum.wrapping_add(seed_hash(*n, *h)))
        };
        assert_eq!(sum([(1, 10), (2, 20)]), sum([(2, 20), (1, 10)]));
        assert_ne!(sum([(1, 10), (2, 20)]), sum([(1, 20), (2, 10)]));
    }
}
