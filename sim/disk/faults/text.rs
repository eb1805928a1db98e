//! Faults as words of a document: a name, and each parameter by name.

use super::{DiskFault, Family, TimedFault};
use core::fmt;
use core::str::FromStr;

/// These words are no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFault {
    /// No such fault.
    #[error("expected the name of a disk fault, got {0:?}")]
    Name(String),
    /// A parameter that has to be there is not, or is no number in range.
    #[error("{family}: expected {parameter} and a number, got {got:?}")]
    Parameter {
        /// Name of the fault.
        family: &'static str,
        /// Name of the parameter.
        parameter: &'static str,
        /// What is there.
        got: String,
    },
    /// More words than parameters.
    #[error("{family}: expected no more words, got {got:?}")]
    Rest {
        /// Name of the fault.
        family: &'static str,
        /// What is there.
        got: String,
    },
}

impl fmt::Display for DiskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family().name())?;
        match self {
            Self::ReadError { at } | Self::WriteError { at } => write!(f, " at {at}"),
            Self::Corrupt { at, bit } => write!(f, " at {at} bit {bit}"),
            Self::MisdirectedRead { by } | Self::MisdirectedWrite { by } => write!(f, " by {by}"),
            Self::Short { sectors } => write!(f, " sectors {sectors}"),
            Self::Duplicate { after_us } => write!(f, " after_us {after_us}"),
            Self::FailedFlush { forgets } => write!(f, " forgets {}", u8::from(*forgets)),
            Self::LostWrite | Self::LyingFlush => Ok(()),
        }
    }
}

impl fmt::Display for TimedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family().name())?;
        match self {
            Self::Stall { us } => write!(f, " us {us}"),
            Self::Throttle { us, every_us } => write!(f, " us {us} every_us {every_us}"),
            Self::PowerLoss => Ok(()),
        }
    }
}

struct Words<'a> {
    family: Family,
    rest: std::str::SplitWhitespace<'a>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Result<Self, BadFault> {
        let mut rest = text.split_whitespace();
        let name = rest.next().unwrap_or("");
        let family = Family::by_name(name).ok_or_else(|| BadFault::Name(name.into()))?;
        Ok(Self { family, rest })
    }

    fn take<T: FromStr>(&mut self, parameter: &'static str) -> Result<T, BadFault> {
        let (name, value) = (self.rest.next().unwrap_or(""), self.rest.next().unwrap_or(""));
        let number = value.parse().ok().filter(|_| name == parameter);
        let got = || format!("{name} {value}").trim().to_owned();
        let family = self.family.name();
        number.ok_or_else(|| BadFault::Parameter { family, parameter, got: got() })
    }

    fn end<T>(mut self, fault: T) -> Result<T, BadFault> {
        match self.rest.next() {
            None => Ok(fault),
            Some(word) => Err(BadFault::Rest { family: self.family.name(), got: word.into() }),
        }
    }
}

impl FromStr for DiskFault {
    type Err = BadFault;

    fn from_str(text: &str) -> Result<Self, BadFault> {
        let mut words = Words::new(text)?;
        let fault = match words.family {
            Family::ReadError => Self::ReadError { at: words.take("at")? },
            Family::WriteError => Self::WriteError { at: words.take("at")? },
            Family::Corrupt => Self::Corrupt { at: words.take("at")?, bit: words.take("bit")? },
            Family::MisdirectedRead => Self::MisdirectedRead { by: words.take("by")? },
            Family::MisdirectedWrite => Self::MisdirectedWrite { by: words.take("by")? },
            Family::LostWrite => Self::LostWrite,
            Family::Short => Self::Short { sectors: words.take("sectors")? },
            Family::Duplicate => Self::Duplicate { after_us: words.take("after_us")? },
            Family::FailedFlush => Self::FailedFlush { forgets: words.take::<u8>("forgets")? > 0 },
            Family::LyingFlush => Self::LyingFlush,
            Family::Stall | Family::Throttle | Family::PowerLoss => {
                return Err(BadFault::Name(words.family.name().into()));
            }
        };
        words.end(fault)
    }
}

impl FromStr for TimedFault {
    type Err = BadFault;

    fn from_str(text: &str) -> Result<Self, BadFault> {
        let mut words = Words::new(text)?;
        let fault = match words.family {
            Family::Stall => Self::Stall { us: words.take("us")? },
            Family::Throttle => {
                Self::Throttle { us: words.take("us")?, every_us: words.take("every_us")? }
            }
            Family::PowerLoss => Self::PowerLoss,
            other => return Err(BadFault::Name(other.name().into())),
        };
        words.end(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::{Component, Ratio, Stream};
    use crate::disk::faults::{draw, draw_timed};

    #[test]
    fn faults_read_as_they_are_written() {
        let mut s = Stream::new(4, Component::Action);
        for _ in 0..50 {
            for (_, fault) in draw(&mut s, &Family::ALL, Ratio::new(1, 4), 100) {
                assert_eq!(fault.to_string().parse(), Ok(fault));
            }
            for (_, fault) in draw_timed(&mut s, &Family::ALL, Ratio::new(1, 4), 100) {
                assert_eq!(fault.to_string().parse(), Ok(fault));
            }
        }
        assert_eq!("corrupt  at 3 bit 9".parse(), Ok(DiskFault::Corrupt { at: 3, bit: 9 }));
    }

    #[test]
    fn faults_that_are_none_are_named() {
        let parse = |text: &str| text.parse::<DiskFault>().unwrap_err().to_string();
        assert_eq!(parse("cosmic"), "expected the name of a disk fault, got \"cosmic\"");
        assert_eq!(
            parse("corrupt at 3 bits 9"),
            "corrupt: expected bit and a number, got \"bits 9\""
        );
        assert_eq!(
            parse("read-error at -1"),
            "read-error: expected at and a number, got \"at -1\""
        );
        assert_eq!(parse("lost-write at"), "lost-write: expected no more words, got \"at\"");
        assert!("stall us 3".parse::<DiskFault>().is_err());
        assert!("short sectors 3".parse::<TimedFault>().is_err());
    }
}
