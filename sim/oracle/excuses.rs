//! What faults of the disk excuse, as the world tells it: these bytes in this
//! sector for this time, and nothing else.

use crate::disk::faults::Content;
use std::collections::BTreeMap;

/// Wrong bytes that a sector shows.
#[derive(Clone, Debug)]
struct Shown {
    content: Content,
    /// Tick at which that ended.
    until: Option<u64>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Excuses {
    shown: BTreeMap<u64, Vec<Shown>>,
    /// By sector: what was asked for up to this tick is not promised to become
    /// durable.
    lapsed: BTreeMap<u64, u64>,
}

impl Excuses {
    /// From now on a sector shows these bytes.
    pub fn show(&mut self, sector: u64, content: Content, tick: u64) {
        self.heal(sector, tick);
        self.shown.entry(sector).or_default().push(Shown { content, until: None });
    }

    /// From now on a sector shows what it holds.
    pub fn heal(&mut self, sector: u64, tick: u64) {
        if let Some(last) = self.shown.get_mut(&sector).and_then(|all| all.last_mut()) {
            last.until.get_or_insert(tick);
        }
    }

    /// What was written to a sector so far may never become durable.
    pub fn lapse(&mut self, sector: u64, tick: u64) {
        self.lapsed.insert(sector, tick);
    }

    /// Tick up to which nothing in a sector is promised; 0: all is.
    pub fn lapsed(&self, sector: u64) -> u64 {
        self.lapsed.get(&sector).copied().unwrap_or(0)
    }

    /// Whether a sector has shown wrong bytes to somebody who asked at this tick
    /// and is told now.
    pub fn is_damaged(&self, sector: u64, since: u64) -> bool {
        self.seen(sector, since).next().is_some()
    }

    /// Whether these are those bytes.
    pub fn explain(&self, sector: u64, since: u64, content: &[u8]) -> bool {
        self.seen(sector, since).any(|shown| shown.content[..] == *content)
    }

    fn seen(&self, sector: u64, since: u64) -> impl Iterator<Item = &Shown> {
        let all = self.shown.get(&sector).into_iter().flatten();
        all.filter(move |shown| shown.until.is_none_or(|until| until >= since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excuses_hold_for_their_bytes_their_sector_and_their_time() {
        let mut e = Excuses::default();
        e.show(3, Box::new([7; 512]), 10);
        e.show(3, Box::new([8; 512]), 20);
        e.heal(3, 30);
        e.heal(3, 40);
        let explained = |byte, sector, since| e.explain(sector, since, &[byte; 512]);
        assert!(explained(7, 3, 20) && explained(8, 3, 30) && explained(8, 3, 5));
        assert!(!explained(7, 3, 21) && !explained(8, 3, 31), "it is over");
        assert!(!explained(9, 3, 15) && !explained(7, 4, 15), "never injected");
        assert!(e.is_damaged(3, 25) && !e.is_damaged(3, 31) && !e.is_damaged(4, 0));
    }
}
