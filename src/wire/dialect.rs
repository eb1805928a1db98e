//! Numbers that peers disagree about, in one table.
//!
//! The messages and features that let a back-end suspend requests in flight
//! were renumbered while they were being standardised. A [`Dialect`] says
//! which numbers a connection uses; everything else in midflight knows the
//! messages and features by name only.

use super::codes::frontend::{GET_SHMEM_CONFIG, GET_VRING_BASE, GET_VRING_BASE_SKIP_DRAIN};
use core::fmt;

/// How a front-end asks a back-end to suspend a vring instead of draining it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspend {
    /// It cannot ask: the negotiated feature alone lets GET_VRING_BASE suspend.
    Feature,
    /// With a message of its own, which has this code.
    Message(u32),
    /// With GET_VRING_BASE whose reserved `num` has this value.
    Num(u32),
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: &'static str,
    get_shmem_config: Option<u32>,
    suspend: Suspend,
    /// Protocol feature bits.
    get_vring_base_inflight: Option<u32>,
    gpa_addresses: Option<u32>,
    shmem_map: Option<u32>,
    get_vring_base_skip_drain: Option<u32>,
}

static TABLE: [Row; 4] = [
    // As the vhost-user document of QEMU 11.1 has it.
    Row {
        name: "qemu-11.1",
        get_shmem_config: Some(44),
        suspend: Suspend::Feature,
        get_vring_base_inflight: Some(20),
        gpa_addresses: Some(21),
        shmem_map: Some(22),
        get_vring_base_skip_drain: None,
    },
    // QEMU after 11.1: plain GET_VRING_BASE drains again.
    Row {
        name: "skip-drain-45",
        get_shmem_config: Some(44),
        suspend: Suspend::Message(45),
        get_vring_base_inflight: Some(20),
        gpa_addresses: Some(21),
        shmem_map: Some(22),
        get_vring_base_skip_drain: Some(23),
    },
    // yc-libvhost-server#48 gives the message the code that QEMU 11.1 has for
    // GET_SHMEM_CONFIG. Its text names the feature without a number; the bit
    // here is the one QEMU settled on.
    Row {
        name: "skip-drain-44",
        get_shmem_config: None,
        suspend: Suspend::Message(44),
        get_vring_base_inflight: Some(20),
        gpa_addresses: None,
        shmem_map: None,
        get_vring_base_skip_drain: Some(23),
    },
    // yc-libvhost-server before that.
    Row {
        name: "num-1",
        get_shmem_config: None,
        suspend: Suspend::Num(1),
        get_vring_base_inflight: Some(20),
        gpa_addresses: None,
        shmem_map: None,
        get_vring_base_skip_drain: None,
    },
];

/// Which of the contested numbers a connection uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dialect(&'static Row);

impl Dialect {
    /// QEMU 11.1: message 44 is GET_SHMEM_CONFIG, features 20 to 22, no message 45.
    pub const QEMU_11_1: Self = Self(&TABLE[0]);
    /// After QEMU 11.1: GET_VRING_BASE_SKIP_DRAIN is message 45, its feature bit 23.
    pub const SKIP_DRAIN_45: Self = Self(&TABLE[1]);
    /// GET_VRING_BASE_SKIP_DRAIN is message 44; there is no GET_SHMEM_CONFIG.
    pub const SKIP_DRAIN_44: Self = Self(&TABLE[2]);
    /// GET_VRING_BASE with `num` 1 suspends; with 0 it drains.
    pub const NUM_1: Self = Self(&TABLE[3]);
    /// Every dialect.
    pub const ALL: [Self; 4] =
        [Self::QEMU_11_1, Self::SKIP_DRAIN_45, Self::SKIP_DRAIN_44, Self::NUM_1];

    /// The dialect of this name, as printed by [`name`](Self::name).
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.name() == name)
    }

    /// A name for command lines and traces.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Mask of the protocol feature GET_VRING_BASE_INFLIGHT, 0 if there is none.
    pub fn get_vring_base_inflight(self) -> u64 {
        mask(self.0.get_vring_base_inflight)
    }

    /// Mask of the protocol feature GPA_ADDRESSES, 0 if there is none.
    pub fn gpa_addresses(self) -> u64 {
        mask(self.0.gpa_addresses)
    }

    /// Mask of the protocol feature SHMEM_MAP, 0 if there is none.
    pub fn shmem_map(self) -> u64 {
        mask(self.0.shmem_map)
    }

    /// Mask of the protocol feature GET_VRING_BASE_SKIP_DRAIN, 0 if there is none.
    pub fn get_vring_base_skip_drain(self) -> u64 {
        mask(self.0.get_vring_base_skip_drain)
    }

    /// Whether a plain GET_VRING_BASE may suspend requests once
    /// GET_VRING_BASE_INFLIGHT is negotiated. Where this is false the
    /// front-end says so each time: it arrives as
    /// [`GetVringBaseSkipDrain`](super::FrontendRequest::GetVringBaseSkipDrain).
    pub fn plain_get_vring_base_may_suspend(self) -> bool {
        self.0.suspend == Suspend::Feature
    }

    /// The contested protocol features with their masks; 0 for one that the
    /// dialect does not have.
    pub(super) fn protocol_features(self) -> [(u64, &'static str); 4] {
        [
            (self.get_vring_base_inflight(), "GET_VRING_BASE_INFLIGHT"),
            (self.gpa_addresses(), "GPA_ADDRESSES"),
            (self.shmem_map(), "SHMEM_MAP"),
            (self.get_vring_base_skip_drain(), "GET_VRING_BASE_SKIP_DRAIN"),
        ]
    }

    /// What a front-end request with this code on the wire is in
    /// [`codes`](super::codes).
    pub(super) fn own_code(self, code: u32) -> Option<u32> {
        if self.0.get_shmem_config == Some(code) {
            Some(GET_SHMEM_CONFIG)
        } else if self.0.suspend == Suspend::Message(code) {
            Some(GET_VRING_BASE_SKIP_DRAIN)
        } else {
            (code < GET_SHMEM_CONFIG).then_some(code)
        }
    }

    /// The code on the wire of a front-end request of [`codes`](super::codes).
    pub(super) fn wire_code(self, code: u32) -> Option<u32> {
        match (code, self.0.suspend) {
            (GET_SHMEM_CONFIG, _) => self.0.get_shmem_config,
            (GET_VRING_BASE_SKIP_DRAIN, Suspend::Message(wire)) => Some(wire),
            (GET_VRING_BASE_SKIP_DRAIN, Suspend::Num(_)) => Some(GET_VRING_BASE),
            (GET_VRING_BASE_SKIP_DRAIN, Suspend::Feature) => None,
            _ => Some(code),
        }
    }

    /// The `num` that turns a GET_VRING_BASE into a GET_VRING_BASE_SKIP_DRAIN.
    pub(super) fn suspending_num(self) -> Option<u32> {
        match self.0.suspend {
            Suspend::Num(num) => Some(num),
            Suspend::Feature | Suspend::Message(_) => None,
        }
    }
}

fn mask(bit: Option<u32>) -> u64 {
    bit.map_or(0, |bit| 1 << bit)
}

impl Default for Dialect {
    fn default() -> Self {
        Self::QEMU_11_1
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialect({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialect_is_found_by_its_own_name_and_no_other() {
        for dialect in Dialect::ALL {
            assert_eq!(Dialect::by_name(dialect.name()), Some(dialect));
        }
        assert_eq!(Dialect::by_name("qemu"), None);
        assert_eq!(Dialect::default().name(), "qemu-11.1");
    }

    #[test]
    fn dialect_codes_lead_there_and_back() {
        for dialect in Dialect::ALL {
            for code in 1..=GET_VRING_BASE_SKIP_DRAIN {
                let Some(wire) = dialect.wire_code(code) else {
                    continue;
                };
                let by_num = dialect.suspending_num().is_some();
                let back =
                    if code == GET_VRING_BASE_SKIP_DRAIN && by_num { GET_VRING_BASE } else { code };
                assert_eq!(dialect.own_code(wire), Some(back), "{dialect} {code}");
            }
        }
    }

    #[test]
    fn dialect_gives_message_44_to_one_name_and_45_to_at_most_one() {
        let meaning = |dialect: Dialect| (dialect.own_code(44), dialect.own_code(45));
        assert_eq!(meaning(Dialect::QEMU_11_1), (Some(44), None));
        assert_eq!(meaning(Dialect::SKIP_DRAIN_45), (Some(44), Some(45)));
        assert_eq!(meaning(Dialect::SKIP_DRAIN_44), (Some(45), None));
        assert_eq!(meaning(Dialect::NUM_1), (None, None));
    }

    #[test]
    fn dialect_features_are_20_to_23() {
        let bits = |dialect: Dialect| dialect.protocol_features().iter().map(|f| f.0).sum::<u64>();
        assert_eq!(bits(Dialect::QEMU_11_1), 0x0070_0000_u64);
        assert_eq!(bits(Dialect::SKIP_DRAIN_45), 0x00f0_0000_u64);
        assert_eq!(bits(Dialect::SKIP_DRAIN_44), 0x0090_0000_u64);
        assert_eq!(bits(Dialect::NUM_1), 0x0010_0000_u64);
    }

    #[test]
    fn dialect_lets_plain_get_vring_base_suspend_only_without_another_way_to_ask() {
        for dialect in Dialect::ALL {
            let asks = dialect.wire_code(GET_VRING_BASE_SKIP_DRAIN).is_some();
            assert_eq!(dialect.plain_get_vring_base_may_suspend(), !asks);
        }
    }
}
