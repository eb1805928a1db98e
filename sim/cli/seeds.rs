//! Seeds as they are typed.

use midflight_sim::profile::parse_number;
use std::ops::Range;
use std::str::FromStr;

/// A range of seeds, `A..B`, without B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    end: u64,
}

impl Seeds {
    pub fn range(self) -> Range<u64> {
        self.first..self.end
    }

    pub fn count(self) -> u64 {
        self.end - self.first
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, end) =
            text.split_once("..").ok_or_else(|| format!("expected A..B, got {text}"))?;
        let (first, end) = (parse_number(first)?, parse_number(end)?);
        if first >= end {
            return Err(format!("{text} is empty"));
        }
        Ok(Self { first, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_as_typed() {
        assert_eq!("0..2000".parse(), Ok(Seeds { first: 0, end: 2000 }));
        assert_eq!("0x10..0x12".parse::<Seeds>().map(Seeds::count), Ok(2));
        assert!("5".parse::<Seeds>().is_err());
        assert!("5..5".parse::<Seeds>().is_err());
        assert!("a..5".parse::<Seeds>().is_err());
    }
}
