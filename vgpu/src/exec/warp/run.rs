//! Executes decoded instructions.

use super::{ALL, Checked, Pause, Warp, found, lanes};
use crate::exec::Env;
use crate::exec::block::BlockCore;
use crate::exec::counters::Stats;
use crate::exec::fault::FaultKind;
use crate::exec::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::isa::lanes::{LANES, Wide};
use crate::isa::*;

impl Warp {
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
    pub(super) unsafe fn run_turn(
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
            if env.undefined {
                unknown = self.pred_undef[inst.guard.p as usize] & self.active;
                if unknown != 0 && has_effects(&inst.op) {
                    let lane = unknown.trailing_zeros() as usize;
                    let origin = self.pred_origin(env, inst.guard.p);
                    let message =
                        format!("the predicate that guards this instruction is undefined{origin}");
                    self.report(env, FaultKind::Undefined, lane, message)?;
                    unknown = 0;
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
                        if env.undefined {
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
                    if env.undefined {
                        undefined = self.undef[*a as usize] | self.undef[*b as usize] | unknown;
                        if undefined & (guard | unknown) != 0 {
                            self.inherit_predicate(&[*p, *q], &[*a, *b], inst.guard.p);
                        }
                    }
                    let other = self.pred(*with);
                    if env.undefined && *join != Join::None {
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
                    if undefined != 0 {
                        let from = if ua != 0 { a.p } else { b.p };
                        self.pred_origins[*p as usize] = self.pred_origins[from as usize];
                    }
                    self.set_pred(*p, value, guard | unknown, undefined | unknown);
                    self.pc += 1;
                }
                Op::Select { d, a, b, p, wide } => {
                    let pick = self.pred(*p);
                    if env.undefined {
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
                        if dirty & guard != 0 {
                            self.inherit(*d, &[*a, *b], guard);
                        } else if unclear != 0 {
                            self.origins[*d as usize] = self.pred_origins[p.p as usize];
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
                    let mut left = guard;
                    while left != 0
                        && let Err(what) = self.load(env, core, stats, t, left)
                    {
                        left &= !self.skip(env, what)?;
                    }
                    if unknown != 0 {
                        for r in &t.regs {
                            self.mark(*r, t.wide, unknown, 0);
                        }
                    }
                    self.pc += 1;
                }
                Op::Store(t) => {
                    let mut left = guard;
                    while left != 0
                        && let Err(what) = self.store(env, core, stats, t, left)
                    {
                        left &= !self.skip(env, what)?;
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
                Op::ConvertAddress { d, a, to_generic, space, wide } => {
                    self.convert_address(*d, *a, *to_generic, *space, *wide, guard);
                    self.pc += 1;
                }
                Op::Mma(mma) => {
                    if !self.whole_warp(guard)? {
                        continue;
                    }
                    self.mma(env, mma);
                    self.lane_order.meet(ALL, true);
                    self.pc += 1;
                }
                Op::Matrix(m) => {
                    if !self.whole_warp(guard)? {
                        continue;
                    }
                    self.matrix(env, core, stats, m)?;
                    self.lane_order.meet(ALL, true);
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

    /// Everything that is not arithmetic, a branch or a plain access.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn rare(
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
                if env.undefined
                    && let Some(lane) = lanes(self.undef[*index as usize] & guard).next()
                {
                    let message = format!(
                        "the index of this branch is undefined{}",
                        self.origin(env, *index)
                    );
                    self.report(env, FaultKind::Undefined, lane, message)?;
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
                    if env.undefined
                        && let Some(lane) = lanes(self.undef[*mask as usize] & guard).next()
                    {
                        let message =
                            format!("the member mask is undefined{}", self.origin(env, *mask));
                        self.report(env, FaultKind::Undefined, lane, message)?;
                    }
                    let members = *self.narrow(*mask);
                    let groups = self.assemble(guard, |_, lane| members[lane])?;
                    for group in &groups {
                        let is_all = *group == self.live;
                        match &inst.op {
                            Op::WarpBarrier { .. } => self.lane_order.synchronise(*group, is_all),
                            op => {
                                self.communicate(env, op, *group);
                                self.lane_order.meet(*group, is_all);
                            }
                        }
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
            | Op::ConvertAddress { .. } => {}
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

    pub(super) fn carry_op(
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
            if dirty != 0 {
                self.inherit(d, &src, guard);
            }
            self.mark(d, wide, dirty, guard & !dirty);
        }
    }

    pub(super) fn convert_address(
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
            if dirty != 0 {
                self.inherit(d, &[a], guard);
            }
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
            | Op::ConvertAddress { .. }
            | Op::LocalAddress { .. }
            | Op::Nop
            | Op::Prefetch
    )
}
