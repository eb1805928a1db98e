//! Requests that are all the same are one action.

use super::Shrinker;
use crate::scenario::{Action, Request, Scenario};

impl Shrinker<'_> {
    pub(super) fn alike(&mut self) {
        let first = self.best.actions.iter().find_map(|action| match action {
            Action::Request(request) => Some(*request),
            _ => None,
        });
        let Some(first) = first else { return };
        let mut actions = self.best.actions.clone();
        for action in &mut actions {
            if let Action::Request(request) = action {
                *request = Request { times: request.times, ..first };
            }
        }
        self.try_take_redrawn(Scenario { actions: joined(&actions), ..self.best.clone() });
        let actions = joined(&self.best.actions);
        self.try_take(Scenario { actions, ..self.best.clone() });
    }
}

/// Requests that follow each other and are the same, made one. Other actions
/// stand in a line of their own, so they are not in the way.
fn joined(actions: &[Action]) -> Vec<Action> {
    let mut out: Vec<Action> = Vec::new();
    for action in actions {
        if let (Some(Action::Request(last)), Action::Request(next)) = (out.last_mut(), action)
            && (Request { times: 1, ..*last }) == (Request { times: 1, ..*next })
        {
            last.times += next.times;
        } else {
            out.push(*action);
        }
    }
    out
}
