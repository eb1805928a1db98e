//! Memory that is plugged in while the guest runs.

use std::fs;
use std::path::PathBuf;

const BLOCKS: &str = "/sys/devices/system/memory";

/// The `state` files of the kernel's memory blocks.
fn blocks() -> Result<Vec<PathBuf>, String> {
    let entries =
        fs::read_dir(BLOCKS).map_err(|error| format!("cannot list memory blocks: {error}"))?;
    Ok(entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix("memory"));
            digits.is_some_and(|digits| digits.parse::<u64>().is_ok())
        })
        .map(|entry| entry.path().join("state"))
        .collect())
}

/// How many memory blocks there are and are in use, and the kernel's total.
pub fn state() -> Result<String, String> {
    let blocks = blocks()?;
    let online = blocks
        .iter()
        .filter(|path| fs::read_to_string(path).is_ok_and(|state| state.trim() == "online"))
        .count();
    let info = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()).unwrap_or("0").to_string()
    };
    let zones = fs::read_to_string("/proc/zoneinfo").map_err(|error| error.to_string())?;
    Ok(format!(
        "blocks={} online={online} total_kib={} free_kib={} movable_used_kib={}",
        blocks.len(),
        field("MemTotal:"),
        field("MemFree:"),
        movable_used_kib(&zones)
    ))
}

/// Memory in use in the zone that plugged memory is put into. Only pages that
/// can be moved away again are there: those of programs.
fn movable_used_kib(zones: &str) -> u64 {
    let Some((_, zone)) = zones.split_once("zone  Movable") else { return 0 };
    let number = |name: &str| -> u64 {
        let line = zone.lines().find_map(|line| line.trim().strip_prefix(name));
        line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
    };
    let free = zone.lines().find_map(|line| line.trim().strip_prefix("pages free"));
    let free: u64 = free.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    number("managed").saturating_sub(free) * 4
}

/// Puts every block that is not in use, and every one to come, into the zone of
/// movable pages, which is where the buffers of programs go first.
pub fn online() -> Result<String, String> {
    fs::write(format!("{BLOCKS}/auto_online_blocks"), "online_movable")
        .map_err(|error| format!("cannot choose the zone of new memory: {error}"))?;
    let mut count = 0;
    for path in blocks()? {
        let state = fs::read_to_string(&path).map_err(|error| error.to_string())?;
        if state.trim() == "offline" {
            fs::write(&path, "online_movable")
                .map_err(|error| format!("cannot use {}: {error}", path.display()))?;
            count += 1;
        }
    }
    Ok(format!("count={count}"))
}
