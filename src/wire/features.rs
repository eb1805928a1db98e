//! Feature bits, as masks.

use super::Dialect;
use core::fmt;

macro_rules! masks {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        $($(#[$doc])* pub const $name: u64 = 1 << $bit;)*
        const NAMES: &[(u64, &str)] = &[$(($name, stringify!($name))),*];
    };
}

/// Protocol features: what the two ends of a connection can say to each other.
///
/// The contested bits 20 to 23 are not here; a [`Dialect`] has them.
// spec: vhost-user, "Protocol features"
pub mod protocol {
    use super::{Dialect, Names};

    masks! {
        /// GET_QUEUE_NUM.
        MQ = 0;
        /// The dirty log is shared memory.
        LOG_SHMFD = 1;
        /// SEND_RARP; network only.
        RARP = 2;
        /// Any request may ask for a status.
        REPLY_ACK = 3;
        /// NET_SET_MTU; network only.
        MTU = 4;
        /// SET_BACKEND_REQ_FD: the back-end can send requests.
        BACKEND_REQ = 5;
        /// SET_VRING_ENDIAN; legacy devices only.
        CROSS_ENDIAN = 6;
        /// Crypto sessions; crypto devices only.
        CRYPTO_SESSION = 7;
        /// Postcopy migration.
        PAGEFAULT = 8;
        /// GET_CONFIG and SET_CONFIG.
        CONFIG = 9;
        /// Back-end requests may carry descriptors.
        BACKEND_SEND_FD = 10;
        /// VRING_HOST_NOTIFIER_MSG.
        HOST_NOTIFIER = 11;
        /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
        INFLIGHT_SHMFD = 12;
        /// RESET_DEVICE.
        RESET_DEVICE = 13;
        /// VRING_KICK, VRING_CALL and VRING_ERR instead of eventfds.
        INBAND_NOTIFICATIONS = 14;
        /// ADD_MEM_REG and REM_MEM_REG.
        CONFIGURE_MEM_SLOTS = 15;
        /// SET_STATUS and GET_STATUS.
        STATUS = 16;
        /// Memory regions carry Xen's fields; midflight does not speak it.
        XEN_MMAP = 17;
        /// GET_SHARED_OBJECT and its kin.
        SHARED_OBJECT = 18;
        /// SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
        DEVICE_STATE = 19;
    }

    /// The names of these bits, for people.
    pub fn names(bits: u64, dialect: &Dialect) -> Names {
        Names { bits, fixed: NAMES, contested: dialect.protocol_features() }
    }
}

/// Feature bits of a block device and its vrings, and the two that vhost-user
/// puts among them.
// spec: virtio 1.2, "Feature bits"
pub mod virtio {
    use super::Names;
    use virtio_bindings::{virtio_blk::*, virtio_config::*, virtio_ring::*};

    masks! {
        /// Config space names the largest segment.
        BLK_SIZE_MAX = VIRTIO_BLK_F_SIZE_MAX;
        /// Config space names the most segments of a request.
        BLK_SEG_MAX = VIRTIO_BLK_F_SEG_MAX;
        /// Config space has a disk geometry.
        BLK_GEOMETRY = VIRTIO_BLK_F_GEOMETRY;
        /// The disk can't be written.
        BLK_RO = VIRTIO_BLK_F_RO;
        /// Config space names the logical block size.
        BLK_BLK_SIZE = VIRTIO_BLK_F_BLK_SIZE;
        /// Flush requests.
        BLK_FLUSH = VIRTIO_BLK_F_FLUSH;
        /// Config space has alignment hints.
        BLK_TOPOLOGY = VIRTIO_BLK_F_TOPOLOGY;
        /// The guest may switch the write cache.
        BLK_CONFIG_WCE = VIRTIO_BLK_F_CONFIG_WCE;
        /// More than one queue.
        BLK_MQ = VIRTIO_BLK_F_MQ;
        /// Discard requests.
        BLK_DISCARD = VIRTIO_BLK_F_DISCARD;
        /// Write zeroes requests.
        BLK_WRITE_ZEROES = VIRTIO_BLK_F_WRITE_ZEROES;
        /// How worn the disk is can be asked for.
        BLK_LIFETIME = 15;
        /// Secure erase requests.
        BLK_SECURE_ERASE = VIRTIO_BLK_F_SECURE_ERASE;
        /// The disk has zones.
        BLK_ZONED = VIRTIO_BLK_F_ZONED;
        /// Writes to guest memory are logged.
        // spec: vhost-user, "Migration"
        LOG_ALL = 26;
        /// Descriptors may point to descriptor tables.
        INDIRECT_DESC = VIRTIO_RING_F_INDIRECT_DESC;
        /// Notifications are suppressed by index.
        EVENT_IDX = VIRTIO_RING_F_EVENT_IDX;
        /// Protocol features can be negotiated.
        // spec: vhost-user, "Communication"
        PROTOCOL_FEATURES = 30;
        /// Virtio 1.0 or later.
        VERSION_1 = VIRTIO_F_VERSION_1;
        /// Addresses in descriptors go through an IOMMU.
        ACCESS_PLATFORM = VIRTIO_F_ACCESS_PLATFORM;
        /// Packed vrings.
        RING_PACKED = VIRTIO_F_RING_PACKED;
        /// Buffers are used in the order they became available.
        IN_ORDER = VIRTIO_F_IN_ORDER;
        /// One queue can be reset while the others go on.
        RING_RESET = VIRTIO_F_RING_RESET;
    }

    /// The names of these bits, for people.
    pub fn names(bits: u64) -> Names {
        Names { bits, fixed: NAMES, contested: [(0, ""); 4] }
    }
}

/// Prints feature bits by name, lowest first: `MQ|REPLY_ACK|bit 40`.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    bits: u64,
    fixed: &'static [(u64, &'static str)],
    contested: [(u64, &'static str); 4],
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bits == 0 {
            return f.write_str("none");
        }
        let mut separator = "";
        for bit in (0..u64::BITS).filter(|bit| self.bits >> bit & 1 == 1) {
            f.write_str(separator)?;
            separator = "|";
            let mut known = self.fixed.iter().chain(&self.contested);
            match known.find(|(mask, _)| *mask == 1 << bit) {
                Some((_, name)) => f.write_str(name)?,
                None => write!(f, "bit {bit}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_print_their_names_lowest_first() {
        let qemu = &Dialect::QEMU_11_1;
        let bits = protocol::MQ | protocol::INFLIGHT_SHMFD | 1 << 20 | 1 << 23;
        assert_eq!(
            protocol::names(bits, qemu).to_string(),
            "MQ|INFLIGHT_SHMFD|GET_VRING_BASE_INFLIGHT|bit 23"
        );
        assert_eq!(protocol::names(0, qemu).to_string(), "none");
        assert_eq!(
            protocol::names(1 << 23, &Dialect::SKIP_DRAIN_45).to_string(),
            "GET_VRING_BASE_SKIP_DRAIN"
        );
        assert_eq!(
            virtio::names(virtio::VERSION_1 | virtio::BLK_FLUSH | 1).to_string(),
            "bit 0|BLK_FLUSH|VERSION_1"
        );
    }

    #[test]
    fn features_have_the_bits_seen_from_real_peers() {
        // QEMU's storage daemon offers exactly these.
        let storage_daemon = protocol::MQ
            | protocol::LOG_SHMFD
            | protocol::REPLY_ACK
            | protocol::BACKEND_REQ
            | protocol::PAGEFAULT
            | protocol::CONFIG
            | protocol::BACKEND_SEND_FD
            | protocol::HOST_NOTIFIER
            | protocol::CONFIGURE_MEM_SLOTS;
        assert_eq!(storage_daemon, 0x8f2b);
        // SeaBIOS accepts exactly these.
        let bios = virtio::BLK_SEG_MAX
            | virtio::BLK_BLK_SIZE
            | virtio::PROTOCOL_FEATURES
            | virtio::VERSION_1;
        assert_eq!(bios, 0x1_4000_0044);
    }
}
