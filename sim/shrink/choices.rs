//! Fewer choices, and calmer ones.

use super::{Shrinker, without};
use crate::choices::{Choices, Key, Source};
use crate::run::run;
use crate::scenario::Scenario;
use crate::world::Options;
use std::collections::BTreeMap;

impl Shrinker<'_> {
    pub(super) fn fewer_choices(&mut self) {
        if let Source::Drawn(_) = self.best.choices.source {
            self.write_choices_down();
        }
        let keys: Vec<Key> = self.best.choices.written.keys().cloned().collect();
        // Keys of the ones still there, as `without` counts them.
        let mut left = keys;
        without(left.len(), |range| {
            let mut candidate = self.best.clone();
            for key in &left[range.clone()] {
                candidate.choices.written.remove(key);
            }
            let taken = self.try_take(candidate);
            if taken {
                left.drain(range);
            }
            taken
        });
        for key in left {
            self.smaller_choice(&key);
        }
    }

    /// The same run, without the number that its choices were drawn from.
    fn write_choices_down(&mut self) {
        let keep = Options { keep_choices: true, ..self.options.clone() };
        let outcome = run(self.arena, &self.best, &keep);
        self.runs += 1;
        let mut written = BTreeMap::new();
        for (component, made) in &outcome.made {
            for made in made.iter().filter(|made| made.value > 0) {
                let (name, ordinal) = (made.name.into(), made.ordinal);
                written.insert(Key { component: *component, name, ordinal }, made.value);
            }
        }
        let choices = Choices { source: Source::Calm, written };
        self.try_take(Scenario { choices, ..self.best.clone() });
    }

    fn smaller_choice(&mut self, key: &Key) {
        loop {
            let Some(value) = self.best.choices.written.get(key).copied() else { return };
            let smaller = [1, value / 2, value.saturating_sub(1)];
            let taken = smaller.into_iter().filter(|v| (1..value).contains(v)).any(|value| {
                let mut candidate = self.best.clone();
                candidate.choices.written.insert(key.clone(), value);
                self.try_take(candidate)
            });
            if !taken {
                return;
            }
        }
    }
}
