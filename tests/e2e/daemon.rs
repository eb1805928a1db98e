//! The back-end under test as a process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{self, Process};

/// Which program serves the disk.
#[derive(Clone)]
pub enum Backend {
    /// The daemon, by the path of its program.
    Midflight(PathBuf),
    /// `qemu-storage-daemon`: shows which failures the tests can see.
    StorageDaemon,
}

/// How the disk is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    pub queues: u32,
    pub read_only: bool,
    pub serial: Option<String>,
    pub throttle_us: u32,
    pub direct: bool,
    pub logical_block: Option<u32>,
    /// Further options of the daemon.
    pub more: &'static [&'static str],
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            read_only: false,
            serial: None,
            throttle_us: 0,
            direct: false,
            logical_block: None,
            more: &[],
        }
    }
}

/// A disk image and the process that serves it on a socket.
pub struct Daemon {
    backend: Backend,
    tools: PathBuf,
    options: DiskOptions,
    pub image: PathBuf,
    pub socket: PathBuf,
    pub log: PathBuf,
    process: Option<Process>,
    /// Processes started so far.
    pub starts: u32,
}

impl Daemon {
    /// Starts serving `image` on `socket` and waits until it listens.
    /// `tools` holds the QEMU programs.
    pub fn start(
        backend: &Backend,
        tools: &Path,
        image: &Path,
        socket: &Path,
        options: DiskOptions,
    ) -> Result<Self, String> {
        let mut daemon = Self {
            backend: backend.clone(),
            tools: tools.to_path_buf(),
            options,
            image: image.to_path_buf(),
            socket: socket.to_path_buf(),
            log: socket.with_extension("backend.log"),
            process: None,
            starts: 0,
        };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts the next process on the same socket.
    pub fn start_again(&mut self) -> Result<(), String> {
        let command = match &self.backend {
            Backend::Midflight(program) => self.midflight(program),
            Backend::StorageDaemon => self.storage_daemon(),
        };
        let mut process = Process::start(command, &self.log)?;
        self.starts += 1;
        let socket = &self.socket;
        process::until(Duration::from_secs(10), "the back-end to listen", || {
            if let Some(status) = process.ended() {
                return Err(format!("the back-end ended at start: {status}"));
            }
            Ok(process::is_listening(socket).then_some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    fn midflight(&self, program: &Path) -> Command {
        let options = &self.options;
        let mut command = Command::new(program);
        command.arg("serve").arg("--socket-path").arg(&self.socket);
        command.arg("--blk-file").arg(&self.image);
        command.arg("--num-queues").arg(options.queues.to_string());
        if options.read_only {
            command.arg("--read-only");
        }
        if options.direct {
            command.arg("--direct");
        }
        if let Some(serial) = &options.serial {
            command.arg("--serial").arg(serial);
        }
        if let Some(size) = options.logical_block {
            command.arg("--logical-block-size").arg(size.to_string());
        }
        command.args(options.more);
        if options.throttle_us != 0 {
            command.arg("--throttle-latency-us").arg(options.throttle_us.to_string());
        }
        command
    }

    fn storage_daemon(&self) -> Command {
        let options = &self.options;
        let flag = |on: bool| if on { "on" } else { "off" };
        let mut command = Command::new(self.tools.join("qemu-storage-daemon"));
        let mut node = "file";
        command.arg("--blockdev").arg(format!(
            "driver=file,node-name=file,filename={},discard=unmap,read-only={},cache.direct={}",
            self.image.display(),
            flag(options.read_only),
            flag(options.direct),
        ));
        // It has no latency to set; a rate that makes 32 outstanding requests
        // take about as long has the same effect.
        if let Some(rate) = 32_000_000_u32.checked_div(options.throttle_us) {
            command.arg("--object").arg(format!("throttle-group,id=group,x-iops-total={rate}"));
            command.arg("--blockdev").arg(format!(
                "driver=throttle,node-name=slow,throttle-group=group,file=file,read-only={}",
                flag(options.read_only)
            ));
            node = "slow";
        }
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name={node},addr.type=unix,addr.path={},\
             num-queues={},writable={},logical-block-size={}",
            self.socket.display(),
            options.queues,
            flag(!options.read_only),
            options.logical_block.unwrap_or(512),
        ));
        command
    }

    /// Mappings of memory that a front-end shared, by its process.
    pub fn mappings(&self) -> usize {
        let Some(process) = &self.process else { return 0 };
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.id()));
        maps.unwrap_or_default().lines().filter(|line| line.contains("/memfd:")).count()
    }

    pub fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// What the daemon has printed so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether this is the program the tests are for.
    pub fn is_midflight(&self) -> bool {
        matches!(self.backend, Backend::Midflight(_))
    }

    /// Fails if the process has ended by itself.
    pub fn check_alive(&mut self) -> Result<(), String> {
        match self.process.as_mut().and_then(Process::ended) {
            Some(status) => Err(format!("the back-end died: {status}")),
            None => Ok(()),
        }
    }

    /// `kill -9`, and wait until it is gone.
    pub fn kill(&mut self) -> Result<(), String> {
        self.process.take().ok_or("no back-end to kill")?.kill()
    }

    /// SIGHUP: the image may have another size.
    pub fn hang_up(&mut self) -> Result<(), String> {
        self.process.as_mut().ok_or("no back-end to signal")?.signal(libc::SIGHUP)
    }

    /// SIGTERM; it has to end by itself, and well.
    pub fn terminate(&mut self) -> Result<(), String> {
        let mut process = self.process.take().ok_or("no back-end to terminate")?;
        process.signal(libc::SIGTERM)?;
        let status = process
            .wait(Duration::from_secs(20))
            .map_err(|what| format!("after SIGTERM {what}"))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("SIGTERM ended the back-end with {status}"))
        }
    }
}
