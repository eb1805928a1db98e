//! Whatever comes in: no panic, no hang, nothing past the bounds, no handle
//! lost or given out twice. The checks are in `Reader`.

use crate::seeds;
use crate::stream::{Reader, Way, Write, read_as_wanted, read_in_pieces};
use midflight::wire::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

pub const RANDOM_CASES: u32 = 3000;
pub const HEADER_CASES: u32 = 3000;
pub const MUTATION_CASES: u32 = 2000;

fn dialect() -> impl Strategy<Value = Dialect> {
    select(Dialect::ALL.to_vec())
}

fn chunk(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Write> {
    (bytes, handles()).prop_map(|(bytes, handles)| Write { bytes, handles })
}

fn handles() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        6 => Just(Vec::new()),
        3 => vec(any::<u32>(), 1..3),
        1 => vec(any::<u32>(), 0..70),
    ]
}

/// Push these as they are, asking for messages or not after each.
fn feed<D: Way>(dialect: Dialect, chunks: &[Write], asks: &[bool]) {
    let mut reader = Reader::<D>::new(dialect);
    for (chunk, ask) in chunks.iter().zip(asks.iter().cycle()) {
        reader.push(chunk.clone());
        if *ask {
            reader.drain();
        }
    }
    reader.finish();
}

fn feed_all_ways(dialect: Dialect, chunks: &[Write], asks: &[bool]) {
    feed::<FrontendRequests>(dialect, chunks, asks);
    feed::<FrontendReplies>(dialect, chunks, asks);
    feed::<BackendRequests>(dialect, chunks, asks);
    feed::<BackendReplies>(dialect, chunks, asks);
}

/// A message with a header that gets past the first checks more often than
/// not, and a payload that is as long as announced, or nearly.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![8 => 0..50u32, 1 => any::<u32>()];
    let flags = prop_oneof![8 => select(vec![0x1u32, 0x9, 0x5, 0xd]), 1 => any::<u32>()];
    let usual = vec![0u32, 8, 12, 16, 24, 32, 40, 69, 72, 264, 268];
    let size = prop_oneof![
        8 => select(usual),
        1 => 0..300u32,
        1 => select(vec![2056, 4095, 4096, 4097, u32::MAX]),
    ];
    let words = select(vec![0u32, 1, 2, 8, 9, 57, 0x100, 0x1ff, 0x200, u32::MAX]);
    let payload = vec(prop_oneof![words, any::<u32>()], 0..16);
    let off = prop_oneof![8 => Just(0isize), 1 => Just(-1), 1 => Just(1)];
    (code, flags, size, payload, off).prop_map(|(code, flags, size, words, off)| {
        let mut bytes: Vec<u8> = [code, flags, size].map(u32::to_ne_bytes).concat();
        let mut payload: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let length = (size.min(4200) as usize).saturating_add_signed(off);
        payload.resize(length, 0);
        bytes.extend(payload);
        bytes
    })
}

/// One thing that happens to a stream on its way.
#[derive(Clone, Debug)]
enum Mutation {
    FlipBit(Index, u8),
    SetWord(Index, u32),
    Remove(Index, u8),
    Insert(Index, Vec<u8>),
    Truncate(Index),
    Swap(Index, Index),
    Repeat(Index),
    Drop(Index),
    AddHandles(Index, Vec<u32>),
    LoseHandles(Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    use Mutation as M;
    let i = any::<Index>;
    let words = select(vec![0u32, 1, 2, 5, 9, 13, 44, 45, 4096, 4097, 1 << 31, u32::MAX]);
    prop_oneof![
        (i(), 0..8u8).prop_map(|(at, bit)| M::FlipBit(at, bit)),
        (i(), words).prop_map(|(at, word)| M::SetWord(at, word)),
        (i(), 1..20u8).prop_map(|(at, count)| M::Remove(at, count)),
        (i(), vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| M::Insert(at, bytes)),
        i().prop_map(M::Truncate),
        (i(), i()).prop_map(|(a, b)| M::Swap(a, b)),
        i().prop_map(M::Repeat),
        i().prop_map(M::Drop),
        (i(), vec(any::<u32>(), 1..10)).prop_map(|(at, handles)| M::AddHandles(at, handles)),
        i().prop_map(M::LoseHandles),
    ]
}

impl Mutation {
    fn apply(&self, writes: &mut Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        match self {
            Self::FlipBit(at, bit) => {
                if let Some(byte) = byte(writes, at) {
                    *byte ^= 1 << bit;
                }
            }
            Self::SetWord(at, word) => {
                let write = at.get_mut(writes);
                let words = write.bytes.len() / 4;
                if words > 0 {
                    let place = at.index(words) * 4;
                    write.bytes[place..place + 4].copy_from_slice(&word.to_ne_bytes());
                }
            }
            Self::Remove(at, count) => {
                let bytes = &mut at.get_mut(writes).bytes;
                let start = at.index(bytes.len() + 1);
                let end = bytes.len().min(start + usize::from(*count));
                bytes.drain(start..end);
            }
            Self::Insert(at, new) => {
                let bytes = &mut at.get_mut(writes).bytes;
                let place = at.index(bytes.len() + 1);
                bytes.splice(place..place, new.iter().copied());
            }
            Self::Truncate(at) => {
                let keep = at.index(writes.len());
                writes.truncate(keep + 1);
                let bytes = &mut writes[keep].bytes;
                let length = at.index(bytes.len() + 1);
                bytes.truncate(length);
            }
            Self::Swap(a, b) => {
                let (a, b) = (a.index(writes.len()), b.index(writes.len()));
                writes.swap(a, b);
            }
            Self::Repeat(at) => {
                let place = at.index(writes.len());
                writes.insert(place, writes[place].clone());
            }
            Self::Drop(at) => {
                writes.remove(at.index(writes.len()));
            }
            Self::AddHandles(at, handles) => at.get_mut(writes).handles.extend(handles),
            Self::LoseHandles(at) => at.get_mut(writes).handles.clear(),
        }
    }
}

fn byte<'a>(writes: &'a mut [Write], at: &Index) -> Option<&'a mut u8> {
    let bytes = &mut at.get_mut(writes).bytes;
    if bytes.is_empty() {
        return None;
    }
    Some(at.get_mut(bytes))
}

/// A stretch of a real conversation with things gone wrong, and sizes of reads.
fn mutated(seed: Vec<Write>) -> impl Strategy<Value = (Vec<Write>, Vec<usize>)> {
    let length = seed.len();
    (0..length, 1..=length, vec(mutation(), 1..6), vec(1..400usize, 1..4)).prop_map(
        move |(start, count, mutations, sizes)| {
            let end = length.min(start + count);
            let mut writes = seed[start..end].to_vec();
            for mutation in mutations {
                mutation.apply(&mut writes);
            }
            (writes, sizes)
        },
    )
}

/// Read as a socket would deliver it, both ways, and as a driver would that
/// joins nothing.
fn read<D: Way>(dialect: Dialect, writes: &[Write], sizes: &[usize]) {
    read_as_wanted::<D>(dialect, writes);
    read_in_pieces::<D>(dialect, writes, sizes);
    feed::<D>(dialect, writes, &[true]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(RANDOM_CASES))]
    #[test]
    fn wire_random_bytes_are_survived(
        dialect in dialect(),
        chunks in vec(chunk(vec(any::<u8>(), 0..200)), 0..8),
        asks in vec(any::<bool>(), 1..4),
    ) {
        feed_all_ways(dialect, &chunks, &asks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(HEADER_CASES))]
    #[test]
    fn wire_random_payloads_behind_plausible_headers_are_survived(
        dialect in dialect(),
        chunks in vec(chunk(plausible()), 1..5),
        asks in vec(any::<bool>(), 1..4),
    ) {
        feed_all_ways(dialect, &chunks, &asks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(MUTATION_CASES))]
    #[test]
    fn wire_mutated_front_end_requests_are_survived(
        dialect in dialect(),
        (writes, sizes) in mutated(seeds::requests()),
    ) {
        read::<FrontendRequests>(dialect, &writes, &sizes);
    }

    #[test]
    fn wire_mutated_front_end_replies_are_survived(
        dialect in dialect(),
        (writes, sizes) in mutated(seeds::replies()),
    ) {
        read::<FrontendReplies>(dialect, &writes, &sizes);
    }

    #[test]
    fn wire_mutated_back_end_messages_are_survived(
        dialect in dialect(),
        (requests, sizes) in mutated(seeds::backend_requests()),
        (replies, _) in mutated(seeds::backend_replies()),
    ) {
        read::<BackendRequests>(dialect, &requests, &sizes);
        read::<BackendReplies>(dialect, &replies, &sizes);
    }
}

#[test]
fn wire_every_truncation_of_a_real_conversation_is_survived() {
    let dialect = Dialect::QEMU_11_1;
    let writes = seeds::requests();
    for count in 0..writes.len() {
        for length in 0..writes[count].bytes.len() {
            let mut writes = writes[..=count].to_vec();
            writes[count].bytes.truncate(length);
            let said = read_as_wanted::<FrontendRequests>(dialect, &writes);
            assert_eq!(said.len(), count);
            assert!(said.iter().all(Result::is_ok));
        }
    }
}
