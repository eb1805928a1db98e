//! What the back-end has to say, as lines for the operator.

use crate::backend::{Event, IommuCounts};

/// Print one line for an event.
pub fn say(event: &Event) {
    match event {
        Event::Negotiated { features, protocol } => {
            say_limited!("negotiated features {features:#x}, protocol features {protocol:#x}")
        }
        Event::VringRunning { vring, size, next_avail, used, resubmitted } => say_limited!(
            "vring {vring} runs: size {size}, next available {next_avail}, used {used}, resubmitted {resubmitted}"
        ),
        Event::VringStopped { vring, base } => {
            say_limited!("vring {vring} stopped at base {base}");
        }
        Event::BaseContradicted { vring, base, used, inflight } => say_limited!(
            "vring {vring}: base {base} contradicts used index {used} and {inflight} in flight, the inflight region is believed"
        ),
        Event::VringBroken { vring, fault } => say_limited!("vring {vring} is broken: {fault}"),
        Event::Refused(fault) => say_limited!("refused a message: {fault}"),
        Event::DiskFailed { vring, head, error } => {
            say_limited!("vring {vring} head {head}: {error}");
        }
        Event::LateCompletion(id) => say_limited!("{id} was completed after its connection"),
        Event::Draining { vring, inflight } => {
            say_limited!("vring {vring} waits for {inflight} requests before it stops");
        }
        Event::Suspending { vring, inflight } => {
            say_limited!("vring {vring} is being suspended with {inflight} requests in flight");
        }
        Event::Suspended { vring, inflight } => {
            say_limited!("vring {vring} was suspended, {inflight} requests left in the region");
        }
        Event::PostcopyListening => {
            say_limited!("postcopy: memory comes when it is touched");
        }
        Event::PostcopyEnded => say_limited!("postcopy: all memory is there"),
        Event::CapacityChanged { from, to } => {
            say_limited!("the image has {to} bytes, {from} before");
        }
        Event::WriteCache { on: true, .. } => say_limited!("the guest's write cache is on"),
        Event::WriteCache { on: false, known: true } => {
            say_limited!("the guest's write cache is off, writes are durable before they complete");
        }
        Event::WriteCache { on: false, known: false } => say_limited!(
            "whether the guest's write cache is on is not known, writes are durable before they complete"
        ),
        Event::FlushFailed(error) => {
            say_limited!(
                "cannot make durable what was written before the write cache was off: {error}"
            );
        }
        Event::ChannelLost(end) => say_limited!("lost the back-end channel: {end}"),
        Event::RequestRefused { request, status } => {
            say_limited!("the front-end refused {request} with status {status}");
        }
        Event::IovaRefused { vring, iova, access } => {
            let what = ["nothing", "reading", "writing", "reading and writing"];
            let what = what[usize::from(access & 3)];
            say_limited!("vring {vring}: the front-end's IOMMU does not allow {what} at {iova:#x}");
        }
        Event::IommuAtRest(counts) => {
            let IommuCounts { misses, updates, invalidations, refused } = counts;
            say_limited!(
                "iommu: {misses} misses, {updates} updates, {invalidations} invalidations, \
                 {refused} refused so far"
            );
        }
        Event::StateSaved => say_limited!("the device's state was handed over"),
        Event::StateLoaded { writeback } => {
            let cache = if *writeback { "write back" } else { "write through" };
            say_limited!("took over the device's state: {cache}");
        }
        Event::StateFailed(why) => say_limited!("the device's state is lost: {why}"),
        Event::LogMapped { size } => {
            say_limited!("dirty log of {size} bytes is in place");
        }
    }
}
