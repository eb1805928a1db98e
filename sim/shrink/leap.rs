//! A leap to something much smaller.
//!
//! Taking out piece after piece gets stuck where a failure hangs on a chance
//! meeting that any change of the rest upsets. So before that, a few actions
//! are picked and the choices drawn anew, again and again: a meeting that a
//! long run comes to once, short runs come to as well.

use super::Shrinker;
use crate::choices::{Choices, Component, Ratio, Stream};
use crate::scenario::{Action, KillAt, Migrate, Request, Scenario};
use crate::topology::Ring;

/// Requests to make do with.
const FEW: [u64; 5] = [2, 4, 6, 10, 16];
/// Share of all runs that may be spent on each of them: one in so many.
const SHARE: u64 = 40;
/// Other actions to make do with.
const OTHERS: u64 = 4;

impl Shrinker<'_> {
    pub(super) fn leap(&mut self, round: u64) {
        let requests = self.best.actions.iter().filter(|a| is_request(a)).count() as u64;
        // What is tried next is drawn, but from the same number every time.
        let mut s = Stream::new(round, Component::Action);
        for few in FEW.into_iter().filter(|few| *few < requests) {
            for _ in 0..self.limit / SHARE {
                let actions = self.few_actions(&mut s, few, requests);
                let number = s.below("choices", u64::MAX);
                let choices = Choices::drawn(number);
                let mut candidate = Scenario { actions, choices, ..self.best.clone() };
                self.near_the_wrap(&mut s, few, &mut candidate);
                smaller_ring(&mut s, &mut candidate);
                if self.try_take(candidate) {
                    return;
                }
            }
        }
    }

    /// A stretch of the requests, and some of what else happens.
    fn few_actions(&self, s: &mut Stream, few: u64, requests: u64) -> Vec<Action> {
        let first = s.below("first", requests - few + 1);
        let others = self.best.actions.len() as u64 - requests;
        let (mut request, mut other) = (0, 0);
        let mut keep = |action: &&Action| {
            if is_request(action) {
                request += 1;
                return (first..first + few).contains(&(request - 1));
            }
            other += 1;
            s.below("other", others.max(1)) < OTHERS
        };
        let mut actions: Vec<_> = self.best.actions.iter().filter(&mut keep).copied().collect();
        actions.iter_mut().for_each(|action| sooner(s, action));
        if s.chance("alike", Ratio::new(1, 3)) {
            self.make_alike(s, &mut actions);
        }
        actions
    }

    /// Make every request like one of all there are.
    fn make_alike(&self, s: &mut Stream, actions: &mut [Action]) {
        let requests: Vec<Request> = self.best.actions.iter().filter_map(request).collect();
        let like = *s.pick("like", &requests);
        for action in actions.iter_mut().filter(|action| is_request(action)) {
            *action = Action::Request(like);
        }
    }

    /// Where the indexes wrap later, let them wrap within the few requests.
    fn near_the_wrap(&self, s: &mut Stream, few: u64, candidate: &mut Scenario) {
        if candidate.topology.first_index > 60_000 {
            let before = s.below("before the wrap", few.min(16) + 1) as u16;
            candidate.topology.first_index = 0u16.wrapping_sub(before);
        }
    }
}

/// In a short run, things have to happen sooner.
fn sooner(s: &mut Stream, action: &mut Action) {
    match action {
        Action::Kill { at: KillAt::Stores(n), .. } => *n = s.below("stores", (*n).min(200) + 1),
        Action::Kill { at: KillAt::Idle { after } | KillAt::Asked { after }, .. }
        | Action::Pause { after }
        | Action::Control { after, .. }
        | Action::Connection { after, .. }
        | Action::Migrate(Migrate { after, .. }) => *after = s.below("after", *after + 1),
        _ => {}
    }
}

/// The last entry of a small ring is reached by few requests.
fn smaller_ring(s: &mut Stream, candidate: &mut Scenario) {
    let sizes: [u16; 5] = match candidate.topology.ring {
        Ring::Split => [u16::MAX, u16::MAX, 8, 4, 2],
        Ring::Packed => [u16::MAX, u16::MAX, 8, 5, 3],
    };
    let size = *s.pick("ring", &sizes);
    if size < candidate.topology.ring_size {
        candidate.topology.ring_size = size;
    }
}

fn request(action: &Action) -> Option<Request> {
    match action {
        Action::Request(request) => Some(*request),
        _ => None,
    }
}

fn is_request(action: &Action) -> bool {
    matches!(action, Action::Request(_))
}
