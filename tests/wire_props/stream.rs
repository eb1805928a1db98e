//! The socket between the two ends, and a reader that checks what a decoder
//! must always do.

use bytes::Bytes;
use midflight::wire::*;
use std::collections::VecDeque;
use std::fmt::Debug;

/// What one `sendmsg` carries.
#[derive(Clone, Debug, Default)]
pub struct Write {
    pub bytes: Vec<u8>,
    pub handles: Vec<u32>,
}

/// A way of a connection, with the encoder that writes what its decoder reads.
pub trait Way: Direction<u32, Message: Debug + Clone + PartialEq> {
    fn encode(envelope: &Envelope<Self::Message>, dialect: Dialect) -> (Bytes, Vec<u32>);

    fn write(envelope: &Envelope<Self::Message>, dialect: Dialect) -> Write {
        let (bytes, handles) = Self::encode(envelope, dialect);
        Write { bytes: bytes.to_vec(), handles }
    }
}

impl Way for FrontendRequests {
    fn encode(envelope: &Envelope<FrontendRequest<u32>>, dialect: Dialect) -> (Bytes, Vec<u32>) {
        encode_request(envelope, &dialect).unwrap()
    }
}

impl Way for FrontendReplies {
    fn encode(envelope: &Envelope<FrontendReply<u32>>, _: Dialect) -> (Bytes, Vec<u32>) {
        encode_reply(&envelope.message)
    }
}

impl Way for BackendRequests {
    fn encode(envelope: &Envelope<BackendRequest<u32>>, _: Dialect) -> (Bytes, Vec<u32>) {
        encode_backend_request(envelope)
    }
}

impl Way for BackendReplies {
    fn encode(envelope: &Envelope<BackendReply<u32>>, _: Dialect) -> (Bytes, Vec<u32>) {
        encode_backend_reply(&envelope.message)
    }
}

/// A Linux stream socket: a read joins writes without descriptors, delivers
/// those of the first write that has some with the first byte of it, and goes
/// no further than that write.
pub struct Socket {
    writes: VecDeque<Write>,
}

impl Socket {
    pub fn new(writes: impl IntoIterator<Item = Write>) -> Self {
        Self { writes: writes.into_iter().filter(|w| !w.bytes.is_empty()).collect() }
    }

    pub fn read(&mut self, max: usize) -> Write {
        let mut read = Write::default();
        while read.bytes.len() < max && read.handles.is_empty() {
            let Some(write) = self.writes.front_mut() else {
                break;
            };
            let take = write.bytes.len().min(max - read.bytes.len());
            read.bytes.extend(write.bytes.drain(..take));
            read.handles = std::mem::take(&mut write.handles);
            if write.bytes.is_empty() {
                self.writes.pop_front();
            }
        }
        read
    }
}

/// What a decoder said about a stream, in order.
pub type Said<D> = Vec<Result<Envelope<<D as Same>::Message>, Refused<u32>>>;

/// Names the message type of a direction outside of generic code.
pub trait Same {
    type Message;
}

impl<D: Way> Same for D {
    type Message = D::Message;
}

/// A decoder with an accountant: every call checks the bounds, and the end
/// checks that each handle came out exactly once.
pub struct Reader<D: Way> {
    decoder: Decoder<D, u32>,
    dialect: Dialect,
    given: Vec<u32>,
    returned: Vec<u32>,
    dead: bool,
    pub said: Said<D>,
}

impl<D: Way> Reader<D> {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            decoder: Decoder::new(dialect),
            dialect,
            given: Vec::new(),
            returned: Vec::new(),
            dead: false,
            said: Vec::new(),
        }
    }

    pub fn wanted(&self) -> usize {
        self.decoder.wanted()
    }

    /// Push without asking for messages.
    pub fn push(&mut self, chunk: Write) {
        let before = self.decoder.buffered();
        let length = chunk.bytes.len();
        self.given.extend(&chunk.handles);
        let sent = chunk.handles.clone();
        // What went in and has not come out yet is all that it holds.
        let held = self.given.len() - self.returned.len();
        let room = !self.dead
            && (length > 0 || sent.is_empty())
            && before + length <= MAX_BUFFERED
            && held <= MAX_BUFFERED_HANDLES;
        match self.decoder.push(&chunk.bytes, chunk.handles) {
            Ok(()) => {
                assert!(room, "{held} handles");
                assert_eq!(self.decoder.buffered(), before + length);
            }
            Err(refused) => {
                assert!(!room, "{}", refused.reason);
                assert_eq!(refused.handles, sent, "all handles come back");
                assert_eq!(self.decoder.buffered(), before);
                self.returned.extend(refused.handles);
            }
        }
        assert!(self.decoder.buffered() <= MAX_BUFFERED);
    }

    /// Ask until there is no more; a decoder that would never stop is caught.
    pub fn drain(&mut self) {
        let most = self.decoder.buffered() / HEADER_LEN + 1;
        for _ in 0..=most {
            let before = self.decoder.buffered();
            let Some(said) = self.decoder.next() else {
                let idle = self.decoder.wanted();
                assert!(idle > 0 || self.dead, "wants bytes or has ended");
                assert!(idle <= MAX_PAYLOAD);
                return;
            };
            assert!(!self.dead, "nothing comes after a fatal error");
            assert!(self.decoder.buffered() <= before - HEADER_LEN);
            match &said {
                Ok(envelope) => self.returned.extend(self.reencode(envelope)),
                Err(refused) => {
                    assert_eq!(refused.fatal, refused.error.is_fatal());
                    assert!(!refused.error.to_string().is_empty());
                    self.returned.extend(&refused.handles);
                    self.dead = refused.fatal;
                    let all_back = !self.dead || self.decoder.drain_handles().is_empty();
                    assert!(all_back, "a fatal error returns all handles");
                }
            }
            self.said.push(said);
        }
        panic!("more messages than headers fit");
    }

    /// Whatever was accepted can be sent again and means the same then. Returns
    /// the handles in it.
    fn reencode(&self, envelope: &Envelope<D::Message>) -> Vec<u32> {
        let Write { bytes, handles } = D::write(envelope, self.dialect);
        let mut decoder = Decoder::<D, u32>::new(self.dialect);
        decoder.push(&bytes, handles.clone()).unwrap();
        let again = decoder.next().unwrap().unwrap();
        assert_eq!(&again, envelope);
        handles
    }

    /// Close, balance the accounts, and tell what was said.
    pub fn finish(mut self) -> Said<D> {
        self.drain();
        self.returned.extend(self.decoder.drain_handles());
        assert!(self.decoder.drain_handles().is_empty());
        assert!(self.decoder.next().is_none());
        assert_eq!(self.decoder.buffered(), 0);
        self.given.sort_unstable();
        self.returned.sort_unstable();
        assert_eq!(self.given, self.returned, "each handle once");
        self.said
    }
}

/// Read the whole stream, `sizes` bytes at a time, in turn.
pub fn read_in_pieces<D: Way>(dialect: Dialect, writes: &[Write], sizes: &[usize]) -> Said<D> {
    let mut socket = Socket::new(writes.iter().cloned());
    let mut reader = Reader::<D>::new(dialect);
    for &size in sizes.iter().cycle() {
        let chunk = socket.read(size.max(1));
        if chunk.bytes.is_empty() {
            break;
        }
        reader.push(chunk);
        reader.drain();
    }
    reader.finish()
}

/// Read the whole stream, never more than the decoder wants.
pub fn read_as_wanted<D: Way>(dialect: Dialect, writes: &[Write]) -> Said<D> {
    let mut socket = Socket::new(writes.iter().cloned());
    let mut reader = Reader::<D>::new(dialect);
    while reader.wanted() > 0 {
        let chunk = socket.read(reader.wanted());
        if chunk.bytes.is_empty() {
            break;
        }
        reader.push(chunk);
        reader.drain();
    }
    reader.finish()
}

/// The writes of a sender that cuts its messages: the handles go with the
/// first piece.
pub fn cut(writes: &[Write], at: &[usize]) -> Vec<Write> {
    let mut cuts = at.to_vec();
    cuts.sort_unstable();
    let mut pieces = Vec::new();
    let mut place = 0;
    for write in writes {
        let end = place + write.bytes.len();
        let mut handles = write.handles.clone();
        let mut start = place;
        for cut in cuts.iter().copied().chain([end]) {
            if cut > start && cut <= end {
                pieces.push(Write {
                    bytes: write.bytes[start - place..cut - place].to_vec(),
                    handles: std::mem::take(&mut handles),
                });
                start = cut;
            }
        }
        place = end;
    }
    pieces
}
