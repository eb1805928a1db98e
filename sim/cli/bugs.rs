//! Does the simulator find what it is for?

use super::exit::End;
use super::progress::Progress;
use midflight_sim::catalogue::{self, ENTRIES, Effort, Row, Switch};
use midflight_sim::memory::Arena;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct BugsArgs {
    /// Only entries whose name contains this
    name: Option<String>,
    /// Independent starts of each; start i tries seeds from i * 1000000 on
    #[arg(long, default_value_t = 20)]
    starts: u64,
    /// Seeds to try from each start
    #[arg(long, default_value_t = 1000)]
    limit: u64,
    /// Runs to make a catch of each small in; 0: leave it as it is
    #[arg(long, default_value_t = 1500)]
    shrink_runs: u64,
    /// Print the table of the documentation instead
    #[arg(long)]
    markdown: bool,
    /// Write the small document of each into this folder
    #[arg(long)]
    save: Option<PathBuf>,
    /// Print what was seen first of each
    #[arg(long)]
    seen: bool,
}

/// Hunt every entry from every start.
pub fn run(args: &BugsArgs) -> End {
    let switch = Switch { set: midflight::bugs::set, reached: midflight::bugs::reached };
    let asked = |name: &str| args.name.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let entries: Vec<_> = ENTRIES.iter().filter(|entry| asked(entry.name())).collect();
    let all = entries.len() as u64;
    let effort = Effort { starts: args.starts, limit: args.limit, shrink: args.shrink_runs };
    let mut arena = Arena::new();
    let mut progress = Progress::new("bugs");
    let mut rows: Vec<Row> = Vec::new();
    if !args.markdown {
        println!("{}", catalogue::text(None));
    }
    for (done, entry) in (0u64..).zip(entries) {
        progress.show(done, all, entry.name());
        let row = catalogue::measure(&mut arena, entry, switch, effort);
        progress.clear();
        if !args.markdown {
            println!("{}", catalogue::text(Some(&row)));
            if args.seen
                && let Some(found) = row.found.first()
            {
                println!("    seed {}: {}", found.seed, found.violation);
            }
            if let Some(found) = row.unexpected() {
                let expected = row.entry.oracles.join(" or ");
                println!("    expected {expected}; seed {}: {}", found.seed, found.violation);
            }
        }
        if let (Some(folder), Some(document)) = (&args.save, &row.document) {
            let file = folder.join(format!("{}.scn", row.entry.name()));
            let written = std::fs::create_dir_all(folder)
                .and_then(|()| std::fs::write(&file, document.to_string()));
            if let Err(error) = written {
                eprintln!("error: {}: {error}", file.display());
            }
        }
        rows.push(row);
    }
    let (verdict, kept) = catalogue::verdict(&rows);
    match args.markdown {
        true => print!("{}", catalogue::markdown(&rows)),
        false => println!("{verdict}"),
    }
    kept.into()
}
