//! The report for people.

use super::report::{Disk, Queue, Report, place};
use crate::migration::{Contradiction, Live, PartHeader, SectionKind, Stream, Takeover};
use std::fmt::Write as _;

/// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

pub fn render(report: &Report<'_>) -> String {
    let mut out = String::new();
    match &report.stream {
        Some(found) => stream(&mut out, found, report.bytes),
        None => {
            put!(out, "inflight region, {} bytes", report.bytes);
        }
    }
    for found in &report.disks {
        disk(&mut out, found);
    }
    if report.disks.is_empty() {
        put!(out, "no vhost-user-blk device");
    }
    out
}

fn stream(out: &mut String, stream: &Stream<'_>, bytes: u64) {
    let sections = &stream.sections;
    put!(
        out,
        "qemu stream, machine {}, {bytes} bytes, {} sections",
        stream.machine,
        sections.len()
    );
    put!(out, "  {:>10} {:>10} {:>4}  section", "offset", "payload", "id");
    for s in sections {
        let instance = if s.instance == 0 { String::new() } else { format!(" #{}", s.instance) };
        let parts = match s.kind {
            SectionKind::Parts => format!(", {} parts", s.parts),
            SectionKind::Full => String::new(),
        };
        put!(out, "  {:#10x} {:>10} {:>4}  {}{instance}{parts}", s.offset, s.len, s.id, s.name);
    }
    put!(out, "  {:#10x} {:>10}       description", stream.description().offset, "");
}

fn disk(out: &mut String, disk: &Disk<'_>) {
    if let Some(device) = &disk.device {
        put!(out, "\n{}", device.section.name);
        match &device.state {
            Err(fault) => {
                put!(out, "  state cannot be read: {fault}");
            }
            Ok(s) => {
                let started = match s.started {
                    Some(true) => ", running when the guest was stopped",
                    Some(false) => ", not running",
                    None => "",
                };
                let (status, features) = (s.status, s.features);
                let rings = if s.packed() { ", packed rings" } else { "" };
                put!(out, "  status {status:#04x}, features {features:#x}{rings}{started}");
            }
        }
    }
    match disk.region {
        Some((size, bytes, offset)) => {
            put!(out, "  inflight region for queue size {size}, {bytes} bytes at {offset:#x}");
        }
        None => {
            put!(out, "  no inflight region: the source drained, or never started the device");
        }
    }
    if let Some(fault) = &disk.unusable {
        put!(out, "    refused: {fault}");
    }
    if let Some(contradiction) = &disk.contradiction {
        put!(out, "    contradiction: {contradiction}");
    }
    for (vring, found) in disk.queues.iter().enumerate() {
        put!(out, "  queue {vring}");
        queue(out, found);
    }
}

fn queue(out: &mut String, queue: &Queue) {
    if let Some(s) = queue.state {
        if s.desc == 0 {
            put!(out, "    not set up by the guest");
            return;
        }
        let address = |a: Option<u64>| a.map_or("unknown".into(), |a| format!("{a:#x}"));
        let (avail, used) = (address(s.avail), address(s.used));
        let [of_avail, of_used] = match s.packed {
            Some(_) => ["driver events", "device events"],
            None => ["available", "used"],
        };
        put!(
            out,
            "    ring of {}: descriptors {:#x}, {of_avail} {avail}, {of_used} {used}",
            s.size,
            s.desc
        );
        let index = |i: Option<u16>| i.map_or("not in the file".into(), |i| i.to_string());
        match s.packed {
            Some(at) => {
                let (avail, used) = (place(at.avail.bits()), place(at.used.bits()));
                put!(out, "    base {:#x}: available {avail}; used {used}", at.base());
            }
            None => {
                put!(
                    out,
                    "    base {}, in guest memory: used index {}, available index {}",
                    s.last_avail_idx,
                    index(queue.used),
                    index(queue.avail)
                );
            }
        }
    }
    let flagged = queue.flagged.len();
    match queue.header {
        Some(PartHeader::Split(h)) => {
            put!(
                out,
                "    region: version {}, {} entries, used index {}, last batch head {}, {flagged} flagged",
                h.version,
                h.desc_num,
                h.used_idx,
                h.last_batch_head,
            );
        }
        Some(PartHeader::Packed(h)) => {
            put!(
                out,
                "    region: version {}, {} entries, free from {} ({} when last closed), used {} wrap {} ({} wrap {}), {flagged} flagged",
                h.version,
                h.desc_num,
                h.free_head,
                h.old_free_head,
                h.used.0,
                h.used.1,
                h.old_used.0,
                h.old_used.1,
            );
        }
        None => {}
    }
    match &queue.takeover {
        None => {
            put!(out, "    what a back-end would do cannot be told");
        }
        Some(Err(fault)) => {
            put!(out, "    refused: {fault}");
        }
        Some(Ok(found)) => takeover(out, found, queue.used.is_none()),
    }
}

fn takeover(out: &mut String, takeover: &Takeover, assumed: bool) {
    let heads: Vec<String> = takeover
        .resubmit
        .iter()
        .map(|Live { head, counter }| format!("{head} ({counter})"))
        .collect();
    if !takeover.closes.is_empty() {
        put!(out, "    published but not retired, to be closed: {:?}", takeover.closes);
    } else if !takeover.fresh {
        let open = |c: &Contradiction| matches!(c, Contradiction::OpenEntries(_));
        if !takeover.contradictions.iter().any(open) {
            put!(out, "    last batch closed");
        }
    }
    if heads.is_empty() {
        put!(out, "    nothing to resubmit");
    } else {
        put!(out, "    resubmit {}: head (counter) {}", heads.len(), heads.join(", "));
    }
    if takeover.next_used.is_some() {
        put!(out, "    then fetch from {}", place(takeover.next_avail));
    } else {
        let unsure = if assumed { ", if the ring's used index is the region's" } else { "" };
        put!(out, "    then fetch from available index {}{unsure}", takeover.next_avail);
    }
    for contradiction in &takeover.contradictions {
        put!(out, "    contradiction: {contradiction}");
    }
}
