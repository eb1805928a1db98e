//! Reports on disk. Whatever happens, the file is a whole report.

use midflight_sim::report::Report;
use std::fs;
use std::path::{Path, PathBuf};

pub fn read(file: &Path) -> Result<Report, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Report::parse(&text).map_err(|e| format!("{}: {e}", file.display()))
}

/// Beside it, and then in its place.
pub fn write(file: &Path, report: &Report) -> Result<(), String> {
    let mut beside = PathBuf::from(file).into_os_string();
    beside.push(".new");
    fs::write(&beside, report.print())
        .and_then(|()| fs::rename(&beside, file))
        .map_err(|e| format!("{}: {e}", file.display()))
}
