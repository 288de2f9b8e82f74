//! A warp: 32 lanes that run one decoded instruction at a time.
//!
//! Each lane has its own program counter. The group with the lowest one (in the deepest call) runs until
//! it meets the next, which makes diverged lanes reconverge without any analysis of the control flow. A
//! group that keeps branching backwards while others wait gives way, so a lock inside a warp is released.

use super::Env;
use super::block::BlockCore;
use super::counters::Stats;
use super::fault::FaultKind;
use super::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::isa::lanes::{LANES, Slot, Wide};
use crate::isa::*;

pub(crate) const ALL: u32 = u32::MAX;
/// Backward branches of a diverged group before another one has its turn.
const PATIENCE: u32 = 64;

/// A check's finding, before the place is added.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) kind: FaultKind,
    pub(crate) lane: Option<usize>,
    pub(crate) message: String,
}

impl Found {
    pub(crate) fn new(kind: FaultKind, lane: usize, message: impl Into<String>) -> Self {
        Self { kind, lane: Some(lane), message: message.into() }
    }
}

pub(crate) type Checked<T> = Result<T, Box<Found>>;

pub(crate) fn found<T>(kind: FaultKind, lane: usize, message: impl Into<String>) -> Checked<T> {
    Err(Box::new(Found::new(kind, lane, message)))
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
            shadow: vec![Slot([ALL; LANES]); if env.checks { slots } else { 0 }].into_boxed_slice(),
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
            local_defined: vec![0; if env.checks { kernel.local_bytes * LANES } else { 0 }]
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
        if env.checks {
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
        let (dynamic, total) = (env.dynamic_shared as u32, env.shared_bytes as u32);
        set(Special::DynamicSharedSize, &|_| dynamic);
        set(Special::TotalSharedSize, &|_| total);
        *self.wide_mut(Special::GridId as Reg) = [env.grid_id; LANES];
    }

    #[inline(always)]
    pub(crate) fn narrow(&self, r: Reg) -> &[u32; LANES] {
        &self.regs[r as usize].0
    }

    /// A 64-bit register.
    #[inline(always)]
    pub(crate) fn wide(&self, r: Reg) -> &[u64; LANES] {
        assert!((r as usize) + 1 < self.regs.len());
        // SAFETY: two slots in a row are 32 aligned u64.
        unsafe { &*self.regs.as_ptr().add(r as usize).cast() }
    }

    #[inline(always)]
    pub(crate) fn wide_mut(&mut self, r: Reg) -> &mut [u64; LANES] {
        assert!((r as usize) + 1 < self.regs.len());
        // SAFETY: two slots in a row are 32 aligned u64.
        unsafe { &mut *self.regs.as_mut_ptr().add(r as usize).cast() }
    }

    /// The undefined bits of a register, as 64 bits a lane; zero where the lane is defined.
    pub(crate) fn mask_of(&self, r: Reg, wide: bool) -> [u64; LANES] {
        let mut out = [0; LANES];
        for lane in lanes(self.undef[r as usize]) {
            out[lane] = self.shadow_get(r, wide, lane);
        }
        out
    }

    pub(crate) fn shadow_get(&self, r: Reg, wide: bool, lane: usize) -> u64 {
        if self.undef[r as usize] >> lane & 1 == 0 {
            return 0;
        }
        if wide {
            let at = r as usize * LANES + lane * 2;
            let word = |i: usize| self.shadow[i / LANES].0[i % LANES] as u64;
            word(at) | word(at + 1) << 32
        } else {
            self.shadow[r as usize].0[lane] as u64
        }
    }

    pub(crate) fn shadow_set(&mut self, r: Reg, wide: bool, lane: usize, bits: u64) {
        self.shaded = true;
        if wide {
            let at = r as usize * LANES + lane * 2;
            self.shadow[at / LANES].0[at % LANES] = bits as u32;
            self.shadow[(at + 1) / LANES].0[(at + 1) % LANES] = (bits >> 32) as u32;
        } else {
            self.shadow[r as usize].0[lane] = bits as u32;
        }
        if bits != 0 {
            self.undef[r as usize] |= 1 << lane;
        } else {
            self.undef[r as usize] &= !(1 << lane);
        }
    }

    /// Marks whole registers undefined or defined in some lanes.
    pub(crate) fn mark(&mut self, r: Reg, wide: bool, undefined: u32, defined: u32) {
        self.undef[r as usize] &= !defined;
        for lane in lanes(undefined) {
            self.shadow_set(r, wide, lane, u64::MAX);
        }
    }

    #[inline(always)]
    pub(crate) fn pred(&self, p: PredSrc) -> u32 {
        let value = self.preds[p.p as usize];
        if p.negated { !value } else { value }
    }

    pub(crate) fn set_pred(&mut self, p: Pred, value: u32, mask: u32, undefined: u32) {
        if p == NO_PRED {
            return;
        }
        let (old, old_undef) = (self.preds[p as usize], self.pred_undef[p as usize]);
        self.preds[p as usize] = value & mask | old & !mask;
        self.pred_undef[p as usize] = undefined & mask | old_undef & !mask;
    }

    /// Writes a 32-bit result to the lanes of a mask.
    #[inline(always)]
    pub(crate) fn put(&mut self, d: Reg, values: &[u32; LANES], mask: u32) {
        let to = &mut self.regs[d as usize].0;
        if mask == ALL {
            *to = *values;
        } else {
            for i in 0..LANES {
                to[i] = if mask >> i & 1 != 0 { values[i] } else { to[i] };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put_wide(&mut self, d: Reg, values: &[u64; LANES], mask: u32) {
        let to = self.wide_mut(d);
        if mask == ALL {
            *to = *values;
        } else {
            for i in 0..LANES {
                to[i] = if mask >> i & 1 != 0 { values[i] } else { to[i] };
            }
        }
    }

    /// Remembers where the running lanes are.
    fn park(&mut self) {
        for lane in lanes(self.active) {
            self.lane_pc[lane] = self.pc;
        }
    }

    fn runnable(&self) -> u32 {
        self.live & !self.blocked & !self.waiting
    }

    /// Picks the group that runs next; false when no lane can.
    pub(crate) fn reschedule(&mut self) -> bool {
        let candidates = self.runnable();
        self.active = 0;
        self.wait_min = u32::MAX;
        if candidates == 0 {
            return false;
        }
        let deepest = lanes(candidates).map(|l| self.depth[l]).max().unwrap_or(0);
        let pc = lanes(candidates)
            .filter(|l| self.depth[*l] == deepest)
            .map(|l| self.lane_pc[l])
            .min()
            .unwrap_or(0);
        for lane in lanes(candidates) {
            if self.depth[lane] == deepest {
                if self.lane_pc[lane] == pc {
                    self.active |= 1 << lane;
                } else {
                    self.wait_min = self.wait_min.min(self.lane_pc[lane]);
                }
            }
        }
        self.pc = pc;
        true
    }

    /// Counts backward branches since which an atomic or volatile access happened: only such a loop can
    /// be waiting for another lane.
    fn look_for_spinning(&mut self) {
        if std::mem::take(&mut self.polled) {
            self.backward += 1;
            if self.backward > PATIENCE {
                self.rotate();
            }
        }
    }

    /// Lets another group have a turn when the running one only branches backwards.
    fn rotate(&mut self) {
        self.park();
        self.backward = 0;
        let others = self.runnable() & !self.active;
        if others == 0 {
            return;
        }
        // Lanes take turns in a circle, so that none is forgotten.
        let next = (1..=LANES).map(|i| (self.last_turn + i) % LANES).find(|l| others >> l & 1 != 0);
        let Some(chosen) = next else { return };
        self.last_turn = chosen;
        let (pc, depth) = (self.lane_pc[chosen], self.depth[chosen]);
        self.active = lanes(others)
            .filter(|l| self.lane_pc[*l] == pc && self.depth[*l] == depth)
            .fold(0, |m, l| m | 1 << l);
        self.pc = pc;
        // This group is ahead of others on purpose: no meeting until it stops by itself.
        self.wait_min = u32::MAX;
    }

    /// Splits the running group: `jump` goes to `target`, the rest to the next instruction.
    fn diverge(&mut self, jump: u32, target: u32) {
        let next = self.pc + 1;
        for lane in lanes(self.active) {
            self.lane_pc[lane] = if jump >> lane & 1 != 0 { target } else { next };
        }
        self.reschedule();
    }

    /// Collects the lanes that execute a warp-wide instruction together.
    ///
    /// `mask` are the lanes that arrive now, `required` gives for each the lanes it names. Groups that are
    /// complete are returned, the rest wait. When nobody is complete the result is empty and another group
    /// has been scheduled.
    fn assemble(&mut self, mask: u32, required: impl Fn(&Self, usize) -> u32) -> Checked<Vec<u32>> {
        let arrived = mask | self.blocked_here();
        let mut groups = Vec::new();
        let mut left = arrived;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let wanted = required(self, first);
            let same =
                lanes(left).filter(|l| required(self, *l) == wanted).fold(0, |m, l| m | 1 << l);
            left &= !same;
            if let Some(lane) = lanes(same & !wanted).next() {
                let message = format!(
                    "lane {lane} executes a .sync instruction with member mask 0x{wanted:08x}, which does not name it"
                );
                return found(FaultKind::IllegalInstruction, lane, message);
            }
            if wanted & self.live & !same == 0 {
                groups.push(same);
            }
        }
        let ready = groups.iter().fold(0, |all, g| all | g);
        let stay = arrived & !ready;
        if stay != 0 {
            for lane in lanes(stay) {
                self.lane_pc[lane] = self.pc;
            }
            // Lanes that the guard lets pass go on by themselves.
            let pass = (self.active & !mask) | ready;
            self.blocked = self.blocked & !ready | stay;
            self.active = pass;
            if pass == 0 {
                self.reschedule();
            } else if ready == 0 {
                self.pc += 1;
            }
        } else {
            self.blocked &= !ready;
            self.active |= ready;
        }
        Ok(groups)
    }

    fn blocked_here(&self) -> u32 {
        if self.blocked == 0 {
            return 0;
        }
        let depth = self.depth[self.active.trailing_zeros() as usize & 31];
        lanes(self.blocked)
            .filter(|l| self.lane_pc[*l] == self.pc && self.depth[*l] == depth)
            .fold(0, |m, l| m | 1 << l)
    }

    /// Runs until the turn is over or nobody can go on.
    pub(crate) fn run(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        turn: u32,
    ) -> Checked<Pause> {
        if self.active == 0 && !self.reschedule() {
            return Ok(if self.live == 0 { Pause::Done } else { Pause::Waiting });
        }
        // SAFETY: the device refuses to start on CPUs without these features.
        unsafe { self.run_turn(env, core, stats, turn) }
    }

    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    unsafe fn run_turn(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        turn: u32,
    ) -> Checked<Pause> {
        let code = env.kernel.code.as_slice();
        for _ in 0..turn {
            if self.active == 0 && !self.reschedule() {
                return Ok(if self.live == 0 { Pause::Done } else { Pause::Waiting });
            }
            if self.pc >= self.wait_min {
                self.park();
                self.reschedule();
            }
            let pc = self.pc as usize;
            let inst = &code[pc];
            let guard = self.pred(inst.guard) & self.active;
            self.executed += 1;
            if env.counting {
                stats.step(pc, guard);
            }
            let mut unknown = 0;
            if env.checks {
                unknown = self.pred_undef[inst.guard.p as usize] & self.active;
                if unknown != 0 && has_effects(&inst.op) {
                    let lane = unknown.trailing_zeros() as usize;
                    return found(
                        FaultKind::Undefined,
                        lane,
                        "the predicate that guards this instruction is undefined",
                    );
                }
            }
            match &inst.op {
                Op::Alu(alu) => {
                    if guard != 0 {
                        let mut out = std::mem::MaybeUninit::<Wide>::uninit();
                        let regs = self.regs.as_ptr();
                        let [a, b, c] = alu.src;
                        // SAFETY: decoding keeps every slot (and the one after a 64-bit register's) below
                        // the file's size, and the lane function writes all 32 lanes of its result.
                        let out = unsafe {
                            (alu.run)(
                                out.assume_init_mut(),
                                regs.add(a as usize),
                                regs.add(b as usize),
                                regs.add(c as usize),
                                alu.imm,
                            );
                            out.assume_init_ref()
                        };
                        if env.checks {
                            let dirty = self.undef[a as usize]
                                | self.undef[b as usize]
                                | self.undef[c as usize];
                            if dirty & guard == 0 {
                                self.undef[alu.d as usize] &= !guard;
                            } else {
                                self.propagate(alu, guard, dirty);
                            }
                        }
                        if alu.wide {
                            self.put_wide(alu.d, &out.0, guard);
                        } else {
                            self.put(alu.d, out.narrow(), guard);
                        }
                    }
                    if unknown != 0 {
                        self.mark(alu.d, alu.wide, unknown, 0);
                    }
                    self.pc += 1;
                }
                Op::Compare { run, a, b, p, q, join, with } => {
                    let regs = self.regs.as_ptr();
                    // SAFETY: decoding keeps every slot below the file's size.
                    let result = unsafe { run(regs.add(*a as usize), regs.add(*b as usize)) };
                    let mut undefined = 0;
                    if env.checks {
                        undefined = self.undef[*a as usize] | self.undef[*b as usize] | unknown;
                    }
                    let other = self.pred(*with);
                    if env.checks && *join != Join::None {
                        undefined = self.joined_undef(
                            *join,
                            result,
                            undefined,
                            other,
                            self.pred_undef[with.p as usize],
                        );
                    }
                    let joined = |r: u32| match join {
                        Join::None => r,
                        Join::And => r & other,
                        Join::Or => r | other,
                        Join::Xor => r ^ other,
                    };
                    self.set_pred(*p, joined(result), guard | unknown, undefined);
                    self.set_pred(*q, joined(!result), guard | unknown, undefined);
                    self.pc += 1;
                }
                Op::Logic { op, p, a, b } => {
                    let (x, y) = (self.pred(*a), self.pred(*b));
                    let (value, join) = match op {
                        PredLogic::And => (x & y, Join::And),
                        PredLogic::Or => (x | y, Join::Or),
                        PredLogic::Xor => (x ^ y, Join::Xor),
                    };
                    let (ua, ub) = (self.pred_undef[a.p as usize], self.pred_undef[b.p as usize]);
                    let undefined =
                        if ua | ub == 0 { 0 } else { self.joined_undef(join, x, ua, y, ub) };
                    self.set_pred(*p, value, guard | unknown, undefined | unknown);
                    self.pc += 1;
                }
                Op::Select { d, a, b, p, wide } => {
                    let pick = self.pred(*p);
                    if env.checks {
                        let unclear = (self.pred_undef[p.p as usize] & guard) | unknown;
                        let dirty =
                            self.undef[*a as usize] & pick | self.undef[*b as usize] & !pick;
                        let mut masks = [0u64; LANES];
                        for lane in lanes(dirty & guard) {
                            masks[lane] = self.shadow_get(
                                if pick >> lane & 1 != 0 { *a } else { *b },
                                *wide,
                                lane,
                            );
                        }
                        self.undef[*d as usize] &= !guard;
                        for lane in lanes(dirty & guard) {
                            self.shadow_set(*d, *wide, lane, masks[lane]);
                        }
                        self.mark(*d, *wide, unclear, 0);
                    }
                    if *wide {
                        let (x, y) = (*self.wide(*a), *self.wide(*b));
                        let out =
                            std::array::from_fn(|i| if pick >> i & 1 != 0 { x[i] } else { y[i] });
                        self.put_wide(*d, &out, guard);
                    } else {
                        let (x, y) = (*self.narrow(*a), *self.narrow(*b));
                        let out =
                            std::array::from_fn(|i| if pick >> i & 1 != 0 { x[i] } else { y[i] });
                        self.put(*d, &out, guard);
                    }
                    self.pc += 1;
                }
                Op::Branch { target } => {
                    let stay = self.active & !guard;
                    if guard == 0 {
                        self.pc += 1;
                    } else if stay == 0 {
                        let backward = *target <= self.pc;
                        self.pc = *target;
                        if backward && self.active != self.live {
                            self.look_for_spinning();
                        }
                    } else {
                        if env.counting {
                            stats.diverged(pc);
                        }
                        let backward = *target <= self.pc;
                        self.diverge(guard, *target);
                        if backward {
                            self.look_for_spinning();
                        }
                    }
                }
                Op::Load(t) => {
                    if guard != 0 {
                        self.load(env, core, stats, t, guard)?;
                    }
                    if unknown != 0 {
                        for r in &t.regs {
                            self.mark(*r, t.wide, unknown, 0);
                        }
                    }
                    self.pc += 1;
                }
                Op::Store(t) => {
                    if guard != 0 {
                        self.store(env, core, stats, t, guard)?;
                    }
                    self.pc += 1;
                }
                Op::Carry { sub, multiply, reads, writes, wide, signed, d, src } => {
                    self.carry_op(
                        (*sub, *multiply, *reads, *writes, *wide, *signed),
                        *d,
                        *src,
                        guard,
                    );
                    self.pc += 1;
                }
                Op::Convert { d, a, to_generic, space, wide } => {
                    self.convert(*d, *a, *to_generic, *space, *wide, guard);
                    self.pc += 1;
                }
                Op::Mma(mma) => {
                    if !self.whole_warp(guard)? {
                        continue;
                    }
                    self.mma(env, mma);
                    self.pc += 1;
                }
                Op::Matrix(m) => {
                    if !self.whole_warp(guard)? {
                        continue;
                    }
                    self.matrix(env, core, stats, m)?;
                    self.pc += 1;
                }
                Op::Exit => {
                    self.live &= !guard;
                    self.active &= !guard;
                    self.pc += 1;
                    if self.blocked != 0 && guard != 0 {
                        // Lanes that waited for one that is gone look again.
                        self.park();
                        self.blocked = 0;
                        self.reschedule();
                    }
                }
                _ => {
                    if let Some(pause) = self.rare(env, core, stats, inst, guard)? {
                        return Ok(pause);
                    }
                }
            }
        }
        if self.executed > env.budget {
            let lane = self.active.trailing_zeros() as usize;
            let message = format!(
                "the warp executed {} instructions (VGPU_BUDGET raises the limit)",
                self.executed
            );
            return found(FaultKind::Spinning, lane, message);
        }
        self.park();
        Ok(Pause::Turn)
    }

    /// Whether all live lanes are here to execute an instruction of the whole warp. If not, those that
    /// are wait.
    fn whole_warp(&mut self, guard: u32) -> Checked<bool> {
        if guard == self.live {
            return Ok(true);
        }
        if guard == 0 {
            self.pc += 1;
            return Ok(false);
        }
        let live = self.live;
        Ok(!self.assemble(guard, |_, _| live)?.is_empty())
    }

    fn joined_undef(&self, join: Join, a: u32, a_undef: u32, b: u32, b_undef: u32) -> u32 {
        match join {
            Join::None => a_undef,
            // A defined false decides an `and`, a defined true an `or`.
            Join::And => (a_undef | b_undef) & !(!a & !a_undef) & !(!b & !b_undef),
            Join::Or => (a_undef | b_undef) & !(a & !a_undef) & !(b & !b_undef),
            Join::Xor => a_undef | b_undef,
        }
    }

    /// Definedness of an arithmetic result with undefined sources.
    #[cold]
    #[inline(never)]
    fn propagate(&mut self, alu: &Alu, guard: u32, dirty: u32) {
        let is_wide = |i: usize| alu.wide_src >> i & 1 != 0;
        let masks: [[u64; LANES]; 3] =
            std::array::from_fn(|i| self.mask_of(alu.src[i], is_wide(i)));
        let value = |i: usize, lane: usize| {
            if is_wide(i) {
                self.wide(alu.src[i])[lane]
            } else {
                self.narrow(alu.src[i])[lane] as u64
            }
        };
        let width = if alu.wide { u64::MAX } else { u32::MAX as u64 };
        let mut out = [0u64; LANES];
        match alu.rule {
            Rule::Strict => {
                for lane in lanes(dirty & guard) {
                    out[lane] = width;
                }
            }
            Rule::Union => {
                for lane in lanes(dirty & guard) {
                    out[lane] = masks[0][lane] | masks[1][lane] | masks[2][lane];
                }
            }
            Rule::And => {
                for lane in lanes(dirty & guard) {
                    let (u, v) = (masks[0][lane], masks[1][lane]);
                    let zero = |i: usize, m: u64| !value(i, lane) & !m;
                    out[lane] = (u | v) & !zero(0, u) & !zero(1, v) & width;
                }
            }
            Rule::Or => {
                for lane in lanes(dirty & guard) {
                    let (u, v) = (masks[0][lane], masks[1][lane]);
                    let one = |i: usize, m: u64| value(i, lane) & !m;
                    out[lane] = (u | v) & !one(0, u) & !one(1, v) & width;
                }
            }
            Rule::Halves => {
                for lane in lanes(dirty & guard) {
                    let all = masks[0][lane] | masks[1][lane] | masks[2][lane];
                    let low = if all & 0xffff != 0 { 0xffff } else { 0 };
                    out[lane] = low | if all & 0xffff_0000 != 0 { 0xffff_0000 } else { 0 };
                }
            }
            Rule::Mirror { controls } => {
                let mut sources = [[Slot::ZERO; 2]; 3];
                let mut unclear = 0;
                for i in 0..3 {
                    if controls >> i & 1 != 0 {
                        unclear |= self.undef[alu.src[i] as usize];
                        sources[i][0] = self.regs[alu.src[i] as usize];
                        continue;
                    }
                    for lane in 0..LANES {
                        if is_wide(i) {
                            let at = lane * 2;
                            sources[i][at / LANES].0[at % LANES] = masks[i][lane] as u32;
                            sources[i][at / LANES].0[at % LANES + 1] =
                                (masks[i][lane] >> 32) as u32;
                        } else {
                            sources[i][0].0[lane] = masks[i][lane] as u32;
                        }
                    }
                }
                let mut result = Wide::ZERO;
                // SAFETY: each source is two slots of initialised lanes.
                unsafe {
                    (alu.run)(
                        &mut result,
                        sources[0].as_ptr(),
                        sources[1].as_ptr(),
                        sources[2].as_ptr(),
                        alu.imm,
                    )
                };
                for lane in lanes(guard) {
                    let bits = if alu.wide { result.0[lane] } else { result.narrow()[lane] as u64 };
                    out[lane] = if unclear >> lane & 1 != 0 { width } else { bits };
                }
            }
        }
        for lane in lanes(guard) {
            self.shadow_set(alu.d, alu.wide, lane, out[lane]);
        }
    }

    fn carry_op(
        &mut self,
        how: (bool, Option<bool>, bool, bool, bool, bool),
        d: Reg,
        src: [Reg; 3],
        guard: u32,
    ) {
        let (sub, multiply, reads, writes, wide, signed) = how;
        let dirty = src.iter().fold(0, |m, r| m | self.undef[*r as usize]) & guard;
        let bits = if wide { 64 } else { 32 };
        for lane in lanes(guard) {
            let get = |r: Reg| {
                if wide { self.wide(r)[lane] as u128 } else { self.narrow(r)[lane] as u128 }
            };
            let carry = if reads { (self.carry >> lane & 1) as u128 } else { 0 };
            let [a, b, c] = src.map(get);
            let low = (1u128 << bits) - 1;
            let (sum, carried) = match multiply {
                None if sub => {
                    let result = a.wrapping_sub(b).wrapping_sub(carry);
                    (result & low, b + carry > a)
                }
                None => (a + b + carry, a + b + carry > low),
                Some(high) => {
                    let extend = |x: u128| {
                        if wide { x as u64 as i64 as i128 } else { x as u32 as i32 as i128 }
                    };
                    let product =
                        if signed { extend(a).wrapping_mul(extend(b)) as u128 } else { a * b };
                    let part = if high { product >> bits & low } else { product & low };
                    (part + c + carry, part + c + carry > low)
                }
            };
            if writes {
                self.carry = self.carry & !(1 << lane) | (carried as u32) << lane;
            }
            if wide {
                self.wide_mut(d)[lane] = sum as u64;
            } else {
                self.regs[d as usize].0[lane] = sum as u32;
            }
        }
        if !self.shadow.is_empty() {
            self.mark(d, wide, dirty, guard & !dirty);
        }
    }

    fn convert(
        &mut self,
        d: Reg,
        a: Reg,
        to_generic: bool,
        space: MemorySpace,
        wide: bool,
        guard: u32,
    ) {
        let window = match space {
            MemorySpace::Shared => SHARED_WINDOW,
            MemorySpace::Local => LOCAL_WINDOW,
            MemorySpace::Param => PARAM_WINDOW,
            _ => 0,
        };
        if !self.shadow.is_empty() {
            let dirty = self.undef[a as usize] & guard;
            self.mark(d, wide, dirty, guard & !dirty);
        }
        if wide {
            let x = *self.wide(a);
            let out =
                x.map(|v| if to_generic { v.wrapping_add(window) } else { v.wrapping_sub(window) });
            self.put_wide(d, &out, guard);
        } else {
            let x = *self.narrow(a);
            self.put(d, &x, guard);
        }
    }

    /// Everything that is not arithmetic, a branch or a plain access.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    fn rare(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        inst: &Inst,
        guard: u32,
    ) -> Checked<Option<Pause>> {
        match &inst.op {
            Op::Clock { d, which } => {
                let now = env.now(self.executed);
                match which {
                    Clock::Low => self.put(*d, &[now as u32; LANES], guard),
                    Clock::High => self.put(*d, &[(now >> 32) as u32; LANES], guard),
                    Clock::Wide | Clock::Nanoseconds => self.put_wide(*d, &[now; LANES], guard),
                }
                self.undef[*d as usize] &= !guard;
            }
            Op::LocalAddress { d, offset, wide } => {
                let base = self.base;
                if *wide {
                    self.put_wide(*d, &base.map(|b| (b + offset) as u64), guard);
                } else {
                    self.put(*d, &base.map(|b| b + offset), guard);
                }
                self.undef[*d as usize] &= !guard;
            }
            Op::IsSpace { p, a, space } => {
                let addresses = *self.wide(*a);
                let mut inside = 0;
                for (lane, address) in addresses.iter().enumerate() {
                    let found = match address >> 56 {
                        0 => MemorySpace::Global,
                        1 => MemorySpace::Shared,
                        2 => MemorySpace::Local,
                        _ => MemorySpace::Param,
                    };
                    inside |= ((found == *space) as u32) << lane;
                }
                let undefined = self.undef[*a as usize];
                self.set_pred(*p, inside, guard, undefined);
            }
            Op::Atomic(atomic) => {
                if guard != 0 {
                    self.atomic(env, core, stats, atomic, guard)?;
                }
            }
            Op::Prefetch | Op::Nop => {}
            Op::BranchIndexed { index, targets } => {
                if env.checks
                    && let Some(lane) = lanes(self.undef[*index as usize] & guard).next()
                {
                    return found(
                        FaultKind::Undefined,
                        lane,
                        "the index of this branch is undefined",
                    );
                }
                let index = *self.narrow(*index);
                for lane in lanes(self.active) {
                    self.lane_pc[lane] = if guard >> lane & 1 == 0 {
                        self.pc + 1
                    } else {
                        match targets.get(index[lane] as usize) {
                            Some(target) => *target,
                            None => {
                                let message = format!(
                                    "branch index {} of a table of {}",
                                    index[lane],
                                    targets.len()
                                );
                                return found(FaultKind::IllegalInstruction, lane, message);
                            }
                        }
                    };
                }
                self.reschedule();
                return Ok(None);
            }
            Op::Call { function, inputs, outputs } => {
                if guard != 0 {
                    self.call(env, *function, inputs, outputs, guard)?;
                    return Ok(None);
                }
            }
            Op::Return => {
                if guard != 0 {
                    self.ret(env, guard);
                    return Ok(None);
                }
            }
            Op::Builtin { which, inputs, output } => {
                if guard != 0 {
                    self.builtin(env, *which, inputs, *output, guard)?;
                }
            }
            Op::Trap if guard != 0 => {
                return found(
                    FaultKind::Trap,
                    guard.trailing_zeros() as usize,
                    "the kernel executed trap",
                );
            }
            Op::Trap | Op::Breakpoint => {}
            Op::ActiveMask { d } => {
                self.put(*d, &[self.active; LANES], guard);
                self.undef[*d as usize] &= !guard;
            }
            Op::Shuffle { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Reduce { mask, .. }
            | Op::Elect { mask, .. }
            | Op::WarpBarrier { mask } => {
                if guard != 0 {
                    if env.checks
                        && let Some(lane) = lanes(self.undef[*mask as usize] & guard).next()
                    {
                        return found(FaultKind::Undefined, lane, "the member mask is undefined");
                    }
                    let members = *self.narrow(*mask);
                    let groups = self.assemble(guard, |_, lane| members[lane])?;
                    for group in &groups {
                        self.communicate(env, &inst.op, *group);
                    }
                    if groups.is_empty() {
                        return Ok(None);
                    }
                }
            }
            Op::Barrier { kind, id, count, aligned } => {
                return self.barrier(env, core, (*kind, *id, *count, *aligned), guard);
            }
            Op::Fence { gpu } => {
                if guard != 0 {
                    core.fence(env, self, *gpu);
                }
            }
            Op::Sleep => {
                self.pc += 1;
                self.park();
                return Ok(Some(Pause::Turn));
            }
            Op::AsyncCopy(copy) => {
                if guard != 0 {
                    self.async_copy(env, core, stats, copy, guard)?;
                }
            }
            Op::AsyncCommit => self.async_commit(guard),
            Op::AsyncWait { pending } => self.async_wait(env, core, *pending, guard)?,
            Op::Mbarrier(m) => {
                if guard != 0 && self.mbarrier(env, core, m, guard)? {
                    // A wait that failed: let the warps that will arrive run.
                    self.pc += 1;
                    self.park();
                    return Ok(Some(Pause::Turn));
                }
            }
            Op::Alu(_)
            | Op::Carry { .. }
            | Op::Compare { .. }
            | Op::Logic { .. }
            | Op::Select { .. }
            | Op::Convert { .. } => {}
            Op::Load(_)
            | Op::Store(_)
            | Op::Branch { .. }
            | Op::Exit
            | Op::Matrix(_)
            | Op::Mma(_) => {}
        }
        self.pc += 1;
        Ok(None)
    }

    /// Byte offset of a lane's local memory.
    #[inline(always)]
    pub(crate) fn local_at(&self, lane: usize, address: u64) -> usize {
        lane * (self.local.len() / LANES) + address as usize
    }

    fn copy_local(&mut self, lane: usize, from: u32, to: u32, bytes: u32) {
        let (from, to) = (self.local_at(lane, from as u64), self.local_at(lane, to as u64));
        self.local.copy_within(from..from + bytes as usize, to);
        if !self.local_defined.is_empty() {
            self.local_defined.copy_within(from..from + bytes as usize, to);
        }
    }

    fn call(
        &mut self,
        env: &Env,
        function: u32,
        inputs: &[Copied],
        outputs: &[Copied],
        guard: u32,
    ) -> Checked<()> {
        let callee = &env.kernel.functions[function as usize];
        for lane in lanes(self.active & !guard) {
            self.lane_pc[lane] = self.pc + 1;
        }
        for lane in lanes(guard) {
            let caller = self.function[lane];
            let base = self.base[lane];
            let next = base + env.kernel.functions[caller as usize].frame;
            if (next + callee.frame) as usize > env.kernel.local_bytes {
                let message = format!(
                    "{} nested calls do not fit {} bytes of local memory",
                    self.depth[lane], env.kernel.local_bytes
                );
                return found(FaultKind::StackOverflow, lane, message);
            }
            for copy in inputs {
                self.copy_local(lane, base + copy.caller, next + copy.callee, copy.bytes);
            }
            let saved = callee.recursive.then(|| self.save(callee, lane));
            self.stacks[lane].push(Frame {
                pc: self.pc + 1,
                base,
                outputs,
                callee_function: function,
                caller_function: caller,
                saved,
            });
            self.base[lane] = next;
            self.function[lane] = function;
            self.depth[lane] += 1;
            self.lane_pc[lane] = callee.entry;
        }
        self.reschedule();
        Ok(())
    }

    fn save(&self, callee: &Callee, lane: usize) -> Saved {
        let slots = callee
            .slots
            .clone()
            .map(|s| (self.regs[s as usize].0[lane], self.undef[s as usize]))
            .collect();
        let bit = |word: u32| word >> lane & 1 != 0;
        let preds = callee
            .preds
            .clone()
            .map(|p| (bit(self.preds[p as usize]), bit(self.pred_undef[p as usize])))
            .collect();
        Saved { slots, preds }
    }

    fn ret(&mut self, env: &Env, guard: u32) {
        for lane in lanes(self.active & !guard) {
            self.lane_pc[lane] = self.pc + 1;
        }
        for lane in lanes(guard) {
            let Some(frame) = self.stacks[lane].pop() else { continue };
            // SAFETY: the list belongs to the call instruction, which lives as long as the kernel.
            for copy in unsafe { &*frame.outputs } {
                self.copy_local(
                    lane,
                    self.base[lane] + copy.callee,
                    frame.base + copy.caller,
                    copy.bytes,
                );
            }
            if let Some(saved) = &frame.saved {
                let callee = &env.kernel.functions[frame.callee_function as usize];
                for (slot, (value, undef)) in callee.slots.clone().zip(&saved.slots) {
                    // Constants and temporaries come back as they were, too.
                    self.regs[slot as usize].0[lane] = *value;
                    let bit = 1 << lane;
                    self.undef[slot as usize] = self.undef[slot as usize] & !bit | undef & bit;
                }
                for (pred, (value, undef)) in callee.preds.clone().zip(&saved.preds) {
                    let bit = 1 << lane;
                    let set = |word: u32, on: bool| if on { word | bit } else { word & !bit };
                    self.preds[pred as usize] = set(self.preds[pred as usize], *value);
                    self.pred_undef[pred as usize] = set(self.pred_undef[pred as usize], *undef);
                }
            }
            self.base[lane] = frame.base;
            self.function[lane] = frame.caller_function;
            self.depth[lane] -= 1;
            self.lane_pc[lane] = frame.pc;
        }
        self.reschedule();
    }

    fn communicate(&mut self, env: &Env, op: &Op, group: u32) {
        match op {
            Op::Shuffle { mode, d, p, a, b, c, .. } => {
                let (values, offsets, clamps) =
                    (*self.narrow(*a), *self.narrow(*b), *self.narrow(*c));
                let mut out = [0; LANES];
                let mut valid = 0;
                let mut undefined = 0;
                let control = self.undef[*b as usize] | self.undef[*c as usize];
                let mut masks = [0u64; LANES];
                for lane in lanes(group) {
                    let (offset, clamp, segment) =
                        (offsets[lane] & 31, clamps[lane] & 31, clamps[lane] >> 8 & 31);
                    let lane32 = lane as u32;
                    let max = (lane32 & segment) | (clamp & !segment);
                    let min = lane32 & segment;
                    let (source, inside) = match mode {
                        ShuffleMode::Up => {
                            let source = lane32 as i32 - offset as i32;
                            (source as u32, source >= max as i32)
                        }
                        ShuffleMode::Down => (lane32 + offset, lane32 + offset <= max),
                        ShuffleMode::Butterfly => (lane32 ^ offset, lane32 ^ offset <= max),
                        ShuffleMode::Index => {
                            let source = min | (offset & !segment);
                            (source, source <= max)
                        }
                    };
                    let from = if inside { source as usize & 31 } else { lane };
                    valid |= (inside as u32) << lane;
                    out[lane] = values[from];
                    if env.checks {
                        if group >> from & 1 == 0 || control >> lane & 1 != 0 {
                            undefined |= 1 << lane;
                        } else {
                            masks[lane] = self.shadow_get(*a, false, from);
                        }
                    }
                }
                if env.checks {
                    self.undef[*d as usize] &= !group;
                    for lane in lanes(group) {
                        if masks[lane] != 0 {
                            self.shadow_set(*d, false, lane, masks[lane]);
                        }
                    }
                    self.mark(*d, false, undefined, 0);
                }
                self.put(*d, &out, group);
                self.set_pred(*p, valid, group, control);
            }
            Op::Vote { mode, d, p, a, .. } => {
                let votes = self.pred(*a) & group;
                let unclear = if self.pred_undef[a.p as usize] & group != 0 { ALL } else { 0 };
                match mode {
                    VoteMode::Ballot => {
                        self.put(*d, &[votes; LANES], group);
                        if env.checks {
                            self.mark(*d, false, unclear & group, group);
                        }
                    }
                    VoteMode::All => {
                        self.set_pred(*p, if votes == group { ALL } else { 0 }, group, unclear)
                    }
                    VoteMode::Any => {
                        self.set_pred(*p, if votes != 0 { ALL } else { 0 }, group, unclear)
                    }
                    VoteMode::Uniform => self.set_pred(
                        *p,
                        if votes == 0 || votes == group { ALL } else { 0 },
                        group,
                        unclear,
                    ),
                }
            }
            Op::Match { all, d, p, a, wide, .. } => {
                let unclear = if self.undef[*a as usize] & group != 0 { ALL } else { 0 };
                let value = |lane: usize| {
                    if *wide { self.wide(*a)[lane] } else { self.narrow(*a)[lane] as u64 }
                };
                let mut out = [0; LANES];
                let mut same = 0;
                for lane in lanes(group) {
                    let equal = lanes(group)
                        .filter(|l| value(*l) == value(lane))
                        .fold(0, |m, l| m | 1 << l);
                    out[lane] = if *all && equal != group { 0 } else { equal };
                    same |= ((equal == group) as u32) << lane;
                }
                self.put(*d, &out, group);
                self.set_pred(*p, same, group, unclear);
                if env.checks {
                    self.mark(*d, false, unclear & group, group);
                }
            }
            Op::Reduce { op, d, a, .. } => {
                let values = *self.narrow(*a);
                let unclear = if self.undef[*a as usize] & group != 0 { ALL } else { 0 };
                let result = lanes(group).map(|l| values[l]).reduce(|x, y| match op {
                    ReduceOp::Add => x.wrapping_add(y),
                    ReduceOp::Min => x.min(y),
                    ReduceOp::Max => x.max(y),
                    ReduceOp::MinSigned => (x as i32).min(y as i32) as u32,
                    ReduceOp::MaxSigned => (x as i32).max(y as i32) as u32,
                    ReduceOp::And => x & y,
                    ReduceOp::Or => x | y,
                    ReduceOp::Xor => x ^ y,
                });
                self.put(*d, &[result.unwrap_or(0); LANES], group);
                if env.checks {
                    self.mark(*d, false, unclear & group, group);
                }
            }
            Op::Elect { d, p, .. } => {
                let leader = group.trailing_zeros();
                self.put(*d, &[leader; LANES], group);
                self.undef[*d as usize] &= !group;
                self.set_pred(*p, 1 << leader, group, 0);
            }
            _ => {}
        }
    }

    /// Arrives at a barrier of the block.
    fn barrier(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        how: (BarrierKind, Reg, Option<Reg>, bool),
        guard: u32,
    ) -> Checked<Option<Pause>> {
        let (kind, id, count, aligned) = how;
        if guard == 0 {
            self.pc += 1;
            return Ok(None);
        }
        let mut arriving = guard;
        if aligned && guard != self.live {
            let all = self.live;
            let groups = self.assemble(guard, |_, _| all)?;
            match groups[..] {
                [group] => arriving = group,
                _ => return Ok(None),
            }
        }
        let first = arriving.trailing_zeros() as usize;
        if env.checks {
            let dirty = self.undef[id as usize] | count.map_or(0, |c| self.undef[c as usize]);
            if dirty & arriving != 0 {
                return found(
                    FaultKind::Undefined,
                    first,
                    "the barrier's number or count is undefined",
                );
            }
        }
        let pred = match kind {
            BarrierKind::RedAnd(_, p) | BarrierKind::RedOr(_, p) | BarrierKind::RedPopc(_, p) => {
                if let Some(lane) = lanes(self.pred_undef[p.p as usize] & arriving).next() {
                    return found(
                        FaultKind::Undefined,
                        lane,
                        "the predicate of this barrier is undefined",
                    );
                }
                self.pred(p)
            }
            _ => 0,
        };
        let number = self.narrow(id)[first];
        let count = count.map(|c| self.narrow(c)[first]);
        if number > 15 {
            return found(
                FaultKind::IllegalInstruction,
                first,
                format!("barrier {number} does not exist; there are 16"),
            );
        }
        if let Some(count) = count
            && (count == 0 || count % LANES as u32 != 0)
        {
            return found(
                FaultKind::IllegalInstruction,
                first,
                format!("a barrier for {count} threads; it must be a multiple of 32"),
            );
        }
        core.arrive(self, number as usize, count, kind, arriving, pred)?;
        let next = self.pc + 1;
        for lane in lanes(self.active) {
            self.lane_pc[lane] = next;
        }
        if !matches!(kind, BarrierKind::Arrive) {
            self.waiting |= arriving;
        }
        if !self.reschedule() {
            return Ok(Some(Pause::Waiting));
        }
        Ok(None)
    }

    /// Goes on after a barrier.
    pub(crate) fn release(
        &mut self,
        lanes_released: u32,
        kind: BarrierKind,
        count: u32,
        total: u32,
    ) {
        self.waiting &= !lanes_released;
        match kind {
            BarrierKind::RedAnd(p, _) => {
                self.set_pred(p, if count == total { ALL } else { 0 }, lanes_released, 0)
            }
            BarrierKind::RedOr(p, _) => {
                self.set_pred(p, if count != 0 { ALL } else { 0 }, lanes_released, 0)
            }
            BarrierKind::RedPopc(d, _) => {
                self.put(d, &[count; LANES], lanes_released);
                self.undef[d as usize] &= !lanes_released;
            }
            _ => {}
        }
    }
}

/// Whether an instruction does more than write a register.
fn has_effects(op: &Op) -> bool {
    !matches!(
        op,
        Op::Alu(_)
            | Op::Compare { .. }
            | Op::Logic { .. }
            | Op::Select { .. }
            | Op::Load(_)
            | Op::Clock { .. }
            | Op::Convert { .. }
            | Op::LocalAddress { .. }
            | Op::Nop
            | Op::Prefetch
    )
}
