//! The same scenario twice must decide and do the same.

use crate::choices::{Component, Made};
use crate::memory::Arena;
use crate::run::run;
use crate::scenario::Scenario;
use crate::world::{Options, Outcome};

/// Where two runs of one scenario part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// At a decision.
    #[error(
        "decision {position} of {who} is where the two part, at {at} ns: the first run decided {first}, the second {second}"
    )]
    Choice {
        /// Who decided.
        who: &'static str,
        /// How manyth decision of theirs, from 0.
        position: u64,
        /// Virtual time of it.
        at: u64,
        /// What the first run decided.
        first: String,
        /// What the second did.
        second: String,
    },
    /// Every decision was the same, and yet what happened was not.
    #[error("every decision was the same, but the trace hashes are {first:016x} and {second:016x}")]
    Events {
        /// Hash of the first run.
        first: u64,
        /// Hash of the second.
        second: u64,
    },
}

/// Run it twice; the first run, or the first difference.
///
/// # Errors
/// If they differ.
pub fn twice(
    arena: &mut Arena,
    scenario: &Scenario,
    options: &Options,
) -> Result<Outcome, Difference> {
    let options = Options { keep_choices: true, ..options.clone() };
    let first = run(arena, scenario, &options);
    let second = run(arena, scenario, &options);
    let differs = first.made.iter().zip(&second.made).filter_map(part);
    if let Some(difference) = differs.min_by_key(|(at, _)| *at).map(|(_, difference)| difference) {
        return Err(difference);
    }
    match (first.hash, second.hash) {
        (a, b) if a == b => Ok(first),
        (first, second) => Err(Difference::Events { first, second }),
    }
}

type Decisions = (Component, Vec<Made>);

/// Where one component's decisions part, and when.
fn part(((who, first), (_, second)): (&Decisions, &Decisions)) -> Option<(u64, Difference)> {
    let longest = first.len().max(second.len());
    let position = (0..longest).find(|at| first.get(*at) != second.get(*at))?;
    let told = |made: Option<&Made>| match made {
        Some(made) => format!("{} {} of {}", made.name, made.value, made.bound),
        None => "nothing more".into(),
    };
    let (first, second) = (first.get(position), second.get(position));
    let at = [first, second].into_iter().flatten().map(|made| made.at).min().unwrap_or(0);
    let difference = Difference::Choice {
        who: who.name(),
        position: position as u64,
        at,
        first: told(first),
        second: told(second),
    };
    Some((at, difference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{ProfileName, SeedId};
    use crate::world::Slip;

    #[test]
    fn twice_names_the_first_decision_that_differs() {
        let mut arena = Arena::new();
        let seed = SeedId { profile: ProfileName::Mixed, number: 1 };
        let scenario = Scenario::of_seed(seed);
        assert!(twice(&mut arena, &scenario, &Options::default()).is_ok());
        let moody = Options { slip: Some(Slip::Moody), ..Options::default() };
        let same = twice(&mut arena, &scenario, &moody).map(|outcome| outcome.hash);
        let difference = same.unwrap_err();
        assert!(difference.to_string().contains("mood"), "{difference}");
    }
}
