//! Signals that ask a run to stop. While a loop runs, the first SIGINT or SIGTERM is noted, so that the step ends and
//! its state is saved; the second one, and any outside a loop, ends the process at once with 128 + its number.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Code, Error};

/// What the handlers share with the loop.
struct Flags {
    /// Whether a signal ends the process; otherwise it is noted, and the next one does.
    at_once: Arc<AtomicBool>,
    /// The number of the signal that was noted; 0 is none.
    noted: Arc<AtomicUsize>,
}

static FLAGS: OnceLock<Option<Flags>> = OnceLock::new();

/// Installs the handlers; none where the system refuses, and signals then do what they always do.
fn install() -> Option<Flags> {
    let flags = Flags { at_once: Arc::new(AtomicBool::new(true)), noted: Arc::default() };
    for signal in [SIGINT, SIGTERM] {
        // The order counts: the check comes before what the same signal sets.
        flag::register_conditional_shutdown(signal, 128 + signal, flags.at_once.clone()).ok()?;
        flag::register_usize(signal, flags.noted.clone(), signal as usize).ok()?;
        flag::register(signal, flags.at_once.clone()).ok()?;
    }
    Some(flags)
}

/// From here on a signal ends the process with its code.
pub(crate) fn prepare() {
    FLAGS.get_or_init(install);
}

/// While it lives, the first signal is noted.
#[derive(Debug)]
pub(crate) struct Watch(());

impl Watch {
    /// Begins to note. A signal that nobody has answered is still there: one that came after a stage's last step, while
    /// its result was written, stops the next stage.
    pub(crate) fn begin() -> Self {
        if let Some(flags) = FLAGS.get_or_init(install) {
            flags.at_once.store(false, Ordering::SeqCst);
        }
        Self(())
    }

    /// The signal that was noted.
    pub(crate) fn noted(&self) -> Option<Signal> {
        signal(FLAGS.get()?.as_ref()?.noted.load(Ordering::SeqCst))
    }

    /// The signal that was noted, which the caller answers.
    pub(crate) fn take(&self) -> Option<Signal> {
        signal(FLAGS.get()?.as_ref()?.noted.swap(0, Ordering::SeqCst))
    }
}

fn signal(number: usize) -> Option<Signal> {
    match number as i32 {
        SIGINT => Some(Signal::Interrupt),
        SIGTERM => Some(Signal::Terminate),
        _ => None,
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(flags) = FLAGS.get().and_then(Option::as_ref) {
            flags.at_once.store(true, Ordering::SeqCst);
        }
    }
}

/// A signal that asks for an orderly end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGINT, Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// What the run answers with, once its state is saved in `place`.
    pub(crate) fn error(self, stage: &str, step: usize, place: &str) -> Error {
        let (code, name) = match self {
            Self::Interrupt => (Code::Interrupted, "SIGINT"),
            Self::Terminate => (Code::Terminated, "SIGTERM"),
        };
        Error::new(code, "interrupted", format!("stopped by {name} after {stage} step {step}"))
            .at(place)
            .because("the step was finished and its whole state saved")
            .fix("give the same command with --resume to go on: the result is that of a run that never stopped")
    }
}
