//! After a hand-over the destination's memory is what the source last held.
//!
//! Whatever was written after a page was copied must have been in the log or
//! seen by whoever runs the guest; a page that was in neither is stale here.
// spec: vhost-user, "Migration"

use super::{Ledger, Violation};
use crate::memory::PAGE;
use crate::trace::Verb;

/// Some memory on both hosts, from the start of a page.
pub struct Pair<'a> {
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes of the source.
    pub source: &'a [u8],
    /// Bytes of the destination.
    pub destination: &'a [u8],
}

/// Compare some pages. `open`: a back-end died or was left
/// while the log was on, so what it had half done for requests that are still
/// in flight may be missing: it is done again in full.
pub(super) fn check(ledger: &Ledger, pair: &Pair<'_>, open: bool) -> Result<(), Violation> {
    let pages = pair.source.chunks(PAGE).zip(pair.destination.chunks(PAGE));
    for (number, (source, destination)) in (0u64..).zip(pages) {
        if source == destination {
            continue;
        }
        let first = pair.guest + number * PAGE as u64;
        let differs = (first..).zip(source.iter().zip(destination)).filter(|(_, (a, b))| a != b);
        for (addr, (was, is)) in differs {
            let place = place(ledger, addr);
            if open && matches!(place, Place::Buffer(_)) {
                continue;
            }
            return Err(Violation::new(
                "dirty",
                format!(
                    "guest page {first:#x} is stale at the destination: byte {addr:#x}, {place}, is {is:#04x} there and was {was:#04x}"
                ),
            ));
        }
    }
    Ok(())
}

enum Place {
    Used(u16),
    /// A request in flight may have it written.
    Buffer(u64),
    Elsewhere,
}

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Used(vring) => write!(f, "in the used ring of vring {vring}"),
            Self::Buffer(request) => write!(f, "in a buffer of request {request}, in flight"),
            Self::Elsewhere => f.write_str("in a buffer that was given back, or the guest's own"),
        }
    }
}

fn place(ledger: &Ledger, addr: u64) -> Place {
    for vring in 0..ledger.vrings() {
        if ledger.ring(vring).is_device_part(addr) {
            return Place::Used(vring);
        }
        let written = ledger.outstanding(vring).find(|ask| {
            let data = matches!(ask.verb, Verb::Read | Verb::GetId | Verb::Unknown);
            let inside = |(at, len): &(u64, u32)| (*at..at + u64::from(*len)).contains(&addr);
            ask.status == addr || data && ask.data.iter().any(inside)
        });
        if let Some(ask) = written {
            return Place::Buffer(ask.request);
        }
    }
    Place::Elsewhere
}

/// The vring to whose used ring or request in flight an address belongs.
pub(super) fn vring_of(ledger: &Ledger, addr: u64) -> Option<u16> {
    (0..ledger.vrings()).find(|vring| {
        ledger.ring(*vring).is_device_part(addr)
            || ledger.outstanding(*vring).any(|ask| {
                ask.status == addr
                    || ask.data.iter().any(|(at, len)| (*at..at + u64::from(*len)).contains(&addr))
            })
    })
}
