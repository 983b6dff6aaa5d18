//! Keeps a panic of a decoder that we did not write (Parquet, tokenizers, templates) from leaving the room: input
//! never causes a panic, so it becomes a sentence that the caller turns into an error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Runs `work`; a panic inside it is caught and its message returned, without the default report on stderr. Panics of
/// other threads, and of this thread elsewhere, are reported as before.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let inner = panic::take_hook();
        panic::set_hook(Box::new(move |report| {
            if !QUIET.get() {
                inner(report);
            }
        }));
    });
    let outer = QUIET.replace(true);
    // What `work` leaves half-changed is dropped by every caller together with the error.
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    outcome.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
        text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(contain(|| 3), Ok(3));
        let inner = contain(|| contain(|| panic!("number {}", 7)));
        assert_eq!(inner, Ok(Err::<(), _>("number 7".to_string())));
        assert_eq!(contain(|| -> () { panic!("plain") }), Err("plain".to_string()));
    }
}
