//! Migration to a file: what QEMU writes is read by `midflight inspect`, and
//! what this crate writes in its place is taken by QEMU.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use midflight::migration::{BlkDevice, InflightSubsection, Stream, blk_devices};
use serde_json::{Value, json};

use crate::Scenario;
use crate::bench::{Bench, Figures};
use crate::capture;
use crate::daemon::{Daemon, DiskOptions};
use crate::guest::Guest;
use crate::process::{self, Process};
use crate::qmp::Qmp;
use crate::run::{self, Plan};
use crate::vm::{Accelerator, Boot};

const LIMIT: Duration = Duration::from_secs(60);
/// Small, so that the capture is.
const QUEUE_SIZE: u16 = 16;
const QUEUES: u16 = 2;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "stream_captured_spliced_and_restored",
            run: |bench| spliced(bench, Rings::Split),
        },
        Scenario {
            name: "packed_stream_captured_spliced_and_restored",
            run: |bench| spliced(bench, Rings::Packed),
        },
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rings {
    Split,
    Packed,
}

impl Rings {
    /// Bytes of the header of a region's part, and of each of its entries.
    fn unit(self) -> usize {
        match self {
            Self::Split => 16,
            Self::Packed => 32,
        }
    }
}

/// A machine that can suspend requests, new or from a stream.
struct Machine {
    process: Process,
    qmp: Qmp,
    guest: Guest,
    log: PathBuf,
}

impl Machine {
    fn start(
        boot: &Boot,
        rings: Rings,
        base: &Path,
        socket: &Path,
        stream: Option<&Path>,
    ) -> Result<Self, String> {
        let file = |suffix: &str| base.with_extension(suffix);
        let mut command = Command::new(boot.tools.join("qemu-system-x86_64"));
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(match boot.accelerator {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-accel", "tcg,thread=single", "-cpu", "qemu64"],
        });
        command.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"]);
        command.args(["-machine", "q35,memory-backend=memory", "-m", "256M", "-smp", "2"]);
        command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initramfs);
        command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        command.arg("-serial").arg(format!("file:{}", file("console").display()));
        for (option, suffix) in [("-serial", "channel"), ("-qmp", "qmp")] {
            let path = file(suffix);
            command.arg(option).arg(format!("unix:{},server=on,wait=off", path.display()));
        }
        command.args(["-device", "pcie-root-port,id=port0,chassis=0,slot=0", "-chardev"]);
        command.arg(format!("socket,id=socket0,path={}", socket.display()));
        let packed = if rings == Rings::Packed { "on" } else { "off" };
        command.arg("-device").arg(format!(
            "vhost-user-blk-pci,id=disk0,bus=port0,chardev=socket0,num-queues={QUEUES},\
             queue-size={QUEUE_SIZE},inflight-migration=on,packed={packed}"
        ));
        if let Some(stream) = stream {
            command.arg("-incoming").arg(format!("exec:cat {}", stream.display()));
        }
        let log = file("qemu.log");
        let mut process = Process::start(command, &log)?;
        let mut connect = |path: &Path| {
            process::until(Duration::from_secs(20), "qemu to open its sockets", || {
                match (UnixStream::connect(path), process.ended()) {
                    (Ok(stream), _) => Ok(Some(stream)),
                    (Err(_), None) => Ok(None),
                    (Err(_), Some(status)) => Err(format!("qemu ended at start: {status}")),
                }
            })
        };
        let qmp = Qmp::connect(connect(&file("qmp"))?)?;
        let guest = Guest::connect(connect(&file("channel"))?)?;
        let mut machine = Self { process, qmp, guest, log };
        if stream.is_some() {
            machine.wait_for_migration("query-migrate")?;
            machine.qmp.execute("cont", json!({}))?;
        }
        machine.wait_for_guest()?;
        Ok(machine)
    }

    fn wait_for_guest(&mut self) -> Result<(), String> {
        let end = Instant::now() + LIMIT;
        while self.guest.ask_within("ping", Duration::from_millis(250)).is_err() {
            if let Some(status) = self.process.ended() {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                return Err(format!("qemu ended: {status}, {}", said.trim()));
            }
            if Instant::now() > end {
                return Err("the guest did not come up in time".to_string());
            }
        }
        Ok(())
    }

    fn wait_for_migration(&mut self, query: &str) -> Result<Value, String> {
        process::until(LIMIT, "the migration to end", || {
            let answer = self.qmp.execute(query, json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => Ok(Some(answer)),
                Some("failed" | "cancelled") => Err(format!("migration: {answer}")),
                _ => Ok(None),
            }
        })
    }

    /// Stops in the middle of everything, writes the stream to `file`, and
    /// ends.
    fn capture(mut self, file: &Path) -> Result<(), String> {
        self.qmp.execute("stop", json!({}))?;
        let uri = format!("exec:cat > {}", file.display());
        self.qmp.execute("migrate", json!({ "uri": uri }))?;
        self.wait_for_migration("query-migrate")?;
        self.qmp.execute("quit", json!({}))?;
        self.process.wait(Duration::from_secs(20)).map(drop)?;
        match fs::read_to_string(&self.log).unwrap_or_default().trim() {
            "" => Ok(()),
            said => Err(format!("qemu printed: {said}")),
        }
    }
}

/// What a stream says is in flight, by this crate and by the program, which
/// must agree. Returns the number of requests.
fn inspected(daemon: &Daemon, rings: Rings, file: &Path) -> Result<u64, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_midflight"))
        .arg("inspect")
        .arg(file)
        .arg("--json")
        .output()
        .map_err(|error| format!("cannot run midflight inspect: {error}"))?;
    if !output.status.success() || !daemon.is_midflight() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("midflight inspect: {}, {}", output.status, said.trim()));
    }
    let report: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("midflight inspect: {e}"))?;
    if report["devices"][0]["packed"] != json!(rings == Rings::Packed) {
        return Err(format!("the guest has other rings: {}", report["devices"][0]["features"]));
    }
    let queues = report["devices"][0]["queues"].as_array().ok_or("no queues in the report")?;
    let mut count = 0;
    for queue in queues {
        let takeover = &queue["takeover"];
        let resubmit = takeover["resubmit"].as_array().map_or(0, Vec::len) as u64;
        count += resubmit;
        let base = queue["ring"]["base"].as_u64();
        if rings == Rings::Packed {
            let half = |field: &str| takeover[field].as_u64();
            let there = half("used_idx").zip(half("next_avail")).map(|(u, a)| u << 16 | a);
            if there != base || takeover["contradictions"] != json!([]) {
                return Err(format!("not what a suspended packed ring looks like: {queue}"));
            }
            continue;
        }
        let used = queue["ring"]["used_idx"].as_u64().ok_or("no used index from guest memory")?;
        let sound = takeover["contradictions"] == json!([])
            && takeover["next_avail"].as_u64() == base
            && base == Some((used + resubmit) % 65536);
        if !sound {
            return Err(format!("not what a suspended ring looks like: {queue}"));
        }
    }
    Ok(count)
}

/// Requests that the daemon took over, by the lines it has printed since its
/// log had `from` bytes.
fn taken_over(daemon: &Daemon, from: usize) -> Result<u64, String> {
    let log = fs::read_to_string(&daemon.log).map_err(|e| format!("the daemon's log: {e}"))?;
    let counts = log[from..].lines().filter_map(|line| line.split_once(", resubmitted "));
    counts.map(|(_, n)| n.trim().parse::<u64>().map_err(|_| format!("resubmitted {n}"))).sum()
}

/// The stream with the inflight region written by this crate: the same
/// requests in the same order under other counters, so that no byte of it can
/// be taken for QEMU's. Returns the bytes that differ, too.
fn splice(rings: Rings, bytes: &[u8]) -> Result<(Vec<u8>, usize), String> {
    let stream = Stream::parse(bytes).map_err(|e| e.to_string())?;
    let devices = blk_devices(&stream).map_err(|e| e.to_string())?;
    let [device] = &devices[..] else { return Err(format!("{} disks", devices.len())) };
    let BlkDevice { inflight: Some(found), inflight_range: range, .. } = device else {
        return Err("no inflight region in the stream".to_string());
    };
    let mut encoded = Vec::new();
    found.encode(&mut encoded);
    if encoded != bytes[range.clone()] {
        return Err("encoding what was decoded gives other bytes".to_string());
    }
    let mut region = found.region.to_vec();
    let part = region.len() / usize::from(QUEUES);
    for queue in 0..usize::from(QUEUES) {
        for head in 0..usize::from(QUEUE_SIZE) {
            let entry = queue * part + rings.unit() * (1 + head);
            let field = &mut region[entry + 8..entry + 16];
            let counter = u64::from_ne_bytes(field.try_into().map_err(|_| "a counter")?);
            field.copy_from_slice(&(3 * counter + (1 << 40)).to_ne_bytes());
        }
    }
    let ours = InflightSubsection { queue_size: found.queue_size, region: &region };
    let mut out = bytes[..range.start].to_vec();
    ours.encode(&mut out);
    out.extend(&bytes[range.end..]);
    let differ = out.iter().zip(bytes).filter(|(a, b)| a != b).count();
    Ok((out, differ))
}

/// A job of verified I/O is stopped with requests in flight, moved to a file
/// and restored, once as QEMU wrote it and once with our region in it.
fn spliced(bench: &mut Bench, rings: Rings) -> Result<Figures, String> {
    let disk =
        DiskOptions { queues: u32::from(QUEUES), throttle_us: 100_000, ..DiskOptions::default() };
    let mut daemon = bench.serve(16 << 20, disk)?;
    let boot = bench.boot_files().clone();
    let plan = Plan { seed: 71, ..Plan::slow() };
    bench.boots += 1;
    let mut machine = Machine::start(&boot, rings, &bench.fresh_path("vm"), &daemon.socket, None)?;
    machine.guest.ask(&format!("start {} fresh=1", plan.arguments()))?;
    let mut figures = Figures::default();
    for round in ["as written", "spliced"] {
        let done = |m: &Machine| m.guest.ask("status")?.number("done");
        let goal = done(&machine)? + 300;
        process::until(LIMIT, "300 more operations", || {
            Ok((done(&machine)? >= goal).then_some(()))
        })?;
        let file = bench.fresh_path("stream");
        machine.capture(&file)?;
        let count = inspected(&daemon, rings, &file)?;
        if count == 0 {
            return Err(format!("{round}: nothing was in flight at the stop"));
        }
        let bytes = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        figures.note(format!("{round}: {count} in flight, {} bytes", bytes.len()));
        if round == "spliced" {
            let (ours, differ) = splice(rings, &bytes)?;
            fs::write(&file, ours).map_err(|e| format!("{}: {e}", file.display()))?;
            figures.note(format!("{differ} bytes ours"));
            if inspected(&daemon, rings, &file)? != count {
                return Err("the spliced stream has other requests in flight".to_string());
            }
        }
        keep(&bytes)?;
        let before = fs::metadata(&daemon.log).map_or(0, |m| m.len() as usize);
        let path = bench.fresh_path("vm");
        machine = Machine::start(&boot, rings, &path, &daemon.socket, Some(&file))?;
        daemon.check_alive()?;
        // What was said of the file is what has happened.
        let taken = taken_over(&daemon, before)?;
        if taken != count {
            return Err(format!("{round}: {taken} requests were taken over, expected {count}"));
        }
    }
    let goal = machine.guest.ask("status")?.number("done")? + 300;
    process::until(LIMIT, "300 operations after the last restore", || {
        Ok((machine.guest.ask("status")?.number("done")? >= goal).then_some(()))
    })?;
    figures.add(run::finish_job(&machine.guest, &plan, &daemon.image, Duration::ZERO)?);
    machine.qmp.execute("quit", json!({}))?;
    machine.process.wait(Duration::from_secs(20)).map(drop)?;
    daemon.check_alive()?;
    daemon.terminate()?;
    Ok(figures)
}

/// Leaves the capture, cut down, where the next one for `tests/images` can be
/// taken from.
fn keep(bytes: &[u8]) -> Result<(), String> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-capture.stream");
    let text = capture::to_text(&capture::cut(bytes), "");
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}
