//! Postcopy's destination: the guest starts before its memory has come, and
//! whoever owns this front-end puts pages where the back-end waits for them.
// spec: vhost-user, VHOST_USER_POSTCOPY_ADVISE and the messages after it

use super::Frontend;
use super::error::{ApiMisuse, BackendFault, Failure};
use super::io::{Event, Output};
use super::phase::Phase;
use super::session::{Device, Session};
use super::steps::{self, Milestone, Purpose, Step};
use crate::Handle;
use crate::wire::features::protocol;
use crate::wire::{FrontendRequest as Request, MemRegion};

/// How much of postcopy this back-end has been told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing.
    #[default]
    Nothing,
    /// POSTCOPY_ADVISE.
    Advise,
    /// POSTCOPY_LISTEN.
    Listen,
}

impl Frontend {
    pub(super) fn postcopy_advise(&mut self, what: &'static str) -> Result<(), ApiMisuse> {
        self.expect_postcopy(what)?;
        if self.session.told == Told::Listen {
            return Err(ApiMisuse::Postcopy { what, expected: "before it listens" });
        }
        self.session.told = Told::Advise;
        self.steps.push_back(steps::ask(Request::PostcopyAdvise, Purpose::Faults));
        Ok(())
    }

    pub(super) fn postcopy_listen(&mut self, what: &'static str) -> Result<(), ApiMisuse> {
        self.expect_postcopy(what)?;
        if self.session.told != Told::Advise {
            return Err(ApiMisuse::Postcopy { what, expected: "after it was advised" });
        }
        if !self.session.memory.is_empty() {
            return Err(ApiMisuse::Postcopy { what, expected: "before any memory was sent" });
        }
        self.session.told = Told::Listen;
        self.device.incomplete = true;
        self.steps.push_back(steps::tell(Request::PostcopyListen));
        Ok(())
    }

    pub(super) fn postcopy_end(&mut self, what: &'static str) -> Result<(), ApiMisuse> {
        self.expect_phase(what, self.is_settled())?;
        self.device.incomplete = false;
        if !self.phase.is_connected() || self.session.told == Told::Nothing {
            // A back-end that comes later gets memory as ever.
            self.outputs.push_back(Output::Event(Event::PostcopyEnded));
            return Ok(());
        }
        self.session.told = Told::Nothing;
        self.steps.push_back(steps::tell(Request::PostcopyEnd));
        self.steps.push_back(Step::Reached(Milestone::PostcopyEnded));
        Ok(())
    }

    fn expect_postcopy(&self, what: &'static str) -> Result<(), ApiMisuse> {
        self.expect_phase(what, self.phase == Phase::Ready)?;
        if !self.session.has(protocol::PAGEFAULT) {
            return Err(ApiMisuse::NotNegotiated { what, feature: "PAGEFAULT" });
        }
        Ok(())
    }

    /// A back-end that maps memory as ever would take pages that are still to
    /// come for zeroes.
    pub(super) fn check_pages(&self, what: &'static str) -> Result<(), ApiMisuse> {
        if self.device.incomplete && self.session.told != Told::Listen {
            return Err(ApiMisuse::Postcopy { what, expected: "after it listens again" });
        }
        Ok(())
    }

    /// The names that regions have in page faults.
    pub(super) fn take_bases(
        &mut self,
        message: &'static str,
        told: Vec<MemRegion>,
    ) -> Result<(), Failure> {
        for region in told {
            let is_it = |one: &&(MemRegion, Handle)| {
                (one.0.guest_addr, one.0.size) == (region.guest_addr, region.size)
            };
            let Some((known, _)) = self.session.memory.iter().find(is_it) else {
                return Err(BackendFault::UnknownRegion { message, got: region.guest_addr }.into());
            };
            self.session.bases.push((*known, region.user_addr));
        }
        Ok(())
    }

    /// To be said before the back-end hears that it may touch the memory.
    pub(super) fn take_postcopy_event(&mut self) -> Event {
        Event::PostcopyMapped { bases: core::mem::take(&mut self.session.bases) }
    }
}

/// What makes a difference between [`steps::sync_memory`] and the same in
/// postcopy: answers that name addresses, and an acknowledgement of them.
pub(super) fn sync_memory(device: &Device, session: &Session, plain: Vec<Step>) -> Vec<Step> {
    if session.told != Told::Listen {
        return plain;
    }
    let slots = session.has(protocol::CONFIGURE_MEM_SLOTS);
    let mut added = false;
    let mut steps: Vec<Step> = plain
        .into_iter()
        .map(|step| match step {
            Step::Ask { request, .. }
                if matches!(request, Request::SetMemTable(_) | Request::AddMemReg(..)) =>
            {
                added = true;
                // NEED_REPLY is not set where there is an answer anyway.
                steps::ask(request, Purpose::Bases)
            }
            other => other,
        })
        .collect();
    if added && !device.memory.is_empty() {
        let ack = if slots { Request::MemRegAck } else { Request::MemTableAck };
        steps.push(Step::Reached(Milestone::PostcopyMapped));
        steps.push(steps::tell(ack));
    }
    steps
}
