//! Verified I/O of a guest, which may move with it from host to host.

use super::{Dir, QUEUES, pattern};
use midflight::adapter::client::{Client, Handover};
use midflight::driver::{BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, Span};
use midflight::wire::features::virtio;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of this seed.
    Write(u64),
    Read(u64),
}

/// What the guest has asked for and what came of it; it moves with the guest.
#[derive(Default)]
pub struct Book {
    /// By slot: what is under way, on which vring.
    pub open: BTreeMap<u64, (u16, u64, Kind)>,
    /// Block to the seed of what it holds.
    pub disk: BTreeMap<u64, u64>,
    pub done: u32,
}

impl Book {
    /// One block, with guest memory of its own.
    pub fn submit(&mut self, guest: &mut Client, vring: u16, slot: u64, block: u64, kind: Kind) {
        let at = guest.data_area().start + slot * 0x3000;
        let data = [Span { addr: at + 0x1000, len: 4096 }];
        let (op, content) = match kind {
            Kind::Write(seed) => (BlkOp::Out { sector: block * 8 }, pattern(seed, 4096)),
            Kind::Read(_) => (BlkOp::In { sector: block * 8 }, vec![0; 4096]),
        };
        guest.memory().write_slice(&content, GuestAddress(data[0].addr)).unwrap();
        let (status, table) = (at + 0x2000, Some(at + 32));
        let buffers = RequestBuffers { header: at, data: &data, status, table };
        let framing = if slot.is_multiple_of(2) { Framing::INDIRECT } else { Framing::CLASSIC };
        guest.submit(vring, &BlkRequest { op, token: slot }, &buffers, &framing).unwrap();
        assert_eq!(self.open.insert(slot, (vring, block, kind)), None);
    }

    /// Take what is completed now; how many that were.
    pub fn reap(&mut self, guest: &mut Client) -> u32 {
        let before = self.done;
        for vring in 0..QUEUES {
            while let Some(done) = guest.reap(vring).unwrap() {
                assert_eq!(done.status, BlkStatus::Ok);
                let slot = done.token;
                let (on, block, kind) = self.open.remove(&slot).expect("completed once");
                assert_eq!(on, vring);
                match kind {
                    Kind::Write(seed) => drop(self.disk.insert(block, seed)),
                    Kind::Read(seed) => {
                        let at = guest.data_area().start + slot * 0x3000 + 0x1000;
                        let mut bytes = vec![0; 4096];
                        guest.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
                        assert!(bytes == pattern(seed, 4096), "slot {slot} reads block {block}");
                    }
                }
                self.done += 1;
            }
        }
        self.done - before
    }

    pub fn finish(&mut self, guest: &mut Client) {
        let start = Instant::now();
        while !self.open.is_empty() {
            if self.reap(guest) == 0 {
                assert!(start.elapsed().as_secs() < 20, "{} requests are lost", self.open.len());
                guest.pump(midflight::time::Duration::from_millis(5)).unwrap();
            }
        }
    }

    /// 16 writes on one vring, 16 reads of what `fill` wrote on the other.
    pub fn submit_both(&mut self, guest: &mut Client, seed: u64) {
        for i in 0..16 {
            self.submit(guest, 0, i, 1000 + i, Kind::Write(seed + i));
            self.submit(guest, 1, 16 + i, 500 + i, Kind::Read(i));
        }
        guest.kick(0).unwrap();
        guest.kick(1).unwrap();
    }

    pub fn fill(&mut self, guest: &mut Client) {
        for i in 0..16 {
            self.submit(guest, 0, i, 500 + i, Kind::Write(i));
        }
        guest.kick(0).unwrap();
        self.finish(guest);
    }

    pub fn check_file(&self, dir: &Dir) {
        let file = fs::read(dir.disk()).unwrap();
        for (block, seed) in &self.disk {
            let bytes = &file[*block as usize * 4096..][..4096];
            assert!(bytes == pattern(*seed, 4096), "block {block} in the file");
        }
    }
}

/// Time for a daemon to fetch what it was kicked for.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(30));
}

/// Requests in flight by the region that is handed over. Its entries have 16
/// bytes, or 32 if rings are packed, and so has what is before them.
pub fn in_flight(handover: &Handover) -> usize {
    let packed = handover.state.features.unwrap() & virtio::RING_PACKED != 0;
    let (size, unit) = (usize::from(handover.state.queue_size), if packed { 32 } else { 16 });
    let parts = handover.region.chunks(handover.region.len().max(1) / usize::from(QUEUES));
    parts.map(|part| (0..size).filter(|entry| part[unit + unit * entry] == 1).count()).sum()
}
