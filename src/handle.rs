//! Tokens for things only the driver can hold.

use core::fmt;

/// A token for a file descriptor that travels with a message.
///
/// The adapter maps it to a real descriptor, the simulator to an object of its
/// own. The core never looks behind it; it only passes it on and says, exactly
/// once, when it is no longer needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {}", self.0)
    }
}
