//! One block: its warps take turns until each waits or is done; barriers open when all that they expect have arrived.

use super::counters::Counters;
use super::error::{Error, Kind, Result};
use super::inst::{BarKind, Inst, Op};
use super::memory::{Agent, Cause, MAX_CLOCK};
use super::run::{Context, Run, Stop, Turn, halt};
use super::shared::Shared;
use super::warp::{State, Warp, unflatten};

/// A small generator for orders (splitmix64).
#[derive(Clone, Copy)]
pub(super) struct Order(pub(super) u64);

impl Order {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Fisher-Yates.
    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

/// One of the sixteen named barriers.
#[derive(Clone, Copy, Default)]
struct Barrier {
    /// Warps that have arrived, and those of them that wait.
    arrived: u32,
    waiting: u32,
    /// Warps that it takes; 0 until somebody arrives.
    expected: u32,
    count: u32,
    all: bool,
    any: bool,
}

/// A block's state, kept from block to block.
pub(super) struct Block<'a> {
    cx: &'a Context<'a>,
    shared: Shared,
    warps: Vec<Warp>,
    /// What each warp knows of every warp's barrier clock.
    seen: Vec<Vec<u32>>,
    clock: u32,
    barriers: [Barrier; 16],
    pub(super) tally: Counters,
    at: [u32; 3],
    index: u32,
}

impl<'a> Block<'a> {
    pub(super) fn new(cx: &'a Context<'a>, dynamic: u32) -> Self {
        let kernel = cx.kernel;
        let threads = cx.block.iter().product::<u32>();
        let warps = threads.div_ceil(32);
        let mut valid = kernel.shared.clone();
        if dynamic > 0 {
            valid.push((kernel.shared_dynamic, kernel.shared_dynamic + dynamic));
        }
        Self {
            cx,
            shared: Shared::new(valid, kernel.grain[0]),
            warps: (0..warps).map(|w| Warp::new(kernel, w, warps, cx.block)).collect(),
            seen: vec![vec![0; warps as usize]; warps as usize],
            clock: 1,
            barriers: [Barrier::default(); 16],
            tally: Counters::new(&kernel.code),
            at: [0; 3],
            index: 0,
        }
    }

    /// Runs the block with this linear index to its end.
    pub(super) fn run(&mut self, index: u32) -> Result<()> {
        self.index = index;
        self.at = unflatten(u64::from(index), self.cx.grid);
        self.shared.reset();
        self.clock = 1;
        self.barriers = [Barrier::default(); 16];
        for (w, warp) in self.warps.iter_mut().enumerate() {
            warp.start(self.cx.kernel, self.at, self.cx.grid);
            self.seen[w].fill(0);
            self.seen[w][w] = 1;
        }
        let mut order = self.cx.options.shuffle.map(|seed| Order(seed ^ u64::from(index) << 32));
        let mut queue: Vec<usize> = (0..self.warps.len()).collect();
        loop {
            if let Some(order) = &mut order {
                order.shuffle(&mut queue);
            }
            let (mut done, mut progress) = (true, false);
            for &w in &queue {
                if self.warps[w].state != State::Ready {
                    done &= self.warps[w].state == State::Done;
                    continue;
                }
                progress = true;
                done = false;
                let turn = order.as_mut().map_or(u64::MAX, |o| 1 + o.next() % 64);
                self.turn(w, turn)?;
            }
            if done {
                return Ok(());
            }
            if !progress {
                return Err(self.deadlock());
            }
        }
    }

    fn turn(&mut self, w: usize, turn: u64) -> Result<()> {
        let cx = self.cx;
        let agent = Agent {
            block: self.index,
            warp: w as u32,
            clock: self.seen[w][w],
            seen: &self.seen[w],
            sync: self.warps[w].sync,
            races: cx.options.races,
            solo: cx.solo,
            launch: cx.launch,
            grain: cx.kernel.grain[1],
        };
        let mut run = Run { cx, warp: &mut self.warps[w], shared: &mut self.shared, tally: &mut self.tally, agent };
        let ended = match run.go(turn) {
            Ok(Turn::Barrier { pc }) => self.arrive(w, &cx.kernel.code[pc as usize]),
            Ok(_) => Ok(()),
            Err(stop) => Err(stop),
        };
        ended.map_err(|stop| self.report(w, *stop))
    }

    /// Adds place and thread to a fault.
    fn report(&self, w: usize, stop: super::run::Halt) -> Error {
        let warp = &self.warps[w];
        let Cause(kind, what) = stop.cause;
        let inst = warp.frames.last().and_then(|f| self.cx.kernel.code.get(f.pc as usize));
        let thread = stop.lane.map(|l| unflatten(w as u64 * 32 + u64::from(l), self.cx.block));
        let error = Error::at(kind, inst.map_or(0, |i| i.line), what).in_kernel(&self.cx.kernel.name);
        error.with_source(inst.and_then(|i| self.cx.kernel.source_of(i.loc))).by(self.at, thread)
    }

    fn deadlock(&self) -> Error {
        let waiting = |w: &Warp| matches!(w.state, State::Waiting { .. });
        let first = self.warps.iter().position(waiting).unwrap_or(0);
        let done = self.warps.iter().filter(|w| w.state == State::Done).count();
        let barrier = match self.warps[first].state {
            State::Waiting { barrier } => barrier,
            _ => 0,
        };
        let b = &self.barriers[barrier as usize & 15];
        let what = format!(
            "barrier {barrier} waits for ever: {} of {} warps arrived, {done} warps of the block have exited",
            b.arrived.count_ones(),
            b.expected
        );
        let lane = self.warps[first].live.trailing_zeros();
        self.report(first, *halt(Cause(Kind::Deadlock, what), Some(lane & 31)))
    }

    /// A warp arrives at a barrier. Its program counter still points to the instruction.
    fn arrive(&mut self, w: usize, inst: &Inst) -> std::result::Result<(), Stop> {
        let Op::Bar { kind, counted, negate } = inst.op else { return Ok(()) };
        let warp = &mut self.warps[w];
        let lane = warp.born.trailing_zeros();
        let fault = |kind, what: String| Err(halt(Cause(kind, what), Some(lane)));
        let uniform = |slot: u32| {
            let values = warp.word(slot);
            (0..32)
                .filter(|l| warp.born >> l & 1 == 1)
                .all(|l| values[l] == values[lane as usize])
                .then_some(values[lane as usize])
        };
        let Some(number) = uniform(inst.src[0]).filter(|&n| n < 16) else {
            return fault(Kind::Divergence, "barrier number differs between lanes or is above 15".to_owned());
        };
        let expected = if counted {
            match uniform(inst.src[1]) {
                Some(n) if n > 0 && n % 32 == 0 => n / 32,
                other => {
                    return fault(
                        Kind::Divergence,
                        format!("thread count {other:?} of a barrier is no multiple of 32"),
                    );
                }
            }
        } else {
            self.seen.len() as u32
        };
        let barrier = &mut self.barriers[number as usize];
        if barrier.arrived == 0 {
            *barrier = Barrier { expected, all: true, ..Barrier::default() };
        }
        if barrier.expected != expected || expected > self.seen.len() as u32 {
            let what = format!("barrier {number} expects {} warps, this one says {expected}", barrier.expected);
            return fault(Kind::Deadlock, what);
        }
        if barrier.arrived >> w & 1 == 1 {
            return fault(Kind::Deadlock, format!("warp arrives at barrier {number} twice"));
        }
        if matches!(kind, BarKind::RedPopc | BarKind::RedAnd | BarKind::RedOr) {
            let p = warp.pred(inst.src[1 + usize::from(counted)]) ^ if negate { u32::MAX } else { 0 };
            let votes = (p & warp.born).count_ones();
            barrier.count += votes;
            barrier.all &= votes == warp.born.count_ones();
            barrier.any |= votes > 0;
        }
        barrier.arrived |= 1 << w;
        if kind == BarKind::Arrive {
            self.advance(w);
        } else {
            barrier.waiting |= 1 << w;
            self.warps[w].state = State::Waiting { barrier: number };
        }
        let barrier = &self.barriers[number as usize];
        if barrier.arrived.count_ones() == barrier.expected { self.open(number as usize, lane) } else { Ok(()) }
    }

    fn advance(&mut self, w: usize) {
        if let Some(top) = self.warps[w].frames.last_mut() {
            top.pc += 1;
        }
    }

    /// All have arrived: what each knew, all that waited know.
    fn open(&mut self, number: usize, lane: u32) -> std::result::Result<(), Stop> {
        let barrier = std::mem::take(&mut self.barriers[number]);
        self.clock += 1;
        if self.clock > MAX_CLOCK {
            let what = format!("more than {MAX_CLOCK} barriers in one block");
            return Err(halt(Cause(Kind::Trap, what), Some(lane)));
        }
        let mut known = vec![0u32; self.seen.len()];
        for (w, seen) in self.seen.iter().enumerate().filter(|(w, _)| barrier.arrived >> w & 1 == 1) {
            let _ = w;
            known.iter_mut().zip(seen).for_each(|(k, &s)| *k = (*k).max(s));
        }
        for w in (0..self.warps.len()).filter(|w| barrier.arrived >> w & 1 == 1) {
            if barrier.waiting >> w & 1 == 1 {
                self.seen[w].copy_from_slice(&known);
                self.finish(w, &barrier);
            }
            // What an arriving warp does from now on is new to those it released.
            self.seen[w][w] = self.clock;
            self.warps[w].sync += 1;
        }
        Ok(())
    }

    /// A waiting warp goes on, with the result of a reduction.
    fn finish(&mut self, w: usize, barrier: &Barrier) {
        let pc = self.warps[w].frames.last().map_or(0, |f| f.pc);
        if let Some(inst) = self.cx.kernel.code.get(pc as usize)
            && let Op::Bar { kind, .. } = inst.op
        {
            let warp = &mut self.warps[w];
            let mask = warp.born;
            let flag = |on: bool| if on { u32::MAX } else { 0 };
            match kind {
                BarKind::RedPopc => warp.put(inst.dst[0], mask, &[barrier.count; 32]),
                BarKind::RedAnd => warp.put_pred(inst.dst[0], mask, flag(barrier.all)),
                BarKind::RedOr => warp.put_pred(inst.dst[0], mask, flag(barrier.any)),
                _ => {}
            }
            if inst.tracked {
                warp.mark_written(inst, mask);
            }
        }
        self.warps[w].state = State::Ready;
        self.advance(w);
    }
}
