//! The order in which a back-end asks the disk.
// spec: vhost-user, "Inflight I/O tracking": a successor resubmits in
// the order of the counters, which is the order of fetching.

use super::{Ask, Violation};

#[derive(Clone, Copy, Debug, Default)]
struct Last {
    conn: u32,
    /// Place in the available ring and number of the request issued last.
    issued: Option<(u64, u64)>,
}

/// Within one connection of a back-end, the requests of a vring reach the disk in
/// the order in which the guest made them available: first the ones it took
/// over, then new ones.
#[derive(Debug)]
pub(super) struct Order {
    last: Vec<Last>,
}

impl Order {
    pub fn new(queues: usize) -> Self {
        Self { last: vec![Last::default(); queues] }
    }

    /// The vring was stopped with requests in flight, and starts anew.
    pub fn stopped(&mut self, vring: u16) {
        self.last[usize::from(vring)] = Last::default();
    }

    pub fn issued(
        &mut self,
        conn: u32,
        vring: u16,
        order: u64,
        request: u64,
    ) -> Result<(), Violation> {
        let last = &mut self.last[usize::from(vring)];
        if last.conn != conn {
            *last = Last { conn, issued: None };
        }
        if let Some((before, other)) = last.issued
            && before > order
        {
            return Err(Violation::new(
                "order",
                format!(
                    "vring {vring}: request {request} goes to the disk after request {other}, but was made available before it"
                ),
            ));
        }
        last.issued = Some((order, request));
        Ok(())
    }
}

/// With `VIRTIO_F_IN_ORDER` the n-th request that is used is the n-th that was made
/// available, whoever ran the vring meanwhile. `used` counts it.
// spec: virtio 1.2, "In-order use of descriptors"
pub(super) fn check_used(vring: u16, used: u64, ask: &Ask) -> Result<(), Violation> {
    if ask.order + 1 == used {
        return Ok(());
    }
    Err(Violation::new(
        "in-order",
        format!(
            "vring {vring}: request {} is used as number {used}, but was made available as number {}",
            ask.request,
            ask.order + 1
        ),
    ))
}
