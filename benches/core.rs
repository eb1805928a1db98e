//! The core's hot path, piece by piece: no disk, no sockets, no guest.

#![allow(missing_docs, clippy::disallowed_types)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{
    FEATURES, PACKED_START, RING, Rig, packed_addr, packed_layout, ring_features, ring_layout,
    submit,
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use midflight::Handle;
use midflight::backend::{Input, Output};
use midflight::blk::{Completion, DeviceConfig};
use midflight::driver::{BlkDriver, BlkOp, Framing, RingFeatures};
use midflight::wire::features::virtio;
use midflight::wire::{
    Decoder, Dialect, Envelope, FrontendRequest, FrontendRequests, VringState, encode_request,
};
use std::hint::black_box;

/// Requests of one round.
const ROUND: u64 = 16;

fn rig(inflight: bool, packed: bool) -> (Rig, BlkDriver) {
    let config = DeviceConfig { packed, ..DeviceConfig::with_capacity(1 << 20) };
    if packed {
        let mut rig = Rig::new(config);
        if inflight {
            let driver = rig.run_packed(RING);
            return (rig, driver);
        }
        rig.negotiate(FEATURES | virtio::RING_PACKED);
        rig.add_memory();
        let features = RingFeatures { packed: true, ..ring_features() };
        let driver = BlkDriver::start(&rig.guest, packed_layout(RING), features).unwrap();
        rig.start_vring_at(RING, PACKED_START, packed_addr(RING));
        return (rig, driver);
    }
    if inflight {
        return Rig::running(config);
    }
    let mut rig = Rig::new(config);
    rig.negotiate(FEATURES);
    rig.add_memory();
    let driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.start_vring(0, 0);
    (rig, driver)
}

fn put(rig: &Rig, driver: &mut BlkDriver) {
    for slot in 0..ROUND {
        submit(rig, driver, slot, BlkOp::In { sector: slot }, 512, &Framing::CLASSIC);
    }
    driver.publish(&rig.guest).unwrap();
}

fn kick(rig: &mut Rig, done: &mut Vec<Completion>) {
    let now = rig.now;
    rig.backend.handle_input(now, Input::Kick { vring: 0 }).unwrap();
    while let Some(output) = rig.backend.poll_output() {
        if let Output::Disk(id) = output {
            black_box(rig.backend.request(id));
            done.push(Completion { id, result: Ok(()) });
        }
    }
}

fn complete(rig: &mut Rig, done: &mut Vec<Completion>) {
    let now = rig.now;
    rig.backend.handle_input(now, Input::DiskDone(done)).unwrap();
    while let Some(output) = rig.backend.poll_output() {
        black_box(output);
    }
    done.clear();
}

/// Time only one part of a round; the rest happens between measurements.
fn rounds(
    c: &mut Criterion,
    name: &str,
    (inflight, packed): (bool, bool),
    fetch: bool,
    finish: bool,
) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(ROUND));
    let (mut rig, mut driver) = rig(inflight, packed);
    let mut done = Vec::with_capacity(usize::from(RING));
    let label = if inflight { "inflight on" } else { "inflight off" };
    let label = if packed { format!("{label}, packed") } else { label.to_string() };
    group.bench_function(label, |b| {
        b.iter_custom(|iterations| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..iterations {
                put(&rig, &mut driver);
                let start = std::time::Instant::now();
                kick(&mut rig, &mut done);
                let fetched = std::time::Instant::now();
                complete(&mut rig, &mut done);
                let finished = std::time::Instant::now();
                if fetch {
                    spent += fetched - start;
                }
                if finish {
                    spent += finished - fetched;
                }
                while driver.reap(&rig.guest).unwrap().is_some() {}
            }
            spent
        });
    });
    group.finish();
}

fn decode(c: &mut Criterion) {
    let state = VringState { index: 0, num: 128 };
    let message = FrontendRequest::<Handle>::SetVringNum(state);
    let envelope = Envelope { message, need_reply: true };
    let (bytes, _) = encode_request(&envelope, &Dialect::default()).unwrap();
    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode SET_VRING_NUM", |b| {
        b.iter_batched_ref(
            || Decoder::<FrontendRequests, Handle>::new(Dialect::default()),
            |decoder| {
                decoder.push(&bytes, Vec::new()).unwrap();
                black_box(decoder.next())
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn core(c: &mut Criterion) {
    decode(c);
    for kind in [(false, false), (true, false), (false, true), (true, true)] {
        rounds(c, "chain to disk request", kind, true, false);
        rounds(c, "completion to used entry", kind, false, true);
        rounds(c, "kick to used entry", kind, true, true);
    }
}

criterion_group!(benches, core);
criterion_main!(benches);
