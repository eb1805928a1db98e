//! A virtual machine.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::Guest;
use crate::process::{self, Process};
use crate::qmp::Qmp;

/// What to boot with; the same for all machines of a run.
#[derive(Clone)]
pub struct Boot {
    pub tools: PathBuf,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub accelerator: Accelerator,
    /// How a lost back-end is looked for, as this QEMU calls it.
    pub reconnect: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Tcg,
}

/// A disk the machine has from the start.
#[derive(Clone)]
pub struct Disk {
    pub socket: PathBuf,
    pub queues: u32,
    pub queue_size: u32,
    /// Whether requests in flight may move with the machine.
    pub inflight_migration: bool,
    /// Whether the guest may use packed rings.
    pub packed: bool,
    /// Further properties of the device.
    pub more: &'static str,
}

/// What the machine consists of.
#[derive(Clone)]
pub struct Hardware {
    pub cpus: u32,
    pub memory_mib: u32,
    /// Places for memory that is plugged in later.
    pub memory_slots: u32,
    pub disk: Option<Disk>,
    /// An IOMMU between memory and the disk.
    pub iommu: Option<Iommu>,
}

/// What kind of IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// As in Intel's chips; the disk has a translation cache of its own (ATS).
    Intel,
    /// The same without that cache.
    IntelWithoutAts,
}

/// A running QEMU with a booted guest.
pub struct Vm {
    process: Process,
    pub qmp: Qmp,
    pub guest: Guest,
    log: PathBuf,
    channel: PathBuf,
}

impl Vm {
    /// Starts QEMU and waits until the guest program answers. Files of the
    /// machine go to `dir` under names that begin with `name`.
    pub fn boot(
        boot: &Boot,
        dir: &Path,
        name: &str,
        hardware: &Hardware,
        limit: Duration,
    ) -> Result<Self, String> {
        let end = Instant::now() + limit;
        let mut vm = Self::start(boot, dir, name, hardware, None)?;
        vm.wait_for_guest(None, end)?;
        Ok(vm)
    }

    /// Starts QEMU to receive `guest`, which is on another machine yet.
    pub fn receive(
        boot: &Boot,
        dir: &Path,
        name: &str,
        hardware: &Hardware,
        guest: &Guest,
    ) -> Result<Self, String> {
        Self::start(boot, dir, name, hardware, Some(guest))
    }

    fn start(
        boot: &Boot,
        dir: &Path,
        name: &str,
        hardware: &Hardware,
        incoming: Option<&Guest>,
    ) -> Result<Self, String> {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let (channel, control, console) = (file("channel"), file("qmp"), file("console"));
        let mut command = Command::new(boot.tools.join("qemu-system-x86_64"));
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        // One thread for all emulated processors: with one each, guests with
        // several die now and then in the kernel's patching of its own text.
        command.args(match boot.accelerator {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-accel", "tcg,thread=single", "-cpu", "qemu64"],
        });
        // The back-end maps the memory, so it has to be shared.
        let mib = hardware.memory_mib;
        command.arg("-object").arg(format!("memory-backend-memfd,id=memory,size={mib}M,share=on"));
        let machine = match hardware.iommu {
            None => "q35,memory-backend=memory",
            Some(_) => "q35,memory-backend=memory,kernel-irqchip=split",
        };
        command.args(["-machine", machine]).arg("-m");
        command.arg(match hardware.memory_slots {
            0 => format!("{mib}M"),
            slots => format!("{mib}M,slots={slots},maxmem={}M", mib + 1024),
        });
        command.args(["-smp", &hardware.cpus.to_string()]);
        command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initramfs);
        let strict = if hardware.iommu.is_some() { " intel_iommu=on iommu.strict=1" } else { "" };
        command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1{strict}"));
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-serial").arg(format!("unix:{},server=on,wait=off", channel.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
        // Before whatever it is to translate for.
        match hardware.iommu {
            None => {}
            Some(Iommu::Intel) => {
                command.args(["-device", "intel-iommu,intremap=on,device-iotlb=on"]);
            }
            Some(Iommu::IntelWithoutAts) => {
                command.args(["-device", "intel-iommu,intremap=on"]);
            }
        }
        // Places to plug disks into while the machine runs.
        for slot in 0..4 {
            command
                .arg("-device")
                .arg(format!("pcie-root-port,id=port{slot},chassis={slot},slot={slot}"));
        }
        if incoming.is_some() {
            command.args(["-incoming", "defer"]);
        }
        if let Some(disk) = &hardware.disk {
            command.arg("-chardev").arg(format!(
                "socket,id=socket0,path={},{}",
                disk.socket.display(),
                boot.reconnect
            ));
            let mut device = format!(
                "vhost-user-blk-pci,id=disk0,bus=port0,chardev=socket0,num-queues={},queue-size={}",
                disk.queues, disk.queue_size
            );
            if disk.inflight_migration {
                device += ",inflight-migration=on";
            }
            if disk.packed {
                device += ",packed=on";
            }
            match hardware.iommu {
                None => {}
                Some(Iommu::Intel) => device += ",iommu_platform=on,ats=on",
                Some(Iommu::IntelWithoutAts) => device += ",iommu_platform=on",
            }
            device += disk.more;
            command.arg("-device").arg(device);
        }
        let mut process = Process::start(command, &file("qemu.log"))?;
        let mut connect = |path: &Path| {
            process::until(Duration::from_secs(20), "qemu to open its sockets", || {
                match (UnixStream::connect(path), process.ended()) {
                    (Ok(stream), _) => Ok(Some(stream)),
                    (Err(_), None) => Ok(None),
                    (Err(_), Some(status)) => Err(format!("qemu ended at start: {status}")),
                }
            })
        };
        let qmp = Qmp::connect(connect(&control)?)?;
        let guest = match incoming {
            Some(guest) => guest.clone(),
            None => Guest::connect(connect(&channel)?)?,
        };
        Ok(Self { process, qmp, guest, log: file("qemu.log"), channel })
    }

    /// The guest has arrived: commands go to this machine from now on.
    pub fn take_over(&mut self) -> Result<(), String> {
        let stream = UnixStream::connect(&self.channel)
            .map_err(|error| format!("cannot reach the guest where it moved to: {error}"))?;
        self.guest.move_to(stream);
        Ok(())
    }

    /// Waits until the guest program answers, in another boot than `before` if
    /// that is given. Returns the boot's id.
    pub fn wait_for_guest(&mut self, before: Option<&str>, end: Instant) -> Result<String, String> {
        loop {
            // Bytes sent before the port is open are lost, hence short waits.
            if let Ok(answer) = self.guest.ask_within("ping", Duration::from_millis(250)) {
                let boot = answer.text("boot")?.to_string();
                if before != Some(boot.as_str()) {
                    return Ok(boot);
                }
            }
            self.check_alive()?;
            // A processor that cannot go on does not end QEMU.
            let status = self.execute("query-status", json!({}))?["status"].clone();
            if status != json!("running") {
                return Err(format!("the machine is in state {status}"));
            }
            if Instant::now() > end {
                return Err("the guest did not come up in time".to_string());
            }
        }
    }

    /// Fails if QEMU has ended.
    pub fn check_alive(&mut self) -> Result<(), String> {
        match self.process.ended() {
            Some(status) => Err(format!("qemu ended: {status}")),
            None => Ok(()),
        }
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        self.qmp.execute(command, arguments)
    }

    /// Stops the virtual processors and rings; returns how long it took.
    pub fn stop(&mut self) -> Result<Duration, String> {
        let start = Instant::now();
        self.execute("stop", json!({}))?;
        Ok(start.elapsed())
    }

    pub fn cont(&mut self) -> Result<(), String> {
        self.execute("cont", json!({})).map(|_| ())
    }

    /// What QEMU has printed so far. In peace it prints nothing.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL: the front-end is gone from one moment to the next.
    pub fn kill(mut self) -> Result<(), String> {
        self.process.kill()
    }

    /// Lets QEMU end by itself, so that it stops its devices in order.
    pub fn quit(mut self) -> Result<(), String> {
        self.execute("quit", json!({}))?;
        let status = self.process.wait(Duration::from_secs(20))?;
        if status.success() { Ok(()) } else { Err(format!("qemu ended with {status}")) }
    }
}

/// Waits until the guest has exactly these disks, all of them complete.
pub fn wait_for_disks(guest: &Guest, expected: &str) -> Result<(), String> {
    process::until(Duration::from_secs(30), &format!("the guest's disks to be {expected}"), || {
        Ok((guest.ask("disks")?.text("disks")? == expected).then_some(()))
    })
}
