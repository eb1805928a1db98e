//! The guest's write cache across deaths of the daemon and reboots of the guest.

use serde_json::json;
use std::time::{Duration, Instant};

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::guest::Guest;
use crate::run::{Plan, Run};

const LIMIT: Duration = Duration::from_secs(60);

/// What the daemon prints when it takes a choice over, or cannot.
const OFF: &str = "the guest's write cache is off";
const ON: &str = "the guest's write cache is on";
const UNKNOWN: &str = "whether the guest's write cache is on is not known";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "cache_choice_survives_kills_of_the_daemon", run: kills },
        Scenario { name: "cache_choice_and_a_reboot_of_the_guest", run: reboot },
    ]
}

fn mode(guest: &Guest) -> Result<String, String> {
    Ok(guest.ask("info disk=vda")?.text("cache")?.to_string())
}

fn choose(guest: &Guest, wanted: &str) -> Result<(), String> {
    guest.ask(&format!("cache disk=vda mode={wanted}"))?;
    match mode(guest)? {
        found if found == wanted => Ok(()),
        found => Err(format!("cache mode is {found} after setting {wanted}")),
    }
}

/// Lines of the daemon that contain `text`.
fn said(rig: &Rig, text: &str) -> usize {
    rig.daemon.printed().lines().filter(|line| line.contains(text)).count()
}

fn expect(rig: &Rig, text: &str, count: usize) -> Result<(), String> {
    match said(rig, text) {
        found if found == count => Ok(()),
        found => Err(format!("the daemon said {text:?} {found} times, expected {count}")),
    }
}

/// With writes in flight: the mode is chosen, the daemon killed, and its
/// successor has to go on with that mode.
fn kills(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&Spec::slow())?;
    if !rig.daemon.is_midflight() {
        return Ok(Figures::default());
    }
    let guest = rig.vm.guest.clone();
    let run = Run::start(&guest, &Plan { seed: 120, flushes: 5, ..Plan::slow() })?;
    run.wait_for(64, LIMIT)?;
    let [off, on] = [OFF, ON].map(|text| said(rig, text));
    for round in 1..=3 {
        let choices = 2 * round - 1;
        run.mark_deep(LIMIT)?;
        choose(&guest, "write_through")?;
        expect(rig, OFF, off + choices)?;
        run.mark_deep(LIMIT)?;
        rig.daemon.kill()?;
        rig.daemon.start_again()?;
        run.wait_for_marked(LIMIT)?;
        // The successor has found it in the region.
        expect(rig, OFF, off + choices + 1)?;
        choose(&guest, "write_back")?;
        run.wait_for(64, LIMIT)?;
        expect(rig, ON, on + round)?;
        rig.daemon.kill()?;
        rig.daemon.start_again()?;
        run.wait_for(64, LIMIT)?;
        expect(rig, OFF, off + choices + 1)?;
    }
    expect(rig, UNKNOWN, 0)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.note("6 kills, the choice of each kept");
    Ok(figures)
}

/// QEMU shows its own copy of the byte to whatever boots next.
fn reboot(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&Spec::plain())?;
    let guest = rig.vm.guest.clone();
    choose(&guest, "write_through")?;
    let (off, on) = (said(rig, OFF), said(rig, ON));
    let before = guest.ask("ping")?.text("boot")?.to_string();
    rig.vm.execute("set-action", json!({ "reboot": "reset" }))?;
    guest.tell("reboot")?;
    rig.vm.wait_for_guest(Some(&before), Instant::now() + LIMIT)?;
    rig.vm.execute("set-action", json!({ "reboot": "shutdown" }))?;
    let mut figures = Figures::default();
    figures.note(format!("after the reboot the guest has {}", mode(&guest)?));
    if rig.daemon.is_midflight() && mode(&guest)? != "write_through" {
        return Err(format!("{figures}, the daemon has not been told"));
    }
    if said(rig, OFF) != off || said(rig, ON) != on {
        return Err("the daemon has changed the choice by itself".to_string());
    }
    let run = Run::start(&guest, &Plan { seed: 121, ..Plan::default() })?;
    run.wait_for(1000, LIMIT)?;
    figures.add(run.finish(&rig.daemon.image)?);
    choose(&guest, "write_back")?;
    Ok(figures)
}
