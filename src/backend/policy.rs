//! Which stop drains a vring, and which suspends it.
//!
//! | dialect | agreed on | GET_VRING_BASE | GET_VRING_BASE_SKIP_DRAIN |
//! |---|---|---|---|
//! | any | not bit 20, or no policy | drains | refused |
//! | `qemu-11.1` | bit 20 | suspends | does not exist |
//! | `skip-drain-45`, `skip-drain-44` | bit 20, not 23 | drains | refused |
//! | `skip-drain-45`, `skip-drain-44` | bits 20 and 23 | drains | suspends |
//! | `num-1` | bit 20 | drains | suspends (it is GET_VRING_BASE with `num` 1) |
//!
//! Whatever the table says, a vring without a part in an inflight region is
//! drained, since there is no place to leave its requests, and so is a request
//! that must not run twice. Draining is always allowed: the document says that
//! a back-end *may* suspend.
// spec: vhost-user, VHOST_USER_GET_VRING_BASE

use super::Backend;
use super::session::OFFERED_PROTOCOL_FEATURES;
use crate::time::Duration;
use crate::wire::Dialect;
use crate::wire::features::protocol;
use vm_memory::GuestMemory;

/// How vrings are suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspendPolicy {
    /// How long requests in flight may go on before they are cancelled. It
    /// counts once for all vrings of a device that stop one after the other.
    pub grace: Duration,
    /// The numbers that front-ends use to ask for it.
    pub dialect: Dialect,
}

/// What GET_VRING_BASE does with requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Wait until they are done.
    Drain,
    /// Cancel them and leave them in the inflight region.
    Suspend,
}

impl<M: GuestMemory> Backend<M> {
    /// Numbers used on the wire.
    pub(super) fn dialect(&self) -> Dialect {
        self.suspend.map_or(Dialect::default(), |policy| policy.dialect)
    }

    /// Protocol features offered to front-ends.
    pub fn offered_protocol_features(&self) -> u64 {
        let inband = if self.config.inband { protocol::INBAND_NOTIFICATIONS } else { 0 };
        let postcopy = if self.offers_postcopy { protocol::PAGEFAULT } else { 0 };
        OFFERED_PROTOCOL_FEATURES
            | inband
            | postcopy
            | self.dialect().gpa_addresses()
            | self.suspend.map_or(0, |policy| needed(policy.dialect))
    }

    /// What a plain GET_VRING_BASE means.
    pub(super) fn plain_stop(&self) -> Stop {
        if self.may_suspend() && self.dialect().plain_get_vring_base_may_suspend() {
            Stop::Suspend
        } else {
            Stop::Drain
        }
    }

    /// True if the front-end has agreed to vrings being suspended.
    pub(super) fn may_suspend(&self) -> bool {
        self.suspend.is_some_and(|policy| {
            let needed = needed(policy.dialect);
            self.session.protocol & needed == needed
        })
    }
}

/// Protocol features that suspending takes.
fn needed(dialect: Dialect) -> u64 {
    dialect.get_vring_base_inflight() | dialect.get_vring_base_skip_drain()
}
