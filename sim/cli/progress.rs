//! A bar on the terminal, nothing anywhere else.

use std::io::{IsTerminal, Write, stderr};

// How fast a machine is says nothing about what happened in a run.
#[allow(clippy::disallowed_types)]
type Clock = std::time::Instant;

const WIDTH: u64 = 30;

/// Counts up to a number that is known.
pub struct Progress {
    what: &'static str,
    begin: Clock,
    shown: Option<Clock>,
    on: bool,
}

impl Progress {
    pub fn new(what: &'static str) -> Self {
        Self { what, begin: Clock::now(), shown: None, on: stderr().is_terminal() }
    }

    /// Seconds since the beginning, in thousandths.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// So many of `all` are done; `note` follows the bar.
    pub fn show(&mut self, done: u64, all: u64, note: &str) {
        let due = self.shown.is_none_or(|at| at.elapsed().as_millis() > 80);
        if !self.on || !due {
            return;
        }
        self.shown = Some(Clock::now());
        let full = (WIDTH * done / all.max(1)) as usize;
        let bar = "█".repeat(full) + &"░".repeat(WIDTH as usize - full);
        let rate = 1000 * done / self.elapsed_ms().max(1);
        let mut out = stderr().lock();
        let _ = write!(out, "\r\x1b[K{bar} {done} of {all} {}  {rate}/s  {note}", self.what);
        let _ = out.flush();
    }

    /// Take the bar away.
    pub fn clear(&self) {
        if self.on {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// A number with its thousands apart.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn numbers_are_grouped_from_the_right() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_000), "1 000");
        assert_eq!(grouped(12_345_678), "12 345 678");
    }
}
