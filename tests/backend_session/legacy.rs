//! Front-ends without protocol features, and messages in orders of all ages.

use super::common::{FEATURES, RING, Rig, guest_region, ring_features, ring_layout, vring_addr};
use super::{disk, file, negotiated, reaped, serves, state, write};
use midflight::backend::Event;
use midflight::driver::BlkDriver;
use midflight::wire::features::virtio;
use midflight::wire::{FrontendReplyBody as Body, FrontendRequest as R, VringAddr};

/// Vring 0 with addresses, size and a kick, for a front-end without protocol
/// features.
fn kicked(rig: &mut Rig, addr: VringAddr) {
    rig.send(R::SetVringNum(state(0, u32::from(RING))), false);
    rig.send(R::SetVringBase(state(0, 0)), false);
    rig.send(R::SetVringAddr(addr), false);
    let kick = rig.handle();
    rig.send(R::SetVringKick(file(0, Some(kick))), false);
}

#[test]
fn legacy_front_end_without_protocol_features_is_served() {
    let mut rig = Rig::new(disk());
    let offered = match rig.send(R::GetFeatures, false) {
        Some(Body::U64(offered)) => offered,
        other => panic!("{other:?}"),
    };
    rig.send(R::SetOwner, false);
    rig.send(R::SetFeatures(FEATURES & offered & !virtio::PROTOCOL_FEATURES), false);
    let memory = rig.handle();
    rig.send(R::SetMemTable(vec![(guest_region(), memory)]), false);
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    write(&mut rig, &mut driver, 0);
    // The kick descriptor starts the vring, without a message to enable it.
    kicked(&mut rig, vring_addr(0));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
    // The table is sent again while the vring runs, as at a memory hotplug.
    let memory = rig.handle();
    rig.send(R::SetMemTable(vec![(guest_region(), memory)]), false);
    serves(&mut rig, &mut driver, 1);
    assert_eq!(rig.get_base(0), Some(2));
    // And again: a start after a stop has no message to enable either.
    kicked(&mut rig, vring_addr(0));
    assert!(rig.closed.is_none(), "{:?}", rig.closed);
    assert!(rig.replies.iter().all(|r| !matches!(r.body, Body::U64(1))));
}

#[test]
fn legacy_features_that_cannot_start_a_vring_are_taken_back() {
    let mut rig = negotiated();
    rig.add_memory();
    let agreed = rig.events.iter().rev().find_map(|event| match event {
        Event::Negotiated { features, .. } => Some(*features),
        _ => None,
    });
    // Vring 0 could start, vring 1 lies outside guest memory.
    kicked(&mut rig, vring_addr(0));
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    write(&mut rig, &mut driver, 0);
    let nowhere =
        VringAddr { index: 1, desc: 0x1000, used: 0x2000, avail: 0x3000, ..vring_addr(1) };
    rig.send(R::SetVringNum(state(1, u32::from(RING))), false);
    rig.send(R::SetVringAddr(nowhere), false);
    let kick = rig.handle();
    rig.send(R::SetVringKick(file(1, Some(kick))), false);
    let to = FEATURES & !virtio::PROTOCOL_FEATURES & !virtio::BLK_SEG_MAX;
    assert_eq!(
        rig.refused(R::SetFeatures(to)),
        "vring 1 has descriptor table of 1024 bytes at 0x1000, not inside one memory region"
    );
    assert!(rig.at_disk.is_empty(), "vring 0 does not run either");
    let last = rig.events.iter().rev().find_map(|event| match event {
        Event::Negotiated { features, .. } => Some(*features),
        _ => None,
    });
    assert_eq!(last, agreed);
    // What can be started is not enabled: that takes its own message still.
    rig.kick(0);
    assert!(rig.at_disk.is_empty());
    rig.ok(R::SetVringEnable(state(0, 1)));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

/// Front-ends of all ages: whatever has to be said before a vring runs, in any
/// order, and the one message that completes it last.
#[test]
fn legacy_message_orders_all_lead_to_a_vring_that_runs() {
    let mut state_of_chance = 7u64;
    let mut below = |bound: usize| {
        state_of_chance = state_of_chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state_of_chance >> 33) as usize % bound
    };
    for round in 0..300 {
        let mut rig = Rig::new(disk());
        let offered = match rig.send(R::GetFeatures, false) {
            Some(Body::U64(offered)) => offered,
            other => panic!("{other:?}"),
        };
        let legacy = below(3) == 0;
        let features = FEATURES & offered;
        if !legacy {
            let bits = rig.backend.offered_protocol_features() & !rig.dialect.gpa_addresses();
            rig.send(R::SetProtocolFeatures(bits), false);
        }
        // It begins the session, so nothing can come before it.
        rig.send(R::SetOwner, false);
        let mut names = vec!["memory", "num", "base", "addr", "call", "err"];
        if legacy {
            // Features enable the vring; the kick starts it.
            names.extend(["features"]);
        } else {
            names.extend(["features", "inflight", ["kick", "enable"][round % 2]]);
        }
        for at in (1..names.len()).rev() {
            names.swap(at, below(at + 1));
        }
        names.push(if legacy { "kick" } else { ["enable", "kick"][round % 2] });
        let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
        write(&mut rig, &mut driver, 0);
        for name in &names {
            match *name {
                "memory" => {
                    let handle = rig.handle();
                    rig.send(R::SetMemTable(vec![(guest_region(), handle)]), false);
                }
                "features" if legacy => {
                    _ = rig.send(R::SetFeatures(features & !virtio::PROTOCOL_FEATURES), false);
                }
                "features" => _ = rig.send(R::SetFeatures(features), false),
                "inflight" => {
                    rig.get_inflight(2, RING);
                    rig.set_inflight();
                }
                "num" => _ = rig.send(R::SetVringNum(state(0, u32::from(RING))), false),
                "base" => _ = rig.send(R::SetVringBase(state(0, 0)), false),
                "addr" => _ = rig.send(R::SetVringAddr(vring_addr(0)), false),
                "enable" => _ = rig.send(R::SetVringEnable(state(0, 1)), false),
                other => {
                    let handle = rig.handle();
                    let file = file(0, Some(handle));
                    _ = rig.send(
                        match other {
                            "call" => R::SetVringCall(file),
                            "err" => R::SetVringErr(file),
                            _ => R::SetVringKick(file),
                        },
                        false,
                    );
                }
            }
        }
        assert!(rig.closed.is_none(), "{names:?}: {:?}", rig.closed);
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver), 1, "{names:?}");
    }
}
