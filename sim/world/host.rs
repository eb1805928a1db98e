//! What one machine has of its own.
//!
//! A world has one host or two, and at any moment one of them is in focus:
//! [`World::here`](super::World). An event belongs to a host and puts it into
//! focus, so that whoever handles it need not say which host is meant.

use super::back::BackProcess;
use super::front::{self, FrontProcess};
use super::link::Wire;
use super::objects::{Counter, Objects};
use super::race::StoreCheck;
use crate::guest::memory::GuestMemory;
use crate::memory::{Arena, RegionId};
use crate::oracle::Violation;
use crate::scenario::Successor;
use crate::topology::Topology;

/// See the module.
pub(super) struct Host {
    /// 0 is host A, 1 is host B.
    pub id: u8,
    pub guest_memory: GuestMemory,
    pub front: FrontProcess,
    pub back: Option<BackProcess>,
    /// A new back-end process is on its way up.
    pub restarting: bool,
    pub check: StoreCheck,
    pub kicks: Vec<Counter>,
    pub calls: Vec<Counter>,
    pub to_back: Wire,
    pub to_front: Wire,
    /// Stores of the back-end that still happen before it is killed.
    pub stores_left: Option<u64>,
    /// What the next life of the back-end offers.
    pub next: Successor,
    /// It thinks it has the guest, and is wrong.
    pub awake: bool,
    /// The dirty log that the front-end has shared.
    pub log: Option<RegionId>,
}

impl Host {
    /// A host on which nothing runs yet.
    pub fn new(
        id: u8,
        arena: &mut Arena,
        objects: &mut Objects,
        topology: &Topology,
    ) -> Result<Self, Violation> {
        let guest_memory = GuestMemory::new(arena);
        let vrings = usize::from(topology.queues);
        Ok(Self {
            id,
            front: front::new(objects, topology, &guest_memory)?,
            back: None,
            restarting: false,
            check: StoreCheck::new(arena, &guest_memory, topology.queues),
            kicks: vec![Counter::default(); vrings],
            calls: vec![Counter::default(); vrings],
            to_back: Wire::default(),
            to_front: Wire::default(),
            stores_left: None,
            next: Successor::Same,
            awake: false,
            log: None,
            guest_memory,
        })
    }
}
