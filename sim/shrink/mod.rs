//! Making a failing scenario small.
//!
//! It works on the document: actions, then the world, then numbers, then
//! choices, over and over until nothing more can go. A smaller scenario counts
//! only if the same oracle speaks for the same cause. Everything is tried in a
//! fixed order, so the same failure always shrinks to the same document; how
//! much is tried is bounded by a number of runs.

mod actions;
mod alike;
mod choices;
mod leap;
mod numbers;
mod sweep;
mod world;

use crate::choices::{Choices, Source};
use crate::memory::Arena;
use crate::oracle::Violation;
use crate::run::run;
use crate::scenario::{Expected, Scenario};
use crate::world::{Options, Outcome};

/// Runs that one failure may cost, unless somebody says otherwise.
pub const RUNS: u64 = 10_000;

/// Times a leap is tried at most.
const ROUNDS: u64 = 6;
/// Actions that somebody can keep in mind.
const FEW: usize = 12;

/// Other numbers that choices are drawn from when the first does not fail any
/// more with less.
const REDRAWS: u64 = 12;

/// How large a scenario is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Actions of the document.
    pub actions: u64,
    /// Choices of the run that are not the calm one.
    pub choices: u64,
    /// Scheduler events until the failure.
    pub events: u64,
}

/// A failure made small.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The document; it says what to expect.
    pub scenario: Scenario,
    /// What the small run breaks.
    pub violation: Violation,
    /// How large the failure was.
    pub before: Size,
    /// And is.
    pub after: Size,
    /// Runs it took.
    pub runs: u64,
}

/// Make a failing scenario small, in at most `limit` runs. `None` if it does not
/// fail.
pub fn shrink(
    arena: &mut Arena,
    scenario: &Scenario,
    options: &Options,
    limit: u64,
) -> Option<Shrunk> {
    let options = Options { trace: false, keep_choices: false, ..options.clone() };
    let first = run(arena, scenario, &Options { keep_choices: true, ..options.clone() });
    let violation = first.verdict.clone().err()?;
    let before = size(scenario, &first);
    let expect = Expected { oracle: violation.oracle.into(), cause: violation.cause() };
    let best = Scenario { expect: Some(expect.clone()), ..scenario.clone() };
    let mut shrinker = Shrinker { arena, options, expect, best, runs: 1, limit, changed: false };
    shrinker.sweep();
    // What is few already is not worth a leap.
    for round in 0..ROUNDS {
        if round > 0 && shrinker.best.actions.len() <= FEW {
            break;
        }
        shrinker.leap(round);
        shrinker.step_by_step();
    }
    let Shrinker { arena, options, best, runs, .. } = shrinker;
    let last = run(arena, &best, &Options { keep_choices: true, ..options });
    let violation = last.verdict.clone().err()?;
    let after = size(&best, &last);
    Some(Shrunk { scenario: best, violation, before, after, runs: runs + 1 })
}

fn size(scenario: &Scenario, outcome: &Outcome) -> Size {
    let made = outcome.made.iter().flat_map(|(_, made)| made);
    Size {
        actions: scenario.actions.len() as u64,
        choices: made.filter(|made| made.value > 0).count() as u64,
        events: outcome.stats.events,
    }
}

struct Shrinker<'a> {
    arena: &'a mut Arena,
    options: Options,
    expect: Expected,
    /// The smallest failing scenario so far.
    best: Scenario,
    runs: u64,
    limit: u64,
    changed: bool,
}

impl Shrinker<'_> {
    fn is_spent(&self) -> bool {
        self.runs >= self.limit
    }

    fn fails(&mut self, candidate: &Scenario) -> bool {
        if self.is_spent() {
            return false;
        }
        self.runs += 1;
        let outcome = run(self.arena, candidate, &self.options);
        outcome.verdict.is_err_and(|violation| {
            violation.oracle == self.expect.oracle && violation.cause() == self.expect.cause
        })
    }

    /// Take a scenario if it fails as it has to.
    fn try_take(&mut self, candidate: Scenario) -> bool {
        let taken = candidate != self.best && self.fails(&candidate);
        if taken {
            self.best = candidate;
            self.changed = true;
        }
        taken
    }

    /// Take it under the choices it has, or as they are calm or drawn anew: with
    /// fewer actions, old choices may mean something else.
    fn try_take_redrawn(&mut self, candidate: Scenario) -> bool {
        if self.try_take(candidate.clone()) {
            return true;
        }
        if !candidate.choices.written.is_empty() {
            return false;
        }
        let drawn = (0..REDRAWS).map(Choices::drawn);
        std::iter::once(Choices::calm()).chain(drawn).any(|choices| {
            choices.source != candidate.choices.source
                && self.try_take(Scenario { choices, ..candidate.clone() })
        })
    }

    /// Less and less, until nothing more can go.
    fn step_by_step(&mut self) {
        self.calm();
        loop {
            self.changed = false;
            self.fewer_actions();
            self.plainer_world();
            self.alike();
            self.smaller_numbers();
            self.fewer_choices();
            if !self.changed || self.is_spent() {
                return;
            }
        }
    }

    /// See whether it fails where nothing happens by chance.
    fn calm(&mut self) {
        let choices = Choices::calm();
        if self.best.choices.source != Source::Calm {
            self.try_take(Scenario { choices, ..self.best.clone() });
        }
    }
}

/// Take pieces out of a list of `len` items, halves first: `take` is asked to do
/// without a range, and says whether it could.
fn without(mut len: usize, mut take: impl FnMut(std::ops::Range<usize>) -> bool) {
    let mut piece = len;
    while piece > 0 {
        // From the end: what comes after a failure goes at once.
        let mut end = len;
        while end > 0 {
            let start = end.saturating_sub(piece);
            if take(start..end) {
                len -= end - start;
            }
            end = start;
        }
        piece = piece.min(len) / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn shrink_finds_the_few_items_that_matter() {
        let mut items: Vec<u32> = (0..100).collect();
        let mut tries = 0;
        let len = items.len();
        without(len, |range| {
            tries += 1;
            let mut fewer = items.clone();
            fewer.drain(range);
            let fails = fewer.contains(&3) && fewer.contains(&71);
            if fails {
                items = fewer;
            }
            fails
        });
        assert_eq!(items, [3, 71]);
        assert!(tries < 60, "{tries}");
    }
}
