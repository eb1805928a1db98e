//! What can be wrong with a file, and where.

/// A file that is not what it should be. Whoever wrote or copied it is to
/// blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at offset {offset:#x}")]
pub struct StreamFault {
    /// First byte that is not as expected, from the start of what was given to
    /// be read; never beyond its end.
    pub offset: u64,
    /// What was expected, and what came.
    pub what: What,
}

/// What was expected, and what came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum What {
    /// The bytes end too early.
    #[error("expected {expected} bytes of {of}, got {got} and the end")]
    End {
        /// Being read.
        of: &'static str,
        /// Bytes it takes.
        expected: u64,
        /// Bytes left.
        got: u64,
    },
    /// A fixed value is another one.
    #[error("expected {of} {expected:#x}, got {got:#x}")]
    Value {
        /// Being read.
        of: &'static str,
        /// The only value there can be.
        expected: u64,
        /// Value found.
        got: u64,
    },
    /// A number is too large.
    #[error("expected {of} of at most {most}, got {got}")]
    TooLarge {
        /// Being read.
        of: &'static str,
        /// Largest allowed.
        most: u64,
        /// Value found.
        got: u64,
    },
    /// A name is another one.
    #[error("expected {expected:?}, got {got:?}")]
    Name {
        /// Names there may be, or their kind.
        expected: &'static str,
        /// Name found, shortened.
        got: String,
    },
    /// A byte that starts no section.
    #[error("expected a section, command or the end of sections, got type {0:#x}")]
    SectionType(u8),
    /// A section goes on that never began.
    #[error("expected the id of an open section, got {0}")]
    SectionId(u32),
    /// Two sections have one id.
    #[error("section id {0} is used twice")]
    SectionTwice(u32),
    /// A kind of migration with pages outside this file.
    #[error("expected a stream that is complete in this file, got one that uses {0}")]
    Elsewhere(&'static str),
    /// A section in pieces that is not memory.
    #[error("expected section \"ram\" in parts, got {name:?}, whose length nothing tells")]
    Unmeasured {
        /// Section found.
        name: String,
    },
    /// The stream's description of itself is missing.
    #[error(
        "section {section:?} cannot be measured: the stream has no description at its end, so it was cut short or written without one"
    )]
    NoDescription {
        /// The first section that needs it.
        section: String,
    },
    /// A section that the description does not know.
    #[error("section {name:?}, instance {instance}, is missing in the stream's description")]
    Undescribed {
        /// Section name.
        name: String,
        /// Instance id.
        instance: u32,
    },
    /// The description is not what it should be.
    #[error("description of the stream: {0}")]
    Description(String),
    /// A page header that means nothing.
    #[error("expected flags of a memory page, got {0:#x}")]
    PageFlags(u64),
    /// A page of a block that was not announced.
    #[error("expected a page of a known memory block, got one of {block:?}")]
    Block {
        /// Block name found, shortened.
        block: String,
    },
    /// A page beyond its block.
    #[error("expected a page within {length:#x} bytes of memory block {block:?}, got {got:#x}")]
    BlockOffset {
        /// Block name.
        block: String,
        /// Its size in bytes.
        length: u64,
        /// Page offset found.
        got: u64,
    },
    /// A region's size does not go with its queue size.
    #[error("expected both or neither of region size and queue size, got {size} and {queue_size}")]
    HalfRegion {
        /// Bytes.
        size: u64,
        /// Entries.
        queue_size: u16,
    },
    /// Something follows that should not.
    #[error("expected the end of {of}, got {got} bytes more")]
    Rest {
        /// Being read.
        of: &'static str,
        /// Bytes left.
        got: u64,
    },
    /// Transport state of another bus.
    #[error("expected the state of a virtio device on PCI: {0}")]
    Transport(&'static str),
}

/// The beginning of untrusted text, printable.
pub(super) fn short(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(64)];
    let mut text = String::from_utf8_lossy(head).into_owned();
    if head.len() < bytes.len() {
        text.push('…');
    }
    text
}
