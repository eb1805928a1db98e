//! The guest's first file system: a cpio archive with init and its modules.
//!
//! Written here, not by a tool, so that a changed guest program is never
//! tested with yesterday's archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the guest program, static, and returns its path.
pub fn build_guest(target_dir: &Path) -> Result<PathBuf, String> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--target", TARGET, "--manifest-path"])
        .arg(&manifest)
        .env("CARGO_TARGET_DIR", target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .map_err(|error| format!("cannot run cargo for the guest program: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "the guest program does not compile:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(target_dir.join(TARGET).join("release/midflight-guest"))
}

/// Writes the archive. `boot` is the directory with the modules and their list.
pub fn write(archive: &Path, guest: &Path, boot: &Path) -> Result<(), String> {
    let read = |path: &Path| {
        fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let mut cpio = Cpio::default();
    for directory in ["dev", "proc", "sys", "modules"] {
        cpio.entry(directory, 0o040_755, (0, 0), &[]);
    }
    // Without it what init prints goes nowhere.
    cpio.entry("dev/console", 0o020_600, (5, 1), &[]);
    cpio.entry("init", 0o100_755, (0, 0), &read(guest)?);
    let list = read(&boot.join("modules.list"))?;
    cpio.entry("modules/modules.list", 0o100_644, (0, 0), &list);
    for module in String::from_utf8_lossy(&list).lines() {
        let contents = read(&boot.join(module))?;
        cpio.entry(&format!("modules/{module}"), 0o100_644, (0, 0), &contents);
    }
    cpio.entry("TRAILER!!!", 0, (0, 0), &[]);
    fs::write(archive, cpio.bytes)
        .map_err(|error| format!("cannot write {}: {error}", archive.display()))
}

/// An archive in the "new ASCII" format.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // modification time
            contents.len() as u32,
            0, // device the file is on
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0, // no checksum
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
