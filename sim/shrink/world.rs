//! A plainer world.

use super::Shrinker;
use crate::scenario::{Action, Scenario};
use crate::topology::{Migration, Ring, Topology};

impl Shrinker<'_> {
    pub(super) fn plainer_world(&mut self) {
        self.one_vring();
        self.one_host();
        self.split_ring();
        // Setting by setting, as the plainest world has it.
        for (key, value) in Topology::plain().entries() {
            if key != "queues" && key != "migration" && key != "max_sectors" {
                self.setting(key, &value);
            }
        }
        for value in [2, 3, 4, 5, 8] {
            self.setting("ring_size", &value.to_string());
        }
        if self.best.topology.first_index > 0 {
            // An index that has to wrap had better do so at once.
            let size = self.best.topology.ring_size;
            for value in [65_535, 65_533, 65_529, 65_521, size - 1, size.saturating_sub(3)] {
                self.setting("first_index", &u16::to_string(&value));
            }
        }
        self.setting("region_size", &self.best.topology.ring_size.to_string());
        for value in [1, 2, 4] {
            self.setting("depth", &value.to_string());
        }
        let least = self.best.actions.iter().map(|action| match action {
            Action::Request(request) => request.sectors,
            _ => 1,
        });
        let least = least.max().unwrap_or(1);
        self.setting("max_sectors", &least.to_string());
        if self.best.topology.migration.is_some() {
            for (key, value) in Migration::default().entries() {
                self.setting(&format!("migration.{key}"), &value);
            }
        }
    }

    fn setting(&mut self, key: &str, value: &str) {
        let mut candidate = self.best.clone();
        if candidate.topology.change(key, value).is_ok() && candidate.is_possible() {
            self.try_take_redrawn(candidate);
        }
    }

    /// Everything on one vring, or on those that are used.
    fn one_vring(&mut self) {
        if self.best.topology.queues == 1 {
            return;
        }
        for queues in 1..self.best.topology.queues {
            let mut candidate = self.best.clone();
            candidate.topology.queues = queues;
            for action in &mut candidate.actions {
                match action {
                    Action::Request(request) => request.vring = request.vring.min(queues - 1),
                    Action::Rest { vring, .. }
                    | Action::Sabotage { vring, .. }
                    | Action::Kick { vring, .. } => *vring = (*vring).min(queues - 1),
                    _ => {}
                }
            }
            if self.try_take_redrawn(candidate) {
                return;
            }
        }
    }

    /// A split ring may have none of the sizes that a packed one may have.
    fn split_ring(&mut self) {
        if self.best.topology.ring == Ring::Packed {
            let Topology { ring, ring_size, region_size, .. } = Topology::plain();
            let topology = Topology { ring, ring_size, region_size, ..self.best.topology.clone() };
            self.try_take_redrawn(Scenario { topology, ..self.best.clone() });
        }
    }

    fn one_host(&mut self) {
        let migrates = |action: &Action| matches!(action, Action::Migrate(_));
        if self.best.topology.migration.is_some() && !self.best.actions.iter().any(migrates) {
            let topology = Topology { migration: None, ..self.best.topology.clone() };
            self.try_take_redrawn(Scenario { topology, ..self.best.clone() });
        }
    }
}
