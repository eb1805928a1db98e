//! Which of the seeds of a report are done.

use serde::{Deserialize, Serialize};

/// Positions from 0, as ranges in rising order that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// From `first` to before `end`.
    pub fn of(first: u64, end: u64) -> Self {
        Self(if first < end { vec![(first, end)] } else { Vec::new() })
    }

    /// How many positions.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(first, end)| end - first).sum()
    }

    /// Add the positions from `first` to before `end`.
    pub fn add(&mut self, first: u64, end: u64) {
        self.0.extend(Self::of(first, end).0);
        self.0.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (first, end) in self.0.drain(..) {
            match joined.last_mut() {
                Some(last) if first <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((first, end)),
            }
        }
        self.0 = joined;
    }

    /// What is not in it of the positions below `end`.
    pub fn missing(&self, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for (first, next) in self.0.iter().copied().chain([(end, end)]) {
            if at < first {
                gaps.push((at, first));
            }
            at = at.max(next);
        }
        gaps
    }

    /// Whether the ranges rise, do not touch and end at `end` at the latest.
    pub fn are_sound(&self, end: u64) -> bool {
        let rise = self.0.windows(2).all(|w| w[0].1 < w[1].0);
        rise && self.0.iter().all(|(first, next)| first < next && *next <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_where_they_meet() {
        let mut done = Ranges::default();
        done.add(4, 6);
        done.add(0, 2);
        done.add(3, 3);
        assert_eq!(done, Ranges(vec![(0, 2), (4, 6)]));
        assert_eq!(done.missing(9), [(2, 4), (6, 9)]);
        done.add(2, 4);
        assert_eq!(done, Ranges::of(0, 6));
        assert_eq!((done.count(), done.missing(6)), (6, vec![]));
    }

    #[test]
    fn ranges_that_no_report_can_have_are_noticed() {
        assert!(Ranges::of(0, 6).are_sound(6));
        assert!(!Ranges::of(0, 6).are_sound(5));
        assert!(!Ranges(vec![(3, 2)]).are_sound(9));
        assert!(!Ranges(vec![(0, 4), (3, 6)]).are_sound(9));
    }
}
