//! What tests of rings have in common: chains as a step draws them, and
//! virtio-queue's device side over a layout.

#![allow(dead_code)] // Each test uses its part.

use midflight::driver::{Buffer, RingLayout};
use virtio_queue::{Queue, QueueT};

/// Buffers of these lengths, each in a place of its own.
pub fn buffers(reads: &[u32], writes: &[u32]) -> Vec<Buffer> {
    let mut addr = 0x8000;
    let reads = reads.iter().map(|&len| (len, false));
    reads
        .chain(writes.iter().map(|&len| (len, true)))
        .map(|(len, writable)| {
            addr += 0x2000;
            Buffer { addr, len, writable }
        })
        .collect()
}

/// virtio-queue's device side of a split ring that has come as far as `start`.
pub fn queue(layout: &RingLayout, event_idx: bool, start: u16) -> Queue {
    let mut queue = Queue::new(32768).unwrap();
    queue.set_size(layout.size);
    let halves = |a: u64| (Some(a as u32), Some((a >> 32) as u32));
    let (low, high) = halves(layout.desc);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(layout.avail);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(layout.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(event_idx);
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    queue
}
