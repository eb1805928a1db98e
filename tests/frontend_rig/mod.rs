//! Daemons for a front-end's tests, and how to connect to them.

#![allow(dead_code)] // Each test binary uses a part of it.

pub mod book;

use midflight::adapter::client::ClientConfig;
use midflight::frontend::FrontendConfig;
use midflight::time::Duration;
use midflight::wire::features::{protocol, virtio};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

pub const DISK: u64 = 8 << 20;
pub const QUEUES: u16 = 2;

/// A directory of one test, gone with it.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("midflight-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let dir = Self(dir);
        let disk = fs::File::create(dir.disk()).unwrap();
        disk.set_len(DISK).unwrap();
        dir
    }

    pub fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    pub fn socket(&self) -> PathBuf {
        self.socket_of("socket")
    }

    /// The socket of one of several daemons.
    pub fn socket_of(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A daemon, killed at the end.
pub struct Daemon(Child);

impl Daemon {
    pub fn start(command: &mut Command, socket: &Path) -> Self {
        let mut child = command.stdin(Stdio::null()).spawn().expect("the daemon starts");
        let start = Instant::now();
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the daemon ended with {status}");
            }
            assert!(start.elapsed().as_secs() < 20, "the daemon does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self(child)
    }

    pub fn midflight(dir: &Dir, more: &[&str]) -> Self {
        Self::midflight_at(dir, &dir.socket(), more)
    }

    /// One of several daemons on one image.
    pub fn midflight_at(dir: &Dir, socket: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_midflight"));
        command.arg("serve").arg("--socket-path").arg(socket);
        command.arg("--blk-file").arg(dir.disk()).args(more);
        Self::start(&mut command, socket)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// `None`, with a word about it, if it is not installed.
    pub fn qemu(dir: &Dir) -> Option<Self> {
        let program = "qemu-storage-daemon";
        let Ok(version) = Command::new(program).arg("--version").output() else {
            eprintln!("SKIPPED: {program} is not installed, nothing was tested against it");
            return None;
        };
        eprint!("{}", String::from_utf8_lossy(&version.stdout));
        let file = format!("driver=file,node-name=f,filename={}", dir.disk().display());
        let node = "driver=raw,node-name=d,file=f,discard=unmap";
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues={QUEUES},addr.type=unix,addr.path={}",
            dir.socket().display()
        );
        let mut command = Command::new(program);
        command.args(["--blockdev", &file, "--blockdev", node, "--export", &export]);
        Some(Self::start(&mut command, &dir.socket()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn config(dir: &Dir) -> ClientConfig {
    let dialect = midflight::wire::Dialect::default();
    ClientConfig {
        socket: dir.socket(),
        frontend: FrontendConfig {
            virtio_features: virtio::VERSION_1
                | virtio::EVENT_IDX
                | virtio::INDIRECT_DESC
                | virtio::BLK_FLUSH
                | virtio::BLK_MQ
                | virtio::BLK_DISCARD
                | virtio::BLK_WRITE_ZEROES
                | virtio::BLK_SEG_MAX
                | virtio::BLK_CONFIG_WCE,
            protocol_features: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::BACKEND_REQ
                | protocol::CONFIG
                | protocol::INFLIGHT_SHMFD
                | protocol::RESET_DEVICE
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::STATUS,
            queue_size: 128,
            config_len: 57,
            reconnect_backoff: Some(Duration::from_millis(20)),
            dialect,
            ..FrontendConfig::new(QUEUES)
        },
        ring_size: 128,
        memory_size: 16 << 20,
        patience: Duration::from_secs(20),
    }
}

/// The same with packed rings, of a size that no split ring has.
pub fn packed(mut config: ClientConfig) -> ClientConfig {
    config.frontend.virtio_features |= virtio::RING_PACKED;
    config.frontend.queue_size = 100;
    config.ring_size = 100;
    config
}

pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((i * 7 + seed * 13) ^ (i >> 8)) as u8).collect()
}
