//! The dense program: every source is a slot number, every modifier is decoded, one entry per executed instruction.

use super::ast::{Param, Space};

/// Slots carry their class in the top bits until registers are assigned; afterwards they are plain indices.
pub(super) type Slot = u32;

/// Types of PTX that decide how a lane's bits are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    BF16,
    F16x2,
    BF16x2,
    TF32,
    F32,
    F64,
}

impl Ty {
    pub(super) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "bf16" => Self::BF16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::BF16x2,
            "tf32" => Self::TF32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::BF16 => 16,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
            _ => 32,
        }
    }

    pub(super) fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(super) fn float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F16x2 | Self::BF16x2 | Self::TF32 | Self::F32 | Self::F64)
    }
}

/// Rounding modes of floats: to nearest even, to zero, down, up, and nearest with ties away (tf32 only).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    Away,
}

/// Rounding, flush of subnormals to zero, clamp to [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) round: Round,
    pub(super) ftz: bool,
    pub(super) sat: bool,
}

impl Mode {
    pub(super) const PLAIN: Self = Self { round: Round::Nearest, ftz: false, sat: false };
}

/// word -> word
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum F1 {
    Not,
    Cnot,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    Bfind { signed: bool, shift: bool },
    FNeg { ftz: bool },
    FAbs { ftz: bool },
    Approx(Approx),
    Rcp(Mode),
    Sqrt(Mode),
}

/// The approximate instructions: exact to f64 here, so that noise mode has something to disturb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Approx {
    pub(super) f: Special1,
    pub(super) ftz: bool,
}

/// Which approximate function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special1 {
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
    Sin,
    Cos,
    Tanh,
}

/// word, word -> word
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum F2 {
    Add,
    Sub,
    AddSat,
    SubSat,
    MulLo,
    MulHiU,
    MulHiS,
    MulWide16U,
    MulWide16S,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrS,
    FAdd(Mode),
    FSub(Mode),
    FMul(Mode),
    FDiv(Mode),
    /// `div.approx` and `div.full`.
    FDivApprox {
        ftz: bool,
    },
    FMin {
        ftz: bool,
        nan: bool,
    },
    FMax {
        ftz: bool,
        nan: bool,
    },
    CopySign,
}

/// word, word, word -> word
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum F3 {
    MadLo,
    MadHiU,
    MadHiS,
    Fma(Mode),
    BfeU,
    BfeS,
    Lop3(u8),
    Prmt,
    Shf { left: bool, wrap: bool },
    SadU,
    SadS,
}

/// long -> long
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L1 {
    Not,
    Neg,
    Abs,
    Brev,
    DNeg,
    DAbs,
    DRcp,
    DSqrt,
}

/// long -> word
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L1W {
    Popc,
    Clz,
    Bfind { signed: bool, shift: bool },
}

/// long, long -> long
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L2 {
    Add,
    Sub,
    MulLo,
    MulHiU,
    MulHiS,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    DAdd,
    DSub,
    DMul,
    DDiv,
    DMin,
    DMax,
    CopySign,
}

/// long, long, long -> long
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L3 {
    MadLo,
    DFma,
}

/// long, word -> long
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    Left,
    RightU,
    RightS,
}

/// Comparisons; the `U` forms are true when an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    Num,
    Nan,
}

/// How predicates combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

/// A memory access: `count` elements of `bytes` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) space: Space,
    pub(super) bytes: u8,
    pub(super) count: u8,
    pub(super) offset: i64,
    /// The base register is 64 bits wide.
    pub(super) wide: bool,
    /// The data registers are 64 bits wide.
    pub(super) long: bool,
    pub(super) signed: bool,
    /// volatile, relaxed, acquire, release: ordered accesses are no data races.
    pub(super) strong: bool,
}

/// Read-modify-write operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rmw {
    Add,
    FAdd,
    DAdd,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// `shfl` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// `vote` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VoteMode {
    Any,
    All,
    Uni,
    Ballot,
}

/// What `bar` does beside waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BarKind {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

/// Element type of a matrix fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    BF16,
    F16,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Op {
    Un(F1),
    Bin(F2),
    /// 16-bit integers: sources are extended first.
    Half(F2, bool),
    Tri(F3),
    Bfi,
    Un64(L1),
    Un64Word(L1W),
    Bin64(L2),
    Tri64(L3),
    Shift64(Shift),
    MulWide {
        signed: bool,
    },
    MadWide {
        signed: bool,
    },
    Bfe64 {
        signed: bool,
    },
    Bfi64,
    Mov,
    Mov64,
    /// lo, hi -> long
    Pack,
    /// long -> lo, hi
    Unpack,
    /// halves -> word
    PackHalves,
    UnpackHalves,
    /// four halves -> long
    PackQuarters,
    UnpackQuarters,
    /// Destination p and, if `pair`, q. With `combine`, the last source is a predicate.
    Set {
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        combine: Option<(Logic, bool)>,
        pair: bool,
    },
    Testp {
        nan: bool,
        inf: bool,
        finite: bool,
    },
    Sel,
    Sel64,
    /// c >= 0 ? a : b, c an s32 or f32
    Slct {
        float: bool,
    },
    PredMov,
    PredNot,
    PredLogic(Logic),
    Cvt {
        to: Ty,
        from: Ty,
        round: Option<Round>,
        integral: bool,
        ftz: bool,
        sat: bool,
    },
    /// Two f32 -> one pair of 16-bit floats; the first source is the upper half.
    CvtPair {
        to: Element,
        relu: bool,
    },
    Param {
        offset: u32,
        bytes: u8,
        signed: bool,
        long: bool,
    },
    Load(Access),
    Store(Access),
    Atom {
        access: Access,
        rmw: Rmw,
        result: bool,
    },
    Shfl {
        mode: ShflMode,
        pair: bool,
    },
    Vote(VoteMode, bool),
    Redux(Rmw),
    MatchAny,
    ActiveMask,
    Bar {
        kind: BarKind,
        counted: bool,
        negate: bool,
    },
    BarWarp,
    Fence,
    Bra {
        target: u32,
        join: u32,
        uniform: bool,
    },
    Exit,
    Trap,
    LdMatrix {
        count: u8,
        trans: bool,
        access: Access,
    },
    Mma {
        element: Element,
        k: u8,
        narrow: bool,
    },
    CpAsync {
        bytes: u8,
        access: Access,
        source: Access,
        sized: bool,
    },
    CpCommit,
    CpWait {
        pending: u32,
    },
    CpWaitAll,
}

/// Class of an instruction, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Integer arithmetic, logic, shifts, comparison of integers.
    Integer,
    /// Float add, mul, fma, min, max, compare.
    Float,
    /// Double precision.
    Double,
    /// ex2, lg2, rcp, rsqrt, sqrt, div, sin, cos, tanh.
    Special,
    /// cvt.
    Convert,
    /// mov, selp, predicates, packing.
    Move,
    /// ld and st in global memory.
    Global,
    /// ld, st and ldmatrix in shared memory.
    Shared,
    /// Local, parameter and constant memory.
    Other,
    /// atom and red.
    Atomic,
    /// mma.
    Matrix,
    /// cp.async with its commits and waits.
    Async,
    /// shfl, vote, redux, match.
    Warp,
    /// bar, membar, fence.
    Barrier,
    /// bra, ret.
    Control,
}

impl Work {
    /// Every class, in the order of [`Counters::classes`](super::Counters).
    pub const ALL: [Self; 15] = [
        Self::Integer,
        Self::Float,
        Self::Double,
        Self::Special,
        Self::Convert,
        Self::Move,
        Self::Global,
        Self::Shared,
        Self::Other,
        Self::Atomic,
        Self::Matrix,
        Self::Async,
        Self::Warp,
        Self::Barrier,
        Self::Control,
    ];

    pub(super) fn of(op: &Op) -> Self {
        match op {
            Op::Un(F1::Approx(_) | F1::Rcp(_) | F1::Sqrt(_)) => Self::Special,
            Op::Bin(F2::FDiv(_) | F2::FDivApprox { .. }) => Self::Special,
            Op::Un(F1::FNeg { .. } | F1::FAbs { .. }) | Op::Tri(F3::Fma(_)) | Op::Testp { .. } => Self::Float,
            Op::Bin(F2::FAdd(_) | F2::FSub(_) | F2::FMul(_) | F2::FMin { .. } | F2::FMax { .. }) => Self::Float,
            Op::Un64(L1::DNeg | L1::DAbs | L1::DRcp | L1::DSqrt) | Op::Tri64(L3::DFma) => Self::Double,
            Op::Bin64(L2::DAdd | L2::DSub | L2::DMul | L2::DDiv | L2::DMin | L2::DMax) => Self::Double,
            Op::Set { ty: Ty::F32, .. } => Self::Float,
            Op::Set { ty: Ty::F64, .. } => Self::Double,
            Op::Cvt { .. } | Op::CvtPair { .. } => Self::Convert,
            Op::Mov | Op::Mov64 | Op::Pack | Op::Unpack | Op::PackHalves | Op::UnpackHalves => Self::Move,
            Op::PackQuarters | Op::UnpackQuarters | Op::Sel | Op::Sel64 | Op::Slct { .. } => Self::Move,
            Op::PredMov | Op::PredNot | Op::PredLogic(_) => Self::Move,
            Op::Param { .. } => Self::Other,
            Op::Load(a) | Op::Store(a) => match a.space {
                Space::Shared => Self::Shared,
                Space::Global | Space::Generic => Self::Global,
                _ => Self::Other,
            },
            Op::LdMatrix { .. } => Self::Shared,
            Op::Atom { .. } => Self::Atomic,
            Op::Mma { .. } => Self::Matrix,
            Op::CpAsync { .. } | Op::CpCommit | Op::CpWait { .. } | Op::CpWaitAll => Self::Async,
            Op::Shfl { .. } | Op::Vote(..) | Op::Redux(_) | Op::MatchAny | Op::ActiveMask => Self::Warp,
            Op::Bar { .. } | Op::BarWarp | Op::Fence => Self::Barrier,
            Op::Bra { .. } | Op::Exit | Op::Trap => Self::Control,
            _ => Self::Integer,
        }
    }
}

/// One instruction of the dense program.
#[derive(Clone, Debug)]
pub(super) struct Inst {
    pub(super) op: Op,
    /// Predicate slot plus one, or 0 when unguarded.
    pub(super) guard: u32,
    pub(super) guard_negated: bool,
    /// Touches a register that some path leaves unwritten: checked when executed.
    pub(super) tracked: bool,
    pub(super) dsts: u8,
    pub(super) srcs: u8,
    pub(super) dst: [Slot; 4],
    pub(super) src: [Slot; 10],
    /// Two bits per operand, sources first from the lowest bit, then destinations from bit 20: the class of its slot.
    pub(super) classes: u32,
    pub(super) line: u32,
    pub(super) loc: (u32, u32),
}

/// Special registers that are not compile-time constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Special {
    Tid(u8),
    NTid(u8),
    CtaId(u8),
    NCtaId(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
}

/// What a pre-filled slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fixed {
    Bits(u64),
    Special(Special),
}

/// A kernel, decoded and ready to run.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(super) name: String,
    pub(super) params: Vec<Param>,
    pub(super) code: Vec<Inst>,
    /// Pre-filled slots of words and longs: the first slots of each file.
    pub(super) fixed: [Vec<Fixed>; 2],
    /// Slots in each file: words, longs, predicates.
    pub(super) slots: [u32; 3],
    /// Which slots are checked for being written, by class.
    pub(super) tracked: [Vec<bool>; 3],
    pub(super) max_threads: Option<[u32; 3]>,
    pub(super) required_threads: Option<[u32; 3]>,
    /// Byte ranges of shared variables; the gaps are red zones.
    pub(super) shared: Vec<(u32, u32)>,
    /// Where dynamic shared memory starts, and the static bytes as the hardware counts them.
    pub(super) shared_dynamic: u32,
    pub(super) shared_static: u32,
    pub(super) uses_dynamic: bool,
    pub(super) local_bytes: u32,
    /// Constant data and initialised module variables, read-only.
    pub(super) constants: Vec<u8>,
    /// Bytes per cell of the race detector, the narrowest access in use: shared, global.
    pub(super) grain: [u8; 2],
    pub(super) files: Vec<(u32, String)>,
}

impl Kernel {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// `.maxntid`: the largest block that the text allows.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }

    /// `.reqntid`: the only block that the text allows.
    pub fn required_threads(&self) -> Option<[u32; 3]> {
        self.required_threads
    }

    /// Bytes of statically declared shared memory.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_static
    }

    /// Number of instructions.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }

    /// The CUDA source line of an instruction.
    pub(super) fn source_of(&self, loc: (u32, u32)) -> Option<(String, u32)> {
        let (_, name) = self.files.iter().find(|f| f.0 == loc.0)?;
        Some((name.clone(), loc.1))
    }
}
