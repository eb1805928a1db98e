//! Seeds are independent, so a run may be cut up in any way: into threads, into
//! shards on other machines, into pieces by a signal. What comes of it is the
//! same every time.

// These tests run the command, and look at what it leaves behind.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use midflight_sim::report::{Report, merge};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn simulator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_midflight-sim"));
    command.stdin(Stdio::null());
    command
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("midflight-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(arguments: &[&str]) -> Output {
    simulator().args(arguments).output().unwrap()
}

/// A report, without the one figure that is not the same every time.
fn parse(text: &str) -> Report {
    Report { cpu_us: 0, ..Report::parse(text).unwrap() }
}

fn read(file: &Path) -> Report {
    parse(&fs::read_to_string(file).unwrap())
}

fn json(arguments: &[&str]) -> (Report, Option<i32>) {
    let output = run(arguments);
    (parse(&String::from_utf8(output.stdout).unwrap()), output.status.code())
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

/// A world in which a promise is broken in a good share of the seeds.
const BROKEN: [&str; 4] = ["--profile", "migration", "--policy", "unsafe"];

#[test]
fn shards_jobs_change_nothing_in_the_report() {
    let ask = |jobs| json(&["run", "--seeds", "5..25", "--json", "--jobs", jobs]);
    let (one, code) = ask("1");
    assert_eq!((code, one.totals.seeds, one.is_complete()), (Some(0), 20, true));
    assert!(one.totals.counters.requests > 0);
    for jobs in ["2", "3"] {
        assert_eq!(ask(jobs), (one.clone(), Some(0)), "{jobs} jobs");
    }
}

#[test]
fn shards_merged_are_the_whole_with_every_failure() {
    let folder = Folder::new("merged");
    let asked = [&["run", "--seeds", "260..290"][..], &BROKEN].concat();
    let (whole, code) = json(&[&asked[..], &["--json"]].concat());
    assert_eq!(code, Some(1), "a promise is broken");
    assert!(whole.totals.failed() > 0);
    let mut files = Vec::new();
    for shard in ["2/3", "0/3", "1/3"] {
        let file = folder.file(&format!("{}.json", &shard[..1]));
        run(&[&asked[..], &["--shard", shard, "--jobs", "2", "--out", path(&file)]].concat());
        files.push(file);
    }
    let reports: Vec<_> = files.iter().map(|f| (path(f).into(), read(f))).collect();
    assert_eq!(merge(&reports), Ok(whole.clone()));

    let names: Vec<&str> = files.iter().map(|f| path(f)).collect();
    let (merged, code) = json(&[&["merge", "--json"][..], &names].concat());
    assert_eq!((merged, code), (whole.clone(), Some(1)));
    // For people: the summary of an unsharded run, and each failure once.
    let told = |arguments: &[&str]| {
        let output = run(&[arguments, &["--no-shrink"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.starts_with("speed")).collect::<Vec<_>>().join("\n")
    };
    let text = told(&[&["merge"][..], &names].concat());
    assert_eq!(text, told(&asked));
    let kinds = whole.totals.failures.len();
    assert_eq!(text.matches("FAIL").count(), kinds.min(3), "{text}");
    assert!(text.contains(&format!("hash        {:016x}", whole.totals.hash)), "{text}");
}

#[test]
fn shards_leave_a_document_for_each_kind_of_failure_that_is_told() {
    let folder = Folder::new("kinds");
    let asked = [&["run", "--seeds", "260..290", "--jobs", "2"][..], &BROKEN].concat();
    let (report, _) = json(&[&asked[..], &["--json"]].concat());
    let kinds = report.totals.failures.len();
    assert!(kinds > 1, "{report:?}");
    let told = run(&[&asked[..], &["--shrink-runs", "2", "--failures", path(&folder.0)]].concat());
    let files: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(files.len(), kinds.min(3), "{}", String::from_utf8_lossy(&told.stdout));
    for file in files {
        assert_eq!(run(&["replay", path(&file), "--quiet"]).status.code(), told.status.code());
    }
}

#[test]
fn shards_that_are_missing_are_named() {
    let folder = Folder::new("missing");
    let mut files = Vec::new();
    for shard in ["0/4", "2/4"] {
        let file = folder.file(&format!("{}.json", &shard[..1]));
        run(&["run", "--seeds", "0..8", "--shard", shard, "--out", path(&file)]);
        files.push(file);
    }
    let names: Vec<&str> = files.iter().map(|f| path(f)).collect();
    let output = run(&[&["merge"][..], &names].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message, "error: missing: shard 1/4, 3/4\n");
    assert_eq!(output.status.code(), Some(2));
    let twice = run(&["merge", names[0], names[1], names[0]]);
    assert!(String::from_utf8(twice.stderr).unwrap().contains("both shard 0"));
    // A shard that does not exist is refused before anything is run.
    assert_eq!(run(&["run", "--seeds", "0..8", "--shard", "4/4"]).status.code(), Some(2));
}

/// Start, wait until the report on disk has `seeds` done, and send `signal`.
fn interrupt(arguments: &[&str], file: &Path, signal: Signal, enough: fn(&Report) -> bool) -> i32 {
    let mut child: Child =
        simulator().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < Duration::from_secs(120), "the report never had enough");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        let text = fs::read_to_string(file).unwrap_or_default();
        if Report::parse(&text).is_ok_and(|report| enough(&report)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = Pid::from_child(&child);
    kill_process(pid, signal).unwrap();
    let status = child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 1_000 + status.signal().unwrap())
}

#[test]
fn shards_interrupted_and_gone_on_with_are_as_if_nothing_had_been() {
    let folder = Folder::new("interrupted");
    let file = folder.file("report.json");
    let end = if cfg!(debug_assertions) { 200 } else { 3_000 };
    let range = format!("0..{end}");
    let asked = ["run", "--seeds", &range, "--jobs", "2"];
    // As soon as there is a file: much is left.
    let begin = [&asked[..], &["--resume", path(&file)]].concat();
    let code = interrupt(&begin, &file, Signal::TERM, |_| true);
    let before = read(&file);
    assert_eq!(code, 143, "128 and the signal");
    assert!(!before.is_complete(), "{:?}", before.done);
    // The same command line, as a scheduler starts it again.
    let code = run(&begin).status.code();
    assert_eq!(code, Some(0));
    let (whole, _) = json(&[&asked[..], &["--json"]].concat());
    assert_eq!(read(&file), whole);
    // A report that is complete is not run again, and one of another run not touched.
    assert_eq!(run(&["run", "--resume", path(&file)]).status.code(), Some(0));
    let other = run(&["run", "--seeds", "0..9", "--resume", path(&file)]);
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8(other.stderr).unwrap().contains("the report of another run"));
    assert_eq!(read(&file), whole);
    let none = run(&["run", "--resume", path(&folder.file("none.json"))]);
    assert_eq!(none.status.code(), Some(2), "nothing says what to run");
}

#[test]
fn shards_killed_in_the_middle_keep_what_was_found() {
    let folder = Folder::new("killed");
    for (signal, code) in [(Signal::TERM, 1), (Signal::INT, 1), (Signal::KILL, 1_009)] {
        let file = folder.file(&format!("{code}-{}.json", signal.as_raw()));
        let asked = [&["run", "--seeds", "0..1000000000"][..], &BROKEN].concat();
        let asked = [&asked[..], &["--out", path(&file)]].concat();
        let got = interrupt(&asked, &file, signal, |report| report.totals.failed() > 0);
        // A failure that was found counts more than that it was interrupted.
        assert_eq!(got, code);
        let report = read(&file);
        assert!(report.totals.failed() > 0 && !report.is_complete());
    }
}

/// Blocks of the readme, by what they are said to be.
fn blocks(kind: &str) -> Vec<String> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let fence = format!("```{kind}\n");
    readme.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().into()).collect()
}

/// Three tasks of an array and their merge, typed as the readme has it, but for
/// the numbers and the folder.
#[test]
fn shards_examples_in_the_readme_do_what_they_say() {
    let folder = Folder::new("readme");
    let bin = Path::new(env!("CARGO_BIN_EXE_midflight-sim")).parent().unwrap();
    let search = format!("{}:{}", path(bin), std::env::var("PATH").unwrap());
    let shell = |script: &str, task: u64| {
        let script = script
            .replace("0..1000000", "0..12")
            .replace("/16", "/3")
            .replace("/reports", &format!("{}/reports", path(&folder.0)));
        let mut command = Command::new("sh");
        command.arg("-c").arg(&script).current_dir(&folder.0).env("PATH", &search);
        command.env("SLURM_ARRAY_TASK_ID", task.to_string()).env("SLURM_CPUS_PER_TASK", "2");
        command.env("JOB_COMPLETION_INDEX", task.to_string());
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{script}: {message}");
        String::from_utf8(output.stdout).unwrap()
    };
    let whole = run(&["run", "--profile", "storm", "--seeds", "0..12"]);
    let whole = String::from_utf8(whole.stdout).unwrap();
    let hash = whole.lines().find(|line| line.starts_with("hash")).unwrap();

    let scripts = blocks("sh");
    let slurm = scripts.iter().find(|s| s.contains("#SBATCH")).unwrap();
    let pod: String = blocks("yaml")[0]
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.starts_with("exec "))
        .take_while(|line| !line.ends_with(':'))
        .collect::<Vec<_>>()
        .join(" ");
    let merges: Vec<&String> =
        scripts.iter().filter(|s| s.starts_with("midflight-sim merge")).collect();
    assert_eq!(merges.len(), 2);
    for (script, merge) in [(slurm, merges[0]), (&pod, merges[1])] {
        let _ = fs::remove_dir_all(folder.file("reports"));
        fs::create_dir(folder.file("reports")).unwrap();
        for task in 0..3 {
            shell(script, task);
        }
        let merged = shell(merge, 0);
        assert!(merged.contains(hash), "{merged}{whole}");
    }
}
