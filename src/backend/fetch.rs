//! From a kick to disk requests.

use super::complete::{log_data, log_status};
use super::requests::Requests;
use super::vring::Run;
use super::{
    Backend, CHAINS_PER_CALL, CHAINS_UNDIVIDED, Event, FrontendFault, Output, POLL_INTERVAL,
};
use crate::blk::{self, Action, DeviceConfig, Status};
use crate::bugs::{self, Bug};
use crate::dirty::{DirtyLog, RingLog};
use crate::inflight::InflightFault;
use crate::marks::{self, Mark};
use crate::time::Instant;
use crate::vring::chain::Chain;
use crate::vring::{GuestFault, Used};
use std::collections::VecDeque;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Why a vring cannot go on.
pub(super) enum Broken {
    Guest(GuestFault),
    Frontend(FrontendFault),
}

impl From<GuestFault> for Broken {
    fn from(f: GuestFault) -> Self {
        Self::Guest(f)
    }
}

impl From<InflightFault> for Broken {
    fn from(f: InflightFault) -> Self {
        Self::Frontend(f.into())
    }
}

impl From<crate::inflight::RegionGone> for Broken {
    fn from(f: crate::inflight::RegionGone) -> Self {
        InflightFault::from(f).into()
    }
}

/// All that is needed to turn a head into a request.
struct Fetcher<'a, M> {
    vring: u16,
    mem: &'a M,
    region_mem: Option<&'a M>,
    /// The dirty log in force, and where the used ring counts in it.
    log: Option<&'a DirtyLog<M>>,
    used_log: Option<u64>,
    config: &'a DeviceConfig,
    durable: bool,
    run: &'a mut Run,
    requests: &'a mut Requests,
    chain: &'a mut Chain,
    out: &'a mut VecDeque<Output>,
}

impl<M: GuestMemory> Backend<M> {
    /// True if no stop, memory change or shutdown keeps all vrings from
    /// fetching.
    pub(super) fn may_fetch(&self) -> bool {
        !self.shutdown && !self.pending.holds_fetching() && !self.postcopy.holds_fetching()
    }

    /// Look for available chains, and start what they ask for.
    pub(super) fn fetch(&mut self, now: Instant, vring: u16) {
        let v = &self.vrings[usize::from(vring)];
        if !self.may_fetch() || !v.fetches() {
            return;
        }
        let result = match self.fetcher(vring) {
            Some(mut fetcher) => fetcher.fetch(),
            None => return,
        };
        if let Some(run) = &mut self.vrings[usize::from(vring)].run {
            run.more = matches!(result, Ok(true));
            run.poll_at = now + POLL_INTERVAL;
        }
        let answers =
            || self.vrings[usize::from(vring)].run.as_ref().is_some_and(|r| !r.batch.is_empty());
        if bugs::on_when(Bug::NoCallForAnswers, answers) {
            let _ = self.try_publish(vring);
        }
        self.publish(vring);
        if let Err(broken) = result {
            self.broken(vring, broken);
        }
    }

    /// Start again what a predecessor had in flight, in the order given.
    pub(super) fn resubmit(&mut self, vring: u16, heads: &[u16]) {
        let Some(mut fetcher) = self.fetcher(vring) else { return };
        let result = heads.iter().try_for_each(|&head| fetcher.start(head));
        self.publish(vring);
        if let Err(broken) = result {
            self.broken(vring, broken);
        }
    }

    fn fetcher(&mut self, vring: u16) -> Option<Fetcher<'_, M>> {
        let durable = self.session.writes_are_durable(self.writeback);
        let v = &mut self.vrings[usize::from(vring)];
        Some(Fetcher {
            vring,
            mem: self.memory.as_ref()?,
            region_mem: self.inflight.as_ref().map(|i| &i.memory),
            log: self.session.log_in_force(&self.log),
            used_log: v.used_log(),
            config: &self.config,
            durable,
            run: v.run.as_mut()?,
            requests: &mut self.requests,
            chain: &mut self.chain,
            out: &mut self.out,
        })
    }

    /// A vring cannot go on: it is silent from here, what it has in flight is
    /// completed.
    pub(super) fn broken(&mut self, vring: u16, broken: Broken) {
        match broken {
            Broken::Guest(fault) => {
                let v = &mut self.vrings[usize::from(vring)];
                if let Some(run) = &mut v.run {
                    run.broken = true;
                }
                if let Some(handle) = v.err {
                    self.out.push_back(Output::Err { vring, handle });
                }
                self.event(Event::VringBroken { vring, fault });
            }
            Broken::Frontend(fault) => self.close(fault),
        }
    }
}

impl<'a, M: GuestMemory> Fetcher<'a, M> {
    fn ring_log(&self) -> Option<RingLog<'a, M>> {
        self.log.zip(self.used_log).map(|(log, at)| RingLog::new(log, at))
    }

    /// True if chains may be left that this call was not allowed to take.
    fn fetch(&mut self) -> Result<bool, Broken> {
        let there = self.run.ring.backlog(self.mem, 2 * CHAINS_PER_CALL)?;
        let mut left = there.div_ceil(2).clamp(CHAINS_UNDIVIDED, CHAINS_PER_CALL);
        self.run.ring.disable_kicks(self.mem, self.ring_log())?;
        loop {
            while let Some(head) = self.run.ring.pop(self.mem)? {
                self.take(head)?;
                left -= 1;
                if left == 0 {
                    marks::hit(Mark::FetchBounded);
                    return Ok(true);
                }
            }
            // The guest may have added a chain after the last look and before
            // it could see that a kick is wanted again.
            let more = self.run.ring.enable_kicks(self.mem, self.ring_log())?;
            marks::hit_when(Mark::FetchLooksAgain, || more);
            if !more || bugs::on(Bug::NoLookAfterWish) {
                return Ok(false);
            }
        }
    }

    fn take(&mut self, head: u16) -> Result<(), Broken> {
        if self.run.taken[usize::from(head)] {
            return Err(GuestFault::HeadInFlight { head }.into());
        }
        // F2, F3, F4, before anything else is done for this request and before
        // the next one is fetched.
        if let (Some(region), Some(mem)) = (&mut self.run.region, self.region_mem) {
            region.submit(mem, &self.run.ring, head)?;
        }
        self.start(head)
    }

    /// Turn a head that the region knows into a request, or answer it.
    fn start(&mut self, head: u16) -> Result<(), Broken> {
        self.run.taken[usize::from(head)] = true;
        if let Some(order) = &mut self.run.in_order {
            order.fetch(head);
        }
        let mem = self.mem;
        self.run.ring.walk(mem, head, self.chain)?;
        let parsed = blk::parse(mem, self.config, self.durable, head, self.chain)?;
        match parsed.action {
            Action::Disk(op) => {
                marks::hit_when(Mark::WriteThrough, || self.durable);
                let data = match op {
                    blk::DiskOp::Read { .. } => &self.chain.writable[..],
                    blk::DiskOp::Write { .. } => &self.chain.readable[..],
                    _ => &[],
                };
                let id = self.requests.insert(self.vring, head, op, data, parsed.status_addr);
                self.run.at_disk += 1;
                if let Some(order) = self.run.in_order.as_mut().filter(|_| !op.repeatable()) {
                    order.last_runs_once();
                }
                self.out.push_back(Output::Disk(id));
            }
            Action::Answer { status, written } => {
                match status {
                    Status::Ok => {}
                    Status::IoErr => marks::hit(Mark::RefusedIoErr),
                    Status::Unsupp => marks::hit(Mark::RefusedUnsupp),
                }
                let at = parsed.status_addr;
                mem.write_obj(status as u8, GuestAddress(at))
                    .map_err(|_| GuestFault::Status { head, addr: at })?;
                if let Some(log) = self.log {
                    log_data(log, &self.chain.writable, written);
                    log_status(log, at);
                }
                self.run.finished(Used { head, len: written + 1 });
            }
        }
        Ok(())
    }
}
