//! Deliberate mistakes, to prove that the simulator finds them.
//!
//! Each is one line at the rule it breaks, and most were made by somebody
//! before. Without the feature `bugs`, [`on`] is the constant `false` and
//! nothing of this is in the program.

mod list;

pub use list::Bug;

/// What a mistake is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Messages: framing, answers, what they set.
    Wire,
    /// Available and used ring, descriptor chains, where a vring starts.
    Rings,
    /// The inflight region, store by store, and its recovery.
    Inflight,
    /// Packed rings and their inflight region.
    Packed,
    /// Drain and suspend.
    Stop,
    /// The dirty log.
    Logging,
    /// virtio-blk requests.
    Block,
    /// Calls, kicks and their suppression.
    Notification,
    /// The front-end's half.
    Frontend,
}

impl Family {
    /// Every family, in the order of tables.
    pub const ALL: [Self; 9] = [
        Self::Wire,
        Self::Rings,
        Self::Inflight,
        Self::Packed,
        Self::Stop,
        Self::Logging,
        Self::Block,
        Self::Notification,
        Self::Frontend,
    ];

    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Rings => "rings",
            Self::Inflight => "inflight",
            Self::Packed => "packed rings",
            Self::Stop => "drain and suspend",
            Self::Logging => "logging",
            Self::Block => "block",
            Self::Notification => "notification",
            Self::Frontend => "front-end",
        }
    }
}

/// What a mistake has to remember; without the feature it is nothing.
#[derive(Clone, Debug)]
pub struct Slip<T> {
    #[cfg(feature = "bugs")]
    kept: Option<T>,
    kind: core::marker::PhantomData<T>,
}

impl<T> Default for Slip<T> {
    fn default() -> Self {
        Self {
            #[cfg(feature = "bugs")]
            kept: None,
            kind: core::marker::PhantomData,
        }
    }
}

impl<T> Slip<T> {
    /// Remember this if the bug was asked for.
    #[inline]
    pub fn keep(&mut self, bug: Bug, value: impl FnOnce() -> Option<T>) {
        #[cfg(feature = "bugs")]
        if on(bug) {
            self.kept = value();
        }
        #[cfg(not(feature = "bugs"))]
        let _ = (bug, value);
    }

    /// What was remembered, once.
    #[inline]
    pub fn take(&mut self) -> Option<T> {
        #[cfg(feature = "bugs")]
        return self.kept.take();
        #[cfg(not(feature = "bugs"))]
        None
    }
}

/// True if this bug was asked for.
#[cfg(not(feature = "bugs"))]
#[inline(always)]
pub const fn on(_bug: Bug) -> bool {
    false
}

/// True if this bug was asked for and the condition holds, which is looked at
/// only then: for a mistake that would not show here without it.
#[cfg(not(feature = "bugs"))]
#[inline(always)]
pub fn on_when(_bug: Bug, _condition: impl FnOnce() -> bool) -> bool {
    false
}

#[cfg(feature = "bugs")]
pub use switch::{on, on_when, reached, set};

#[cfg(feature = "bugs")]
mod switch {
    use super::Bug;
    use core::cell::Cell;

    std::thread_local! {
        // One simulator runs on one thread, so that is the scope of a bug.
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
        static REACHED: Cell<bool> = const { Cell::new(false) };
    }

    /// True if this bug was asked for on this thread.
    #[inline]
    pub fn on(bug: Bug) -> bool {
        on_when(bug, || true)
    }

    /// True if this bug was asked for on this thread and the condition holds.
    #[inline]
    pub fn on_when(bug: Bug, condition: impl FnOnce() -> bool) -> bool {
        let made = ACTIVE.get() == Some(bug) && condition();
        if made {
            REACHED.set(true);
        }
        made
    }

    /// Ask for a bug, or for none, on this thread.
    pub fn set(bug: Option<Bug>) {
        ACTIVE.set(bug);
        REACHED.set(false);
    }

    /// True if the mistake was made since it was asked for.
    pub fn reached() -> bool {
        REACHED.get()
    }
}
