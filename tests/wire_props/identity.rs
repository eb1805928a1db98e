//! Decoding what was encoded gives the same message.

use crate::strategies::{Kinds, backend_replies, backend_requests, replies, requests};
use crate::stream::{Way, Write, cut, read_as_wanted, read_in_pieces};
use midflight::wire::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::TestRunner;
use std::collections::BTreeSet;

/// Cases for each kind of message.
const CASES: u32 = 32;
/// Cases of whole streams in each direction.
const STREAM_CASES: u32 = 200;

fn every_kind<D: Way>(dialect: Dialect, kinds: Kinds<D::Message>, replies: bool) {
    for kind in kinds {
        let mut runner = TestRunner::new(ProptestConfig::with_cases(CASES));
        let case = (kind, any::<bool>());
        let checked = runner.run(&case, |(message, need_reply)| {
            let envelope = Envelope {
                message,
                // A reply can't ask for one.
                need_reply: need_reply && !replies,
            };
            let write = D::write(&envelope, dialect);
            let flags = u32::from_ne_bytes(write.bytes[4..8].try_into().unwrap());
            let expected = match (replies, envelope.need_reply) {
                (true, _) => 0x5,
                (false, true) => 0x9,
                (false, false) => 0x1,
            };
            prop_assert_eq!(flags, expected);
            let said = read_as_wanted::<D>(dialect, &[write]);
            prop_assert_eq!(said, vec![Ok(envelope)]);
            Ok(())
        });
        if let Err(failure) = checked {
            panic!("{failure}");
        }
    }
}

fn every_stream<D: Way>(dialect: Dialect, kinds: Kinds<D::Message>, replies: bool) {
    let any_kind = Union::new(kinds);
    let case =
        (vec((any_kind, any::<bool>()), 1..6), vec(0..700usize, 0..6), vec(1..200usize, 1..4));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(STREAM_CASES));
    let checked = runner.run(&case, |(messages, cuts, sizes)| {
        let envelopes: Vec<_> = messages
            .into_iter()
            .map(|(message, need_reply)| Envelope { message, need_reply: need_reply && !replies })
            .collect();
        let writes: Vec<Write> = envelopes.iter().map(|e| D::write(e, dialect)).collect();
        let expected: Vec<_> = envelopes.into_iter().map(Ok).collect();
        for writes in [cut(&writes, &cuts), writes] {
            prop_assert_eq!(&read_as_wanted::<D>(dialect, &writes), &expected);
            prop_assert_eq!(&read_in_pieces::<D>(dialect, &writes, &sizes), &expected);
            prop_assert_eq!(&read_in_pieces::<D>(dialect, &writes, &[4096]), &expected);
        }
        Ok(())
    });
    if let Err(failure) = checked {
        panic!("{failure}");
    }
}

#[test]
fn wire_front_end_requests_survive_the_wire_in_every_dialect() {
    for dialect in Dialect::ALL {
        every_kind::<FrontendRequests>(dialect, requests(dialect), false);
    }
}

#[test]
fn wire_front_end_replies_survive_the_wire_in_every_dialect() {
    for dialect in Dialect::ALL {
        every_kind::<FrontendReplies>(dialect, replies(dialect), true);
    }
}

#[test]
fn wire_back_end_requests_and_replies_survive_the_wire() {
    let dialect = Dialect::default();
    every_kind::<BackendRequests>(dialect, backend_requests(), false);
    every_kind::<BackendReplies>(dialect, backend_replies(), true);
}

#[test]
fn wire_streams_survive_any_cut_by_the_sender_and_any_size_of_read() {
    for dialect in Dialect::ALL {
        every_stream::<FrontendRequests>(dialect, requests(dialect), false);
    }
    let dialect = Dialect::default();
    every_stream::<FrontendReplies>(dialect, replies(dialect), true);
    every_stream::<BackendRequests>(dialect, backend_requests(), false);
    every_stream::<BackendReplies>(dialect, backend_replies(), true);
}

#[test]
fn wire_every_code_of_every_dialect_is_drawn_by_these_properties() {
    for dialect in Dialect::ALL {
        let mut runner = TestRunner::deterministic();
        let drawn: BTreeSet<_> = requests(dialect)
            .iter()
            .map(|kind| kind.new_tree(&mut runner).unwrap().current())
            .filter_map(|request| request.code(&dialect))
            .collect();
        let known = (0..100).filter(|&code| request_name(code, &dialect).is_some());
        assert_eq!(drawn, known.collect(), "{dialect}");
    }
}
