//! QEMU's own tools as clients, over libblkio: another front-end, which speaks
//! in another order and needs memory regions added while the ring runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::Scenario;
use crate::bench::{Bench, Figures};
use crate::block;
use crate::daemon::{Daemon, DiskOptions};
use crate::process::{self, Process};

const MIB: u64 = 1 << 20;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "qemu_io_write_read_flush_discard_zeroes", run: qemu_io },
        Scenario { name: "qemu_img_copies_an_image_in_and_out", run: qemu_img },
        Scenario { name: "fio_verifies_over_nbd", run: fio },
        Scenario { name: "nbdkit_copies_an_image_in_and_out", run: nbdkit },
        Scenario { name: "clients_come_and_go", run: clients },
        Scenario { name: "client_killed_with_requests_in_flight", run: client_killed },
    ]
}

/// How the tools are told to use the disk.
fn options(daemon: &Daemon) -> String {
    format!("driver=virtio-blk-vhost-user,path={},cache.direct=on", daemon.socket.display())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a tool, at most 60 s, and returns what it printed.
fn finish(command: &Command) -> Result<String, String> {
    // `timeout` because the tools wait for ever for a lost completion.
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=5", "60"]).arg(command.get_program()).args(command.get_args());
    let output = limited
        .output()
        .map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))?;
    let said = text(&output);
    if output.status.success() { Ok(said) } else { Err(format!("{}: {said}", output.status)) }
}

/// Runs one qemu-io with some commands; a failed pattern check is an error.
fn io(bench: &Bench, daemon: &Daemon, commands: &[String]) -> Result<String, String> {
    let mut command = bench.tool("qemu-io");
    command.arg("--image-opts").arg(options(daemon));
    for line in commands {
        command.arg("-c").arg(line);
    }
    let said = finish(&command)?;
    if said.contains("failed") || said.contains("error") {
        return Err(format!("qemu-io said: {said}"));
    }
    Ok(said)
}

/// Bytes that no hole and no repeated sector looks like.
fn noise(bytes: &mut [u8], seed: u64) {
    let mut state = seed;
    for chunk in bytes.chunks_mut(8) {
        state = block::mix(state);
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

fn expect_bytes(image: &Path, ranges: &[(u64, u64, u8)]) -> Result<(), String> {
    let bytes = fs::read(image).map_err(|error| format!("image: {error}"))?;
    for (start, end, value) in ranges {
        let range = &bytes[*start as usize..*end as usize];
        if let Some(at) = range.iter().position(|byte| byte != value) {
            return Err(format!(
                "image byte {} is {:#x}, expected {value:#x}",
                start + at as u64,
                range[at]
            ));
        }
    }
    Ok(())
}

fn qemu_io(bench: &mut Bench) -> Result<Figures, String> {
    let mut daemon = bench.serve(64 * MIB, DiskOptions::default())?;
    let lines = |list: &[&str]| list.iter().map(|line| line.to_string()).collect::<Vec<_>>();
    io(
        bench,
        &daemon,
        &lines(&[
            "write -P 0x11 0 8M",
            "write -P 0x22 512 512",
            "write -P 0x33 60M 4M",
            "read -P 0x11 0 512",
            "read -P 0x22 512 512",
            "read -P 0x11 1k 8387584",
            "read -P 0 8M 8M",
            "flush",
            "aio_write -P 0x44 16M 64k",
            "aio_write -P 0x55 17M 64k",
            "aio_write -P 0x66 18M 64k",
            "aio_flush",
            "read -P 0x55 17M 64k",
            "discard 1M 1M",
            "read -P 0 1M 1M",
            "write -z 3M 1M",
            "write -z -u 5M 1M",
            "read -P 0 3M 1M",
            "read -P 0 5M 1M",
            "read -P 0x11 4M 1M",
            "flush",
        ]),
    )?;
    // Another client, another connection: it is on the disk, not in a cache.
    io(bench, &daemon, &lines(&["read -P 0x11 2M 1M", "read -P 0 5M 1M", "read -P 0x33 60M 4M"]))?;
    // The last sector, and one behind it.
    io(bench, &daemon, &lines(&["write -P 0x77 67108352 512", "read -P 0x77 67108352 512"]))?;
    expect_bytes(
        &daemon.image,
        &[
            (0, 512, 0x11),
            (512, 1024, 0x22),
            (1024, MIB, 0x11),
            (MIB, 2 * MIB, 0),
            (2 * MIB, 3 * MIB, 0x11),
            (3 * MIB, 4 * MIB, 0),
            (4 * MIB, 5 * MIB, 0x11),
            (5 * MIB, 6 * MIB, 0),
            (6 * MIB, 8 * MIB, 0x11),
            (8 * MIB, 16 * MIB, 0),
            (16 * MIB, 16 * MIB + 65536, 0x44),
            (17 * MIB, 17 * MIB + 65536, 0x55),
            (18 * MIB, 18 * MIB + 65536, 0x66),
            (60 * MIB, 64 * MIB - 512, 0x33),
            (64 * MIB - 512, 64 * MIB, 0x77),
        ],
    )?;
    daemon.check_alive()?;
    daemon.terminate()?;
    let mut figures = Figures::default();
    figures.note("3 clients, 26 commands, 15 ranges of the image as expected");
    Ok(figures)
}

fn qemu_img(bench: &mut Bench) -> Result<Figures, String> {
    let size = 64 * MIB;
    let mut daemon = bench.serve(size, DiskOptions { queues: 2, ..DiskOptions::default() })?;
    let (source, copy) = (bench.fresh_path("source"), bench.fresh_path("copy"));
    let mut bytes = vec![0; size as usize];
    noise(&mut bytes, 50);
    // Some holes, so that zeroes are written in both ways.
    bytes[(5 * MIB) as usize..(9 * MIB) as usize].fill(0);
    bytes[(40 * MIB) as usize..(40 * MIB + 4096) as usize].fill(0);
    fs::write(&source, &bytes).map_err(|error| format!("cannot write the source: {error}"))?;

    let mut into = bench.tool("qemu-img");
    into.args(["convert", "-n", "-W", "-m", "16", "-f", "raw"]).arg(&source);
    into.arg("--target-image-opts").arg(options(&daemon));
    finish(&into)?;
    let mut out = bench.tool("qemu-img");
    out.args(["convert", "-W", "-m", "16", "--image-opts"]).arg(options(&daemon));
    out.args(["-O", "raw"]).arg(&copy);
    finish(&out)?;
    for path in [&daemon.image, &copy] {
        let found = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if found.len() != bytes.len() {
            return Err(format!("{} has {} bytes, expected {size}", path.display(), found.len()));
        }
        if let Some(at) = found.iter().zip(&bytes).position(|(a, b)| a != b) {
            return Err(format!("{} differs from the source at byte {at}", path.display()));
        }
    }
    daemon.check_alive()?;
    daemon.terminate()?;
    let _ = (fs::remove_file(&source), fs::remove_file(&copy));
    let mut figures = Figures::default();
    figures.note(format!("{} MiB in and out, equal", size / MIB));
    Ok(figures)
}

/// fio checks its own data: a second storage daemon is the client and exports
/// the disk over NBD, which is what fio speaks.
fn fio(bench: &mut Bench) -> Result<Figures, String> {
    let mut daemon = bench.serve(64 * MIB, DiskOptions { queues: 2, ..DiskOptions::default() })?;
    let nbd = bench.fresh_path("nbd");
    let mut command = bench.tool("qemu-storage-daemon");
    command.arg("--blockdev").arg(format!("{},node-name=disk", options(&daemon)));
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", nbd.display()));
    command.args(["--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on"]);
    let log = bench.fresh_path("client.log");
    let mut client = Process::start(command, &log)?;
    process::until(Duration::from_secs(10), "the NBD export", || {
        if let Some(status) = client.ended() {
            return Err(format!("{status}\n{}", process::tail("client", &log, 5)));
        }
        Ok(process::is_listening(&nbd).then_some(()))
    })?;
    let mut command = bench.tool("fio");
    command.args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-128k"]);
    command.args(["--blockalign=512", "--size=48m", "--iodepth=32", "--randseed=7"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
    command.arg(format!("--uri=nbd+unix:///disk?socket={}", nbd.display()));
    let said = finish(&command)?;
    let line = |word: &str| said.lines().find(|line| line.contains(word)).map(str::trim);
    let issued = line("issued rwts").ok_or(format!("fio counted nothing: {said}"))?.to_string();
    client.signal(libc::SIGTERM)?;
    client.wait(Duration::from_secs(10))?;
    daemon.check_alive()?;
    daemon.terminate()?;
    let mut figures = Figures::default();
    figures.note(format!("fio {}", issued.replace("  ", "")));
    Ok(figures)
}

/// nbdkit is another program on libblkio; libnbd's tools are its clients.
fn nbdkit(bench: &mut Bench) -> Result<Figures, String> {
    let size = 32 * MIB;
    let mut daemon = bench.serve(size, DiskOptions::default())?;
    let plugin = bench.nbdkit_plugin("blkio");
    let nbd = bench.fresh_path("nbd");
    let mut command = bench.tool("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(&nbd).arg(plugin);
    command.args(["virtio-blk-vhost-user", &format!("path={}", daemon.socket.display())]);
    let log = bench.fresh_path("client.log");
    let mut client = Process::start(command, &log)?;
    process::until(Duration::from_secs(10), "nbdkit", || {
        if let Some(status) = client.ended() {
            return Err(format!("{status}\n{}", process::tail("client", &log, 5)));
        }
        Ok(process::is_listening(&nbd).then_some(()))
    })?;
    let uri = format!("nbd+unix:///?socket={}", nbd.display());
    let said = finish(bench.tool("nbdinfo").arg("--size").arg(&uri))?;
    if said.trim() != size.to_string() {
        return Err(format!("nbdinfo tells a size of {}, expected {size}", said.trim()));
    }
    let (source, copy) = (bench.fresh_path("source"), bench.fresh_path("copy"));
    let mut bytes = vec![0; size as usize];
    noise(&mut bytes, 51);
    // A hole, which is copied by write zeroes.
    bytes[(3 * MIB) as usize..(7 * MIB) as usize].fill(0);
    fs::write(&source, &bytes).map_err(|error| format!("cannot write the source: {error}"))?;
    finish(bench.tool("nbdcopy").arg("--flush").arg(&source).arg(&uri))?;
    finish(bench.tool("nbdcopy").arg(&uri).arg(&copy))?;
    for path in [&daemon.image, &copy] {
        let found = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if let Some(at) = found.iter().zip(&bytes).position(|(a, b)| a != b) {
            return Err(format!("{} differs from the source at byte {at}", path.display()));
        }
        if found.len() != bytes.len() {
            return Err(format!("{} has {} bytes, expected {size}", path.display(), found.len()));
        }
    }
    client.signal(libc::SIGTERM)?;
    client.wait(Duration::from_secs(10))?;
    daemon.check_alive()?;
    daemon.terminate()?;
    let _ = (fs::remove_file(&source), fs::remove_file(&copy));
    let mut figures = Figures::default();
    figures.note(format!("nbdkit: {} MiB in and out, equal", size / MIB));
    Ok(figures)
}

fn clients(bench: &mut Bench) -> Result<Figures, String> {
    const TIMES: u64 = 12;
    let mut daemon = bench.serve(16 * MIB, DiskOptions::default())?;
    for round in 0..TIMES {
        let mut commands = vec![format!("write -P {} {}M 1M", round + 1, round)];
        if round > 0 {
            commands.push(format!("read -P {round} {}M 1M", round - 1));
        }
        io(bench, &daemon, &commands).map_err(|what| format!("client {round}: {what}"))?;
    }
    daemon.check_alive()?;
    daemon.terminate()?;
    let mut figures = Figures::default();
    figures.note(format!("{TIMES} clients of one daemon"));
    Ok(figures)
}

/// A client that dies with requests in flight must not keep the next from
/// being served, and its memory must not be written to after it is gone.
fn client_killed(bench: &mut Bench) -> Result<Figures, String> {
    const TIMES: u64 = 3;
    let options_slow = DiskOptions { throttle_us: 1_000_000, ..DiskOptions::default() };
    let mut daemon = bench.serve(16 * MIB, options_slow)?;
    for round in 0..TIMES {
        let mut command = bench.tool("qemu-io");
        command.arg("--image-opts").arg(options(&daemon));
        for index in 0..16 {
            command.arg("-c").arg(format!("aio_write -P 0x99 {}k 64k", 64 * index));
        }
        command.args(["-c", "aio_flush"]);
        let log = bench.fresh_path("client.log");
        let mut client = Process::start(command, &log)?;
        // Long enough to have sent them, shorter than they take.
        std::thread::sleep(Duration::from_millis(500));
        client.kill()?;
        daemon.check_alive()?;
        let line = format!("write -P {} 8M 64k", round + 1);
        io(bench, &daemon, &[line, format!("read -P {} 8M 64k", round + 1)]).map_err(|what| {
            format!("after kill {round}: {what}\n{}", process::tail("client", &log, 5))
        })?;
    }
    daemon.check_alive()?;
    daemon.terminate()?;
    let mut figures = Figures::default();
    figures.note(format!("{TIMES} clients killed, the next was served"));
    Ok(figures)
}
