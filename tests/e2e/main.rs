//! End-to-end tests: a Linux guest in real QEMU, and QEMU's libblkio tools,
//! against the daemon.
//!
//! ```text
//! tests/e2e/prepare                        once per machine; needs root and a Debian mirror
//! cargo test --test e2e                    everything
//! cargo test --test e2e -- kill stop       scenarios whose name contains one of the words
//! cargo test --test e2e -- --list
//! cargo test --test e2e -- --daemon PATH   another build of the daemon
//! cargo test --test e2e -- --backend qsd   QEMU's own back-end, to test the tests
//! ```
//!
//! Scenarios run one after the other. Each prints one line with its figures;
//! the last line counts them. Boots may be repeated once and are counted; a
//! data check never is.

// These tests are about real processes, sockets and time.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

mod abilities;
mod bench;
mod blkio;
mod cache;
mod crash;
mod daemon;
mod guest;
mod handover;
mod in_order;
mod initramfs;
mod iommu;
mod memory;
mod migrate;
mod migrate_file;
mod migrate_trouble;
mod older;
mod packed;
mod plug;
mod postcopy;
mod process;
mod qmp;
mod rebind;
mod resize;
mod run;
mod spoil;
mod steady;
mod stream;
mod vm;
mod watch;
mod zoned;

/// The block contents, as the guest writes them.
#[path = "../guest/src/block.rs"]
#[allow(dead_code)]
mod block;

/// Captured streams as text.
#[path = "../capture/mod.rs"]
mod capture;

use std::process::ExitCode;
use std::time::Instant;

use bench::{Bench, Figures, Setup};

/// One test.
pub struct Scenario {
    /// A sentence, to be read in the report and matched by the filter.
    pub name: &'static str,
    /// Does it, and returns what was measured or what was wrong.
    pub run: fn(&mut Bench) -> Result<Figures, String>,
}

struct Options {
    words: Vec<String>,
    list: bool,
    backend: daemon::Backend,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        words: Vec::new(),
        list: false,
        backend: daemon::Backend::Midflight(env!("CARGO_BIN_EXE_midflight").into()),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--list" => options.list = true,
            "--daemon" => options.backend = daemon::Backend::Midflight(value()?.into()),
            "--backend" => match value()?.as_str() {
                "qsd" => options.backend = daemon::Backend::StorageDaemon,
                other => return Err(format!("unknown back-end {other}, expected qsd")),
            },
            // What cargo and other runners pass to every test program.
            "--nocapture" | "--quiet" | "-q" | "--exact" => {}
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            word => options.words.push(word.to_string()),
        }
    }
    Ok(options)
}

/// What a scenario's error begins with if this machine cannot do it.
pub const SKIPPED: &str = "SKIPPED";

fn count_line(passed: usize, failed: usize, skipped: usize) {
    println!("e2e: {passed} passed, {failed} failed, {skipped} skipped");
}

/// Prints what went wrong between scenarios, and counts it.
fn report_troubles(bench: &mut Bench) -> usize {
    let troubles = std::mem::take(&mut bench.troubles);
    for what in &troubles {
        println!("FAIL {what}");
    }
    troubles.len()
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("e2e: {what}");
            return ExitCode::from(2);
        }
    };
    let wanted = |scenario: &Scenario| {
        let words = &options.words;
        words.is_empty() || words.iter().any(|word| scenario.name.contains(word.as_str()))
    };
    let all = [
        watch::scenarios(),
        steady::scenarios(),
        cache::scenarios(),
        resize::scenarios(),
        plug::scenarios(),
        abilities::scenarios(),
        zoned::scenarios(),
        rebind::scenarios(),
        memory::scenarios(),
        in_order::scenarios(),
        crash::scenarios(),
        iommu::scenarios(),
        migrate::scenarios(),
        migrate_file::scenarios(),
        migrate_trouble::scenarios(),
        postcopy::scenarios(),
        migrate::last_scenarios(),
        packed::scenarios(),
        blkio::scenarios(),
        stream::scenarios(),
        older::scenarios(),
    ];
    let scenarios: Vec<Scenario> = all.into_iter().flatten().filter(wanted).collect();
    if scenarios.is_empty() {
        eprintln!("e2e: no scenario has any of these words in its name: {:?}", options.words);
        return ExitCode::from(2);
    }
    if options.list {
        for scenario in &scenarios {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }

    let setup = match Setup::find(options.backend) {
        Ok(setup) => setup,
        Err(bench::NoSetup::NotPrepared(why)) => {
            println!("*** e2e: SKIPPED, nothing was tested: {why}; run tests/e2e/prepare ***");
            count_line(0, 0, scenarios.len());
            return ExitCode::SUCCESS;
        }
        Err(bench::NoSetup::Broken(what)) => {
            println!("e2e: cannot start: {what}");
            count_line(0, scenarios.len(), 0);
            return ExitCode::FAILURE;
        }
    };
    println!("e2e: {}", setup.describe());
    let began = Instant::now();
    let mut bench = Bench::new(setup);
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for scenario in &scenarios {
        let start = Instant::now();
        let result = (scenario.run)(&mut bench).and_then(|figures| {
            bench.check().map(|()| figures).map_err(|e| format!("afterwards {e}"))
        });
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(figures) => {
                passed += 1;
                println!("PASS {:<48} {seconds:5.1} s  {figures}", scenario.name);
            }
            Err(what) if what.starts_with(SKIPPED) => {
                skipped += 1;
                println!("*** {:<48} {what} ***", scenario.name);
            }
            Err(what) => {
                failed += 1;
                println!("FAIL {:<48} {seconds:5.1} s  {what}", scenario.name);
                println!("{}", bench.evidence());
                // What a failed scenario leaves behind must not colour the next.
                bench.discard();
            }
        }
        failed += report_troubles(&mut bench);
    }
    bench.close();
    failed += report_troubles(&mut bench);
    println!(
        "e2e: {:.0} s, {} boots, {} boot retries",
        began.elapsed().as_secs_f64(),
        bench.boots,
        bench.boot_retries
    );
    count_line(passed, failed, skipped);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
