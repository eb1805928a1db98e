//! What is agreed with one back-end, and what outlives it.

use super::base::KeptBase;
use super::config::{VringStart, VringWiring};
use super::postcopy::Told;
use crate::Handle;
use crate::wire::features::{protocol, virtio};
use crate::wire::{InflightDescription, LogDescription, MemRegion};
use bytes::Bytes;

/// Memory regions that fit one SET_MEM_TABLE.
// spec: vhost-user, "VHOST_USER_SET_MEM_TABLE"
const TABLE_REGIONS: u64 = 8;

/// What is agreed with the back-end at the other end of the connection.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Virtio features, bit 30 included.
    pub(super) offered: u64,
    /// Protocol features in force.
    pub(super) protocol: u64,
    /// Answer to GET_MAX_MEM_SLOTS.
    pub(super) mem_slots: u64,
    /// What the back-end has mapped.
    pub(super) memory: Vec<(MemRegion, Handle)>,
    /// How far postcopy has come.
    pub(super) told: Told,
    /// What regions are called in page faults, until the owner is told.
    pub(super) bases: Vec<(MemRegion, u64)>,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            offered: 0,
            protocol: 0,
            mem_slots: TABLE_REGIONS,
            memory: Vec::new(),
            told: Told::Nothing,
            bases: Vec::new(),
        }
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    pub(super) fn has_protocol_features(&self) -> bool {
        self.offered & virtio::PROTOCOL_FEATURES != 0
    }

    pub(super) fn max_regions(&self) -> u64 {
        if self.has(protocol::CONFIGURE_MEM_SLOTS) { self.mem_slots } else { TABLE_REGIONS }
    }
}

/// What the device keeps while back-ends come and go.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) wiring: Vec<VringWiring>,
    /// What the back-end should have mapped.
    pub(super) memory: Vec<(MemRegion, Handle)>,
    /// The region and the handle that this front-end owns.
    pub(super) inflight: Option<(InflightDescription, Handle)>,
    /// Some of its pages are still to come.
    pub(super) incomplete: bool,
    /// By vring.
    pub(super) bases: Vec<KeptBase>,
    /// Vrings that were started last, by rising index.
    pub(super) started: Vec<VringStart>,
    /// Virtio features that the guest has accepted, without bits 26 and 30.
    pub(super) features: Option<u64>,
    /// The dirty log to use, and the owner's handle of it.
    pub(super) log: Option<(LogDescription, Handle)>,
    pub(super) config: Bytes,
    /// A negotiation has succeeded before.
    pub(super) seen: bool,
}

impl Device {
    pub(super) fn new(wiring: Vec<VringWiring>) -> Self {
        Self {
            bases: vec![KeptBase::Fresh; wiring.len()],
            wiring,
            memory: Vec::new(),
            incomplete: false,
            inflight: None,
            started: Vec::new(),
            features: None,
            log: None,
            config: Bytes::new(),
            seen: false,
        }
    }

    /// The guest has accepted packed rings.
    pub(super) fn packed(&self) -> bool {
        self.features.unwrap_or(0) & virtio::RING_PACKED != 0
    }
}
