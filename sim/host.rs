//! Sentences for events that carry a number.

/// What the front-end reports.
pub fn front_sentence(code: u64, a: u64, b: u64) -> String {
    match code {
        1 => "runs".into(),
        2 => "stopped".into(),
        other => format!("event {other}: {a} {b}"),
    }
}

/// What the back-end reports beside its vrings.
pub fn back_sentence(code: u64, a: u64, b: u64) -> String {
    match code {
        1 => format!("negotiated: features {a:#x}, protocol features {b:#x}"),
        2 => format!("vring {a}: base {b} contradicts the inflight region, which is believed"),
        3 => format!("vring {a} head {b}: disk failed"),
        4 => format!("late completion of req {a}.{b} dropped"),
        5 => format!("vring {a}: waits for {b} requests"),
        other => format!("event {other}: {a} {b}"),
    }
}
