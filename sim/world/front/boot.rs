//! What a front-end process begins with: guest memory, signals, and what it and
//! the guest's driver accept.

use super::{FrontProcess, contract};
use crate::guest::memory::{GuestMemory, REGIONS};
use crate::oracle::Violation;
use crate::topology::{Policy, Ring, Topology};
use crate::world::back::dialect;
use crate::world::link::Inbox;
use crate::world::objects::{Handles, Object, Objects};
use midflight::frontend::{Command, Frontend, FrontendConfig, Input, VringWiring};
use midflight::time::{Duration, Instant};
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{Dialect, MemRegion};
use std::collections::VecDeque;

/// Bytes of the configuration space through the write zeroes fields.
// spec: virtio 1.2, "Block Device", "Device configuration layout"
const CONFIG_LEN: u16 = 60;

/// From the loss of a connection to the next attempt.
const BACKOFF: Duration = Duration::from_micros(300);

/// A front-end that owns the guest's memory and signals.
pub fn new(
    objects: &mut Objects,
    topology: &Topology,
    guest_memory: &GuestMemory,
) -> Result<FrontProcess, Violation> {
    let mut handles = Handles::default();
    let mut open = |object| handles.open(objects.add(object));
    let queues = topology.queues;
    let memory: Vec<_> = REGIONS
        .iter()
        .zip(guest_memory.ids)
        .map(|(r, id)| {
            let region =
                MemRegion { guest_addr: r.guest, size: r.size, user_addr: r.user, mmap_offset: 0 };
            (region, open(Object::Memory(id)))
        })
        .collect();
    let kicks = (0..queues).map(|v| open(Object::Kick(v))).collect();
    let calls: Vec<_> = (0..queues).map(|v| open(Object::Call(v))).collect();
    let wiring = calls
        .iter()
        .map(|call| VringWiring { call: Some(*call), err: Some(open(Object::Err)) })
        .collect();
    let mut core = Frontend::new(config(topology), wiring).map_err(|e| contract(e.to_string()))?;
    core.handle_input(Instant::ZERO, Input::Command(Command::SetMemory(memory.clone())))
        .map_err(|e| contract(e.to_string()))?;
    Ok(FrontProcess {
        core,
        handles,
        conn: None,
        inbox: Inbox::default(),
        kicks,
        calls,
        memory,
        plugged: false,
        changes: VecDeque::new(),
        own_logs: 0,
        leaves: None,
        resets: false,
        asks_in_vain: false,
        timer: None,
        reading: false,
        wanted: true,
        bases_known: false,
        unfit: false,
        gone_until: 0,
        nonsense_on: None,
        cache_writes: VecDeque::new(),
        started_before: false,
        parting: None,
        forged: None,
        frozen: None,
        may_leave: false,
    })
}

fn config(topology: &Topology) -> FrontendConfig {
    let mut accepted = protocol::MQ
        | protocol::CONFIG
        | protocol::INFLIGHT_SHMFD
        | protocol::RESET_DEVICE
        | protocol::LOG_SHMFD;
    let mut numbers = Dialect::default();
    if let Some(plan) = &topology.migration {
        numbers = dialect(plan);
        if plan.policy != Policy::Drain && plan.agreed {
            accepted |= numbers.get_vring_base_inflight() | numbers.get_vring_base_skip_drain();
        }
    }
    if topology.reply_ack {
        accepted |= protocol::REPLY_ACK;
    }
    if topology.mem_slots {
        accepted |= protocol::CONFIGURE_MEM_SLOTS;
    }
    FrontendConfig {
        virtio_features: accepted_features(topology, true),
        protocol_features: accepted,
        queue_size: topology.region_size,
        config_len: CONFIG_LEN,
        dialect: numbers,
        reconnect_backoff: Some(BACKOFF),
        ..FrontendConfig::new(topology.queues)
    }
}

/// Where a vring begins, with nothing in flight.
// spec: vhost-user, "Vring descriptor indices for packed virtqueues"
pub(super) fn first_base(topology: &Topology, size: u16) -> u32 {
    let first = u32::from(topology.first_index);
    let size = u32::from(size);
    match topology.ring {
        Ring::Split => first,
        Ring::Packed => {
            let wrap = u32::from((first / size).is_multiple_of(2));
            ((first % size) | (wrap << 15)) * 0x1_0001
        }
    }
}

/// What the guest's driver accepts.
pub(super) fn accepted_features(topology: &Topology, cache: bool) -> u64 {
    let mut features = virtio::VERSION_1
        | virtio::BLK_BLK_SIZE
        | virtio::BLK_SEG_MAX
        | virtio::BLK_DISCARD
        | virtio::BLK_WRITE_ZEROES;
    let wanted = [
        (topology.event_idx, virtio::EVENT_IDX),
        (topology.indirect, virtio::INDIRECT_DESC),
        (topology.flush, virtio::BLK_FLUSH),
        (cache, virtio::BLK_CONFIG_WCE),
        (topology.queues > 1, virtio::BLK_MQ),
        (topology.ring == Ring::Packed, virtio::RING_PACKED),
        (topology.in_order, virtio::IN_ORDER),
    ];
    for (on, bit) in wanted {
        if on {
            features |= bit;
        }
    }
    features
}
