//! Smaller numbers in actions.

use super::Shrinker;
use crate::scenario::{Action, Fate, KillAt, Migrate, Request};
use crate::trace::Verb;

impl Shrinker<'_> {
    pub(super) fn smaller_numbers(&mut self) {
        for at in 0..self.best.actions.len() {
            // Each success opens the way to an even smaller one.
            while plainer(self.best.actions[at]).into_iter().any(|action| {
                let mut candidate = self.best.clone();
                candidate.actions[at] = action;
                self.try_take(candidate)
            }) {}
        }
    }
}

/// Values to try instead, the smallest first.
fn smaller(value: u64) -> Vec<u64> {
    let mut values = vec![0, 1, value / 2, value.saturating_sub(1)];
    values.retain(|v| *v < value);
    values.dedup();
    values
}

/// Plainer actions to try instead.
fn plainer(action: Action) -> Vec<Action> {
    match action {
        Action::Request(request) => plainer_request(request),
        Action::Rest { vring, us } => {
            smaller(us).into_iter().map(|us| Action::Rest { vring, us }).collect()
        }
        Action::Kill(KillAt::Stores(n)) => {
            smaller(n).into_iter().map(|n| Action::Kill(KillAt::Stores(n))).collect()
        }
        Action::Kill(KillAt::Idle { after }) => {
            let earlier = smaller(after).into_iter();
            earlier.map(|after| Action::Kill(KillAt::Idle { after })).collect()
        }
        Action::Kill(KillAt::Asked { after }) => {
            let earlier = smaller(after).into_iter();
            earlier.map(|after| Action::Kill(KillAt::Asked { after })).collect()
        }
        Action::Kill(KillAt::Never) => Vec::new(),
        Action::Pause { after } => {
            smaller(after).into_iter().map(|after| Action::Pause { after }).collect()
        }
        Action::Break { after } => {
            smaller(after).into_iter().map(|after| Action::Break { after }).collect()
        }
        Action::Migrate(migrate) => {
            let earlier = smaller(migrate.after).into_iter();
            let mut plainer: Vec<_> =
                earlier.map(|after| Action::Migrate(Migrate { after, ..migrate })).collect();
            if migrate.fate != Fate::Completes {
                plainer.insert(0, Action::Migrate(Migrate { fate: Fate::Completes, ..migrate }));
            }
            plainer
        }
    }
}

fn plainer_request(request: Request) -> Vec<Action> {
    let mut plainer = Vec::new();
    // A request with a range has at least a sector.
    let least = u64::from(!matches!(request.verb, Verb::Flush | Verb::GetId));
    for sectors in smaller(request.sectors).into_iter().filter(|n| *n >= least) {
        plainer.push(Request { sectors, ..request });
    }
    for sector in smaller(request.sector) {
        plainer.push(Request { sector, ..request });
    }
    if request.flags > 0 {
        plainer.push(Request { flags: 0, ..request });
    }
    plainer.into_iter().map(Action::Request).collect()
}
