//! How tests see and refuse the calls of this thread: see [`observe`].

use std::cell::RefCell;
use std::io;
use std::path::Path;

use super::Call;

/// What happens to a call.
#[derive(Debug)]
pub(crate) enum Verdict {
    Proceed,
    /// It fails and changes nothing.
    Refuse(io::Error),
    /// It takes effect, and fails all the same.
    ProceedAndFail(io::Error),
    /// A write writes only so many bytes; any other call proceeds.
    Shorten(usize),
}

/// Who watches the seam.
pub(crate) trait Observer {
    /// Is asked before each call.
    fn judge(&mut self, call: &Call<'_>) -> Verdict;
    /// Is told of each call that had an effect; a write holds the bytes that were written.
    fn done(&mut self, call: &Call<'_>);
}

thread_local! {
    static OBSERVER: RefCell<Option<Box<dyn Observer>>> = const { RefCell::new(None) };
}

/// Runs `body` with `observer` at the seam; only this thread's calls are seen.
pub(crate) fn observe<T>(observer: impl Observer + 'static, body: impl FnOnce() -> T) -> T {
    /// Takes the observer away even if the body panics.
    struct Restore(Option<Box<dyn Observer>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OBSERVER.set(self.0.take());
        }
    }
    let _restore = Restore(OBSERVER.replace(Some(Box::new(observer))));
    body()
}

/// The verdict on a call; all proceed where nobody observes.
fn judge(call: &Call<'_>) -> Verdict {
    OBSERVER.with_borrow_mut(|observer| observer.as_mut().map_or(Verdict::Proceed, |o| o.judge(call)))
}

fn done(call: &Call<'_>) {
    OBSERVER.with_borrow_mut(|observer| observer.as_mut().map(|o| o.done(call)));
}

/// Makes a call other than a write as the observer decides.
pub(super) fn make<T>(call: &Call<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let failure = match judge(call) {
        Verdict::Refuse(error) => return Err(error),
        Verdict::ProceedAndFail(error) => Some(error),
        Verdict::Proceed | Verdict::Shorten(_) => None,
    };
    let made = act();
    if made.is_ok() {
        done(call);
    }
    failure.map_or(made, Err)
}

/// Writes as the observer decides; `act` writes what it is given.
pub(super) fn write(
    path: &Path,
    offset: u64,
    bytes: &[u8],
    act: impl FnOnce(&[u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let (part, failure) = match judge(&Call::Write { path, offset, bytes }) {
        Verdict::Refuse(error) => return Err(error),
        Verdict::ProceedAndFail(error) => (bytes, Some(error)),
        Verdict::Shorten(n) => (&bytes[..n.min(bytes.len())], None),
        Verdict::Proceed => (bytes, None),
    };
    let written = act(part)?;
    done(&Call::Write { path, offset, bytes: &part[..written] });
    failure.map_or(Ok(written), Err)
}
