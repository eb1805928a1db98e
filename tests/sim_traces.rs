//! What a trace looks like, held by golden files.
//!
//! The events are written by hand in `sim_traces/`, so that no change of what a
//! seed means touches them. After a change on purpose, make the files anew and
//! read the difference:
//!
//! ```sh
//! MIDFLIGHT_GOLDEN=write cargo test --test sim_traces && git diff tests/golden
//! ```

// The way to make the golden files anew is a variable, and they are files.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

#[path = "sim_traces/failing.rs"]
mod failing;
#[path = "sim_traces/migration.rs"]
mod migration;
#[path = "sim_traces/tour.rs"]
mod tour;

use midflight_sim::trace::{Bound, Detail, Filter, Lane, TraceEvent, What, json, mermaid, render};
use std::collections::BTreeSet;
use std::path::Path;

/// Microseconds, scheduler event, its cause, what happened.
type Row = (u64, u64, u64, u8, Lane, What);

fn events(rows: &[Row]) -> Vec<TraceEvent> {
    let event = |&(us, seq, cause, host, lane, what)| TraceEvent {
        at: us * 1_000,
        seq,
        cause,
        host,
        lane,
        what,
    };
    rows.iter().map(event).collect()
}

fn stories() -> [(&'static str, Vec<TraceEvent>); 3] {
    [
        ("tour", events(tour::ROWS)),
        ("migration", events(migration::ROWS)),
        ("failing", events(failing::ROWS)),
    ]
}

#[track_caller]
fn compare(name: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var("MIDFLIGHT_GOLDEN").is_ok_and(|how| how == "write") {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap();
    for (at, (want, got)) in want.lines().zip(got.lines()).enumerate() {
        assert_eq!(got, want, "{name}, line {}", at + 1);
    }
    assert_eq!(got, want, "{name}");
}

#[test]
fn traces_as_text_are_the_golden_ones() {
    for (name, events) in stories() {
        compare(&format!("{name}.txt"), &render(&events, Detail::Everything));
    }
}

#[test]
fn traces_as_json_lines_are_the_golden_ones() {
    for (name, events) in stories() {
        compare(&format!("{name}.jsonl"), &json::render(&events));
    }
}

#[test]
fn traces_as_diagrams_are_the_golden_ones() {
    for (name, events) in stories() {
        compare(&format!("{name}.mmd"), &mermaid::render(&events).unwrap());
    }
}

#[test]
fn traces_every_line_of_json_is_an_object_with_the_fields_that_all_have() {
    let mut count = 0;
    for (name, events) in stories() {
        for line in json::render(&events).lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let object = value.as_object().unwrap();
            for field in ["seq", "cause", "at", "host", "lane", "what", "text"] {
                assert!(object.contains_key(field), "{name}: no {field} in {line}");
            }
            // A name given twice would be lost on the way through an object.
            assert_eq!(object.len(), line.matches("\":").count(), "{line}");
            count += 1;
        }
    }
    assert_eq!(count, stories().map(|(_, events)| events.len()).iter().sum::<usize>());
}

#[test]
fn traces_text_shows_the_lane_by_place() {
    let text = render(&events(migration::ROWS), Detail::Everything);
    let mut lines = text.lines();
    let head: Vec<char> = lines.next().unwrap().chars().collect();
    let mut seen = 0;
    for (line, event) in lines.zip(events(migration::ROWS)) {
        let at = line.chars().position(|c| c == '●').unwrap();
        assert_eq!(line.matches('●').count(), 1, "{line}");
        let bar = head.iter().position(|c| *c == '│').unwrap();
        assert_eq!(head[at], event.lane.name().chars().next().unwrap(), "{line}");
        assert_eq!(at > bar, event.host == 1, "{line}");
        seen += 1;
    }
    assert_eq!(seen, migration::ROWS.len());
}

#[test]
fn traces_a_filter_keeps_what_it_is_asked_for_and_the_order() {
    let all = events(tour::ROWS);
    let whole = Filter::default();
    assert_eq!(whole.apply(&all), all);

    let disk = Filter { lanes: vec![Lane::Disk], ..whole.clone() }.apply(&all);
    assert!(!disk.is_empty() && disk.iter().all(|e| e.lane == Lane::Disk));
    let range = Filter { from: Some(Bound::Seq(20)), to: Some(Bound::Seq(30)), ..whole.clone() };
    let range = range.apply(&all);
    assert_eq!(range.first().map(|e| e.seq), Some(20));
    assert_eq!(range.last().map(|e| e.seq), Some(30));
    let late = Filter { from: Some(Bound::Time(all[40].at)), ..whole.clone() }.apply(&all);
    assert!(late.len() < all.len() && late.iter().all(|e| e.at >= all[40].at));

    let vring = Filter { vring: Some(1), ..whole.clone() }.apply(&all);
    let of_zero =
        |e: &TraceEvent| matches!(e.what, What::Offered { vring: 0, .. } | What::Call { vring: 0 });
    let of_one = |e: &TraceEvent| matches!(e.what, What::Offered { vring: 1, .. });
    assert!(vring.iter().any(of_one) && !vring.iter().any(of_zero));
    assert!(vring.iter().any(|e| matches!(e.what, What::Killed { .. })));
    assert_eq!(Filter { request: Some(999), ..whole }.apply(&all), []);
}

/// From the offer by the guest to the status it sees, through the kill.
#[test]
fn traces_of_one_request_tell_its_life_and_the_death_in_it() {
    let all = events(tour::ROWS);
    let story = Filter { request: Some(1), ..Filter::default() }.apply(&all);
    let kinds: Vec<&str> = story
        .iter()
        .map(|e| match e.what {
            What::Offered { request: 1, .. } => "offered",
            What::Issued { head: 2, .. } => "issued",
            What::Applied { head: 2, .. } => "applied",
            What::Killed { .. } => "killed",
            What::Started { .. } => "started",
            What::VringRunning { vring: 0, .. } => "running",
            What::Settling => "settling",
            What::Done { head: 2, .. } => "done",
            What::Completed { request: 1, .. } => "completed",
            _ => "of another",
        })
        .collect();
    let want = [
        "offered",
        "issued",
        "killed",
        "settling",
        "started",
        "running",
        "issued",
        "applied",
        "done",
        "completed",
    ];
    assert_eq!(kinds, want);
}

#[test]
fn traces_too_long_for_a_diagram_are_refused_with_filters_that_help() {
    let one = events(tour::ROWS);
    let last = one.last().unwrap().seq + 1;
    let many: Vec<TraceEvent> = (0..5)
        .flat_map(|n| one.iter().map(move |e| TraceEvent { seq: e.seq + n * last, ..*e }))
        .collect();
    assert!(many.len() > mermaid::LIMIT);
    let refusal = mermaid::render(&many).unwrap_err();
    assert_eq!(refusal.drawn, many.len() as u64);
    let from = refusal.fits_from.unwrap();
    let rest = Filter { from: Some(Bound::Seq(from)), ..Filter::default() }.apply(&many);
    assert!(mermaid::render(&rest).is_ok(), "the suggested filter helps");
    let more = Filter { from: Some(Bound::Seq(from - 1)), ..Filter::default() }.apply(&many);
    assert!(
        mermaid::render(&more).is_err() || more.len() == rest.len(),
        "and is no narrower than needed"
    );
    let text = refusal.to_string();
    assert!(text.contains(&format!("--from {from}")) && text.contains("--request "), "{text}");
    assert!(mermaid::render(&many[..mermaid::LIMIT]).is_ok());
}

/// A kind that no golden file has is a kind whose looks nobody has seen.
#[test]
fn traces_golden_files_have_every_kind_of_event() {
    let mut seen = BTreeSet::new();
    for (_, events) in stories() {
        seen.extend(events.iter().map(|e| number(e.what)));
    }
    let missing: Vec<u8> = (0..KINDS).filter(|n| !seen.contains(n)).collect();
    assert_eq!(missing, [0_u8; 0]);
}

const KINDS: u8 = 30;

/// A new kind does not compile here until it is counted, and then has to be in
/// one of the stories.
const fn number(what: What) -> u8 {
    match what {
        What::Offered { .. } => 0,
        What::Published { .. } => 1,
        What::Interrupted { .. } => 2,
        What::Completed { .. } => 3,
        What::Paused { .. } => 4,
        What::Connecting => 5,
        What::Front(_) => 6,
        What::Delivered { .. } => 7,
        What::Hangup { .. } => 8,
        What::Started { .. } => 9,
        What::Step { .. } => 10,
        What::Call { .. } => 11,
        What::VringRunning { .. } => 12,
        What::VringStopped { .. } => 13,
        What::Back { .. } => 14,
        What::Issued { .. } => 15,
        What::Applied { .. } => 16,
        What::Done { .. } => 17,
        What::Killed { .. } => 18,
        What::Settling => 19,
        What::Exited { .. } => 20,
        What::Race { .. } => 21,
        What::Moving { .. } => 22,
        What::Landing { .. } => 23,
        What::Adrift { .. } => 24,
        What::Sent { .. } => 25,
        What::Injected { .. } => 26,
        What::PowerLost { .. } => 27,
        What::Sabotaged { .. } => 28,
        What::Changed { .. } => 29,
    }
}
