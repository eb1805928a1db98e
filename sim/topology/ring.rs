//! How vrings are laid out.

use crate::settings::Value;

/// A layout of vrings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ring {
    /// Three parts: descriptors, available, used.
    #[default]
    Split,
    /// One ring that both sides write: `VIRTIO_F_RING_PACKED`.
    Packed,
}

impl Ring {
    /// Every layout, the calmest first.
    pub const ALL: [Self; 2] = [Self::Split, Self::Packed];

    /// As a document has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Packed => "packed",
        }
    }
}

impl Value for Ring {
    const EXPECTED: &'static str = "split or packed";

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ring| ring.name() == text)
    }

    fn print(&self) -> String {
        self.name().into()
    }
}
