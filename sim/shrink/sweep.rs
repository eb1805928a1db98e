//! A kill, swept through a short run.
//!
//! Where a failure hangs on the store at which a back-end dies, a short run has
//! such a store too, only elsewhere.

use super::Shrinker;
use crate::choices::Choices;
use crate::scenario::{Action, KillAt, Scenario};

/// Stores at which the kill is tried.
const STORES: u64 = 90;
/// Requests to make do with.
const FEW: [usize; 3] = [1, 2, 4];

impl Shrinker<'_> {
    pub(super) fn sweep(&mut self) {
        let kills = |action: &Action| matches!(action, Action::Kill { at: KillAt::Stores(_), .. });
        let Some(kill) = self.best.actions.iter().position(kills) else { return };
        for few in FEW {
            let mut actions = self.best.actions.clone();
            let (mut requests, mut migrations, mut at) = (0, 0, 0);
            actions.retain(|action| {
                at += 1;
                match action {
                    Action::Request(_) => {
                        requests += 1;
                        requests <= few
                    }
                    Action::Migrate(_) => {
                        migrations += 1;
                        migrations <= 1
                    }
                    Action::Kill { .. } => at - 1 == kill,
                    _ => false,
                }
            });
            for choices in [Choices::calm(), Choices::drawn(0)] {
                let candidate = Scenario { actions: actions.clone(), choices, ..self.best.clone() };
                if self.sweep_kill(&candidate) {
                    return;
                }
            }
        }
    }

    fn sweep_kill(&mut self, scenario: &Scenario) -> bool {
        (0..STORES).any(|n| {
            let mut candidate = scenario.clone();
            for action in &mut candidate.actions {
                if let Action::Kill { at, .. } = action {
                    *at = KillAt::Stores(n);
                }
            }
            self.try_take(candidate)
        })
    }
}
