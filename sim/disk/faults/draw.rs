//! The swarm draw: first which families exist in a run, then how strong each is,
//! then where each fault falls. Zeroes all the way are a flawless disk.

use super::{DiskFault, Family, TimedFault};
use crate::choices::{Ratio, Stream};

impl Family {
    /// What a profile that asks for nothing by name may draw: a flush that lies
    /// breaks the one promise that a guest has.
    pub const DRAWN: [Self; 12] = [
        Self::ReadError,
        Self::WriteError,
        Self::Corrupt,
        Self::MisdirectedRead,
        Self::MisdirectedWrite,
        Self::LostWrite,
        Self::Short,
        Self::Duplicate,
        Self::FailedFlush,
        Self::Stall,
        Self::Throttle,
        Self::PowerLoss,
    ];
}

/// Draw faults for a run in which the disk is asked for about `requests`. A
/// family that exists has at most `strength` of these requests, at least one.
pub fn draw(
    s: &mut Stream,
    families: &[Family],
    strength: Ratio,
    requests: u64,
) -> Vec<(u64, DiskFault)> {
    let mut drawn = Vec::new();
    for family in families {
        let (count, requests) = match family {
            Family::Stall | Family::Throttle | Family::PowerLoss => continue,
            // Half as many reads or writes as requests, and an eighth of flushes.
            Family::Short | Family::Duplicate => (how_many(s, strength, requests), requests),
            Family::FailedFlush | Family::LyingFlush => {
                (how_many(s, strength, requests), requests / 8)
            }
            _ => (how_many(s, strength, requests), requests / 2),
        };
        for _ in 0..count {
            let ordinal = s.below("fault.nth", requests);
            let at = s.below("fault.at", 16) as u32;
            let fault = match family {
                Family::ReadError => DiskFault::ReadError { at },
                Family::WriteError => DiskFault::WriteError { at },
                Family::Corrupt => {
                    DiskFault::Corrupt { at, bit: s.below("fault.bit", 4096) as u32 }
                }
                Family::MisdirectedRead => {
                    DiskFault::MisdirectedRead { by: s.below("fault.by", 40) }
                }
                Family::MisdirectedWrite => {
                    DiskFault::MisdirectedWrite { by: s.below("fault.by", 40) }
                }
                Family::LostWrite => DiskFault::LostWrite,
                Family::Short => DiskFault::Short { sectors: at },
                Family::Duplicate => {
                    DiskFault::Duplicate { after_us: s.below("fault.again", 300) as u32 }
                }
                Family::FailedFlush => {
                    DiskFault::FailedFlush { forgets: s.below("fault.forgets", 2) > 0 }
                }
                Family::LyingFlush => DiskFault::LyingFlush,
                Family::Stall | Family::Throttle | Family::PowerLoss => continue,
            };
            drawn.push((ordinal, fault));
        }
    }
    drawn.sort_by_key(|(ordinal, _)| *ordinal);
    drawn
}

/// Draw stalls, throttles and losses of power for a run of about `span` microseconds.
/// A family that exists comes at most four times.
pub fn draw_timed(
    s: &mut Stream,
    families: &[Family],
    strength: Ratio,
    span: u64,
) -> Vec<(u64, TimedFault)> {
    let mut drawn = Vec::new();
    for family in families {
        if !matches!(family, Family::Stall | Family::Throttle | Family::PowerLoss) {
            continue;
        }
        for _ in 0..how_many(s, strength, 4) {
            let at = s.below("fault.when", span);
            let us = s.below("fault.us", 1 + span / 8) as u32;
            let fault = match family {
                Family::Stall => TimedFault::Stall { us },
                Family::Throttle => {
                    TimedFault::Throttle { us, every_us: s.below("fault.every", 100) as u32 }
                }
                _ => TimedFault::PowerLoss,
            };
            drawn.push((at, fault));
        }
    }
    drawn.sort_by_key(|(at, _)| *at);
    drawn
}

/// Whether a family exists, and how many faults of it there are.
fn how_many(s: &mut Stream, strength: Ratio, requests: u64) -> u64 {
    if strength.num == 0 || s.below("fault.exists", 2) == 0 {
        return 0;
    }
    s.range("fault.count", 1, (requests * strength.num / strength.den.max(1)).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Component;

    #[test]
    fn faults_draw_quiet_disks_and_every_family_but_the_lie() {
        let mut s = Stream::new(1, Component::Action);
        let mut seen = std::collections::BTreeSet::new();
        let mut quiet = 0;
        for _ in 0..2_000 {
            let on = draw(&mut s, &Family::DRAWN, Ratio::new(1, 20), 100);
            let at = draw_timed(&mut s, &Family::DRAWN, Ratio::new(1, 2), 5_000);
            assert!(on.is_sorted_by_key(|(n, _)| *n) && at.is_sorted_by_key(|(us, _)| *us));
            assert!(on.iter().all(|(n, _)| *n < 100) && at.iter().all(|(us, _)| *us < 5_000));
            quiet += u64::from(on.is_empty());
            seen.extend(on.iter().map(|(_, fault)| fault.family()));
            seen.extend(at.iter().map(|(_, fault)| fault.family()));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), Family::DRAWN);
        assert!((1..40).contains(&quiet), "{quiet} of 2000 have no fault, expected 1/512");
        let lies = draw(&mut s, &[Family::LyingFlush], Ratio::new(1, 1), 100);
        assert!(lies.iter().all(|(n, fault)| *n < 12 && *fault == DiskFault::LyingFlush));
    }

    #[test]
    fn faults_of_no_strength_are_none() {
        let mut s = Stream::new(1, Component::Action);
        assert!(draw(&mut s, &Family::ALL, Ratio::NEVER, 100).is_empty());
        assert!(draw_timed(&mut s, &Family::ALL, Ratio::NEVER, 100).is_empty());
        assert_eq!(s.count(), 0);
    }
}
