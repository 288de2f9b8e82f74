//! Who touched which memory, and whether that was ordered.
//!
//! Three orders, one for each level at which threads are not ordered by themselves: lanes of a warp
//! (`lanes`), warps of a block (`shared`), blocks of a grid (`grid`).

mod grid;
mod lanes;
mod shared;

pub(crate) use grid::{BlockOrder, GridCells, GridOrder, LAST_STAMP};
pub(crate) use lanes::LaneOrder;
pub(crate) use shared::SharedShadow;

/// How an access takes part in races.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Volatile or relaxed load: conflicts with plain writes only.
    StrongRead,
    /// Volatile or relaxed store: conflicts with plain accesses only.
    StrongWrite,
    /// Read-modify-write: conflicts with plain accesses only.
    Atomic,
    /// Compare-and-swap: a plain read before it is how it is meant to be used.
    Swap,
}

impl Access {
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::StrongRead => "volatile read",
            Self::StrongWrite => "volatile write",
            Self::Atomic | Self::Swap => "atomic",
        }
    }

    fn reads_only(self) -> bool {
        matches!(self, Self::Read | Self::StrongRead)
    }
}

/// An instruction as the shadow remembers it, in 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Site(u16);

impl Site {
    pub(crate) fn new(pc: u32) -> Self {
        Self(u16::try_from(pc).unwrap_or(u16::MAX))
    }

    /// The instruction, unless it lies too far into the kernel.
    pub(crate) fn pc(self) -> Option<u32> {
        (self.0 != u16::MAX).then_some(self.0 as u32)
    }
}

/// What the other party of a race did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PriorAccess {
    Read,
    PlainWrite,
    /// Volatile or atomic.
    StrongWrite,
}

/// The other party of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Another warp of the block.
    Warp { warp: u32, prior: PriorAccess, site: Site },
    /// Another lane of the warp. `weakly` when something made the lanes meet that does not order memory.
    Lane { lane: Option<u32>, prior: PriorAccess, site: Site, weakly: bool },
    /// Another block, or several (`None`).
    Block { block: Option<u32>, prior: PriorAccess, site: Site },
    /// The bytes belong to a copy under way.
    InFlight,
}
