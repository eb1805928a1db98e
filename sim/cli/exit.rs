//! How a command ends.

use midflight_sim::oracle::{Kind, Violation};
use std::process::ExitCode;

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every promise was kept.
    Kept,
    /// Something happened that must not.
    Safety,
    /// What was asked for makes no sense.
    Usage,
    /// Something did not happen that must.
    Liveness,
    /// Two runs of one seed differ.
    Differs,
    /// A signal came before all was done, and nothing was found.
    Interrupted(u8),
}

/// An end, or what was wrong with what was asked for.
pub type Result = std::result::Result<End, String>;

impl End {
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Kept => 0,
            Self::Safety => 1,
            Self::Usage => 2,
            Self::Liveness => 3,
            Self::Differs => 4,
            Self::Interrupted(signal) => 128 + signal,
        })
    }
}

impl From<bool> for End {
    /// A check that is kept or not.
    fn from(kept: bool) -> Self {
        if kept { Self::Kept } else { Self::Safety }
    }
}

impl From<&Violation> for End {
    fn from(violation: &Violation) -> Self {
        match violation.kind() {
            Kind::Safety => Self::Safety,
            Kind::Liveness => Self::Liveness,
        }
    }
}
