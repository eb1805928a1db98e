//! From what the disk has done to used entries.

use super::fetch::Broken;
use super::{Backend, Event, Output};
use crate::blk::{Completion, Status};
use crate::bugs::{self, Bug};
use crate::vring::{GuestFault, Used};
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
    fn complete(&mut self, completion: &Completion) -> Result<(), (u16, GuestFault)> {
        let Some(request) = self.requests.finish(completion.id) else {
            self.event(Event::LateCompletion(completion.id));
            return Ok(());
        };
        let (vring, head) = (request.vring, request.head);
        if request.orphan {
            return Ok(());
        }
        let (status, len) = match completion.result {
            Ok(()) => (Status::Ok, request.written + 1),
            Err(error) => {
                self.event(Event::DiskFailed { vring, head, error });
                (Status::IoErr, 1)
            }
        };
        let run = self.vrings[usize::from(vring)].run.as_mut();
        let (Some(mem), Some(run)) = (self.memory.as_ref(), run) else { return Ok(()) };
        run.at_disk -= 1;
        let addr = request.status_addr;
        mem.write_obj(status as u8, GuestAddress(addr))
            .map_err(|_| (vring, GuestFault::Status { head, addr }))?;
        run.batch.push(Used { head, len });
        Ok(())
    }

    /// Publish a vring's batch, and call the guest if it wants that.
    pub(super) fn publish(&mut self, vring: u16) {
        match self.try_publish(vring) {
            Ok(true) => {
                if let Some(handle) = self.vrings[usize::from(vring)].call {
                    self.out.push_back(Output::Call { vring, handle });
                }
            }
            Ok(false) => {}
            Err(broken) => self.broken(vring, broken),
        }
    }

    /// The steps C1 to C6 for the whole batch; true if the guest is to be
    /// called.
    // spec: vhost-user, "Inflight I/O tracking": "When processing used buffers"
    fn try_publish(&mut self, vring: u16) -> Result<bool, Broken> {
        let run = self.vrings[usize::from(vring)].run.as_mut();
        let (Some(mem), Some(run)) = (self.memory.as_ref(), run) else { return Ok(false) };
        if run.batch.is_empty() {
            return Ok(false);
        }
        let region_mem = self.inflight.as_ref().map(|i| &i.memory);
        let mut region = run.region.as_mut().zip(region_mem);

        if let Some((region, mem)) = &mut region {
            for used in &run.batch {
                region.link(*mem, used.head)?; // C1, C2, C3
            }
            if bugs::on(Bug::ClearBeforePublish) {
                for used in &run.batch {
                    region.retire(*mem, used.head)?;
                }
            }
        }
        run.ring.publish(mem, &run.batch)?; // C4
        if let Some((region, mem)) = &mut region {
            for used in &run.batch {
                region.retire(*mem, used.head)?; // C5
            }
            region.close(*mem, run.ring.used_idx())?; // C6
        }

        for used in &run.batch {
            run.taken[usize::from(used.head)] = false;
        }
        run.batch.clear();
        Ok(run.ring.needs_call(mem)?)
    }
}
