//! What each oracle holds the core to, in the words of the documents.

/// The promise, and where it is given.
pub fn promise(oracle: &str) -> (&'static str, &'static str) {
    match oracle {
        "ledger" => (
            "every request is used exactly once, with the status and length it has earned",
            "virtio 1.2, \"The Virtqueue Used Ring\"",
        ),
        "sectors" => (
            "a read returns what some legal order of the writes allows",
            "virtio 1.2, \"Block Device\", \"Device Operation\"",
        ),
        "durability" => (
            "what was completed before a flush is durable when the flush completes",
            "virtio 1.2, \"Block Device\", \"Device Operation\"",
        ),
        "rings" => (
            "the used index moves by what was made available, and never more than a ring",
            "virtio 1.2, \"Split Virtqueues\"",
        ),
        "notification" => (
            "who asked to be woken is woken, and who asked not to be looks by itself",
            "virtio 1.2, \"Used Buffer Notification Suppression\"",
        ),
        "base" => (
            "a vring goes on where the used index and what is in flight say",
            "vhost-user, \"VHOST_USER_GET_VRING_BASE\"",
        ),
        "memory" => (
            "a device writes only to buffers it has been given and not given back",
            "virtio 1.2, \"The Virtqueue Used Ring\"",
        ),
        "dirty" => ("every page the back-end writes is in the log", "vhost-user, \"Migration\""),
        "region" => (
            "at every moment the region tells a successor exactly what was fetched and not used",
            "vhost-user, \"Inflight I/O tracking\"",
        ),
        "order" => (
            "a successor resubmits in the order of fetching, before anything new",
            "vhost-user, \"Inflight I/O tracking\"",
        ),
        "in-order" => (
            "requests are used in the order they were made available, where that is agreed on",
            "virtio 1.2, \"In-order use of descriptors\"",
        ),
        "ownership" | "late-write" => (
            "when a stop is answered no request of the vring is at work any more",
            "vhost-user, \"Ring states\"",
        ),
        "quiet" => ("a vring whose stop was answered is left alone", "vhost-user, \"Ring states\""),
        "liveness" => (
            "every accepted request is completed once trouble ends",
            "virtio 1.2, \"Device Requirements: Device Initialization\"",
        ),
        "session" | "contract" => {
            ("two peers that keep the rules understand each other", "vhost-user, \"Communication\"")
        }
        "onlooker" => (
            "whoever looks at a region is told what its bytes say, and refused what they contradict",
            "vhost-user, \"Inflight I/O tracking\"",
        ),
        "vows" => (
            "a back-end keeps what it promises whoever drives it: ids, store, grace, pace, reports",
            "midflight, DESIGN.md, \"The contract between core and driver\"",
        ),
        "stream" => ("what a source hands over, a destination can read", "QEMU, \"Migration\""),
        "injection" => (
            "the simulated disk fails what a fault strikes, and nothing else",
            "midflight, DESIGN.md",
        ),
        "panic" => ("nothing that happens makes the core panic", "midflight, DESIGN.md"),
        "driver" => {
            ("what the device does makes sense to a driver", "virtio 1.2, \"Split Virtqueues\"")
        }
        _ => ("what this oracle looks after", "midflight, DESIGN.md"),
    }
}
