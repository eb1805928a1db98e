//! What the guest's kernel says of its disks.

use std::fs;
use std::path::Path;

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path)
        .map(|text| text.trim_end_matches(['\n', '\0']).to_string())
        .map_err(|error| format!("cannot read {path}: {error}"))
}

/// Names of the virtio disks there are now, sorted, or "none". One that is
/// still coming, or already going, has a question mark.
pub fn list() -> Result<String, String> {
    let mut names: Vec<String> = fs::read_dir("/sys/block")
        .map_err(|error| format!("cannot list /sys/block: {error}"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("vd"))
        .map(|name| {
            let parts = [format!("/sys/block/{name}/mq"), format!("/dev/{name}")];
            let whole = parts.iter().all(|part| Path::new(part).exists());
            if whole { name } else { name + "?" }
        })
        .collect();
    names.sort();
    if names.is_empty() {
        names.push("none".to_string());
    }
    Ok(names.join(","))
}

/// The virtio device behind a disk, such as `virtio0`.
pub fn virtio_name(disk: &str) -> Result<String, String> {
    let link = fs::read_link(format!("/sys/block/{disk}/device"))
        .map_err(|error| format!("no device behind {disk}: {error}"))?;
    Path::new(&link)
        .file_name()
        .and_then(|name| name.to_str())
        .map(str::to_string)
        .ok_or_else(|| format!("no device name in {}", link.display()))
}

/// Everything the tests assert about a disk, in one line.
pub fn info(disk: &str) -> Result<String, String> {
    let sys = format!("/sys/block/{disk}");
    let device = virtio_name(disk)?;
    let bits = read(&format!("{sys}/device/features"))?;
    // The kernel prints bit 0 first.
    let features = bits
        .chars()
        .enumerate()
        .filter(|(_, bit)| *bit == '1')
        .fold(0_u64, |all, (index, _)| all | 1 << index);
    let queues = fs::read_dir(format!("{sys}/mq"))
        .map_err(|error| format!("cannot list queues of {disk}: {error}"))?
        .count();
    let queue = |name: &str| read(&format!("{sys}/queue/{name}"));
    Ok(format!(
        "serial={} sectors={} ro={} features={features:#x} queues={queues} logical={} physical={} \
         discard_max={} discard_granularity={} zeroes_max={} cache={} requests={}",
        read(&format!("{sys}/serial")).unwrap_or_default().replace(' ', "_"),
        read(&format!("{sys}/size"))?,
        read(&format!("{sys}/ro"))?,
        queue("logical_block_size")?,
        queue("physical_block_size")?,
        queue("discard_max_bytes")?,
        queue("discard_granularity")?,
        queue("write_zeroes_max_bytes")?,
        queue("write_cache")?.replace(' ', "_"),
        queue("nr_requests")?,
    ) + &format!(
        " minimum_io={} optimal_io={} alignment_offset={} zoned={} interrupts={}",
        queue("minimum_io_size")?,
        queue("optimal_io_size")?,
        read(&format!("{sys}/alignment_offset"))?,
        queue("zoned")?,
        interrupts(&device)?
    ))
}

/// How many discards the disk was asked for, and how many more were merged into
/// those.
pub fn discards(disk: &str) -> Result<(u64, u64), String> {
    let stat = read(&format!("/sys/block/{disk}/stat"))?;
    let numbers: Vec<u64> = stat.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers.get(11..13) {
        Some(&[requests, merged]) => Ok((requests, merged)),
        _ => Err(format!("no discards in the statistics of {disk}: {stat}")),
    }
}

/// How many interrupts each request queue has had, joined by commas: shows
/// that every queue was really used.
fn interrupts(device: &str) -> Result<String, String> {
    let prefix = format!("{device}-req.");
    let mut counts = Vec::new();
    for line in read("/proc/interrupts")?.lines() {
        let Some(name) = line.split_whitespace().next_back() else {
            continue;
        };
        let Some(index) = name.strip_prefix(&prefix).and_then(|text| text.parse::<u32>().ok())
        else {
            continue;
        };
        let count: u64 =
            line.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok()).sum();
        counts.push((index, count));
    }
    counts.sort();
    Ok(counts.iter().map(|(_, count)| count.to_string()).collect::<Vec<_>>().join(","))
}

/// Takes the driver off the device, or puts it back.
pub fn bind(device: &str, attach: bool) -> Result<(), String> {
    let action = if attach { "bind" } else { "unbind" };
    fs::write(format!("/sys/bus/virtio/drivers/virtio_blk/{action}"), device)
        .map_err(|error| format!("cannot {action} {device}: {error}"))
}

/// Sets the cache mode (`write back` or `write through`), which the kernel
/// sends to the device as a write to its configuration.
pub fn set_cache(disk: &str, mode: &str) -> Result<(), String> {
    let path = format!("/sys/block/{disk}/cache_type");
    fs::write(&path, mode).map_err(|error| format!("cannot write {path}: {error}"))
}
