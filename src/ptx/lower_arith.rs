//! Lowering of arithmetic, comparisons, moves and conversions.

use super::ast::{Class, Operand};
use super::error::Result;
use super::inst::{Approx, Cmp, Element, F1, F2, F3, L1, L1W, L2, L3, Logic, Mode, Op, Round, Shift, Special1, Ty};
use super::lower::{Lower, Words};

/// The types a two-operand family comes in.
#[derive(Clone, Copy)]
struct Pair {
    unsigned: F2,
    signed: F2,
    long_unsigned: L2,
    long_signed: L2,
}

fn pair(unsigned: F2, signed: F2, long_unsigned: L2, long_signed: L2) -> Pair {
    Pair { unsigned, signed, long_unsigned, long_signed }
}

impl Lower<'_> {
    /// Lowers the statement if its family is arithmetic.
    pub(super) fn arithmetic(&mut self, w: &mut Words<'_>) -> Result<bool> {
        match w.head {
            "add" | "sub" | "mul" | "div" | "min" | "max" | "rem" => self.two(w)?,
            "mad" | "fma" => self.three(w)?,
            "and" | "or" | "xor" | "not" | "cnot" => self.logic(w)?,
            "shl" | "shr" => self.shift(w)?,
            "neg" | "abs" => self.sign(w)?,
            "popc" | "clz" | "brev" | "bfind" => self.count(w)?,
            "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh" => self.special(w)?,
            "bfe" | "bfi" | "lop3" | "prmt" | "shf" | "sad" => self.bits(w)?,
            "setp" => self.setp(w)?,
            "testp" => self.testp(w)?,
            "selp" | "slct" => self.select(w)?,
            "copysign" => {
                let ty = self.ty(w, &[Ty::F32, Ty::F64])?;
                self.simple(if ty == Ty::F32 { Op::Bin(F2::CopySign) } else { Op::Bin64(L2::CopySign) }, ty, 2)?;
            }
            "mov" => self.mov(w)?,
            "cvt" => self.cvt(w)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The next type, which must be one of these.
    pub(super) fn ty(&mut self, w: &mut Words<'_>, allowed: &[Ty]) -> Result<Ty> {
        match w.ty() {
            Some(ty) if allowed.contains(&ty) => Ok(ty),
            Some(ty) => self.bad(format!("type {ty:?} is not executed here")),
            None => self.bad("no type"),
        }
    }

    /// destination and `n` sources, all of one type.
    fn simple(&mut self, op: Op, ty: Ty, n: usize) -> Result<()> {
        self.arity(n + 1)?;
        let d = self.dst(0, Self::class(ty))?;
        let mut src = Vec::with_capacity(n);
        for i in 0..n {
            src.push(self.src(i + 1, ty)?);
        }
        self.emit(op, &[d], &src)
    }

    fn any(&mut self, w: &mut Words<'_>) -> Result<Ty> {
        match w.ty() {
            Some(ty) if !matches!(ty, Ty::B8 | Ty::U8 | Ty::S8 | Ty::Pred) => Ok(ty),
            Some(ty) => self.bad(format!("type {ty:?} is not executed here")),
            None => self.bad("no type"),
        }
    }

    fn two(&mut self, w: &mut Words<'_>) -> Result<()> {
        let wide = w.head == "mul" && w.flag("wide");
        let hi = w.head == "mul" && w.flag("hi");
        let lo = w.head == "mul" && w.flag("lo");
        let ty = self.any(w)?;
        if matches!(ty, Ty::F32 | Ty::F64) {
            return self.two_float(w, ty);
        }
        if wide {
            return match ty {
                Ty::U32 | Ty::S32 => self.mul_wide(ty),
                Ty::U16 => self.wide16(F2::MulWide16U, ty),
                Ty::S16 => self.wide16(F2::MulWide16S, ty),
                _ => self.bad("mul.wide of this type"),
            };
        }
        let saturate = matches!(w.head, "add" | "sub") && ty == Ty::S32 && w.flag("sat");
        let family = match w.head {
            "add" if saturate => pair(F2::AddSat, F2::AddSat, L2::Add, L2::Add),
            "sub" if saturate => pair(F2::SubSat, F2::SubSat, L2::Sub, L2::Sub),
            "add" => pair(F2::Add, F2::Add, L2::Add, L2::Add),
            "sub" => pair(F2::Sub, F2::Sub, L2::Sub, L2::Sub),
            "mul" if hi => pair(F2::MulHiU, F2::MulHiS, L2::MulHiU, L2::MulHiS),
            "mul" if lo => pair(F2::MulLo, F2::MulLo, L2::MulLo, L2::MulLo),
            "div" => pair(F2::DivU, F2::DivS, L2::DivU, L2::DivS),
            "rem" => pair(F2::RemU, F2::RemS, L2::RemU, L2::RemS),
            "min" => pair(F2::MinU, F2::MinS, L2::MinU, L2::MinS),
            "max" => pair(F2::MaxU, F2::MaxS, L2::MaxU, L2::MaxS),
            _ => return self.bad("integer mul needs .lo, .hi or .wide"),
        };
        let word = if ty.signed() { family.signed } else { family.unsigned };
        let op = match ty {
            Ty::U32 | Ty::S32 => Op::Bin(word),
            Ty::U16 | Ty::S16 if !hi => Op::Half(word, ty.signed()),
            Ty::U64 => Op::Bin64(family.long_unsigned),
            Ty::S64 => Op::Bin64(family.long_signed),
            _ => return self.bad(format!("type {ty:?} is not executed here")),
        };
        self.simple(op, ty, 2)
    }

    fn wide16(&mut self, f: F2, ty: Ty) -> Result<()> {
        self.simple(Op::Bin(f), ty, 2)
    }

    fn mul_wide(&mut self, ty: Ty) -> Result<()> {
        self.arity(3)?;
        let (d, a, b) = (self.dst(0, Class::Long)?, self.src(1, ty)?, self.src(2, ty)?);
        self.emit(Op::MulWide { signed: ty.signed() }, &[d], &[a, b])
    }

    fn two_float(&mut self, w: &mut Words<'_>, ty: Ty) -> Result<()> {
        if matches!(w.head, "min" | "max") {
            let (ftz, nan) = (w.flag("ftz"), w.flag("NaN"));
            let op = match (w.head, ty) {
                ("min", Ty::F32) => Op::Bin(F2::FMin { ftz, nan }),
                ("max", Ty::F32) => Op::Bin(F2::FMax { ftz, nan }),
                ("min", _) if !ftz && !nan => Op::Bin64(L2::DMin),
                ("max", _) if !ftz && !nan => Op::Bin64(L2::DMax),
                _ => return self.bad("modifier on f64"),
            };
            return self.simple(op, ty, 2);
        }
        if w.head == "div" && (w.flag("approx") || w.flag("full")) {
            let ftz = w.flag("ftz");
            if ty != Ty::F32 {
                return self.bad("approximate division of f64");
            }
            return self.simple(Op::Bin(F2::FDivApprox { ftz }), ty, 2);
        }
        let mode = w.mode();
        if ty == Ty::F64 {
            if mode != Mode::PLAIN {
                return self.bad("only .rn for f64");
            }
            let op = match w.head {
                "add" => L2::DAdd,
                "sub" => L2::DSub,
                "mul" => L2::DMul,
                "div" => L2::DDiv,
                _ => return self.bad("type f64"),
            };
            return self.simple(Op::Bin64(op), ty, 2);
        }
        let op = match w.head {
            "add" => F2::FAdd(mode),
            "sub" => F2::FSub(mode),
            "mul" => F2::FMul(mode),
            "div" if !mode.sat => F2::FDiv(mode),
            _ => return self.bad("type f32"),
        };
        self.simple(Op::Bin(op), ty, 2)
    }

    fn three(&mut self, w: &mut Words<'_>) -> Result<()> {
        let (wide, hi, lo) = (w.flag("wide"), w.flag("hi"), w.flag("lo"));
        let ty = self.any(w)?;
        match ty {
            Ty::F32 if !(wide || hi || lo) => {
                let mode = w.mode();
                self.simple(Op::Tri(F3::Fma(mode)), ty, 3)
            }
            Ty::F64 if !(wide || hi || lo) => {
                if w.mode() != Mode::PLAIN {
                    return self.bad("only .rn for f64");
                }
                self.simple(Op::Tri64(L3::DFma), ty, 3)
            }
            Ty::U32 | Ty::S32 if wide => {
                self.arity(4)?;
                let (d, a, b) = (self.dst(0, Class::Long)?, self.src(1, ty)?, self.src(2, ty)?);
                let c = self.src(3, Ty::U64)?;
                self.emit(Op::MadWide { signed: ty.signed() }, &[d], &[a, b, c])
            }
            Ty::U32 | Ty::S32 if lo => self.simple(Op::Tri(F3::MadLo), ty, 3),
            Ty::U32 if hi => self.simple(Op::Tri(F3::MadHiU), ty, 3),
            Ty::S32 if hi => self.simple(Op::Tri(F3::MadHiS), ty, 3),
            // The low half of a product of halves is the low half of the product of their words.
            Ty::U16 | Ty::S16 if lo => self.simple(Op::Tri(F3::MadLo), ty, 3),
            Ty::U64 | Ty::S64 if lo => self.simple(Op::Tri64(L3::MadLo), ty, 3),
            _ => self.bad(format!("type {ty:?} is not executed here")),
        }
    }

    fn logic(&mut self, w: &mut Words<'_>) -> Result<()> {
        let ty = self.ty(w, &[Ty::Pred, Ty::B16, Ty::B32, Ty::B64])?;
        if ty == Ty::Pred {
            let op = match w.head {
                "and" => Op::PredLogic(Logic::And),
                "or" => Op::PredLogic(Logic::Or),
                "xor" => Op::PredLogic(Logic::Xor),
                "not" => return self.simple(Op::PredNot, ty, 1),
                _ => return self.bad("type pred"),
            };
            return self.simple(op, ty, 2);
        }
        let (word, long) = match w.head {
            "and" => (F2::And, L2::And),
            "or" => (F2::Or, L2::Or),
            "xor" => (F2::Xor, L2::Xor),
            "not" if ty == Ty::B64 => return self.simple(Op::Un64(L1::Not), ty, 1),
            "not" => return self.simple(Op::Un(F1::Not), ty, 1),
            _ if ty == Ty::B32 => return self.simple(Op::Un(F1::Cnot), ty, 1),
            _ => return self.bad("this type"),
        };
        self.simple(if ty == Ty::B64 { Op::Bin64(long) } else { Op::Bin(word) }, ty, 2)
    }

    fn shift(&mut self, w: &mut Words<'_>) -> Result<()> {
        let left = w.head == "shl";
        let ty = self.any(w)?;
        let (word, long) = match (left, ty.signed()) {
            (true, false) => (F2::Shl, Shift::Left),
            (false, false) => (F2::ShrU, Shift::RightU),
            (false, true) => (F2::ShrS, Shift::RightS),
            _ => return self.bad("shl takes .b types"),
        };
        let op = match ty.bits() {
            _ if ty.float() => return self.bad("float type"),
            16 => Op::Half(word, ty.signed()),
            32 => Op::Bin(word),
            _ => Op::Shift64(long),
        };
        self.arity(3)?;
        let (d, a) = (self.dst(0, Self::class(ty))?, self.src(1, ty)?);
        let b = self.src(2, Ty::U32)?;
        self.emit(op, &[d], &[a, b])
    }

    fn sign(&mut self, w: &mut Words<'_>) -> Result<()> {
        let ftz = w.flag("ftz");
        let ty = self.ty(w, &[Ty::S16, Ty::S32, Ty::S64, Ty::F32, Ty::F64])?;
        let op = match (w.head, ty) {
            ("neg", Ty::F32) => Op::Un(F1::FNeg { ftz }),
            (_, Ty::F32) => Op::Un(F1::FAbs { ftz }),
            _ if ftz => return self.bad(".ftz on this type"),
            ("neg", Ty::F64) => Op::Un64(L1::DNeg),
            (_, Ty::F64) => Op::Un64(L1::DAbs),
            ("neg", Ty::S64) => Op::Un64(L1::Neg),
            (_, Ty::S64) => Op::Un64(L1::Abs),
            ("neg", _) => Op::Un(F1::Neg),
            (_, Ty::S32) => Op::Un(F1::Abs),
            _ => return self.bad("abs.s16"),
        };
        self.simple(op, ty, 1)
    }

    fn count(&mut self, w: &mut Words<'_>) -> Result<()> {
        let shift = w.head == "bfind" && w.flag("shiftamt");
        let ty = self.ty(w, &[Ty::B32, Ty::B64, Ty::U32, Ty::S32, Ty::U64, Ty::S64])?;
        let signed = ty.signed();
        let (word, long) = match w.head {
            "popc" => (F1::Popc, L1W::Popc),
            "clz" => (F1::Clz, L1W::Clz),
            "brev" if ty == Ty::B64 => return self.simple(Op::Un64(L1::Brev), ty, 1),
            "brev" => return self.simple(Op::Un(F1::Brev), ty, 1),
            _ => (F1::Bfind { signed, shift }, L1W::Bfind { signed, shift }),
        };
        if ty.bits() == 32 {
            return self.simple(Op::Un(word), ty, 1);
        }
        self.arity(2)?;
        let (d, a) = (self.dst(0, Class::Word)?, self.src(1, ty)?);
        self.emit(Op::Un64Word(long), &[d], &[a])
    }

    fn special(&mut self, w: &mut Words<'_>) -> Result<()> {
        let approx = w.flag("approx");
        let ty = self.ty(w, &[Ty::F32, Ty::F64])?;
        if approx && ty == Ty::F32 {
            let f = match w.head {
                "ex2" => Special1::Ex2,
                "lg2" => Special1::Lg2,
                "rcp" => Special1::Rcp,
                "rsqrt" => Special1::Rsqrt,
                "sqrt" => Special1::Sqrt,
                "sin" => Special1::Sin,
                "cos" => Special1::Cos,
                _ => Special1::Tanh,
            };
            let ftz = w.flag("ftz");
            return self.simple(Op::Un(F1::Approx(Approx { f, ftz })), ty, 1);
        }
        let mode = w.mode();
        let op = match (w.head, ty) {
            _ if approx || mode.sat => return self.bad("this form"),
            ("rcp", Ty::F32) => Op::Un(F1::Rcp(mode)),
            ("sqrt", Ty::F32) => Op::Un(F1::Sqrt(mode)),
            ("rcp", _) if mode == Mode::PLAIN => Op::Un64(L1::DRcp),
            ("sqrt", _) if mode == Mode::PLAIN => Op::Un64(L1::DSqrt),
            _ => return self.bad("this form"),
        };
        self.simple(op, ty, 1)
    }

    fn bits(&mut self, w: &mut Words<'_>) -> Result<()> {
        match w.head {
            "lop3" => {
                self.ty(w, &[Ty::B32])?;
                self.arity(5)?;
                let Operand::Int(table) = *self.operand(4)? else { return self.bad("the table must be a literal") };
                let d = self.dst(0, Class::Word)?;
                let src = [self.src(1, Ty::B32)?, self.src(2, Ty::B32)?, self.src(3, Ty::B32)?];
                self.emit(Op::Tri(F3::Lop3(table as u8)), &[d], &src)
            }
            "prmt" => {
                self.ty(w, &[Ty::B32])?;
                self.simple(Op::Tri(F3::Prmt), Ty::B32, 3)
            }
            "shf" => {
                let left = w.flag("l");
                let right = !left && w.flag("r");
                let wrap = w.flag("wrap");
                let clamp = !wrap && w.flag("clamp");
                self.ty(w, &[Ty::B32])?;
                if !(left || right) || !(wrap || clamp) {
                    return self.bad("direction and mode are needed");
                }
                self.simple(Op::Tri(F3::Shf { left, wrap }), Ty::B32, 3)
            }
            "sad" => {
                let ty = self.ty(w, &[Ty::U32, Ty::S32])?;
                self.simple(Op::Tri(if ty == Ty::U32 { F3::SadU } else { F3::SadS }), ty, 3)
            }
            "bfe" => {
                let ty = self.ty(w, &[Ty::U32, Ty::S32, Ty::U64, Ty::S64])?;
                let op = match ty {
                    Ty::U32 => Op::Tri(F3::BfeU),
                    Ty::S32 => Op::Tri(F3::BfeS),
                    _ => Op::Bfe64 { signed: ty.signed() },
                };
                self.arity(4)?;
                let (d, a) = (self.dst(0, Self::class(ty))?, self.src(1, ty)?);
                let (b, c) = (self.src(2, Ty::U32)?, self.src(3, Ty::U32)?);
                self.emit(op, &[d], &[a, b, c])
            }
            _ => {
                let ty = self.ty(w, &[Ty::B32, Ty::B64])?;
                self.arity(5)?;
                let d = self.dst(0, Self::class(ty))?;
                let src = [self.src(1, ty)?, self.src(2, ty)?, self.src(3, Ty::U32)?, self.src(4, Ty::U32)?];
                self.emit(if ty == Ty::B32 { Op::Bfi } else { Op::Bfi64 }, &[d], &src)
            }
        }
    }

    fn setp(&mut self, w: &mut Words<'_>) -> Result<()> {
        let ftz = w.flag("ftz");
        let logic = w.one_of(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)]);
        let Some(ty) = w.ty() else { return self.bad("no type") };
        // lo, ls, hi, hs are the unsigned spellings of lt, le, gt, ge.
        let table = [
            ("eq", Cmp::Eq),
            ("ne", Cmp::Ne),
            ("lt", Cmp::Lt),
            ("le", Cmp::Le),
            ("gt", Cmp::Gt),
            ("ge", Cmp::Ge),
            ("lo", Cmp::Lt),
            ("ls", Cmp::Le),
            ("hi", Cmp::Gt),
            ("hs", Cmp::Ge),
        ];
        let float_table = [
            ("equ", Cmp::EqU),
            ("neu", Cmp::NeU),
            ("ltu", Cmp::LtU),
            ("leu", Cmp::LeU),
            ("gtu", Cmp::GtU),
            ("geu", Cmp::GeU),
            ("num", Cmp::Num),
            ("nan", Cmp::Nan),
        ];
        let cmp = match w.one_of(&table) {
            None if ty.float() => w.one_of(&float_table),
            found => found,
        };
        let Some(cmp) = cmp else { return self.bad("comparison") };
        if !matches!(ty.bits(), 16 | 32 | 64)
            || (ty.float() && !matches!(ty, Ty::F32 | Ty::F64))
            || (ftz && ty != Ty::F32)
        {
            return self.bad(format!("type {ty:?} is not executed here"));
        }
        self.arity(if logic.is_some() { 4 } else { 3 })?;
        let (dst, pair) = match self.operand(0)? {
            Operand::Pair(p, q) if p.class == Class::Pred && q.class == Class::Pred => {
                ([super::lower::slot(*p), super::lower::slot(*q)], true)
            }
            _ => ([self.dst(0, Class::Pred)?, 0], false),
        };
        let mut src = vec![self.src(1, ty)?, self.src(2, ty)?];
        let combine = match logic {
            Some(logic) => {
                let (p, negated) = self.pred(3)?;
                src.push(p);
                Some((logic, negated))
            }
            None => None,
        };
        self.emit(Op::Set { cmp, ty, ftz, combine, pair }, &dst[..1 + usize::from(pair)], &src)
    }

    fn testp(&mut self, w: &mut Words<'_>) -> Result<()> {
        let (nan, inf) = (w.flag("notanumber"), w.flag("infinite"));
        let finite = w.flag("finite");
        self.ty(w, &[Ty::F32])?;
        self.arity(2)?;
        let (d, a) = (self.dst(0, Class::Pred)?, self.src(1, Ty::F32)?);
        if !(nan || inf || finite) {
            return self.bad("this test");
        }
        self.emit(Op::Testp { nan, inf, finite }, &[d], &[a])
    }

    fn select(&mut self, w: &mut Words<'_>) -> Result<()> {
        let Some(ty) = w.ty() else { return self.bad("no type") };
        self.arity(4)?;
        if ty.bits() < 16 {
            return self.bad("this type");
        }
        let (d, a, b) = (self.dst(0, Self::class(ty))?, self.src(1, ty)?, self.src(2, ty)?);
        if w.head == "slct" {
            let cty = self.ty(w, &[Ty::S32, Ty::F32])?;
            let c = self.src(3, cty)?;
            if ty.bits() != 32 {
                return self.bad("this type");
            }
            return self.emit(Op::Slct { float: cty == Ty::F32 }, &[d], &[a, b, c]);
        }
        let (p, negated) = self.pred(3)?;
        let src = if negated { [b, a, p] } else { [a, b, p] };
        self.emit(if ty.bits() == 64 { Op::Sel64 } else { Op::Sel }, &[d], &src)
    }

    fn mov(&mut self, w: &mut Words<'_>) -> Result<()> {
        let Some(ty) = w.ty() else { return self.bad("no type") };
        self.arity(2)?;
        let part = |n: usize| match (ty.bits(), n) {
            (32, 2) => Some((Ty::B16, Op::PackHalves, Op::UnpackHalves)),
            (64, 2) => Some((Ty::B32, Op::Pack, Op::Unpack)),
            (64, 4) => Some((Ty::B16, Op::PackQuarters, Op::UnpackQuarters)),
            _ => None,
        };
        match (self.operand(0)?, self.operand(1)?) {
            (Operand::Vector(list), _) => {
                let Some((_, _, op)) = part(list.len()) else { return self.bad("vector form") };
                let mut dst = Vec::new();
                for operand in list {
                    dst.push(self.dst_operand(operand, Class::Word)?);
                }
                let a = self.src(1, ty)?;
                self.emit(op, &dst, &[a])
            }
            (_, Operand::Vector(list)) => {
                let Some((part_ty, op, _)) = part(list.len()) else { return self.bad("vector form") };
                let mut src = Vec::new();
                for operand in list {
                    src.push(self.src_operand(operand, part_ty)?);
                }
                let d = self.dst(0, Self::class(ty))?;
                self.emit(op, &[d], &src)
            }
            (_, Operand::Int(value)) if ty == Ty::Pred => {
                // NVRTC writes a constant predicate as 0 or -1.
                let (d, value) = (self.dst(0, Class::Pred)?, u64::from(*value != 0));
                let (a, b) = (self.literal(Class::Word, value), self.literal(Class::Word, 0));
                self.emit(Op::Set { cmp: Cmp::Ne, ty: Ty::U32, ftz: false, combine: None, pair: false }, &[d], &[a, b])
            }
            _ => match ty.bits() {
                1 => self.simple(Op::PredMov, ty, 1),
                64 => self.simple(Op::Mov64, ty, 1),
                16 | 32 => self.simple(Op::Mov, ty, 1),
                _ => self.bad("this type"),
            },
        }
    }

    fn cvt(&mut self, w: &mut Words<'_>) -> Result<()> {
        let float_round = w.one_of(&[
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
            ("rna", Round::Away),
        ]);
        let int_round =
            w.one_of(&[("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)]);
        let (ftz, sat, relu) = (w.flag("ftz"), w.flag("sat"), w.flag("relu"));
        let (Some(to), Some(from)) = (w.ty(), w.ty()) else { return self.bad("two types are needed") };
        if matches!(to, Ty::BF16x2 | Ty::F16x2) {
            if from != Ty::F32 || float_round != Some(Round::Nearest) || ftz || sat || int_round.is_some() {
                return self.bad("only .rn from f32");
            }
            self.arity(3)?;
            let (d, a, b) = (self.dst(0, Class::Word)?, self.src(1, from)?, self.src(2, from)?);
            let element = if to == Ty::BF16x2 { Element::BF16 } else { Element::F16 };
            return self.emit(Op::CvtPair { to: element, relu }, &[d], &[a, b]);
        }
        if relu || to == Ty::Pred || from == Ty::Pred || matches!(from, Ty::TF32 | Ty::F16x2 | Ty::BF16x2) {
            return self.bad("this conversion");
        }
        let narrowing = match (to.float(), from.float()) {
            (true, true) => to.bits() < from.bits() || matches!(to, Ty::TF32),
            (true, false) => true,
            _ => false,
        };
        // An integer result of a float, or a float rounded to an integral float of the same type.
        let integral = int_round.is_some();
        let legal = match (to.float(), from.float()) {
            (true, true) if integral => to == from && matches!(to, Ty::F32 | Ty::F64) && float_round.is_none(),
            (true, true) => narrowing == float_round.is_some() && (to != Ty::TF32 || from == Ty::F32),
            (true, false) => float_round.is_some() && !integral && matches!(to, Ty::F32 | Ty::F64),
            (false, true) => integral && float_round.is_none() && matches!(from, Ty::F32 | Ty::F64 | Ty::F16),
            (false, false) => !integral && float_round.is_none(),
        };
        let away = float_round == Some(Round::Away);
        if !legal || away != (to == Ty::TF32) {
            return self.bad("rounding does not fit the types");
        }
        self.arity(2)?;
        let (d, a) = (self.dst(0, Self::class(to))?, self.src(1, from)?);
        self.emit(Op::Cvt { to, from, round: float_round.or(int_round), integral, ftz, sat }, &[d], &[a])
    }
}
