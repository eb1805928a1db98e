//! What init has to do before and around the tests.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Mounts the file systems everything else reads.
pub fn mount_all() -> Result<(), String> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir_all(target);
        let (source, fstype) = (c_string(kind), c_string(kind));
        let target_c = c_string(target);
        // SAFETY: all pointers are valid C strings; the data pointer may be null.
        let result = unsafe {
            libc::mount(source.as_ptr(), target_c.as_ptr(), fstype.as_ptr(), 0, std::ptr::null())
        };
        let error = io::Error::last_os_error();
        // The kernel may have mounted /dev itself.
        if result != 0 && error.raw_os_error() != Some(libc::EBUSY) {
            return Err(format!("cannot mount {target}: {error}"));
        }
    }
    // A lost completion should show in the log within a scenario's time.
    let _ = fs::write("/proc/sys/kernel/hung_task_timeout_secs", "20");
    Ok(())
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("constant without a NUL")
}

/// Loads the modules listed in /modules/modules.list, in that order.
pub fn load_modules() -> Result<(), String> {
    let list = fs::read_to_string("/modules/modules.list")
        .map_err(|error| format!("cannot read the module list: {error}"))?;
    for name in list.lines() {
        let file = File::open(format!("/modules/{name}"))
            .map_err(|error| format!("cannot open module {name}: {error}"))?;
        // SAFETY: the descriptor is open and the parameters are an empty C string.
        let result =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        let error = io::Error::last_os_error();
        if result != 0 && error.raw_os_error() != Some(libc::EEXIST) {
            return Err(format!("cannot load module {name}: {error}"));
        }
    }
    Ok(())
}

/// Opens a serial port as a plain byte channel: no echo, no line editing.
pub fn open_channel(path: &str) -> Result<File, String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .map_err(|error| format!("cannot open {path}: {error}"))?;
    // SAFETY: termios is plain data that tcgetattr fills before it is used.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(file.as_raw_fd(), &mut settings) != 0 {
            return Err(format!("{path} is no terminal"));
        }
        libc::cfmakeraw(&mut settings);
        libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &settings);
    }
    Ok(file)
}

/// Changes with every boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_string())
        .unwrap_or_else(|_| "unknown".to_string())
}

/// Lines of the kernel's log that mean trouble, separated by " | ", after
/// their number.
pub fn kernel_complaints() -> Result<String, String> {
    const TROUBLE: [&str; 8] = [
        "i/o error",
        "is not a head",
        "hung_task",
        "blocked for more than",
        "oops:",
        "bug:",
        "call trace",
        "general protection",
    ];
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .map_err(|error| format!("cannot open the kernel log: {error}"))?;
    let mut record = vec![0; 8192];
    let mut found = Vec::new();
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(len) => {
                let text = String::from_utf8_lossy(&record[..len]);
                let line = text.lines().next().unwrap_or("");
                let message = line.split_once(';').map_or(line, |(_, message)| message);
                let lower = message.to_lowercase();
                // A slow emulated timer, found at boot.
                let harmless = lower.contains("mp-bios bug: 8254 timer");
                if !harmless && TROUBLE.iter().any(|word| lower.contains(word)) {
                    found.push(message.to_string());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // Records were overwritten while we read; the rest still counts.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(format!("cannot read the kernel log: {error}")),
        }
    }
    let count = found.len();
    found.truncate(8);
    Ok(format!("count={count} lines={}", found.join(" | ")))
}

/// Resets the machine.
pub fn reboot() -> String {
    // SAFETY: no pointers; on success it does not return.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    format!("cannot reboot: {}", io::Error::last_os_error())
}

/// The number of processors that are on.
pub fn processors() -> usize {
    // SAFETY: no pointers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Keeps the calling thread on one processor, so that it submits to the queue
/// that belongs to it.
pub fn pin(processor: usize) {
    // SAFETY: cpu_set_t is plain data; CPU_SET stays inside it for small numbers.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
