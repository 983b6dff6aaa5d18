//! A warp: its registers as arrays of 32 lanes, and the stack of lanes that went different ways.

use super::flow::NO_JOIN;
use super::inst::{Fixed, Inst, Kernel, Slot, Special};

/// All lanes.
pub(super) const ALL: u32 = u32::MAX;

/// Lanes that run together until they reach `join`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) pc: u32,
    pub(super) join: u32,
    pub(super) mask: u32,
}

/// A copy in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) lane: u8,
    pub(super) words: u8,
    pub(super) group: u32,
    pub(super) at: u32,
    pub(super) data: [u32; 4],
}

/// What a warp waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Waiting { barrier: u32 },
    Done,
}

/// Registers and control state of 32 lanes.
pub(super) struct Warp {
    pub(super) index: u32,
    pub(super) words: Vec<[u32; 32]>,
    pub(super) longs: Vec<[u64; 32]>,
    pub(super) preds: Vec<u32>,
    /// Which lanes wrote a tracked register, by class and slot.
    pub(super) written: [Vec<u32>; 3],
    pub(super) frames: Vec<Frame>,
    /// Lanes that exist, and those that have not exited.
    pub(super) born: u32,
    pub(super) live: u32,
    pub(super) state: State,
    pub(super) local: Vec<[u32; 32]>,
    /// Four bits per word and lane.
    pub(super) local_written: Vec<[u8; 32]>,
    pub(super) flights: Vec<Flight>,
    /// Groups of copies committed so far, per lane.
    pub(super) committed: [u32; 32],
    /// Counts the points at which this warp's lanes were ordered.
    pub(super) sync: u32,
    pub(super) executed: u64,
}

/// Thread and block coordinates from a linear index.
pub(super) fn unflatten(index: u64, shape: [u32; 3]) -> [u32; 3] {
    let (x, y) = (u64::from(shape[0].max(1)), u64::from(shape[1].max(1)));
    [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
}

impl Warp {
    /// A warp of a block of this shape, with literals and thread numbers filled in.
    pub(super) fn new(kernel: &Kernel, index: u32, warps: u32, block: [u32; 3]) -> Self {
        let threads = u64::from(block[0]) * u64::from(block[1]) * u64::from(block[2]);
        let lanes = threads.saturating_sub(u64::from(index) * 32).min(32) as u32;
        let local = kernel.local_bytes.div_ceil(4) as usize;
        let mut warp = Self {
            index,
            words: vec![[0; 32]; kernel.slots[0] as usize],
            longs: vec![[0; 32]; kernel.slots[1] as usize],
            preds: vec![0; kernel.slots[2] as usize],
            written: [0, 1, 2].map(|c| vec![0; kernel.tracked[c].len()]),
            frames: Vec::with_capacity(32),
            born: if lanes == 32 { ALL } else { (1 << lanes) - 1 },
            live: 0,
            state: State::Ready,
            local: vec![[0; 32]; local],
            local_written: vec![[0; 32]; local],
            flights: Vec::new(),
            committed: [0; 32],
            sync: 0,
            executed: 0,
        };
        for (slot, fixed) in kernel.fixed[1].iter().enumerate() {
            if let Fixed::Bits(bits) = fixed {
                warp.longs[slot] = [*bits; 32];
            }
        }
        for (slot, fixed) in kernel.fixed[0].iter().enumerate() {
            match *fixed {
                Fixed::Bits(bits) => warp.words[slot] = [bits as u32; 32],
                Fixed::Special(special) => warp.words[slot] = warp.special(special, warps, block),
            }
        }
        warp
    }

    fn special(&self, special: Special, warps: u32, block: [u32; 3]) -> [u32; 32] {
        let lane = std::array::from_fn::<u32, 32, _>(|l| l as u32);
        match special {
            Special::Tid(axis) => {
                lane.map(|l| unflatten(u64::from(self.index) * 32 + u64::from(l), block)[usize::from(axis)])
            }
            Special::NTid(axis) => [block[usize::from(axis)]; 32],
            Special::LaneId => lane,
            Special::WarpId => [self.index; 32],
            Special::NWarpId => [warps; 32],
            Special::LaneMaskEq => lane.map(|l| 1 << l),
            Special::LaneMaskLt => lane.map(|l| (1 << l) - 1),
            Special::LaneMaskLe => lane.map(|l| (2u64 << l).wrapping_sub(1) as u32),
            Special::LaneMaskGt => lane.map(|l| !((2u64 << l).wrapping_sub(1) as u32)),
            Special::LaneMaskGe => lane.map(|l| !((1 << l) - 1)),
            // Filled in when a block starts.
            Special::CtaId(_) | Special::NCtaId(_) => [0; 32],
        }
    }

    /// Starts a block: everything but literals and thread numbers is forgotten.
    pub(super) fn start(&mut self, kernel: &Kernel, block: [u32; 3], grid: [u32; 3]) {
        for (slot, fixed) in kernel.fixed[0].iter().enumerate() {
            match *fixed {
                Fixed::Special(Special::CtaId(axis)) => self.words[slot] = [block[usize::from(axis)]; 32],
                Fixed::Special(Special::NCtaId(axis)) => self.words[slot] = [grid[usize::from(axis)]; 32],
                _ => {}
            }
        }
        self.written.iter_mut().for_each(|w| w.fill(0));
        self.local_written.fill([0; 32]);
        self.frames.clear();
        self.frames.push(Frame { pc: 0, join: NO_JOIN, mask: self.born });
        self.live = self.born;
        self.state = State::Ready;
        self.flights.clear();
        self.committed = [0; 32];
        self.sync = 1;
        self.executed = 0;
    }

    #[inline(always)]
    pub(super) fn word(&self, slot: Slot) -> &[u32; 32] {
        &self.words[slot as usize]
    }

    #[inline(always)]
    pub(super) fn long(&self, slot: Slot) -> &[u64; 32] {
        &self.longs[slot as usize]
    }

    #[inline(always)]
    pub(super) fn pred(&self, slot: Slot) -> u32 {
        self.preds[slot as usize]
    }

    #[inline(always)]
    pub(super) fn put(&mut self, slot: Slot, mask: u32, value: &[u32; 32]) {
        let target = &mut self.words[slot as usize];
        if mask == ALL {
            *target = *value;
        } else {
            for l in 0..32 {
                target[l] = if mask >> l & 1 == 1 { value[l] } else { target[l] };
            }
        }
    }

    #[inline(always)]
    pub(super) fn put_long(&mut self, slot: Slot, mask: u32, value: &[u64; 32]) {
        let target = &mut self.longs[slot as usize];
        if mask == ALL {
            *target = *value;
        } else {
            for l in 0..32 {
                target[l] = if mask >> l & 1 == 1 { value[l] } else { target[l] };
            }
        }
    }

    #[inline(always)]
    pub(super) fn put_pred(&mut self, slot: Slot, mask: u32, value: u32) {
        let target = &mut self.preds[slot as usize];
        *target = *target & !mask | value & mask;
    }

    /// The first lane that would read a register it never wrote.
    pub(super) fn unwritten(&self, kernel: &Kernel, inst: &Inst, active: u32, mask: u32) -> Option<u32> {
        let check = |class: usize, slot: Slot, lanes: u32| {
            let missing = match kernel.tracked[class].get(slot as usize) {
                Some(true) => lanes & !self.written[class][slot as usize],
                _ => 0,
            };
            (missing != 0).then(|| missing.trailing_zeros())
        };
        let guard = if inst.guard == 0 { None } else { check(2, inst.guard - 1, active) };
        guard.or_else(|| {
            (0..usize::from(inst.srcs)).find_map(|i| check((inst.classes >> (2 * i) & 3) as usize, inst.src[i], mask))
        })
    }

    /// Marks an instruction's destinations as written.
    pub(super) fn mark_written(&mut self, inst: &Inst, mask: u32) {
        for i in 0..usize::from(inst.dsts) {
            let class = (inst.classes >> (20 + 2 * i) & 3) as usize;
            self.written[class][inst.dst[i] as usize] |= mask;
        }
    }

    /// Takes the branch for `taken` of the running lanes; the rest goes on. Returns whether the lanes part.
    pub(super) fn branch(&mut self, active: u32, taken: u32, target: u32, join: u32) -> bool {
        let Some(top) = self.frames.last_mut() else { return false };
        if taken == active {
            top.pc = target;
            return false;
        }
        let next = top.pc + 1;
        if taken == 0 {
            top.pc = next;
            return false;
        }
        // The frame itself waits at the join for both sides, unless that is where it would end anyway.
        if top.join == join {
            self.frames.pop();
        } else {
            top.pc = join;
        }
        for (pc, mask) in [(next, active & !taken), (target, taken)] {
            if pc != join {
                self.frames.push(Frame { pc, join, mask });
            }
        }
        true
    }

    /// Lanes end. Returns true when none is left.
    pub(super) fn exit(&mut self, mask: u32) -> bool {
        self.live &= !mask;
        self.frames.iter_mut().for_each(|f| f.mask &= !mask);
        self.live == 0
    }
}
