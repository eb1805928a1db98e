//! vhost-user for virtio-blk, as a state machine without input or output.
//!
//! ```text
//!                   Input ──►  ┌──────────────────────┐  ──► Output
//!   bytes, kicks,              │  Backend   Frontend  │       bytes, disk requests, calls,
//!   disk completions,          │   wire · vring · blk │       map and unmap, events, close
//!   timeouts, commands         │       inflight       │       and poll_timeout()
//!                              └──────────────────────┘
//! ```
//!
//! Whatever drives the core tells it facts and carries out its wishes: the
//! daemon in [`adapter`] with sockets, eventfds and io_uring, the simulator
//! with seeded events. The loop is always the same:
//!
//! ```
//! use midflight::backend::{Backend, Input, Output};
//! use midflight::blk::DeviceConfig;
//! use midflight::time::Instant;
//! use vm_memory::GuestMemoryMmap;
//!
//! let config = DeviceConfig::with_capacity(1 << 20);
//! let mut backend: Backend<GuestMemoryMmap> = Backend::new(config)?;
//! backend.handle_input(Instant::ZERO, Input::Connected)?;
//!
//! // GET_FEATURES: request 1, version 1, no payload.
//! let bytes: Vec<u8> = [1u32, 1, 0].iter().flat_map(|w| w.to_ne_bytes()).collect();
//! let input = Input::Received { bytes: &bytes, handles: vec![] };
//! backend.handle_input(Instant::ZERO, input)?;
//! match backend.poll_output() {
//!     Some(Output::Send { bytes, .. }) => assert_eq!(bytes.len(), 12 + 8),
//!     other => panic!("{other:?}"),
//! }
//! assert_eq!(backend.poll_output(), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! DESIGN.md in the repository has the contract, the module rule, and the
//! argument why a crash between any two stores neither loses nor repeats a
//! request.

pub mod adapter;
pub mod backend;
pub mod blk;
pub mod bugs;
pub mod dirty;
pub mod driver;
pub mod frontend;
mod handle;
pub mod inflight;
pub mod iommu;
pub mod marks;
pub mod memory;
pub mod migration;
pub mod time;
pub mod vring;
pub mod wire;
pub mod words;

pub use handle::Handle;
