//! Tree to dense program, first part: the context of one kernel, its operands, its variables. The families of opcodes
//! follow in `lower_arith` and `lower_memory`; each consumes every modifier of its opcode or refuses the text.

use std::collections::HashMap;

use super::ast::{Class, Operand, Reg, Source, Space, Statement, Text, Variable};
use super::error::{Error, Result};
use super::flow;
use super::inst::{Fixed, Inst, Kernel, Mode, Op, Round, Slot, Special, Ty};
use super::memory::{CONST_TAG, TAG_SHIFT};

/// Marks a slot as pre-filled, before registers are assigned.
pub(super) const FIXED: u32 = 1 << 29;
/// The class of a slot, before registers are assigned.
pub(super) const CLASS_SHIFT: u32 = 30;
/// Bytes between shared variables that nobody may touch; a multiple of all banks, so that conflicts stay as they are.
const RED_ZONE: u32 = 128;

/// An opcode's words: the family, then modifiers and types, each of which must be consumed.
pub(super) struct Words<'a> {
    pub(super) head: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn new(opcode: &'a str) -> Self {
        let mut parts = opcode.split('.');
        Self { head: parts.next().unwrap_or_default(), rest: parts.collect() }
    }

    /// Takes a modifier if it is there.
    pub(super) fn flag(&mut self, word: &str) -> bool {
        match self.rest.iter().position(|&w| w == word) {
            Some(at) => {
                self.rest.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first of these modifiers that is there.
    pub(super) fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table.iter().find(|(word, _)| self.flag(word)).map(|&(_, value)| value)
    }

    /// Takes the next type.
    pub(super) fn ty(&mut self) -> Option<Ty> {
        let (at, ty) = self.rest.iter().enumerate().find_map(|(i, w)| Ty::parse(w).map(|t| (i, t)))?;
        self.rest.remove(at);
        Some(ty)
    }

    /// Rounding, `.ftz` and `.sat` of float arithmetic.
    pub(super) fn mode(&mut self) -> Mode {
        let table = [("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];
        let round = self.one_of(&table).unwrap_or(Round::Nearest);
        Mode { round, ftz: self.flag("ftz"), sat: self.flag("sat") }
    }

    /// Takes a fixed sequence of modifiers, all of them.
    pub(super) fn all(&mut self, words: &[&str]) -> bool {
        words.iter().all(|w| self.flag(w))
    }

    pub(super) fn rest(&self) -> &[&'a str] {
        &self.rest
    }
}

/// The kernel under construction.
pub(super) struct Lower<'a> {
    pub(super) statement: &'a Statement<'a>,
    pub(super) source: &'a Source<'a>,
    code: Vec<Inst>,
    fixed: [Vec<Fixed>; 2],
    fixed_index: [HashMap<Fixed, u32>; 2],
    pub(super) registers: [u32; 3],
    symbols: HashMap<String, (Space, u64)>,
    /// Whether the dynamic shared symbol was named.
    pub(super) uses_dynamic: bool,
}

/// Lowers one kernel of a text.
pub(super) fn lower(text: &Text<'_>, source: &Source<'_>) -> Result<Kernel> {
    let layout = Layout::new(text, source)?;
    let Some(first) = source.statements.first() else {
        return Err(Error::syntax(source.line, "a kernel without instructions"));
    };
    let mut lower = Lower {
        statement: first,
        source,
        code: Vec::new(),
        fixed: Default::default(),
        fixed_index: Default::default(),
        registers: source.registers,
        symbols: layout.symbols,
        uses_dynamic: false,
    };
    let files: Vec<(u32, String)> = text.files.iter().map(|(&n, &f)| (n, f.to_owned())).collect();
    let place = |loc: (u32, u32)| files.iter().find(|f| f.0 == loc.0).map(|f| (f.1.clone(), loc.1));
    let mut starts = Vec::with_capacity(source.statements.len() + 1);
    for statement in &source.statements {
        lower.statement = statement;
        starts.push(lower.code.len() as u32);
        lower.instruction().map_err(|e| e.with_source(place(statement.loc)))?;
    }
    // Falling off the end ends the kernel; the last entry also gives a trailing label a place.
    starts.push(lower.code.len() as u32);
    lower.emit(Op::Exit, &[], &[])?;
    if let Some(last) = lower.code.last_mut() {
        last.guard = 0;
    }
    for inst in &mut lower.code {
        if let Op::Bra { target, .. } = &mut inst.op {
            *target = starts.get(*target as usize).copied().unwrap_or(0);
        }
    }
    let mut kernel = Kernel {
        name: source.name.to_owned(),
        params: source.params.clone(),
        code: lower.code,
        fixed: lower.fixed,
        slots: lower.registers,
        tracked: Default::default(),
        max_threads: source.max_threads,
        required_threads: source.required_threads,
        shared: layout.shared,
        shared_dynamic: layout.dynamic,
        shared_static: layout.shared_static,
        uses_dynamic: lower.uses_dynamic,
        local_bytes: layout.local_bytes,
        constants: layout.constants,
        grain: [4, 4],
        files,
    };
    kernel.grain = grain(&kernel.code);
    flow::assign(&mut kernel)?;
    Ok(kernel)
}

/// The narrowest access in shared and in global memory: the race detector's cell.
fn grain(code: &[Inst]) -> [u8; 2] {
    let mut grain = [4u8, 4];
    let mut note = |space: Space, bytes: u8| {
        if matches!(space, Space::Shared | Space::Generic) {
            grain[0] = grain[0].min(bytes);
        }
        if matches!(space, Space::Global | Space::Generic) {
            grain[1] = grain[1].min(bytes);
        }
    };
    for inst in code {
        match inst.op {
            Op::Load(a) | Op::Store(a) | Op::Atom { access: a, .. } => note(a.space, a.bytes),
            _ => {}
        }
    }
    grain
}

/// Where variables lie.
struct Layout {
    symbols: HashMap<String, (Space, u64)>,
    shared: Vec<(u32, u32)>,
    dynamic: u32,
    shared_static: u32,
    local_bytes: u32,
    constants: Vec<u8>,
}

impl Layout {
    fn new(text: &Text<'_>, source: &Source<'_>) -> Result<Self> {
        let (mut symbols, mut shared, mut constants) = (HashMap::new(), Vec::new(), Vec::new());
        let (mut shared_end, mut shared_static, mut local_bytes) = (0u32, 0u32, 0u32);
        let named = |v: &Variable| source.statements.iter().any(|s| s.operands.iter().any(|o| names(o, &v.name)));
        for v in source.variables.iter().chain(&text.variables) {
            let at = match v.space {
                Space::Shared if v.dynamic => continue,
                // Variables of other kernels are in the text too, when they are not demoted.
                Space::Shared if !named(v) => continue,
                Space::Shared => {
                    let at = shared_end.next_multiple_of(v.align.max(16));
                    let bytes = v.bytes as u32;
                    shared.push((at, at + bytes));
                    shared_static = shared_static.next_multiple_of(v.align) + bytes;
                    shared_end = (at + bytes).next_multiple_of(RED_ZONE) + RED_ZONE;
                    u64::from(at)
                }
                Space::Local => {
                    let at = local_bytes.next_multiple_of(v.align);
                    local_bytes = at + v.bytes as u32;
                    u64::from(at)
                }
                Space::Const | Space::Global => {
                    let at = constants.len().next_multiple_of(v.align.max(16) as usize);
                    constants.resize(at, 0);
                    constants.extend_from_slice(&v.init);
                    constants.resize(at + v.bytes as usize, 0);
                    (CONST_TAG << TAG_SHIFT) + at as u64
                }
                _ => continue,
            };
            symbols.insert(v.name.clone(), (v.space, at));
        }
        if shared_end > 1 << 20 || local_bytes > 1 << 20 {
            return Err(Error::unsupported(source.line, "more than a megabyte of static shared or local memory"));
        }
        let dynamic = shared_end.next_multiple_of(1024);
        for v in text.variables.iter().chain(&source.variables).filter(|v| v.dynamic) {
            symbols.insert(v.name.clone(), (Space::Shared, u64::from(dynamic)));
        }
        Ok(Self { symbols, shared, dynamic, shared_static, local_bytes, constants })
    }
}

fn names(operand: &Operand<'_>, name: &str) -> bool {
    match operand {
        Operand::Name(n) => *n == name,
        Operand::Address(base, _) => names(base, name),
        _ => false,
    }
}

impl<'a> Lower<'a> {
    pub(super) fn bad<T>(&self, what: impl AsRef<str>) -> Result<T> {
        let text = format!("`{}`: {}", self.statement.opcode, what.as_ref());
        Err(Error::unsupported(self.statement.line, text).in_kernel(self.source.name))
    }

    fn instruction(&mut self) -> Result<()> {
        let mut words = Words::new(self.statement.opcode);
        if !(self.arithmetic(&mut words)? || self.memory(&mut words)?) {
            return self.bad("unknown opcode");
        }
        match words.rest() {
            [] => Ok(()),
            rest => self.bad(format!("unknown modifier or type `.{}`", rest.join("."))),
        }
    }

    /// Appends an instruction.
    pub(super) fn emit(&mut self, op: Op, dst: &[Slot], src: &[Slot]) -> Result<()> {
        let (guard, guard_negated) = match self.statement.guard {
            Some((reg, negated)) => (slot(reg) + 1, negated),
            None => (0, false),
        };
        let at_end = self.code.len() >= 1 << 20;
        if dst.len() > 4 || src.len() > 10 || at_end {
            return self.bad("too many operands or instructions");
        }
        let mut inst = Inst {
            op,
            guard,
            guard_negated,
            tracked: false,
            dsts: dst.len() as u8,
            srcs: src.len() as u8,
            dst: [0; 4],
            src: [0; 10],
            classes: 0,
            line: self.statement.line,
            loc: self.statement.loc,
        };
        inst.dst[..dst.len()].copy_from_slice(dst);
        inst.src[..src.len()].copy_from_slice(src);
        self.code.push(inst);
        Ok(())
    }

    /// Fails unless the statement has this many operands.
    pub(super) fn arity(&self, n: usize) -> Result<()> {
        if self.statement.operands.len() == n {
            return Ok(());
        }
        self.bad(format!("{} operands where {n} belong", self.statement.operands.len()))
    }

    pub(super) fn operand(&self, i: usize) -> Result<&'a Operand<'a>> {
        match self.statement.operands.get(i) {
            Some(operand) => Ok(operand),
            None => self.bad("too few operands"),
        }
    }

    /// A register nobody reads, for a sink.
    pub(super) fn scratch(&mut self, class: Class) -> Slot {
        let id = self.registers[class as usize];
        self.registers[class as usize] += 1;
        slot(Reg { class, id })
    }

    /// The class that a type's registers have.
    pub(super) fn class(ty: Ty) -> Class {
        match ty.bits() {
            1 => Class::Pred,
            64 => Class::Long,
            _ => Class::Word,
        }
    }

    pub(super) fn dst(&mut self, i: usize, class: Class) -> Result<Slot> {
        let operand = self.operand(i)?;
        self.dst_operand(operand, class)
    }

    pub(super) fn dst_operand(&mut self, operand: &Operand<'_>, class: Class) -> Result<Slot> {
        match operand {
            Operand::Reg(reg) if reg.class == class => Ok(slot(*reg)),
            Operand::Sink => Ok(self.scratch(class)),
            _ => self.bad(format!("destination {operand:?} is not a {class:?} register")),
        }
    }

    pub(super) fn src(&mut self, i: usize, ty: Ty) -> Result<Slot> {
        let operand = self.operand(i)?;
        self.src_operand(operand, ty)
    }

    /// A source of a type: a register of its class, a literal that fits, a special register or a variable's address.
    pub(super) fn src_operand(&mut self, operand: &Operand<'_>, ty: Ty) -> Result<Slot> {
        let class = Self::class(ty);
        match (operand, class) {
            (Operand::Reg(reg), _) if reg.class == class => Ok(slot(*reg)),
            (Operand::Int(value), Class::Word) if !ty.float() => {
                let mask = if ty.bits() < 32 { (1 << ty.bits()) - 1 } else { u64::from(u32::MAX) };
                Ok(self.literal(class, value & mask))
            }
            (Operand::Int(value), Class::Long) if !ty.float() => Ok(self.literal(class, *value)),
            (Operand::Float(bits), Class::Word) if ty.bits() == 32 => Ok(self.literal(class, u64::from(*bits))),
            (Operand::Double(bits), Class::Long) => Ok(self.literal(class, *bits)),
            (Operand::Name(name), Class::Word | Class::Long) => self.name(name, class),
            _ => self.bad(format!("operand {operand:?} does not fit type {ty:?}")),
        }
    }

    /// A predicate source; the second part says whether it is negated.
    pub(super) fn pred(&mut self, i: usize) -> Result<(Slot, bool)> {
        match self.operand(i)? {
            Operand::Reg(reg) if reg.class == Class::Pred => Ok((slot(*reg), false)),
            Operand::Not(reg) if reg.class == Class::Pred => Ok((slot(*reg), true)),
            // NVRTC writes `1` and `0` for a constant predicate of bar.red and vote.
            other => self.bad(format!("operand {other:?} is not a predicate")),
        }
    }

    pub(super) fn literal(&mut self, class: Class, bits: u64) -> Slot {
        self.fixed_slot(class, Fixed::Bits(bits))
    }

    fn fixed_slot(&mut self, class: Class, fixed: Fixed) -> Slot {
        let file = class as usize;
        let list = &mut self.fixed[file];
        let id = *self.fixed_index[file].entry(fixed).or_insert_with(|| {
            list.push(fixed);
            list.len() as u32 - 1
        });
        (class as u32) << CLASS_SHIFT | FIXED | id
    }

    fn name(&mut self, name: &str, class: Class) -> Result<Slot> {
        if let Some((space, at)) = self.symbols.get(name).copied() {
            if space == Space::Shared && self.dynamic_name(name) {
                self.uses_dynamic = true;
            }
            return Ok(self.literal(class, at));
        }
        let axis = |rest: &str| match rest {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let special = match name {
            "%laneid" => Some(Special::LaneId),
            "%warpid" => Some(Special::WarpId),
            "%nwarpid" => Some(Special::NWarpId),
            "%lanemask_eq" => Some(Special::LaneMaskEq),
            "%lanemask_lt" => Some(Special::LaneMaskLt),
            "%lanemask_le" => Some(Special::LaneMaskLe),
            "%lanemask_gt" => Some(Special::LaneMaskGt),
            "%lanemask_ge" => Some(Special::LaneMaskGe),
            _ => name.rsplit_once('.').and_then(|(head, rest)| match head {
                "%tid" => axis(rest).map(Special::Tid),
                "%ntid" => axis(rest).map(Special::NTid),
                "%ctaid" => axis(rest).map(Special::CtaId),
                "%nctaid" => axis(rest).map(Special::NCtaId),
                _ => None,
            }),
        };
        match special {
            Some(special) if class == Class::Word => Ok(self.fixed_slot(class, Fixed::Special(special))),
            None if name == "WARP_SZ" => Ok(self.literal(class, 32)),
            _ => self.bad(format!("name `{name}` is not known here")),
        }
    }

    fn dynamic_name(&self, name: &str) -> bool {
        !self.source.variables.iter().any(|v| v.name == name && !v.dynamic)
    }

    /// Where a name in an address stands: its space and offset.
    pub(super) fn symbol(&mut self, name: &str) -> Option<(Space, u64)> {
        let found = self.symbols.get(name).copied()?;
        if found.0 == Space::Shared && self.dynamic_name(name) {
            self.uses_dynamic = true;
        }
        Some(found)
    }
}

/// A register's slot before assignment.
pub(super) fn slot(reg: Reg) -> Slot {
    (reg.class as u32) << CLASS_SHIFT | reg.id
}
