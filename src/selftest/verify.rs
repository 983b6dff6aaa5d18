//! Runs cases on a device, one after the other, or on the emulator many at once, and keeps what became of each.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Case, Report};
use crate::device::emulated::Emulated;
use crate::device::{Device, Gpu};
use crate::error::{Code, Error, Result};
use crate::ptx::Options;

/// What became of a case.
pub(crate) struct Verified<'a> {
    pub(crate) case: &'a Case,
    /// The judgement, or what kept the device from an answer.
    pub(crate) report: Result<Report>,
}

impl Verified<'_> {
    /// Whether every output is there and within its bound.
    pub(crate) fn passed(&self) -> bool {
        self.report.as_ref().is_ok_and(Report::passed)
    }
}

/// Runs `cases` on `device` in their order; `done` hears of each. A device that is lost or full ends the run: what
/// comes after it is not in the answer.
pub(crate) fn verify<'a>(device: &Device, cases: &[&'a Case], done: &(dyn Fn(&Case) + Sync)) -> Vec<Verified<'a>> {
    let check = |case: &&'a Case, device: &Device| {
        let report = case.check(device);
        done(case);
        Verified { case, report }
    };
    if device.name() == "emulated" {
        // The order of the answer is that of the cases, whoever ends first.
        return cases.par_iter().map(|case| check(case, &emulator(device))).collect();
    }
    let mut all = Vec::with_capacity(cases.len());
    for case in cases {
        let verified = check(case, device);
        let ends = lost(&verified).is_some();
        all.push(verified);
        if ends {
            break;
        }
    }
    all
}

/// The error after which nothing more can be learned from the device.
pub(crate) fn lost<'a>(verified: &'a Verified<'_>) -> Option<&'a Error> {
    verified.report.as_ref().err().filter(|error| matches!(error.code(), Code::Device | Code::Resources))
}

/// An emulator for one case: all checks, on the thread that asks.
fn emulator(like: &Device) -> Device {
    let driver = Arc::new(Emulated::new(Options { count: false, ..Options::default() }));
    Device::Gpu(Gpu::new(driver, like.dtype()))
}
