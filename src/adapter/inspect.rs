//! `midflight inspect`: what a migration stream or a dumped inflight region
//! holds, and what a back-end would do with it.

mod file;
mod json;
mod report;
mod text;

use super::cli::InspectArgs;
use super::error::Refusal;
use file::Mapped;
use report::{Report, of_region, of_stream};
use std::io::Write as _;
use std::process::ExitCode;

use crate::migration::Stream;
use crate::vring::RingFormat;

/// Look at a file and print what is in it. A file that cannot be understood is
/// an error, with the offset; so is one with a disk that no back-end would
/// take, after the rest was printed.
pub fn inspect(args: &InspectArgs) -> Result<ExitCode, Refusal> {
    let name = args.file.display();
    let file = Mapped::open(&args.file)?;
    let result = report(file.bytes(), args);
    // What was seen after the file shrank is no fault of its contents.
    file.still_whole()?;
    let report = result.map_err(|e| Refusal(format!("{name}: {e}")))?;
    let text = if args.json { json::render(&report) } else { text::render(&report) };
    // Nobody may be listening any more, as when paging.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match report.refusal() {
        None => Ok(ExitCode::SUCCESS),
        Some(why) => Err(Refusal(format!("{name}: {why}"))),
    }
}

fn report<'a>(bytes: &'a [u8], args: &InspectArgs) -> Result<Report<'a>, String> {
    if Stream::begins(bytes) {
        if args.queues.is_some() || args.queue_size.is_some() || args.packed {
            let own = "--queues, --queue-size and --packed are for a region, this is a stream";
            return Err(own.into());
        }
        of_stream(bytes).map_err(|e| e.to_string())
    } else {
        let format = if args.packed { RingFormat::Packed } else { RingFormat::Split };
        of_region(bytes, format, args.queues, args.queue_size)
    }
}
