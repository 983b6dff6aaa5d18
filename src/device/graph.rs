//! Work that is queued again and again with the same arguments: done once, recorded once, and from then on queued by
//! one call. What changes between its turns lies in device memory, where kernels read it.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::arena::Arena;
use super::driver::Recording;
use super::{Device, Gpu};
use crate::error::Result;

/// What a driver recorded, forgotten when dropped.
#[derive(Debug)]
struct Graph {
    gpu: Gpu,
    recording: Recording,
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.driver().forget(self.recording);
    }
}

/// One piece of work that takes turns. On the CPU every turn does it.
#[derive(Debug)]
pub(crate) struct Turns(Option<OnGpu>);

/// The first turn finds out which memory is needed, the second records.
#[derive(Debug)]
struct OnGpu {
    gpu: Gpu,
    // Before the arena whose memory it uses, so that it is dropped first.
    graph: Option<Graph>,
    arena: Arc<Arena>,
    warm: bool,
}

impl Turns {
    pub(crate) fn new(device: &Device) -> Self {
        Self(match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => {
                Some(OnGpu { gpu: gpu.clone(), graph: None, arena: Arc::new(gpu.new_arena()), warm: false })
            }
        })
    }

    /// One turn. `work` must queue the same launches on the same memory each time, must neither upload nor download,
    /// and must drop all that it allocates.
    ///
    /// # Errors
    /// Those of the work; work that does not keep to the rules.
    pub(crate) fn take(&mut self, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Some(OnGpu { gpu, graph, arena, warm }) = &mut self.0 else { return work() };
        if !*warm {
            gpu.in_arena(arena, work)?;
            *warm = true;
            return Ok(());
        }
        let graph = match graph {
            Some(graph) => graph,
            None => {
                let recording = gpu.in_arena(arena, &mut || gpu.driver().record(work))?;
                graph.insert(Graph { gpu: gpu.clone(), recording })
            }
        };
        gpu.driver().replay(graph.recording)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::kernel::{ELEMENTWISE, Entry};
    use crate::device::launch::Launch;
    use crate::dtype::DType;
    use crate::tensor::Tensor;

    const ADD_ASSIGN: Entry = Entry::new(&ELEMENTWISE, "add_assign_f32");

    fn ones(device: &Device) -> Tensor {
        Tensor::from_f32(device, DType::F32, &[3], vec![1.0; 3]).unwrap()
    }

    /// sum += x through a copy in memory of the turn's own.
    fn add(device: &Device, sum: &Tensor, x: &Tensor) -> Result<()> {
        let Device::Gpu(gpu) = device else { panic!("the emulator is a GPU") };
        let copy = x.duplicate()?;
        Launch::new(gpu, ADD_ASSIGN).tensor(sum).tensor(&copy).long(3).run()
    }

    #[test]
    fn turns_do_the_work_each_time() {
        let device = Device::parse("emulated").unwrap();
        let (sum, x) = (ones(&device), ones(&device));
        let mut turns = Turns::new(&device);
        for turn in 1..=5 {
            if turn == 4 {
                // What a replay reads is what stands there now.
                x.set(&[10.0, 20.0, 30.0]).unwrap();
            }
            turns.take(&mut || add(&device, &sum, &x)).unwrap();
            let expected =
                if turn < 4 { [1.0 + turn as f32; 3] } else { [10.0, 20.0, 30.0].map(|x| 4.0 + (turn - 3) as f32 * x) };
            assert_eq!(sum.to_f32().unwrap(), expected);
        }
    }

    #[test]
    fn work_that_cannot_be_recorded_is_refused() {
        let device = Device::parse("emulated").unwrap();
        let (sum, x) = (ones(&device), ones(&device));
        let second = |work: &mut dyn FnMut(usize) -> Result<()>| {
            let (mut turns, mut turn) = (Turns::new(&device), 0);
            let mut take = || {
                turn += 1;
                turns.take(&mut || work(turn))
            };
            take().unwrap();
            take().map_err(|e| e.id().to_owned())
        };
        let refused = Err("graph-host-work".to_owned());
        assert_eq!(second(&mut |_| x.set(&[2.0; 3])), refused);
        assert_eq!(second(&mut |_| x.to_f32().map(|_| ())), refused);
        // More memory than the first turn needed.
        assert_eq!(second(&mut |turn| Tensor::empty(&device, DType::F32, &[1000 * turn]).map(|_| ())), refused);
        assert_eq!(second(&mut |_| add(&device, &sum, &x)), Ok(()));
        // The driver is as it was.
        assert_eq!(x.to_f32().unwrap(), [2.0; 3]);
    }

    #[test]
    fn a_replay_does_not_touch_what_was_freed() {
        let device = Device::parse("emulated").unwrap();
        let (sum, x) = (ones(&device), ones(&device));
        let mut turns = Turns::new(&device);
        let mut x = Some(x);
        for _ in 0..2 {
            turns.take(&mut || x.as_ref().map_or(Ok(()), |x| add(&device, &sum, x))).unwrap();
        }
        drop(x.take());
        assert_eq!(turns.take(&mut || Ok(())).unwrap_err().id(), "graph-freed");
    }

    /// An arena's memory goes back when the turns are over, and outside of turns nobody gets it.
    #[test]
    fn memory_of_turns_is_given_back() {
        let device = Device::parse("emulated").unwrap();
        let Device::Gpu(gpu) = &device else { panic!("the emulator is a GPU") };
        let free = || gpu.driver().memory().unwrap()[0];
        let (sum, x) = (ones(&device), ones(&device));
        let before = free();
        let mut turns = Turns::new(&device);
        for _ in 0..3 {
            turns.take(&mut || add(&device, &sum, &x)).unwrap();
        }
        assert_eq!(before - free(), 256, "one tensor, rounded up");
        let outside = Tensor::empty(&device, DType::F32, &[3]).unwrap();
        assert_eq!(before - free(), 256 + 12);
        drop((turns, outside));
        assert_eq!(free(), before);
    }
}
