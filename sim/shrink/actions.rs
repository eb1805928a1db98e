//! Fewer actions.

use super::{Shrinker, without};
use crate::scenario::{Action, Scenario};

/// What is taken out as a whole before single actions are.
const FAMILIES: [fn(&Action) -> bool; 8] = [
    |action| matches!(action, Action::Kill { .. }),
    |action| matches!(action, Action::Pause { .. } | Action::Connection { .. }),
    |action| matches!(action, Action::Control { .. }),
    |action| matches!(action, Action::Migrate(_)),
    |action| matches!(action, Action::Fault { .. } | Action::TimedFault { .. }),
    |action| matches!(action, Action::Rest { .. }),
    |action| matches!(action, Action::Sabotage { .. } | Action::Kick { .. }),
    |action| !matches!(action, Action::Request(_)),
];

impl Shrinker<'_> {
    pub(super) fn fewer_actions(&mut self) {
        for family in FAMILIES {
            let mut actions = self.best.actions.clone();
            actions.retain(|action| !family(action));
            self.try_take_redrawn(Scenario { actions, ..self.best.clone() });
        }
        without(self.best.actions.len(), |range| {
            let mut actions = self.best.actions.clone();
            actions.drain(range);
            self.try_take_redrawn(Scenario { actions, ..self.best.clone() })
        });
    }
}
