//! From bytes and handles to messages.

use super::header::{HEADER_LEN, Header};
use super::{Dialect, Envelope, HandleCount, PushError, PushReason, Refused, WireError};
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
/// There are four, one for each way over the two sockets of a connection:
/// [`FrontendRequests`](super::FrontendRequests),
/// [`FrontendReplies`](super::FrontendReplies),
/// [`BackendRequests`](super::BackendRequests) and
/// [`BackendReplies`](super::BackendReplies).
pub trait Direction<H>: Rules<H> {}

impl<H, D: Rules<H>> Direction<H> for D {}

/// The rules of a direction. In a private module: the four directions are all
/// there will be.
pub trait Rules<H> {
    /// What comes out.
    type Message;
    /// The reply flag must be set, or must not be.
    const REPLIES: bool;
    /// The message's name, if the code exists and `size` fits it.
    fn admit(code: u32, size: u32, dialect: Dialect) -> Result<&'static str, WireError>;
    /// Make a message of a payload whose size was admitted. Takes handles only
    /// if it succeeds; those it leaves then are surplus.
    fn parse(
        code: u32,
        payload: &[u8],
        handles: &mut Vec<H>,
        dialect: Dialect,
    ) -> Result<Self::Message, WireError>;
}

/// Makes messages of a byte stream that comes in pieces.
///
/// Any split of the stream yields the same messages. At most [`MAX_BUFFERED`]
/// bytes and [`MAX_BUFFERED_HANDLES`] handles are held, and the announced size
/// of a payload is checked before room is made for it.
///
/// # Handles
///
/// Handles pushed with a chunk belong to the message whose first byte lies in
/// that chunk, the last one if several start there. On Linux a `recvmsg` may
/// join writes that carried no descriptors, then comes the write that carried
/// some, and there it stops. That rule goes wrong only if the peer puts two
/// messages into one write, and the descriptors belong to the first. A driver
/// that never reads more than [`wanted`](Self::wanted) bytes is not exposed to
/// it. If no message starts in the chunk its handles came late, and
/// the message under way is refused.
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
        while let Some(chunk) = self.chunks.pop_front_if(|chunk| chunk.end <= end) {
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
            return None;
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

/// The one handle of a message that needs one. To be called last: what it takes
/// would not come back with a later error.
pub(super) fn one_handle<H>(message: &'static str, handles: &mut Vec<H>) -> Result<H, WireError> {
    let expected = HandleCount::Exactly(1);
    match (handles.len(), handles.pop()) {
        (1, Some(handle)) => Ok(handle),
        (got, popped) => {
            handles.extend(popped);
            Err(wrong_count(message, expected, got))
        }
    }
}

/// The handle of a message that may have one. To be called last.
pub(super) fn optional_handle<H>(
    message: &'static str,
    handles: &mut Vec<H>,
) -> Result<Option<H>, WireError> {
    if handles.len() > 1 {
        let expected = HandleCount::AtMost(1);
        return Err(wrong_count(message, expected, handles.len()));
    }
    Ok(handles.pop())
}

/// There must be none (left).
pub(super) fn no_handles<H>(message: &'static str, handles: &[H]) -> Result<(), WireError> {
    match handles.len() {
        0 => Ok(()),
        got => Err(wrong_count(message, HandleCount::Exactly(0), got)),
    }
}

pub(super) fn wrong_count(message: &'static str, expected: HandleCount, got: usize) -> WireError {
    WireError::Handles { message, expected, got: got as u32 }
}
