//! Captured streams, cut down to what is about vhost-user-blk, as text files.
//!
//! A cut stream is a stream: magic, configuration, the announcement of guest
//! memory, the pages that hold the rings' indexes, the sections of the disks
//! byte for byte, and their part of the description.

#![allow(dead_code)] // Each test uses its part.

use midflight::migration::{BlkDevice, Page, Section, Stream, blk_devices};
use std::fmt::Write as _;
use std::path::Path;

/// A file of `tests/images`.
pub fn load(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name);
    let text = std::fs::read_to_string(&path);
    from_text(&text.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

const ROW: usize = 32;

/// Offset and bytes of every row that is not all zeroes, and the length.
pub fn to_text(bytes: &[u8], comment: &str) -> String {
    let mut text = String::new();
    for line in comment.lines() {
        writeln!(text, "# {line}").unwrap();
    }
    for (number, row) in bytes.chunks(ROW).enumerate() {
        if row.iter().any(|b| *b != 0) {
            write!(text, "{:06x} ", number * ROW).unwrap();
            row.iter().for_each(|b| write!(text, "{b:02x}").unwrap());
            text.push('\n');
        }
    }
    writeln!(text, "{:06x}", bytes.len()).unwrap();
    text
}

pub fn from_text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hex = |text: &str| usize::from_str_radix(text, 16).unwrap();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (offset, row) = line.split_once(' ').unwrap_or((line, ""));
        bytes.resize(hex(offset), 0);
        bytes.extend((0..row.len()).step_by(2).map(|at| hex(&row[at..at + 2]) as u8));
    }
    bytes
}

/// Bytes of a whole section.
pub fn section<'a>(bytes: &'a [u8], section: &Section) -> &'a [u8] {
    &bytes[section.offset as usize..(section.payload + section.len) as usize + 5]
}

/// Leave out what is not about the disks.
pub fn cut(bytes: &[u8]) -> Vec<u8> {
    let stream = Stream::parse(bytes).unwrap();
    let devices = blk_devices(&stream).unwrap();
    let ram = &stream.sections[0];
    assert_eq!(ram.name, "ram");

    let mut out = bytes[..ram.payload as usize].to_vec();
    announcement(&bytes[ram.payload as usize..], &mut out);
    footer(ram.id, &mut out);
    out.push(2);
    out.extend(ram.id.to_be_bytes());
    pages(&stream, &devices, &mut out);
    out.extend(0x10u64.to_be_bytes());
    footer(ram.id, &mut out);
    out.push(3);
    out.extend(ram.id.to_be_bytes());
    out.extend(0x10u64.to_be_bytes());
    footer(ram.id, &mut out);
    for device in &devices {
        out.extend(section(bytes, &device.section));
    }
    out.push(0);

    let json = &bytes[stream.description().offset as usize + 5..];
    let json = description(core::str::from_utf8(json).unwrap(), &devices);
    out.push(6);
    out.extend((json.len() as u32).to_be_bytes());
    out.extend(json.as_bytes());
    out
}

fn footer(id: u32, out: &mut Vec<u8>) {
    out.push(0x7e);
    out.extend(id.to_be_bytes());
}

/// The blocks of guest memory, and the end of the section's first part.
fn announcement(payload: &[u8], out: &mut Vec<u8>) {
    let be64 = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
    let (mut at, mut left) = (8, be64(0) - 4);
    while left > 0 {
        at += 1 + usize::from(payload[at]);
        left -= be64(at);
        at += 8;
    }
    assert_eq!(be64(at), 0x10);
    out.extend(&payload[..at + 8]);
}

fn pages(stream: &Stream<'_>, devices: &[BlkDevice<'_>], out: &mut Vec<u8>) {
    let indexes: Vec<u64> = devices.iter().flat_map(BlkDevice::indexes).collect();
    let ram = stream.guest_ram(indexes.iter().copied());
    let mut addresses: Vec<u64> = indexes.iter().map(|gpa| gpa & !0xfff).collect();
    addresses.sort_unstable();
    addresses.dedup();
    for gpa in addresses {
        // These machines have one block of memory, from address 0.
        let mut put = |flag: u64, bytes: &[u8]| {
            out.extend((gpa | flag).to_be_bytes());
            out.extend(b"\x06memory");
            out.extend(bytes);
        };
        match ram.page(gpa).expect("the page in the stream") {
            Page::Fill(byte) => put(2, &[byte]),
            Page::Bytes(bytes) => put(8, bytes),
            Page::Delta => panic!("a page without its bytes"),
        }
    }
}

/// The description of these devices, in the source's own words.
fn description(json: &str, devices: &[BlkDevice<'_>]) -> String {
    const LIST: &str = "\"devices\": [";
    let (head, list) = json.split_at(json.find(LIST).unwrap() + LIST.len());
    let wanted: Vec<&str> = objects(list)
        .filter(|o| devices.iter().any(|d| o.contains(&format!("\"name\": {:?},", d.section.name))))
        .collect();
    assert_eq!(wanted.len(), devices.len());
    format!("{head}{}]}}", wanted.join(", "))
}

/// The objects at the start of a JSON list; its strings have no braces.
fn objects(list: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut start) = (0, 0);
    list.char_indices().filter_map(move |(at, c)| {
        match c {
            '{' => {
                if depth == 0 {
                    start = at;
                }
                depth += 1;
            }
            '}' => depth -= 1,
            _ => {}
        }
        (c == '}' && depth == 0).then(|| &list[start..=at])
    })
}
