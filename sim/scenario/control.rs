//! What a front-end changes while the vrings run.

use core::fmt;
use serde::Serialize;

/// One message, or a few that belong together, while requests are in flight.
// spec: vhost-user, "Ring states": what may change on the fly
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Control {
    /// Another call descriptor; nobody listens to the old one any more.
    Call(u16),
    /// Another kick descriptor; what was kicked on the old one is lost.
    Kick(u16),
    /// Another err descriptor.
    Err(u16),
    /// A vring is disabled, and enabled again after so long.
    Disable {
        /// Vring.
        vring: u16,
        /// Microseconds.
        us: u64,
    },
    /// Memory is plugged in; the next time it is taken out again.
    Memory,
    /// A dirty log, or another one.
    Log,
    /// No dirty log any more.
    NoLog,
    /// The guest writes the write cache byte.
    Cache(bool),
    /// Something that has to be refused, and change nothing.
    Refused,
    /// The guest resets the device and begins anew: what was under way may have
    /// happened or not, and nothing of it happens afterwards.
    Reset,
}

impl Control {
    /// Its number, for hashes, and the vring it is about.
    pub const fn code(self) -> (u64, u16) {
        match self {
            Self::Call(vring) => (0, vring),
            Self::Kick(vring) => (1, vring),
            Self::Err(vring) => (2, vring),
            Self::Disable { vring, .. } => (3, vring),
            Self::Memory => (4, 0),
            Self::Log => (5, 0),
            Self::NoLog => (6, 0),
            Self::Cache(on) => (7, on as u16),
            Self::Refused => (8, 0),
            Self::Reset => (9, 0),
        }
    }

    /// As a document has it, in words.
    pub(super) fn parse(words: &[&str]) -> Option<Self> {
        let vring = |word: &str| word.parse::<u16>().ok();
        Some(match *words {
            ["call", "vring", v] => Self::Call(vring(v)?),
            ["kick", "vring", v] => Self::Kick(vring(v)?),
            ["err", "vring", v] => Self::Err(vring(v)?),
            ["disable", "vring", v, "for", us, "us"] => {
                Self::Disable { vring: vring(v)?, us: us.parse().ok()? }
            }
            ["memory"] => Self::Memory,
            ["log"] => Self::Log,
            ["no-log"] => Self::NoLog,
            ["write-back"] => Self::Cache(true),
            ["write-through"] => Self::Cache(false),
            ["refused"] => Self::Refused,
            ["reset"] => Self::Reset,
            _ => return None,
        })
    }
}

/// As a document has it.
impl From<Control> for String {
    fn from(control: Control) -> Self {
        control.to_string()
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(vring) => write!(f, "call vring {vring}"),
            Self::Kick(vring) => write!(f, "kick vring {vring}"),
            Self::Err(vring) => write!(f, "err vring {vring}"),
            Self::Disable { vring, us } => write!(f, "disable vring {vring} for {us} us"),
            Self::Memory => f.write_str("memory"),
            Self::Log => f.write_str("log"),
            Self::NoLog => f.write_str("no-log"),
            Self::Cache(true) => f.write_str("write-back"),
            Self::Cache(false) => f.write_str("write-through"),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
        }
    }
}
