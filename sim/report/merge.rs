//! Shards back to the whole.

use super::{Ranges, Report};
use core::fmt::Write;

/// Reports do not make a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// There are none.
    #[error("expected reports, got none")]
    Nothing,
    /// They answer different questions.
    #[error("{first} and {second} are not of the same run: {what} differs")]
    Differ {
        /// A report by name.
        first: String,
        /// Another.
        second: String,
        /// In what.
        what: &'static str,
    },
    /// A shard is there twice.
    #[error("{first} and {second} are both shard {shard}")]
    Twice {
        /// A report by name.
        first: String,
        /// Another.
        second: String,
        /// The shard.
        shard: u64,
    },
    /// Some shards are not there, or not complete.
    #[error("{0}")]
    Incomplete(String),
}

/// Join reports, each with the name to call it by.
///
/// # Errors
/// If they are not all shards of one run, each once and complete.
pub fn merge(reports: &[(String, Report)]) -> Result<Report, MergeError> {
    let Some((first_name, first)) = reports.first() else { return Err(MergeError::Nothing) };
    for (name, report) in reports {
        if let Some(what) = difference(first, report) {
            return Err(MergeError::Differ {
                first: first_name.clone(),
                second: name.clone(),
                what,
            });
        }
    }
    for (at, (name, report)) in reports.iter().enumerate() {
        if let Some((other, _)) = reports[..at].iter().find(|(_, r)| r.shard == report.shard) {
            let (first, second) = (other.clone(), name.clone());
            return Err(MergeError::Twice { first, second, shard: report.shard });
        }
    }
    if let Some(text) = lacking(reports, first.request.shards) {
        return Err(MergeError::Incomplete(text));
    }
    let mut whole = Report::new(first.request.clone(), 0);
    whole.request.shards = 1;
    whole.done = Ranges::of(0, whole.count());
    for (_, report) in reports {
        whole.cpu_us += report.cpu_us;
        whole.totals.add(&report.totals);
    }
    Ok(whole)
}

fn difference(one: &Report, other: &Report) -> Option<&'static str> {
    let (one, other) = (&one.request, &other.request);
    [
        ("the schema", one.schema != other.schema),
        ("the profile", one.profile != other.profile),
        ("the policy", one.policy != other.policy),
        ("a setting", one.given != other.given),
        ("running twice", one.twice != other.twice),
        ("the range of seeds", (one.first, one.end) != (other.first, other.end)),
        ("the number of shards", one.shards != other.shards),
    ]
    .into_iter()
    .find_map(|(what, differs)| differs.then_some(what))
}

/// Which shards are missing, and which are not complete; each with what to do.
fn lacking(reports: &[(String, Report)], shards: u64) -> Option<String> {
    let mut text = String::new();
    let there: std::collections::BTreeSet<u64> = reports.iter().map(|(_, r)| r.shard).collect();
    let missing = shards - there.len() as u64;
    if missing > 0 {
        // As many names as one can read; there may be thousands.
        let named: Vec<String> = (0..shards)
            .filter(|shard| !there.contains(shard))
            .take(20)
            .map(|shard| format!("{shard}/{shards}"))
            .collect();
        let more = missing - named.len() as u64;
        let _ = write!(text, "missing: shard {}", named.join(", "));
        if more > 0 {
            let _ = write!(text, " and {more} more");
        }
    }
    for (name, report) in reports.iter().filter(|(_, r)| !r.is_complete()) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        let (done, count) = (report.done.count(), report.count());
        let _ =
            write!(text, "{name} has {done} of {count} seeds, go on with `run --resume {name}`");
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::super::{Request, Totals, seed_hash};
    use super::*;
    use crate::choices::SCHEMA;

    fn shard(shard: u64, shards: u64) -> (String, Report) {
        let request = Request {
            schema: SCHEMA,
            profile: "mixed".into(),
            policy: None,
            given: Vec::new(),
            twice: false,
            first: 10,
            end: 33,
            shards,
        };
        let mut report = Report::new(request, shard);
        let mut totals = Totals::default();
        for position in 0..report.count() {
            totals.seeds += 1;
            totals.hash = totals.hash.wrapping_add(seed_hash(report.number(position), 5));
        }
        report.add(0, report.count(), &totals);
        (format!("shard-{shard}.json"), report)
    }

    #[test]
    fn report_shards_in_any_order_make_the_whole() {
        let (_, whole) = shard(0, 1);
        for shards in [1, 2, 3, 7, 23, 40] {
            let mut parts: Vec<_> = (0..shards).map(|n| shard(n, shards)).collect();
            parts.reverse();
            assert_eq!(merge(&parts), Ok(whole.clone()), "{shards} shards");
        }
    }

    #[test]
    fn report_shards_that_are_missing_are_named() {
        let parts: Vec<_> = [0, 2, 4].map(|n| shard(n, 5)).into();
        assert_eq!(merge(&parts).unwrap_err().to_string(), "missing: shard 1/5, 3/5");
        let many = [shard(99, 100)];
        assert!(merge(&many).unwrap_err().to_string().ends_with("19/100 and 79 more"));
    }

    #[test]
    fn report_shards_that_do_not_belong_together_are_refused() {
        let text = |parts: &[(String, Report)]| merge(parts).unwrap_err().to_string();
        assert_eq!(text(&[]), "expected reports, got none");
        let twice = [shard(0, 2), shard(1, 2), shard(1, 2)];
        assert_eq!(text(&twice), "shard-1.json and shard-1.json are both shard 1");
        let mut other = shard(1, 2);
        other.1.request.profile = "storm".into();
        assert!(text(&[shard(0, 2), other]).ends_with("not of the same run: the profile differs"));
        assert!(text(&[shard(0, 2), shard(1, 3)]).ends_with("the number of shards differs"));
        let mut cut = shard(1, 2);
        cut.1.done = Ranges::of(0, 4);
        assert_eq!(
            text(&[shard(0, 2), cut]),
            "shard-1.json has 4 of 11 seeds, go on with `run --resume shard-1.json`"
        );
    }

    #[test]
    fn report_text_is_read_as_it_was_printed_and_nonsense_is_refused() {
        let (_, report) = shard(1, 2);
        assert_eq!(Report::parse(&report.print()), Ok(report.clone()));
        let text = |edit: fn(&mut Report)| {
            let mut report = report.clone();
            edit(&mut report);
            Report::parse(&report.print()).unwrap_err().to_string()
        };
        assert_eq!(text(|r| r.format = 9), "expected a report of format 1, got 9");
        assert!(text(|r| r.request.schema += 1).starts_with("expected seeds of schema"));
        assert!(text(|r| r.request.end = 0).ends_with("no seeds"));
        assert!(text(|r| r.shard = 2).ends_with("not one of its shards"));
        assert!(text(|r| r.done = Ranges::of(0, 99)).ends_with("that it has not"));
        assert!(text(|r| r.totals.seeds += 1).ends_with("than of positions done"));
        assert!(Report::parse("{}").is_err() && Report::parse("[1").is_err());
    }
}
