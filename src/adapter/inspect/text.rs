//! The report for people.

use super::report::{Disk, Queue, Report};
use crate::migration::{Live, SectionKind, Stream, Takeover};
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
        if let Some(packed) = s.packed {
            put!(
                out,
                "    packed ring of {}: descriptors {:#x}, driver events {avail}, device events {used}",
                s.size,
                s.desc
            );
            put!(out, "    base {}", places(packed.base));
            return packed_part(out, queue);
        }
        put!(
            out,
            "    ring of {}: descriptors {:#x}, available {avail}, used {used}",
            s.size,
            s.desc
        );
        let index = |i: Option<u16>| i.map_or("not in the file".into(), |i| i.to_string());
        put!(
            out,
            "    base {}, in guest memory: used index {}, available index {}",
            s.last_avail_idx,
            index(queue.used),
            index(queue.avail)
        );
    }
    if queue.packed.is_some() || queue.packed_header.is_some() {
        return packed_part(out, queue);
    }
    if let Some(h) = queue.header {
        put!(
            out,
            "    region: version {}, {} entries, used index {}, last batch head {}, {} flagged",
            h.version,
            h.desc_num,
            h.used_idx,
            h.last_batch_head,
            queue.flagged.len()
        );
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

/// A place in a packed ring, of the lower half of a base.
fn place(position: u32) -> String {
    format!("entry {} (wrap {})", position & 0x7fff, position >> 15 & 1)
}

fn places(base: u32) -> String {
    format!("{base:#x}: available {}, used {}", place(base), place(base >> 16))
}

fn packed_part(out: &mut String, queue: &Queue) {
    if let Some(h) = queue.packed_header {
        let place = |(index, wrap): (u16, u8)| format!("entry {index} (wrap {wrap})");
        put!(
            out,
            "    region: version {}, {} entries, used {}, first free {}; at the last close used {}, first free {}",
            h.version,
            h.desc_num,
            place(h.used),
            h.free_head,
            place(h.old_used),
            h.old_free_head
        );
    }
    let found = match &queue.packed {
        None => {
            put!(out, "    what a back-end would do cannot be told");
            return;
        }
        Some(Err(fault)) => {
            put!(out, "    refused: {fault}");
            return;
        }
        Some(Ok(found)) => found,
    };
    match (found.batch, found.published) {
        (0, _) if found.fresh => {}
        (0, _) => {
            put!(out, "    last batch closed");
        }
        (n, true) => {
            put!(out, "    a batch over {n} ring entries was published, to be closed");
        }
        (n, false) => {
            put!(out, "    a batch over {n} ring entries was not published, to be undone");
        }
    }
    resubmit(out, &found.resubmit, "entry");
    put!(out, "    then go on at {}", places(found.base));
    for contradiction in &found.contradictions {
        put!(out, "    contradiction: {contradiction}");
    }
}

fn resubmit(out: &mut String, requests: &[Live], name: &str) {
    let requests: Vec<String> =
        requests.iter().map(|Live { head, counter }| format!("{head} ({counter})")).collect();
    if requests.is_empty() {
        put!(out, "    nothing to resubmit");
    } else {
        put!(out, "    resubmit {}: {name} (counter) {}", requests.len(), requests.join(", "));
    }
}

fn takeover(out: &mut String, takeover: &Takeover, assumed: bool) {
    if !takeover.closes.is_empty() {
        put!(out, "    published but not retired, to be closed: {:?}", takeover.closes);
    } else if !takeover.fresh {
        put!(out, "    last batch closed");
    }
    resubmit(out, &takeover.resubmit, "head");
    let unsure = if assumed { ", if the ring's used index is the region's" } else { "" };
    put!(out, "    then fetch from available index {}{unsure}", takeover.next_avail);
    for contradiction in &takeover.contradictions {
        put!(out, "    contradiction: {contradiction}");
    }
}
