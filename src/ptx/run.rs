//! Runs one warp until it waits, ends or has used its turn: fetch, guard, dispatch.

use super::alu;
use super::alu64;
use super::collective;
use super::convert::{self, Cvt};
use super::counters::Counters;
use super::error::Kind;
use super::float;
use super::inst::{Approx, F1, F2, Inst, Kernel, Op, Special1};
use super::machine::{Noise, Options};
use super::memory::{Agent, Cause, Memory};
use super::shared::Shared;
use super::warp::{State, Warp};

/// Why a warp stops with an error: boxed, because it is rare and results are everywhere.
pub(super) type Stop = Box<Halt>;

/// A fault and the lane to blame.
#[derive(Debug)]
pub(super) struct Halt {
    pub(super) cause: Cause,
    pub(super) lane: Option<u32>,
}

#[cold]
pub(super) fn halt(cause: Cause, lane: Option<u32>) -> Stop {
    Box::new(Halt { cause, lane })
}

/// What all blocks of a launch share.
pub(super) struct Context<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) params: &'a [u8],
    pub(super) memory: &'a Memory,
    pub(super) options: &'a Options,
    pub(super) launch: u16,
    pub(super) solo: bool,
}

/// How a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Used up: the warp can go on.
    Spent,
    /// At a barrier; the instruction has not been completed.
    Barrier { pc: u32 },
    /// All lanes have exited.
    Done,
}

/// One warp at work.
pub(super) struct Run<'a> {
    pub(super) cx: &'a Context<'a>,
    pub(super) warp: &'a mut Warp,
    pub(super) shared: &'a mut Shared,
    pub(super) tally: &'a mut Counters,
    pub(super) agent: Agent<'a>,
}

impl<'a> Run<'a> {
    /// Runs up to `turn` instructions. The place of an error is the warp's program counter.
    pub(super) fn go(&mut self, turn: u64) -> Result<Turn, Stop> {
        let cx = self.cx;
        let code = cx.kernel.code.as_slice();
        let mut left = turn;
        loop {
            let Some(&top) = self.warp.frames.last() else {
                self.warp.state = State::Done;
                return Ok(Turn::Done);
            };
            if top.pc == top.join || top.mask == 0 {
                self.warp.frames.pop();
                continue;
            }
            if left == 0 {
                return Ok(Turn::Spent);
            }
            left -= 1;
            // A join that is nowhere: the lanes behind it never come.
            let Some(inst) = code.get(top.pc as usize) else {
                self.warp.frames.pop();
                continue;
            };
            let active = top.mask;
            let mask = match inst.guard {
                0 => active,
                guard if inst.guard_negated => active & !self.warp.pred(guard - 1),
                guard => active & self.warp.pred(guard - 1),
            };
            if inst.tracked
                && let Some(lane) = self.warp.unwritten(cx.kernel, inst, active, mask)
            {
                let what = "reads a register that this thread has not written".to_owned();
                return Err(halt(Cause(Kind::UninitialisedRegister, what), Some(lane)));
            }
            let count = &mut self.tally.profile[top.pc as usize];
            count.warps += 1;
            count.lanes += u64::from(mask.count_ones());
            match inst.op {
                Op::Bra { target, join, .. } => {
                    self.branch(inst, active, mask, target, join)?;
                    continue;
                }
                Op::Exit => {
                    self.exit(mask)?;
                    if mask == active {
                        continue;
                    }
                }
                Op::Bar { .. } => {
                    if mask == 0 {
                        // A guarded barrier that no lane of this warp takes.
                    } else {
                        self.tally.barriers += 1;
                        self.arrive(mask)?;
                        return Ok(Turn::Barrier { pc: top.pc });
                    }
                }
                _ if mask == 0 => {}
                _ => self.step(inst, mask)?,
            }
            if inst.tracked {
                self.warp.mark_written(inst, mask);
            }
            if let Some(top) = self.warp.frames.last_mut() {
                top.pc += 1;
            }
        }
    }

    fn branch(&mut self, inst: &Inst, active: u32, taken: u32, target: u32, join: u32) -> Result<(), Stop> {
        let Op::Bra { uniform, .. } = inst.op else { return Ok(()) };
        self.tally.branches += u64::from(inst.guard != 0);
        self.warp.executed += 1;
        // Every loop passes a branch, so the limit is watched here alone.
        if self.warp.executed > self.cx.options.branches_max {
            let what = format!("more than {} branches in one warp: it does not end", self.cx.options.branches_max);
            return Err(halt(Cause(Kind::Trap, what), Some(active.trailing_zeros())));
        }
        if uniform && taken != active && taken != 0 {
            let what = "bra.uni, but lanes go different ways".to_owned();
            return Err(halt(Cause(Kind::Divergence, what), Some(taken.trailing_zeros())));
        }
        let parted = self.warp.branch(active, taken, target, join);
        self.tally.divergent_branches += u64::from(parted);
        Ok(())
    }

    fn exit(&mut self, mask: u32) -> Result<(), Stop> {
        if let Some(flight) = self.warp.flights.iter().find(|f| mask >> f.lane & 1 == 1) {
            let what = format!("ends with a cp.async to shared byte {} not waited for", flight.at);
            return Err(halt(Cause(Kind::AsyncCopy, what), Some(u32::from(flight.lane))));
        }
        self.warp.exit(mask);
        Ok(())
    }

    /// A barrier takes whole warps.
    fn arrive(&mut self, mask: u32) -> Result<(), Stop> {
        let w = &self.warp;
        if mask == w.born {
            return Ok(());
        }
        let (away, gone) = (w.live & !mask, w.born & !w.live);
        if away != 0 {
            let what = format!("barrier reached by lanes {mask:#010x} of a warp, lanes {away:#010x} are elsewhere");
            return Err(halt(Cause(Kind::Divergence, what), Some(mask.trailing_zeros())));
        }
        let what = format!("waits at a barrier that lanes {gone:#010x} of its warp cannot reach: they have exited");
        Err(halt(Cause(Kind::Deadlock, what), Some(mask.trailing_zeros())))
    }

    #[inline(always)]
    fn step(&mut self, i: &Inst, mask: u32) -> Result<(), Stop> {
        let w = &mut *self.warp;
        match i.op {
            Op::Un(F1::Approx(approx)) => self.approximate(i, mask, approx),
            Op::Bin(F2::FDivApprox { ftz }) => self.divide(i, mask, ftz),
            Op::Un(f) => alu::word1(w, i, mask, f),
            Op::Bin(f) => alu::word2(w, i, mask, f),
            Op::Half(f, signed) => alu::half2(w, i, mask, f, signed),
            Op::Tri(f) => alu::word3(w, i, mask, f),
            Op::Bfi => alu::insert(w, i, mask),
            Op::Mov => {
                let value = *w.word(i.src[0]);
                w.put(i.dst[0], mask, &value);
            }
            Op::Mov64 => {
                let value = *w.long(i.src[0]);
                w.put_long(i.dst[0], mask, &value);
            }
            Op::Set { cmp, ty, ftz, combine, pair } => {
                let holds = alu::compare(w, i, cmp, ty, ftz);
                alu::set(w, i, mask, holds, combine, pair);
            }
            Op::Sel => alu::select(w, i, mask),
            Op::Sel64 => alu64::select(w, i, mask),
            Op::Load(access) => return self.load(i, mask, access),
            Op::Store(access) => return self.store(i, mask, access),
            Op::Mma { element, k, .. } => return self.mma(i, mask, element, usize::from(k)),
            Op::LdMatrix { count, trans, access } => return self.ldmatrix(i, mask, count, trans, access),
            Op::Shfl { mode, pair } => return collective::shuffle(w, i, mask, mode, pair),
            Op::CvtPair { to, relu } => convert::pair(w, i, mask, to, relu),
            Op::Cvt { to, from, round, integral, ftz, sat } => {
                convert::convert(w, i, mask, Cvt { to, from, round, integral, ftz, sat });
            }
            _ => return self.step_rare(i, mask),
        }
        Ok(())
    }

    fn step_rare(&mut self, i: &Inst, mask: u32) -> Result<(), Stop> {
        let w = &mut *self.warp;
        match i.op {
            Op::Un64(f) => alu64::long1(w, i, mask, f),
            Op::Un64Word(f) => alu64::long1_word(w, i, mask, f),
            Op::Bin64(f) => alu64::long2(w, i, mask, f),
            Op::Tri64(f) => alu64::long3(w, i, mask, f),
            Op::Shift64(f) => alu64::shift(w, i, mask, f),
            Op::MulWide { signed } => alu64::wide(w, i, mask, signed, false),
            Op::MadWide { signed } => alu64::wide(w, i, mask, signed, true),
            Op::Bfe64 { signed } => alu64::field(w, i, mask, false, signed),
            Op::Bfi64 => alu64::field(w, i, mask, true, false),
            Op::Pack => alu64::pack(w, i, mask),
            Op::Unpack => alu64::unpack(w, i, mask),
            Op::PackHalves => alu64::pack_halves(w, i, mask),
            Op::UnpackHalves => alu64::unpack_halves(w, i, mask),
            Op::PackQuarters => alu64::pack_quarters(w, i, mask),
            Op::UnpackQuarters => alu64::unpack_quarters(w, i, mask),
            Op::Testp { nan, inf, finite } => {
                let holds = alu::test(w, i, nan, inf, finite);
                w.put_pred(i.dst[0], mask, holds);
            }
            Op::Slct { float } => alu::select_sign(w, i, mask, float),
            Op::PredMov => w.put_pred(i.dst[0], mask, w.pred(i.src[0])),
            Op::PredNot => w.put_pred(i.dst[0], mask, !w.pred(i.src[0])),
            Op::PredLogic(logic) => {
                let value = alu::logic2(logic, w.pred(i.src[0]), w.pred(i.src[1]));
                w.put_pred(i.dst[0], mask, value);
            }
            Op::Param { offset, bytes, signed, long } => self.param(i, mask, offset, bytes, signed, long),
            Op::Atom { access, rmw, result } => return self.atomic(i, mask, access, rmw, result),
            Op::Vote(mode, negated) => return collective::vote(w, i, mask, mode, negated),
            Op::Redux(rmw) => return collective::reduce(w, i, mask, rmw),
            Op::MatchAny => return collective::match_any(w, i, mask),
            Op::ActiveMask => w.put(i.dst[0], mask, &[mask; 32]),
            Op::BarWarp => {
                let masks = *w.word(i.src[0]);
                collective::members(w, &masks, mask)?;
                w.sync += 1;
                self.agent.sync += 1;
            }
            Op::CpAsync { bytes, access, source, sized } => {
                return self.copy(i, mask, u32::from(bytes), access, source, sized);
            }
            Op::CpCommit => self.commit(mask),
            Op::CpWait { pending } => return self.wait(mask, Some(pending)),
            Op::CpWaitAll => return self.wait(mask, None),
            Op::Trap => return Err(halt(Cause(Kind::Trap, "trap".to_owned()), Some(mask.trailing_zeros()))),
            _ => {}
        }
        Ok(())
    }

    fn param(&mut self, i: &Inst, mask: u32, offset: u32, bytes: u8, signed: bool, long: bool) {
        let mut raw = [0u8; 8];
        let (from, n) = (offset as usize, usize::from(bytes));
        // Launch made the block as long as the parameter list says, and lowering checked the range.
        if let Some(data) = self.cx.params.get(from..from + n) {
            raw[..n].copy_from_slice(data);
        }
        let value = u64::from_le_bytes(raw);
        let shift = 64 - 8 * u32::from(bytes);
        let value = if signed { ((value << shift) as i64 >> shift) as u64 } else { value };
        if long {
            self.warp.put_long(i.dst[0], mask, &[value; 32]);
        } else {
            self.warp.put(i.dst[0], mask, &[value as u32; 32]);
        }
    }

    fn approximate(&mut self, i: &Inst, mask: u32, approx: Approx) {
        let a = *self.warp.word(i.src[0]);
        let mut out = [0u32; 32];
        if approx.f == Special1::Ex2 && !approx.ftz {
            for l in 0..32 {
                out[l] = float::exp2(f32::from_bits(a[l])).to_bits();
            }
        } else if approx.f == Special1::Ex2 {
            for l in 0..32 {
                out[l] = float::flush(float::exp2(float::flush(f32::from_bits(a[l])))).to_bits();
            }
        } else {
            for l in 0..32 {
                out[l] = float::canon(float::approx(approx.f, approx.ftz, f32::from_bits(a[l])));
            }
        }
        if let Some(noise) = self.cx.options.noise {
            (0..32).for_each(|l| out[l] = disturb(noise, approx.f as u64, u64::from(a[l]), out[l]));
        }
        self.warp.put(i.dst[0], mask, &out);
    }

    fn divide(&mut self, i: &Inst, mask: u32, ftz: bool) {
        let (a, b) = (*self.warp.word(i.src[0]), *self.warp.word(i.src[1]));
        let cut = |x: u32| if ftz { float::flush(f32::from_bits(x)) } else { f32::from_bits(x) };
        let out: [u32; 32] = std::array::from_fn(|l| {
            let q = cut(a[l]) / cut(b[l]);
            let bits = float::canon(if ftz { float::flush(q) } else { q });
            match self.cx.options.noise {
                Some(noise) => disturb(noise, 99, u64::from(a[l]) << 32 | u64::from(b[l]), bits),
                None => bits,
            }
        });
        self.warp.put(i.dst[0], mask, &out);
    }
}

/// Moves a result by up to two units in its last place. The error is a function of the seed, the operation and its
/// operands, as on hardware: equal rows stay equal.
fn disturb(noise: Noise, op: u64, input: u64, bits: u32) -> u32 {
    let x = f32::from_bits(bits);
    if !x.is_finite() || x == 0.0 || !x.is_normal() {
        return bits;
    }
    let mut h = noise.seed() ^ input.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ op << 56;
    h = (h ^ h >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ h >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let step = match noise {
        Noise::Mixed(_) => (h >> 40) as i32 % 5 - 2,
        Noise::Up(_) => (h >> 40) as i32 % 3,
        Noise::Down(_) => -((h >> 40) as i32 % 3),
    };
    // Away from zero is up in bits; Up and Down mean the value, not its magnitude.
    let step = if x < 0.0 && !matches!(noise, Noise::Mixed(_)) { -step } else { step };
    let moved = f32::from_bits(bits.wrapping_add_signed(step));
    if moved.is_normal() { moved.to_bits() } else { bits }
}
