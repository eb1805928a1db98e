//! The guest's write cache: when a write has to be durable, and what of the
//! guest's choice outlives a connection.

mod common;

use common::{FEATURES, Memory, RING, Rig, ring_features, ring_layout, submit};
use midflight::backend::{Event, Input};
use midflight::blk::{Completion, DeviceConfig, DiskError, DiskOp};
use midflight::driver::{BlkDriver, BlkOp, Framing};
use midflight::wire::features::virtio;
use midflight::wire::{ConfigPayload, FrontendReplyBody, FrontendRequest as R};
use vm_memory::{Bytes, GuestAddress};

fn config() -> DeviceConfig {
    DeviceConfig::with_capacity(1 << 20)
}

fn set(value: u8) -> R<midflight::Handle> {
    let data = bytes::Bytes::copy_from_slice(&[value]);
    R::SetConfig(ConfigPayload { offset: 32, flags: 0, data })
}

fn shown(rig: &mut Rig) -> u8 {
    let asked = ConfigPayload { offset: 32, flags: 0, data: vec![0].into() };
    match rig.send(R::GetConfig(asked), false) {
        Some(FrontendReplyBody::Config(config)) => config.data[0],
        other => panic!("{other:?}"),
    }
}

/// Turn the cache off with nothing in flight.
fn turn_off(rig: &mut Rig) {
    rig.send(set(0), true);
    let id = rig.at_disk[0];
    assert_eq!(rig.backend.request(id).unwrap().op, DiskOp::Flush);
    rig.finish_all();
    assert_eq!(rig.replies.last().unwrap().body, FrontendReplyBody::U64(0));
}

/// Whether a write that is fetched now has to be durable; it is done then.
fn durable(rig: &mut Rig, driver: &mut BlkDriver) -> bool {
    let request = BlkOp::Out { sector: 8 };
    submit(rig, driver, 0, request, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    let found = at_disk(rig);
    rig.finish_all();
    assert!(driver.reap(&rig.guest).unwrap().is_some());
    found[0]
}

/// By write at the disk: whether it has to be durable.
fn at_disk(rig: &Rig) -> Vec<bool> {
    let durable = |id: &_| match rig.backend.request(*id).unwrap().op {
        DiskOp::Write { durable, .. } => durable,
        other => panic!("{other:?}"),
    };
    rig.at_disk.iter().map(durable).collect()
}

/// The daemon is killed and another one started; the front-end connects again.
/// It brings the region, if it was given one.
fn reborn(old: &Rig) -> Rig {
    let mut rig = Rig::<Memory>::new(config());
    rig.guest = old.guest.clone();
    rig.region = old.region.clone();
    rig.region_description = old.region_description;
    rig.negotiate_again(FEATURES);
    rig.add_memory();
    if rig.region.is_some() {
        rig.set_inflight();
    }
    rig.start_vring(0, used_idx(&rig));
    rig
}

fn used_idx(rig: &Rig) -> u16 {
    rig.guest.read_obj(GuestAddress(ring_layout(0).used + 2)).unwrap()
}

fn unknown(rig: &Rig) -> bool {
    rig.events.contains(&Event::WriteCache { on: false, known: false })
}

#[test]
fn cache_off_is_durable_before_completion_and_on_again_is_not() {
    let (mut rig, mut driver) = Rig::running(config());
    assert!(!durable(&mut rig, &mut driver));
    turn_off(&mut rig);
    assert!(durable(&mut rig, &mut driver));
    assert_eq!(shown(&mut rig), 0);
    rig.ok(set(1));
    assert!(!durable(&mut rig, &mut driver));
    assert_eq!(shown(&mut rig), 1);
}

#[test]
fn cache_turned_off_with_writes_in_flight_answers_when_all_of_them_are_durable() {
    let (mut rig, mut driver) = Rig::running(config());
    for slot in 0..3 {
        submit(&rig, &mut driver, slot, BlkOp::Out { sector: 8 }, 512, &Framing::CLASSIC);
    }
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    assert_eq!(at_disk(&rig), [false; 3]);
    let replies = rig.replies.len();
    rig.send(set(0), true);
    // What comes now is held back; it could be one after the other forever.
    submit(&rig, &mut driver, 3, BlkOp::Out { sector: 8 }, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    assert_eq!(rig.at_disk.len(), 3);
    for id in std::mem::take(&mut rig.at_disk) {
        assert_eq!(rig.replies.len(), replies);
        let done = [rig.execute(id)];
        rig.input(Input::DiskDone(&done));
    }
    let flush = rig.at_disk[0];
    assert_eq!(rig.backend.request(flush).unwrap().op, DiskOp::Flush);
    assert_eq!((rig.at_disk.len(), rig.replies.len()), (1, replies));
    rig.finish_all();
    assert_eq!(rig.replies.len(), replies + 1);
    // And goes on by itself, durable.
    assert_eq!(at_disk(&rig), [true]);
    rig.finish_all();
    assert_eq!(std::iter::from_fn(|| driver.reap(&rig.guest).unwrap()).count(), 4);
}

#[test]
fn cache_flush_that_fails_refuses_the_choice_and_is_tried_again() {
    let (mut rig, mut driver) = Rig::running(config());
    rig.send(set(0), true);
    rig.fail_all(DiskError::Os(5));
    assert_eq!(rig.replies.last().unwrap().body, FrontendReplyBody::U64(1));
    assert!(rig.events.contains(&Event::FlushFailed(DiskError::Os(5))));
    // The guest goes on with a cache; that writes are durable harms nobody.
    assert!(durable(&mut rig, &mut driver));
    turn_off(&mut rig);
    // There is nothing volatile any more.
    rig.ok(set(0));
}

#[test]
fn cache_front_end_that_goes_away_during_the_flush_leaves_nothing_behind() {
    let (mut rig, _) = Rig::running(config());
    rig.send(set(0), true);
    let flush = rig.at_disk[0];
    rig.input(Input::PeerClosed);
    assert!(!rig.backend.is_idle(), "the disk is at work");
    rig.input(Input::DiskDone(&[Completion { id: flush, result: Ok(()) }]));
    assert!(rig.backend.is_idle());
    assert!(!rig.store);
}

#[test]
fn cache_choice_survives_a_kill_of_the_daemon() {
    let (mut rig, mut driver) = Rig::running(config());
    assert!(!durable(&mut rig, &mut driver));
    let mut next = reborn(&rig);
    assert!(!durable(&mut next, &mut driver), "it was on");
    turn_off(&mut next);
    let mut next = reborn(&next);
    assert!(durable(&mut next, &mut driver), "it was off");
    assert_eq!(shown(&mut next), 0);
    assert!(next.events.contains(&Event::WriteCache { on: false, known: true }));
    next.ok(set(1));
    // Whatever comes next: the answer is out.
    next.kick(0);
    let mut next = reborn(&next);
    assert!(!durable(&mut next, &mut driver), "it was on again");
    assert!(!unknown(&next));
}

#[test]
fn cache_kill_before_the_answer_arrives_leaves_the_safe_side() {
    let (mut rig, mut driver) = Rig::running(config());
    // The flush is not over: the guest has no answer and believes in a cache.
    rig.send(set(0), true);
    let mut next = reborn(&rig);
    assert!(durable(&mut next, &mut driver));
    // What its predecessor wrote may be volatile still.
    turn_off(&mut next);
    // The answer may be lost, and then the guest believes that it has no cache.
    next.ok(set(1));
    let mut next = reborn(&next);
    assert!(durable(&mut next, &mut driver));
}

#[test]
fn cache_writes_that_are_resubmitted_keep_to_the_choice() {
    let (mut rig, mut driver) = Rig::running(config());
    turn_off(&mut rig);
    submit(&rig, &mut driver, 0, BlkOp::Out { sector: 8 }, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    let next = reborn(&rig);
    assert_eq!(at_disk(&next), [true]);
}

#[test]
fn cache_is_off_when_nobody_knows_what_the_guest_believes() {
    let (rig, mut driver) = Rig::running(config());
    // A region of somebody else has no word of ours.
    let part = 16 + 16 * u64::from(RING);
    rig.region.as_ref().unwrap().write_slice(&[0; 48], GuestAddress(part)).unwrap();
    let mut next = reborn(&rig);
    assert!(unknown(&next));
    assert!(durable(&mut next, &mut driver));
    // Reading now tells the guest nothing: a front-end has its own copy.
    assert_eq!(shown(&mut next), 0);
    assert!(durable(&mut next, &mut driver));
    // The guest says what it wants.
    next.ok(set(1));
    assert!(!durable(&mut next, &mut driver));
}

#[test]
fn cache_is_off_for_a_guest_that_has_run_elsewhere_without_its_region() {
    // It was migrated: the front-end is new and has read the configuration, but
    // the guest made its choice before.
    let (mut old, mut driver) = Rig::running(config());
    assert!(!durable(&mut old, &mut driver));
    let mut rig = Rig::<Memory>::new(config());
    rig.guest = old.guest.clone();
    rig.negotiate(FEATURES);
    rig.get_inflight(1, RING);
    rig.add_memory();
    rig.set_inflight();
    rig.start_vring(0, 1);
    assert!(unknown(&rig));
    assert!(durable(&mut rig, &mut driver));
}

#[test]
fn cache_choice_is_not_taken_back_by_a_reset() {
    let (mut rig, _) = Rig::running(config());
    turn_off(&mut rig);
    rig.get_base(0);
    rig.ok(R::ResetDevice);
    // A front-end may show the next guest its own copy of the byte.
    assert_eq!(shown(&mut rig), 0);
    rig.ok(R::SetFeatures(FEATURES));
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.get_inflight(1, RING);
    rig.set_inflight();
    rig.start_vring(0, 0);
    assert!(durable(&mut rig, &mut driver));
    // The new region knows too.
    let mut next = reborn(&rig);
    assert!(durable(&mut next, &mut driver) && !unknown(&next));
}

#[test]
fn cache_new_guest_after_a_reset_goes_on_with_a_cache() {
    let (mut rig, mut driver) = Rig::running(config());
    assert!(!durable(&mut rig, &mut driver));
    rig.get_base(0);
    rig.ok(R::ResetDevice);
    rig.ok(R::SetFeatures(FEATURES));
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.get_inflight(1, RING);
    rig.set_inflight();
    rig.start_vring(0, 0);
    assert!(!durable(&mut rig, &mut driver) && !unknown(&rig));
}

#[test]
fn cache_byte_reads_off_for_a_guest_that_cannot_flush() {
    let mut rig = Rig::new(config());
    rig.negotiate(FEATURES & !virtio::BLK_FLUSH);
    assert_eq!(shown(&mut rig), 0);
}
