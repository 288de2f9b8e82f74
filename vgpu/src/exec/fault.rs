//! What a check found, and where.

use std::fmt;

/// Whether a finding ends its launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Wrong on some order of execution.
    Error,
    /// Allowed or harmless, and mostly a mistake.
    Warning,
}

/// Class of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Access outside every allocation, or past the end of one.
    OutOfBounds,
    /// Access to memory that was freed, or not yet allocated in stream order.
    UseAfterFree,
    /// Address that is not a multiple of the access size.
    Misaligned,
    /// Undefined value at a branch, in an address or stored to global memory.
    Undefined,
    /// Conflicting accesses of warps to shared memory between two barriers.
    SharedRace,
    /// Conflicting accesses of two lanes of a warp to shared memory without `__syncwarp` between.
    WarpRace,
    /// Conflicting accesses of two blocks to global memory.
    GlobalRace,
    /// Threads of a warp or block wait at different synchronisations.
    BarrierDivergence,
    /// Nobody can go on.
    Deadlock,
    /// The instruction budget is used up.
    Spinning,
    /// Data of an asynchronous copy touched before it was waited for.
    AsyncCopy,
    /// Shared memory beyond what the kernel declared and the launch asked for.
    SharedOutOfBounds,
    /// NULL as a pointer.
    NullPointer,
    /// Wrong use of a synchronisation object or an address of the wrong space.
    IllegalInstruction,
    /// Call stack larger than local memory.
    StackOverflow,
    /// A failed `assert`.
    Assert,
    /// A `trap`.
    Trap,
    /// Pinned memory that changed between an asynchronous copy's call and its execution.
    HostMemory,
}

impl FaultKind {
    /// The driver's error for it.
    pub fn code(self) -> u32 {
        match self {
            Self::OutOfBounds
            | Self::UseAfterFree
            | Self::NullPointer
            | Self::SharedOutOfBounds => 700,
            Self::Deadlock | Self::Spinning => 702,
            Self::Assert => 710,
            Self::IllegalInstruction => 715,
            Self::Misaligned => 716,
            _ => 719,
        }
    }

    /// Short name, as reports begin with it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OutOfBounds => "out-of-bounds access",
            Self::UseAfterFree => "use after free",
            Self::Misaligned => "misaligned access",
            Self::Undefined => "undefined value",
            Self::SharedRace => "race in shared memory",
            Self::WarpRace => "race between the lanes of a warp",
            Self::GlobalRace => "race between blocks in global memory",
            Self::BarrierDivergence => "barrier divergence",
            Self::Deadlock => "deadlock",
            Self::Spinning => "instruction budget used up",
            Self::AsyncCopy => "asynchronous copy not waited for",
            Self::SharedOutOfBounds => "shared memory out of bounds",
            Self::NullPointer => "null pointer",
            Self::IllegalInstruction => "illegal instruction",
            Self::StackOverflow => "stack overflow",
            Self::Assert => "assertion failed",
            Self::Trap => "trap",
            Self::HostMemory => "pinned memory changed under an asynchronous copy",
        }
    }
}

/// A finding that ended a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What was found.
    pub kind: FaultKind,
    /// A warning did not end the launch.
    pub severity: Severity,
    /// The kernel's name as in the PTX.
    pub kernel: String,
    /// `blockIdx`.
    pub block: [u32; 3],
    /// `threadIdx`, where one thread is to blame.
    pub thread: Option<[u32; 3]>,
    /// Line of the PTX text.
    pub ptx_line: u32,
    /// `file:line` of the source, when the PTX has line numbers.
    pub source: Option<String>,
    /// Addresses, values and the other party.
    pub message: String,
}

impl Fault {
    /// A finding about what the host did.
    pub(crate) fn of_host(kind: FaultKind, severity: Severity, message: String) -> Self {
        Self {
            kind,
            severity,
            kernel: String::new(),
            block: [0; 3],
            thread: None,
            ptx_line: 0,
            source: None,
            message,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let severity = if self.severity == Severity::Warning { "warning: " } else { "" };
        write!(f, "vgpu: {severity}{}: {}", self.kind.name(), self.message)?;
        if self.kernel.is_empty() {
            return Ok(());
        }
        let [x, y, z] = self.block;
        write!(f, "\nvgpu:   in kernel {}, block ({x}, {y}, {z})", demangle(&self.kernel))?;
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        write!(f, ", PTX line {}", self.ptx_line)?;
        match &self.source {
            Some(source) => write!(f, ", source {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

/// A kernel's name as its source has it.
pub(crate) fn demangle(name: &str) -> String {
    cpp_demangle::Symbol::new(name)
        .ok()
        .and_then(|symbol| symbol.demangle().ok())
        .unwrap_or_else(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_source() {
        let name = "_ZN4gemm6kernelILi64EfEEvPKT0_S3_Pfi";
        let source = "void gemm::kernel<64, float>(float const*, float const*, float*, int)";
        assert_eq!(demangle(name), source);
        assert_eq!(demangle("scale_f32"), "scale_f32");
        assert_eq!(demangle("_Znonsense"), "_Znonsense");
    }
}
