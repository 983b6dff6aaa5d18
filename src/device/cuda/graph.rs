//! A CUDA graph: work captured from the stream and launched by one call. Source: the CUDA driver API, "Graph
//! Management" and "Stream Management".

use std::ptr;

use cudarc::driver::sys;

use super::Stream;
use super::fault::check;
use crate::error::Result;

/// A graph that is ready to be launched.
pub(super) struct Graph(sys::CUgraphExec);

// SAFETY: the driver lets every thread use the handle once the context is current there, as for all others.
unsafe impl Send for Graph {}

/// What a capture gave, before it is made ready.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: given by a capture that has ended, destroyed once. An error has no reader.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Graph {
    /// Captures what `work` queues on the stream of the current context.
    pub(super) fn capture(stream: &Stream, work: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        // Calls that could not be captured fail if this thread makes them; other threads do as they like.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and not the null stream, which cannot be captured.
        check("starting to record", unsafe { sys::cuStreamBeginCapture_v2(stream.0, mode) })?;
        let done = work();
        let mut captured = Captured(ptr::null_mut());
        // SAFETY: the handle may be written; the capture was begun above on this thread and ends whatever became of
        // the work.
        let ended = unsafe { sys::cuStreamEndCapture(stream.0, &raw mut captured.0) };
        done?;
        check("recording", ended)?;
        let mut ready = ptr::null_mut();
        // SAFETY: the handle may be written, and the graph is alive; it is not needed afterwards.
        let result = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut ready, captured.0, 0) };
        check("preparing what was recorded", result)?;
        Ok(Self(ready))
    }

    /// Queues the work once more.
    pub(super) fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive; what the launches use is held by the caller's arena.
        check("replaying what was recorded", unsafe { sys::cuGraphLaunch(self.0, stream.0) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, destroyed once; a launch that still runs is finished first by the driver.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}
