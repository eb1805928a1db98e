//! Random control messages racing I/O, from the front-end half to the real
//! daemon over its socket: nothing lost, no leak, no crash.
//!
//! A few seconds by default. `MIDFLIGHT_STORM_SECONDS=600` goes on for ten
//! minutes, `MIDFLIGHT_STORM_SEED` chooses another sequence. What is sent is
//! decided by the seed; when it meets the I/O is not.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod blocks;
#[path = "../frontend_rig/mod.rs"]
mod frontend_rig;
mod storm;

use std::time::Duration;
use storm::Storm;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn storm(packed: bool) {
    let seconds = number("MIDFLIGHT_STORM_SECONDS", 4);
    let seed = number("MIDFLIGHT_STORM_SEED", 1);
    let mut storm = Storm::new(seed, packed);
    storm.run(Duration::from_secs(seconds));
    storm.end();
}

#[test]
fn storm_of_control_messages_loses_nothing_and_leaks_nothing() {
    storm(false);
}

#[test]
fn storm_of_control_messages_loses_and_leaks_nothing_with_packed_rings() {
    storm(true);
}
