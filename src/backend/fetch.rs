//! From a kick to disk requests.

use super::complete::{log_data, log_status};
use super::iommu::VringIommu;
use super::requests::{NewRequest, Requests};
use super::translate::{AddressSpace, Direct, Prepared, Translated};
use super::vring::{Run, ring_log};
use super::{
    Backend, CHAINS_PER_CALL, CHAINS_UNDIVIDED, Event, FrontendFault, Output, POLL_INTERVAL,
};
use crate::blk::{self, Action, ByteRange, DeviceConfig, DiskOp, Mode, Status};
use crate::bugs::{self, Bug};
use crate::dirty::{DirtyLog, RingLog};
use crate::inflight::InflightFault;
use crate::iommu::{Space, Translator};
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

/// How far a vring was looked at.
enum Fetched {
    /// There was no more.
    All,
    /// This call was not allowed to take more.
    More,
    /// The next chain has to wait for pages.
    Waits,
}

/// All that is needed to turn a head into a request.
struct Fetcher<'a, M, S> {
    vring: u16,
    mem: &'a M,
    /// The same by the addresses that the guest uses.
    space: S,
    region_mem: Option<&'a M>,
    /// The dirty log in force, and how the used ring counts in it.
    log: Option<&'a DirtyLog<M>>,
    ring_log: Option<RingLog<'a, M>>,
    config: &'a DeviceConfig,
    mode: Mode,
    run: &'a mut Run,
    requests: &'a mut Requests,
    chain: &'a mut Chain,
    ranges: &'a mut Vec<ByteRange>,
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
        let result = if self.translates() {
            match self.translating_fetcher(vring) {
                Some(mut fetcher) => fetcher.fetch(),
                None => return,
            }
        } else {
            match self.fetcher(vring) {
                Some(mut fetcher) => fetcher.fetch(),
                None => return,
            }
        };
        if let Some(run) = &mut self.vrings[usize::from(vring)].run {
            run.more = matches!(result, Ok(Fetched::More));
            run.poll_at = now + POLL_INTERVAL;
        }
        if matches!(result, Ok(Fetched::Waits)) {
            self.wait_for_pages(vring);
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
        if self.translates() {
            let v = &mut self.vrings[usize::from(vring)];
            v.iommu.resubmit = heads.iter().copied().collect();
            // They are in flight whether they can be started now or not.
            for head in heads {
                if let Some(run) = &mut v.run {
                    run.taken[usize::from(*head)] = true;
                }
            }
            return self.resubmit_rest(vring);
        }
        let Some(mut fetcher) = self.fetcher(vring) else { return };
        let result = heads.iter().try_for_each(|&head| fetcher.start(head).map(|_| ()));
        self.publish(vring);
        if let Err(broken) = result {
            self.broken(vring, broken);
        }
    }

    /// Go on with that, until a head has to wait for its pages. What is left is
    /// in the region as it was found.
    pub(super) fn resubmit_rest(&mut self, vring: u16) {
        let index = usize::from(vring);
        let mut result = Ok(());
        while let Some(&head) = self.vrings[index].iommu.resubmit.front() {
            let Some(mut fetcher) = self.translating_fetcher(vring) else { return };
            match fetcher.start(head) {
                Ok(true) => {}
                Ok(false) => {
                    self.wait_for_pages(vring);
                    break;
                }
                Err(broken) => result = Err(broken),
            }
            self.vrings[index].iommu.resubmit.pop_front();
            if result.is_err() {
                self.vrings[index].iommu.resubmit.clear();
            }
        }
        self.publish(vring);
        if let Err(broken) = result {
            self.broken(vring, broken);
        }
    }

    /// What was agreed on about requests.
    fn mode(&self) -> Mode {
        Mode {
            durable: self.session.writes_are_durable(self.cache.is_on()),
            zoned: self.session.knows_zones(),
        }
    }

    fn fetcher(&mut self, vring: u16) -> Option<Fetcher<'_, M, Direct<'_, M>>> {
        let mode = self.mode();
        let v = &mut self.vrings[usize::from(vring)];
        let mem = self.memory.as_ref()?;
        Some(Fetcher {
            vring,
            mem,
            space: Direct(mem),
            region_mem: self.inflight.as_ref().map(|i| &i.memory),
            log: self.session.log_in_force(&self.log),
            ring_log: ring_log(self.session.log_in_force(&self.log), v.addr.as_ref(), &v.iommu.map),
            config: &self.config,
            mode,
            run: v.run.as_mut()?,
            requests: &mut self.requests,
            chain: &mut self.chain,
            ranges: &mut self.ranges,
            out: &mut self.out,
        })
    }

    fn translating_fetcher(&mut self, vring: u16) -> Option<Fetcher<'_, M, Translated<'_, M>>> {
        let mode = self.mode();
        let v = &mut self.vrings[usize::from(vring)];
        let mem = self.memory.as_ref()?;
        let VringIommu { map, refused, .. } = &mut v.iommu;
        let translator = Translator { tlb: &self.iommu.tlb, table: &self.table, ring: map };
        let space = Space::new(mem, translator);
        Some(Fetcher {
            vring,
            mem,
            space: Translated { space, refused, scratch: &mut self.scratch },
            region_mem: self.inflight.as_ref().map(|i| &i.memory),
            log: self.session.log_in_force(&self.log),
            ring_log: ring_log(self.session.log_in_force(&self.log), v.addr.as_ref(), map),
            config: &self.config,
            mode,
            run: v.run.as_mut()?,
            requests: &mut self.requests,
            chain: &mut self.chain,
            ranges: &mut self.ranges,
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
                self.err(vring);
                self.event(Event::VringBroken { vring, fault });
            }
            Broken::Frontend(fault) => self.close(fault),
        }
    }
}

impl<M: GuestMemory, S: AddressSpace> Fetcher<'_, M, S> {
    fn fetch(&mut self) -> Result<Fetched, Broken> {
        let there = self.run.ring.backlog(self.space.view(), 2 * CHAINS_PER_CALL)?;
        let mut left = there.div_ceil(2).clamp(CHAINS_UNDIVIDED, CHAINS_PER_CALL);
        self.run.ring.disable_kicks(self.space.view(), self.ring_log)?;
        loop {
            while let Some(head) = self.run.ring.pop(self.space.view())? {
                if !self.take(head)? {
                    // It was not fetched, then: nothing about it was stored.
                    self.run.ring.put_back(head);
                    return Ok(Fetched::Waits);
                }
                left -= 1;
                if left == 0 {
                    marks::hit(Mark::FetchBounded);
                    return Ok(Fetched::More);
                }
            }
            // The guest may have added a chain after the last look and before
            // it could see that a kick is wanted again.
            let more = self.run.ring.enable_kicks(self.space.view(), self.ring_log)?;
            marks::hit_when(Mark::FetchLooksAgain, || more);
            if !more || bugs::on(Bug::NoLookAfterWish) {
                return Ok(Fetched::All);
            }
        }
    }

    /// False if it has to wait for pages.
    fn take(&mut self, head: u16) -> Result<bool, Broken> {
        if self.run.taken[usize::from(head)] {
            return Err(GuestFault::HeadInFlight { head }.into());
        }
        let mut prepared = None;
        if S::WAITS {
            let looked_at = self.prepare(head);
            if looked_at == Ok(Prepared::Missing) {
                return Ok(false);
            }
            prepared = Some(looked_at);
        }
        // F2, F3, F4, before anything else is done for this request and before
        // the next one is fetched.
        if let (Some(region), Some(mem)) = (&mut self.run.region, self.region_mem) {
            region.submit(mem, &self.run.ring, head)?;
        }
        self.run.taken[usize::from(head)] = true;
        let prepared = match prepared {
            Some(prepared) => prepared?,
            None => self.prepare(head)?,
        };
        self.begin(head, prepared, false)?;
        Ok(true)
    }

    /// Turn a head that a predecessor has left in the region into a request, or
    /// answer it. False if it has to wait for pages.
    fn start(&mut self, head: u16) -> Result<bool, Broken> {
        self.run.taken[usize::from(head)] = true;
        match self.prepare(head)? {
            Prepared::Missing => return Ok(false),
            prepared => self.begin(head, prepared, true)?,
        }
        Ok(true)
    }

    /// Read the chain of a head, every descriptor once.
    fn prepare(&mut self, head: u16) -> Result<Prepared, GuestFault> {
        let walk = self.run.ring.walk(self.space.view(), head, self.chain);
        self.space.translate(head, self.chain, walk)
    }

    /// `again`: a predecessor may have done all of it.
    fn begin(&mut self, head: u16, prepared: Prepared, again: bool) -> Result<(), Broken> {
        if let Some(order) = &mut self.run.in_order {
            order.fetch(head);
        }
        let mem = self.mem;
        let parsed = match prepared {
            Prepared::Refused { status_addr } => {
                let action = Action::Answer { status: Status::IoErr, written: 0 };
                blk::Parsed { action, status_addr }
            }
            _ => blk::parse(mem, self.config, self.mode, head, self.chain, self.ranges)?,
        };
        match parsed.action {
            Action::Disk(op) => {
                marks::hit_when(Mark::WriteThrough, || self.mode.durable);
                let (readable, writable) = (&self.chain.readable[..], &self.chain.writable[..]);
                let none = &[][..];
                let data = match op {
                    DiskOp::Write { .. } => [readable, none],
                    DiskOp::Read { .. } | DiskOp::ZoneReport { .. } => [none, writable],
                    DiskOp::ZoneAppend { .. } => [readable, writable],
                    _ => [none, none],
                };
                let order = match (op, &self.run.region, self.region_mem) {
                    (DiskOp::ZoneAppend { .. }, Some(region), Some(mem)) => {
                        region.order_of(mem, head)
                    }
                    _ => None,
                };
                let id = self.requests.insert(NewRequest {
                    vring: self.vring,
                    head,
                    op,
                    data,
                    ranges: self.ranges,
                    again,
                    order,
                    status_addr: parsed.status_addr,
                });
                if S::WAITS {
                    self.requests.name(id, self.space.named());
                }
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
                    _ => {}
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
