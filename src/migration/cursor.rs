//! Reading forward in untrusted bytes.

use super::fault::{StreamFault, What, short};

/// A place in a byte slice. Every read says what it is for, so that an error
/// can.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// From `at`, to the end of `bytes`. Offsets count from the start of
    /// `bytes`.
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// A fault here.
    pub fn fault(&self, what: What) -> StreamFault {
        StreamFault { offset: self.at as u64, what }
    }

    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub fn take(&mut self, len: u64, of: &'static str) -> Result<&'a [u8], StreamFault> {
        let end = || {
            let got = self.left() as u64;
            self.fault(What::End { of, expected: len, got })
        };
        let size = usize::try_from(len).map_err(|_| end())?;
        let found = self.bytes[self.at..].get(..size).ok_or_else(end)?;
        self.at += size;
        Ok(found)
    }

    fn array<const N: usize>(&mut self, of: &'static str) -> Result<[u8; N], StreamFault> {
        let bytes = self.take(N as u64, of)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    pub fn u8(&mut self, of: &'static str) -> Result<u8, StreamFault> {
        self.array::<1>(of).map(|[b]| b)
    }

    pub fn be16(&mut self, of: &'static str) -> Result<u16, StreamFault> {
        self.array(of).map(u16::from_be_bytes)
    }

    pub fn be32(&mut self, of: &'static str) -> Result<u32, StreamFault> {
        self.array(of).map(u32::from_be_bytes)
    }

    pub fn be64(&mut self, of: &'static str) -> Result<u64, StreamFault> {
        self.array(of).map(u64::from_be_bytes)
    }

    /// A name with its length in one byte before it.
    pub fn name(&mut self, of: &'static str) -> Result<&'a [u8], StreamFault> {
        let mut ahead = self.clone();
        let len = ahead.u8(of)?;
        let name = ahead.take(u64::from(len), of)?;
        *self = ahead;
        Ok(name)
    }

    /// Run a read, and go back to where it began if what it returned is not
    /// wanted, so that the fault has the offset of the value.
    pub fn expect<T: Copy + PartialEq + Into<u64>>(
        &mut self,
        of: &'static str,
        expected: T,
        read: impl FnOnce(&mut Self, &'static str) -> Result<T, StreamFault>,
    ) -> Result<(), StreamFault> {
        let before = self.at;
        let got = read(self, of)?;
        if got != expected {
            self.at = before;
            let (expected, got) = (expected.into(), got.into());
            return Err(self.fault(What::Value { of, expected, got }));
        }
        Ok(())
    }

    /// A `05` marker, this name, and this version.
    pub fn subsection(&mut self, name: &'static str, version: u32) -> Result<(), StreamFault> {
        self.expect("subsection marker", SUBSECTION, Self::u8)?;
        let before = self.at;
        let got = self.name("subsection name")?;
        if got != name.as_bytes() {
            self.at = before;
            return Err(self.fault(What::Name { expected: name, got: short(got) }));
        }
        self.expect("subsection version", version, Self::be32)
    }
}

/// Starts a subsection.
pub(super) const SUBSECTION: u8 = 0x05;
