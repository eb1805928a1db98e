//! The catalogue as a table, for a terminal and for the documentation.

use super::Row;
use super::hunt::FEW;

fn seeds(row: &Row, percent: u64) -> String {
    row.percentile(percent).map_or("-".into(), |seeds| seeds.to_string())
}

fn sizes(row: &Row) -> [String; 2] {
    match row.sizes {
        Some((before, after)) => [before.actions.to_string(), after.actions.to_string()],
        None => ["-".into(), "-".into()],
    }
}

fn oracles(row: &Row) -> String {
    let names: Vec<_> = row.oracles().iter().map(|(oracle, _)| *oracle).collect();
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

/// A row for a terminal; without one, the head of the table.
pub fn text(row: Option<&Row>) -> String {
    let Some(row) = row else {
        return format!(
            "{:<24} {:<18} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6}  oracles",
            "bug", "family", "reached", "caught", "median", "p95", "size", "shrunk"
        );
    };
    let [before, after] = sizes(row);
    format!(
        "{:<24} {:<18} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6}  {}",
        row.entry.name(),
        row.entry.family(),
        format!("{}/{}", row.reached, row.starts),
        format!("{}/{}", row.found.len(), row.starts),
        seeds(row, 50),
        seeds(row, 95),
        before,
        after,
        oracles(row)
    )
}

/// The whole table as Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut out = String::from(HEAD);
    for row in rows {
        let entry = row.entry;
        let [before, after] = sizes(row);
        let rule = match entry.reference() {
            "" => entry.rule().to_owned(),
            reference => format!("{}; {reference}", entry.rule()),
        };
        let mistake = entry.mistake();
        out += &format!(
            "| `{}`: {mistake} | {} | {rule} | {} | {} | {} | {before} | {after} |\n",
            entry.name(),
            entry.family(),
            oracles(row),
            seeds(row, 50),
            seeds(row, 95)
        );
    }
    let (verdict, _) = verdict(rows);
    out += &format!("\n{verdict}\n");
    out
}

/// The last line of a catalogue, and whether all is as it must be.
pub fn verdict(rows: &[Row]) -> (String, bool) {
    let (canaries, bugs): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.entry.is_canary());
    let caught = bugs.iter().filter(|row| row.reached == row.starts && row.is_caught()).count();
    let sings = canaries.iter().all(|row| row.is_caught());
    let canary = match (canaries.is_empty(), sings) {
        (true, _) => "canary not asked for",
        (_, true) => "canary failed as it must",
        (_, false) => "the canary did not fail: nothing above can be trusted",
    };
    let all = bugs.len();
    let small = bugs.iter().filter(|row| row.is_small()).count();
    let asked = bugs.iter().any(|row| row.sizes.is_some());
    let small_too = match asked {
        true => {
            format!(", {small} shrunk to at most {FEW} actions that replay to the same verdict")
        }
        false => String::new(),
    };
    let kept = caught == all && sings && (small == all || !asked);
    (format!("{caught} of {all} caught{small_too}, {canary}"), kept)
}

const HEAD: &str = "\
# Deliberate bugs

Written by `cargo run --release -p midflight-sim --features bugs -- bugs --markdown`; do not edit.

Each entry breaks one rule of the core (`src/bugs/list.rs`) or of whoever migrates, and has to be caught from each of a number of
independent starts. Median and p95 are the seeds that were tried from a start until it was; size and shrunk are the actions of the run
that caught it, as drawn and after shrinking. After the rule stands the project that had the bug, where one is known.

| bug | family | rule; who had it | oracles | median | p95 | size | shrunk |
|---|---|---|---|---|---|---|---|
";
