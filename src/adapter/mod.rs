//! The daemon: the only place with descriptors, threads, clocks and `unsafe`.
//!
//! It is a thin shell around [`Backend`](crate::backend::Backend): wait for one
//! readiness, tell the back-end, carry out what it wishes, sleep until it is
//! due again. Whatever depends on protocol state is not here but in the core.
//!
//! ```text
//!   socket.rs  ── bytes, handles ──►             ──► socket.rs     Send
//!   poller.rs  ── kick ────────────►   Backend   ──► handles.rs    Call, Err, Release
//!   memory.rs  ── mapped ──────────►             ──► memory.rs     Map, Unmap, AllocInflight
//!   userfault.rs ─ opened ─────────►             ──► userfault.rs  OpenFaults, CloseFaults
//!   disk/      ── completions ─────►             ──► disk/         Disk
//!              event_loop.rs holds them together
//! ```

#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

#[macro_use]
mod log;

mod capabilities;
mod cli;
pub mod client;
mod clock;
pub mod disk;
mod disk_args;
mod error;
mod event_loop;
mod events;
mod handles;
pub mod image;
mod inspect;
mod limits;
mod listener;
mod lock;
pub mod memory;
mod poller;
mod serve;
pub mod sigbus;
mod signals;
mod size;
mod socket;
mod spin;
pub mod userfault;

pub use cli::run;
