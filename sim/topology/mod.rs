//! What holds for a whole run: sizes, features, and how the world behaves.

mod migration;
mod ring;

use crate::choices::Ratio;
use crate::disk::Pace;
use crate::settings::{Value, settings};
pub use migration::{Migration, Policy};
pub use ring::Ring;

settings! {
    /// See the module.
    pub struct Topology {
        /// How vrings are laid out.
        ring: Ring,
        /// Vrings.
        queues: u16,
        /// Entries of each vring.
        ring_size: u16,
        /// Entries the inflight region has for each vring; a driver may have
        /// chosen a smaller ring than the device has.
        region_size: u16,
        /// How far every vring has come at the start, all of it used: an earlier
        /// life that left no inflight region, such as a migration without one.
        first_index: u16,
        /// `VIRTIO_F_EVENT_IDX`.
        event_idx: bool,
        /// `VIRTIO_F_INDIRECT_DESC`.
        indirect: bool,
        /// `VIRTIO_F_IN_ORDER`; drawn by no seed, to be set.
        in_order: bool,
        /// The guest accepts FLUSH; without it every write is durable.
        flush: bool,
        /// Protocol feature REPLY_ACK.
        reply_ack: bool,
        /// Protocol feature CONFIGURE_MEM_SLOTS.
        mem_slots: bool,
        /// Vrings have no kick descriptor, the back-end polls.
        polled: bool,
        /// The front-end kicks every vring when they run, so that a back-end
        /// that does not look by itself would get along.
        first_kick: bool,
        /// Size of the disk in sectors of 512 bytes.
        sectors: u64,
        /// Speed of the disk.
        pace: Pace,
        /// Requests that the disk fails.
        disk_errors: Ratio,
        /// Microseconds for which the back-end leaves finished requests lying
        /// at most, so that batches gather.
        gather: u64,
        /// Most requests outstanding on one vring.
        depth: u64,
        /// Most requests made available by one store of the available index.
        batch: u64,
        /// Most sectors of one request.
        max_sectors: u64,
        /// Messages that arrive in pieces.
        split: Ratio,
        /// Steps of the back-end in which the guest acts between two stores.
        races: Ratio,
        /// How the guest moves to another host; none: there is one host.
        migration: Option<Migration>,
    }
}

impl Value for Option<Migration> {
    const EXPECTED: &'static str =
        "none, or the settings of a migration such as policy=suspend grace=20";

    fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(None);
        }
        let mut migration = Migration::default();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=')?;
            migration.set(key, value).ok()?;
        }
        Some(Some(migration))
    }

    fn print(&self) -> String {
        let Some(migration) = self else { return "none".into() };
        let words: Vec<_> =
            migration.entries().iter().map(|(key, value)| format!("{key}={value}")).collect();
        words.join(" ")
    }
}

impl Topology {
    /// The smallest world: one vring, no features, nothing happens by itself.
    pub fn plain() -> Self {
        Self {
            ring: Ring::Split,
            queues: 1,
            ring_size: 16,
            region_size: 16,
            first_index: 0,
            event_idx: false,
            indirect: false,
            in_order: false,
            flush: true,
            reply_ack: true,
            mem_slots: true,
            polled: false,
            first_kick: true,
            sectors: 64,
            pace: Pace::Quick,
            disk_errors: Ratio::NEVER,
            gather: 0,
            depth: 8,
            batch: 1,
            max_sectors: 8,
            split: Ratio::NEVER,
            races: Ratio::NEVER,
            migration: None,
        }
    }

    /// Sizes that were drawn for another layout or for another ring become such
    /// that they fit.
    pub fn fit(&mut self) {
        self.region_size = self.region_size.max(self.ring_size);
        if self.ring == Ring::Split {
            self.ring_size = self.ring_size.next_power_of_two();
            self.region_size = self.region_size.next_power_of_two();
        }
    }

    /// Change a setting by name, or one of the migration as in
    /// `migration.grace`.
    ///
    /// # Errors
    /// If there is none of that name, or the value does not fit.
    pub fn change(&mut self, key: &str, text: &str) -> Result<(), crate::settings::SettingError> {
        match key.strip_prefix("migration.") {
            Some(key) => self.migration.get_or_insert_default().set(key, text),
            None => self.set(key, text),
        }
    }
}

impl core::fmt::Display for Topology {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" };
        writeln!(
            f,
            "rings      {} {} of {} entries (inflight region for {}), first index {}, event index {}, indirect {}",
            self.queues,
            self.ring.name(),
            self.ring_size,
            self.region_size,
            self.first_index,
            switch(self.event_idx),
            switch(self.indirect)
        )?;
        writeln!(
            f,
            "guest      depth {}, batches of up to {}, acts between stores of the back-end {}",
            self.depth, self.batch, self.races
        )?;
        writeln!(
            f,
            "disk       {} sectors, {}, write cache {}, errors {}, completions gather for up to {} us",
            self.sectors,
            self.pace,
            switch(self.flush),
            self.disk_errors,
            self.gather
        )?;
        write!(
            f,
            "session    reply ack {}, memory slots {}, vrings polled {}, first kick {}, messages in pieces {}",
            switch(self.reply_ack),
            switch(self.mem_slots),
            switch(self.polled),
            switch(self.first_kick),
            self.split
        )?;
        match &self.migration {
            Some(migration) => write!(f, "\n{migration}"),
            None => Ok(()),
        }
    }
}
