//! How a request is cut into descriptors.

use super::chain::Buffer;

/// A contiguous piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Guest-physical address of the first byte.
    pub addr: u64,
    /// Bytes, not 0.
    pub len: u32,
}

/// How a request is cut into descriptors. Devices may assume nothing about it.
///
/// A request is two byte strings: what the device reads (header, out data) and
/// what it writes (in data, status). Framing says where to cut each of them.
// spec: virtio 1.2, "Message Framing"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Put pieces that are neighbours in memory into one descriptor: a header
    /// right before the data, a status byte right behind it.
    pub join: bool,
    /// Longest piece of the header, in bytes; 0: no limit.
    pub header_piece: u32,
    /// Longest piece of data (and of what is joined with it), in bytes; 0: no limit.
    pub data_piece: u32,
    /// Use an indirect table for all but this many leading descriptors.
    pub indirect_after: Option<u16>,
}

impl Framing {
    /// Header, data and status each in descriptors of their own.
    pub const CLASSIC: Self =
        Self { join: false, header_piece: 0, data_piece: 0, indirect_after: None };

    /// The same, in an indirect table: what Linux does.
    pub const INDIRECT: Self = Self { indirect_after: Some(0), ..Self::CLASSIC };

    /// Neighbours in memory share a descriptor.
    pub const JOINED: Self = Self { join: true, ..Self::CLASSIC };

    /// The header over several descriptors: 7, 7 and 2 bytes.
    pub const SPLIT_HEADER: Self = Self { header_piece: 7, ..Self::CLASSIC };

    /// Every byte of the header alone, data in odd pieces that cross sectors.
    pub const SHREDDED: Self =
        Self { join: false, header_piece: 1, data_piece: 333, indirect_after: None };

    /// Append the descriptors of one request to `out`.
    pub(super) fn cut(
        &self,
        header: Span,
        data: &[Span],
        data_writable: bool,
        status: Span,
        out: &mut Vec<Buffer>,
    ) {
        // The first buffer of each byte string may not join the one before it.
        self.push(out, header, self.header_piece, false);
        for (i, &span) in data.iter().enumerate() {
            if i == 0 && data_writable {
                self.push_apart(out, span, self.data_piece, true);
            } else {
                self.push(out, span, self.data_piece, data_writable);
            }
        }
        self.push(out, status, self.data_piece, true);
    }

    fn push(&self, out: &mut Vec<Buffer>, span: Span, limit: u32, writable: bool) {
        let mut span = span;
        if self.join
            && let Some(last) = out.last_mut()
            && last.writable == writable
            && last.addr.checked_add(u64::from(last.len)) == Some(span.addr)
        {
            let room = limit_of(limit).saturating_sub(last.len);
            let moved = room.min(span.len).min(u32::MAX - last.len);
            last.len += moved;
            span.addr += u64::from(moved);
            span.len -= moved;
        }
        self.push_apart(out, span, limit, writable);
    }

    fn push_apart(&self, out: &mut Vec<Buffer>, span: Span, limit: u32, writable: bool) {
        let Span { mut addr, mut len } = span;
        while len > 0 {
            let piece = len.min(limit_of(limit));
            out.push(Buffer { addr, len: piece, writable });
            addr = addr.wrapping_add(u64::from(piece));
            len -= piece;
        }
    }
}

fn limit_of(piece: u32) -> u32 {
    if piece == 0 { u32::MAX } else { piece }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Span = Span { addr: 100, len: 16 };

    fn cut(framing: Framing, data: &[Span], writable: bool, status: u64) -> Vec<(u64, u32, bool)> {
        let mut out = Vec::new();
        let status = Span { addr: status, len: 1 };
        framing.cut(HEADER, data, writable, status, &mut out);
        out.iter().map(|b| (b.addr, b.len, b.writable)).collect()
    }

    #[test]
    fn framing_classic_keeps_header_data_and_status_apart() {
        let data = [Span { addr: 116, len: 512 }];
        assert_eq!(
            cut(Framing::CLASSIC, &data, true, 628),
            [(100, 16, false), (116, 512, true), (628, 1, true)]
        );
    }

    #[test]
    fn framing_joined_shares_descriptors_on_the_same_side_only() {
        let data = [Span { addr: 116, len: 512 }];
        assert_eq!(cut(Framing::JOINED, &data, false, 628), [(100, 528, false), (628, 1, true)]);
        assert_eq!(cut(Framing::JOINED, &data, true, 628), [(100, 16, false), (116, 513, true)]);
        // Neighbours in the wrong order are no neighbours.
        assert_eq!(cut(Framing::JOINED, &data, true, 115).len(), 3);
    }

    #[test]
    fn framing_pieces_cover_every_byte_once_in_order() {
        let data = [Span { addr: 116, len: 512 }, Span { addr: 4096, len: 512 }];
        for join in [false, true] {
            for header_piece in [0, 1, 7, 16] {
                for data_piece in [0, 1, 333, 512] {
                    for writable in [false, true] {
                        let framing =
                            Framing { join, header_piece, data_piece, indirect_after: None };
                        let bytes = |side| {
                            cut(framing, &data, writable, 4608)
                                .into_iter()
                                .filter(move |b| b.2 == side)
                                .flat_map(|(addr, len, _)| addr..addr + u64::from(len))
                                .collect::<Vec<_>>()
                        };
                        let payload = (116..628).chain(4096..4608);
                        let (read, write): (Vec<u64>, Vec<u64>) = if writable {
                            ((100..116).collect(), payload.chain(4608..4609).collect())
                        } else {
                            ((100..116).chain(payload).collect(), vec![4608])
                        };
                        assert_eq!(bytes(false), read, "{framing:?}");
                        assert_eq!(bytes(true), write, "{framing:?}");
                    }
                }
            }
        }
    }
}
