//! The daemon's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    midflight::adapter::run(std::env::args_os())
}
