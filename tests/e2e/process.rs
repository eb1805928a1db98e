//! Child processes that never outlive the tests, and what they print.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A child that is killed when dropped.
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with standard output and error appended to `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Self, String> {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .map_err(|error| format!("cannot open {}: {error}", log.display()))
        };
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        // SAFETY: prctl with these arguments is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        Ok(Self { child, status: None })
    }

    /// The exit status once the child has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&mut self, signal: i32) -> Result<(), String> {
        if let Some(status) = self.ended() {
            return Err(format!("process has already ended: {status}"));
        }
        // SAFETY: the child has not been waited for, so its id is still its own.
        match unsafe { libc::kill(self.child.id() as i32, signal) } {
            0 => Ok(()),
            _ => Err(format!("cannot signal: {}", io::Error::last_os_error())),
        }
    }

    /// Waits for the end at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        until(limit, "the process to end", || Ok(self.ended()))
    }

    /// SIGKILL, and wait until the process is gone.
    pub fn kill(&mut self) -> Result<(), String> {
        self.signal(libc::SIGKILL)?;
        self.wait(Duration::from_secs(10)).map(|_| ())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Polls `probe` until it has something, fails, or `limit` is over.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(format!("timed out after {} ms waiting for {what}", limit.as_millis()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether somebody listens on the unix socket `path`. Looked up, not tried: a
/// connection would be taken for the one client.
pub fn is_listening(path: &Path) -> bool {
    const ACCEPTING: &str = "00010000";
    fs::read_to_string("/proc/net/unix").is_ok_and(|table| {
        table.lines().any(|line| {
            let mut fields = line.split_whitespace();
            fields.nth(3) == Some(ACCEPTING)
                && fields.nth(3).is_some_and(|name| Path::new(name) == path)
        })
    })
}

/// The last `lines` lines of a file, indented, under a heading; nothing if it
/// is empty.
pub fn tail(title: &str, path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    if all.is_empty() {
        return String::new();
    }
    let mut shown = format!("  --- {title} ({} lines)\n", all.len());
    for line in &all[all.len().saturating_sub(lines)..] {
        shown += &format!("  | {}\n", line.trim_end());
    }
    shown
}
