//! `midflight inspect` as a program: what it prints, and what it refuses.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod capture;
mod daemon_rig;

use daemon_rig::{Scratch, text};
use midflight::migration::{Stream, blk_devices};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Exit code, standard output, standard error.
fn inspect(file: &Path, options: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_midflight"));
    let output = command.arg("inspect").arg(file).args(options).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn write(scratch: &Scratch, bytes: &[u8]) -> PathBuf {
    let path = scratch.path("file");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The one line of a file that is refused, without program and file name.
fn refused(file: &Path, options: &[&str]) -> String {
    let (code, out, err) = inspect(file, options);
    assert_eq!((code, &out[..], err.lines().count()), (2, "", 1), "{err}");
    let start = format!("midflight: {}: ", file.display());
    err.trim_end().strip_prefix(&start).unwrap_or_else(|| panic!("{err}")).to_owned()
}

/// A dumped region: one queue of 4, used index 7, heads 2 and 1 in flight.
fn region() -> Vec<u8> {
    let mut bytes = vec![0; 128];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(8, &1u16.to_ne_bytes());
    put(10, &4u16.to_ne_bytes());
    put(12, &3u16.to_ne_bytes());
    put(14, &7u16.to_ne_bytes());
    for (head, counter) in [(1, 9u64), (2, 8)] {
        put(16 + 16 * head, &[1]);
        put(16 + 16 * head + 8, &counter.to_ne_bytes());
    }
    bytes
}

#[test]
fn inspect_prints_sections_rings_and_what_a_destination_does() {
    let scratch = Scratch::new();
    let file = write(&scratch, &capture::load("linux-in-flight.stream"));
    let (code, out, err) = inspect(&file, &[]);
    assert_eq!((code, &err[..]), (0, ""));
    for line in [
        "qemu stream, machine pc-q35-11.1, 59526 bytes, 2 sections",
        "        0x18       8386    1  ram, 3 parts",
        "      0x2104      50189   44  0000:00:01.0:00.0/vhost-user-blk",
        "0000:00:01.0:00.0/vhost-user-blk",
        "  status 0x0f, features 0x130007e44, running when the guest was stopped",
        "  inflight region for queue size 16, 640 bytes at 0xe2bf",
        "  queue 1",
        "    ring of 16: descriptors 0x5bfb000, available 0x5bfb100, used 0x5bfb140",
        "    base 343, in guest memory: used index 338, available index 343",
        "    region: version 1, 16 entries, used index 338, last batch head 11, 5 flagged",
        "    last batch closed",
        "    resubmit 5: head (counter) 2 (325), 0 (329), 9 (331), 13 (333), 8 (342)",
        "    then fetch from available index 343",
    ] {
        assert!(out.lines().any(|l| l == line), "no line {line:?} in\n{out}");
    }
}

#[test]
fn inspect_prints_the_same_as_json() {
    let scratch = Scratch::new();
    let file = write(&scratch, &capture::load("linux-in-flight.stream"));
    let (code, out, _) = inspect(&file, &["--json"]);
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["kind"], "qemu-stream");
    assert_eq!(report["stream"]["machine"], "pc-q35-11.1");
    assert_eq!(report["stream"]["sections"][1]["payload_bytes"], 50189);
    let device = &report["devices"][0];
    assert_eq!(device["inflight"], json!({ "queue_size": 16, "bytes": 640, "offset": 0xe2bf }));
    let queue = &device["queues"][1];
    assert_eq!(queue["ring"]["base"], 343);
    assert_eq!(queue["ring"]["used_idx"], 338);
    assert_eq!(queue["region"]["version"], 1);
    let takeover = &queue["takeover"];
    assert_eq!(takeover["next_avail"], 343);
    assert_eq!(takeover["used_idx_from"], "guest memory");
    assert_eq!(takeover["resubmit"][0], json!({ "head": 2, "counter": 325 }));
    assert_eq!(takeover["contradictions"], json!([]));
}

#[test]
fn inspect_reads_a_dumped_region() {
    let scratch = Scratch::new();
    let bytes = region();
    for (bytes, options) in [
        (bytes.clone(), &[][..]),
        (bytes.clone(), &["--queue-size", "4", "--queues", "1"]),
        // Padded to a page, and parts without padding.
        ([&bytes[..], &[0; 4096 - 128]].concat(), &["--queues", "1"]),
        (bytes[..80].to_vec(), &["--queues", "1"]),
    ] {
        let (code, out, err) = inspect(&write(&scratch, &bytes), options);
        assert_eq!(code, 0, "{options:?}: {err}");
        for line in [
            "    region: version 1, 4 entries, used index 7, last batch head 3, 2 flagged",
            "    resubmit 2: head (counter) 2 (8), 1 (9)",
            "    then fetch from available index 9, if the ring's used index is the region's",
        ] {
            assert!(out.lines().any(|l| l == line), "{options:?}: no line {line:?} in\n{out}");
        }
    }
    // Two queues, the second fresh.
    let two = [&bytes[..], &[0; 128]].concat();
    let (code, out, _) = inspect(&write(&scratch, &two), &["--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let queues = report["devices"][0]["queues"].as_array().unwrap();
    assert_eq!((code, queues.len()), (0, 2));
    assert_eq!(queues[1]["takeover"]["fresh"], true);
}

#[test]
fn inspect_prints_packed_rings_and_their_region() {
    let scratch = Scratch::new();
    let bytes = capture::load("packed-in-flight.stream");
    let (code, out, err) = inspect(&write(&scratch, &bytes), &[]);
    assert_eq!((code, &err[..]), (0, ""));
    let resubmit = "    resubmit 17: head (counter) 23 (542), 25 (547), 5 (552), 31 (553), 15 (554), 6 (555), 4 (557), 12 (558), 20 (560), 30 (561), 28 (563), 18 (568), 26 (569), 7 (572), 21 (573), 13 (574), 3 (577)";
    let of_region = [
        "    region: version 1, 128 entries, free from 29 (29 when last closed), used 49 wrap 1 (49 wrap 1), 17 flagged",
        "    last batch closed",
        resubmit,
        "    then fetch from entry 66, wrap counter 1",
    ];
    let of_ring = [
        "  status 0x0f, features 0x530006e44, packed rings, running when the guest was stopped",
        "    ring of 128: descriptors 0x5767000, driver events 0x573c000, device events 0x573d000",
        "    base 0x80318042: available entry 66, wrap counter 1; used entry 49, wrap counter 1",
    ];
    for line in of_region.iter().chain(&of_ring) {
        assert!(out.lines().any(|l| l == *line), "no line {line:?} in\n{out}");
    }
    // The region by itself.
    let stream = Stream::parse(&bytes).unwrap();
    let region = blk_devices(&stream).unwrap()[0].inflight.unwrap().region.to_vec();
    let (code, out, err) = inspect(&write(&scratch, &region), &["--packed"]);
    assert_eq!(code, 0, "{err}");
    for line in of_region {
        assert!(out.lines().any(|l| l == line), "no line {line:?} in\n{out}");
    }
    let (code, out, _) = inspect(&write(&scratch, &region), &["--packed", "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let queue = &report["devices"][0]["queues"][0];
    assert_eq!((code, &queue["region"]["old_used_wrap_counter"]), (0, &json!(1)));
    assert_eq!(queue["takeover"]["resubmit"].as_array().unwrap().len(), 17);
    // A batch that a dead back-end left open: the ring would tell.
    let mut open = region.clone();
    open[16] += 1;
    let (_, out, _) = inspect(&write(&scratch, &open), &["--packed"]);
    let line = "    contradiction: a batch of 1 ring entries is open, expected none after a stop: taken for not published";
    assert!(out.lines().any(|l| l == line), "{out}");
    // And one that makes no sense is refused, with its place.
    let mut forged = region;
    forged[14] = 23;
    let (code, _, err) = inspect(&write(&scratch, &forged), &["--packed"]);
    assert_ne!(code, 0);
    assert!(err.contains("inflight region of vring 0 has"), "{err}");
}

#[test]
fn inspect_names_what_contradicts() {
    let scratch = Scratch::new();
    let (code, out, _) = inspect(&write(&scratch, &capture::load("no-region.stream")), &[]);
    assert_eq!(code, 0);
    assert!(
        out.contains("contradiction: base is 1 and used 0, but nothing tells which 1 requests")
    );
    let (code, out, _) = inspect(&write(&scratch, &capture::load("never-started.stream")), &[]);
    assert_eq!(code, 0);
    assert!(out.contains("contradiction: inflight region is empty: qemu 11.1 refuses"));
}

#[test]
fn inspect_refuses_what_no_back_end_would_take() {
    let scratch = Scratch::new();
    let spoilt = |at: usize, value: u8| {
        let mut bytes = region();
        bytes[at] = value;
        let (code, _, err) = inspect(&write(&scratch, &bytes), &["--queue-size", "4"]);
        assert_eq!((code, err.lines().count()), (2, 1));
        err.split("file: ").nth(1).unwrap().trim_end().to_owned()
    };
    assert_eq!(
        spoilt(8, 3),
        "inflight region of vring 0 has version 3, expected 0 or 1, in the part at offset 0x0"
    );
    assert!(spoilt(10, 8).contains("desc_num 8, expected 4"));
    assert!(spoilt(32, 2).contains("inflight 2 at head 1"));

    // In a stream the rest is printed, and the offset is the file's.
    let mut bytes = capture::load("linux-in-flight.stream");
    bytes[0xe2bf + 320 + 8] = 7;
    let (code, out, err) = inspect(&write(&scratch, &bytes), &[]);
    assert_eq!(code, 2);
    assert!(out.contains("    refused: inflight region of vring 1 has version 7"), "{out}");
    assert!(err.contains("in the part at offset 0xe3ff"), "{err}");
}

#[test]
fn inspect_refuses_files_that_are_none_with_one_line_and_code_2() {
    let scratch = Scratch::new();
    let whole = capture::load("two-disks.stream");
    let cut = refused(&write(&scratch, &whole[..whole.len() - 7]), &[]);
    assert!(
        cut.contains("no description at its end") && cut.ends_with(" at offset 0x2124"),
        "{cut}"
    );
    assert_eq!(
        refused(&write(&scratch, &whole[..20]), &["--json"]),
        "expected 11 bytes of machine type, got 7 and the end at offset 0xd"
    );
    assert_eq!(
        refused(&write(&scratch, b""), &[]),
        "expected a stream or a region, got an empty file"
    );
    assert!(refused(&write(&scratch, &[0; 64]), &[]).contains("--queue-size is needed"));
    assert!(refused(&write(&scratch, b"short"), &[]).contains("not accessible at offset 0xa"));
    assert!(refused(&write(&scratch, &whole), &["--queues", "1"]).contains("this is a stream"));
    let (code, _, err) = inspect(&scratch.0, &[]);
    assert_eq!(
        (code, err),
        (2, format!("midflight: {} is not a regular file\n", text(&scratch.0)))
    );
    let (code, _, err) = inspect(&scratch.path("missing"), &[]);
    assert!(code == 2 && err.contains("no such file or directory"), "{err}");
}

#[test]
fn inspect_does_not_mind_that_nobody_reads() {
    let scratch = Scratch::new();
    let file = write(&scratch, &capture::load("two-disks.stream"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_midflight"));
    let command = command.arg("inspect").arg(&file).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
}

#[test]
fn inspect_does_not_copy_a_large_file() {
    let scratch = Scratch::new();
    // A gigabyte of address space holds the file once.
    let file = write(&scratch, b"QEVM\0\0\0\x03");
    std::fs::File::options().write(true).open(&file).unwrap().set_len(1 << 30).unwrap();
    let limit = "ulimit -v 1600000; exec \"$0\" inspect \"$1\"";
    let output = Command::new("sh")
        .args(["-c", limit, env!("CARGO_BIN_EXE_midflight"), text(&file)])
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("at offset 0x9"), "{err}");
}
