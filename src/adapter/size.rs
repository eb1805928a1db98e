//! The size of the image, looked at from time to time.
//!
//! One `fstat` (or one `lseek` on a block device) a second while a front-end is
//! connected, one when a front-end connects, and one when the operator sends
//! SIGHUP. inotify would be told at once, but not for a block device and not for
//! a file that another host has made larger; uevents are for block devices
//! only, and do not reach into containers. The clock works for all of them.

use super::error::describe;
use super::image::Image;
use crate::time::{Duration, Instant};
use std::sync::Arc;

/// How long a change may go unnoticed.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// When to look again, and at what.
pub struct SizeWatch {
    image: Arc<Image>,
    /// `None`: nobody is there to be told.
    due: Option<Instant>,
}

impl SizeWatch {
    /// Nothing is looked at before it is wanted.
    pub fn new(image: Arc<Image>) -> Self {
        Self { image, due: None }
    }

    /// When to look next.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Look no more until [`SizeWatch::look`].
    pub fn rest(&mut self) {
        self.due = None;
    }

    /// Look now, and again after a while; the size in bytes. `None` if it
    /// cannot be told, which is no change.
    pub fn look(&mut self, now: Instant) -> Option<u64> {
        self.due = Some(now + INTERVAL);
        match self.image.measure() {
            Ok(size) => Some(size),
            Err(errno) => {
                say_limited!("cannot measure the image: {}", describe(errno));
                None
            }
        }
    }
}
