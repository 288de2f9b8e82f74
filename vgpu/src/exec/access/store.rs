//! Stores.

use super::{Places, set_defined};
use crate::exec::Env;
use crate::exec::block::BlockCore;
use crate::exec::counters::Stats;
use crate::exec::fault::FaultKind;
use crate::exec::memory::{MemoryKind, SHARED_WINDOW};
use crate::exec::shadow::Access;
use crate::exec::warp::{ALL, Checked, Warp, found, lanes};
use crate::isa::lanes::LANES;
use crate::isa::{MemorySpace, Order, Transfer};

impl Warp {
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn store(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        t: &Transfer,
        mask: u32,
    ) -> Checked<()> {
        let mut addresses = self.addresses(env, &t.at, mask)?;
        let size = t.size as usize;
        let bytes = size * t.regs.len();
        let strong = t.order != Order::Weak;
        let access = if strong { Access::StrongWrite } else { Access::Write };
        let dirty = if env.undefined {
            t.regs.iter().fold(0, |m, r| m | self.undef[*r as usize]) & mask
        } else {
            0
        };
        let mut left = mask;
        while left != 0 {
            let (space, here) = Self::take_space(t.at.space, &mut addresses, &mut left);
            match space {
                MemorySpace::Shared => {
                    self.check_bounds(
                        &addresses,
                        here,
                        bytes,
                        core.shared.len(),
                        "store to",
                        "shared",
                    )?;
                    if env.shadows {
                        self.touch_shared(env, core, &addresses, here, bytes, access)?;
                        if strong {
                            for lane in lanes(here) {
                                core.synchronise(
                                    env,
                                    self,
                                    SHARED_WINDOW + addresses[lane],
                                    false,
                                    true,
                                    t.order,
                                );
                            }
                        }
                    }
                    if env.counting {
                        let used: Vec<u32> = lanes(here).map(|l| addresses[l] as u32).collect();
                        stats.shared(self.pc as usize, &used, bytes as u32);
                    }
                    let base = core.shared.as_mut_ptr();
                    let pointers =
                        std::array::from_fn(|l| base.wrapping_add(addresses[l] as usize));
                    self.scatter(t, &pointers, here);
                    if env.undefined {
                        let defined = &mut core.shared_defined;
                        if dirty & here == 0 {
                            for lane in lanes(here) {
                                set_defined(defined, addresses[lane] as usize, bytes);
                            }
                        } else {
                            self.store_defined(t, here, dirty, |lane, i, on| {
                                defined[addresses[lane] as usize + i] = on
                            });
                        }
                    }
                }
                MemorySpace::Local => {
                    let limit = self.local.len() / LANES;
                    self.check_bounds(&addresses, here, bytes, limit, "store to", "local")?;
                    let base = self.local.as_mut_ptr();
                    let pointers = std::array::from_fn(|l| {
                        base.wrapping_add((l * limit).wrapping_add(addresses[l] as usize))
                    });
                    self.scatter(t, &pointers, here);
                    if env.undefined {
                        let mut defined = std::mem::take(&mut self.local_defined);
                        self.store_defined(t, here, dirty, |lane, i, on| {
                            defined[lane * limit + addresses[lane] as usize + i] = on
                        });
                        self.local_defined = defined;
                    }
                }
                MemorySpace::Param => {
                    return found(
                        FaultKind::IllegalInstruction,
                        here.trailing_zeros() as usize,
                        "store to a kernel parameter",
                    );
                }
                _ => {
                    let places =
                        self.global_places(env, core, &addresses, here, bytes, "store to")?;
                    let is_constant = |lane: usize| {
                        env.allocations[places.owners[lane] as usize].kind == MemoryKind::Constant
                    };
                    let first = here.trailing_zeros() as usize;
                    let suspects = if places.uniform { 1 << first } else { here };
                    if let Some(lane) = lanes(suspects).find(|l| is_constant(*l)) {
                        return found(FaultKind::OutOfBounds, lane, "store to constant memory");
                    }
                    if env.counting {
                        stats.global(
                            self.pc as usize,
                            lanes(here).map(|l| addresses[l]),
                            bytes as u64,
                        );
                    }
                    if env.undefined {
                        self.check_stored(env, t, dirty & here)?;
                    }
                    if env.orders {
                        if env.race_global {
                            self.touch_global(env, core, &places, &addresses, here, bytes, access)?;
                        }
                        if strong {
                            for lane in lanes(here) {
                                core.synchronise(env, self, addresses[lane], false, true, t.order);
                            }
                        }
                    }
                    self.scatter(t, &places.pointers, here);
                    if env.undefined {
                        self.define_global(env, &places, &addresses, here, bytes);
                        for lane in lanes(dirty & here) {
                            let allocation = &env.allocations[places.owners[lane] as usize];
                            for (element, r) in t.regs.iter().enumerate() {
                                let bits = self.shadow_get(*r, t.wide, lane);
                                for i in (0..size).filter(|i| bits >> (8 * i) & 0xff != 0) {
                                    allocation.set_defined(
                                        addresses[lane] + (element * size + i) as u64,
                                        1,
                                        false,
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Marks the bytes of these lanes as defined.
    pub(crate) fn define_global(
        &self,
        env: &Env,
        places: &Places,
        addresses: &[u64; LANES],
        mask: u32,
        bytes: usize,
    ) {
        let first = mask.trailing_zeros() as usize;
        if places.uniform && env.allocations[places.owners[first] as usize].is_all_defined() {
            return;
        }
        for lane in lanes(mask) {
            env.allocations[places.owners[lane] as usize].set_defined(
                addresses[lane],
                bytes as u64,
                true,
            );
        }
    }

    /// A value without one defined bit must not reach global memory. Partly defined ones may: packed
    /// structures have holes.
    fn check_stored(&self, env: &Env, t: &Transfer, dirty: u32) -> Checked<()> {
        let all = if t.size == 8 { u64::MAX } else { (1 << (t.size * 8)) - 1 };
        for lane in lanes(dirty) {
            for (element, r) in t.regs.iter().enumerate() {
                if self.shadow_get(*r, t.wide, lane) & all == all {
                    let which = if t.regs.len() > 1 {
                        format!("element {element} of ")
                    } else {
                        String::new()
                    };
                    let message = format!(
                        "{which}the value stored to global memory is undefined{}",
                        self.origin(env, *r)
                    );
                    self.report(env, FaultKind::Undefined, lane, message)?;
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn scatter(&self, t: &Transfer, pointers: &[*mut u8; LANES], mask: u32) {
        let size = t.size as usize;
        for (element, r) in t.regs.iter().enumerate() {
            let offset = element * size;
            if size == 8 {
                let values = self.wide(*r);
                for lane in lanes(mask) {
                    // SAFETY: the caller checked that the access is inside memory that is alive.
                    unsafe {
                        pointers[lane]
                            .wrapping_add(offset)
                            .cast::<u64>()
                            .write_unaligned(values[lane])
                    };
                }
                continue;
            }
            let values = self.narrow(*r);
            if size == 4 && mask == ALL {
                for lane in 0..LANES {
                    let p = pointers[lane].wrapping_add(offset);
                    // SAFETY: as above.
                    unsafe { p.cast::<u32>().write_unaligned(values[lane]) };
                }
                continue;
            }
            for lane in lanes(mask) {
                let p = pointers[lane].wrapping_add(offset);
                // SAFETY: as above.
                unsafe {
                    match size {
                        4 => p.cast::<u32>().write_unaligned(values[lane]),
                        2 => p.cast::<u16>().write_unaligned(values[lane] as u16),
                        _ => p.write(values[lane] as u8),
                    }
                }
            }
        }
    }

    pub(super) fn store_defined(
        &self,
        t: &Transfer,
        mask: u32,
        dirty: u32,
        mut set: impl FnMut(usize, usize, u8),
    ) {
        let size = t.size as usize;
        for lane in lanes(mask) {
            for (element, r) in t.regs.iter().enumerate() {
                let bits =
                    if dirty >> lane & 1 != 0 { self.shadow_get(*r, t.wide, lane) } else { 0 };
                for i in 0..size {
                    set(lane, element * size + i, (bits >> (8 * i) & 0xff == 0) as u8);
                }
            }
        }
    }
}
