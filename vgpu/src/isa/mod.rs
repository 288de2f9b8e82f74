//! The instruction set: decoded instructions and what decodes them.
//!
//! Decoding resolves every name to a slot, picks a lane function for every arithmetic form and refuses
//! what it does not know, so that execution never looks at text again.

pub(crate) mod alu;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod decode;
pub(crate) mod float;
pub(crate) mod lanes;

use crate::ptx::{Loc, SyntaxError, Type};
use lanes::{CompareFn, LaneFn};

/// Index of a slot in a warp's register file. Special registers come first, then registers and constants.
pub(crate) type Reg = u32;
/// Index of a predicate register; [`NO_PRED`] for none.
pub(crate) type Pred = u16;

/// No guard, no second destination.
pub(crate) const NO_PRED: Pred = u16::MAX;
/// Always false, so that `!` of it is true.
pub(crate) const FALSE_PRED: Pred = 0;
/// Slot that always holds zeros (two of them, so that it can be read as 64 bits).
pub(crate) const ZERO: Reg = 0;
/// Destination that nobody reads (`_`); two slots.
pub(crate) const SINK: Reg = 2;

/// Read-only special registers, in the order of their slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Special {
    TidX = 4,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSharedSize,
    TotalSharedSize,
    /// 64 bits: two slots.
    GridId = 28,
    /// High and low half of the address of a cooperative grid's workspace.
    EnvReg1 = 30,
    EnvReg2,
    /// First slot after the special registers.
    End = 32,
}

impl Special {
    /// The register of that name and whether it has 64 bits.
    pub(crate) fn parse(name: &str) -> Option<(Self, bool)> {
        Some((
            match name {
                "%tid.x" => Self::TidX,
                "%tid.y" => Self::TidY,
                "%tid.z" => Self::TidZ,
                "%ntid.x" => Self::NtidX,
                "%ntid.y" => Self::NtidY,
                "%ntid.z" => Self::NtidZ,
                "%ctaid.x" => Self::CtaidX,
                "%ctaid.y" => Self::CtaidY,
                "%ctaid.z" => Self::CtaidZ,
                "%nctaid.x" => Self::NctaidX,
                "%nctaid.y" => Self::NctaidY,
                "%nctaid.z" => Self::NctaidZ,
                "%laneid" => Self::LaneId,
                "%warpid" => Self::WarpId,
                "%nwarpid" => Self::NwarpId,
                "%smid" => Self::SmId,
                "%nsmid" => Self::NsmId,
                "%lanemask_eq" => Self::LanemaskEq,
                "%lanemask_le" => Self::LanemaskLe,
                "%lanemask_lt" => Self::LanemaskLt,
                "%lanemask_ge" => Self::LanemaskGe,
                "%lanemask_gt" => Self::LanemaskGt,
                "%dynamic_smem_size" => Self::DynamicSharedSize,
                "%total_smem_size" => Self::TotalSharedSize,
                "%envreg1" => Self::EnvReg1,
                "%envreg2" => Self::EnvReg2,
                "%gridid" => return Some((Self::GridId, true)),
                _ => return None,
            },
            false,
        ))
    }
}

/// How undefined bits of the sources reach the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// One undefined bit makes the whole result undefined.
    Strict,
    /// The operation moves bits: applied to the undefined-bit masks it gives the result's mask.
    /// Sources whose bit is set here steer it and must be defined.
    Mirror { controls: u8 },
    /// The masks are united.
    Union,
    /// A defined 0 bit on the other side defines the result.
    And,
    /// A defined 1 bit on the other side defines the result.
    Or,
    /// Strict in each 16-bit half.
    Halves,
}

/// Arithmetic on whole registers.
#[derive(Clone, Copy)]
pub(crate) struct Alu {
    pub(crate) run: LaneFn,
    pub(crate) d: Reg,
    /// Unused sources are [`ZERO`].
    pub(crate) src: [Reg; 3],
    pub(crate) imm: u32,
    /// The result has 64 bits.
    pub(crate) wide: bool,
    /// Which sources have 64 bits.
    pub(crate) wide_src: u8,
    pub(crate) rule: Rule,
    /// Floating-point operations of one lane.
    pub(crate) flops: u8,
}

/// What joins a comparison and a third predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    None,
    And,
    Or,
    Xor,
}

/// A predicate as a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PredSrc {
    pub(crate) p: Pred,
    pub(crate) negated: bool,
}

/// Logic on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PredLogic {
    And,
    Or,
    Xor,
}

/// State space of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemorySpace {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    /// Parameters of the kernel.
    Param,
}

impl MemorySpace {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Global => "global",
            Self::Const => "constant",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "parameter",
        }
    }
}

/// Address of an access: base register plus offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) space: MemorySpace,
    /// [`ZERO`] when the address is a constant.
    pub(crate) base: Reg,
    pub(crate) wide: bool,
    pub(crate) offset: i64,
}

/// Memory ordering that an access carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Plain: takes part in races.
    Weak,
    /// Volatile or relaxed: atomic, but orders nothing by itself.
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

impl Order {
    pub(crate) fn acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::AcquireRelease)
    }

    pub(crate) fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcquireRelease)
    }
}

/// Load or store of up to eight elements.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) at: Address,
    /// Bytes of an element.
    pub(crate) size: u8,
    /// Registers, one an element.
    pub(crate) regs: Vec<Reg>,
    /// The registers have 64 bits.
    pub(crate) wide: bool,
    /// Loads extend the sign.
    pub(crate) signed: bool,
    pub(crate) order: Order,
}

/// Read-modify-write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

#[derive(Clone, Debug)]
pub(crate) struct Atomic {
    pub(crate) at: Address,
    pub(crate) op: AtomicOp,
    pub(crate) ty: Type,
    /// `None` for `red`.
    pub(crate) d: Option<Reg>,
    pub(crate) b: Reg,
    pub(crate) c: Reg,
    pub(crate) order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReduceOp {
    Add,
    Min,
    Max,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    RedAnd(Pred, PredSrc),
    RedOr(Pred, PredSrc),
    RedPopc(Reg, PredSrc),
}

/// Element types of a matrix multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaType {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

#[derive(Clone, Debug)]
pub(crate) struct Mma {
    pub(crate) n: u8,
    pub(crate) k: u8,
    pub(crate) a_type: MmaType,
    pub(crate) b_type: MmaType,
    /// Accumulators and results are packed halves.
    pub(crate) half_c: bool,
    pub(crate) half_d: bool,
    pub(crate) saturate: bool,
    pub(crate) d: Vec<Reg>,
    pub(crate) a: Vec<Reg>,
    pub(crate) b: Vec<Reg>,
    pub(crate) c: Vec<Reg>,
}

#[derive(Clone, Debug)]
pub(crate) struct MatrixTransfer {
    pub(crate) at: Address,
    pub(crate) regs: Vec<Reg>,
    pub(crate) transposed: bool,
    pub(crate) store: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AsyncCopy {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u8,
    /// Register with the bytes to read, the rest being zeros.
    pub(crate) source_bytes: Option<Reg>,
    /// Predicate that turns the whole copy into zeros.
    pub(crate) ignore: Option<PredSrc>,
}

/// Operations on a 64-bit barrier object in shared memory.
#[derive(Clone, Debug)]
pub(crate) enum Mbarrier {
    Init {
        at: Address,
        count: Reg,
    },
    Invalidate {
        at: Address,
    },
    Arrive {
        at: Address,
        state: Option<Reg>,
        count: Reg,
        transactions: Option<Reg>,
        drop: bool,
    },
    ExpectTransactions {
        at: Address,
        bytes: Reg,
    },
    /// Waits for the phase that `state` was taken in; with `parity` for the phase of that parity.
    Wait {
        at: Address,
        d: Pred,
        state: Reg,
        parity: bool,
    },
    /// All earlier asynchronous copies of the thread arrive when they have landed.
    AsyncArrive {
        at: Address,
        no_increment: bool,
    },
    PendingCount {
        d: Reg,
        state: Reg,
    },
}

/// Registers that change while a warp runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Low,
    High,
    Wide,
    Nanoseconds,
}

/// Host functions that device code may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    Printf,
    Assert,
}

/// One decoded operation.
pub(crate) enum Op {
    Alu(Alu),
    Carry {
        sub: bool,
        multiply: Option<bool>,
        reads: bool,
        writes: bool,
        wide: bool,
        signed: bool,
        d: Reg,
        src: [Reg; 3],
    },
    Compare {
        run: CompareFn,
        a: Reg,
        b: Reg,
        p: Pred,
        q: Pred,
        join: Join,
        with: PredSrc,
    },
    Logic {
        op: PredLogic,
        p: Pred,
        a: PredSrc,
        b: PredSrc,
    },
    Select {
        d: Reg,
        a: Reg,
        b: Reg,
        p: PredSrc,
        wide: bool,
    },
    Clock {
        d: Reg,
        which: Clock,
    },
    /// Address of a variable in the current frame.
    LocalAddress {
        d: Reg,
        offset: u32,
        wide: bool,
    },
    /// Generic address to or from a state space; with `p`, whether it lies in it.
    ConvertAddress {
        d: Reg,
        a: Reg,
        to_generic: bool,
        space: MemorySpace,
        wide: bool,
    },
    IsSpace {
        p: Pred,
        a: Reg,
        space: MemorySpace,
    },
    Load(Box<Transfer>),
    Store(Box<Transfer>),
    Atomic(Box<Atomic>),
    Prefetch,
    Branch {
        target: u32,
    },
    BranchIndexed {
        index: Reg,
        targets: Box<[u32]>,
    },
    Call {
        function: u32,
        inputs: Box<[Copied]>,
        outputs: Box<[Copied]>,
    },
    Builtin {
        which: Builtin,
        inputs: Box<[u32]>,
        output: Option<u32>,
    },
    Return,
    Exit,
    Trap,
    Breakpoint,
    Shuffle {
        mode: ShuffleMode,
        d: Reg,
        p: Pred,
        a: Reg,
        b: Reg,
        c: Reg,
        mask: Reg,
    },
    Vote {
        mode: VoteMode,
        d: Reg,
        p: Pred,
        a: PredSrc,
        mask: Reg,
    },
    Match {
        all: bool,
        d: Reg,
        p: Pred,
        a: Reg,
        wide: bool,
        mask: Reg,
    },
    Reduce {
        op: ReduceOp,
        d: Reg,
        a: Reg,
        mask: Reg,
    },
    ActiveMask {
        d: Reg,
    },
    Elect {
        d: Reg,
        p: Pred,
        mask: Reg,
    },
    WarpBarrier {
        mask: Reg,
    },
    Barrier {
        kind: BarrierKind,
        id: Reg,
        count: Option<Reg>,
        aligned: bool,
    },
    /// `gpu` for a fence that other blocks see.
    Fence {
        gpu: bool,
    },
    Sleep,
    Nop,
    AsyncCopy(Box<AsyncCopy>),
    AsyncCommit,
    /// Waits until at most `pending` groups are under way; all copies when `None`.
    AsyncWait {
        pending: Option<u32>,
    },
    Mbarrier(Box<Mbarrier>),
    Matrix(Box<MatrixTransfer>),
    Mma(Box<Mma>),
}

/// A parameter copied between the frames of caller and callee.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    pub(crate) caller: u32,
    pub(crate) callee: u32,
    pub(crate) bytes: u32,
}

/// What an instruction counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Class {
    Integer,
    Single,
    Double,
    Half,
    Special,
    Conversion,
    Move,
    Predicate,
    Control,
    Global,
    Shared,
    Local,
    Param,
    Atomic,
    Synchronisation,
    Communication,
    Tensor,
    AsyncCopy,
    /// Second half of an instruction that was split: counts as nothing.
    None,
}

impl Class {
    pub(crate) const ALL: [Self; 18] = [
        Self::Integer,
        Self::Single,
        Self::Double,
        Self::Half,
        Self::Special,
        Self::Conversion,
        Self::Move,
        Self::Predicate,
        Self::Control,
        Self::Global,
        Self::Shared,
        Self::Local,
        Self::Param,
        Self::Atomic,
        Self::Synchronisation,
        Self::Communication,
        Self::Tensor,
        Self::AsyncCopy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Single => "f32",
            Self::Double => "f64",
            Self::Half => "f16",
            Self::Special => "special",
            Self::Conversion => "conversion",
            Self::Move => "move",
            Self::Predicate => "predicate",
            Self::Control => "control",
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "param",
            Self::Atomic => "atomic",
            Self::Synchronisation => "synchronisation",
            Self::Communication => "communication",
            Self::Tensor => "tensor",
            Self::AsyncCopy => "async_copy",
            Self::None => "none",
        }
    }
}

/// An instruction with its guard and origin.
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: PredSrc,
    pub(crate) class: Class,
    /// Line of the PTX text.
    pub(crate) line: u32,
    /// Index into [`DecodedKernel::locs`]; 0 when there is no source line.
    pub(crate) loc: u32,
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Param {
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

/// A constant that an instruction reads, equal in all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Constant {
    pub(crate) slot: Reg,
    pub(crate) bits: u64,
    pub(crate) wide: bool,
}

/// A function that a kernel calls.
#[derive(Clone, Debug)]
pub(crate) struct Callee {
    pub(crate) entry: u32,
    /// Slots of its registers, to be saved when it calls itself.
    pub(crate) slots: std::ops::Range<u32>,
    pub(crate) preds: std::ops::Range<u16>,
    pub(crate) frame: u32,
    pub(crate) recursive: bool,
}

/// A kernel, ready to run.
pub(crate) struct DecodedKernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Inst>,
    /// Slots of a warp's register file.
    pub(crate) slots: u32,
    pub(crate) preds: u16,
    pub(crate) constants: Vec<Constant>,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) static_shared: usize,
    /// Offset of dynamic shared memory.
    pub(crate) dynamic_shared_at: usize,
    /// Index 0 is the kernel itself.
    pub(crate) functions: Vec<Callee>,
    /// Local memory a thread needs; the call stack of recursive functions comes on top.
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<u32>,
    pub(crate) required_threads: Option<[u32; 3]>,
    /// Source positions; the first one is a dummy.
    pub(crate) locs: Vec<Loc>,
    pub(crate) files: Vec<(u32, String)>,
    /// Registers declared, in 32-bit units: an estimate where no ptxas says better.
    pub(crate) declared_registers: u32,
    pub(crate) ptx_version: u32,
    pub(crate) target: u32,
    /// An instruction that keeps it from being launched.
    pub(crate) refused: Option<SyntaxError>,
    /// It asks for the workspace that blocks of a cooperative grid meet at.
    pub(crate) uses_workspace: bool,
}

impl DecodedKernel {
    /// An instruction as messages name it: its line of the PTX, and of the source if that is known.
    pub(crate) fn place(&self, pc: u32) -> String {
        let Some(inst) = self.code.get(pc as usize) else { return "an unknown line".into() };
        match self.source(inst.loc) {
            Some(source) => format!("PTX line {} ({source})", inst.line),
            None => format!("PTX line {}", inst.line),
        }
    }

    /// `file:line` of the source, and where that was inlined, if the PTX has line numbers.
    pub(crate) fn source(&self, loc: u32) -> Option<String> {
        let loc = self.locs.get(loc as usize).filter(|l| l.file != 0 && l.line != 0)?;
        let file = |index: u32| {
            self.files
                .iter()
                .find(|(i, _)| *i == index)
                .map_or_else(|| format!("file {index}"), |(_, name)| name.clone())
        };
        let mut text = format!("{}:{}", file(loc.file), loc.line);
        if let Some((file_index, line)) = loc.inlined_at {
            text += &format!(" (inlined at {}:{line})", file(file_index));
        }
        Some(text)
    }
}
