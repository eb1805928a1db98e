//! What the owner asks for.

use super::Frontend;
use super::base::{self, KeptBase};
use super::config::Start;
use super::error::{ApiMisuse, Failure};
use super::io::{Command, Event, Output};
use super::logging::{check_log, used_guest_addr};
use super::phase::{Phase, Trigger};
use super::steps::{self, ConfigFor, Milestone, Purpose, Step};
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::time::Instant;
use crate::wire::features::{protocol, virtio};
use crate::wire::{
    ConfigPayload, Envelope, FrontendRequest, MemRegion, TransferState, encode_request,
};

/// Directions of SET_DEVICE_STATE_FD, from where the back-end sits.
// spec: vhost-user, "Migrating back-end state"
const SAVE: u32 = 0;
const LOAD: u32 = 1;

/// Feature bits that are not the guest's.
const OURS: u64 = virtio::PROTOCOL_FEATURES | virtio::LOG_ALL;

impl Frontend {
    /// Whether a stop may leave requests in flight in the inflight region:
    /// after [`Command::Suspend`] (`asked`), or after any other stop.
    pub fn suspends(&self, asked: bool) -> bool {
        let dialect = self.config.dialect;
        if dialect.plain_get_vring_base_may_suspend() {
            return self.session.has(dialect.get_vring_base_inflight());
        }
        asked && self.can_ask_to_suspend()
    }

    /// There is a message for it and it was agreed on.
    fn can_ask_to_suspend(&self) -> bool {
        let dialect = self.config.dialect;
        let needed = dialect.get_vring_base_inflight() | dialect.get_vring_base_skip_drain();
        !dialect.plain_get_vring_base_may_suspend() && self.session.protocol & needed == needed
    }

    pub(super) fn command(&mut self, now: Instant, command: Command) -> Result<(), ApiMisuse> {
        let what = command.name();
        match command {
            Command::Connect => {
                self.try_go(what, Trigger::Connect)?;
                self.retry_at = None;
                self.outputs.push_back(Output::Connect);
            }
            Command::Disconnect => {
                self.expect_phase(what, self.phase != Phase::Idle)?;
                self.fail(now, Failure::Disconnected);
            }
            Command::SetMemory(regions) => self.set_memory(regions)?,
            Command::Start(start) => self.start(&start)?,
            Command::Stop | Command::Suspend => {
                self.try_go(what, Trigger::Stop)?;
                let ask = command == Command::Suspend && self.can_ask_to_suspend();
                let steps = steps::stop(&self.config, &self.device, &self.session, ask);
                self.steps.extend(steps);
                self.steps.push_back(Step::Reached(Milestone::Stopped));
            }
            Command::LogOn { log, handle } => self.log_on(what, log, handle)?,
            Command::LogOff => self.log_off(),
            Command::Adopt { state, inflight } => self.adopt(now, what, state, inflight)?,
            Command::Kick { vring } => self.kick(what, vring)?,
            Command::PostcopyAdvise => self.postcopy_advise(what)?,
            Command::PostcopyListen => self.postcopy_listen(what)?,
            Command::PostcopyEnd => self.postcopy_end(what)?,
            Command::SaveState { handle } => self.transfer_state(what, SAVE, handle)?,
            Command::LoadState { handle } => self.transfer_state(what, LOAD, handle)?,
            Command::CheckState => {
                self.expect_device_state(what)?;
                let step = steps::ask(FrontendRequest::CheckDeviceState, Purpose::StateCheck);
                self.queue_checked(step)?;
            }
            Command::Reset => self.reset(what)?,
            Command::ReadConfig { offset, size } => {
                self.expect_config(what)?;
                self.queue_checked(steps::get_config(offset, size, ConfigFor::Owner))?;
            }
            Command::WriteConfig { offset, flags, data } => {
                self.expect_config(what)?;
                let payload = ConfigPayload { offset, flags, data };
                self.queue_checked(steps::set_config(&self.session, payload))?;
                if !self.session.has(protocol::REPLY_ACK) {
                    self.steps.push_back(Step::Reached(Milestone::ConfigWritten));
                }
            }
            Command::AnswerMiss(_) | Command::Translate(_) | Command::Invalidate { .. } => {
                self.iommu_command(what, command)?;
            }
            Command::Raw { request, need_reply } => {
                self.expect_phase(what, self.phase.is_connected())?;
                self.queue_checked(steps::raw(request, need_reply))?;
            }
        }
        self.advance(now);
        Ok(())
    }

    fn transfer_state(
        &mut self,
        what: &'static str,
        direction: u32,
        handle: Handle,
    ) -> Result<(), ApiMisuse> {
        self.expect_device_state(what)?;
        // The only phase there is: all vrings are stopped.
        let state = TransferState { direction, phase: 0 };
        let request = FrontendRequest::SetDeviceStateFd(state, handle);
        self.queue_checked(steps::ask(request, Purpose::StateChannel))
    }

    fn expect_device_state(&self, what: &'static str) -> Result<(), ApiMisuse> {
        self.expect_phase(what, self.phase == Phase::Ready)?;
        if !self.session.has(protocol::DEVICE_STATE) {
            return Err(ApiMisuse::NotNegotiated { what, feature: "DEVICE_STATE" });
        }
        Ok(())
    }

    fn set_memory(&mut self, regions: Vec<(MemRegion, Handle)>) -> Result<(), ApiMisuse> {
        self.expect_phase("set memory", self.is_settled())?;
        if let Some((log, _)) = self.device.log {
            check_log(log, &regions)?;
        }
        if self.phase == Phase::Running {
            self.check_memory(regions.len())?;
        }
        self.device.memory = regions;
        if self.phase == Phase::Running {
            if bugs::on(Bug::MemoryTwice) {
                self.steps.extend(steps::sync_memory(&self.device, &self.session));
            } else {
                self.steps.push_back(Step::SyncMemory);
            }
        }
        Ok(())
    }

    fn start(&mut self, start: &Start) -> Result<(), ApiMisuse> {
        self.expect_phase("start", self.phase == Phase::Ready)?;
        self.check_pages("start")?;
        let offered = self.features();
        let features = start.features.or(self.device.features).unwrap_or(offered);
        let features = features & !OURS;
        if features & !offered != 0 {
            return Err(ApiMisuse::FeaturesNotOffered(features & !offered));
        }
        self.check_memory(self.device.memory.len())?;
        let packed = features & virtio::RING_PACKED != 0;
        let mut next = 0;
        let mut said = Vec::new();
        for vring in &start.vrings {
            if vring.index < next || vring.index >= self.config.num_queues {
                return Err(ApiMisuse::BadVring(vring.index));
            }
            next = vring.index + 1;
            let kept = self.device.bases[usize::from(vring.index)];
            let base = kept.said(vring.base, packed);
            let base = base.ok_or(ApiMisuse::BaseUnknown(vring.index))?;
            if !base::fits(base, packed, vring.size) {
                return Err(ApiMisuse::BadBase { vring: vring.index, base });
            }
            said.push((vring.index, base));
            if self.device.log.is_some() {
                let used = (vring.index, vring.used);
                used_guest_addr(&self.config.dialect, &self.device, &self.session, used)?;
            }
        }
        self.go(Trigger::Start);
        self.device.features = Some(features);
        let steps = steps::start(&self.config, &self.device, &self.session, start);
        self.steps.extend(steps);
        // From here on only the back-end and guest memory know.
        for (vring, base) in said {
            self.device.bases[usize::from(vring)] = KeptBase::Lost(base);
        }
        self.device.started.clone_from(&start.vrings);
        Ok(())
    }

    fn reset(&mut self, what: &'static str) -> Result<(), ApiMisuse> {
        if !self.phase.is_connected() || self.phase == Phase::Negotiating {
            // A guest can be reset while its back-end is away: nobody needs to
            // be told, but the region must not reach the next one.
            self.forget_requests();
            return Ok(());
        }
        let running = self.phase == Phase::Running;
        self.try_go(what, Trigger::Reset)?;
        if running {
            let stop = steps::stop(&self.config, &self.device, &self.session, false);
            self.steps.extend(stop);
        }
        self.steps.extend(steps::reset(&self.session));
        Ok(())
    }

    /// What a reset of the device leaves behind: nothing in flight, fresh rings.
    pub(super) fn forget_requests(&mut self) {
        if let Some((_, handle)) =
            self.device.inflight.take_if(|_| !bugs::on(Bug::RegionKeptAtReset))
        {
            self.outputs.push_back(Output::Release(handle));
        }
        self.device.bases.fill(KeptBase::Fresh);
        self.device.started.clear();
        self.device.features = None;
        self.outputs.push_back(Output::Event(Event::Reset));
    }

    pub(super) fn check_memory(&self, regions: usize) -> Result<(), ApiMisuse> {
        let (got, max) = (regions as u64, self.session.max_regions());
        if got == 0 {
            return Err(ApiMisuse::NoMemory);
        }
        if got > max {
            return Err(ApiMisuse::TooManyRegions { max, got });
        }
        Ok(())
    }

    fn expect_config(&self, what: &'static str) -> Result<(), ApiMisuse> {
        let negotiated = self.phase.is_connected() && self.phase != Phase::Negotiating;
        self.expect_phase(what, negotiated)?;
        if !self.session.has(protocol::CONFIG) {
            let feature = "CONFIG";
            return Err(ApiMisuse::NotNegotiated { what, feature });
        }
        Ok(())
    }

    /// Queue a message of the owner's if it can be put on the wire at all.
    fn queue_checked(&mut self, step: Step) -> Result<(), ApiMisuse> {
        if let Step::Ask { request, need_reply, .. } = &step {
            let envelope = Envelope { message: request.clone(), need_reply: *need_reply };
            encode_request(&envelope, &self.config.dialect)?;
        }
        self.steps.push_back(step);
        Ok(())
    }
}
