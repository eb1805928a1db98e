//! Who events are about.

use core::str::FromStr;
use serde::Serialize;

/// Who an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Lane {
    /// The guest's driver.
    Guest,
    /// The front-end.
    Front,
    /// The socket between the halves.
    Link,
    /// The back-end process.
    Back,
    /// The disk.
    Disk,
    /// The host: processes, signals.
    Host,
}

impl Lane {
    /// Every lane, left to right.
    pub const ALL: [Self; 6] =
        [Self::Guest, Self::Front, Self::Link, Self::Back, Self::Disk, Self::Host];

    /// Its name, as a column shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Front => "front",
            Self::Link => "link",
            Self::Back => "back",
            Self::Disk => "disk",
            Self::Host => "host",
        }
    }
}

impl FromStr for Lane {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|lane| lane.name() == text);
        found.ok_or_else(|| format!("expected one of {names}, got {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_read_by_name() {
        assert_eq!("disk".parse(), Ok(Lane::Disk));
        assert_eq!(
            "moon".parse::<Lane>(),
            Err("expected one of guest, front, link, back, disk, host, got moon".into())
        );
    }
}
