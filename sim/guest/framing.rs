//! How a guest frames what it asks for.

use crate::choices::{Ratio, Stream};
use midflight::driver::Framing;

/// Draw where to cut. `direct`: without an indirect table, at most so many
/// descriptors are sure to fit.
pub fn framing(s: &mut Stream, indirect: bool) -> Framing {
    let mut framing = *s.pick(
        "framing",
        &[
            Framing::CLASSIC,
            Framing::CLASSIC,
            Framing::JOINED,
            Framing::SPLIT_HEADER,
            Framing::SHREDDED,
            Framing { join: true, data_piece: 1000, ..Framing::CLASSIC },
        ],
    );
    if indirect && s.chance("indirect", Ratio::new(1, 2)) {
        framing.indirect_after = Some(0);
    }
    framing
}

/// Draw how data is spread: sizes of its pieces and of the holes after each.
pub fn spread(s: &mut Stream, data_len: u64) -> Vec<(u64, u64)> {
    if data_len == 0 {
        return Vec::new();
    }
    let pieces = s.range("pieces", 1, data_len.min(3));
    let mut left = data_len;
    let mut out = Vec::new();
    for i in (0..pieces).rev() {
        let len = if i == 0 { left } else { s.range("piece", 1, left - i) };
        let hole = *s.pick("hole", &[0, 0, 1, 13]);
        out.push((len, hole));
        left -= len;
    }
    out
}
