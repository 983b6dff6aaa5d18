//! Lowering of memory accesses, warp-wide instructions, barriers, control flow, matrix instructions and asynchronous
//! copies.

use super::ast::{Class, Operand, Space};
use super::error::Result;
use super::inst::{Access, BarKind, Element, Op, Rmw, ShflMode, Slot, Ty, VoteMode};
use super::lower::{Lower, Words};
use super::memory::TAG_SHIFT;

impl Lower<'_> {
    /// Lowers the statement if its family is one of memory, warp, barrier or control.
    pub(super) fn memory(&mut self, w: &mut Words<'_>) -> Result<bool> {
        match w.head {
            "ld" => self.load(w)?,
            "st" => self.store(w)?,
            "atom" | "red" => self.atomic(w)?,
            "cvta" => self.cvta(w)?,
            "shfl" => self.shfl(w)?,
            "vote" => self.vote(w)?,
            "redux" => self.redux(w)?,
            "match" => self.match_any(w)?,
            "activemask" => {
                self.ty(w, &[Ty::B32])?;
                self.arity(1)?;
                let d = self.dst(0, Class::Word)?;
                self.emit(Op::ActiveMask, &[d], &[])?;
            }
            "bar" | "barrier" => self.barrier(w)?,
            "membar" | "fence" => self.fence(w)?,
            "bra" => self.branch(w)?,
            "ret" | "exit" => {
                w.flag("uni");
                self.arity(0)?;
                self.emit(Op::Exit, &[], &[])?;
            }
            "trap" => self.emit(Op::Trap, &[], &[])?,
            "ldmatrix" => self.ldmatrix(w)?,
            "mma" => self.mma(w)?,
            "cp" => self.copy(w)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// State space, ordering and cache hints. Hints change no result; orderings make the access no data race.
    fn space(&mut self, w: &mut Words<'_>) -> (Space, bool) {
        let strong = ["volatile", "relaxed", "acquire", "release", "acq_rel"].iter().filter(|m| w.flag(m)).count() > 0;
        if strong {
            let _scope = w.flag("cta") || w.flag("gpu") || w.flag("sys");
        }
        let space = w.one_of(&[
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
            ("local", Space::Local),
            ("const", Space::Const),
            ("param", Space::Param),
        ]);
        (space.unwrap_or(Space::Generic), strong)
    }

    fn hints(w: &mut Words<'_>) {
        w.flag("weak");
        for hint in ["nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"] {
            w.flag(hint);
        }
        for hint in ["L1::evict_last", "L1::evict_first", "L1::no_allocate", "L1::evict_normal"] {
            w.flag(hint);
        }
        for hint in ["L2::64B", "L2::128B", "L2::256B"] {
            w.flag(hint);
        }
    }

    /// The register and offset of an address operand; a variable's own address becomes a literal.
    fn address(&mut self, i: usize, space: Space) -> Result<(Slot, i64, bool)> {
        let Operand::Address(base, offset) = self.operand(i)? else { return self.bad("an address is needed") };
        match base.as_ref() {
            Operand::Reg(reg) if reg.class == Class::Long => Ok((super::lower::slot(*reg), *offset, true)),
            Operand::Reg(reg) if reg.class == Class::Word && matches!(space, Space::Shared | Space::Local) => {
                Ok((super::lower::slot(*reg), *offset, false))
            }
            Operand::Name(name) => match self.symbol(name) {
                Some((found, at)) if found == space => Ok((self.literal(Class::Long, at), *offset, true)),
                Some((Space::Global, at)) if space == Space::Generic => {
                    Ok((self.literal(Class::Long, at), *offset, true))
                }
                _ => self.bad(format!("`{name}` is no variable of this space")),
            },
            other => self.bad(format!("address {other:?}")),
        }
    }

    /// `.v2`, `.v4` and the type of an access.
    fn shape(&mut self, w: &mut Words<'_>) -> Result<(u8, Ty)> {
        let count = w.one_of(&[("v2", 2u8), ("v4", 4)]).unwrap_or(1);
        match w.ty() {
            Some(ty) if ty != Ty::Pred && !matches!(ty, Ty::TF32) && ty.bits() * u32::from(count) <= 128 => {
                Ok((count, ty))
            }
            _ => self.bad("type or vector"),
        }
    }

    fn load(&mut self, w: &mut Words<'_>) -> Result<()> {
        let (space, strong) = self.space(w);
        Self::hints(w);
        let (count, ty) = self.shape(w)?;
        self.arity(2)?;
        let class_of = |lower: &mut Self, operand: &Operand<'_>| match operand {
            // A narrow load may fill a register wider than its type.
            Operand::Reg(reg) if reg.class == Class::Long => lower.dst_operand(operand, Class::Long),
            _ => lower.dst_operand(operand, Class::Word),
        };
        let operand = self.operand(0)?;
        let mut dst = Vec::new();
        match operand {
            Operand::Vector(list) if list.len() == usize::from(count) => {
                for item in list {
                    let item = if matches!(item, Operand::Sink) && ty.bits() == 64 {
                        self.scratch(Class::Long)
                    } else {
                        class_of(self, item)?
                    };
                    dst.push(item);
                }
            }
            _ if count == 1 => dst.push(class_of(self, operand)?),
            _ => return self.bad("vector length"),
        }
        let long = dst[0] >> super::lower::CLASS_SHIFT == Class::Long as u32;
        let mixed = dst.iter().any(|d| (d >> super::lower::CLASS_SHIFT == Class::Long as u32) != long);
        if mixed || (ty.bits() == 64 && !long) {
            return self.bad("registers do not fit the type");
        }
        let bytes = (ty.bits() / 8) as u8;
        if space == Space::Param {
            if count != 1 {
                return self.load_param_vector(&dst, bytes, ty.signed(), long);
            }
            let offset = self.param_offset(0, bytes)?;
            return self.emit(Op::Param { offset, bytes, signed: ty.signed(), long }, &dst, &[]);
        }
        let (base, offset, wide) = self.address(1, space)?;
        let access = Access { space, bytes, count, offset, wide, long, signed: ty.signed(), strong };
        self.emit(Op::Load(access), &dst, &[base])
    }

    fn load_param_vector(&mut self, dst: &[Slot], bytes: u8, signed: bool, long: bool) -> Result<()> {
        for (i, &d) in dst.iter().enumerate() {
            let offset = self.param_offset(i as u32 * u32::from(bytes), bytes)?;
            self.emit(Op::Param { offset, bytes, signed, long }, &[d], &[])?;
        }
        Ok(())
    }

    fn param_offset(&self, extra: u32, bytes: u8) -> Result<u32> {
        if let Operand::Address(base, offset) = self.operand(1)?
            && let Operand::Name(name) = base.as_ref()
            && let Some(param) = self.source.params.iter().find(|p| p.name == *name)
        {
            let inside = offset.saturating_add(i64::from(extra));
            if inside >= 0 && inside + i64::from(bytes) <= i64::from(param.bytes) {
                return Ok(param.offset + inside as u32);
            }
            return self.bad("outside of the parameter");
        }
        self.bad("parameters are read by name only")
    }

    fn store(&mut self, w: &mut Words<'_>) -> Result<()> {
        let (space, strong) = self.space(w);
        Self::hints(w);
        let (count, ty) = self.shape(w)?;
        self.arity(2)?;
        if matches!(space, Space::Param | Space::Const) {
            return self.bad("this space is read-only");
        }
        let (base, offset, wide) = self.address(0, space)?;
        let operand = self.operand(1)?;
        let list = match operand {
            Operand::Vector(list) if list.len() == usize::from(count) => list.as_slice(),
            _ if count == 1 => std::slice::from_ref(operand),
            _ => return self.bad("vector length"),
        };
        let mut src = vec![base];
        let long = matches!(list.first(), Some(Operand::Reg(reg)) if reg.class == Class::Long) || ty.bits() == 64;
        for item in list {
            // A store may take the low part of a wider register.
            src.push(self.src_operand(item, if long && !ty.float() { Ty::U64 } else { ty })?);
        }
        let access = Access { space, bytes: (ty.bits() / 8) as u8, count, offset, wide, long, signed: false, strong };
        self.emit(Op::Store(access), &[], &src)
    }

    fn atomic(&mut self, w: &mut Words<'_>) -> Result<()> {
        let result = w.head == "atom";
        let (space, _) = self.space(w);
        let _scope = w.flag("cta") || w.flag("gpu") || w.flag("sys");
        let rmw = w.one_of(&[
            ("add", Rmw::Add),
            ("min", Rmw::MinU),
            ("max", Rmw::MaxU),
            ("and", Rmw::And),
            ("or", Rmw::Or),
            ("xor", Rmw::Xor),
            ("exch", Rmw::Exch),
            ("cas", Rmw::Cas),
            ("inc", Rmw::Inc),
            ("dec", Rmw::Dec),
        ]);
        let ty = self.ty(w, &[Ty::B32, Ty::B64, Ty::U32, Ty::U64, Ty::S32, Ty::S64, Ty::F32, Ty::F64])?;
        let rmw = match (rmw, ty) {
            (Some(Rmw::Add), Ty::F32) => Rmw::FAdd,
            (Some(Rmw::Add), Ty::F64) => Rmw::DAdd,
            (Some(Rmw::MinU), Ty::S32 | Ty::S64) => Rmw::MinS,
            (Some(Rmw::MaxU), Ty::S32 | Ty::S64) => Rmw::MaxS,
            (Some(Rmw::Add | Rmw::MinU | Rmw::MaxU), Ty::U32 | Ty::U64 | Ty::S32 | Ty::S64) => rmw.unwrap_or(Rmw::Add),
            (Some(Rmw::Inc | Rmw::Dec), Ty::U32) => rmw.unwrap_or(Rmw::Inc),
            (Some(Rmw::And | Rmw::Or | Rmw::Xor | Rmw::Exch | Rmw::Cas), Ty::B32 | Ty::B64) => rmw.unwrap_or(Rmw::Or),
            _ => return self.bad("operation and type"),
        };
        if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
            return self.bad("space");
        }
        let first = usize::from(result);
        let values = if rmw == Rmw::Cas { 2 } else { 1 };
        self.arity(first + 1 + values)?;
        let (base, offset, wide) = self.address(first, space)?;
        let mut src = vec![base];
        for i in 0..values {
            src.push(self.src(first + 1 + i, ty)?);
        }
        let dst = if result { vec![self.dst(0, Self::class(ty))?] } else { Vec::new() };
        let bytes = (ty.bits() / 8) as u8;
        let access = Access { space, bytes, count: 1, offset, wide, long: bytes == 8, signed: false, strong: true };
        self.emit(Op::Atom { access, rmw, result }, &dst, &src)
    }

    fn cvta(&mut self, w: &mut Words<'_>) -> Result<()> {
        let to = w.flag("to");
        let (space, _) = self.space(w);
        self.ty(w, &[Ty::U64])?;
        self.arity(2)?;
        let (d, a) = (self.dst(0, Class::Long)?, self.src(1, Ty::U64)?);
        // Windows stand in the top bits: the way in adds the tag, the way out subtracts it.
        let tag = match space {
            Space::Global => 0,
            // Constants and initialised variables carry their tag already.
            Space::Const => 0,
            Space::Shared => super::memory::SHARED_TAG << TAG_SHIFT,
            Space::Local => super::memory::LOCAL_TAG << TAG_SHIFT,
            _ => return self.bad("space"),
        };
        if tag == 0 {
            return self.emit(Op::Mov64, &[d], &[a]);
        }
        let b = self.literal(Class::Long, if to { tag.wrapping_neg() } else { tag });
        self.emit(Op::Bin64(super::inst::L2::Add), &[d], &[a, b])
    }

    fn shfl(&mut self, w: &mut Words<'_>) -> Result<()> {
        if !w.flag("sync") {
            return self.bad("only .sync");
        }
        let mode = w.one_of(&[
            ("up", ShflMode::Up),
            ("down", ShflMode::Down),
            ("bfly", ShflMode::Bfly),
            ("idx", ShflMode::Idx),
        ]);
        let Some(mode) = mode else { return self.bad("mode") };
        self.ty(w, &[Ty::B32])?;
        self.arity(5)?;
        let (dst, pair) = match self.operand(0)? {
            Operand::Pair(d, p) if d.class == Class::Word && p.class == Class::Pred => {
                (vec![super::lower::slot(*d), super::lower::slot(*p)], true)
            }
            _ => (vec![self.dst(0, Class::Word)?], false),
        };
        let mut src = Vec::new();
        for i in 1..5 {
            src.push(self.src(i, Ty::B32)?);
        }
        self.emit(Op::Shfl { mode, pair }, &dst, &src)
    }

    fn vote(&mut self, w: &mut Words<'_>) -> Result<()> {
        if !w.flag("sync") {
            return self.bad("only .sync");
        }
        let mode = w.one_of(&[
            ("any", VoteMode::Any),
            ("all", VoteMode::All),
            ("uni", VoteMode::Uni),
            ("ballot", VoteMode::Ballot),
        ]);
        let Some(mode) = mode else { return self.bad("mode") };
        let ballot = mode == VoteMode::Ballot;
        self.ty(w, if ballot { &[Ty::B32] } else { &[Ty::Pred] })?;
        self.arity(3)?;
        let d = self.dst(0, if ballot { Class::Word } else { Class::Pred })?;
        let (p, negated) = self.pred(1)?;
        let m = self.src(2, Ty::B32)?;
        self.emit(Op::Vote(mode, negated), &[d], &[m, p])
    }

    fn redux(&mut self, w: &mut Words<'_>) -> Result<()> {
        if !w.flag("sync") {
            return self.bad("only .sync");
        }
        let table = [
            ("add", Rmw::Add),
            ("min", Rmw::MinU),
            ("max", Rmw::MaxU),
            ("and", Rmw::And),
            ("or", Rmw::Or),
            ("xor", Rmw::Xor),
        ];
        let Some(rmw) = w.one_of(&table) else { return self.bad("operation") };
        let ty = self.ty(w, &[Ty::U32, Ty::S32, Ty::B32])?;
        let rmw = match (rmw, ty) {
            (Rmw::MinU, Ty::S32) => Rmw::MinS,
            (Rmw::MaxU, Ty::S32) => Rmw::MaxS,
            (Rmw::And | Rmw::Or | Rmw::Xor, Ty::B32) | (Rmw::Add | Rmw::MinU | Rmw::MaxU, Ty::U32 | Ty::S32) => rmw,
            _ => return self.bad("operation and type"),
        };
        self.arity(3)?;
        let (d, a, m) = (self.dst(0, Class::Word)?, self.src(1, ty)?, self.src(2, Ty::B32)?);
        self.emit(Op::Redux(rmw), &[d], &[m, a])
    }

    fn match_any(&mut self, w: &mut Words<'_>) -> Result<()> {
        if !w.all(&["any", "sync"]) {
            return self.bad("only .any.sync");
        }
        self.ty(w, &[Ty::B32])?;
        self.arity(3)?;
        let (d, a, m) = (self.dst(0, Class::Word)?, self.src(1, Ty::B32)?, self.src(2, Ty::B32)?);
        self.emit(Op::MatchAny, &[d], &[m, a])
    }

    fn barrier(&mut self, w: &mut Words<'_>) -> Result<()> {
        if w.head == "bar" && w.flag("warp") {
            if !w.flag("sync") {
                return self.bad("form");
            }
            self.arity(1)?;
            let m = self.src(0, Ty::B32)?;
            return self.emit(Op::BarWarp, &[], &[m]);
        }
        // Without .aligned a barrier may be reached by part of a warp: kernels here do not, so it is refused.
        w.flag("cta");
        if w.head == "barrier" && !w.flag("aligned") {
            return self.bad("only .aligned barriers");
        }
        let red = w.flag("red");
        let kind = if red {
            w.one_of(&[("popc", BarKind::RedPopc), ("and", BarKind::RedAnd), ("or", BarKind::RedOr)])
        } else {
            w.one_of(&[("sync", BarKind::Sync), ("arrive", BarKind::Arrive)])
        };
        let Some(kind) = kind else { return self.bad("form") };
        let dsts = usize::from(red);
        let total = self.statement.operands.len();
        let counted = total > 1 + 2 * dsts;
        self.arity(1 + 2 * dsts + usize::from(counted))?;
        let mut src = vec![self.src(dsts, Ty::U32)?];
        if counted {
            src.push(self.src(dsts + 1, Ty::U32)?);
        } else if kind == BarKind::Arrive {
            return self.bad("bar.arrive needs a thread count");
        }
        let (mut dst, mut negate) = (Vec::new(), false);
        if red {
            let class = if kind == BarKind::RedPopc {
                self.ty(w, &[Ty::U32])?;
                Class::Word
            } else {
                self.ty(w, &[Ty::Pred])?;
                Class::Pred
            };
            dst.push(self.dst(0, class)?);
            let (p, negated) = self.pred(total - 1)?;
            negate = negated;
            src.push(p);
        }
        self.emit(Op::Bar { kind, counted, negate }, &dst, &src)
    }

    /// Fences order memory; execution here is already in order, and races are judged by barriers alone.
    fn fence(&mut self, w: &mut Words<'_>) -> Result<()> {
        self.arity(0)?;
        let known = if w.head == "membar" {
            w.flag("gl") || w.flag("cta") || w.flag("sys")
        } else {
            let _order = w.flag("sc") || w.flag("acq_rel");
            w.flag("cta") || w.flag("gpu") || w.flag("sys")
        };
        if !known {
            return self.bad("scope");
        }
        self.emit(Op::Fence, &[], &[])
    }

    fn branch(&mut self, w: &mut Words<'_>) -> Result<()> {
        let uniform = w.flag("uni");
        self.arity(1)?;
        let Operand::Name(label) = self.operand(0)? else { return self.bad("a label is needed") };
        let Some(&target) = self.source.labels.get(label) else { return self.bad(format!("no label {label}")) };
        self.emit(Op::Bra { target: target as u32, join: 0, uniform }, &[], &[])
    }

    fn ldmatrix(&mut self, w: &mut Words<'_>) -> Result<()> {
        let count = w.one_of(&[("x1", 1u8), ("x2", 2), ("x4", 4)]);
        let trans = w.flag("trans");
        let (Some(count), true) = (count, w.all(&["sync", "aligned", "m8n8"])) else { return self.bad("form") };
        let (space, _) = self.space(w);
        self.ty(w, &[Ty::B16])?;
        self.arity(2)?;
        if space != Space::Shared {
            return self.bad("only .shared");
        }
        let dst = self.fragment(0, usize::from(count), true)?;
        let (base, offset, wide) = self.address(1, Space::Shared)?;
        let access = Access { space, bytes: 4, count: 4, offset, wide, long: false, signed: false, strong: false };
        self.emit(Op::LdMatrix { count, trans, access }, &dst, &[base])
    }

    /// The registers of a matrix fragment.
    fn fragment(&mut self, i: usize, n: usize, dst: bool) -> Result<Vec<Slot>> {
        let single = std::slice::from_ref(self.operand(i)?);
        let list = match self.operand(i)? {
            Operand::Vector(list) => list.as_slice(),
            _ => single,
        };
        if list.len() != n {
            return self.bad(format!("a fragment of {} registers where {n} belong", list.len()));
        }
        let mut slots = Vec::with_capacity(n);
        for item in list {
            slots.push(if dst {
                self.dst_operand(item, Class::Word)?
            } else {
                self.src_operand(item, if matches!(item, Operand::Float(_)) { Ty::F32 } else { Ty::B32 })?
            });
        }
        Ok(slots)
    }

    fn mma(&mut self, w: &mut Words<'_>) -> Result<()> {
        if !w.all(&["sync", "aligned", "row", "col"]) {
            return self.bad("form");
        }
        let Some(k) = w.one_of(&[("m16n8k16", 16u8), ("m16n8k8", 8)]) else { return self.bad("shape") };
        let types = [w.ty(), w.ty(), w.ty(), w.ty()];
        let (element, narrow) = match types {
            [Some(Ty::F32), Some(Ty::BF16), Some(Ty::BF16), Some(Ty::F32)] => (Element::BF16, false),
            [Some(Ty::F32), Some(Ty::F16), Some(Ty::F16), Some(Ty::F32)] => (Element::F16, false),
            _ => return self.bad("types: bf16 or f16 with f32 accumulation"),
        };
        self.arity(4)?;
        let dst = self.fragment(0, 4, true)?;
        let words = usize::from(k) / 4;
        let mut src = self.fragment(1, words, false)?;
        src.extend(self.fragment(2, words / 2, false)?);
        src.extend(self.fragment(3, 4, false)?);
        self.emit(Op::Mma { element, k, narrow }, &dst, &src)
    }

    fn copy(&mut self, w: &mut Words<'_>) -> Result<()> {
        if !w.flag("async") {
            return self.bad("form");
        }
        if w.flag("commit_group") {
            self.arity(0)?;
            return self.emit(Op::CpCommit, &[], &[]);
        }
        if w.flag("wait_all") {
            self.arity(0)?;
            return self.emit(Op::CpWaitAll, &[], &[]);
        }
        if w.flag("wait_group") {
            self.arity(1)?;
            let Operand::Int(n) = *self.operand(0)? else { return self.bad("a literal is needed") };
            return self.emit(Op::CpWait { pending: n.min(u64::from(u32::MAX)) as u32 }, &[], &[]);
        }
        let whole = w.flag("cg");
        let any = !whole && w.flag("ca");
        let target = w.flag("shared") || w.flag("shared::cta");
        for hint in ["L2::64B", "L2::128B", "L2::256B"] {
            w.flag(hint);
        }
        if !(whole || any) || !target || !w.flag("global") {
            return self.bad("form");
        }
        let sized = self.statement.operands.len() == 4;
        self.arity(if sized { 4 } else { 3 })?;
        let Operand::Int(bytes) = *self.operand(2)? else { return self.bad("the size must be a literal") };
        if !(bytes == 16 || (any && matches!(bytes, 4 | 8))) {
            return self.bad(format!("a copy of {bytes} bytes"));
        }
        let (dst, offset, wide) = self.address(0, Space::Shared)?;
        let (src, from, from_wide) = self.address(1, Space::Global)?;
        let plain = Access {
            space: Space::Shared,
            bytes: 4,
            count: (bytes / 4) as u8,
            offset,
            wide,
            long: false,
            signed: false,
            strong: false,
        };
        let source = Access { space: Space::Global, offset: from, wide: from_wide, ..plain };
        let mut operands = vec![dst, src];
        if sized {
            operands.push(self.src(3, Ty::U32)?);
        }
        self.emit(Op::CpAsync { bytes: bytes as u8, access: plain, source, sized }, &[], &operands)
    }
}
