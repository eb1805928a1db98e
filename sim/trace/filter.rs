//! A part of a trace.

use super::life::Life;
use super::{BackEvent, Lane, TraceEvent, What};
use core::str::FromStr;

/// A place in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Number of a scheduler event.
    Seq(u64),
    /// Virtual nanoseconds.
    Time(u64),
}

/// Which events to keep; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of these lanes; of all if there are none.
    pub lanes: Vec<Lane>,
    /// Not before this place.
    pub from: Option<Bound>,
    /// Not after this place.
    pub to: Option<Bound>,
    /// Of this vring, and what happens to processes.
    pub vring: Option<u16>,
    /// Of this request, and what happens to its vring and to processes meanwhile.
    pub request: Option<u64>,
}

impl Filter {
    /// The events that pass, in their order.
    pub fn apply(&self, events: &[TraceEvent]) -> Vec<TraceEvent> {
        let life = self.request.and_then(|number| Life::of(events, number));
        let passes = |(at, event): &(usize, &TraceEvent)| {
            (self.lanes.is_empty() || self.lanes.contains(&event.lane))
                && self.from.is_none_or(|bound| !bound.is_after(event))
                && self.to.is_none_or(|bound| !bound.is_before(event))
                && self.vring.is_none_or(|vring| event.what.touches(vring))
                && (self.request.is_none() || life.as_ref().is_some_and(|l| l.concerns(*at, event)))
        };
        events.iter().enumerate().filter(passes).map(|(_, event)| *event).collect()
    }
}

impl Life {
    /// One of its events, or one without which they cannot be understood.
    fn concerns(&self, at: usize, event: &TraceEvent) -> bool {
        let meanwhile = (self.from..=self.to).contains(&at);
        let around = match event.what {
            What::VringRunning { vring, .. } | What::VringStopped { vring, .. } => {
                vring == self.vring
            }
            what => what.is_of_processes(),
        };
        self.has(at, event) || meanwhile && around
    }
}

impl Bound {
    fn is_after(self, event: &TraceEvent) -> bool {
        match self {
            Self::Seq(seq) => event.seq < seq,
            Self::Time(at) => event.at < at,
        }
    }

    fn is_before(self, event: &TraceEvent) -> bool {
        match self {
            Self::Seq(seq) => event.seq > seq,
            Self::Time(at) => event.at > at,
        }
    }
}

impl What {
    /// The vring an event names, if it names one.
    fn vring(self) -> Option<u16> {
        match self {
            Self::Offered { vring, .. }
            | Self::Published { vring, .. }
            | Self::Interrupted { vring }
            | Self::Completed { vring, .. }
            | Self::Call { vring }
            | Self::VringRunning { vring, .. }
            | Self::VringStopped { vring, .. }
            | Self::Issued { vring, .. }
            | Self::Applied { vring, .. }
            | Self::Done { vring, .. }
            | Self::Race { vring, .. }
            | Self::Adrift { vring, .. } => Some(vring),
            Self::Back {
                event:
                    BackEvent::BaseContradicted
                    | BackEvent::DiskFailed
                    | BackEvent::Draining
                    | BackEvent::Suspending
                    | BackEvent::Suspended,
                a,
                ..
            } => u16::try_from(a).ok(),
            _ => None,
        }
    }

    fn touches(self, vring: u16) -> bool {
        self.vring() == Some(vring) || self.is_of_processes()
    }

    /// What strikes processes, hosts and the disk as a whole.
    fn is_of_processes(self) -> bool {
        matches!(
            self,
            Self::Started { .. }
                | Self::Killed { .. }
                | Self::Exited { .. }
                | Self::Moving { .. }
                | Self::Landing { .. }
                | Self::PowerLost { .. }
                | Self::Settling
        )
    }
}

impl FromStr for Bound {
    type Err = String;

    /// A whole number is that of an event; with a unit (`1.204_880s`, `3ms`,
    /// `250us`, `7ns`) it is a time.
    fn from_str(text: &str) -> Result<Self, String> {
        let plain: String = text.chars().filter(|c| *c != '_').collect();
        let units = [("ns", 0), ("us", 3), ("ms", 6), ("s", 9)];
        let timed =
            units.iter().find_map(|(unit, digits)| Some((plain.strip_suffix(unit)?, *digits)));
        let read = match timed {
            Some((number, digits)) => nanos(number, digits).map(Self::Time),
            None => plain.parse().ok().map(Self::Seq),
        };
        read.ok_or_else(|| {
            format!("expected an event as in 1234 or a time as in 1.204s, got {text}")
        })
    }
}

/// `number` times ten to the power of `digits`.
fn nanos(number: &str, digits: u32) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let places = u32::try_from(part.len()).ok()?;
    let scale = 10_u64.checked_pow(digits.checked_sub(places.min(digits))?)?;
    // What is finer than a nanosecond is left out.
    let part = part.get(..part.len().min(digits as usize))?;
    let part: u64 = if part.is_empty() { 0 } else { part.parse().ok()? };
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(10_u64.pow(digits))?
        .checked_add(part.checked_mul(scale)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_events_or_times() {
        assert_eq!("18442".parse(), Ok(Bound::Seq(18_442)));
        assert_eq!("1.204_880s".parse(), Ok(Bound::Time(1_204_880_000)));
        assert_eq!("3ms".parse(), Ok(Bound::Time(3_000_000)));
        assert_eq!("0.5us".parse(), Ok(Bound::Time(500)));
        assert_eq!("7ns".parse(), Ok(Bound::Time(7)));
        assert_eq!("7.9ns".parse(), Ok(Bound::Time(7)));
        for wrong in ["", "s", "1.2", "-3", "99999999999999999999s", "1.s2", "ns", "1.-2s"] {
            assert!(wrong.parse::<Bound>().is_err(), "{wrong}");
        }
    }
}
