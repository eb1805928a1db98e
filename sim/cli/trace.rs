//! The events of one run, for eyes and for programs.

use super::document;
use super::exit::{End, Result};
use super::story::StoryArgs;
use clap::Args;
use midflight_sim::memory::Arena;
use midflight_sim::run::run;
use midflight_sim::trace::{Bound, Detail, Filter, Lane, TraceEvent, json, mermaid, render};
use midflight_sim::world::Options;
use std::io::{Write, stdout};
use std::path::PathBuf;

#[derive(Args)]
pub struct TraceArgs {
    /// Of this scenario document
    #[arg(required_unless_present = "seed", conflicts_with_all = ["seed", "profile", "policy", "given"])]
    file: Option<PathBuf>,
    /// Of this seed, a whole one as in 3:storm:0x1f or a number
    #[arg(long)]
    seed: Option<String>,
    #[command(flatten)]
    story: StoryArgs,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    part: Part,
}

#[derive(Args)]
#[group(multiple = false)]
struct Form {
    /// Columns by lane; the default
    #[arg(long)]
    text: bool,
    /// One JSON object an event
    #[arg(long)]
    json: bool,
    /// A Mermaid sequence diagram, of at most 200 arrows and notes
    #[arg(long)]
    mermaid: bool,
}

#[derive(Args)]
struct Part {
    /// Only these lanes: guest, front, link, back, disk, host
    #[arg(long, value_delimiter = ',')]
    lane: Vec<Lane>,
    /// Not before this event (1234) or time (1.204s, 250us)
    #[arg(long)]
    from: Option<Bound>,
    /// Not after this event or time
    #[arg(long)]
    to: Option<Bound>,
    /// Only this vring, and what happens to processes
    #[arg(long)]
    vring: Option<u16>,
    /// Only this request, and what happens to its vring and to processes meanwhile
    #[arg(long)]
    request: Option<u64>,
    /// The messages between front-end and back-end as well; JSON always has them
    #[arg(long)]
    messages: bool,
    /// Every event, also reads of the sockets and steps without a store; JSON always has them
    #[arg(long)]
    full: bool,
}

/// Run once more, and show it. A run that fails is shown as well; its verdict is
/// not part of its trace and goes to standard error.
pub fn show(args: &TraceArgs) -> Result {
    let (scenario, options) = match (&args.file, &args.seed) {
        (Some(file), _) => {
            let scenario = document::read(file)?;
            scenario.check()?;
            let options = document::options(&scenario);
            (scenario, options)
        }
        (None, seed) => {
            let (story, number) = args.story.seed(seed.as_deref().unwrap_or_default())?;
            let scenario = story.scenario(number).map_err(|e| e.to_string())?;
            (scenario, args.story.options())
        }
    };
    let outcome = run(&mut Arena::new(), &scenario, &Options { trace: true, ..options });
    let text = args.draw(outcome.trace.events())?;
    // Whoever reads may have seen enough.
    let _ = stdout().write_all(text.as_bytes());
    if let Err(violation) = outcome.verdict {
        eprintln!("the run ends with {violation}");
    }
    Ok(End::Kept)
}

impl TraceArgs {
    fn draw(&self, events: &[TraceEvent]) -> std::result::Result<String, String> {
        let Part { lane, from, to, vring, request, messages, full } = &self.part;
        let (lanes, from, to, vring) = (lane.clone(), *from, *to, *vring);
        let filter = Filter { lanes, from, to, vring, request: *request };
        let mut events = filter.apply(events);
        if self.form.json {
            return Ok(json::render(&events));
        }
        let detail = match (full, messages) {
            (true, _) => Detail::Everything,
            (_, true) => Detail::Messages,
            _ => Detail::Story,
        };
        events.retain(|event| detail.shows(event.what));
        if self.form.mermaid {
            return mermaid::render(&events).map_err(|e| e.to_string());
        }
        Ok(render(&events, detail))
    }
}
