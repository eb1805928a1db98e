//! Milder faults, for who makes a failing run small.

use super::{DiskFault, TimedFault};

impl DiskFault {
    /// The same with one number made smaller, by `smaller`.
    pub fn milder(self, smaller: impl Fn(u64) -> Vec<u64>) -> Vec<Self> {
        let of = |n: u32| smaller(n.into()).into_iter().map(|n| n as u32);
        match self {
            Self::ReadError { at } => of(at).map(|at| Self::ReadError { at }).collect(),
            Self::WriteError { at } => of(at).map(|at| Self::WriteError { at }).collect(),
            Self::Corrupt { at, bit } => {
                let sectors = of(at).map(|at| Self::Corrupt { at, bit });
                sectors.chain(of(bit).map(|bit| Self::Corrupt { at, bit })).collect()
            }
            Self::MisdirectedRead { by } => {
                smaller(by).into_iter().map(|by| Self::MisdirectedRead { by }).collect()
            }
            Self::MisdirectedWrite { by } => {
                smaller(by).into_iter().map(|by| Self::MisdirectedWrite { by }).collect()
            }
            Self::Short { sectors } => of(sectors).map(|sectors| Self::Short { sectors }).collect(),
            Self::Duplicate { after_us } => {
                of(after_us).map(|after_us| Self::Duplicate { after_us }).collect()
            }
            Self::FailedFlush { forgets: true } => vec![Self::FailedFlush { forgets: false }],
            Self::FailedFlush { forgets: false } | Self::LostWrite | Self::LyingFlush => Vec::new(),
        }
    }
}

impl TimedFault {
    /// The same with one number made smaller, by `smaller`.
    pub fn milder(self, smaller: impl Fn(u64) -> Vec<u64>) -> Vec<Self> {
        let of = |n: u32| smaller(n.into()).into_iter().map(|n| n as u32);
        match self {
            Self::Stall { us } => of(us).map(|us| Self::Stall { us }).collect(),
            Self::Throttle { us, every_us } => {
                let shorter = of(us).map(|us| Self::Throttle { us, every_us });
                shorter
                    .chain(of(every_us).map(|every_us| Self::Throttle { us, every_us }))
                    .collect()
            }
            Self::PowerLoss => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_get_milder_until_nothing_is_left() {
        let less = |n: u64| n.checked_sub(1).into_iter().collect::<Vec<_>>();
        let corrupt = DiskFault::Corrupt { at: 1, bit: 2 };
        let milder = [DiskFault::Corrupt { at: 0, bit: 2 }, DiskFault::Corrupt { at: 1, bit: 1 }];
        assert_eq!(corrupt.milder(less), milder);
        assert!(DiskFault::Short { sectors: 0 }.milder(less).is_empty());
        let throttle = TimedFault::Throttle { us: 0, every_us: 1 };
        assert_eq!(throttle.milder(less), [TimedFault::Throttle { us: 0, every_us: 0 }]);
    }
}
