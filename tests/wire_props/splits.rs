//! Every split of real conversations, one by one.

use crate::seeds;
use crate::stream::{Said, Way, Write, cut, read_in_pieces};
use midflight::wire::*;
use std::collections::BTreeSet;

const QEMU: Dialect = Dialect::QEMU_11_1;

fn whole<D: Way>(writes: &[Write]) -> Said<D> {
    let said = read_in_pieces::<D>(QEMU, writes, &[4096]);
    assert_eq!(said.len(), writes.len());
    assert!(said.iter().all(Result::is_ok));
    said
}

fn length(writes: &[Write]) -> usize {
    writes.iter().map(|write| write.bytes.len()).sum()
}

/// Two-way splits of the whole stream and of each pair of neighbours, three-way
/// splits of each pair, and one byte at a time; cut by the sender and by the
/// reader.
fn every_split<D: Way>(writes: &[Write]) {
    let said = whole::<D>(writes);
    assert_eq!(read_in_pieces::<D>(QEMU, writes, &[1]), said);
    let all: Vec<usize> = (1..length(writes)).collect();
    assert_eq!(read_in_pieces::<D>(QEMU, &cut(writes, &all), &[4096]), said);
    for &at in &all {
        let pieces = cut(writes, &[at]);
        assert_eq!(read_in_pieces::<D>(QEMU, &pieces, &[4096]), said, "{at}");
    }
    let mut seen = BTreeSet::new();
    for pair in writes.windows(2) {
        // The header of a request says all about how it can be split.
        if !seen.insert([0, 1].map(|i| &pair[i].bytes[..12])) {
            continue;
        }
        let said = whole::<D>(pair);
        let length = length(pair);
        for first in 1..length {
            let pieces = [first, length];
            assert_eq!(read_in_pieces::<D>(QEMU, pair, &pieces), said, "{first}");
            for second in first + 1..length {
                let pieces = cut(pair, &[first, second]);
                let got = read_in_pieces::<D>(QEMU, &pieces, &[4096]);
                assert_eq!(got, said, "{first} {second}");
            }
        }
    }
}

#[test]
fn wire_every_split_of_a_front_ends_requests_yields_the_same() {
    every_split::<FrontendRequests>(&seeds::requests());
}

#[test]
fn wire_every_split_of_a_back_ends_replies_yields_the_same() {
    every_split::<FrontendReplies>(&seeds::replies());
}

#[test]
fn wire_every_split_on_the_back_ends_channel_yields_the_same() {
    every_split::<BackendRequests>(&seeds::backend_requests());
    every_split::<BackendReplies>(&seeds::backend_replies());
}
