//! Reports of shards, back to the whole.

use super::exit::Result;
use super::failure::Keeper;
use super::{stored, tell};
use midflight_sim::report::merge;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct MergeArgs {
    /// Reports of all shards
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print a report for programs, and no summary
    #[arg(long)]
    json: bool,
    /// Keep the report of the whole in this file
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    keep: super::KeepArgs,
}

pub fn run(args: MergeArgs) -> Result {
    let read = |file: &PathBuf| Ok((file.display().to_string(), stored::read(file)?));
    let reports = args.files.iter().map(read).collect::<std::result::Result<Vec<_>, String>>()?;
    let whole = merge(&reports).map_err(|e| e.to_string())?;
    if let Some(out) = &args.out {
        stored::write(out, &whole)?;
    }
    if args.json {
        print!("{}", whole.print());
        return Ok(tell::end(&whole));
    }
    tell::whole(&whole, &Keeper::from(args.keep))
}
