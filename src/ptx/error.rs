//! What the emulator says when a text does not load or a launch breaks a rule: what kind of fault, where, and by whom.

use std::fmt;

/// The rule that was broken. Tests match on this; people read [`Error`]'s text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The text is not the PTX that this parser knows.
    Syntax,
    /// An opcode, modifier, type or operand form that the emulator does not execute.
    Unsupported,
    /// The launch itself is wrong: grid, block, arguments, shared memory.
    Launch,
    /// An access outside of every allocation, or across the end of one.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// A read of memory that nobody wrote.
    UninitialisedMemory,
    /// A read of a register that this thread never wrote.
    UninitialisedRegister,
    /// Two accesses, at least one a write, that nothing orders.
    Race,
    /// A warp-wide instruction whose named lanes did not all arrive, or a source lane that does not take part.
    Divergence,
    /// Threads wait for others that cannot arrive any more.
    Deadlock,
    /// A buffer that the caller wanted written has bytes that no thread wrote.
    Unwritten,
    /// A destination of `cp.async` used before the copy was waited for, or a kernel that ends with copies in flight.
    AsyncCopy,
    /// The kernel executed `trap`, or ran past the instruction limit.
    Trap,
}

/// A fault with its place. Boxed inside, so that `Result` stays small on the hot path.
#[derive(Clone, Debug)]
pub struct Error(Box<Fault>);

/// The parts of an [`Error`].
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which rule.
    pub kind: Kind,
    /// The kernel's name; empty for faults outside of a kernel.
    pub kernel: String,
    /// Line of the PTX text, from 1; 0 when no line is to blame.
    pub line: u32,
    /// File and line of the CUDA source, from `.loc`, when the text has it.
    pub source: Option<(String, u32)>,
    /// Block index.
    pub block: Option<[u32; 3]>,
    /// Thread index inside the block.
    pub thread: Option<[u32; 3]>,
    /// The fault in words.
    pub what: String,
}

/// The module's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A fault of the text at a line.
    pub(super) fn at(kind: Kind, line: u32, what: impl Into<String>) -> Self {
        Self(Box::new(Fault {
            kind,
            kernel: String::new(),
            line,
            source: None,
            block: None,
            thread: None,
            what: what.into(),
        }))
    }

    pub(super) fn syntax(line: u32, what: impl Into<String>) -> Self {
        Self::at(Kind::Syntax, line, what)
    }

    pub(super) fn unsupported(line: u32, what: impl Into<String>) -> Self {
        Self::at(Kind::Unsupported, line, what)
    }

    pub(super) fn in_kernel(mut self, name: &str) -> Self {
        if self.0.kernel.is_empty() {
            self.0.kernel = name.to_owned();
        }
        self
    }

    pub(super) fn with_source(mut self, source: Option<(String, u32)>) -> Self {
        if self.0.source.is_none() {
            self.0.source = source;
        }
        self
    }

    pub(super) fn by(mut self, block: [u32; 3], thread: Option<[u32; 3]>) -> Self {
        self.0.block = Some(block);
        self.0.thread = thread;
        self
    }

    /// Which rule was broken.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Everything known about the fault.
    pub fn fault(&self) -> &Fault {
        &self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = &self.0;
        write!(f, "{:?}: {}", fault.kind, fault.what)?;
        if !fault.kernel.is_empty() {
            write!(f, "; kernel {}", fault.kernel)?;
        }
        if fault.line > 0 {
            write!(f, ", PTX line {}", fault.line)?;
        }
        if let Some((file, line)) = &fault.source {
            write!(f, ", {file}:{line}")?;
        }
        if let Some([x, y, z]) = fault.block {
            write!(f, ", block ({x},{y},{z})")?;
        }
        if let Some([x, y, z]) = fault.thread {
            write!(f, ", thread ({x},{y},{z})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
