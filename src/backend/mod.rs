//! The back-end half: one device, one front-end at a time.

mod io;
