//! Command line of the simulator.

mod cli;

use std::panic;
use std::process::{self, ExitCode};

// A run makes and drops many small things; this allocator is quicker at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As a shell has it for a program that was told to stop writing.
const SIGPIPE: i32 = 128 + 13;

fn main() -> ExitCode {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // Who reads what is printed has seen enough, as `head` does.
        if info.payload_as_str().is_some_and(|text| text.contains("Broken pipe")) {
            process::exit(SIGPIPE);
        }
        before(info);
    }));
    cli::main()
}
