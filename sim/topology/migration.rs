//! How the guest moves between the two hosts.

use crate::settings::{Value, settings};

/// What a stop does with requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It waits for them.
    Drain,
    /// It has them cancelled and leaves them in the inflight region.
    Suspend,
    /// Like `Suspend`, but the driver says that a request is over when it is
    /// not: the mistake that lets an old write land on new data.
    Unsafe,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Drain, Self::Suspend, Self::Unsafe];

    /// As the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Suspend => "suspend",
            Self::Unsafe => "unsafe",
        }
    }
}

impl Value for Policy {
    const EXPECTED: &'static str = "drain, suspend or unsafe";

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == text)
    }

    fn print(&self) -> String {
        self.name().into()
    }
}

settings! {
    /// See the module.
    #[derive(Copy)]
    pub struct Migration {
        /// What a stop does with requests in flight.
        policy: Policy,
        /// Suspending is asked for by a message of its own (45); without it,
        /// every stop suspends, as in QEMU 11.1.
        by_message: bool,
        /// The front-end has agreed to that; else every stop has to wait.
        agreed: bool,
        /// Microseconds that requests in flight have to finish by themselves.
        grace: u64,
        /// Microseconds until the disk confirms a cancel, at most; none: it
        /// cannot cancel.
        cancel: Option<u64>,
        /// Nanoseconds that the link takes for a page.
        page_ns: u64,
        /// Microseconds from host to host.
        latency: u64,
        /// Rounds of copying while the guest runs, at most.
        rounds: u64,
        /// Pages that may be left when the guest is stopped.
        few_pages: u64,
    }
}

impl Default for Migration {
    /// A quick link, and a stop that suspends at once.
    fn default() -> Self {
        Self {
            policy: Policy::Suspend,
            by_message: false,
            agreed: true,
            grace: 0,
            cancel: Some(20),
            page_ns: 200,
            latency: 10,
            rounds: 2,
            few_pages: 8,
        }
    }
}

impl core::fmt::Display for Migration {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let how = match (self.policy, self.by_message) {
            (Policy::Drain, _) => "",
            (_, true) => " by message 45",
            (_, false) => " at every stop",
        };
        write!(f, "migration  a stop is {}{how}", self.policy.name())?;
        if self.policy != Policy::Drain {
            let agreed = if self.agreed { "" } else { ", which was not agreed on" };
            write!(f, "{agreed}, grace {} us, ", self.grace)?;
            match (self.policy, self.cancel) {
                (Policy::Unsafe, _) => write!(f, "cancels are confirmed at once, without truth")?,
                (_, Some(us)) => write!(f, "cancels take up to {us} us")?,
                (_, None) => write!(f, "the disk cannot cancel")?,
            }
        }
        write!(
            f,
            "; link {} us, {} ns a page; {} rounds or {} pages left",
            self.latency, self.page_ns, self.rounds, self.few_pages
        )
    }
}
