//! Read-modify-write of a warp's lanes, one after another in a shuffled order.

use std::sync::Mutex;

use super::Env;
use super::block::BlockCore;
use super::counters::Stats;
use super::fault::FaultKind;
use super::memory::SHARED_WINDOW;
use super::shadow::Access;
use super::warp::{Checked, Warp, found, lanes};
use crate::isa::float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, min_max_f32};
use crate::isa::lanes::LANES;
use crate::isa::{Atomic, AtomicOp, MemorySpace};
use crate::ptx::Type;

/// Serialises atomics on the same address between blocks that run on different threads.
pub(crate) struct Locks([Mutex<()>; 64]);

impl Locks {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }

    fn of(&self, address: u64) -> std::sync::MutexGuard<'_, ()> {
        self.0[(address >> 3) as usize & 63].lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The new value of an atomic operation.
fn combine(op: AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    use AtomicOp::*;
    let pairs = |f: &dyn Fn(u16, u16) -> u16| {
        let low = f(old as u16, b as u16) as u64;
        low | (f((old >> 16) as u16, (b >> 16) as u16) as u64) << 16
    };
    let float = |x: f32, y: f32| match op {
        Add => x + y,
        Min => min_max_f32(x, y, false, false),
        _ => min_max_f32(x, y, true, false),
    };
    let half = |x: u16, y: u16| f32_to_f16(float(f16_to_f32(x), f16_to_f32(y)));
    let brain = |x: u16, y: u16| f32_to_bf16(float(bf16_to_f32(x), bf16_to_f32(y)));
    match (op, ty) {
        (Exchange, _) => b,
        (CompareAndSwap, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (And, _) => old & b,
        (Or, _) => old | b,
        (Xor, _) => old ^ b,
        (Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (Add, Type::F32) => {
            (f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits() as u64
        }
        (Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (_, Type::F16) => half(old as u16, b as u16) as u64,
        (_, Type::Bf16) => brain(old as u16, b as u16) as u64,
        (_, Type::F16x2) => pairs(&half),
        (_, Type::Bf16x2) => pairs(&brain),
        (Add, _) => old.wrapping_add(b),
        (Min, Type::S32) => (old as i32).min(b as i32) as u32 as u64,
        (Max, Type::S32) => (old as i32).max(b as i32) as u32 as u64,
        (Min, Type::S64) => (old as i64).min(b as i64) as u64,
        (Max, Type::S64) => (old as i64).max(b as i64) as u64,
        (Min, _) => old.min(b),
        (Max, _) => old.max(b),
    }
}

impl Warp {
    pub(crate) fn atomic(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        atomic: &Atomic,
        mask: u32,
    ) -> Checked<()> {
        self.polled = true;
        let size = atomic.ty.size();
        let wide = size == 8;
        let mut addresses = self.addresses(env, &atomic.at, mask)?;
        if env.undefined {
            for r in [atomic.b, atomic.c] {
                let dirty = self.undef[r as usize] & mask;
                if dirty != 0 {
                    let lane = dirty.trailing_zeros() as usize;
                    let message =
                        format!("the operand of an atomic is undefined{}", self.origin(env, r));
                    self.report(env, FaultKind::Undefined, lane, message)?;
                }
            }
        }
        let access =
            if atomic.op == AtomicOp::CompareAndSwap { Access::Swap } else { Access::Atomic };
        let mut results = [0u64; LANES];
        let mut unclear = 0;
        let mut left = mask;
        while left != 0 {
            let (space, here) = Self::take_space(atomic.at.space, &mut addresses, &mut left);
            let shared = match space {
                MemorySpace::Shared => true,
                MemorySpace::Global => false,
                _ => {
                    let message = format!("atomic on {} memory", space.name());
                    return found(
                        FaultKind::IllegalInstruction,
                        here.trailing_zeros() as usize,
                        message,
                    );
                }
            };
            let mut owners = [0; LANES];
            let pointers = if shared {
                self.check_bounds(
                    &addresses,
                    here,
                    size,
                    core.shared.len(),
                    "atomic on",
                    "shared",
                )?;
                if env.shadows {
                    self.touch_shared(env, core, &addresses, here, size, access)?;
                }
                if env.counting {
                    let used: Vec<u32> = lanes(here).map(|l| addresses[l] as u32).collect();
                    stats.shared(self.pc as usize, &used, size as u32);
                }
                let base = core.shared.as_mut_ptr();
                std::array::from_fn(|l| base.wrapping_add(addresses[l] as usize))
            } else {
                let places = self.global_places(env, core, &addresses, here, size, "atomic on")?;
                if env.race_global {
                    self.touch_global(env, core, &places, &addresses, here, size, access)?;
                }
                if env.counting {
                    stats.global(self.pc as usize, lanes(here).map(|l| addresses[l]), size as u64);
                }
                owners = places.owners;
                places.pointers
            };
            for lane in lanes(here) {
                let generic =
                    if shared { SHARED_WINDOW + addresses[lane] } else { addresses[lane] };
                // What the atomic orders and what it does are one step for other blocks.
                let _guard = (!shared).then(|| env.locks.of(addresses[lane]));
                if env.orders {
                    core.synchronise(env, self, generic, true, true, atomic.order);
                }
                let get = |r| {
                    if wide {
                        self.wide(r)[lane]
                    } else {
                        self.narrow(r)[lane] as u64 & (u64::MAX >> (64 - 8 * size))
                    }
                };
                let (b, c) = (get(atomic.b), get(atomic.c));
                let p = pointers[lane];
                // SAFETY: the access was checked to be inside memory that is alive, and aligned.
                unsafe {
                    let old = match size {
                        8 => p.cast::<u64>().read_volatile(),
                        4 => p.cast::<u32>().read_volatile() as u64,
                        _ => p.cast::<u16>().read_volatile() as u64,
                    };
                    let new = combine(atomic.op, atomic.ty, old, b, c);
                    match size {
                        8 => p.cast::<u64>().write_volatile(new),
                        4 => p.cast::<u32>().write_volatile(new as u32),
                        _ => p.cast::<u16>().write_volatile(new as u16),
                    }
                    results[lane] = old;
                }
                if env.undefined {
                    let mut was_defined = true;
                    let at = addresses[lane];
                    if shared {
                        let bytes = &mut core.shared_defined[at as usize..at as usize + size];
                        was_defined = bytes.iter().all(|b| *b != 0);
                        bytes.fill(1);
                    } else {
                        let allocation = &env.allocations[owners[lane] as usize];
                        if !allocation.is_all_defined() {
                            was_defined = (0..size as u64).all(|i| allocation.is_defined(at + i));
                            if !was_defined {
                                allocation.set_defined(at, size as u64, true);
                            }
                        }
                    }
                    if !was_defined && atomic.op != AtomicOp::Exchange {
                        let space = if shared { "shared" } else { "global" };
                        let message =
                            format!("atomic on {size} bytes of {space} memory that nobody wrote");
                        self.report(env, FaultKind::Undefined, lane, message)?;
                    }
                    unclear |= (!was_defined as u32) << lane;
                }
            }
        }
        if let Some(d) = atomic.d {
            if wide {
                self.put_wide(d, &results, mask);
            } else {
                self.put(d, &results.map(|r| r as u32), mask);
            }
            if env.undefined {
                self.mark(d, wide, unclear, mask & !unclear);
                if unclear != 0 {
                    self.origins[d as usize] = self.pc;
                }
            }
        }
        Ok(())
    }
}
