//! One scenario, with its story.

use super::exit::{End, Result};
use super::failure::{self, Keeper};
use super::story::StoryArgs;
use super::summary::migrations;
use midflight::time::Instant;
use midflight_sim::memory::Arena;
use midflight_sim::profile::{ProfileName, SeedId};
use midflight_sim::run::run as run_scenario;
use midflight_sim::scenario::{Scenario, TOUR};
use midflight_sim::trace::{Detail, TraceEvent, What, late_writes, render};
use midflight_sim::twice::twice as run_twice;
use midflight_sim::world::{Options, Outcome};

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ShowArgs {
    /// Print the messages between front-end and back-end as well
    #[arg(long)]
    messages: bool,
    /// Print every event, also reads of the sockets and steps without a store
    #[arg(long)]
    full: bool,
    /// Print no timeline, only the world and the verdict
    #[arg(long, conflicts_with_all = ["full", "messages"])]
    quiet: bool,
}

impl ShowArgs {
    fn detail(self) -> Option<Detail> {
        match (self.quiet, self.full, self.messages) {
            (true, ..) => None,
            (_, true, _) => Some(Detail::Everything),
            (.., true) => Some(Detail::Messages),
            _ => Some(Detail::Story),
        }
    }
}

pub fn run(
    seed: Option<&str>,
    args: &StoryArgs,
    show: ShowArgs,
    twice: bool,
    keeper: &Keeper,
) -> Result {
    let mut story = args.story();
    let scenario = match seed {
        Some(seed) => {
            let (whole, number) = args.seed(seed)?;
            story = whole;
            println!("seed       {}", story.seed(number));
            let profile = story.profile(number).map_err(|e| e.to_string())?;
            println!("{profile}");
            story.scenario(number).map_err(|e| e.to_string())?
        }
        None if story.profile == ProfileName::Mixed && story.given.is_empty() => {
            println!("a short run with one kill; `run --seed N` draws others");
            let tour: Scenario = TOUR.parse().map_err(|e| format!("tour.scn: {e}"))?;
            println!("{}", tour.topology);
            tour
        }
        None => story.scenario(1).map_err(|e| e.to_string())?,
    };
    let options = args.options();
    let (end, outcome) = play(&scenario, show, twice, &options)?;
    if let (Some(outcome), Some(seed)) = (&outcome, seed)
        && let Err(violation) = &outcome.verdict
    {
        println!();
        let again = format!("run --seed {seed}{}", args.again());
        keeper.report(&scenario, violation, &options, &again)?;
    }
    Ok(end)
}

/// Run it and tell what happened.
pub fn play(
    scenario: &Scenario,
    show: ShowArgs,
    twice: bool,
    options: &Options,
) -> std::result::Result<(End, Option<Outcome>), String> {
    let detail = show.detail();
    let options = Options { trace: detail.is_some(), ..options.clone() };
    let mut arena = Arena::new();
    let outcome = match twice {
        false => run_scenario(&mut arena, scenario, &options),
        true => match run_twice(&mut arena, scenario, &options) {
            Ok(outcome) => outcome,
            Err(difference) => {
                println!("DIFFERS    {difference}");
                return Ok((End::Differs, None));
            }
        },
    };
    if let Some(detail) = detail {
        print!("\n{}", render(outcome.trace.events(), detail));
    }
    late_write(&outcome);
    println!();
    Ok((report(scenario.origin, &outcome), Some(outcome)))
}

/// If an old write did harm, how it came to that: the one that was noticed, or
/// the first.
pub fn late_write(outcome: &Outcome) {
    let stories = late_writes(outcome.trace.events());
    let noticed = |story: &&Vec<TraceEvent>| match (&outcome.verdict, story.last()) {
        (Err(violation), Some(TraceEvent { what: What::Landing { request, over, .. }, .. })) => {
            let names = |n: u64| {
                let mut words = violation.message.split(|c: char| !c.is_alphanumeric());
                words.any(|word| word == n.to_string())
            };
            names(*request) && names(over - 1)
        }
        _ => false,
    };
    if let Some(story) = stories.iter().find(noticed).or(stories.first()) {
        println!("\nhow an old write came to land on new data:");
        print!("{}", render(story, Detail::Story));
    }
}

fn report(origin: Option<SeedId>, outcome: &Outcome) -> End {
    let s = &outcome.stats;
    let at = Instant::from_nanos(outcome.at);
    let end = match &outcome.verdict {
        Ok(()) => {
            println!("PASS       every request completed once, with an allowed value");
            for excuse in &outcome.excuses {
                println!("  excused  {excuse}");
            }
            End::Kept
        }
        Err(violation) => {
            failure::verdict(origin, violation);
            println!("  where    t={at}, event {}", s.events);
            violation.into()
        }
    };
    println!(
        "counted    {} events in {at}, {} requests, {} stores, {} kills, {} shutdowns, {} lost connections, {} pauses, guest between stores {} times",
        s.events, s.requests, s.stores, s.kills, s.shutdowns, s.breaks, s.pauses, s.races
    );
    println!(
        "recovered  {} vrings taken over with {} requests in flight, largest batch {}",
        s.recoveries, s.resubmitted, s.largest_batch
    );
    println!("trace hash {:016x}", outcome.hash);
    migrations(s);
    end
}
