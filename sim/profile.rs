//! What a run is like: drawn first, printed whole.
//!
//! Each family of trouble is switched on or off before its strength is drawn,
//! so that quiet runs exist: some bugs need a hundred healthy requests.

mod migration;

use crate::choices::{Component, Ratio, Stream};
use crate::disk::Pace;
use crate::disk::faults::FaultPlan;
pub use migration::{Migration, Policy};

/// Sizes, features and faults of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Vrings.
    pub queues: u16,
    /// Entries of each vring.
    pub ring_size: u16,
    /// Entries the inflight region has for each vring; a driver may have chosen
    /// a smaller ring than the device has.
    pub region_size: u16,
    /// Both indexes of every vring at the start: an earlier life that left no
    /// inflight region, such as a migration without one.
    pub first_index: u16,
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub indirect: bool,
    /// The guest accepts FLUSH; without it every write is durable.
    pub flush: bool,
    /// Size of the disk in sectors of 512 bytes.
    pub sectors: u64,
    /// Requests of all vrings together.
    pub requests: u64,
    /// Most requests outstanding on one vring.
    pub depth: u64,
    /// Most requests made available by one store of the available index.
    pub batch: u64,
    /// Most sectors of one request.
    pub max_sectors: u64,
    /// Sectors at the start of the disk that half of the requests go to.
    pub hot_sectors: u64,
    /// Requests that the device has to refuse.
    pub bad: Ratio,
    /// Speed of the disk.
    pub pace: Pace,
    /// Microseconds for which the back-end leaves finished requests lying at
    /// most, so that batches gather.
    pub gather: u64,
    /// Requests that the disk fails.
    pub disk_errors: Ratio,
    /// What is wrong with the disk otherwise.
    pub disk_faults: FaultPlan,
    /// Protocol feature REPLY_ACK.
    pub reply_ack: bool,
    /// Protocol feature CONFIGURE_MEM_SLOTS.
    pub mem_slots: bool,
    /// Messages that arrive in pieces.
    pub split: Ratio,
    /// Kills of the back-end.
    pub kills: u64,
    /// Most stores of the back-end from one kill to the next.
    pub kill_stores: u64,
    /// Kills that happen between steps instead of inside one.
    pub kill_idle: Ratio,
    /// Kills that are none: the process is asked to end, and may finish.
    pub gentle: Ratio,
    /// Steps of the back-end in which the guest acts between two stores.
    pub races: Ratio,
    /// The front-end kicks every vring when they run, so that a back-end that
    /// does not look by itself would get along.
    pub first_kick: bool,
    /// Vrings have no kick descriptor, the back-end polls.
    pub polled: bool,
    /// Times the guest is paused and resumed.
    pub pauses: u64,
    /// Times the connection breaks though nobody dies.
    pub breaks: u64,
    /// The guest moves to another host; `None`: there is one host.
    pub migration: Option<Migration>,
}

impl Profile {
    /// A short run with one kill, for somebody who sees the simulator for the
    /// first time.
    pub fn tour() -> Self {
        Self {
            queues: 1,
            ring_size: 16,
            region_size: 16,
            first_index: 0,
            event_idx: true,
            indirect: true,
            flush: true,
            sectors: 256,
            requests: 16,
            depth: 6,
            batch: 3,
            max_sectors: 8,
            hot_sectors: 16,
            bad: Ratio::NEVER,
            pace: Pace::Spread,
            gather: 5,
            disk_errors: Ratio::NEVER,
            disk_faults: FaultPlan::default(),
            reply_ack: true,
            mem_slots: true,
            split: Ratio::NEVER,
            kills: 1,
            kill_stores: 80,
            kill_idle: Ratio::NEVER,
            gentle: Ratio::NEVER,
            races: Ratio::NEVER,
            first_kick: true,
            polled: false,
            pauses: 0,
            breaks: 0,
            migration: None,
        }
    }

    /// Draw one.
    pub fn draw(seed: u64) -> Self {
        let mut s = Stream::new(seed, Component::Profile);
        let on = Ratio::new(1, 2);
        let queues = *s.pick("queues", &[1, 1, 1, 2, 3, 4]);
        let ring_size = *s.pick("ring_size", &[8, 16, 16, 32, 64]);
        let region_size = ring_size << s.below("region_size", 2);
        let first_index = match s.below("first_index", 4) {
            0 | 1 => 0,
            2 => s.range("first_index.small", 1, 200),
            _ => s.range("first_index.wrap", 65_400, 65_535),
        };
        let kills = if s.chance("kills.on", Ratio::new(4, 5)) { s.range("kills", 1, 8) } else { 0 };
        let sectors = *s.pick("sectors", &[64, 256, 1024]);
        Self {
            queues,
            ring_size,
            region_size,
            first_index: first_index as u16,
            event_idx: s.chance("event_idx", on),
            indirect: s.chance("indirect", on),
            flush: s.chance("flush", Ratio::new(3, 4)),
            sectors,
            requests: s.range("requests", 20, 140),
            depth: s.range("depth", 1, 24),
            batch: s.range("batch", 1, 6),
            max_sectors: *s.pick("max_sectors", &[1, 4, 8, 16]),
            hot_sectors: s.range("hot_sectors", 4, 48),
            bad: if s.chance("bad.on", on) { Ratio::new(1, 12) } else { Ratio::NEVER },
            pace: *s.pick("pace", &Pace::ALL),
            gather: *s.pick("gather", &[0, 5, 50, 400]),
            disk_errors: if s.chance("disk_errors.on", Ratio::new(1, 4)) {
                Ratio::new(1, 20)
            } else {
                Ratio::NEVER
            },
            disk_faults: FaultPlan::default(),
            reply_ack: s.chance("reply_ack", Ratio::new(3, 4)),
            mem_slots: s.chance("mem_slots", on),
            split: if s.chance("split.on", on) { Ratio::new(1, 3) } else { Ratio::NEVER },
            kills,
            kill_stores: *s.pick("kill_stores", &[10, 40, 200]),
            kill_idle: *s.pick("kill_idle", &[Ratio::NEVER, Ratio::new(1, 4), Ratio::new(1, 1)]),
            gentle: *s.pick("gentle", &[Ratio::NEVER, Ratio::new(1, 4)]),
            races: *s.pick("races", &[Ratio::NEVER, Ratio::new(1, 20), Ratio::new(1, 3)]),
            first_kick: s.chance("first_kick", on),
            polled: s.chance("polled", Ratio::new(1, 10)),
            pauses: if s.chance("pauses.on", Ratio::new(1, 3)) {
                s.range("pauses", 1, 3)
            } else {
                0
            },
            breaks: if s.chance("breaks.on", Ratio::new(1, 4)) {
                s.range("breaks", 1, 2)
            } else {
                0
            },
            migration: None,
        }
    }
}

impl core::fmt::Display for Profile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" };
        writeln!(
            f,
            "rings      {} of {} entries (inflight region for {}), first index {}, event index {}, indirect {}",
            self.queues,
            self.ring_size,
            self.region_size,
            self.first_index,
            switch(self.event_idx),
            switch(self.indirect)
        )?;
        writeln!(
            f,
            "guest      {} requests of up to {} sectors, depth {}, batches of up to {}, half of them in the first {} sectors, to be refused {}",
            self.requests, self.max_sectors, self.depth, self.batch, self.hot_sectors, self.bad
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
        writeln!(
            f,
            "session    reply ack {}, memory slots {}, vrings polled {}, first kick {}, messages in pieces {}",
            switch(self.reply_ack),
            switch(self.mem_slots),
            switch(self.polled),
            switch(self.first_kick),
            self.split
        )?;
        write!(
            f,
            "trouble    {} kills within {} stores each (between steps {}, gentle {}), {} pauses, {} lost connections, guest between stores {}",
            self.kills,
            self.kill_stores,
            self.kill_idle,
            self.gentle,
            self.pauses,
            self.breaks,
            self.races
        )?;
        if !self.disk_faults.is_empty() {
            write!(f, "\nfaults     {}", self.disk_faults)?;
        }
        match &self.migration {
            Some(migration) => write!(f, "\n{migration}"),
            None => Ok(()),
        }
    }
}
