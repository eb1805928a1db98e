//! Seeds as they are typed.

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
        let (first, end) = (parse_seed(first)?, parse_seed(end)?);
        if first >= end {
            return Err(format!("{text} is empty"));
        }
        Ok(Self { first, end })
    }
}

/// A seed, decimal or with 0x.
pub fn parse_seed(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|e| format!("{text}: {e}"))
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
