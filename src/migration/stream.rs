//! The skeleton of a QEMU migration stream, from its magic to its description.
//!
//! ```text
//! "QEVM"  be32 3
//! 07  be32 n  machine type  subsections
//! 01/04  be32 id  name  be32 instance  be32 version  payload  7e  be32 id
//! 02/03  be32 id                                     payload  7e  be32 id
//! 08  be16 command  be16 n  n bytes
//! 00
//! 06  be32 n  description (JSON)
//! ```

use super::cursor::Cursor;
use super::description::Description;
use super::fault::{StreamFault, What, short};
use super::ram::{self, GuestRam, Page, Ram};
use std::collections::BTreeMap;

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;
const END_OF_SECTIONS: u8 = 0x00;
const START: u8 = 0x01;
const PART: u8 = 0x02;
const END: u8 = 0x03;
const FULL: u8 = 0x04;
const CONFIGURATION: u8 = 0x07;
const COMMAND: u8 = 0x08;
const FOOTER: u8 = 0x7e;

/// Sections there may be; machines have some dozens.
const SECTIONS_MAX: usize = 65536;
/// First and last command of a migration that goes on after the guest was
/// started at the destination.
const POSTCOPY: core::ops::RangeInclusive<u16> = 4..=9;

/// How a section came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// In parts, while the guest ran.
    Parts,
    /// Whole, after the guest was stopped.
    Full,
}

/// A section of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// How it came.
    pub kind: SectionKind,
    /// Its number in this stream.
    pub id: u32,
    /// Path of the device and kind of state, in printable ASCII.
    pub name: String,
    /// Which of several with one name.
    pub instance: u32,
    /// Version of its layout.
    pub version: u32,
    /// Of the type byte that opened it.
    pub offset: u64,
    /// Of the first payload byte.
    pub payload: u64,
    /// Payload bytes, of all parts together.
    pub len: u64,
    /// Pieces it came in.
    pub parts: u64,
}

/// A whole stream, walked and found sound.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    pub(super) bytes: &'a [u8],
    description: Description,
    /// Machine type by the source, such as `pc-q35-11.1`; empty if it did not
    /// say.
    pub machine: String,
    /// In the order they were opened.
    pub sections: Vec<Section>,
    /// Commands to the destination between the sections.
    pub commands: u64,
}

impl<'a> Stream<'a> {
    /// Whether the bytes begin like a stream.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC.to_be_bytes())
    }

    /// Walk a stream from its first byte to its last.
    ///
    /// Allocates in proportion to the sections and the description, of which
    /// there is a bounded number and length, not to guest memory.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, StreamFault> {
        let description = Description::find(bytes)?;
        let mut walk = Walk::new(bytes, description.as_ref());
        walk.run(&mut |_, _, _, _| ())?;
        let Walk { machine, sections, commands, cursor, .. } = walk;
        // Without one the walk ends at the first device.
        let description = description.ok_or_else(|| {
            cursor.fault(What::Description("expected one at the end, got none".into()))
        })?;
        Ok(Self { bytes, description, machine, sections, commands })
    }

    /// What the stream says about itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The last state of the pages of guest memory with these guest-physical
    /// addresses in them. Reads the whole stream again.
    ///
    /// Knows the memory map of PC machines only; on others, and for addresses
    /// outside memory, nothing is found.
    pub fn guest_ram(&self, gpas: impl IntoIterator<Item = u64>) -> GuestRam<'a> {
        let page_size = self.description.page_size;
        let pages = gpas.into_iter().map(|gpa| (gpa - gpa % page_size, None));
        let mut found = GuestRam { page_size, pages: pages.collect() };
        if found.pages.is_empty() {
            return found;
        }
        // Where each wanted page is, once the blocks are known.
        let mut places: Option<BTreeMap<(usize, u64), u64>> = None;
        let mut walk = Walk::new(self.bytes, Some(&self.description));
        let GuestRam { pages, .. } = &mut found;
        // The same bytes were walked before, so nothing can be wrong now.
        let _ = walk.run(&mut |ram, block, offset, page| {
            let places = places.get_or_insert_with(|| {
                let place = |gpa: &u64| Some((ram.locate(&self.machine, *gpa)?, *gpa));
                pages.keys().filter_map(place).collect()
            });
            if let Some(gpa) = places.get(&(block, offset)) {
                pages.insert(*gpa, Some(page));
            }
        });
        found
    }
}

/// One pass over a stream.
struct Walk<'a, 'd> {
    cursor: Cursor<'a>,
    description: Option<&'d Description>,
    machine: String,
    sections: Vec<Section>,
    by_id: BTreeMap<u32, usize>,
    commands: u64,
    ram: Ram<'a>,
    /// Memory blocks are announced with their address.
    addresses: bool,
}

impl<'a, 'd> Walk<'a, 'd> {
    fn new(bytes: &'a [u8], description: Option<&'d Description>) -> Self {
        Self {
            cursor: Cursor::new(bytes, 0),
            description,
            machine: String::new(),
            sections: Vec::new(),
            by_id: BTreeMap::new(),
            commands: 0,
            ram: Ram::default(),
            addresses: false,
        }
    }

    fn run(
        &mut self,
        on: &mut impl FnMut(&Ram<'a>, usize, u64, Page<'a>),
    ) -> Result<(), StreamFault> {
        self.cursor.expect("stream magic", MAGIC, Cursor::be32)?;
        self.cursor.expect("stream version", VERSION, Cursor::be32)?;
        if self.cursor.peek() == Some(CONFIGURATION) {
            self.configuration()?;
        }
        loop {
            let before = self.cursor.clone();
            match self.cursor.u8("section type")? {
                END_OF_SECTIONS => break,
                kind @ (START | FULL) => self.open(&before, kind, on)?,
                PART | END => self.go_on(&before, on)?,
                COMMAND => self.command(&before)?,
                other => return Err(before.fault(What::SectionType(other))),
            }
        }
        match self.description {
            Some(d) if d.offset != self.cursor.at() as u64 => {
                let got = d.offset.saturating_sub(self.cursor.at() as u64);
                Err(self.cursor.fault(What::Rest { of: "the sections", got }))
            }
            _ => Ok(()),
        }
    }

    fn configuration(&mut self) -> Result<(), StreamFault> {
        let cursor = &mut self.cursor;
        cursor.u8("section type")?;
        let before = cursor.clone();
        let len = cursor.be32("machine type length")?;
        if len > 255 {
            let got = u64::from(len);
            return Err(before.fault(What::TooLarge { of: "machine type length", most: 255, got }));
        }
        let name = cursor.take(u64::from(len), "machine type")?;
        self.machine = printable(name, "a machine type").map_err(|what| before.fault(what))?;
        // Without a description it is taken to have no subsections, which is
        // right for migrations without capabilities.
        let Some(description) = self.description else { return Ok(()) };
        let rest = description.configuration.checked_sub(4 + u64::from(len));
        let rest = rest.ok_or_else(|| {
            let most = description.configuration.saturating_sub(4);
            let of = "machine type length";
            before.fault(What::TooLarge { of, most, got: u64::from(len) })
        })?;
        let before = cursor.clone();
        let capabilities = cursor.take(rest, "configuration")?;
        let has = |name: &[u8]| capabilities.windows(name.len()).any(|w| w == name);
        if has(b"mapped-ram") {
            return Err(before.fault(What::Elsewhere("mapped-ram")));
        }
        self.addresses = has(b"x-ignore-shared");
        Ok(())
    }

    fn open(
        &mut self,
        before: &Cursor<'a>,
        kind: u8,
        on: &mut impl FnMut(&Ram<'a>, usize, u64, Page<'a>),
    ) -> Result<(), StreamFault> {
        let id = self.cursor.be32("section id")?;
        let name = self.cursor.name("section name")?;
        let name = printable(name, "a section name").map_err(|what| before.fault(what))?;
        let instance = self.cursor.be32("section instance")?;
        let version = self.cursor.be32("section version")?;
        if self.sections.len() == SECTIONS_MAX {
            let (most, got) = (SECTIONS_MAX as u64, SECTIONS_MAX as u64 + 1);
            return Err(before.fault(What::TooLarge { of: "section count", most, got }));
        }
        if self.by_id.insert(id, self.sections.len()).is_some() {
            return Err(before.fault(What::SectionTwice(id)));
        }
        let payload = self.cursor.at() as u64;
        let kind = if kind == FULL { SectionKind::Full } else { SectionKind::Parts };
        match kind {
            SectionKind::Parts if name == ram::NAME => {
                if version != ram::VERSION {
                    let (expected, got) = (ram::VERSION.into(), version.into());
                    let of = "memory section version";
                    return Err(before.fault(What::Value { of, expected, got }));
                }
                self.memory(on)?;
            }
            SectionKind::Parts => return Err(before.fault(What::Unmeasured { name })),
            SectionKind::Full => {
                let Some(description) = self.description else {
                    return Err(before.fault(What::NoDescription { section: name }));
                };
                let described = description.device(&name, instance);
                let len = described.map(|d| d.payload);
                let len = len.ok_or_else(|| {
                    before.fault(What::Undescribed { name: name.clone(), instance })
                })?;
                self.cursor.take(len, "section payload")?;
            }
        }
        let len = self.cursor.at() as u64 - payload;
        let offset = before.at() as u64;
        self.footer(id)?;
        let section = Section { kind, id, name, instance, version, offset, payload, len, parts: 1 };
        self.sections.push(section);
        Ok(())
    }

    fn go_on(
        &mut self,
        before: &Cursor<'a>,
        on: &mut impl FnMut(&Ram<'a>, usize, u64, Page<'a>),
    ) -> Result<(), StreamFault> {
        let id = self.cursor.be32("section id")?;
        let index = self.by_id.get(&id).copied();
        let open = index.filter(|at| self.sections[*at].kind == SectionKind::Parts);
        let index = open.ok_or_else(|| before.fault(What::SectionId(id)))?;
        let payload = self.cursor.at();
        self.memory(on)?;
        let section = &mut self.sections[index];
        section.len += (self.cursor.at() - payload) as u64;
        section.parts += 1;
        self.footer(id)
    }

    fn memory(
        &mut self,
        on: &mut impl FnMut(&Ram<'a>, usize, u64, Page<'a>),
    ) -> Result<(), StreamFault> {
        let page_size = self.description.map_or(4096, |d| d.page_size);
        self.ram.part(&mut self.cursor, page_size, self.addresses, on)
    }

    fn footer(&mut self, id: u32) -> Result<(), StreamFault> {
        self.cursor.expect("section footer", FOOTER, Cursor::u8)?;
        self.cursor.expect("section id in the footer", id, Cursor::be32)
    }

    fn command(&mut self, before: &Cursor<'a>) -> Result<(), StreamFault> {
        let command = self.cursor.be16("command")?;
        let len = self.cursor.be16("command length")?;
        if POSTCOPY.contains(&command) {
            return Err(before.fault(What::Elsewhere("postcopy")));
        }
        self.cursor.take(u64::from(len), "command")?;
        self.commands += 1;
        Ok(())
    }
}

fn printable(bytes: &[u8], expected: &'static str) -> Result<String, What> {
    match core::str::from_utf8(bytes) {
        Ok(text) if text.bytes().all(|b| (0x20..0x7f).contains(&b)) => Ok(text.to_owned()),
        _ => Err(What::Name { expected, got: short(bytes) }),
    }
}
