//! The report for programs.

use super::report::{Disk, Queue, Report};
use crate::migration::{Live, PartHeader, SectionKind, Stream, Takeover};
use serde_json::{Value, json};

pub fn render(report: &Report<'_>) -> String {
    let disks: Vec<Value> = report.disks.iter().map(disk).collect();
    let root = json!({
        "kind": if report.stream.is_some() { "qemu-stream" } else { "inflight-region" },
        "bytes": report.bytes,
        "stream": report.stream.as_ref().map(stream),
        "devices": disks,
    });
    format!("{root:#}\n")
}

fn stream(stream: &Stream<'_>) -> Value {
    let section = |s: &crate::migration::Section| {
        json!({
            "id": s.id,
            "name": s.name,
            "instance": s.instance,
            "version": s.version,
            "kind": match s.kind { SectionKind::Parts => "parts", SectionKind::Full => "full" },
            "offset": s.offset,
            "payload_offset": s.payload,
            "payload_bytes": s.len,
            "parts": s.parts,
        })
    };
    json!({
        "machine": stream.machine,
        "commands": stream.commands,
        "description_offset": stream.description().offset,
        "sections": stream.sections.iter().map(section).collect::<Vec<_>>(),
    })
}

fn disk(disk: &Disk<'_>) -> Value {
    let device = disk.device.as_ref();
    let state = device.and_then(|d| d.state.as_ref().ok());
    let region = disk.region.map(|(queue_size, bytes, offset)| {
        json!({ "queue_size": queue_size, "bytes": bytes, "offset": offset })
    });
    json!({
        "name": device.map(|d| &d.section.name),
        "status": state.map(|s| s.status),
        "features": state.map(|s| s.features),
        "started": state.and_then(|s| s.started),
        "packed": state.map(|s| s.packed()),
        "unreadable": device.and_then(|d| d.state.as_ref().err()).map(|e| e.to_string()),
        "inflight": region,
        "unusable": disk.unusable.as_ref().map(|e| e.to_string()),
        "contradiction": disk.contradiction.as_ref().map(|c| c.to_string()),
        "queues": disk.queues.iter().map(queue).collect::<Vec<_>>(),
    })
}

fn queue(queue: &Queue) -> Value {
    let ring = queue.state.map(|s| {
        json!({
            "size": s.size,
            "desc": s.desc,
            "avail": s.avail,
            "used": s.used,
            "base": s.packed.map_or(s.last_avail_idx.into(), |at| at.base()),
            "used_idx": queue.used,
            "avail_idx": queue.avail,
        })
    });
    let region = queue.header.map(|header| match header {
        PartHeader::Packed(h) => json!({
            "offset": queue.offset,
            "features": h.features,
            "version": h.version,
            "desc_num": h.desc_num,
            "free_head": h.free_head,
            "old_free_head": h.old_free_head,
            "used_idx": h.used.0,
            "used_wrap_counter": h.used.1,
            "old_used_idx": h.old_used.0,
            "old_used_wrap_counter": h.old_used.1,
            "flagged": heads(&queue.flagged),
        }),
        PartHeader::Split(h) => json!({
            "offset": queue.offset,
            "features": h.features,
            "version": h.version,
            "desc_num": h.desc_num,
            "last_batch_head": h.last_batch_head,
            "used_idx": h.used_idx,
            "flagged": heads(&queue.flagged),
        }),
    });
    let refused = queue.takeover.as_ref().and_then(|t| t.as_ref().err());
    json!({
        "ring": ring,
        "region": region,
        "takeover": queue.takeover.as_ref().and_then(|t| t.as_ref().ok()).map(|t| takeover(t, queue)),
        "refused": refused.map(|e| e.to_string()),
    })
}

fn takeover(takeover: &Takeover, queue: &Queue) -> Value {
    let contradictions: Vec<String> =
        takeover.contradictions.iter().map(|c| c.to_string()).collect();
    json!({
        "used_idx": takeover.next_used.or(queue.assumed),
        "used_idx_from": if queue.used.is_some() { "guest memory" } else { "region" },
        "fresh": takeover.fresh,
        "batch": if takeover.closes.is_empty() { "closed" } else { "published, not retired" },
        "closes": takeover.closes,
        "resubmit": heads(&takeover.resubmit),
        "next_avail": takeover.next_avail,
        "contradictions": contradictions,
    })
}

fn heads(heads: &[Live]) -> Vec<Value> {
    heads.iter().map(|l| json!({ "head": l.head, "counter": l.counter })).collect()
}
