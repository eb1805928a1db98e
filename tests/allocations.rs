//! Between kick and completion the core allocates nothing per request.

#![allow(clippy::disallowed_methods)]

mod common;

use common::{FEATURES, Rig, slot_base, submit, vring_addr};
use midflight::backend::{Input, Output};
use midflight::blk::{Completion, DeviceConfig};
use midflight::driver::{BlkDriver, BlkOp, Framing};
use midflight::wire::features::virtio;
use midflight::wire::{FrontendRequest, LogBase, LogDescription, VringAddr};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use vm_memory::{Bytes, GuestAddress};

struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

fn count() {
    // A thread that is going away has no counter any more.
    let _ = COUNT.try_with(|c| c.set(c.get().map(|n| n + 1)));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from the system's allocator, by `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted(f: impl FnOnce()) -> u64 {
    COUNT.set(Some(0));
    f();
    COUNT.take().expect("counting was on")
}

/// Requests of one round: half writes, half reads, indirect and not.
fn put(rig: &Rig, driver: &mut BlkDriver) {
    for slot in 0..16 {
        let op =
            if slot % 2 == 0 { BlkOp::Out { sector: slot } } else { BlkOp::In { sector: slot } };
        let framing = if slot % 4 < 2 { Framing::INDIRECT } else { Framing::CLASSIC };
        submit(rig, driver, slot, op, 512, &framing);
    }
    driver.publish(&rig.guest).unwrap();
}

#[test]
fn allocations_there_are_none_from_kick_to_completion() {
    serve(Rig::running(DeviceConfig::with_capacity(1 << 20)));
}

#[test]
fn allocations_there_are_none_while_pages_are_logged_either() {
    let (mut rig, driver) = Rig::running(DeviceConfig::with_capacity(1 << 20));
    let log = LogDescription { size: 4096, offset: 0 };
    let handle = rig.handle();
    let answer = rig.send(FrontendRequest::SetLogBase(LogBase::Shared(log, handle)), false);
    assert!(answer.is_some());
    rig.ok(FrontendRequest::SetFeatures(FEATURES | virtio::LOG_ALL));
    rig.ok(FrontendRequest::SetVringAddr(VringAddr { flags: 1, ..vring_addr(0) }));
    let log = rig.log.clone().unwrap();
    serve((rig, driver));
    let byte: u8 = log.read_obj(GuestAddress(slot_base(0) / 4096 / 8)).unwrap();
    assert_ne!(byte, 0, "nothing was logged");
}

fn serve((mut rig, mut driver): (Rig, BlkDriver)) {
    let mut done: Vec<Completion> = Vec::with_capacity(64);
    let mut served = 0;
    for round in 0..50 {
        put(&rig, &mut driver);
        let now = rig.now;
        let backend = &mut rig.backend;
        let allocations = counted(|| {
            backend.handle_input(now, Input::Kick { vring: 0 }).unwrap();
            done.clear();
            while let Some(output) = backend.poll_output() {
                if let Output::Disk(id) = output {
                    assert!(!backend.request(id).unwrap().segments.is_empty());
                    done.push(Completion { id, result: Ok(()) });
                }
            }
            backend.handle_input(now, Input::DiskDone(&done)).unwrap();
            while backend.poll_output().is_some() {}
        });
        assert_eq!(done.len(), 16);
        while driver.reap(&rig.guest).unwrap().is_some() {
            served += 1;
        }
        // The first rounds size the tables.
        if round > 2 {
            assert_eq!(allocations, 0, "round {round}");
        }
    }
    assert_eq!(served, 50 * 16);
}

#[test]
fn allocations_are_seen_by_the_counter() {
    assert_eq!(counted(|| drop(std::hint::black_box(Box::new(1)))), 1);
}
