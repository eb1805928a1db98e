//! What scenarios share: where the tools are, and a machine with a disk that
//! is booted once for all scenarios that can use the same one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::daemon::{Backend, Daemon, DiskOptions};
use crate::initramfs;
use crate::process;
use crate::vm::{Accelerator, Boot, Disk, Hardware, Iommu, Vm};

pub use crate::run::Figures;

/// Longest a boot may take; under emulation it takes about 5 s.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Why nothing can be tested.
pub enum NoSetup {
    /// The machine has not been prepared, which is no failure.
    NotPrepared(String),
    Broken(String),
}

/// The tools, the files to boot and the scratch directory of a run.
pub struct Setup {
    boot: Boot,
    backend: Backend,
    scratch: PathBuf,
}

impl Setup {
    pub fn find(backend: Backend) -> Result<Self, NoSetup> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let check = Command::new(root.join("tests/e2e/prepare"))
            .arg("--check")
            .output()
            .map_err(|error| NoSetup::NotPrepared(format!("cannot run prepare: {error}")))?;
        if !check.status.success() {
            let said = String::from_utf8_lossy(&check.stdout).trim().to_string();
            return Err(NoSetup::NotPrepared(said));
        }
        Self::build(backend, &cache().join("current")).map_err(NoSetup::Broken)
    }

    fn build(backend: Backend, tree: &Path) -> Result<Self, String> {
        // Short, because a unix socket's path holds 107 bytes.
        let scratch = std::env::temp_dir().join(format!("midflight-e2e.{}", std::process::id()));
        fs::create_dir_all(&scratch)
            .map_err(|error| format!("cannot make {}: {error}", scratch.display()))?;
        let guest =
            initramfs::build_guest(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-guest"))?;
        let archive = scratch.join("initramfs");
        initramfs::write(&archive, &guest, &tree.join("boot"))?;
        let mut boot = Boot {
            tools: tree.join("bin"),
            kernel: tree.join("boot/vmlinux"),
            initramfs: archive,
            accelerator: Accelerator::Tcg,
            reconnect: "reconnect-ms=100",
        };
        if kvm_works(&boot, &scratch) {
            boot.accelerator = Accelerator::Kvm;
        }
        Ok(Self { boot, backend, scratch })
    }

    pub fn describe(&self) -> String {
        let backend = match &self.backend {
            Backend::Midflight(path) => path.display().to_string(),
            Backend::StorageDaemon => "qemu-storage-daemon (testing the tests)".to_string(),
        };
        let accelerator = match self.boot.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        };
        format!("{backend}, accelerator {accelerator}, files in {}", self.scratch.display())
    }
}

fn cache() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = from("MIDFLIGHT_E2E_CACHE") {
        return cache.into();
    }
    let base = from("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(from("HOME").unwrap_or("/root".into())).join(".cache"));
    base.join("midflight-e2e")
}

/// Whether a machine boots with KVM: on some hosts the device opens and every
/// guest then dies in its first instructions.
fn kvm_works(boot: &Boot, scratch: &Path) -> bool {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let boot = Boot { accelerator: Accelerator::Kvm, ..boot.clone() };
    let hardware = Hardware { cpus: 1, memory_mib: 256, memory_slots: 0, disk: None, iommu: None };
    Vm::boot(&boot, scratch, "kvm", &hardware, Duration::from_secs(8)).is_ok()
}

/// A QEMU of years ago, in a tree of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Older {
    pub version: &'static str,
    reconnect: &'static str,
}

impl Older {
    /// The one that looks for a lost back-end once a second, at most.
    pub const V7_2: Self = Self { version: "7.2", reconnect: "reconnect=1" };
    pub const V10_0: Self = Self { version: "10.0", reconnect: "reconnect-ms=100" };

    fn tools(self) -> PathBuf {
        cache().join(format!("older-{}", self.version)).join("bin")
    }

    /// What the program itself says it is; nothing if it is not there.
    pub fn found(self) -> Option<String> {
        let output =
            Command::new(self.tools().join("qemu-system-x86_64")).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split("version ").nth(1)?.split_whitespace().next()?;
        version.starts_with(&format!("{}.", self.version)).then(|| version.to_string())
    }
}

/// A kind of machine: scenarios that ask for equal ones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub cpus: u32,
    /// Bytes of the disk.
    pub size: u64,
    pub disk: DiskOptions,
    pub memory_mib: u32,
    /// Largest size of a ring; the guest takes it.
    pub queue_size: u32,
    pub inflight_migration: bool,
    /// Rings are packed.
    pub packed: bool,
    pub iommu: Option<Iommu>,
    /// Places for memory that is plugged in later.
    pub memory_slots: u32,
    /// Further properties of the device, each after a comma.
    pub device: &'static str,
    /// An older QEMU than that of all the rest.
    pub older: Option<Older>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            cpus: 1,
            size: 64 << 20,
            disk: DiskOptions::default(),
            memory_mib: 256,
            queue_size: 128,
            inflight_migration: false,
            packed: false,
            iommu: None,
            memory_slots: 0,
            device: "",
            older: None,
        }
    }
}

impl Spec {
    /// One processor, one queue.
    pub fn plain() -> Self {
        let serial = Some("midflight-serial-020".to_string());
        Self { disk: DiskOptions { serial, ..DiskOptions::default() }, ..Self::default() }
    }

    /// Two of each, and a disk that takes its time, completing out of order.
    pub fn slow() -> Self {
        let disk = DiskOptions { queues: 2, throttle_us: 40_000, ..DiskOptions::default() };
        Self { cpus: 2, size: 16 << 20, disk, ..Self::default() }
    }

    /// A small machine to be moved, on a disk that takes `latency_us`.
    pub fn moving(latency_us: u32, inflight_migration: bool) -> Self {
        let disk = DiskOptions { throttle_us: latency_us, ..DiskOptions::default() };
        Self { size: 16 << 20, disk, memory_mib: 192, inflight_migration, ..Self::default() }
    }

    /// The same machine with packed rings.
    pub fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    fn hardware(&self, socket: &Path) -> Hardware {
        let disk = Disk {
            socket: socket.to_path_buf(),
            queues: self.disk.queues,
            queue_size: self.queue_size,
            inflight_migration: self.inflight_migration,
            packed: self.packed,
            more: self.device,
        };
        Hardware {
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            memory_slots: self.memory_slots,
            disk: Some(disk),
            iommu: self.iommu,
        }
    }
}

/// A machine and the daemon of its disk.
pub struct Rig {
    pub spec: Spec,
    pub vm: Vm,
    pub daemon: Daemon,
    /// Whether something has been done of which QEMU complains.
    pub provoked: bool,
}

impl Rig {
    /// A front-end that never lost its back-end has nothing to complain of;
    /// some refusals it survives by connecting again, and no data check sees
    /// those.
    fn check_quiet(&self) -> Result<(), String> {
        let printed = self.vm.printed();
        // With an IOMMU it complains of two things that go well: it looks at the
        // firmware's ring, which a guest that has taken the IOMMU over has not
        // mapped, and is asked for pages by a device that it has just stopped.
        let iommu = self.spec.iommu.is_some();
        let expected = |line: &&str| {
            iommu && (line.contains(": vtd_") || line.contains("Unexpected IOTLB message"))
        };
        let printed: String = printed.lines().filter(|line| !expected(line)).collect();
        if self.daemon.starts > 1 || self.provoked || printed.is_empty() {
            return Ok(());
        }
        Err(format!("qemu printed: {}", printed.trim().replace('\n', " | ")))
    }

    /// Ends both the regular way.
    pub fn close(mut self) -> Result<(), String> {
        self.daemon.check_alive()?;
        self.check_quiet()?;
        self.vm.quit()?;
        self.daemon.check_alive()?;
        self.daemon.terminate()
    }
}

pub struct Bench {
    setup: Setup,
    rig: Option<Rig>,
    names: u32,
    /// Files to show when a scenario fails.
    logs: Vec<(&'static str, PathBuf)>,
    /// What went wrong when a machine was closed, between scenarios.
    pub troubles: Vec<String>,
    pub boots: u32,
    pub boot_retries: u32,
    keep: bool,
}

impl Bench {
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            rig: None,
            names: 0,
            logs: Vec::new(),
            troubles: Vec::new(),
            boots: 0,
            boot_retries: 0,
            keep: false,
        }
    }

    pub fn tool(&self, name: &str) -> Command {
        Command::new(self.setup.boot.tools.join(name))
    }

    /// A plugin of the tree's nbdkit, which would look for it where the tree's root
    /// is not.
    pub fn nbdkit_plugin(&self, name: &str) -> PathBuf {
        let libraries = self.setup.boot.tools.join("../root/usr/lib/x86_64-linux-gnu");
        libraries.join("nbdkit").join("plugins").join(format!("nbdkit-{name}-plugin.so"))
    }

    /// For scenarios that need machines of their own.
    pub fn boot_files(&self) -> &Boot {
        &self.setup.boot
    }

    /// The program under test, for what it can do beside serving.
    pub fn program(&self) -> Result<&Path, String> {
        match &self.setup.backend {
            Backend::Midflight(program) => Ok(program),
            Backend::StorageDaemon => Err("the storage daemon has no inspect".to_string()),
        }
    }

    /// A path in the scratch directory that has not been used before.
    pub fn fresh_path(&mut self, suffix: &str) -> PathBuf {
        self.names += 1;
        self.setup.scratch.join(format!("{}.{suffix}", self.names))
    }

    /// An empty image and a daemon that serves it.
    pub fn serve(&mut self, size: u64, options: DiskOptions) -> Result<Daemon, String> {
        let image = self.fresh_path("img");
        File::create(&image)
            .and_then(|file| file.set_len(size))
            .map_err(|error| format!("cannot make {}: {error}", image.display()))?;
        self.serve_image(&image, options)
    }

    pub fn serve_image(&mut self, image: &Path, options: DiskOptions) -> Result<Daemon, String> {
        let socket = self.fresh_path("sock");
        self.logs.push(("back-end", socket.with_extension("backend.log")));
        let setup = &self.setup;
        Daemon::start(&setup.backend, &setup.boot.tools, image, &socket, options)
    }

    /// The machine of this kind: the one that runs, or a new one.
    pub fn rig(&mut self, spec: &Spec) -> Result<&mut Rig, String> {
        if self.rig.as_ref().is_none_or(|rig| rig.spec != *spec) {
            self.close_rig();
            self.logs.clear();
            let daemon = self.serve(spec.size, spec.disk.clone())?;
            self.boot_rig(spec, daemon)?;
        }
        let rig = self.rig.as_mut().ok_or("no machine")?;
        rig.vm.check_alive()?;
        rig.daemon.check_alive()?;
        Ok(rig)
    }

    /// Ends the machine by `how`, checks that the daemon does not mind, and
    /// boots another one on the same daemon.
    pub fn next_machine(
        &mut self,
        how: impl FnOnce(Vm) -> Result<(), String>,
    ) -> Result<&mut Rig, String> {
        let Rig { spec, vm, mut daemon, .. } = self.rig.take().ok_or("no machine")?;
        how(vm)?;
        daemon.check_alive()?;
        self.boot_rig(&spec, daemon)
    }

    fn boot_rig(&mut self, spec: &Spec, daemon: Daemon) -> Result<&mut Rig, String> {
        let hardware = spec.hardware(&daemon.socket);
        let vm = match self.boot(&hardware, spec.older) {
            Ok(vm) => vm,
            // Emulated processors sometimes die at boot, whatever the disk.
            Err(what) => {
                println!("     boot failed once ({what}), trying again");
                self.boot_retries += 1;
                self.boot(&hardware, spec.older)?
            }
        };
        Ok(self.rig.insert(Rig { spec: spec.clone(), vm, daemon, provoked: false }))
    }

    fn boot(&mut self, hardware: &Hardware, older: Option<Older>) -> Result<Vm, String> {
        self.boots += 1;
        let name = self.machine_name();
        let boot = match older {
            None => self.setup.boot.clone(),
            Some(older) => {
                Boot { tools: older.tools(), reconnect: older.reconnect, ..self.setup.boot.clone() }
            }
        };
        Vm::boot(&boot, &self.setup.scratch, &name, hardware, BOOT_LIMIT)
    }

    /// Names the files of a machine, and has them shown if something fails.
    fn machine_name(&mut self) -> String {
        self.names += 1;
        let name = format!("vm{}", self.names);
        let file = |suffix: &str| self.setup.scratch.join(format!("{name}.{suffix}"));
        let (console, log) = (file("console"), file("qemu.log"));
        self.logs.push(("guest console", console));
        self.logs.push(("qemu", log));
        name
    }

    /// Takes the machine out, to be moved; what [`Bench::put_back`] is given in
    /// its place is the machine of the next scenario.
    pub fn take_out(&mut self, spec: &Spec) -> Result<Rig, String> {
        self.rig(spec)?;
        self.rig.take().ok_or("no machine".to_string())
    }

    pub fn put_back(&mut self, rig: Rig) {
        self.rig = Some(rig);
    }

    /// A machine on `daemon` that waits for the guest of `source`; of the same
    /// kind but for the disk's options.
    pub fn receiver(&mut self, source: &Rig, daemon: Daemon) -> Result<Rig, String> {
        let spec = Spec { disk: daemon.options().clone(), ..source.spec.clone() };
        self.receiver_of(spec, source, daemon)
    }

    /// The same for a machine of another kind.
    pub fn receiver_of(&mut self, spec: Spec, source: &Rig, daemon: Daemon) -> Result<Rig, String> {
        let name = self.machine_name();
        let setup = &self.setup;
        let hardware = spec.hardware(&daemon.socket);
        let vm = Vm::receive(&setup.boot, &setup.scratch, &name, &hardware, &source.vm.guest)?;
        Ok(Rig { spec, vm, daemon, provoked: false })
    }

    /// The same with a new daemon of these options on the same image.
    pub fn receiver_with(&mut self, source: &Rig, disk: DiskOptions) -> Result<Rig, String> {
        let daemon = self.serve_image(&source.daemon.image, disk)?;
        self.receiver(source, daemon)
    }

    fn close_rig(&mut self) {
        if let Some(rig) = self.rig.take() {
            let what = format!("{} cpus, {:?}", rig.spec.cpus, rig.spec.disk);
            if let Err(error) = rig.close() {
                self.keep = true;
                self.troubles.push(format!("closing the machine with {what}: {error}"));
            }
        }
    }

    /// What is checked after every scenario, whatever it was about.
    pub fn check(&mut self) -> Result<(), String> {
        let Some(rig) = &mut self.rig else { return Ok(()) };
        rig.vm.check_alive()?;
        rig.daemon.check_alive()?;
        rig.check_quiet()
    }

    /// The ends of the logs of the present machine, and of what was there last
    /// if it has been moved about.
    pub fn evidence(&mut self) -> String {
        const MOST: usize = 12;
        self.keep = true;
        self.logs
            .iter()
            .skip(self.logs.len().saturating_sub(MOST))
            .map(|(title, path)| process::tail(title, path, 25))
            .collect()
    }

    /// Ends the present machine the regular way: nobody else can use it.
    pub fn renew(&mut self) -> Result<(), String> {
        self.rig.take().map_or(Ok(()), Rig::close)
    }

    /// Throws the present machine away.
    pub fn discard(&mut self) {
        self.rig = None;
    }

    /// Closes the last machine; removes the files unless somebody may want to
    /// look at them.
    pub fn close(&mut self) {
        self.close_rig();
        if !self.keep {
            let _ = fs::remove_dir_all(&self.setup.scratch);
        }
    }
}
