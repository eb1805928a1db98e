//! Whether a world as it is written can exist.

use super::{Action, Control, Scenario, Trouble};
use crate::guest::memory::{SLOTS, slot_len};
use crate::topology::Ring;

/// Vrings the guest has room for.
const MAX_QUEUES: u16 = 4;
/// Entries the simulated device allows a vring.
pub const MAX_RING: u16 = 128;

impl Scenario {
    /// Whether such a world can exist.
    pub fn is_possible(&self) -> bool {
        self.check().is_ok()
    }

    /// Refuse what has no meaning.
    ///
    /// # Errors
    /// In words: what was expected and what came.
    pub fn check(&self) -> Result<(), String> {
        let t = &self.topology;
        let within = |name: &str, value: u64, least: u64, most: u64| match value {
            v if (least..=most).contains(&v) => Ok(()),
            v => Err(format!("{name}: expected {least} to {most}, got {v}")),
        };
        within("queues", t.queues.into(), 1, MAX_QUEUES.into())?;
        within("ring_size", t.ring_size.into(), 2, MAX_RING.into())?;
        within("region_size", t.region_size.into(), t.ring_size.into(), MAX_RING.into())?;
        within("sectors", t.sectors, 1, 1 << 16)?;
        within("depth", t.depth, 1, 1 << 10)?;
        within("batch", t.batch, 1, 1 << 10)?;
        within("max_sectors", t.max_sectors, 1, t.sectors.min(128))?;
        within("gather", t.gather, 0, 1_000_000)?;
        for (name, size) in [("ring_size", t.ring_size), ("region_size", t.region_size)] {
            if t.ring == Ring::Split && !size.is_power_of_two() {
                return Err(format!("{name}: expected a power of two, got {size}"));
            }
        }
        let slots = t.depth.min(t.ring_size.into()) * u64::from(t.queues);
        within("bytes of all requests at once", slots * slot_len(t.max_sectors), 1, SLOTS)?;
        if let Some(m) = &t.migration {
            within("migration.grace", m.grace, 0, 1_000_000)?;
            within("migration.cancel", m.cancel.unwrap_or(0), 0, 1_000_000)?;
            within("migration.page_ns", m.page_ns, 1, 1_000_000)?;
            within("migration.latency", m.latency, 1, 1_000_000)?;
            within("migration.rounds", m.rounds, 1, 1_000)?;
        }
        self.actions.iter().try_for_each(|action| self.check_action(action))
    }

    fn check_action(&self, action: &Action) -> Result<(), String> {
        let t = &self.topology;
        let fits = match *action {
            Action::Request(r) => {
                r.vring < t.queues && r.sectors <= t.max_sectors && (1..=10_000).contains(&r.times)
            }
            Action::Sabotage { vring, .. } | Action::Kick { vring, .. } => vring < t.queues,
            Action::Rest { vring, us } => vring < t.queues && us <= 10_000_000,
            Action::Migrate(m) => t.migration.is_some() && m.after <= 10_000_000,
            Action::Pause { after } => after <= 10_000_000,
            Action::Connection { after, trouble } => {
                let us = match trouble {
                    Trouble::Break { lag: us, .. } | Trouble::Stall { us } => us,
                    Trouble::Gone { us } => us,
                };
                after <= 10_000_000 && us <= 1_000_000
            }
            Action::Control { after, what } => {
                let us = if let Control::Disable { us, .. } = what { us } else { 0 };
                let vring = if let Control::Cache(_) = what { 0 } else { what.code().1 };
                vring < t.queues && after <= 10_000_000 && us <= 1_000_000
            }
            Action::TimedFault { after, fault } => {
                after <= 10_000_000 && fault.lasts() <= 1_000_000
            }
            Action::Fault { .. } | Action::Kill { .. } => true,
        };
        if fits {
            return Ok(());
        }
        Err(format!(
            "{action}: does not fit {} vrings, requests of up to {} sectors{}",
            t.queues,
            t.max_sectors,
            if t.migration.is_some() { "" } else { ", one host" }
        ))
    }
}
