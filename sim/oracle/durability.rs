//! What was acknowledged as durable is on the durable image.

use super::Violation;
use super::sectors::{Change, Sectors};
use crate::disk::Image;

/// Every sector that `cares`: its durable content must not be older than a
/// write that was acknowledged before `deadline`.
pub(super) fn check(
    sectors: &Sectors,
    image: &Image,
    deadline: u64,
    cares: impl Fn(u64) -> bool,
    promise: &str,
) -> Result<(), Violation> {
    for (sector, tag) in image.volatile().filter(|(s, _)| cares(*s)) {
        let history = sectors.history(sector);
        // Zeroes may come from several places; one good candidate is enough.
        let mut candidates = history.iter().filter(|c| c.tag == tag).peekable();
        if candidates.peek().is_none() {
            return Err(Violation::new(
                "durability",
                format!("sector {sector} durably holds tag {tag:#x}, which nobody wrote"),
            ));
        }
        if let Some(newer) = candidates
            .map(|old| superseded(history, old, deadline, sectors.excuses.lapsed(sector)))
            .collect::<Option<Vec<_>>>()
            .and_then(|all| all.first().copied())
        {
            return Err(Violation::new(
                "durability",
                format!(
                    "{promise} acknowledged, but write {newer} to sector {sector}, acknowledged before, is not durable"
                ),
            ));
        }
    }
    Ok(())
}

/// A write that surely replaced `old` and was acknowledged before `deadline`.
/// What was asked for up to `lapsed` is promised to nobody.
pub(super) fn superseded(
    history: &[Change],
    old: &Change,
    deadline: u64,
    lapsed: u64,
) -> Option<u64> {
    let over = old.completed?;
    history
        .iter()
        .find(|c| c.certain && c.submitted > over && c.is_promised(deadline, lapsed))
        .map(|c| c.request)
}
