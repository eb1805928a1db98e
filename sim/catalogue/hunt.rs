//! Trying seeds until a mistake is caught.

use super::{Entry, Mistake};
use crate::memory::Arena;
use crate::oracle::Violation;
use crate::run::run;
use crate::scenario::{Scenario, Story};
use crate::shrink::{Size, shrink};
use crate::world::Options;
use midflight::bugs::Bug;

/// First seed of start *i* is *i* times this: starts share no seed.
pub const APART: u64 = 1_000_000;

/// Catches that are made small until one is small enough.
const SHRUNK: usize = 10;

/// Actions that a person takes in at a glance.
pub const FEW: u64 = 12;

/// How mistakes of the core are made. The functions are those of
/// `midflight::bugs`, which are there only where mistakes are built in.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    /// Ask for a mistake on this thread, or for none.
    pub set: fn(Option<Bug>),
    /// Whether it was made since.
    pub reached: fn() -> bool,
}

/// A mistake that was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// By this seed.
    pub seed: u64,
    /// Seeds that were tried for it, this one included.
    pub seeds: u64,
    /// What was seen.
    pub violation: Violation,
}

/// How a measurement is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Independent starts.
    pub starts: u64,
    /// Seeds to try from each.
    pub limit: u64,
    /// Runs to make a catch small in; 0: all stay as they are.
    pub shrink: u64,
}

/// What became of one entry.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub entry: &'static Entry,
    /// Starts that were made.
    pub starts: u64,
    /// Starts in which the mistake was made.
    pub reached: u64,
    /// By start in which it was caught.
    pub found: Vec<Found>,
    /// The first run that caught it and could be made small enough, or the one
    /// that came nearest: as drawn, and after shrinking.
    pub sizes: Option<(Size, Size)>,
    /// The document of that run, made small.
    pub document: Option<Scenario>,
    /// Read again, it gives the same verdict.
    pub replays: bool,
}

impl Row {
    /// Caught in every start, by an oracle that is expected to.
    pub fn is_caught(&self) -> bool {
        self.found.len() as u64 == self.starts && self.unexpected().is_none()
    }

    /// The first catch by somebody who was not expected to.
    pub fn unexpected(&self) -> Option<&Found> {
        self.found.iter().find(|found| !self.entry.oracles.contains(&found.violation.oracle))
    }

    /// Seeds to detection below or at which this many of a hundred starts are,
    /// rounded up to a start; `None` if fewer caught it.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let mut seeds: Vec<u64> = self.found.iter().map(|found| found.seeds).collect();
        seeds.sort_unstable();
        let rank = (self.starts * percent).div_ceil(100).max(1);
        seeds.get(usize::try_from(rank).ok()? - 1).copied()
    }

    /// Oracles that caught it, with the number of starts, most first.
    pub fn oracles(&self) -> Vec<(&'static str, u64)> {
        let mut counts: Vec<(&'static str, u64)> = Vec::new();
        for Found { violation, .. } in &self.found {
            match counts.iter_mut().find(|(oracle, _)| *oracle == violation.oracle) {
                Some((_, count)) => *count += 1,
                None => counts.push((violation.oracle, 1)),
            }
        }
        counts.sort_by_key(|(oracle, count)| (u64::MAX - count, *oracle));
        counts
    }
}

impl Entry {
    /// The run of a number in which the mistake can be made.
    pub fn scenario(&self, number: u64) -> Scenario {
        let story = Story::of(self.profile);
        let story = self.given.iter().fold(story, |story, (key, value)| story.with(key, value));
        story.scenario(number).expect("what is given are settings that fit")
    }

    /// What such a run is asked for.
    pub fn options(&self) -> Options {
        match self.mistake {
            Mistake::Core(_) => Options::default(),
            Mistake::World(slip) => Options { slip: Some(slip), ..Options::default() },
        }
    }

    /// The mistake, if the core makes it.
    pub fn bug(&self) -> Option<Bug> {
        match self.mistake {
            Mistake::Core(bug) => Some(bug),
            Mistake::World(_) => None,
        }
    }
}

/// Try seeds from `first` on, at most `limit`, until this entry is caught.
/// Whether the mistake was made, and by what it was caught.
pub fn hunt(
    arena: &mut Arena,
    entry: &Entry,
    switch: Switch,
    first: u64,
    limit: u64,
) -> (bool, Option<Found>) {
    let options = entry.options();
    (switch.set)(entry.bug());
    let found = (0..limit).find_map(|tried| {
        let seed = first + tried;
        let violation = run(arena, &entry.scenario(seed), &options).verdict.err()?;
        Some(Found { seed, seeds: tried + 1, violation })
    });
    let reached = entry.bug().is_none() || (switch.reached)();
    (switch.set)(None);
    (reached, found)
}

/// Hunt from as many starts as asked, and make a catch small.
pub fn measure(arena: &mut Arena, entry: &'static Entry, switch: Switch, effort: Effort) -> Row {
    let Effort { starts, limit, shrink: runs } = effort;
    let mut row = Row {
        entry,
        starts,
        reached: 0,
        found: Vec::new(),
        sizes: None,
        document: None,
        replays: false,
    };
    for start in 0..starts {
        let (reached, found) = hunt(arena, entry, switch, start * APART, limit);
        row.reached += u64::from(reached);
        row.found.extend(found);
    }
    (switch.set)(entry.bug());
    let tries = if runs == 0 { 0 } else { SHRUNK };
    for found in row.found.iter().take(tries) {
        let drawn = entry.scenario(found.seed);
        let Some(small) = shrink(arena, &drawn, &entry.options(), runs) else { continue };
        if row.sizes.is_none_or(|(_, best)| small.after.actions < best.actions) {
            row.sizes = Some((small.before, small.after));
            let mistake = Some(entry.name().into());
            row.document = Some(Scenario { mistake, ..small.scenario });
        }
        if small.after.actions <= FEW {
            break;
        }
    }
    row.replays = row.document.as_ref().is_some_and(|document| {
        let read: Scenario = document.to_string().parse().expect("what is printed is read");
        run(arena, &read, &entry.options())
            .verdict
            .is_err_and(|violation| read.expect.is_some_and(|expect| expect.is_met_by(&violation)))
    });
    (switch.set)(None);
    row
}

impl Row {
    /// Made small enough to be kept in mind, and the document gives the same
    /// verdict.
    pub fn is_small(&self) -> bool {
        self.replays && self.sizes.is_some_and(|(_, after)| after.actions <= FEW)
    }
}
