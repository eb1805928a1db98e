//! Decisions that are written down, and decisions that are kept.

use super::Component;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Where decisions come from that are not written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From this number, by ChaCha.
    Drawn(u64),
    /// They are all 0.
    Calm,
}

/// Name of a decision: who, what, and the how manyth of that name, from 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Who decides.
    pub component: Component,
    /// What is decided.
    pub name: String,
    /// How often that was decided before.
    pub ordinal: u64,
}

/// Every decision of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Those that are not written down.
    pub source: Source,
    /// Those that are; values too large are cut to what is possible.
    pub written: BTreeMap<Key, u64>,
}

impl Choices {
    /// Drawn from a number, nothing written down.
    pub fn drawn(number: u64) -> Self {
        Self { source: Source::Drawn(number), written: BTreeMap::new() }
    }

    /// Nothing but the calm choice.
    pub fn calm() -> Self {
        Self { source: Source::Calm, written: BTreeMap::new() }
    }
}

/// A decision that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// What was decided.
    pub name: &'static str,
    /// How often that was decided before.
    pub ordinal: u64,
    /// It was one of `0..bound`.
    pub bound: u64,
    /// What came out.
    pub value: u64,
    /// When, in virtual nanoseconds.
    pub at: u64,
}

/// What time it is, for who keeps decisions.
pub type Clock = Rc<Cell<u64>>;

/// One component's part.
#[derive(Debug, Default)]
pub(super) struct Tape {
    written: BTreeMap<(String, u64), u64>,
    ordinals: BTreeMap<&'static str, u64>,
    keep: Option<(Clock, Vec<Made>)>,
}

impl Tape {
    /// `None` if nothing is written down or to be kept.
    pub fn of(choices: &Choices, component: Component, keep: Option<&Clock>) -> Option<Self> {
        let mine = choices.written.iter().filter(|(key, _)| key.component == component);
        let written: BTreeMap<_, _> =
            mine.map(|(key, value)| ((key.name.clone(), key.ordinal), *value)).collect();
        let keep = keep.map(|clock| (Rc::clone(clock), Vec::new()));
        (keep.is_some() || !written.is_empty()).then_some(Self {
            written,
            ordinals: BTreeMap::new(),
            keep,
        })
    }

    pub fn made(&self) -> &[Made] {
        self.keep.as_ref().map_or(&[], |(_, made)| made)
    }

    /// The decision with this name, that would be `drawn` if it is not written.
    pub fn decide(&mut self, name: &'static str, bound: u64, drawn: u64) -> u64 {
        let ordinal = self.ordinals.entry(name).or_insert(0);
        let written = match self.written.is_empty() {
            true => None,
            false => self.written.get(&(name.to_owned(), *ordinal)),
        };
        let value = written.map_or(drawn, |value| (*value).min(bound - 1));
        if let Some((clock, made)) = &mut self.keep {
            made.push(Made { name, ordinal: *ordinal, bound, value, at: clock.get() });
        }
        *ordinal += 1;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stream;
    use super::*;

    #[test]
    fn choices_written_down_replace_drawn_ones_by_name_and_ordinal() {
        let key =
            |name: &str, ordinal| Key { component: Component::Disk, name: name.into(), ordinal };
        let mut choices = Choices::calm();
        choices.written.insert(key("a", 1), 7);
        choices.written.insert(key("b", 0), 99);
        let mut s = Stream::of(&choices, Component::Disk, Some(&Clock::default()));
        assert_eq!((s.below("a", 10), s.below("b", 10), s.below("a", 10)), (0, 9, 7));
        let made: Vec<_> = s.made().iter().map(|m| (m.name, m.ordinal, m.value)).collect();
        assert_eq!(made, [("a", 0, 0), ("b", 0, 9), ("a", 1, 7)]);
        let mut other = Stream::of(&choices, Component::Link, None);
        assert_eq!((other.below("a", 10), other.below("a", 10), other.made().len()), (0, 0, 0));
    }

    #[test]
    fn choices_kept_of_a_drawn_run_repeat_it_without_the_number() {
        let mut drawn = Stream::of(&Choices::drawn(5), Component::Guest, Some(&Clock::default()));
        let values: Vec<u64> = [9, 3, 9, 1, 40].iter().map(|n| drawn.below("t", *n)).collect();
        let mut choices = Choices::calm();
        for made in drawn.made() {
            let key =
                Key { component: Component::Guest, name: made.name.into(), ordinal: made.ordinal };
            choices.written.insert(key, made.value);
        }
        let mut again = Stream::of(&choices, Component::Guest, None);
        assert!([9, 3, 9, 1, 40].iter().zip(values).all(|(n, v)| again.below("t", *n) == v));
        assert_eq!(again.hash(), drawn.hash());
    }
}
