//! Every fault of a run, in order.

use super::{Among, DiskFault, Family, TimedFault};
use crate::trace::Verb;

/// Faults by the request they strike with, and by time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Ordinal among the requests that the fault is counted by.
    on: Vec<(u64, DiskFault)>,
    /// Microseconds from the start of the run.
    at: Vec<(u64, TimedFault)>,
}

impl FaultPlan {
    /// A plan in any order. Of faults that fall on the same request, the first
    /// strikes and the others come with the requests after it.
    pub fn new(mut on: Vec<(u64, DiskFault)>, mut at: Vec<(u64, TimedFault)>) -> Self {
        on.sort_by_key(|(ordinal, _)| *ordinal);
        at.sort_by_key(|(us, _)| *us);
        Self { on, at }
    }

    /// Whether nothing is planned.
    pub fn is_empty(&self) -> bool {
        self.on.is_empty() && self.at.is_empty()
    }

    /// Faults that strike with a request, by ordinal.
    pub fn on_requests(&self) -> &[(u64, DiskFault)] {
        &self.on
    }

    /// Faults that strike at a time, in microseconds.
    pub fn at_times(&self) -> &[(u64, TimedFault)] {
        &self.at
    }

    /// When power is lost, in microseconds.
    pub fn power_losses(&self) -> impl Iterator<Item = u64> {
        self.at.iter().filter(|(_, fault)| *fault == TimedFault::PowerLoss).map(|(us, _)| *us)
    }

    /// The plan without some families, to find out which one matters: nothing
    /// else of the run moves by it but what the fault itself moved.
    #[must_use]
    pub fn without(mut self, switched_off: impl Fn(Family) -> bool) -> Self {
        self.on.retain(|(_, fault)| !switched_off(fault.family()));
        self.at.retain(|(_, fault)| !switched_off(fault.family()));
        self
    }
}

/// A plan while it is carried out.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// By [`Among`]: what is left, the next one last.
    left: [Vec<(u64, DiskFault)>; 4],
    /// By [`Among`]: requests so far.
    seen: [u64; 4],
}

impl Cursor {
    pub fn new(plan: &FaultPlan) -> Self {
        let mut cursor = Self::default();
        for (ordinal, fault) in plan.on.iter().rev() {
            cursor.left[fault.among() as usize].push((*ordinal, *fault));
        }
        cursor
    }

    /// The fault that strikes with the next request.
    pub fn next(&mut self, verb: Verb) -> Option<DiskFault> {
        let kind = match verb {
            Verb::Read => Some(Among::Reads),
            Verb::Write => Some(Among::Writes),
            Verb::Flush => Some(Among::Flushes),
            Verb::Discard | Verb::WriteZeroes | Verb::GetId | Verb::Unknown => None,
        };
        let mut due = None;
        for among in kind.into_iter().chain([Among::All]).map(|among| among as usize) {
            let ordinal = self.seen[among];
            self.seen[among] += 1;
            let next = self.left[among].last().filter(|(at, _)| *at <= ordinal);
            if due.is_none() && next.is_some() {
                due = self.left[among].pop().map(|(_, fault)| fault);
            }
        }
        due
    }

    /// No more faults.
    pub fn clear(&mut self) {
        self.left = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_counted_by_the_requests_they_are_for_and_wait_for_one_another() {
        let plan = FaultPlan::new(
            vec![
                (2, DiskFault::Short { sectors: 1 }),
                (1, DiskFault::LostWrite),
                (0, DiskFault::ReadError { at: 0 }),
                (0, DiskFault::Corrupt { at: 0, bit: 0 }),
            ],
            Vec::new(),
        );
        let mut cursor = Cursor::new(&plan);
        assert_eq!(cursor.next(Verb::Write), None);
        assert_eq!(cursor.next(Verb::Read), Some(DiskFault::ReadError { at: 0 }));
        // The third of all is a read with a fault of its own, so another waits.
        assert_eq!(cursor.next(Verb::Read), Some(DiskFault::Corrupt { at: 0, bit: 0 }));
        assert_eq!(cursor.next(Verb::Discard), Some(DiskFault::Short { sectors: 1 }));
        assert_eq!(cursor.next(Verb::Write), Some(DiskFault::LostWrite));
        assert_eq!(cursor.next(Verb::Flush), None);
    }

    #[test]
    fn faults_can_be_switched_off_one_family_at_a_time() {
        let on = vec![(3, DiskFault::LostWrite), (4, DiskFault::LyingFlush)];
        let plan = FaultPlan::new(on, vec![(7, TimedFault::PowerLoss)]);
        let quiet = plan.clone().without(|family| family == Family::LostWrite);
        assert_eq!(quiet.on_requests(), [(4, DiskFault::LyingFlush)]);
        assert_eq!(quiet.at_times(), plan.at_times());
        assert!(plan.without(|_| true).is_empty());
    }
}
