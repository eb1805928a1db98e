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

/// One share of several, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: u64,
    pub of: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| {
            Some(Self { index: index.parse().ok()?, of: of.parse().ok()? })
        });
        numbers
            .filter(|shard| shard.index < shard.of)
            .ok_or_else(|| format!("expected I/N with I from 0 and less than N, got {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_as_typed() {
        assert_eq!("0..2000".parse(), Ok(Seeds { first: 0, end: 2000 }));
        assert_eq!("0x10..0x12".parse(), Ok(Seeds { first: 16, end: 18 }));
        assert!("5".parse::<Seeds>().is_err());
        assert!("5..5".parse::<Seeds>().is_err());
        assert!("a..5".parse::<Seeds>().is_err());
    }

    #[test]
    fn shards_are_counted_from_0() {
        assert_eq!("0/1".parse(), Ok(Shard { index: 0, of: 1 }));
        assert_eq!("7/8".parse(), Ok(Shard { index: 7, of: 8 }));
        for wrong in ["8/8", "1", "1/0", "/", "a/2", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
