//! The engine for files in memory: do it at once, in the serving thread.
//!
//! A file in memory never waits for a disk, so a system call costs the copy and
//! little more; io_uring would hand every request to a kernel thread.

use super::op::Op;
use super::sync;
use crate::adapter::image::Image;
use std::sync::Arc;

/// Finished requests wait here for the next look.
pub struct Inline {
    image: Arc<Image>,
    done: Vec<Box<Op>>,
}

impl Inline {
    /// Serve `image`.
    pub fn new(image: Arc<Image>) -> Self {
        Self { image, done: Vec::new() }
    }

    /// Do it.
    pub fn submit(&mut self, mut op: Box<Op>) {
        sync::perform(&self.image, &mut op);
        self.done.push(op);
    }

    /// Move what is finished to `out`.
    pub fn reap(&mut self, out: &mut Vec<Box<Op>>) {
        out.append(&mut self.done);
    }
}
