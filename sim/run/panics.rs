//! Panics of the core, told like any other broken promise.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

std::thread_local! {
    /// This thread is in a run.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    /// Where and why it panicked.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What `act` gives, or where and why it panicked. Nothing is printed: a failure
/// that is made small panics thousands of times.
pub(super) fn caught<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if RUNNING.get() {
                let text = info.payload_as_str().unwrap_or("no message");
                let place = info.location().map_or(String::new(), |l| format!("{l}: "));
                LAST.set(format!("{place}{text}"));
            } else {
                before(info);
            }
        }));
    });
    RUNNING.set(true);
    let result = catch_unwind(AssertUnwindSafe(act));
    RUNNING.set(false);
    result.map_err(|_| LAST.take())
}
