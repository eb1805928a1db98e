//! Postcopy: the guest runs before its memory has come.
//!
//! ```text
//! POSTCOPY_ADVISE   a userfaultfd is opened and given to the front-end
//! POSTCOPY_LISTEN   memory that is sent from now on is mapped by it, and not touched
//! SET_MEM_TABLE, ADD_MEM_REG    answered with the addresses that its page faults will name
//! the same without a region     the front-end knows them: memory may be touched
//! POSTCOPY_END      every page is there
//! ```
//!
//! Whoever touches a page that has not come waits for it, also the thread that
//! this core runs on. The front-end resolves page faults without asking us
//! anything, so what it wants to know meanwhile just takes that much longer.
// spec: vhost-user, "Migrating backend state", VHOST_USER_POSTCOPY_ADVISE

use super::answer::Reply;
use super::setup::{MemoryChange, Pending};
use super::{ApiMisuse, Backend, Event, FrontendFault, MapFailed, MissingMemory, Output};
use crate::Handle;
use crate::memory::MapRegion;
use crate::time::Instant;
use crate::wire::features::protocol;
use crate::wire::{FrontendReplyBody, MemRegion};
use vm_memory::GuestMemory;

/// Where postcopy stands with the front-end that is connected.
///
/// | from | event | to |
/// |---|---|---|
/// | Off, Advised | POSTCOPY_ADVISE | Advised |
/// | Advised | POSTCOPY_LISTEN, no memory is mapped | Listening, acknowledged |
/// | Listening | memory was mapped and its addresses told | Listening, not acknowledged |
/// | Listening | the front-end acknowledges | Listening, acknowledged |
/// | Advised, Listening | POSTCOPY_END | Off |
/// | any | disconnected, or SET_OWNER begins a session | Off |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Postcopy {
    /// All pages are there.
    Off,
    /// The front-end has a userfaultfd, and all pages are there still.
    Advised,
    /// Pages come when they are touched.
    Listening {
        /// The front-end knows what page faults mean. While it does not, a
        /// page fault would wait forever.
        acknowledged: bool,
    },
}

impl Postcopy {
    /// True if new memory has to be mapped without its pages.
    pub fn listens(self) -> bool {
        matches!(self, Self::Listening { .. })
    }

    /// True if there is memory that may not be touched yet.
    pub fn holds_fetching(self) -> bool {
        self == Self::Listening { acknowledged: false }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Off => "there is no postcopy",
            Self::Advised => "postcopy was advised",
            Self::Listening { acknowledged: true } => "postcopy listens",
            Self::Listening { acknowledged: false } => "memory is not acknowledged",
        }
    }
}

impl<M: GuestMemory> Backend<M> {
    /// Offer postcopy. The driver promises that it can open a userfaultfd for
    /// page faults in the kernel as well, since disk I/O has those.
    pub fn offering_postcopy(self) -> Self {
        Self { offers_postcopy: true, ..self }
    }

    // spec: vhost-user, VHOST_USER_POSTCOPY_ADVISE
    pub(super) fn postcopy_advise(&mut self, reply: Reply) -> Result<(), FrontendFault> {
        self.need(protocol::PAGEFAULT, "PAGEFAULT", reply)?;
        if self.postcopy.listens() {
            return Err(self.misplaced(reply, "before POSTCOPY_LISTEN"));
        }
        self.out.push_back(Output::OpenFaults);
        self.postcopy = Postcopy::Advised;
        self.pending = Pending::OpenFaults(reply);
        Ok(())
    }

    pub(super) fn faults_opened(
        &mut self,
        result: Result<Handle, MapFailed>,
    ) -> Result<(), ApiMisuse> {
        let reply = match self.pending.take() {
            Pending::OpenFaults(reply) => reply,
            other => {
                self.pending = other;
                self.release(result.ok());
                return Err(ApiMisuse::NotAskedFor("a userfaultfd"));
            }
        };
        match result {
            Ok(handle) => {
                self.answer(reply, FrontendReplyBody::Handle(handle));
                self.release([handle]);
            }
            Err(MapFailed(why)) => {
                // The one before is closed already.
                self.postcopy = Postcopy::Off;
                let message = reply.message();
                self.refuse(reply, FrontendFault::Map { message, why });
            }
        }
        Ok(())
    }

    /// Memory that is mapped already has pages of its own, perhaps zeroes where
    /// the guest's are still to come, and the front-end does not know its
    /// addresses. So there must be none.
    // spec: vhost-user, VHOST_USER_POSTCOPY_LISTEN
    pub(super) fn postcopy_listen(&mut self, reply: Reply) -> Result<(), FrontendFault> {
        self.need(protocol::PAGEFAULT, "PAGEFAULT", reply)?;
        if self.postcopy != Postcopy::Advised {
            return Err(self.misplaced(reply, "once, after POSTCOPY_ADVISE"));
        }
        if !self.table.is_empty() {
            let (message, state) = (reply.message(), "memory is mapped");
            let expected = "before any memory";
            return Err(FrontendFault::Postcopy { message, state, expected });
        }
        self.postcopy = Postcopy::Listening { acknowledged: true };
        self.event(Event::PostcopyListening);
        Ok(())
    }

    /// The answer names every region that came, in the order in which it came,
    /// with the address that page faults will name instead of the user's.
    // spec: vhost-user, VHOST_USER_SET_MEM_TABLE
    pub(super) fn mapped_missing(
        &mut self,
        now: Instant,
        result: Result<MissingMemory<M>, MapFailed>,
    ) -> Result<(), ApiMisuse> {
        let change = match self.pending.take() {
            Pending::MapMissing(change) => change,
            other => {
                self.pending = other;
                return Err(ApiMisuse::NotAskedFor("a mapping without pages"));
            }
        };
        let reply = change.reply;
        let (memory, bases) = match result {
            Ok(MissingMemory { memory, bases }) => (Ok(memory), bases),
            Err(failed) => (Err(failed), Vec::new()),
        };
        let told = told(&change, &bases);
        let body = match told[..] {
            // Regions are removed as ever.
            [] => None,
            [one] if reply.message() == "ADD_MEM_REG" => Some(FrontendReplyBody::MemRegion(one)),
            _ => Some(FrontendReplyBody::MemTable(told)),
        };
        if body.is_some() && memory.is_ok() {
            self.postcopy = Postcopy::Listening { acknowledged: false };
        }
        self.take_memory(change, memory, body);
        self.fetch_all(now);
        Ok(())
    }

    /// Never answered: QEMU may set NEED_REPLY on it and reads no answer.
    pub(super) fn memory_acknowledged(
        &mut self,
        now: Instant,
        reply: Reply,
    ) -> Result<(), FrontendFault> {
        if !self.postcopy.holds_fetching() {
            return Err(self.misplaced(reply, "after memory was sent in postcopy"));
        }
        self.postcopy = Postcopy::Listening { acknowledged: true };
        self.fetch_all(now);
        Ok(())
    }

    // spec: vhost-user, VHOST_USER_POSTCOPY_END
    pub(super) fn postcopy_end(&mut self, now: Instant, reply: Reply) -> Result<(), FrontendFault> {
        self.need(protocol::PAGEFAULT, "PAGEFAULT", reply)?;
        if self.postcopy == Postcopy::Off {
            return Err(self.misplaced(reply, "after POSTCOPY_ADVISE"));
        }
        self.close_faults(true);
        self.event(Event::PostcopyEnded);
        self.fetch_all(now);
        Ok(())
    }

    pub(super) fn close_faults(&mut self, all_there: bool) {
        if core::mem::replace(&mut self.postcopy, Postcopy::Off) != Postcopy::Off {
            self.out.push_back(Output::CloseFaults { all_there });
        }
    }

    fn misplaced(&self, reply: Reply, expected: &'static str) -> FrontendFault {
        let (message, state) = (reply.message(), self.postcopy.describe());
        FrontendFault::Postcopy { message, state, expected }
    }
}

/// The regions that came, with the names that their memory has in page faults.
fn told(change: &MemoryChange, bases: &[u64]) -> Vec<MemRegion> {
    let mapped: Vec<(&MapRegion, &u64)> = change.table().regions().iter().zip(bases).collect();
    let with_base = |sent: &MemRegion| {
        let (_, base) = mapped.iter().find(|(one, _)| one.region.guest_addr == sent.guest_addr)?;
        Some(MemRegion { user_addr: **base, ..*sent })
    };
    change.sent.iter().filter_map(with_base).collect()
}
