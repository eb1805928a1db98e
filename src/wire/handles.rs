//! Taking the handles that a message is due.

use super::{HandleCount, WireError};

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
