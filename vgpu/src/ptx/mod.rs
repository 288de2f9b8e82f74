//! PTX text to a syntax tree. Knows the grammar, not the instruction set.

mod lexer;
mod parser;

pub(crate) use parser::parse;

/// Why text is not PTX, or not PTX that this device executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// 1-based line of the PTX text.
    pub line: u32,
    /// What was found and what was expected.
    pub message: String,
    /// It may well be PTX, but is not executed.
    pub(crate) is_ptx: bool,
}

impl SyntaxError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into(), is_ptx: false }
    }
}

impl std::fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for SyntaxError {}

/// State space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A fundamental type as it stands after the dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
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
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Pred,
}

impl Type {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
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
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    /// Bytes; a predicate has none.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::F16x2 | Self::Bf16x2 => 4,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
            Self::Pred => 0,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64 | Self::F16x2 | Self::Bf16x2)
    }
}

/// One element of an initialiser.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init<'a> {
    /// Bits, already negated where a minus stood.
    Bits(u64),
    Float(f64),
    /// Address of a variable plus an offset; `generic` where it must be a generic address.
    Symbol(&'a str, i64),
}

/// A variable, parameter or local array.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) space: Space,
    pub(crate) name: &'a str,
    pub(crate) ty: Type,
    /// Bytes; 0 for an unsized array.
    pub(crate) size: usize,
    pub(crate) align: usize,
    pub(crate) init: Vec<Init<'a>>,
    pub(crate) is_extern: bool,
    /// `name[]`: dynamic shared memory.
    pub(crate) is_unsized: bool,
    pub(crate) line: u32,
}

/// Source position that a `.loc` announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loc {
    pub(crate) file: u32,
    pub(crate) line: u32,
    /// Where the innermost function was inlined.
    pub(crate) inlined_at: Option<(u32, u32)>,
}

/// An instruction operand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'a> {
    /// Register, variable, label or function.
    Name(&'a str),
    Int(i64),
    F32(u32),
    F64(u64),
    /// `[base + offset]`; without a base the offset is the address. `more` holds what a tensor copy writes after a comma.
    Memory {
        base: Option<&'a str>,
        offset: i64,
        more: usize,
    },
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `a|b`
    Pair(Box<(Operand<'a>, Operand<'a>)>),
    /// `!p`
    Not(&'a str),
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
}

/// One statement of a body, in the order of the text.
#[derive(Clone, Debug)]
pub(crate) enum Statement<'a> {
    Label(&'a str, u32),
    Instruction(Instruction<'a>),
    /// `count` is set for `%r<count>`.
    Register {
        name: &'a str,
        ty: Type,
        count: Option<u32>,
        line: u32,
    },
    Variable(Variable<'a>),
    Loc(Loc),
    BranchTargets {
        label: &'a str,
        targets: Vec<&'a str>,
    },
    Open,
    Close,
}

/// `@p opcode operands;`
#[derive(Clone, Debug)]
pub(crate) struct Instruction<'a> {
    /// Predicate and whether it is negated.
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) opcode: &'a str,
    pub(crate) operands: Vec<Operand<'a>>,
    pub(crate) line: u32,
}

/// A `.func` or `.entry`.
#[derive(Clone, Debug)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) is_entry: bool,
    pub(crate) results: Vec<Variable<'a>>,
    pub(crate) params: Vec<Variable<'a>>,
    /// `None` for a declaration.
    pub(crate) body: Option<Vec<Statement<'a>>>,
    /// Threads a block from `.maxntid` or `.reqntid`.
    pub(crate) max_threads: Option<u32>,
    /// Exact block shape from `.reqntid`.
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) line: u32,
}

/// A translation unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unit<'a> {
    /// `.version`, times ten: 9.0 is 90.
    pub(crate) version: u32,
    pub(crate) target: &'a str,
    pub(crate) variables: Vec<Variable<'a>>,
    pub(crate) functions: Vec<Function<'a>>,
    /// `.file` index and path.
    pub(crate) files: Vec<(u32, &'a str)>,
}
