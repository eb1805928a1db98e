//! One direction of the socket: ordered bytes in pieces, descriptors riding on
//! the first byte of their piece.

use super::objects::ObjectId;
use crate::choices::{Ratio, Stream};
use bytes::Bytes;
use std::collections::VecDeque;

/// Bytes that arrive together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The bytes.
    pub bytes: Bytes,
    /// What rides on the first of them.
    pub objects: Vec<ObjectId>,
}

/// Cut what is sent at drawn places.
pub fn cut(
    s: &mut Stream,
    split: Ratio,
    mut bytes: Bytes,
    mut objects: Vec<ObjectId>,
) -> impl Iterator<Item = Piece> + use<> {
    let mut pieces = Vec::new();
    while bytes.len() > 1 && s.chance("split", split) {
        let at = s.range("cut", 1, bytes.len() as u64 - 1) as usize;
        let objects = std::mem::take(&mut objects);
        pieces.push(Piece { bytes: bytes.split_to(at), objects });
    }
    pieces.into_iter().chain([Piece { bytes, objects }])
}

/// What has arrived at one end and was not read yet.
#[derive(Debug, Default)]
pub struct Inbox {
    pieces: VecDeque<Piece>,
    closing: bool,
}

impl Inbox {
    /// A piece arrives.
    pub fn push(&mut self, piece: Piece) {
        self.pieces.push_back(piece);
    }

    /// Nothing more will arrive.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether everything was read and nothing more will arrive.
    pub fn is_closed(&self) -> bool {
        self.closing && self.pieces.is_empty()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// One read of at most `limit` bytes. A read joins what carried no
    /// descriptors with what comes after it, and ends with the first piece that
    /// carries some, as it does on a real socket.
    pub fn read(&mut self, limit: usize) -> Option<Piece> {
        let first = self.pieces.front_mut().filter(|_| limit > 0)?;
        let mut objects = std::mem::take(&mut first.objects);
        // Mostly one piece has it all, and nothing is copied.
        let bytes = first.bytes.split_to(limit.min(first.bytes.len()));
        if first.bytes.is_empty() {
            self.pieces.pop_front();
        }
        if bytes.len() == limit || !objects.is_empty() || self.pieces.is_empty() {
            return Some(Piece { bytes, objects });
        }
        let mut got = bytes.to_vec();
        while got.len() < limit
            && objects.is_empty()
            && let Some(piece) = self.pieces.front_mut()
        {
            objects = std::mem::take(&mut piece.objects);
            got.extend_from_slice(&piece.bytes.split_to(piece.bytes.len().min(limit - got.len())));
            if piece.bytes.is_empty() {
                self.pieces.pop_front();
            }
        }
        Some(Piece { bytes: got.into(), objects })
    }
}

/// Keeps pieces of one direction in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire {
    last: u64,
}

impl Wire {
    /// Whether everything that was sent has arrived.
    pub fn is_past(&self, now: u64) -> bool {
        self.last < now
    }

    /// Nothing arrives before this moment.
    pub fn stall(&mut self, until: u64) {
        self.last = self.last.max(until);
    }

    /// When something sent now arrives.
    pub fn arrival(&mut self, now: u64, latency: u64) -> u64 {
        self.last = self.last.max(now + latency);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Component;

    #[test]
    fn link_descriptors_come_with_a_read_that_has_their_byte_however_it_is_cut() {
        for seed in 0..50 {
            let mut s = Stream::new(seed, Component::Link);
            let mut inbox = Inbox::default();
            let mut expected = Vec::new();
            for message in 0..6u8 {
                let bytes = Bytes::from(vec![message; 20]);
                let objects =
                    if message % 2 == 0 { vec![] } else { vec![ObjectId(message.into())] };
                if message % 2 == 1 {
                    expected.push((20 * usize::from(message), ObjectId(message.into())));
                }
                for piece in cut(&mut s, Ratio::new(1, 2), bytes, objects) {
                    inbox.push(piece);
                }
            }
            let (mut at, mut seen) = (0, Vec::new());
            while !inbox.is_empty() {
                let limit = s.range("limit", 1, 30) as usize;
                let got = inbox.read(limit).unwrap();
                assert!(got.bytes.len() <= limit && !got.bytes.is_empty());
                let end = at + got.bytes.len();
                seen.extend(got.objects.iter().map(|o| (at..end, *o)));
                at = end;
            }
            assert_eq!(at, 120);
            assert_eq!(seen.len(), expected.len());
            for ((read, got), (byte, sent)) in seen.iter().zip(&expected) {
                assert!(read.contains(byte) && got == sent, "{read:?} {got:?} {byte} {sent:?}");
            }
        }
    }
}
