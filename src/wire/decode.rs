//! From bytes and handles to messages.

use super::handles::no_handles;
use super::header::{HEADER_LEN, Header};
use super::{Dialect, Envelope, PushError, PushReason, Refused, WireError};
use crate::bugs::{self, Bug};
use crate::marks::{self, Mark};
use bytes::{Buf, BytesMut};
use core::marker::PhantomData;
use std::collections::VecDeque;

/// Most bytes that a payload may have. The largest that means anything is half
/// as long (GET_SHMEM_CONFIG's answer, 2056).
pub const MAX_PAYLOAD: usize = 4096;
/// Most bytes that a decoder holds: two of the largest messages, so that a
/// driver that reads large pieces can add one to the piece of another.
pub const MAX_BUFFERED: usize = 2 * (HEADER_LEN + MAX_PAYLOAD);
/// Most descriptors that a message may have: as many as a memory table has regions.
pub const MAX_HANDLES: usize = 8;
/// Most handles that a decoder holds. More than one message may have, so that
/// a message with too many is refused as such and the connection can live.
pub const MAX_BUFFERED_HANDLES: usize = 8 * MAX_HANDLES;

/// Who sends, and whether these are requests or replies.
///
/// There are four, one for each way over the two sockets of a connection, and
/// there will be no other: [`FrontendRequests`](super::FrontendRequests),
/// [`FrontendReplies`](super::FrontendReplies),
/// [`BackendRequests`](super::BackendRequests) and
/// [`BackendReplies`](super::BackendReplies).
pub trait Direction<H>: Sealed {
    /// What comes out of a decoder.
    type Message;

    /// The reply flag must be set, or must not be.
    #[doc(hidden)]
    const REPLIES: bool;

    /// The message's name, if the code exists and `size` fits it.
    #[doc(hidden)]
    fn admit(code: u32, size: u32, dialect: Dialect) -> Result<&'static str, WireError>;

    /// Make a message of a payload whose size was admitted. Takes handles only
    /// if it succeeds; those it leaves then are surplus.
    #[doc(hidden)]
    fn parse(
        code: u32,
        payload: &[u8],
        handles: &mut Vec<H>,
        dialect: Dialect,
    ) -> Result<Self::Message, WireError>;
}

/// Keeps others from adding directions.
pub trait Sealed {}

/// Makes messages of a byte stream that comes in pieces.
///
/// Any split of the stream yields the same messages. At most [`MAX_BUFFERED`]
/// bytes and [`MAX_BUFFERED_HANDLES`] handles are held, and the announced size
/// of a payload is checked before room is made for it. The buffer behind is
/// never larger than twice that.
///
/// # Handles
///
/// Handles pushed with a chunk belong to the message whose first byte lies in
/// that chunk, to the last one if several start there: on Linux a `recvmsg`
/// joins writes that carried no descriptors with the write that carried some,
/// and stops right after that one. The rule fails only if a peer puts several
/// messages into one write, whose descriptors are then those of the first; a
/// driver that never reads more than [`wanted`](Self::wanted) bytes gets that
/// right. If no message starts in the chunk, its handles came late, and the
/// message under way is refused.
///
/// Every handle that was accepted comes out exactly once: in a message, in a
/// [`Refused`], or by [`drain_handles`](Self::drain_handles).
// spec: vhost-user, "Message specification"
#[derive(Debug)]
pub struct Decoder<D, H> {
    dialect: Dialect,
    bytes: BytesMut,
    /// Place in the stream of the first byte of `bytes`.
    start: u64,
    /// Handles not yet given out, in the order they came.
    chunks: VecDeque<Chunk<H>>,
    /// Handles in `chunks`.
    held: usize,
    ended: bool,
    direction: PhantomData<fn() -> D>,
}

/// Handles, and the bytes they came with as places in the stream.
#[derive(Debug)]
struct Chunk<H> {
    start: u64,
    end: u64,
    handles: Vec<H>,
}

impl<D, H> Decoder<D, H> {
    /// A decoder at the start of a stream.
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            bytes: BytesMut::new(),
            start: 0,
            chunks: VecDeque::new(),
            held: 0,
            ended: false,
            direction: PhantomData,
        }
    }

    /// Add the next piece of the stream, and the handles that came with it.
    ///
    /// Takes all or nothing: an error gives the handles back and leaves the
    /// decoder as it was.
    pub fn push(&mut self, bytes: &[u8], handles: Vec<H>) -> Result<(), PushError<H>> {
        if let Err(reason) = self.room_for(bytes.len(), handles.len()) {
            return Err(PushError { reason, handles });
        }
        if !handles.is_empty() {
            let start = self.start + self.bytes.len() as u64;
            self.held += handles.len();
            self.chunks.push_back(Chunk { start, end: start + bytes.len() as u64, handles });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn room_for(&self, bytes: usize, handles: usize) -> Result<(), PushReason> {
        if self.ended {
            return Err(PushReason::Ended);
        }
        if bytes == 0 && handles > 0 {
            return Err(PushReason::NoBytes);
        }
        let buffered = self.bytes.len().saturating_add(bytes);
        if buffered > MAX_BUFFERED {
            return Err(PushReason::Bytes { max: MAX_BUFFERED as u32, would_be: buffered as u64 });
        }
        let held = self.held.saturating_add(handles);
        if held > MAX_BUFFERED_HANDLES {
            return Err(PushReason::Handles {
                max: MAX_BUFFERED_HANDLES as u32,
                would_be: held as u64,
            });
        }
        Ok(())
    }

    /// Bytes that are missing of a header, or else of the message it announces;
    /// never more than [`MAX_PAYLOAD`].
    ///
    /// 0 when [`next`](Self::next) has something to say first, or after the end.
    pub fn wanted(&self) -> usize {
        if self.ended {
            return 0;
        }
        let Some(header) = Header::peek(&self.bytes) else {
            return HEADER_LEN - self.bytes.len();
        };
        match header.size as usize {
            size if size > MAX_PAYLOAD => 0,
            _ if bugs::on(Bug::HandlesToFirstMessage) => MAX_BUFFERED - self.bytes.len(),
            size => (HEADER_LEN + size).saturating_sub(self.bytes.len()),
        }
    }

    /// Bytes held; at most [`MAX_BUFFERED`].
    pub fn buffered(&self) -> usize {
        self.bytes.len()
    }

    /// End the stream and give out every handle still held. Nothing more is
    /// taken or told.
    pub fn drain_handles(&mut self) -> Vec<H> {
        self.ended = true;
        self.bytes = BytesMut::new();
        self.held = 0;
        let chunks = core::mem::take(&mut self.chunks);
        chunks.into_iter().flat_map(|chunk| chunk.handles).collect()
    }

    /// The handles of the message from `start` to before `end`: those that came
    /// with its first byte, and those that came late.
    fn take_handles(&mut self, end: u64) -> (Vec<H>, Vec<H>) {
        let (mut own, mut late) = (Vec::new(), Vec::new());
        // A chunk that reaches beyond the end holds the first byte of the next
        // message, so it is not this one's.
        while let Some(chunk) = self
            .chunks
            .pop_front_if(|chunk| chunk.end <= end || bugs::on(Bug::HandlesToFirstMessage))
        {
            self.held -= chunk.handles.len();
            if chunk.start <= self.start {
                own = chunk.handles;
            } else {
                late.extend(chunk.handles);
            }
        }
        (own, late)
    }
}

impl<H, D: Direction<H>> Decoder<D, H> {
    /// The next message, or why there is none in the place of one.
    ///
    /// `None` when more bytes are needed, and forever after a fatal error.
    #[allow(clippy::should_implement_trait)] // An iterator's `None` is an end; this one is not.
    pub fn next(&mut self) -> Option<Result<Envelope<D::Message>, Refused<H>>> {
        marks::hit_when(Mark::MessageInPieces, || (1..HEADER_LEN).contains(&self.bytes.len()));
        let header = Header::peek(&self.bytes)?;
        let Header { code, size, .. } = header;
        let need_reply = header.need_reply() && !D::REPLIES;
        if let Err(error) = header.check_flags(D::REPLIES) {
            return Some(Err(self.end(error, None, false)));
        }
        if size as usize > MAX_PAYLOAD {
            let error = WireError::Oversized { code, max: MAX_PAYLOAD as u32, got: size };
            return Some(Err(self.end(error, Some(code), need_reply)));
        }
        let admitted = match D::admit(code, size, self.dialect) {
            // Said before the payload is there: it may never come.
            Err(error) if error.is_fatal() => {
                return Some(Err(self.end(error, Some(code), need_reply)));
            }
            admitted => admitted,
        };
        let length = HEADER_LEN + size as usize;
        if self.bytes.len() < length {
            if !bugs::on_when(Bug::PartialMessage, || self.bytes.len() > HEADER_LEN) {
                marks::hit_when(Mark::MessageInPieces, || self.bytes.len() > HEADER_LEN);
                return None;
            }
            self.bytes.resize(length, 0);
        }
        let (mut handles, late) = self.take_handles(self.start + length as u64);
        let payload = &self.bytes[HEADER_LEN..length];
        let outcome = admitted.and_then(|message| {
            if !late.is_empty() {
                let got = late.len() as u32;
                return Err(WireError::LateHandles { message, got });
            }
            let parsed = D::parse(code, payload, &mut handles, self.dialect)?;
            no_handles(message, &handles)?;
            Ok(parsed)
        });
        self.bytes.advance(length);
        self.start += length as u64;
        Some(match outcome {
            Ok(message) => Ok(Envelope { message, need_reply }),
            Err(error) => {
                let fatal = error.is_fatal();
                handles.extend(late);
                if fatal {
                    handles.extend(self.drain_handles());
                }
                Err(Refused { error, code: Some(code), need_reply, handles, fatal })
            }
        })
    }

    /// Refuse a message and all that may come after it.
    fn end(&mut self, error: WireError, code: Option<u32>, need_reply: bool) -> Refused<H> {
        Refused { error, code, need_reply, handles: self.drain_handles(), fatal: true }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FrontendRequest, FrontendRequests, VringFile, encode_request};
    use super::*;

    type Requests = Decoder<FrontendRequests, u32>;

    fn decoder() -> Requests {
        Decoder::new(Dialect::QEMU_11_1)
    }

    fn bytes(message: FrontendRequest<u32>) -> Vec<u8> {
        let envelope = Envelope { message, need_reply: false };
        let (bytes, _) = encode_request(&envelope, &Dialect::QEMU_11_1).unwrap();
        bytes.to_vec()
    }

    fn kick(index: u8, handle: u32) -> FrontendRequest<u32> {
        FrontendRequest::SetVringKick(VringFile { index, handle: Some(handle) })
    }

    fn next(decoder: &mut Requests) -> FrontendRequest<u32> {
        decoder.next().unwrap().unwrap().message
    }

    #[test]
    fn decode_gives_handles_to_the_last_message_that_starts_in_their_chunk() {
        let mut decoder = decoder();
        let head = [bytes(FrontendRequest::SetOwner), bytes(kick(0, 7))].concat();
        decoder.push(&head[..20], vec![7]).unwrap();
        assert_eq!(next(&mut decoder), FrontendRequest::SetOwner);
        assert!(decoder.next().is_none());
        decoder.push(&head[20..], vec![]).unwrap();
        assert_eq!(next(&mut decoder), kick(0, 7));
    }

    #[test]
    fn decode_gives_each_chunks_handles_to_its_own_message() {
        let mut decoder = decoder();
        decoder.push(&bytes(kick(0, 7)), vec![7]).unwrap();
        decoder.push(&bytes(kick(1, 8)), vec![8]).unwrap();
        assert_eq!(next(&mut decoder), kick(0, 7));
        assert_eq!(next(&mut decoder), kick(1, 8));
    }

    #[test]
    fn decode_refuses_a_message_whose_handle_came_after_its_first_byte() {
        let mut decoder = decoder();
        let kick = bytes(kick(0, 7));
        decoder.push(&kick[..1], vec![]).unwrap();
        decoder.push(&kick[1..], vec![7]).unwrap();
        let refused = decoder.next().unwrap().unwrap_err();
        let expected = WireError::LateHandles { message: "SET_VRING_KICK", got: 1 };
        assert_eq!((refused.error, refused.handles), (expected, vec![7]));
        assert!(!refused.fatal);
        decoder.push(&bytes(FrontendRequest::SetOwner), vec![]).unwrap();
        assert_eq!(next(&mut decoder), FrontendRequest::SetOwner);
    }

    #[test]
    fn decode_wants_a_header_then_its_payload_then_to_be_asked() {
        let mut decoder = decoder();
        let kick = bytes(kick(0, 7));
        assert_eq!(decoder.wanted(), 12);
        decoder.push(&kick[..5], vec![7]).unwrap();
        assert_eq!(decoder.wanted(), 7);
        decoder.push(&kick[5..12], vec![]).unwrap();
        assert_eq!(decoder.wanted(), 8);
        assert!(decoder.next().is_none());
        decoder.push(&kick[12..], vec![]).unwrap();
        assert_eq!(decoder.wanted(), 0);
        assert!(decoder.next().is_some());
        assert_eq!(decoder.wanted(), 12);
    }

    #[test]
    fn decode_never_allocates_more_than_twice_its_bound() {
        let mut decoder = decoder();
        let session = bytes(FrontendRequest::CreateCryptoSession(vec![1; 3001].into()));
        let mut told = 0;
        for chunk in session.repeat(200).chunks(4099) {
            decoder.push(chunk, vec![]).unwrap();
            while let Some(message) = decoder.next() {
                message.unwrap();
                told += 1;
            }
            assert!(decoder.bytes.capacity() <= 2 * MAX_BUFFERED);
        }
        assert_eq!(told, 200);
    }

    #[test]
    fn decode_wants_nothing_of_a_payload_that_is_too_long() {
        let mut decoder = decoder();
        let header = [26, 1, MAX_PAYLOAD as u32 + 1].map(u32::to_ne_bytes);
        decoder.push(&header.concat(), vec![]).unwrap();
        assert_eq!(decoder.wanted(), 0);
        assert!(decoder.next().unwrap().unwrap_err().fatal);
    }

    #[test]
    fn decode_says_a_size_is_wrong_before_the_payload_comes() {
        let mut decoder = decoder();
        let mut kick = bytes(kick(0, 7));
        kick[8] = 9;
        decoder.push(&kick[..12], vec![7]).unwrap();
        let refused = decoder.next().unwrap().unwrap_err();
        assert!(refused.fatal);
        assert_eq!(refused.handles, [7]);
    }

    #[test]
    fn decode_says_nothing_and_takes_nothing_after_a_fatal_error() {
        let mut decoder = decoder();
        decoder.push(&bytes(kick(0, 7)), vec![7]).unwrap();
        decoder.push(&[0; 12], vec![8]).unwrap();
        decoder.push(&bytes(kick(1, 9)), vec![9]).unwrap();
        assert!(decoder.next().unwrap().is_ok());
        let refused = decoder.next().unwrap().unwrap_err();
        assert_eq!(refused.handles, [8, 9]);
        assert!(decoder.next().is_none());
        assert_eq!((decoder.wanted(), decoder.buffered()), (0, 0));
        let error = decoder.push(&bytes(kick(2, 10)), vec![10]).unwrap_err();
        assert_eq!((error.reason, error.handles), (PushReason::Ended, vec![10]));
        assert!(decoder.drain_handles().is_empty());
    }

    #[test]
    fn decode_gives_back_what_it_holds_when_the_connection_closes() {
        let mut decoder = decoder();
        decoder.push(&bytes(kick(0, 7))[..19], vec![7]).unwrap();
        assert!(decoder.next().is_none());
        assert_eq!(decoder.drain_handles(), [7]);
        assert_eq!(decoder.wanted(), 0);
    }

    #[test]
    fn decode_takes_no_more_than_the_bound_and_all_or_nothing() {
        let mut decoder = decoder();
        decoder.push(&[1; MAX_BUFFERED - 1], vec![]).unwrap();
        let error = decoder.push(&[1; 2], vec![7]).unwrap_err();
        assert_eq!(error.to_string(), "8217 bytes would be buffered, expected at most 8216");
        assert_eq!(error.handles, [7]);
        assert_eq!(decoder.buffered(), MAX_BUFFERED - 1);
        let error = decoder.push(&[1], vec![7; 65]).unwrap_err();
        assert_eq!(error.to_string(), "65 descriptors would be held, expected at most 64");
        assert_eq!(error.handles.len(), 65);
        decoder.push(&[1], vec![7; 64]).unwrap();
        let error = decoder.push(&[], vec![7]).unwrap_err();
        assert_eq!(error.to_string(), "descriptors came without a byte");
        assert_eq!(decoder.drain_handles().len(), 64);
    }
}
