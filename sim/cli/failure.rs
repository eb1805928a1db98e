//! A failure on one screen: what broke, where, who noticed, the story made
//! small, and what to type next.

use midflight::time::Instant;
use midflight_sim::hash::Rolling;
use midflight_sim::memory::Arena;
use midflight_sim::oracle::{Kind, Violation, promise};
use midflight_sim::profile::SeedId;
use midflight_sim::run::run;
use midflight_sim::scenario::Scenario;
use midflight_sim::shrink::{Shrunk, shrink};
use midflight_sim::trace::{Detail, What, render};
use midflight_sim::world::Options;
use std::fs;
use std::path::PathBuf;

/// Lines of the story that fit on a screen with the rest.
const LINES: usize = 14;
/// The same for actions: more than a small failure has.
const ACTIONS: usize = 12;

/// What broke, in the words of the documents, and who noticed.
pub fn verdict(origin: Option<SeedId>, violation: &Violation) {
    let kind = match violation.kind() {
        Kind::Safety => "safety",
        Kind::Liveness => "liveness",
    };
    let (promise, source) = promise(violation.oracle);
    let seed = origin.map_or(String::new(), |seed| format!("seed {seed}   "));
    println!("FAIL       {seed}{kind}");
    println!("  promise  {promise}");
    println!("  of       {source}");
    println!("  broken   {}", violation.message);
    println!("  oracle   {}", violation.oracle);
}

/// Makes failures small and keeps them.
pub struct Keeper {
    /// Runs that may be spent on one; `None`: it stays as it is.
    pub shrink: Option<u64>,
    /// Where documents go.
    pub folder: PathBuf,
}

impl Keeper {
    /// Tell a failure. `again` is what was typed.
    pub fn report(
        &self,
        scenario: &Scenario,
        violation: &Violation,
        options: &Options,
        again: &str,
    ) -> Result<(), String> {
        verdict(scenario.origin, violation);
        let shrunk =
            self.shrink.and_then(|runs| shrink(&mut Arena::new(), scenario, options, runs));
        let Some(shrunk) = shrunk else {
            println!("  again    cargo sim {again}");
            return Ok(());
        };
        sizes(&shrunk);
        story(&shrunk.scenario, options);
        let file = self.save(&shrunk.scenario, violation)?;
        let file = file.display();
        println!("\n  replay   cargo sim replay {file}");
        println!("  look     cargo sim trace {file} --text, --mermaid or --json");
        println!("  keep     cargo sim keep {file}");
        println!("  whole    cargo sim {again} --no-shrink");
        Ok(())
    }

    fn save(&self, scenario: &Scenario, violation: &Violation) -> Result<PathBuf, String> {
        // With settings of one's own there is no seed; the cause tells them apart.
        let seed = scenario.origin.map_or_else(
            || format!("document-{:04x}", short(&violation.cause())),
            |seed| format!("{}-{:x}", seed.profile, seed.number),
        );
        let file = self.folder.join(format!("{}-{seed}.scn", violation.oracle));
        let refused = |e: std::io::Error| format!("{}: {e}", file.display());
        fs::create_dir_all(&self.folder).map_err(refused)?;
        fs::write(&file, scenario.to_string()).map_err(refused)?;
        Ok(file)
    }
}

/// A few digits for a text.
fn short(text: &str) -> u64 {
    let mut hash = Rolling::new();
    text.bytes().for_each(|byte| hash.u64(byte.into()));
    hash.finish() & 0xffff
}

pub fn sizes(shrunk: &Shrunk) {
    let (before, after) = (shrunk.before, shrunk.after);
    println!(
        "  shrunk   {} actions -> {}, {} choices -> {}, {} events -> {}   ({} runs)",
        before.actions,
        after.actions,
        before.choices,
        after.choices,
        before.events,
        after.events,
        shrunk.runs
    );
}

/// Something that was done to the world on purpose.
fn is_trouble(what: What) -> bool {
    matches!(
        what,
        What::Killed { .. }
            | What::Exited { .. }
            | What::Hangup { .. }
            | What::Moving { .. }
            | What::Landing { .. }
            | What::Injected { .. }
            | What::PowerLost { .. }
            | What::Sabotaged { .. }
            | What::Changed { .. }
            | What::Race { .. }
    )
}

/// What happens in the small run, the end of it.
fn story(scenario: &Scenario, options: &Options) {
    let options = Options { trace: true, ..options.clone() };
    let outcome = run(&mut Arena::new(), scenario, &options);
    let events = outcome.trace.events();
    let at = Instant::from_nanos(outcome.at);
    println!("  where    t={at}, event {} of the small run", outcome.stats.events);
    // What happened to the world last, before it was noticed, is a good guess.
    if let Some(event) = events.iter().rev().find(|event| is_trouble(event.what)) {
        let line = render(std::slice::from_ref(event), Detail::Story);
        let after = outcome.stats.events - event.seq;
        println!("  likely   {after} events after: {}", line.lines().last().unwrap_or("").trim());
    }
    let text = render(events, Detail::Story);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let lines: Vec<_> = lines.collect();
    let from = lines.len().saturating_sub(LINES);
    println!(
        "\n  story    {}",
        match from {
            0 => "from the beginning".into(),
            n => format!("its last {LINES} lines of {}", n + LINES),
        }
    );
    println!("  {head}");
    for line in &lines[from..] {
        println!("  {line}");
    }
    for action in scenario.actions.iter().take(ACTIONS) {
        println!("  action   {action}");
    }
    if let Some(more) = scenario.actions.len().checked_sub(ACTIONS).filter(|n| *n > 0) {
        println!("  action   and {more} more");
    }
}
