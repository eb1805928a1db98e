//! What descriptors stand for: memory and event counters that outlive the
//! processes which hold them.

use crate::memory::RegionId;
use midflight::Handle;
use std::collections::BTreeMap;

/// Name of an object in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId(pub u32);

/// Something a descriptor can refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Memory, as a region of the arena.
    Memory(RegionId),
    /// The kick of a vring.
    Kick(u16),
    /// The call of a vring.
    Call(u16),
    /// The error signal of a vring. Nobody listens: an error is a failed run.
    Err,
    /// An event counter that nobody reads any more.
    Deaf,
}

/// All objects of a run.
#[derive(Debug, Default)]
pub struct Objects {
    objects: Vec<Object>,
}

impl Objects {
    /// A new object.
    pub fn add(&mut self, object: Object) -> ObjectId {
        self.objects.push(object);
        ObjectId(self.objects.len() as u32 - 1)
    }

    /// Its reader is gone for good.
    pub fn deafen(&mut self, id: ObjectId) {
        self.objects[id.0 as usize] = Object::Deaf;
    }

    /// What it is.
    pub fn get(&self, id: ObjectId) -> Object {
        self.objects[id.0 as usize]
    }
}

/// The descriptor table of one process. Numbers are never reused within a
/// process, so that the use of a closed one is seen.
#[derive(Debug, Default)]
pub struct Handles {
    open: BTreeMap<Handle, ObjectId>,
    next: u32,
}

impl Handles {
    /// A process receives or makes a descriptor.
    pub fn open(&mut self, object: ObjectId) -> Handle {
        let handle = Handle(self.next);
        self.next += 1;
        self.open.insert(handle, object);
        handle
    }

    /// What a descriptor refers to, if it is open.
    pub fn get(&self, handle: Handle) -> Option<ObjectId> {
        self.open.get(&handle).copied()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Close it; false if it was not open.
    pub fn close(&mut self, handle: Handle) -> bool {
        self.open.remove(&handle).is_some()
    }
}

/// An event counter (an eventfd).
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    /// Signals that nobody has read.
    pub count: u64,
    /// Its reader is about to be woken.
    pub waking: bool,
}
