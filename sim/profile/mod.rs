//! What a run is like: drawn first, printed whole.
//!
//! Each family of trouble is switched on or off before its strength is drawn,
//! so that quiet runs exist: some bugs need a hundred healthy requests.

mod actions;
mod draw;
mod seed;

use crate::choices::Ratio;
use crate::settings::{SettingError, Value, settings};
use crate::topology::Topology;
pub use seed::{ProfileName, SeedId, parse_number};

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Some of everything, half of it in a hot area.
    Mixed,
    /// One sector after the other.
    Sequential,
    /// Anywhere on the disk.
    Random,
    /// Always the same few sectors.
    Overlapping,
    /// A flush after nearly every write.
    FlushHeavy,
    /// Discards and write zeroes over what is written.
    DiscardHeavy,
}

impl Workload {
    /// Every workload, the calmest first.
    pub const ALL: [Self; 6] = [
        Self::Mixed,
        Self::Sequential,
        Self::Random,
        Self::Overlapping,
        Self::FlushHeavy,
        Self::DiscardHeavy,
    ];

    /// As a document has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::Sequential => "sequential",
            Self::Random => "random",
            Self::Overlapping => "overlapping",
            Self::FlushHeavy => "flush-heavy",
            Self::DiscardHeavy => "discard-heavy",
        }
    }
}

impl Value for Workload {
    const EXPECTED: &'static str =
        "mixed, sequential, random, overlapping, flush-heavy or discard-heavy";

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == text)
    }

    fn print(&self) -> String {
        self.name().into()
    }
}

settings! {
    /// How much happens in a run; it becomes a list of actions.
    pub struct Rates {
        /// Requests of all vrings together.
        requests: u64,
        /// What they are.
        workload: Workload,
        /// Sectors at the start of the disk that a hot request goes to.
        hot_sectors: u64,
        /// Requests that the device has to refuse.
        bad: Ratio,
        /// Requests before which the guest rests.
        rests: Ratio,
        /// Requests before which a kick gets lost or comes for nothing.
        odd_kicks: Ratio,
        /// Times the guest breaks the rules of a vring.
        sabotage: u64,
        /// Kills of the back-end.
        kills: u64,
        /// Most stores of the back-end from one kill to the next.
        kill_stores: u64,
        /// Kills that happen between steps instead of inside one.
        kill_idle: Ratio,
        /// Kills that are none: the process is asked to end, and may finish.
        gentle: Ratio,
        /// Times the guest is paused and resumed.
        pauses: u64,
        /// Back-ends that come back with something else to offer.
        successors: Ratio,
        /// Times the connection breaks though nobody dies.
        breaks: u64,
        /// Times nothing gets through for a while.
        stalls: u64,
        /// Times the front-end is gone for a while.
        gone: u64,
        /// Changes that the front-end makes while the vrings run.
        controls: u64,
        /// Microseconds from one of them to the next, at most.
        controls_apart: u64,
        /// Migrations that are begun.
        migrations: u64,
        /// Microseconds from one migration to the next, at most.
        apart: u64,
        /// Migrations that do not come to their end.
        aborts: Ratio,
        /// Requests that each family of disk faults strikes, at most; which
        /// families there are is drawn.
        disk_faults: Ratio,
        /// Flushes that lie may be among them.
        lying_flush: bool,
    }
}

impl Rates {
    /// Nothing but requests.
    pub fn quiet(requests: u64) -> Self {
        Self {
            requests,
            workload: Workload::Mixed,
            hot_sectors: 16,
            bad: Ratio::NEVER,
            rests: Ratio::NEVER,
            odd_kicks: Ratio::NEVER,
            sabotage: 0,
            kills: 0,
            kill_stores: 0,
            kill_idle: Ratio::NEVER,
            gentle: Ratio::NEVER,
            pauses: 0,
            successors: Ratio::NEVER,
            breaks: 0,
            stalls: 0,
            gone: 0,
            controls: 0,
            controls_apart: 1_000,
            migrations: 0,
            apart: 1_000,
            aborts: Ratio::NEVER,
            disk_faults: Ratio::NEVER,
            lying_flush: false,
        }
    }
}

impl core::fmt::Display for Rates {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(
            f,
            "workload   {} requests, {}, hot area {} sectors, to be refused {}, rests before {}, odd kicks before {}, rules broken {} times",
            self.requests,
            self.workload.name(),
            self.hot_sectors,
            self.bad,
            self.rests,
            self.odd_kicks,
            self.sabotage
        )?;
        write!(
            f,
            "trouble    {} kills within {} stores each (between steps {}, gentle {}, other successors {}), {} pauses, {} lost connections, {} stalls, front-end gone {} times",
            self.kills,
            self.kill_stores,
            self.kill_idle,
            self.gentle,
            self.successors,
            self.pauses,
            self.breaks,
            self.stalls,
            self.gone
        )?;
        if self.controls > 0 {
            write!(f, "\nchanges    {} up to {} us apart", self.controls, self.controls_apart)?;
        }
        if self.migrations > 0 {
            write!(
                f,
                "\nmoves      {} migrations up to {} us apart, broken off {}",
                self.migrations, self.apart, self.aborts
            )?;
        }
        if self.disk_faults.num > 0 {
            let lies = if self.lying_flush { ", flushes may lie" } else { "" };
            write!(f, "\nfaults     each family of disk faults {}{lies}", self.disk_faults)?;
        }
        Ok(())
    }
}

/// A whole profile: the world, and how much happens in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The world.
    pub topology: Topology,
    /// What happens.
    pub rates: Rates,
}

impl Profile {
    /// Change a setting of either part by name.
    ///
    /// # Errors
    /// If there is none of that name, or the value does not fit.
    pub fn change(&mut self, key: &str, text: &str) -> Result<(), SettingError> {
        match self.rates.set(key, text) {
            Err(SettingError::Unknown(_)) => self.topology.change(key, text),
            other => other,
        }
    }
}

impl core::fmt::Display for Profile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}\n{}", self.topology, self.rates)
    }
}
