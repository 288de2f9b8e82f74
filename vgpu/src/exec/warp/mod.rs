//! A warp: 32 lanes that run one decoded instruction at a time.
//!
//! Each lane has its own program counter. The group with the lowest one (in the deepest call) runs until
//! it meets the next, which makes diverged lanes reconverge without any analysis of the control flow. A
//! group that keeps branching backwards while others wait gives way, so a lock inside a warp is released.

mod barrier;
mod call;
mod communicate;
mod registers;
mod report;
mod run;
mod schedule;
mod undefined;

use super::Env;
use super::fault::FaultKind;
use super::shadow::LaneOrder;
use crate::isa::lanes::{LANES, Slot};
use crate::isa::*;
use report::NEVER;

pub(crate) const ALL: u32 = u32::MAX;

/// A check's finding, before the place is added.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) kind: FaultKind,
    pub(crate) lane: Option<usize>,
    pub(crate) message: String,
}

impl Finding {
    pub(crate) fn new(kind: FaultKind, lane: usize, message: impl Into<String>) -> Self {
        Self { kind, lane: Some(lane), message: message.into() }
    }
}

pub(crate) type Checked<T> = Result<T, Box<Finding>>;

pub(crate) fn found<T>(kind: FaultKind, lane: usize, message: impl Into<String>) -> Checked<T> {
    Err(Box::new(Finding::new(kind, lane, message)))
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Its turn is over.
    Turn,
    /// Lanes wait for a barrier or for each other.
    Waiting,
    /// All lanes exited.
    Done,
}

/// Lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}

/// Where a called function returns to.
struct Frame {
    pc: u32,
    /// Frame base of the caller.
    base: u32,
    /// Frame size of the caller.
    outputs: *const [Copied],
    callee_function: u32,
    caller_function: u32,
    /// Registers of a function that called itself.
    saved: Option<Saved>,
}

struct Saved {
    slots: Vec<(u32, u32)>,
    preds: Vec<(bool, bool)>,
}

/// Data of asynchronous copies that have not landed.
#[derive(Clone)]
pub(crate) struct Landing {
    pub(crate) lane: u8,
    pub(crate) bytes: u8,
    pub(crate) to: u32,
    pub(crate) data: [u8; 16],
    /// Which of the bytes hold defined values.
    pub(crate) defined: u16,
    /// Commit group, `u32::MAX` while none is committed.
    pub(crate) group: u32,
}

pub(crate) struct Warp {
    /// Place in its block.
    pub(crate) index: usize,
    pub(crate) regs: Box<[Slot]>,
    /// Undefined bits of the lanes that `undef` names.
    pub(crate) shadow: Box<[Slot]>,
    /// Whether `shadow` holds anything but ones.
    shaded: bool,
    /// Lanes whose register has an undefined bit. A 64-bit register uses its first slot's.
    pub(crate) undef: Box<[u32]>,
    pub(crate) preds: Box<[u32]>,
    pub(crate) pred_undef: Box<[u32]>,
    pub(crate) pc: u32,
    /// Lanes that run at `pc`.
    pub(crate) active: u32,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    /// Lanes that exist at all.
    pub(crate) born: u32,
    /// Lanes that wait at a warp-wide instruction for others.
    pub(crate) blocked: u32,
    /// Lanes that wait at a barrier of the block.
    pub(crate) waiting: u32,
    pub(crate) lane_pc: [u32; LANES],
    /// Lowest program counter among lanes that could run.
    wait_min: u32,
    depth: [u16; LANES],
    stacks: Vec<Vec<Frame>>,
    /// Base of each lane's frame in its local memory.
    pub(crate) base: [u32; LANES],
    function: [u32; LANES],
    pub(crate) local: Box<[u8]>,
    pub(crate) local_defined: Box<[u8]>,
    carry: u32,
    backward: u32,
    /// An access that could be part of a wait happened since the last backward branch.
    pub(crate) polled: bool,
    last_turn: usize,
    pub(crate) executed: u64,
    pub(crate) landings: Vec<Landing>,
    /// Lanes of one instruction copied to the same place.
    pub(crate) overlapping: bool,
    /// Groups that each lane has committed, and how many of them have landed.
    pub(crate) committed: [u32; LANES],
    pub(crate) landed: [u32; LANES],
    /// Index of its block.
    pub(crate) block: [u32; 3],
    /// Instruction that an undefined value of a register, of a predicate, comes from.
    pub(crate) origins: Box<[u32]>,
    pub(crate) pred_origins: Box<[u32]>,
    pub(crate) lane_order: LaneOrder,
    /// Vector clock over the warps of the block.
    pub(crate) clock: Vec<u32>,
    /// The clock at the last fence.
    pub(crate) fenced: Option<Vec<u32>>,
}

impl Warp {
    pub(crate) fn new(env: &Env, index: usize, warps: usize) -> Self {
        let kernel = env.kernel;
        let slots = kernel.slots as usize;
        let mut regs = vec![Slot([0xcbcb_cbcb; LANES]); slots].into_boxed_slice();
        for slot in &mut regs[..Special::End as usize] {
            *slot = Slot::ZERO;
        }
        let mut warp = Self {
            index,
            shadow: vec![Slot([ALL; LANES]); if env.undefined { slots } else { 0 }]
                .into_boxed_slice(),
            shaded: false,
            undef: vec![0; slots].into_boxed_slice(),
            preds: vec![0; kernel.preds as usize].into_boxed_slice(),
            pred_undef: vec![0; kernel.preds as usize].into_boxed_slice(),
            regs: std::mem::take(&mut regs),
            pc: 0,
            active: 0,
            live: 0,
            born: 0,
            blocked: 0,
            waiting: 0,
            lane_pc: [0; LANES],
            wait_min: u32::MAX,
            depth: [0; LANES],
            stacks: (0..LANES).map(|_| Vec::new()).collect(),
            base: [0; LANES],
            function: [0; LANES],
            local: vec![0xcb; kernel.local_bytes * LANES].into_boxed_slice(),
            local_defined: vec![0; if env.undefined { kernel.local_bytes * LANES } else { 0 }]
                .into_boxed_slice(),
            carry: 0,
            backward: 0,
            polled: false,
            last_turn: 0,
            executed: 0,
            landings: Vec::new(),
            overlapping: false,
            committed: [0; LANES],
            landed: [0; LANES],
            block: [0; 3],
            origins: vec![NEVER; if env.undefined { slots } else { 0 }].into_boxed_slice(),
            pred_origins: vec![NEVER; if env.undefined { kernel.preds as usize } else { 0 }]
                .into_boxed_slice(),
            lane_order: LaneOrder::default(),
            clock: vec![0; warps],
            fenced: None,
        };
        for constant in &kernel.constants {
            if constant.wide {
                *warp.wide_mut(constant.slot) = [constant.bits; LANES];
            } else {
                warp.regs[constant.slot as usize].0 = [constant.bits as u32; LANES];
            }
        }
        warp.set_specials(env);
        warp
    }

    /// Prepares for a block: program counters, special registers, definedness.
    pub(crate) fn start(&mut self, env: &Env, block: [u32; 3]) {
        let [nx, ny, nz] = env.block;
        let threads = (nx * ny * nz) as usize;
        let first = self.index * LANES;
        self.born = if threads - first >= LANES { ALL } else { (1 << (threads - first)) - 1 };
        self.live = self.born;
        self.active = self.born;
        self.pc = 0;
        self.wait_min = u32::MAX;
        self.blocked = 0;
        self.waiting = 0;
        self.depth = [0; LANES];
        self.base = [0; LANES];
        self.function = [0; LANES];
        self.stacks.iter_mut().for_each(Vec::clear);
        self.carry = 0;
        self.backward = 0;
        self.executed = 0;
        self.landings.clear();
        self.overlapping = false;
        self.committed = [0; LANES];
        self.landed = [0; LANES];
        self.clock.fill(0);
        self.clock[self.index] = 1;
        self.fenced = None;
        self.block = block;
        self.lane_order = LaneOrder::default();
        if env.undefined {
            self.origins.fill(NEVER);
            self.pred_origins.fill(NEVER);
            // Registers begin undefined; special ones and constants are not registers.
            self.undef[Special::End as usize..].fill(ALL);
            for constant in &env.kernel.constants {
                self.undef[constant.slot as usize] = 0;
            }
            if std::mem::take(&mut self.shaded) {
                self.shadow.fill(Slot([ALL; LANES]));
            }
            self.pred_undef[1..].fill(ALL);
            self.local_defined.fill(0);
        }
        let linear = block[0] + env.grid[0] * (block[1] + env.grid[1] * block[2]);
        let changing = [Special::CtaidX, Special::CtaidY, Special::CtaidZ, Special::SmId];
        let values = [block[0], block[1], block[2], linear % env.processors];
        for (special, value) in changing.into_iter().zip(values) {
            self.regs[special as usize].0 = [value; LANES];
        }
    }

    /// Special registers that are the same in every block.
    fn set_specials(&mut self, env: &Env) {
        let [nx, ny, nz] = env.block;
        let threads = (nx * ny * nz) as usize;
        let first = self.index * LANES;
        let mut set = |special: Special, value: &dyn Fn(u32) -> u32| {
            for lane in 0..LANES {
                self.regs[special as usize].0[lane] = value(lane as u32);
            }
        };
        let tid = |lane: u32| first as u32 + lane;
        set(Special::TidX, &|l| tid(l) % nx);
        set(Special::TidY, &|l| tid(l) / nx % ny);
        set(Special::TidZ, &|l| tid(l) / (nx * ny));
        let sizes = [
            ([Special::NtidX, Special::NtidY, Special::NtidZ], env.block),
            ([Special::NctaidX, Special::NctaidY, Special::NctaidZ], env.grid),
        ];
        for (names, values) in sizes {
            for (name, value) in names.into_iter().zip(values) {
                set(name, &|_| value);
            }
        }
        set(Special::LaneId, &|l| l);
        let (index, warps) = (self.index as u32, threads.div_ceil(LANES) as u32);
        set(Special::WarpId, &|_| index);
        set(Special::NwarpId, &|_| warps);
        set(Special::NsmId, &|_| env.processors);
        set(Special::LanemaskEq, &|l| 1 << l);
        set(Special::LanemaskLt, &|l| (1 << l) - 1);
        // Lane 31's shift gives 0, and 0 - 1 is all ones, as it should be.
        set(Special::LanemaskLe, &|l| (2u64 << l).wrapping_sub(1) as u32);
        set(Special::LanemaskGt, &|l| !((2u64 << l).wrapping_sub(1) as u32));
        set(Special::LanemaskGe, &|l| !((1 << l) - 1));
        set(Special::EnvReg1, &|_| (env.workspace >> 32) as u32);
        set(Special::EnvReg2, &|_| env.workspace as u32);
        let (dynamic, total) = (env.dynamic_shared as u32, env.shared_bytes as u32);
        set(Special::DynamicSharedSize, &|_| dynamic);
        set(Special::TotalSharedSize, &|_| total);
        *self.wide_mut(Special::GridId as Reg) = [env.grid_id; LANES];
    }
}
