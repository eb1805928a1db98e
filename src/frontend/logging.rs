//! The dirty log of a migration's source: on, replaced, off, while vrings run.
// spec: vhost-user, "Migration"

use super::Frontend;
use super::config::FrontendConfig;
use super::error::ApiMisuse;
use super::io::{Event, Output};
use super::phase::Phase;
use super::session::{Device, Session};
use super::steps::{self, Milestone, Purpose, Step};
use crate::Handle;
use crate::wire::features::{protocol, virtio};
use crate::wire::{Dialect, FrontendRequest as Request, LogBase, LogDescription, MemRegion};

/// Bytes of guest memory that one byte of a log stands for.
const BYTE_OF_LOG: u64 = 8 * 4096;

impl Frontend {
    pub(super) fn log_on(
        &mut self,
        what: &'static str,
        log: LogDescription,
        handle: Handle,
    ) -> Result<(), ApiMisuse> {
        let active = self.vrings_are_up();
        self.expect_phase(what, active || self.is_settled())?;
        check_log(log, &self.device.memory)?;
        let old = self.device.log.replace((log, handle));
        if self.phase.is_connected() && self.phase != Phase::Negotiating {
            let lacks = self.log_lacks().map(|feature| ApiMisuse::NotNegotiated { what, feature });
            let checked = lacks.map_or(Ok(()), Err).and_then(|()| {
                let dialect = self.config.dialect;
                let fits = |v| used_guest_addr(&dialect, &self.device, &self.session, v).map(drop);
                self.device.started.iter().try_for_each(|v| fits((v.index, v.used)))
            });
            if checked.is_err() {
                self.device.log = old;
                return checked;
            }
        }
        if active {
            let replaced = old.is_some();
            let steps = on_steps(&self.config, &self.device, &self.session, replaced);
            self.steps.extend(steps);
            self.steps.push_back(Step::Reached(Milestone::Logging));
        }
        Ok(())
    }

    pub(super) fn log_off(&mut self) {
        let was_on = self.device.log.take().is_some();
        if was_on && self.vrings_are_up() {
            let steps = off_steps(&self.config, &self.device, &self.session);
            self.steps.extend(steps);
            self.steps.push_back(Step::Reached(Milestone::NotLogging));
        } else {
            // A back-end hears of it by the features of its next start.
            self.outputs.push_back(Output::Event(Event::NotLogging));
        }
    }

    /// The back-end does not want to log. That ends a migration, not a guest:
    /// take back what was said so far.
    pub(super) fn log_refused(&mut self, message: &'static str, status: u64) {
        self.steps.retain(|step| match step {
            Step::Ask { purpose, .. } => *purpose != Purpose::Log,
            Step::SyncMemory => true,
            Step::Reached(milestone) => *milestone != Milestone::Logging,
        });
        self.device.log = None;
        self.outputs.push_back(Output::Event(Event::Refused { message, status }));
        let steps = off_steps(&self.config, &self.device, &self.session);
        let steps = steps.into_iter().chain([Step::Reached(Milestone::NotLogging)]);
        for step in steps.rev() {
            self.steps.push_front(step);
        }
    }

    /// What the back-end does not offer of what a log takes.
    pub(super) fn log_lacks(&self) -> Option<&'static str> {
        if !self.session.has(protocol::LOG_SHMFD) {
            return Some("LOG_SHMFD");
        }
        (self.session.offered & virtio::LOG_ALL == 0).then_some("LOG_ALL")
    }

    /// Vrings run, or will when the messages under way are through.
    fn vrings_are_up(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running)
    }
}

/// Log while vrings run. The log is there before the first writes are to be
/// marked in it, and a log that replaces another needs no more than that.
// spec: vhost-user, "Migration"
fn on_steps(
    config: &FrontendConfig,
    device: &Device,
    session: &Session,
    replaced: bool,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some((log, handle)) = device.log {
        steps.push(steps::tell(Request::SetLogBase(LogBase::Shared(log, handle))));
    }
    if !replaced {
        steps.extend(steps::set_features(device, session));
        if session.has(protocol::STATUS) {
            steps.push(steps::tell(Request::GetStatus));
        }
        steps.extend(
            device.started.iter().flat_map(|v| steps::set_addr(config, device, session, v)),
        );
    }
    // A refusal is not the end of the connection here.
    for step in &mut steps {
        if let Step::Ask { purpose, .. } = step {
            *purpose = Purpose::Log;
        }
    }
    steps
}

/// Log no more, while vrings run; `device` has no log any more.
fn off_steps(config: &FrontendConfig, device: &Device, session: &Session) -> Vec<Step> {
    let mut steps = steps::set_features(device, session);
    if session.has(protocol::STATUS) {
        steps.push(steps::tell(Request::GetStatus));
    }
    steps.extend(device.started.iter().flat_map(|v| steps::set_addr(config, device, session, v)));
    steps
}

/// The log must have a bit for every page that can be written: what has none is
/// not logged, and nobody would notice.
pub(super) fn check_log(
    log: LogDescription,
    memory: &[(MemRegion, Handle)],
) -> Result<(), ApiMisuse> {
    let end = memory.iter().map(|(region, _)| region.guest_addr.saturating_add(region.size)).max();
    let wanted = end.unwrap_or(0).div_ceil(BYTE_OF_LOG);
    if log.size < wanted {
        return Err(ApiMisuse::LogTooSmall { wanted, got: log.size });
    }
    Ok(())
}

/// Guest-physical address of a used ring, which bits in the log are counted by.
// spec: vhost-user, VHOST_USER_SET_VRING_ADDR
pub(super) fn used_guest_addr(
    dialect: &Dialect,
    device: &Device,
    session: &Session,
    (index, used): (u16, u64),
) -> Result<u64, ApiMisuse> {
    // An I/O virtual address is what peers send for an I/O virtual ring.
    let translated = device.features.unwrap_or(0) & virtio::ACCESS_PLATFORM != 0;
    if translated || session.has(dialect.gpa_addresses()) {
        return Ok(used);
    }
    let inside = |region: &MemRegion| {
        let offset = used.checked_sub(region.user_addr).filter(|offset| *offset < region.size);
        offset.map(|offset| region.guest_addr + offset)
    };
    let found = device.memory.iter().find_map(|(region, _)| inside(region));
    found.ok_or(ApiMisuse::RingOutsideMemory(index))
}
