//! What a scenario wants to happen, by who does it.

use crate::disk::faults::FaultPlan;
use crate::guest::Todo;
use crate::scenario::{Action, Control, KillAt, Migrate, Scenario, Successor, Trouble};
use std::collections::VecDeque;

/// See the module.
pub(super) struct Plan {
    /// By vring.
    pub todo: Vec<VecDeque<Todo>>,
    pub kills: VecDeque<(KillAt, Successor)>,
    pub pauses: VecDeque<u64>,
    /// Microseconds after the vrings run, and what happens then.
    pub troubles: VecDeque<(u64, Trouble)>,
    pub controls: VecDeque<(u64, Control)>,
    pub migrations: VecDeque<Migrate>,
    pub faults: FaultPlan,
}

impl Plan {
    pub fn of(scenario: &Scenario) -> Self {
        let mut plan = Self {
            todo: vec![VecDeque::new(); usize::from(scenario.topology.queues)],
            kills: VecDeque::new(),
            pauses: VecDeque::new(),
            troubles: VecDeque::new(),
            controls: VecDeque::new(),
            migrations: VecDeque::new(),
            faults: FaultPlan::default(),
        };
        let (mut on, mut at) = (Vec::new(), Vec::new());
        for action in &scenario.actions {
            match *action {
                Action::Request(request) => {
                    let todo = &mut plan.todo[usize::from(request.vring)];
                    todo.extend((0..request.times).map(|_| Todo::Ask(request)));
                }
                Action::Rest { vring, us } => {
                    plan.todo[usize::from(vring)].push_back(Todo::Rest { us });
                }
                Action::Sabotage { vring, how } => {
                    plan.todo[usize::from(vring)].push_back(Todo::Sabotage(how));
                }
                Action::Kick { vring, lost } => {
                    let kick = if lost { Todo::LoseKick } else { Todo::ExtraKick };
                    plan.todo[usize::from(vring)].push_back(kick);
                }
                Action::Kill { at, next } => plan.kills.push_back((at, next)),
                Action::Pause { after } => plan.pauses.push_back(after),
                Action::Connection { after, trouble } => plan.troubles.push_back((after, trouble)),
                Action::Control { after, what } => plan.controls.push_back((after, what)),
                Action::Migrate(migrate) => plan.migrations.push_back(migrate),
                Action::Fault { nth, fault } => on.push((nth, fault)),
                Action::TimedFault { after, fault } => at.push((after, fault)),
            }
        }
        plan.faults = FaultPlan::new(on, at);
        plan
    }

    /// The guest turns its write cache on or off.
    pub fn turns_cache(&self) -> bool {
        self.controls.iter().any(|(_, what)| matches!(what, Control::Cache(_)))
    }
}
