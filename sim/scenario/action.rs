//! What happens in a run, each as one line of a document.

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
    /// A life of the back-end ends: one action for each life, in turn.
    Kill(KillAt),
    /// The guest is paused, so long after the vrings began to run.
    Pause {
        /// Microseconds.
        after: u64,
    },
    /// The connection breaks, so long after the vrings began to run.
    Break {
        /// Microseconds.
        after: u64,
    },
    /// The guest moves to the other host.
    Migrate(Migrate),
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
            Self::Request(Request { vring, verb, sector, sectors, flags, short }) => {
                write!(f, "request vring {vring} {}", word(*verb))?;
                if *sectors > 0 || *sector > 0 {
                    write!(f, " {sectors} @{sector}")?;
                }
                if *flags > 0 {
                    write!(f, " flags {flags}")?;
                }
                if *short { f.write_str(" short") } else { Ok(()) }
            }
            Self::Rest { vring, us } => write!(f, "rest vring {vring} {us} us"),
            Self::Kill(KillAt::Stores(n)) => write!(f, "kill after {n} stores"),
            Self::Kill(KillAt::Idle { after }) => write!(f, "kill after {after} us"),
            Self::Kill(KillAt::Asked { after }) => write!(f, "end after {after} us"),
            Self::Kill(KillAt::Never) => f.write_str("live"),
            Self::Pause { after } => write!(f, "pause after {after} us"),
            Self::Break { after } => write!(f, "break after {after} us"),
            Self::Migrate(Migrate { after, fate }) => {
                write!(f, "migrate after {after} us")?;
                match fate {
                    Fate::Completes => Ok(()),
                    Fate::BrokenOffInRound(round) => write!(f, " broken-off-in-round {round}"),
                    Fate::BrokenOffAtRest => f.write_str(" broken-off-at-rest"),
                    Fate::LinkLost => f.write_str(" link-lost"),
                    Fate::Refused => f.write_str(" refused"),
                }
            }
        }
    }
}

/// How each action is written, for who has written one that is none.
pub(super) const FORMS: &str = "request vring V VERB [N @SECTOR] [flags F] [short], rest vring V US us, kill after N stores, kill after US us, end after US us, live, pause after US us, break after US us, or migrate after US us [FATE]";

/// Read one line; `None` if it is no action.
pub(super) fn parse(line: &str) -> Option<Action> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |word: &str| word.parse::<u64>().ok();
    Some(match words[..] {
        ["request", "vring", vring, verb, ref rest @ ..] => {
            let verb = VERBS.into_iter().find(|v| word(*v) == verb)?;
            let vring = vring.parse().ok()?;
            let mut request =
                Request { vring, verb, sector: 0, sectors: 0, flags: 0, short: false };
            let mut rest = rest.iter().copied();
            while let Some(word) = rest.next() {
                match word {
                    "flags" => request.flags = rest.next()?.parse().ok()?,
                    "short" => request.short = true,
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
        ["kill", "after", n, "stores"] => Action::Kill(KillAt::Stores(number(n)?)),
        ["kill", "after", us, "us"] => Action::Kill(KillAt::Idle { after: number(us)? }),
        ["end", "after", us, "us"] => Action::Kill(KillAt::Asked { after: number(us)? }),
        ["live"] => Action::Kill(KillAt::Never),
        ["pause", "after", us, "us"] => Action::Pause { after: number(us)? },
        ["break", "after", us, "us"] => Action::Break { after: number(us)? },
        ["migrate", "after", us, "us", ref fate @ ..] => {
            let fate = match fate {
                [] => Fate::Completes,
                ["broken-off-in-round", round] => Fate::BrokenOffInRound(number(round)?),
                ["broken-off-at-rest"] => Fate::BrokenOffAtRest,
                ["link-lost"] => Fate::LinkLost,
                ["refused"] => Fate::Refused,
                _ => return None,
            };
            Action::Migrate(Migrate { after: number(us)?, fate })
        }
        _ => return None,
    })
}
