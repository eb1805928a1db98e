//! One request on its way through an engine.

use super::zoned::Ticket;
use crate::adapter::memory::{Epoch, Iov};
use crate::blk::{ByteRange, DiskError, DiskOp, ReqId};
use crate::time::Instant;

/// Pieces that one system call takes (IOV_MAX).
const WINDOW: usize = 1024;
/// Storage for pieces that is kept for the next request. A guest may send
/// longer chains; what they need is given back.
const KEPT: usize = 1024;

/// A request with everything an engine needs, owned by whoever works on it and
/// recycled when it is done.
#[derive(Debug)]
pub struct Op {
    /// Identity in the back-end.
    pub id: ReqId,
    /// What to do.
    pub kind: DiskOp,
    /// Host memory, in order; [`Op::advance`] consumes it.
    iov: Vec<Iov>,
    first: usize,
    /// Place of the next byte on the disk.
    pub offset: u64,
    /// Bytes asked for, and moved so far.
    pub len: u64,
    /// See `len`.
    pub moved: u64,
    /// Parts of the disk that are left to do, last one first.
    ranges: Vec<ByteRange>,
    /// Where it stands in its zone.
    pub ticket: Option<Ticket>,
    /// Where it came from, for zones: vring, head, counter in the region, and
    /// whether a predecessor had it.
    pub vring: u16,
    /// See `vring`.
    pub head: u16,
    /// See `vring`.
    pub order: Option<u64>,
    /// See `vring`.
    pub again: bool,
    /// The table that `iov` points into.
    pub epoch: Option<Epoch>,
    /// How it ended.
    pub result: Result<(), DiskError>,
    /// Not to be reported before; only the throttle looks.
    pub due: Instant,
    /// The data is where it belongs, only the wait for stable storage is left.
    pub syncing: bool,
    /// Somebody wants it to be over: no further step is begun.
    pub cancelled: bool,
}

impl Op {
    /// A place for requests to come.
    pub fn empty() -> Box<Self> {
        Box::new(Self {
            id: ReqId { slot: 0, epoch: 0 },
            kind: DiskOp::Flush,
            iov: Vec::new(),
            first: 0,
            offset: 0,
            len: 0,
            moved: 0,
            ranges: Vec::new(),
            ticket: None,
            vring: 0,
            head: 0,
            order: None,
            again: false,
            epoch: None,
            result: Ok(()),
            due: Instant::ZERO,
            syncing: false,
            cancelled: false,
        })
    }

    /// Start over with another request; its memory is added by
    /// [`Op::iov_mut`], followed by [`Op::measure`].
    pub fn reset(&mut self, id: ReqId, kind: DiskOp) {
        self.id = id;
        self.kind = kind;
        self.iov.clear();
        self.iov.shrink_to(KEPT);
        self.ranges.clear();
        self.ticket = None;
        self.first = 0;
        self.moved = 0;
        self.epoch = None;
        self.result = Ok(());
        self.syncing = false;
        self.cancelled = false;
        self.offset = match kind {
            DiskOp::Read { offset }
            | DiskOp::Write { offset, .. }
            | DiskOp::ZoneAppend { offset, .. }
            | DiskOp::ZoneReport { offset }
            | DiskOp::Zone { offset, .. } => offset,
            DiskOp::Flush
            | DiskOp::Discard { .. }
            | DiskOp::WriteZeroes { .. }
            | DiskOp::SecureErase => 0,
        };
        self.len = 0;
    }

    /// The parts of the disk it is about, in order.
    pub fn set_ranges(&mut self, ranges: impl DoubleEndedIterator<Item = ByteRange>) {
        self.ranges.clear();
        self.ranges.extend(ranges.rev());
    }

    /// The part of the disk that is to be done next.
    pub fn range(&self) -> Option<ByteRange> {
        self.ranges.last().copied()
    }

    /// The part that was next is done.
    pub fn range_done(&mut self) {
        self.ranges.pop();
    }

    /// Keep only so many bytes of the pieces; returns the pieces behind them.
    pub fn split(&mut self, mut keep: u64) -> Vec<Iov> {
        let mut rest = Vec::new();
        for Iov(piece) in &mut self.iov {
            let take = (piece.iov_len as u64).min(keep) as usize;
            if take < piece.iov_len {
                let iov_base = piece.iov_base.wrapping_byte_add(take);
                rest.push(Iov(libc::iovec { iov_base, iov_len: piece.iov_len - take }));
            }
            piece.iov_len = take;
            keep -= take as u64;
        }
        self.iov.retain(|Iov(piece)| piece.iov_len > 0);
        rest
    }

    /// Where to put the pieces of a read or write.
    pub fn iov_mut(&mut self) -> &mut Vec<Iov> {
        &mut self.iov
    }

    /// Take the length from the pieces.
    pub fn measure(&mut self) {
        self.len = self.iov.iter().map(|Iov(v)| v.iov_len as u64).sum();
    }

    /// The pieces that are left, as many as one call takes.
    pub fn window(&self) -> &[Iov] {
        let left = &self.iov[self.first..];
        &left[..left.len().min(WINDOW)]
    }

    /// All pieces that are left.
    pub fn left(&self) -> &[Iov] {
        &self.iov[self.first..]
    }

    /// `bytes` more are done. A call may move less than it was asked for and
    /// stop in the middle of a piece.
    pub fn advance(&mut self, bytes: u64) {
        self.moved += bytes;
        self.offset += bytes;
        let mut bytes = bytes as usize;
        while let Some(Iov(piece)) = self.iov.get_mut(self.first) {
            if bytes < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(bytes);
                piece.iov_len -= bytes;
                return;
            }
            bytes -= piece.iov_len;
            self.first += 1;
        }
    }

    /// Whether every byte was moved.
    pub fn is_moved(&self) -> bool {
        self.moved == self.len
    }

    /// The error for a call that moved nothing.
    pub fn short(&self) -> DiskError {
        DiskError::Short { expected: self.len, moved: self.moved }
    }

    /// Must be on stable storage before it is reported.
    pub fn durable(&self) -> bool {
        match self.kind {
            DiskOp::Read { .. } | DiskOp::ZoneReport { .. } | DiskOp::Zone { .. } => false,
            DiskOp::Flush | DiskOp::SecureErase => true,
            DiskOp::Write { durable, .. }
            | DiskOp::ZoneAppend { durable, .. }
            | DiskOp::Discard { durable }
            | DiskOp::WriteZeroes { durable } => durable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(lens: &[usize]) -> Box<Op> {
        let mut op = Op::empty();
        op.reset(ReqId { slot: 0, epoch: 0 }, DiskOp::Read { offset: 512 });
        let mut at = 0x1000;
        for len in lens {
            op.iov_mut()
                .push(Iov(libc::iovec { iov_base: at as *mut libc::c_void, iov_len: *len }));
            at += len + 0x1000;
        }
        op.measure();
        op
    }

    fn left(op: &Op) -> Vec<(usize, usize)> {
        op.left().iter().map(|Iov(v)| (v.iov_base as usize, v.iov_len)).collect()
    }

    #[test]
    fn op_advances_within_and_across_pieces() {
        let mut op = op(&[10, 20, 30]);
        op.advance(4);
        assert_eq!(left(&op)[0], (0x1004, 6));
        op.advance(6);
        assert_eq!(left(&op), [(0x200a, 20), (0x301e, 30)]);
        op.advance(21);
        assert_eq!(left(&op), [(0x301f, 29)]);
        assert_eq!((op.offset, op.moved, op.is_moved()), (543, 31, false));
        op.advance(29);
        assert!(op.is_moved() && op.window().is_empty());
    }

    #[test]
    fn op_window_never_exceeds_what_a_call_takes() {
        let mut op = op(&[1; 3000]);
        assert_eq!(op.window().len(), WINDOW);
        op.advance(2500);
        assert_eq!(op.window().len(), 500);
    }
}
