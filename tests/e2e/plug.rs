//! Disks that come and go while the machine runs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::Scenario;
use crate::bench::{Bench, Figures, Spec};
use crate::daemon::{Daemon, DiskOptions};
use crate::process;
use crate::run::{self, Plan, Run};
use crate::vm::{Vm, wait_for_disks};

const LIMIT: Duration = Duration::from_secs(60);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "hot_unplug_and_plug", run: unplug_and_plug },
        Scenario { name: "read_only_disk_plugged", run: read_only },
        Scenario { name: "direct_disk_with_4k_blocks_plugged", run: direct },
    ]
}

fn device_add(vm: &mut Vm, number: u32, queues: u32) -> Result<(), String> {
    vm.execute(
        "device_add",
        json!({
            "driver": "vhost-user-blk-pci",
            "id": format!("disk{number}"),
            "bus": format!("port{number}"),
            "chardev": format!("socket{number}"),
            "num-queues": queues,
            "queue-size": 128,
        }),
    )
    .map(|_| ())
}

fn device_del(vm: &mut Vm, number: u32) -> Result<(), String> {
    vm.qmp.forget_events();
    vm.execute("device_del", json!({ "id": format!("disk{number}") }))?;
    let wanted = json!(format!("disk{number}"));
    // One event is for the device itself, others for parts of it.
    while vm.qmp.wait_event("DEVICE_DELETED", Duration::from_secs(30))?["data"]["device"] != wanted
    {
    }
    Ok(())
}

fn chardev_add(vm: &mut Vm, number: u32, socket: &Path) -> Result<(), String> {
    let address = json!({ "type": "unix", "data": { "path": socket } });
    let data = json!({ "addr": address, "server": false, "reconnect-ms": 100 });
    vm.execute(
        "chardev-add",
        json!({ "id": format!("socket{number}"), "backend": { "type": "socket", "data": data } }),
    )
    .map(|_| ())
}

/// Plugs a further disk, runs `body` on it, and takes it away again.
pub fn with_disk(
    bench: &mut Bench,
    daemon: Daemon,
    queues: u32,
    body: impl FnOnce(&mut Vm, &mut Daemon) -> Result<Figures, String>,
) -> Result<Figures, String> {
    with_device(bench, daemon, |vm| device_add(vm, 1, queues), body)
}

/// The same by QEMU's device that has no type of its own. It hands every
/// feature through, where the one for disks leaves out those that it does not
/// know. It does not survive its back-end: [`replug`] before that is killed.
pub fn with_untyped_disk(
    bench: &mut Bench,
    daemon: Daemon,
    body: impl FnOnce(&mut Vm, &mut Daemon) -> Result<Figures, String>,
) -> Result<Figures, String> {
    // It complains of sockets that are not connected yet.
    bench.rig(&Spec::plain())?.provoked = true;
    with_device(bench, daemon, add_untyped, body)
}

fn add_untyped(vm: &mut Vm) -> Result<(), String> {
    let device = json!({
        "driver": "vhost-user-test-device-pci",
        "id": "disk1",
        "bus": "port1",
        "chardev": "socket1",
        "virtio-id": 2,
        "num_vqs": 1,
        "vq_size": 128,
        "config_size": 96,
    });
    process::until(Duration::from_secs(10), "the device to be taken", || {
        match vm.execute("device_add", device.clone()) {
            Ok(_) => Ok(Some(())),
            Err(what) if what.contains("vhost_backend_init") => Ok(None),
            Err(what) => Err(what),
        }
    })
}

/// Takes the untyped disk away, does something, and plugs it in again.
pub fn replug(vm: &mut Vm, meanwhile: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    device_del(vm, 1)?;
    wait_for_disks(&vm.guest, "vda")?;
    meanwhile()?;
    add_untyped(vm)?;
    wait_for_disks(&vm.guest, "vda,vdb")
}

fn with_device(
    bench: &mut Bench,
    mut daemon: Daemon,
    add: impl FnOnce(&mut Vm) -> Result<(), String>,
    body: impl FnOnce(&mut Vm, &mut Daemon) -> Result<Figures, String>,
) -> Result<Figures, String> {
    let vm = &mut bench.rig(&Spec::plain())?.vm;
    chardev_add(vm, 1, &daemon.socket)?;
    add(vm)?;
    wait_for_disks(&vm.guest, "vda,vdb")?;
    let figures = body(vm, &mut daemon)?;
    device_del(vm, 1)?;
    wait_for_disks(&vm.guest, "vda")?;
    vm.execute("chardev-remove", json!({ "id": "socket1" }))?;
    daemon.check_alive()?;
    daemon.terminate()?;
    Ok(figures)
}

fn unplug_and_plug(bench: &mut Bench) -> Result<Figures, String> {
    const TIMES: u32 = 3;
    let plan = Plan { seed: 20, ..Plan::default() };
    let rig = bench.rig(&Spec::plain())?;
    let guest = rig.vm.guest.clone();
    let mut figures = Figures::default();
    let run = Run::start(&guest, &plan)?;
    run.wait_for(1000, LIMIT)?;
    figures.add(run.finish(&rig.daemon.image)?);
    for _ in 0..TIMES {
        let known = run::generations(&guest, &plan)?;
        device_del(&mut rig.vm, 0)?;
        wait_for_disks(&rig.vm.guest, "none")?;
        rig.daemon.check_alive()?;
        device_add(&mut rig.vm, 0, rig.spec.disk.queues)?;
        wait_for_disks(&rig.vm.guest, "vda")?;
        run::scan(&guest, &plan, &known)?;
        let run = Run::go_on(&guest, &plan)?;
        run.wait_for(1000, LIMIT)?;
        figures.add(run.finish(&rig.daemon.image)?);
    }
    figures.note(format!("{TIMES} times"));
    Ok(figures)
}

fn read_only(bench: &mut Bench) -> Result<Figures, String> {
    const SIZE: u64 = 4 << 20;
    bench.rig(&Spec::plain())?;
    let image = bench.fresh_path("img");
    let contents = vec![0x3c; SIZE as usize];
    fs::write(&image, &contents).map_err(|error| format!("cannot write an image: {error}"))?;
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let daemon = bench.serve_image(&image, options)?;
    with_disk(bench, daemon, 1, |vm, daemon| {
        let guest = &vm.guest;
        let info = guest.ask("info disk=vdb")?;
        if info.number("ro")? != 1 || info.number("features")? >> 5 & 1 == 0 {
            return Err(format!("the guest does not see a read-only disk: {info:?}"));
        }
        guest.ask(&format!("expect disk=vdb offset=0 len={SIZE} byte=60"))?;
        for command in ["fill", "discard", "zeroout", "punch"] {
            let line = format!("{command} disk=vdb offset=0 len=65536 byte=1");
            match guest.ask(&line) {
                Ok(_) => return Err(format!("{command} succeeded on a read-only disk")),
                Err(what) if !what.starts_with("guest refused") => return Err(what),
                Err(_) => {}
            }
        }
        guest.ask(&format!("expect disk=vdb offset=0 len={SIZE} byte=60"))?;
        let after = fs::read(&daemon.image).map_err(|error| format!("image: {error}"))?;
        if after != contents {
            return Err("the image of a read-only disk has changed".to_string());
        }
        guest.check_log()?;
        let mut figures = Figures::default();
        figures.note("4 kinds of write refused, image unchanged");
        Ok(figures)
    })
}

fn direct(bench: &mut Bench) -> Result<Figures, String> {
    bench.rig(&Spec::plain())?;
    let options = DiskOptions { direct: true, logical_block: Some(4096), ..DiskOptions::default() };
    let daemon = bench.serve(16 << 20, options)?;
    with_disk(bench, daemon, 1, |vm, daemon| {
        let info = vm.guest.ask("info disk=vdb")?;
        if info.number("logical")? != 4096 {
            return Err(format!("logical block size {}, expected 4096", info.text("logical")?));
        }
        let plan = Plan { disk: "vdb".to_string(), seed: 21, ..Plan::default() };
        let run = Run::start(&vm.guest, &plan)?;
        run.wait_for(4000, LIMIT)?;
        run.finish(&daemon.image)
    })
}
