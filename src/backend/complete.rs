//! From what the disk has done to used entries.

use super::fetch::Broken;
use super::setup::Pending;
use super::vring::ring_log;
use super::{Backend, Event, Output};
use crate::blk::{Completion, DiskError, Status};
use crate::bugs::{self, Bug};
use crate::dirty::DirtyLog;
use crate::iommu::{Space, Translator};
use crate::marks::{self, Mark};
use crate::memory::Segment;
use crate::vring::{GuestFault, Used};
use crate::wire::features::virtio;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

impl<M: GuestMemory> Backend<M> {
    /// One batch of completions: statuses first, then one publication for each
    /// vring that has any.
    pub(super) fn disk_done(&mut self, done: &[Completion]) {
        for completion in done {
            if let Err((vring, fault)) = self.complete(completion) {
                self.broken(vring, Broken::Guest(fault));
            }
        }
        for vring in 0..self.config.num_queues {
            self.publish(vring);
        }
    }

    /// Write the status of a finished request and put it in its vring's batch.
    ///
    /// What it wrote to guest memory is logged in here, before the batch is
    /// published: data whatever came of it, since a read that failed, was
    /// cancelled or belongs to nobody any more may have stored a part.
    fn complete(&mut self, completion: &Completion) -> Result<(), (u16, GuestFault)> {
        let log = self.session.log_in_force(&self.log);
        if let Some(log) = log
            && let Some(request) = self.requests.get(completion.id)
            && request.op.fills_memory()
            && !bugs::on_when(Bug::FailedReadNotLogged, || completion.result.is_err())
        {
            // Of an append also what the guest wrote: that it is sent once more
            // than needed does no harm.
            log_data(log, request.segments, u32::MAX);
        }
        let Some(request) = self.requests.finish(completion.id) else {
            marks::hit(Mark::LateCompletion);
            self.event(Event::LateCompletion(completion.id));
            return Ok(());
        };
        let (vring, head) = (request.vring, request.head);
        if let (Pending::Settle(settling), Err(error)) = (&mut self.pending, completion.result)
            && settling.is_flush(completion.id)
        {
            settling.failed = true;
            self.out.push_back(Output::Event(Event::FlushFailed(error)));
        }
        if request.orphan {
            marks::hit(Mark::OrphanDone);
            return Ok(());
        }
        let run = self.vrings[usize::from(vring)].run.as_mut();
        let mem = if request.vacates { self.vacated.as_ref() } else { self.memory.as_ref() };
        let (Some(mem), Some(run)) = (mem, run) else { return Ok(()) };
        run.at_disk -= 1;
        let cancelled = completion.result == Err(DiskError::Cancelled);
        marks::hit_when(Mark::CancelLeaves, || cancelled);
        marks::hit_when(Mark::CancelTooLate, || run.suspending && !cancelled);
        let (status, len) = match completion.result {
            Ok(()) => (Status::Ok, request.written + 1),
            // It is in flight as before, only not here: its entry in the region
            // is what remains of it.
            Err(DiskError::Cancelled) if run.suspending && !bugs::on(Bug::CancelledIsReported) => {
                if bugs::on(Bug::CancelledLoseEntry)
                    && let Some((region, inflight)) =
                        run.region.as_mut().zip(self.inflight.as_ref())
                {
                    let _ = region.retire(&inflight.memory, head);
                }
                return Ok(());
            }
            // The guest's own fault is its own business.
            Err(DiskError::Zone(fault)) => (Status::of_zones(fault, self.session.knows_zones()), 1),
            Err(_) if bugs::on(Bug::ErrorSucceeds) => (Status::Ok, request.written + 1),
            Err(error) => {
                marks::hit(Mark::DiskFails);
                self.out.push_back(Output::Event(Event::DiskFailed { vring, head, error }));
                (Status::IoErr, 1)
            }
        };
        let addr = request.status_addr;
        mem.write_obj(status as u8, GuestAddress(addr))
            .map_err(|_| (vring, GuestFault::Status { head, addr }))?;
        if let Some(log) = log {
            log_status(log, addr);
        }
        run.finished(Used { head, len });
        Ok(())
    }

    /// Publish a vring's batch, and call the guest if it wants that.
    pub(super) fn publish(&mut self, vring: u16) {
        match self.try_publish(vring) {
            Ok(true) => self.call(vring),
            Ok(false) => {}
            Err(broken) => self.broken(vring, broken),
        }
    }

    /// The steps C1 to C6 for the whole batch; true if the guest is to be
    /// called.
    // spec: vhost-user, "Inflight I/O tracking": "When processing used buffers"
    pub(super) fn try_publish(&mut self, vring: u16) -> Result<bool, Broken> {
        let v = &mut self.vrings[usize::from(vring)];
        let (Some(mem), Some(run)) = (self.memory.as_ref(), v.run.as_mut()) else {
            return Ok(false);
        };
        if let Some(order) = &mut run.in_order {
            order.release(&mut run.batch);
        }
        if run.batch.is_empty() {
            return Ok(false);
        }
        let region_mem = self.inflight.as_ref().map(|i| &i.memory);

        if let Some((region, mem)) = run.region.as_mut().zip(region_mem) {
            self.late.catch_up(Some(mem));
            for used in run.batch.iter().filter(|_| !bugs::on(Bug::LinkAfterPublish)) {
                region.link(mem, &run.ring, used.head)?; // C1, C2, C3
            }
            if bugs::on(Bug::ClearBeforePublish) {
                for used in &run.batch {
                    region.retire(mem, used.head)?;
                }
            }
        }
        let log = self.session.log_in_force(&self.log);
        let ring_log = ring_log(log, v.addr.as_ref(), &v.iommu.map);
        let space = (self.session.features & virtio::ACCESS_PLATFORM != 0).then(|| {
            let (tlb, table) = (&self.iommu.tlb, &self.table);
            Space::new(mem, Translator { tlb, table, ring: &v.iommu.map })
        });
        match &space {
            Some(space) => run.ring.publish(space, &run.batch, ring_log),
            None => run.ring.publish(mem, &run.batch, ring_log),
        }?; // C4
        if let Some(log) = log {
            log.published();
        }
        let put_off = self.late.put_off(vring, run);
        if let Some((region, mem)) = run.region.as_mut().zip(region_mem)
            && !put_off
        {
            if bugs::on(Bug::LinkAfterPublish) {
                for used in &run.batch {
                    region.link(mem, &run.ring, used.head)?;
                }
            }
            if bugs::on(Bug::CloseBeforeRetire) {
                region.close(mem, run.ring.used())?;
            }
            for used in &run.batch {
                region.retire(mem, used.head)?; // C5
            }
            region.close(mem, run.ring.used())?; // C6
        }

        for used in &run.batch {
            run.taken[usize::from(used.head)] = false;
        }
        run.batch.clear();
        Ok(match &space {
            Some(space) => run.ring.needs_call(space),
            None => run.ring.needs_call(mem),
        }?)
    }
}

/// Log the first `left` bytes of a request's data.
pub(super) fn log_data<M: GuestMemory>(log: &DirtyLog<M>, segments: &[Segment], mut left: u32) {
    if bugs::on(Bug::DataNotLogged) {
        return;
    }
    for segment in segments {
        let len = segment.len.min(left);
        log.mark(segment.addr, u64::from(len));
        left -= len;
    }
}

/// Log a status byte.
pub(super) fn log_status<M: GuestMemory>(log: &DirtyLog<M>, addr: u64) {
    if !bugs::on(Bug::StatusNotLogged) {
        log.mark(addr, 1);
    }
}
