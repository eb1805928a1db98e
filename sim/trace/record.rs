//! What happens, as it happens: hashed always, kept if somebody looks.

use super::{Lane, TraceEvent, What};
use crate::hash::Rolling;

/// The trace of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Rolling,
    at: u64,
    seq: u64,
    cause: u64,
    host: u8,
    kept: Option<Vec<TraceEvent>>,
}

impl Trace {
    /// A trace that keeps its events if asked to.
    pub fn new(keep: bool) -> Self {
        Self { kept: keep.then(Vec::new), ..Self::default() }
    }

    /// Virtual time, the number of the scheduler event, and of the one that
    /// scheduled it, of what follows.
    pub fn clock(&mut self, at: u64, seq: u64, cause: u64) {
        (self.at, self.seq, self.cause) = (at, seq, cause);
    }

    /// The host of what follows.
    pub fn set_host(&mut self, host: u8) {
        self.host = host;
    }

    /// Something happened.
    pub fn say(&mut self, lane: Lane, what: What) {
        let Self { at, seq, cause, host, .. } = *self;
        let (tag, fields) = what.fields();
        self.hash.u64(at);
        self.hash.u64(seq);
        self.hash.u64(u64::from(host) << 40 | u64::from(lane as u8) << 32 | tag);
        for field in fields {
            self.hash.u64(field);
        }
        if let Some(kept) = &mut self.kept {
            kept.push(TraceEvent { at, seq, cause, host, lane, what });
        }
    }

    /// Hash over everything that happened.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// The events, if they were kept.
    pub fn events(&self) -> &[TraceEvent] {
        self.kept.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_hash_is_the_same_with_and_without_keeping() {
        let mut kept = Trace::new(true);
        let mut bare = Trace::new(false);
        for t in [&mut kept, &mut bare] {
            t.clock(5, 1, 0);
            t.say(Lane::Host, What::Settling);
            t.clock(6, 1, 0);
            t.say(Lane::Host, What::Started { life: 2 });
        }
        assert_eq!(kept.hash(), bare.hash());
        assert_ne!(kept.hash(), Trace::new(false).hash());
        assert_eq!((kept.events().len(), bare.events().len()), (2, 0));
    }
}
