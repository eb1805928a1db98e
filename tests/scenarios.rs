//! Scenario documents: they say what they mean, and those that are kept run.

use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::profile::ProfileName;
use midflight_sim::run::run;
use midflight_sim::scenario::{LATE_WRITE, Scenario, Story, TOUR};
use midflight_sim::shrink::{RUNS, shrink};
use midflight_sim::world::Options;
use std::fs;
use std::path::Path;

#[test]
fn scenario_documents_print_and_parse_to_the_same() {
    for profile in ProfileName::ALL {
        for number in 0..100 {
            let scenario = Story::of(profile).scenario(number).unwrap();
            assert_eq!(scenario.to_string().parse(), Ok(scenario));
        }
    }
    for text in [TOUR, LATE_WRITE] {
        let scenario: Scenario = text.parse().unwrap();
        assert_eq!(scenario.to_string().parse(), Ok(scenario));
    }
}

#[test]
fn scenario_document_of_a_seed_is_the_run_of_the_seed() {
    let mut arena = Arena::new();
    for number in 0..20 {
        let scenario = Story::of(ProfileName::Storm).scenario(number).unwrap();
        let read: Scenario = scenario.to_string().parse().unwrap();
        let hash = |arena: &mut Arena, s| run(arena, s, &Options::default()).hash;
        assert_eq!(hash(&mut arena, &scenario), hash(&mut arena, &read), "storm {number}");
    }
}

#[test]
fn scenario_documents_that_make_no_sense_are_refused_in_one_clear_line() {
    let head = "midflight scenario\n";
    let cases = [
        ("", "line 1: expected midflight scenario, got nothing"),
        ("hello", "line 1: expected midflight scenario, got hello"),
        ("[topology]\nqueues = 0", "queues: expected 1 to 4, got 0"),
        ("[topology]\nqueues = x", "line 3: queues: expected a whole number, got x"),
        ("[topology]\nring_size = 12", "ring_size: expected a power of two, got 12"),
        ("[topology]\nraces = 3/2", "races: expected never or a fraction such as 1/20, got 3/2"),
        ("[topology]\ncolour = red", "line 3: no setting is called colour"),
        (
            "[topology]\ndepth = 1000\nmax_sectors = 64\nring_size = 128\nregion_size = 128",
            "bytes of all requests",
        ),
        ("[actions]\ndance", "line 3: expected request vring V"),
        ("[actions]\nrequest vring 9 flush", "does not fit 1 vrings"),
        ("[actions]\nmigrate after 5 us", "one host"),
        ("[actions]\nrequest vring 0 write 99999999999999999999 @0", "line 3"),
        ("[choices]\ndisk latency = 4", "line 3: expected a choice"),
        ("choices loud", "line 2: expected calm or drawn NUMBER, got loud"),
    ];
    for (body, what) in cases {
        let whole = if body.contains('\n') || body.starts_with("choices") {
            format!("{head}{body}\n")
        } else {
            body.into()
        };
        let refused = whole.parse::<Scenario>().expect_err(body).to_string();
        assert!(refused.contains(what) && !refused.contains('\n'), "{body}: {refused}");
    }
}

#[test]
fn scenario_regressions_that_were_kept_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "scn"));
    files.sort();
    assert!(!files.is_empty());
    let mut arena = Arena::new();
    for file in files {
        let name = file.display();
        let text = fs::read_to_string(&file).unwrap();
        let scenario: Scenario = text.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        let outcome = run(&mut arena, &scenario, &Options::default());
        assert_eq!(outcome.verdict, Ok(()), "{name}");
    }
}

#[test]
fn shrink_is_deterministic_and_keeps_oracle_and_cause() {
    let judges = Judges { late: false, ..Judges::default() };
    let options = Options { judges, ..Options::default() };
    let mut arena = Arena::new();
    let story = Story::of(ProfileName::Migration).with("migration.policy", "unsafe");
    let failing = (0..200).map(|number| story.scenario(number).unwrap()).find(|scenario| {
        run(&mut arena, scenario, &options).verdict.is_err_and(|v| v.oracle == "sectors")
    });
    let failing = failing.expect("an unsafe suspend corrupts within 200 seeds");
    let first = run(&mut arena, &failing, &options).verdict.unwrap_err();
    let shrunk = shrink(&mut arena, &failing, &options, RUNS / 4).unwrap();
    assert_eq!(shrunk.violation.cause(), first.cause());
    assert!(shrunk.after.actions < shrunk.before.actions, "{shrunk:?}");
    assert!(shrunk.after.choices < shrunk.before.choices, "{shrunk:?}");
    let again = shrink(&mut Arena::new(), &failing, &options, RUNS / 4).unwrap();
    assert_eq!((shrunk.scenario.clone(), shrunk.runs), (again.scenario, again.runs));
    // The document alone gives the same verdict.
    let read: Scenario = shrunk.scenario.to_string().parse().unwrap();
    let replayed = run(&mut arena, &read, &options).verdict.unwrap_err();
    assert_eq!(replayed, shrunk.violation);
}
