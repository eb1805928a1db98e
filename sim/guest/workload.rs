//! What the guest asks for, and how it frames it.

use crate::choices::{Ratio, Stream};
use crate::oracle::Expect;
use crate::profile::Profile;
use crate::trace::Verb;
use midflight::driver::{Framing, RangeSegment};

/// A request before it has a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is wanted.
    pub verb: Verb,
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub sectors: u64,
    /// Bytes of data.
    pub data_len: u64,
    /// Flags of a discard or write zeroes range.
    pub flags: u32,
    /// What has to come back.
    pub expect: Expect,
}

impl Plan {
    /// The range of a discard or write zeroes request.
    pub fn range(&self) -> [RangeSegment; 1] {
        let num_sectors = self.sectors as u32;
        [RangeSegment { sector: self.sector, num_sectors, flags: self.flags }]
    }
}

/// Reads and writes are common, the rest is there.
const VERBS: [Verb; 16] = [
    Verb::Read,
    Verb::Read,
    Verb::Read,
    Verb::Read,
    Verb::Read,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Flush,
    Verb::Flush,
    Verb::WriteZeroes,
    Verb::Discard,
    Verb::GetId,
];

/// Draw a request.
pub fn draw(s: &mut Stream, profile: &Profile) -> Plan {
    if s.chance("bad", profile.bad) {
        return draw_bad(s, profile);
    }
    let verb = *s.pick("verb", &VERBS);
    // Without FLUSH the driver has no flush to send.
    let verb = if verb == Verb::Flush && !profile.flush { Verb::Write } else { verb };
    let (sector, sectors) = draw_range(s, profile);
    let plan = |sector, sectors, data_len, flags| Plan {
        verb,
        sector,
        sectors,
        data_len,
        flags,
        expect: Expect::Ok,
    };
    match verb {
        Verb::Read | Verb::Write => plan(sector, sectors, 512 * sectors, 0),
        Verb::WriteZeroes => plan(sector, sectors, 16, s.below("unmap", 2) as u32),
        Verb::Discard => plan(sector, sectors, 16, 0),
        Verb::GetId => plan(0, 0, 20, 0),
        Verb::Flush | Verb::Unknown => plan(0, 0, 0, 0),
    }
}

fn draw_range(s: &mut Stream, profile: &Profile) -> (u64, u64) {
    let sectors = s.range("len", 1, profile.max_sectors);
    let hot = s.chance("hot", Ratio::new(1, 2));
    let area = if hot { profile.hot_sectors.max(sectors) } else { profile.sectors };
    let sector = s.below("sector", area.min(profile.sectors) - sectors + 1);
    (sector, sectors)
}

/// Requests a device has to refuse.
// spec: virtio 1.2, "Block Device", "Device Requirements: Device Operation"
fn draw_bad(s: &mut Stream, profile: &Profile) -> Plan {
    let (sector, sectors) = draw_range(s, profile);
    let beyond = profile.sectors - s.below("beyond", sectors);
    let (verb, sector, data_len, flags, expect) = match s.below("bad.kind", 7) {
        0 => (Verb::Read, beyond, 512 * sectors, 0, Expect::IoErr),
        1 => (Verb::Write, beyond, 512 * sectors, 0, Expect::IoErr),
        2 => (Verb::Write, sector, 512 * sectors - 1, 0, Expect::IoErr),
        3 => (Verb::WriteZeroes, u64::MAX - 3, 16, 0, Expect::IoErr),
        4 => (Verb::Discard, sector, 16, 1, Expect::Unsupp),
        5 => (Verb::WriteZeroes, sector, 16, 6, Expect::Unsupp),
        _ => (Verb::Unknown, sector, 512 * sectors, 0, Expect::Unsupp),
    };
    Plan { verb, sector, sectors, data_len, flags, expect }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Component;

    #[test]
    fn guest_requests_stay_on_the_disk_unless_they_are_meant_not_to() {
        let mut s = Stream::new(11, Component::Guest);
        for seed in 0..50 {
            let profile = Profile::draw(seed);
            for _ in 0..100 {
                let plan = draw(&mut s, &profile);
                if plan.expect == Expect::Ok {
                    assert!(plan.sector + plan.sectors <= profile.sectors, "{plan:?}");
                }
                let spread = spread(&mut s, plan.data_len);
                assert_eq!(spread.iter().map(|p| p.0).sum::<u64>(), plan.data_len);
                assert!(spread.iter().map(|p| p.1).sum::<u64>() <= 39);
            }
        }
    }
}
