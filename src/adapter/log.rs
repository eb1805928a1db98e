//! Lines for the operator, on standard error.
//!
//! Nothing is logged per request, so a line may cost what it costs. A peer can
//! provoke some lines; [`line_limited`] keeps it from flooding the log, and
//! with it from slowing down the loop that writes it.

use core::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines that a peer can provoke, per [`WINDOW`].
const LIMIT: u32 = 200;
/// The time over which [`LIMIT`] counts.
const WINDOW: Duration = Duration::from_secs(1);

/// Print one line for the operator.
macro_rules! say {
    ($($arg:tt)*) => { $crate::adapter::log::line(format_args!($($arg)*)) };
}

/// Print one line that a peer can provoke, unless there were too many.
macro_rules! say_limited {
    ($($arg:tt)*) => { $crate::adapter::log::line_limited(format_args!($($arg)*)) };
}

/// Write `midflight: ` and the text in a single write, so that lines of
/// several processes on one terminal do not mix.
pub fn line(text: fmt::Arguments<'_>) {
    let line = format_line(text);
    // Standard error may be closed; there is nobody left to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// As [`line()`], but at most [`LIMIT`] in each [`WINDOW`]; the next window says how many
/// were dropped.
pub fn line_limited(text: fmt::Arguments<'_>) {
    static BUDGET: Mutex<Option<Budget>> = Mutex::new(None);
    let now = Instant::now();
    let verdict = {
        let mut budget = BUDGET.lock().unwrap_or_else(|e| e.into_inner());
        budget.get_or_insert_with(|| Budget::new(now)).spend(now)
    };
    match verdict {
        Verdict::Say => line(text),
        Verdict::SayAfter(dropped) => {
            line(format_args!("{dropped} lines like the next were not printed"));
            line(text);
        }
        Verdict::Drop => {}
    }
}

/// One line, with control characters made visible: paths and peers must not be
/// able to fake a second line.
fn format_line(text: fmt::Arguments<'_>) -> String {
    struct Clean(String);
    impl fmt::Write for Clean {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            for c in s.chars() {
                if c.is_control() {
                    self.0.extend(c.escape_default());
                } else {
                    self.0.push(c);
                }
            }
            Ok(())
        }
    }
    let mut clean = Clean(String::from("midflight: "));
    // Writing to a string cannot fail.
    let _ = clean.write_fmt(text);
    clean.0.push('\n');
    clean.0
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Say,
    SayAfter(u64),
    Drop,
}

struct Budget {
    since: Instant,
    said: u32,
    dropped: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { since: now, said: 0, dropped: 0 }
    }

    fn spend(&mut self, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.since = now;
            self.said = 0;
        }
        if self.said == LIMIT {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.said += 1;
        match core::mem::take(&mut self.dropped) {
            0 => Verdict::Say,
            dropped => Verdict::SayAfter(dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_line_stays_one_line_whatever_it_quotes() {
        assert_eq!(
            format_line(format_args!("cannot open {}", "a\nb\x1b[31m")),
            "midflight: cannot open a\\nb\\u{1b}[31m\n"
        );
    }

    #[test]
    fn log_limit_drops_a_flood_and_says_how_much() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..LIMIT {
            assert_eq!(budget.spend(start), Verdict::Say);
        }
        assert_eq!(budget.spend(start), Verdict::Drop);
        assert_eq!(budget.spend(start), Verdict::Drop);
        assert_eq!(budget.spend(start + WINDOW), Verdict::SayAfter(2));
        assert_eq!(budget.spend(start + WINDOW), Verdict::Say);
    }
}
