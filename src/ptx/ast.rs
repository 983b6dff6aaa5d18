//! The text as a tree: kernels, their parameters and variables, and statements whose registers are resolved to numbers.

use std::collections::HashMap;

/// Which file a register lives in. Registers of up to 32 bits share one file, because they all fit a 32-bit lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    /// 8, 16 and 32 bits.
    Word,
    /// 64 bits.
    Long,
    /// Predicates.
    Pred,
}

/// A virtual register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Reg {
    pub(super) class: Class,
    pub(super) id: u32,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand<'a> {
    Reg(Reg),
    /// `!%p`
    Not(Reg),
    Int(u64),
    Float(u32),
    Double(u64),
    /// A special register, a variable, a parameter or a label.
    Name(&'a str),
    /// `[base + offset]`
    Address(Box<Operand<'a>>, i64),
    /// `{a, b, ..}`
    Vector(Vec<Operand<'a>>),
    /// `d|p`
    Pair(Reg, Reg),
    /// `_`
    Sink,
}

/// One instruction as written.
#[derive(Clone, Debug)]
pub(super) struct Statement<'a> {
    /// `@%p` or `@!%p`: the register and whether it is negated.
    pub(super) guard: Option<(Reg, bool)>,
    pub(super) opcode: &'a str,
    pub(super) operands: Vec<Operand<'a>>,
    pub(super) line: u32,
    /// File number and line from the last `.loc`.
    pub(super) loc: (u32, u32),
}

/// A variable in shared, local, constant or global space.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) space: Space,
    pub(super) align: u32,
    pub(super) bytes: u64,
    /// `.extern .shared x[]`: the dynamic shared memory of the launch.
    pub(super) dynamic: bool,
    pub(super) init: Vec<u8>,
}

/// State spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the text.
    pub name: String,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
    /// Offset in the parameter block.
    pub offset: u32,
    /// True for `.f32` and `.f64`.
    pub float: bool,
}

/// A kernel before lowering.
#[derive(Clone, Debug)]
pub(super) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) line: u32,
    pub(super) params: Vec<Param>,
    pub(super) variables: Vec<Variable>,
    pub(super) statements: Vec<Statement<'a>>,
    /// Label -> index of the statement that follows it.
    pub(super) labels: HashMap<&'a str, usize>,
    /// Number of virtual registers of each class.
    pub(super) registers: [u32; 3],
    pub(super) max_threads: Option<[u32; 3]>,
    pub(super) required_threads: Option<[u32; 3]>,
}

/// The whole text.
#[derive(Clone, Debug, Default)]
pub(super) struct Text<'a> {
    pub(super) version: &'a str,
    pub(super) target: &'a str,
    pub(super) kernels: Vec<Source<'a>>,
    pub(super) variables: Vec<Variable>,
    /// `.file` number -> name.
    pub(super) files: HashMap<u32, &'a str>,
}
