//! Guest memory in the stream: blocks are announced once, then pages follow,
//! each with its block and offset. A page may come many times; the last counts.

use super::cursor::Cursor;
use super::fault::{StreamFault, What, short};
use std::collections::BTreeMap;

/// Name of the section.
pub(super) const NAME: &str = "ram";
/// The only version that is read.
pub(super) const VERSION: u32 = 4;

/// All bytes of the page are the one that follows.
const FILL: u64 = 0x02;
/// The rest of the word is the sum of all blocks, which follow.
const MEM_SIZE: u64 = 0x04;
/// The page's bytes follow.
const PAGE: u64 = 0x08;
/// The end of this part of the section.
const EOS: u64 = 0x10;
/// The same block as the page before; else its name follows.
const CONTINUE: u64 = 0x20;
/// What changed since the page came before follows.
const DELTA: u64 = 0x40;
/// Pages are in other channels.
const MULTIFD_FLUSH: u64 = 0x200;

/// Blocks there may be; machines have a dozen.
const BLOCKS_MAX: usize = 4096;

/// A page of guest memory, as it came last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page<'a> {
    /// All bytes are this one.
    Fill(u8),
    /// Its bytes.
    Bytes(&'a [u8]),
    /// A difference to what came before; its bytes are not known.
    Delta,
}

/// A piece of memory with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub name: String,
    /// Bytes.
    pub length: u64,
}

/// What the parts of the section have in common.
#[derive(Debug, Default)]
pub(super) struct Ram<'a> {
    pub blocks: Vec<Block>,
    by_name: BTreeMap<&'a [u8], usize>,
    last: Option<usize>,
}

impl<'a> Ram<'a> {
    /// Read one part up to its end mark. `addresses`: each block is announced
    /// with its address.
    pub fn part(
        &mut self,
        cursor: &mut Cursor<'a>,
        page_size: u64,
        addresses: bool,
        on: &mut impl FnMut(&Self, usize, u64, Page<'a>),
    ) -> Result<(), StreamFault> {
        loop {
            let before = cursor.clone();
            let word = cursor.be64("memory page header")?;
            // Flags are below the smallest page size there is, offsets above.
            let (flags, offset) = (word % page_size, word - word % page_size);
            match flags & !CONTINUE {
                EOS if word == EOS => return Ok(()),
                MEM_SIZE if flags == MEM_SIZE => self.announce(cursor, offset, addresses)?,
                MULTIFD_FLUSH => return Err(before.fault(What::Elsewhere("multifd"))),
                kind @ (FILL | PAGE | DELTA) => {
                    let block = self.block(cursor, flags & CONTINUE != 0)?;
                    let Block { name, length } = &self.blocks[block];
                    if offset >= *length {
                        return Err(before.fault(What::BlockOffset {
                            block: name.clone(),
                            length: *length,
                            got: offset,
                        }));
                    }
                    let page = match kind {
                        FILL => Page::Fill(cursor.u8("memory page")?),
                        PAGE => Page::Bytes(cursor.take(page_size, "memory page")?),
                        _ => delta(cursor)?,
                    };
                    on(self, block, offset, page);
                }
                _ => return Err(before.fault(What::PageFlags(flags))),
            }
        }
    }

    fn announce(
        &mut self,
        cursor: &mut Cursor<'a>,
        total: u64,
        addresses: bool,
    ) -> Result<(), StreamFault> {
        let mut left = total;
        while left > 0 {
            let before = cursor.clone();
            let name = cursor.name("memory block name")?;
            let length = cursor.be64("memory block length")?;
            if addresses {
                cursor.be64("memory block address")?;
            }
            left = left.checked_sub(length).ok_or_else(|| {
                before.fault(What::TooLarge { of: "memory block length", most: left, got: length })
            })?;
            if self.blocks.len() == BLOCKS_MAX {
                let (most, got) = (BLOCKS_MAX as u64, BLOCKS_MAX as u64 + 1);
                return Err(before.fault(What::TooLarge { of: "memory block count", most, got }));
            }
            self.by_name.insert(name, self.blocks.len());
            self.blocks.push(Block { name: short(name), length });
        }
        Ok(())
    }

    fn block(&mut self, cursor: &mut Cursor<'a>, same: bool) -> Result<usize, StreamFault> {
        let before = cursor.clone();
        let (found, name) = if same {
            (self.last, &b""[..])
        } else {
            let name = cursor.name("memory block name")?;
            (self.by_name.get(name).copied(), name)
        };
        self.last = found;
        found.ok_or_else(|| before.fault(What::Block { block: short(name) }))
    }

    /// The block that is the machine's memory, as far as its name tells: the
    /// others are called after a device, a file or the firmware.
    fn main(&self) -> Option<usize> {
        if let Some(&at) = self.by_name.get(&b"pc.ram"[..]) {
            return Some(at);
        }
        let foreign = |name: &str| name.contains(['/', ':', '.']);
        let mut others = (0..self.blocks.len()).filter(|at| !foreign(&self.blocks[*at].name));
        // Several of them are parts of one memory in an order that the stream
        // does not tell.
        others.next().filter(|_| others.next().is_none())
    }

    /// Where the guest-physical address is: block, and offset in it. `None`
    /// where the map is not known.
    pub fn locate(&self, machine: &str, gpa: u64) -> Option<(usize, u64)> {
        // PC machines have one memory with a hole below 4 GiB.
        let (full, low) = if machine.starts_with("pc-q35") {
            (0xb000_0000, 0x8000_0000)
        } else if machine.starts_with("pc-i440fx") {
            (0xe000_0000, 0xc000_0000)
        } else {
            return None;
        };
        const HIGH: u64 = 1 << 32;
        let block = self.main()?;
        let length = self.blocks[block].length;
        let below = if length >= full { low } else { length };
        let offset = match gpa {
            _ if gpa < below => gpa,
            _ if gpa >= HIGH => below.checked_add(gpa - HIGH)?,
            _ => return None,
        };
        (offset < length).then_some((block, offset))
    }
}

fn delta<'a>(cursor: &mut Cursor<'a>) -> Result<Page<'a>, StreamFault> {
    cursor.expect("page difference marker", 1u8, Cursor::u8)?;
    let len = cursor.be16("page difference length")?;
    cursor.take(u64::from(len), "page difference")?;
    Ok(Page::Delta)
}

/// Pages of guest memory that were asked for.
#[derive(Clone, Debug, Default)]
pub struct GuestRam<'a> {
    pub(super) page_size: u64,
    /// By guest-physical address; `None` as long as it did not come.
    pub(super) pages: BTreeMap<u64, Option<Page<'a>>>,
}

impl<'a> GuestRam<'a> {
    /// The page that a guest-physical address is in, as it came last.
    pub fn page(&self, gpa: u64) -> Option<Page<'a>> {
        let offset = gpa.checked_rem(self.page_size)?;
        *self.pages.get(&(gpa - offset))?
    }

    /// The little-endian number at a guest-physical address that is a multiple
    /// of 2. `None` if the stream does not tell.
    pub fn le16(&self, gpa: u64) -> Option<u16> {
        match self.page(gpa)? {
            Page::Fill(byte) => Some(u16::from_le_bytes([byte, byte])),
            Page::Bytes(bytes) => {
                let at = usize::try_from(gpa % self.page_size).ok()?;
                let field = bytes.get(at..at.checked_add(2)?)?;
                Some(u16::from_le_bytes([field[0], field[1]]))
            }
            Page::Delta => None,
        }
    }
}
