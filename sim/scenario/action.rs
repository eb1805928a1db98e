//! What happens in a run, each as one line of a document.

use super::Control;
use crate::disk::faults::{DiskFault, TimedFault};
use crate::guest::Sabotage;
use crate::oracle::Expect;
use crate::trace::Verb;
use core::fmt;

/// One of them. Actions of one kind happen in their order; a guest's requests
/// in their order on each vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The guest asks.
    Request(Request),
    /// When everything before it on the vring is done, the guest waits.
    Rest {
        /// Vring.
        vring: u16,
        /// Microseconds.
        us: u64,
    },
    /// The guest breaks the rules of a vring, which is of no use afterwards.
    Sabotage {
        /// Vring.
        vring: u16,
        /// How.
        how: Sabotage,
    },
    /// The next kick of a vring gets lost, or comes though it need not.
    Kick {
        /// Vring.
        vring: u16,
        /// It gets lost.
        lost: bool,
    },
    /// A life of the back-end ends: one action for each life, in turn.
    Kill {
        /// When.
        at: KillAt,
        /// What comes after it.
        next: Successor,
    },
    /// The guest is paused, so long after the vrings began to run.
    Pause {
        /// Microseconds.
        after: u64,
    },
    /// Something happens to the connection, one for each time the vrings begin
    /// to run.
    Connection {
        /// Microseconds after that.
        after: u64,
        /// What.
        trouble: Trouble,
    },
    /// The guest moves to the other host.
    Migrate(Migrate),
    /// The front-end changes something while the vrings run.
    Control {
        /// Microseconds after the last change, or after the start.
        after: u64,
        /// What.
        what: Control,
    },
    /// The disk has a fault that strikes with a certain request.
    Fault {
        /// Which of the requests that the fault is counted by, from 0.
        nth: u64,
        /// What is wrong.
        fault: DiskFault,
    },
    /// The disk has a fault that strikes at a certain time.
    TimedFault {
        /// Microseconds from the start of the run.
        after: u64,
        /// What is wrong.
        fault: TimedFault,
    },
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Vring.
    pub vring: u16,
    /// What is wanted.
    pub verb: Verb,
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub sectors: u64,
    /// Flags of a discard or write zeroes range.
    pub flags: u32,
    /// Its data is one byte short of whole sectors.
    pub short: bool,
    /// So often, one after the other.
    pub times: u64,
}

impl Request {
    /// Bytes of data.
    pub fn data_len(&self) -> u64 {
        match self.verb {
            Verb::Read | Verb::Write | Verb::Unknown => 512 * self.sectors - u64::from(self.short),
            Verb::WriteZeroes | Verb::Discard => 16,
            Verb::GetId => 20,
            Verb::Flush => 0,
        }
    }

    /// What a device with so many sectors has to answer.
    // spec: virtio 1.2, "Block Device", "Device Requirements: Device Operation"
    pub fn expect(&self, sectors: u64) -> Expect {
        let unknown = match self.verb {
            Verb::Unknown => true,
            Verb::Discard => self.flags != 0,
            Verb::WriteZeroes => self.flags & !1 != 0,
            _ => false,
        };
        let beyond = self.sector.checked_add(self.sectors).is_none_or(|end| end > sectors);
        match (unknown, beyond || self.short) {
            (true, _) => Expect::Unsupp,
            (_, true) => Expect::IoErr,
            _ => Expect::Ok,
        }
    }
}

/// What can happen to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It breaks: one side learns it at once, the other this much later.
    Break {
        /// Microseconds.
        lag: u64,
        /// The back-end is the first to know.
        back_first: bool,
    },
    /// Nothing gets through for so long.
    Stall {
        /// Microseconds.
        us: u64,
    },
    /// The front-end is gone in the middle of whatever it says, and comes back
    /// after so long.
    Gone {
        /// Microseconds.
        us: u64,
    },
}

/// What the back-end offers that comes after one that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Successor {
    /// The same.
    #[default]
    Same,
    /// More vrings than the device has.
    MoreQueues,
    /// Larger vrings.
    LargerRings,
    /// A vring less than the device has, which cannot do.
    FewerQueues,
    /// No discard, though the guest has accepted it, which cannot do.
    FewerFeatures,
    /// Vrings smaller than those of the guest, which cannot do.
    SmallerRings,
}

impl Successor {
    /// Every successor, the calmest first.
    pub const ALL: [Self; 6] = [
        Self::Same,
        Self::MoreQueues,
        Self::LargerRings,
        Self::FewerQueues,
        Self::FewerFeatures,
        Self::SmallerRings,
    ];

    /// As a document has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::MoreQueues => "more-queues",
            Self::LargerRings => "larger-rings",
            Self::FewerQueues => "fewer-queues",
            Self::FewerFeatures => "fewer-features",
            Self::SmallerRings => "smaller-rings",
        }
    }

    /// The device cannot go on with it, so it has to be told from one that can,
    /// before anything is lost.
    pub const fn is_unfit(self) -> bool {
        matches!(self, Self::FewerQueues | Self::FewerFeatures | Self::SmallerRings)
    }
}

/// When a life of the back-end ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillAt {
    /// Killed when it has made so many stores to shared memory.
    Stores(u64),
    /// Killed between two steps, after so many microseconds of its life.
    Idle {
        /// Microseconds.
        after: u64,
    },
    /// Asked to end, after so many microseconds of its life.
    Asked {
        /// Microseconds.
        after: u64,
    },
    /// Left alone.
    Never,
}

/// A migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrate {
    /// Microseconds after the last one, or after the start.
    pub after: u64,
    /// How it ends.
    pub fate: Fate,
}

/// How a migration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The guest runs on the other host.
    Completes,
    /// Broken off after this round of copying.
    BrokenOffInRound(u64),
    /// Broken off when the vrings are stopped.
    BrokenOffAtRest,
    /// What was handed over gets lost on the way.
    LinkLost,
    /// The destination does not take it.
    Refused,
    /// It completes, and then the source wakes as if it had failed: both hosts
    /// are awake for so many microseconds.
    SourceWakes(u64),
}

const VERBS: [Verb; 7] = [
    Verb::Read,
    Verb::Write,
    Verb::Flush,
    Verb::GetId,
    Verb::Discard,
    Verb::WriteZeroes,
    Verb::Unknown,
];

/// A verb as one word.
const fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::Read => "read",
        Verb::Write => "write",
        Verb::Flush => "flush",
        Verb::GetId => "get-id",
        Verb::Discard => "discard",
        Verb::WriteZeroes => "write-zeroes",
        Verb::Unknown => "unknown",
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(Request { vring, verb, sector, sectors, flags, short, times }) => {
                write!(f, "request vring {vring} {}", word(*verb))?;
                if *sectors > 0 || *sector > 0 {
                    write!(f, " {sectors} @{sector}")?;
                }
                if *flags > 0 {
                    write!(f, " flags {flags}")?;
                }
                if *short {
                    f.write_str(" short")?;
                }
                if *times == 1 { Ok(()) } else { write!(f, " times {times}") }
            }
            Self::Rest { vring, us } => write!(f, "rest vring {vring} {us} us"),
            Self::Sabotage { vring, how } => write!(f, "sabotage vring {vring} {}", how.name()),
            Self::Kick { vring, lost } => {
                write!(f, "kick vring {vring} {}", if *lost { "lost" } else { "extra" })
            }
            Self::Kill { at, next } => {
                match at {
                    KillAt::Stores(n) => write!(f, "kill after {n} stores")?,
                    KillAt::Idle { after } => write!(f, "kill after {after} us")?,
                    KillAt::Asked { after } => write!(f, "end after {after} us")?,
                    KillAt::Never => f.write_str("live")?,
                }
                match next {
                    Successor::Same => Ok(()),
                    other => write!(f, " next {}", other.name()),
                }
            }
            Self::Pause { after } => write!(f, "pause after {after} us"),
            Self::Connection { after, trouble } => match trouble {
                Trouble::Break { lag, back_first } => {
                    let first = if *back_first { "back-end" } else { "front-end" };
                    write!(f, "break after {after} us {first} first lag {lag} us")
                }
                Trouble::Stall { us } => write!(f, "stall after {after} us for {us} us"),
                Trouble::Gone { us } => write!(f, "gone after {after} us for {us} us"),
            },
            Self::Migrate(Migrate { after, fate }) => {
                write!(f, "migrate after {after} us")?;
                match fate {
                    Fate::Completes => Ok(()),
                    Fate::BrokenOffInRound(round) => write!(f, " broken-off-in-round {round}"),
                    Fate::BrokenOffAtRest => f.write_str(" broken-off-at-rest"),
                    Fate::LinkLost => f.write_str(" link-lost"),
                    Fate::Refused => f.write_str(" refused"),
                    Fate::SourceWakes(us) => write!(f, " source-wakes for {us} us"),
                }
            }
            Self::Control { after, what } => write!(f, "change after {after} us {what}"),
            Self::Fault { nth, fault } => {
                write!(f, "disk {} {nth} {fault}", fault.among().name())
            }
            Self::TimedFault { after, fault } => write!(f, "disk after {after} us {fault}"),
        }
    }
}

/// How each action is written, for who has written one that is none.
pub(super) const FORMS: &str = "request vring V VERB [N @SECTOR] [flags F] [short] [times N], rest vring V US us, sabotage vring V HOW, kick vring V lost|extra, kill after N stores, kill after US us, end after US us or live [next SUCCESSOR], pause after US us, break after US us front-end|back-end first lag US us, stall or gone after US us for US us, migrate after US us [FATE], change after US us call, kick or err vring V, disable vring V for US us, memory, log, no-log, write-back, write-through, refused or reset, disk read|write|flush|request N FAULT, or disk after US us FAULT";

/// Read one line; `None` if it is no action.
pub(super) fn parse(line: &str) -> Option<Action> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |word: &str| word.parse::<u64>().ok();
    Some(match words[..] {
        ["request", "vring", vring, verb, ref rest @ ..] => {
            let verb = VERBS.into_iter().find(|v| word(*v) == verb)?;
            let vring = vring.parse().ok()?;
            let mut request =
                Request { vring, verb, sector: 0, sectors: 0, flags: 0, short: false, times: 1 };
            let mut rest = rest.iter().copied();
            while let Some(word) = rest.next() {
                match word {
                    "flags" => request.flags = rest.next()?.parse().ok()?,
                    "short" => request.short = true,
                    "times" => request.times = number(rest.next()?)?,
                    count => {
                        request.sectors = number(count)?;
                        request.sector = number(rest.next()?.strip_prefix('@')?)?;
                    }
                }
            }
            // So much that nobody could hold it is a slip of the pen.
            (request.sectors <= 1 << 20 && (!request.short || request.sectors > 0))
                .then_some(Action::Request(request))?
        }
        ["rest", "vring", vring, us, "us"] => {
            Action::Rest { vring: vring.parse().ok()?, us: number(us)? }
        }
        ["sabotage", "vring", vring, how] => {
            let how = Sabotage::ALL.into_iter().find(|s| s.name() == how)?;
            Action::Sabotage { vring: vring.parse().ok()?, how }
        }
        ["kick", "vring", vring, how @ ("lost" | "extra")] => {
            Action::Kick { vring: vring.parse().ok()?, lost: how == "lost" }
        }
        ["kill" | "end" | "live", ..] => {
            let (words, next) = match words[..] {
                [ref words @ .., "next", name] => {
                    (words, Successor::ALL.into_iter().find(|s| s.name() == name)?)
                }
                ref words => (words, Successor::Same),
            };
            let at = match words {
                ["kill", "after", n, "stores"] => KillAt::Stores(number(n)?),
                ["kill", "after", us, "us"] => KillAt::Idle { after: number(us)? },
                ["end", "after", us, "us"] => KillAt::Asked { after: number(us)? },
                ["live"] => KillAt::Never,
                _ => return None,
            };
            Action::Kill { at, next }
        }
        ["pause", "after", us, "us"] => Action::Pause { after: number(us)? },
        ["break", "after", us, "us", first, "first", "lag", lag, "us"] => {
            let back_first = match first {
                "back-end" => true,
                "front-end" => false,
                _ => return None,
            };
            let trouble = Trouble::Break { lag: number(lag)?, back_first };
            Action::Connection { after: number(us)?, trouble }
        }
        ["stall", "after", after, "us", "for", us, "us"] => Action::Connection {
            after: number(after)?,
            trouble: Trouble::Stall { us: number(us)? },
        },
        ["gone", "after", after, "us", "for", us, "us"] => {
            Action::Connection { after: number(after)?, trouble: Trouble::Gone { us: number(us)? } }
        }
        ["change", "after", after, "us", ref what @ ..] => {
            Action::Control { after: number(after)?, what: Control::parse(what)? }
        }
        ["disk", "after", us, "us", ref fault @ ..] => {
            Action::TimedFault { after: number(us)?, fault: fault.join(" ").parse().ok()? }
        }
        ["disk", among, nth, ref fault @ ..] => {
            let fault: DiskFault = fault.join(" ").parse().ok()?;
            (fault.among().name() == among).then_some(Action::Fault { nth: number(nth)?, fault })?
        }
        ["migrate", "after", us, "us", ref fate @ ..] => {
            let fate = match fate {
                [] => Fate::Completes,
                ["broken-off-in-round", round] => Fate::BrokenOffInRound(number(round)?),
                ["broken-off-at-rest"] => Fate::BrokenOffAtRest,
                ["link-lost"] => Fate::LinkLost,
                ["refused"] => Fate::Refused,
                ["source-wakes", "for", us, "us"] => Fate::SourceWakes(number(us)?),
                _ => return None,
            };
            Action::Migrate(Migrate { after: number(us)?, fate })
        }
        _ => return None,
    })
}
