//! What a device knows that is neither in its rings nor in the inflight region,
//! as bytes that another back-end can load.
//!
//! Version 1, little-endian, 32 bytes:
//!
//! | offset | type | field | |
//! |---|---|---|---|
//! | 0 | u8\[8\] | magic | `mflight` and a NUL |
//! | 8 | u32 | version | 1 |
//! | 12 | u32 | length | of all of it, 32 |
//! | 16 | u64 | capacity | bytes of the disk; a disk of another size is another disk |
//! | 24 | u8 | writeback | the guest's choice: 1 write back, 0 write through |
//! | 25 | u8\[7\] | | 0 |
//!
//! A reader refuses every byte that it does not understand: a state that was
//! loaded in part would be worse than none.
// spec: vhost-user, "Migrating back-end state"

const MAGIC: [u8; 8] = *b"mflight\0";
const VERSION: u32 = 1;
const LEN: usize = 32;

/// Most bytes of a state that are read from a peer, far more than any version has.
pub const STATE_MAX: u64 = 4096;

/// The state of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedState {
    /// Bytes of the disk.
    pub capacity: u64,
    /// The guest's choice of the cache mode: write back.
    pub writeback: bool,
}

/// Bytes that are not the state of this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedStateFault {
    /// Something else.
    #[error("device state does not begin with the magic of midflight")]
    Magic,
    /// From the future.
    #[error("device state has version {0}, expected 1")]
    Version(u32),
    /// Cut short, or with something behind it.
    #[error("device state has {got} bytes and says {said}, expected {LEN}")]
    Length {
        /// Bytes there are.
        got: u64,
        /// Length by the header.
        said: u32,
    },
    /// A field with a value that means nothing.
    #[error("device state has {got} at byte {at}, expected {expected}")]
    Field {
        /// Offset.
        at: u32,
        /// Value found.
        got: u8,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// Of another disk.
    #[error("device state is of a disk of {got} bytes, expected {expected}")]
    Capacity {
        /// Bytes of this disk.
        expected: u64,
        /// Bytes by the state.
        got: u64,
    },
}

impl SavedState {
    /// As bytes.
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(LEN as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[24] = u8::from(self.writeback);
        bytes
    }

    /// From bytes, all of which have to be right.
    pub fn decode(bytes: &[u8]) -> Result<Self, SavedStateFault> {
        let u32_at = |at: usize| {
            let part = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes([part[0], part[1], part[2], part[3]]))
        };
        if bytes.get(..8) != Some(&MAGIC[..]) {
            return Err(SavedStateFault::Magic);
        }
        let version = u32_at(8).unwrap_or(0);
        if version != VERSION {
            return Err(SavedStateFault::Version(version));
        }
        let said = u32_at(12).unwrap_or(0);
        let got = bytes.len() as u64;
        let Ok(all) = <&[u8; LEN]>::try_from(bytes) else {
            return Err(SavedStateFault::Length { got, said });
        };
        if said as usize != LEN {
            return Err(SavedStateFault::Length { got, said });
        }
        let writeback = match all[24] {
            value @ (0 | 1) => value == 1,
            got => return Err(SavedStateFault::Field { at: 24, got, expected: "0 or 1" }),
        };
        if let Some(at) = (25..LEN).find(|at| all[*at] != 0) {
            let fault = SavedStateFault::Field { at: at as u32, got: all[at], expected: "0" };
            return Err(fault);
        }
        let mut capacity = [0; 8];
        capacity.copy_from_slice(&all[16..24]);
        Ok(Self { capacity: u64::from_le_bytes(capacity), writeback })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: SavedState = SavedState { capacity: 0x0102_0304_0506_0708, writeback: true };

    #[test]
    fn device_state_has_the_documented_bytes() {
        let mut expected =
            b"mflight\0\x01\0\0\0\x20\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01\x01".to_vec();
        expected.resize(32, 0);
        assert_eq!(STATE.encode()[..], expected);
        assert_eq!(SavedState::decode(&expected), Ok(STATE));
        let off = SavedState { writeback: false, ..STATE };
        assert_eq!(SavedState::decode(&off.encode()), Ok(off));
    }

    #[test]
    fn device_state_with_any_other_byte_is_refused_or_another_state() {
        let bytes = STATE.encode();
        for at in 0..LEN {
            for flip in [1u8, 2, 0x80] {
                let mut bad = bytes;
                bad[at] ^= flip;
                match SavedState::decode(&bad) {
                    // The two fields that may have other values.
                    Ok(state) => assert!(state != STATE && (16..25).contains(&at), "byte {at}"),
                    Err(fault) => assert!(!fault.to_string().is_empty()),
                }
            }
        }
        for len in 0..LEN {
            assert!(SavedState::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        let long = [&bytes[..], &[0]].concat();
        assert_eq!(
            SavedState::decode(&long).unwrap_err().to_string(),
            "device state has 33 bytes and says 32, expected 32"
        );
    }
}
