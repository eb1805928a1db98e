//! Smaller numbers in actions.

use super::Shrinker;
use crate::scenario::{Action, Fate, KillAt, Migrate, Request, Successor, Trouble};
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
        Action::Kill { at, next } => plainer_kill(at, next),
        Action::Sabotage { .. } | Action::Kick { .. } => Vec::new(),
        Action::Control { after, what } => {
            smaller(after).into_iter().map(|after| Action::Control { after, what }).collect()
        }
        Action::Pause { after } => {
            smaller(after).into_iter().map(|after| Action::Pause { after }).collect()
        }
        Action::Connection { after, trouble } => {
            let earlier = smaller(after).into_iter();
            let mut plainer: Vec<_> =
                earlier.map(|after| Action::Connection { after, trouble }).collect();
            let shorter = match trouble {
                Trouble::Break { lag, back_first } => {
                    let lags = smaller(lag).into_iter();
                    lags.map(|lag| Trouble::Break { lag, back_first }).collect::<Vec<_>>()
                }
                Trouble::Stall { us } => {
                    smaller(us).into_iter().map(|us| Trouble::Stall { us }).collect()
                }
                Trouble::Gone { us } => {
                    smaller(us).into_iter().map(|us| Trouble::Gone { us }).collect()
                }
            };
            plainer
                .extend(shorter.into_iter().map(|trouble| Action::Connection { after, trouble }));
            plainer
        }
        Action::Fault { nth, fault } => {
            let milder = fault.milder(smaller).into_iter();
            let earlier = smaller(nth).into_iter().map(|nth| Action::Fault { nth, fault });
            milder.map(|fault| Action::Fault { nth, fault }).chain(earlier).collect()
        }
        Action::TimedFault { after, fault } => {
            let milder = fault.milder(smaller).into_iter();
            let earlier = smaller(after).into_iter();
            let earlier = earlier.map(|after| Action::TimedFault { after, fault });
            milder.map(|fault| Action::TimedFault { after, fault }).chain(earlier).collect()
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

fn plainer_kill(at: KillAt, next: Successor) -> Vec<Action> {
    let earlier: Vec<KillAt> = match at {
        KillAt::Stores(n) => smaller(n).into_iter().map(KillAt::Stores).collect(),
        KillAt::Idle { after } => {
            smaller(after).into_iter().map(|after| KillAt::Idle { after }).collect()
        }
        KillAt::Asked { after } => {
            smaller(after).into_iter().map(|after| KillAt::Asked { after }).collect()
        }
        KillAt::Never => Vec::new(),
    };
    let mut plainer: Vec<_> = earlier.into_iter().map(|at| Action::Kill { at, next }).collect();
    if next != Successor::Same {
        plainer.insert(0, Action::Kill { at, next: Successor::Same });
    }
    plainer
}

fn plainer_request(request: Request) -> Vec<Action> {
    let mut plainer = Vec::new();
    // A request with a range has at least a sector.
    let least = u64::from(!matches!(request.verb, Verb::Flush | Verb::GetId));
    for sectors in smaller(request.sectors).into_iter().filter(|n| *n >= least) {
        plainer.push(Request { sectors, ..request });
    }
    for times in smaller(request.times).into_iter().filter(|n| *n > 0) {
        plainer.push(Request { times, ..request });
    }
    for sector in smaller(request.sector) {
        plainer.push(Request { sector, ..request });
    }
    if request.flags > 0 {
        plainer.push(Request { flags: 0, ..request });
    }
    plainer.into_iter().map(Action::Request).collect()
}
