//! What a run leaves behind.

use crate::choices::{Component, Made};
use crate::disk::faults::Counts;
use crate::oracle::Violation;
use crate::topology::Topology;
use crate::trace::Trace;
use serde::{Deserialize, Serialize};

/// A moment in a run at which the back-end dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrashPoint {
    /// Step of the back-end, from 0.
    pub step: u64,
    /// Stores of the step that happen.
    pub kept: u64,
    /// Bytes that happen of the store after those.
    pub cut: u32,
    /// Wishes of the step that are carried out; none unless all stores happen.
    pub outputs: u64,
}

/// What a step of the back-end did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Bytes of each store, 0 for one that happens in one piece.
    pub stores: Vec<u32>,
    /// Number of wishes.
    pub outputs: u64,
}

/// Counted over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// Scheduler events.
    pub events: u64,
    /// Requests the guest completed.
    pub requests: u64,
    /// Requests the disk was asked.
    pub disk_requests: u64,
    /// Stores of the back-end to shared memory.
    pub stores: u64,
    /// Kills of the back-end.
    pub kills: u64,
    /// Times the back-end ended because it was asked to.
    pub shutdowns: u64,
    /// Most used entries that became visible at once in a vring.
    pub largest_batch: u64,
    /// Vrings that were taken over with requests in flight.
    pub recoveries: u64,
    /// Requests that were resubmitted.
    pub resubmitted: u64,
    /// Times the guest acted between two stores of the back-end.
    pub races: u64,
    /// Changes that a front-end made while the vrings ran.
    #[serde(default)]
    pub controls: u64,
    /// Resets of the device after which the guest went on.
    #[serde(default)]
    pub resets: u64,
    /// Pauses that ended.
    pub pauses: u64,
    /// Connections that broke though nobody died.
    pub breaks: u64,
    /// Times nothing got through for a while.
    pub stalls: u64,
    /// Times a front-end was gone for a while.
    pub gone: u64,
    /// Back-ends that were told from one the device can use.
    pub unfit: u64,
    /// Times both hosts were awake.
    pub wakes: u64,
    /// Times a back-end said that the guest has broken a vring.
    pub broken: u64,
    /// Migrations that were begun.
    pub migrations: u64,
    /// Migrations after which the guest ran on the other host.
    pub arrivals: u64,
    /// Migrations that were broken off.
    pub broken_off: u64,
    /// Requests that a suspend left in the inflight region, at any stop.
    pub suspended: u64,
    /// Requests in flight when a hand-over was prepared.
    pub carried: u64,
    /// Requests whose cancel was confirmed by the disk.
    pub cancelled: u64,
    /// Pages copied from host to host.
    pub pages: u64,
    /// Old writes that landed after their vring was said to be at rest.
    pub landings: u64,
    /// Nanoseconds that the guest stood still in all migrations that arrived.
    pub downtime: u64,
    /// The longest of those.
    pub downtime_max: u64,
    /// Faults of the disk that took effect.
    pub disk_faults: Counts,
    /// Second reports of a completion that a back-end has dropped.
    pub late_completions: u64,
    /// Sectors that a loss of power put back.
    pub sectors_lost: u64,
}

/// A finished run.
#[derive(Debug)]
pub struct Outcome {
    /// What was drawn.
    pub topology: Topology,
    /// Every decision by who made it, if they were kept.
    pub made: Vec<(Component, Vec<Made>)>,
    /// The first promise that was broken, if one was.
    pub verdict: Result<(), Violation>,
    /// Hash over everything that happened.
    pub hash: u64,
    /// Counters.
    pub stats: Stats,
    /// Virtual nanoseconds.
    pub at: u64,
    /// The trace, if it was kept.
    pub trace: Trace,
    /// What was not completed or not by itself, and why that is excused.
    pub excuses: Vec<String>,
    /// Shapes of the back-end's steps, if they were asked for.
    pub shapes: Vec<StepShape>,
}

impl Stats {
    /// Add another run's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            events,
            requests,
            disk_requests,
            stores,
            kills,
            shutdowns,
            largest_batch,
            recoveries,
            resubmitted,
            controls,
            resets,
            pauses,
            breaks,
            stalls,
            gone,
            unfit,
            wakes,
            broken,
            races,
            migrations,
            arrivals,
            broken_off,
            suspended,
            carried,
            cancelled,
            pages,
            landings,
            downtime,
            downtime_max,
            disk_faults,
            late_completions,
            sectors_lost,
        } = other;
        self.disk_faults.add(disk_faults);
        self.late_completions += late_completions;
        self.sectors_lost += sectors_lost;
        self.events += events;
        self.requests += requests;
        self.disk_requests += disk_requests;
        self.stores += stores;
        self.kills += kills;
        self.shutdowns += shutdowns;
        self.largest_batch = self.largest_batch.max(*largest_batch);
        self.recoveries += recoveries;
        self.resubmitted += resubmitted;
        self.controls += controls;
        self.resets += resets;
        self.pauses += pauses;
        self.breaks += breaks;
        self.stalls += stalls;
        self.gone += gone;
        self.unfit += unfit;
        self.wakes += wakes;
        self.broken += broken;
        self.races += races;
        self.migrations += migrations;
        self.arrivals += arrivals;
        self.broken_off += broken_off;
        self.suspended += suspended;
        self.carried += carried;
        self.cancelled += cancelled;
        self.pages += pages;
        self.landings += landings;
        self.downtime += downtime;
        self.downtime_max = self.downtime_max.max(*downtime_max);
    }
}
