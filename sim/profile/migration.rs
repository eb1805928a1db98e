//! How a seed becomes a story of migrations.

use super::Profile;
use crate::choices::{Component, Ratio, Stream};
use crate::disk::Pace;

/// What a stop does with requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It waits for them.
    Drain,
    /// It has them cancelled and leaves them in the inflight region.
    Suspend,
    /// Like `Suspend`, but the driver says that a request is over when it is
    /// not: the mistake that lets an old write land on new data.
    Unsafe,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Drain, Self::Suspend, Self::Unsafe];

    /// As the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Suspend => "suspend",
            Self::Unsafe => "unsafe",
        }
    }
}

/// How the guest moves between the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// What a stop does with requests in flight.
    pub policy: Policy,
    /// Suspending is asked for by a message of its own (45); without it, every
    /// stop suspends, as in QEMU 11.1.
    pub by_message: bool,
    /// Microseconds that requests in flight have to finish by themselves.
    pub grace: u64,
    /// Microseconds until the disk confirms a cancel, at most; `None`: it
    /// cannot cancel.
    pub cancel: Option<u64>,
    /// Migrations that are begun.
    pub times: u64,
    /// Microseconds from one migration to the next, at most.
    pub apart: u64,
    /// Nanoseconds that the link takes for a page.
    pub page_ns: u64,
    /// Microseconds from host to host.
    pub latency: u64,
    /// Rounds of copying while the guest runs, at most.
    pub rounds: u64,
    /// Pages that may be left when the guest is stopped.
    pub few_pages: u64,
    /// Migrations that do not come to their end.
    pub aborts: Ratio,
}

impl Profile {
    /// Draw a run in which the guest migrates. `policy`: instead of a drawn one.
    pub fn draw_migration(seed: u64, policy: Option<Policy>) -> Self {
        let mut s = Stream::new(seed, Component::Migration);
        let drawn = *s.pick("policy", &[Policy::Drain, Policy::Suspend, Policy::Suspend]);
        let migration = Migration {
            policy: policy.unwrap_or(drawn),
            by_message: s.chance("by message", Ratio::new(1, 3)),
            grace: *s.pick("grace", &[0, 0, 20, 400]),
            cancel: *s.pick("cancel", &[Some(20), Some(400), Some(3_000), None]),
            times: *s.pick("times", &[1, 2, 2, 3, 4, 8]),
            apart: *s.pick("apart", &[200, 1_000, 4_000]),
            page_ns: *s.pick("page_ns", &[200, 700, 3_300]),
            latency: *s.pick("latency", &[10, 50, 300]),
            rounds: s.range("rounds", 1, 6),
            few_pages: s.range("few pages", 1, 24),
            aborts: *s.pick("aborts", &[Ratio::NEVER, Ratio::NEVER, Ratio::new(1, 3)]),
        };
        let quiet = s.chance("quiet", Ratio::new(1, 3));
        let base = Self::draw(seed);
        let pace = *s.pick("pace", &[Pace::Spread, Pace::Slow, Pace::Slow]);
        Self {
            kills: if quiet { 0 } else { base.kills },
            breaks: if quiet { 0 } else { base.breaks },
            requests: s.range("requests", 60, 240),
            pace: if base.pace == Pace::Quick { Pace::Quick } else { pace },
            migration: Some(migration),
            ..base
        }
    }
}

impl core::fmt::Display for Migration {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let how = match (self.policy, self.by_message) {
            (Policy::Drain, _) => "",
            (_, true) => " by message 45",
            (_, false) => " at every stop",
        };
        write!(f, "migration  {} times, a stop is {}{how}", self.times, self.policy.name())?;
        if self.policy != Policy::Drain {
            write!(f, ", grace {} us, ", self.grace)?;
            match (self.policy, self.cancel) {
                (Policy::Unsafe, _) => write!(f, "cancels are confirmed at once, without truth")?,
                (_, Some(us)) => write!(f, "cancels take up to {us} us")?,
                (_, None) => write!(f, "the disk cannot cancel")?,
            }
        }
        write!(
            f,
            "; link {} us, {} ns a page; {} rounds or {} pages left; broken off {}",
            self.latency, self.page_ns, self.rounds, self.few_pages, self.aborts
        )
    }
}
