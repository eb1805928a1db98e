//! The stream's description of itself: JSON at the end of the file, which has
//! the size of every field of every device section.
//!
//! The sections themselves carry no length, so this is the only way to walk
//! over a device without knowing it. A size that lies is noticed, because
//! each section must be followed by its footer.

use super::fault::{StreamFault, What, short};
use serde_json::Value;
use std::collections::BTreeMap;

/// Type byte before the description.
const TYPE: u8 = 0x06;
/// Its first bytes.
const BEGINNING: &[u8] = b"{\"configuration\"";
/// Longest that is looked at. Real ones have tens of kilobytes, some hundreds
/// with many devices.
const LONGEST: usize = 4 << 20;

/// What the stream says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Offset of its type byte: the sections end there.
    pub offset: u64,
    /// Bytes of a page of guest memory.
    pub page_size: u64,
    /// Bytes of the configuration section, its type byte not counted.
    pub(super) configuration: u64,
    devices: BTreeMap<(String, u32), DeviceDescription>,
}

/// What the stream says about one section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDescription {
    /// Bytes between the section's header and its footer.
    pub payload: u64,
    /// Bytes of the fields, before the first subsection.
    pub fields: u64,
    /// Names of the subsections, in order.
    pub subsections: Vec<String>,
}

impl Description {
    /// Look for the description that ends where the bytes end. `None`: there
    /// is none.
    pub fn find(bytes: &[u8]) -> Result<Option<Self>, StreamFault> {
        let from = bytes.len().saturating_sub(LONGEST);
        let mut tail = &bytes[from..];
        // Guest memory and the JSON itself may hold the same words, so the
        // length before them decides.
        while let Some(at) = rfind(tail, BEGINNING) {
            if let Some(header) = at.checked_sub(5) {
                let json = (bytes.len() - from - at) as u32;
                if tail[header] == TYPE && tail[header + 1..at] == json.to_be_bytes() {
                    let offset = from + header;
                    return Self::parse(&bytes[from + at..], offset).map(Some);
                }
            }
            tail = &tail[..at + BEGINNING.len() - 1];
        }
        Ok(None)
    }

    fn parse(json: &[u8], offset: usize) -> Result<Self, StreamFault> {
        let start = offset + 5;
        let at = |offset: usize, text: String| StreamFault {
            offset: offset.min(start + json.len()) as u64,
            what: What::Description(text),
        };
        let root: Value = serde_json::from_slice(json).map_err(|e| {
            // QEMU writes one line.
            let column = if e.line() == 1 { e.column().saturating_sub(1) } else { 0 };
            let text = e.to_string();
            let text = text.split(" at line ").next().unwrap_or_default().to_lowercase();
            at(start + column, text)
        })?;
        Self::read(&root, offset as u64).map_err(|text| at(start, text))
    }

    fn read(root: &Value, offset: u64) -> Result<Self, String> {
        let page_size = match root.get("page_size") {
            None => 4096,
            Some(value) => match value.as_u64() {
                Some(n) if n.is_power_of_two() && (1024..=65536).contains(&n) => n,
                _ => return Err(format!("expected a page size, got {}", brief(value))),
            },
        };
        let configuration = root.get("configuration").ok_or("expected configuration, got none")?;
        let list = root.get("devices").and_then(Value::as_array);
        let mut devices = BTreeMap::new();
        for device in list.ok_or("expected a list of devices, got none")? {
            let name = device.get("name").and_then(Value::as_str);
            let name = name.ok_or_else(|| format!("expected a name, got {}", brief(device)))?;
            let instance = device.get("instance_id").and_then(Value::as_u64);
            let instance = instance.and_then(|n| u32::try_from(n).ok());
            let instance = instance.ok_or_else(|| format!("expected instance id of {name:?}"))?;
            let payload = measure(device)?;
            let described =
                DeviceDescription { payload, fields: fields(device)?, subsections: names(device) };
            if devices.insert((name.to_owned(), instance), described).is_some() {
                return Err(format!("{name:?}, instance {instance}, is there twice"));
            }
        }
        Ok(Self { offset, page_size, configuration: measure(configuration)?, devices })
    }

    /// What it says about a section.
    pub fn device(&self, name: &str, instance: u32) -> Option<&DeviceDescription> {
        // The map's key owns its name; one section is looked up once.
        self.devices.get(&(name.to_owned(), instance))
    }
}

/// Bytes of a structure: its fields, then its subsections with their headers.
fn measure(value: &Value) -> Result<u64, String> {
    let mut sum = fields(value)?;
    for sub in list(value, "subsections") {
        let name = sub.get("vmsd_name").and_then(Value::as_str);
        let name = name.ok_or_else(|| format!("expected a subsection, got {}", brief(sub)))?;
        let header = 1 + 1 + name.len() as u64 + 4;
        sum = add(sum, add(header, measure(sub)?)?)?;
    }
    Ok(sum)
}

/// Bytes of the fields. A field's size includes what is nested in it, and is
/// that of one element if it is an array.
fn fields(value: &Value) -> Result<u64, String> {
    let mut sum = 0;
    for field in list(value, "fields") {
        let number = |key| field.get(key).map(|v| v.as_u64().ok_or_else(|| brief(field)));
        let bad = |text| format!("expected the size of a field, got {text}");
        let size = number("size").ok_or_else(|| bad(brief(field)))?.map_err(bad)?;
        let elements = number("array_len").unwrap_or(Ok(1)).map_err(bad)?;
        let whole = size.checked_mul(elements).ok_or_else(|| bad(brief(field)))?;
        sum = add(sum, whole)?;
    }
    Ok(sum)
}

fn add(a: u64, b: u64) -> Result<u64, String> {
    a.checked_add(b).ok_or_else(|| "sizes add up to more than 64 bits".into())
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn names(value: &Value) -> Vec<String> {
    let subs = list(value, "subsections");
    subs.iter().filter_map(|s| s.get("vmsd_name")?.as_str().map(str::to_owned)).collect()
}

fn brief(value: &Value) -> String {
    short(value.to_string().as_bytes())
}

/// Last occurrence.
fn rfind(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).rposition(|w| w == needle)
}
