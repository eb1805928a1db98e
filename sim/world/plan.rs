//! What a scenario wants to happen, by who does it.

use crate::guest::Todo;
use crate::scenario::{Action, KillAt, Migrate, Scenario};
use std::collections::VecDeque;

/// See the module.
pub(super) struct Plan {
    /// By vring.
    pub todo: Vec<VecDeque<Todo>>,
    pub kills: VecDeque<KillAt>,
    pub pauses: VecDeque<u64>,
    pub breaks: VecDeque<u64>,
    pub migrations: VecDeque<Migrate>,
}

impl Plan {
    pub fn of(scenario: &Scenario) -> Self {
        let mut plan = Self {
            todo: vec![VecDeque::new(); usize::from(scenario.topology.queues)],
            kills: VecDeque::new(),
            pauses: VecDeque::new(),
            breaks: VecDeque::new(),
            migrations: VecDeque::new(),
        };
        for action in &scenario.actions {
            match *action {
                Action::Request(request) => {
                    plan.todo[usize::from(request.vring)].push_back(Todo::Ask(request));
                }
                Action::Rest { vring, us } => {
                    plan.todo[usize::from(vring)].push_back(Todo::Rest { us });
                }
                Action::Kill(at) => plan.kills.push_back(at),
                Action::Pause { after } => plan.pauses.push_back(after),
                Action::Break { after } => plan.breaks.push_back(after),
                Action::Migrate(migrate) => plan.migrations.push_back(migrate),
            }
        }
        plan
    }
}
