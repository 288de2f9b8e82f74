//! Loads.

use super::{all_defined, read, undefined_bits};
use crate::exec::Env;
use crate::exec::block::BlockCore;
use crate::exec::counters::Stats;
use crate::exec::memory::SHARED_WINDOW;
use crate::exec::shadow::Access;
use crate::exec::warp::{ALL, Checked, Warp, lanes};
use crate::isa::lanes::LANES;
use crate::isa::{MemorySpace, Order, Transfer, ZERO};

impl Warp {
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn load(
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
        self.polled |= strong;
        let mut left = mask;
        while left != 0 {
            let (space, lanes_here) = Self::take_space(t.at.space, &mut addresses, &mut left);
            match space {
                MemorySpace::Shared => {
                    self.check_bounds(
                        &addresses,
                        lanes_here,
                        bytes,
                        core.shared.len(),
                        "load from",
                        "shared",
                    )?;
                    if env.shadows {
                        if strong {
                            for lane in lanes(lanes_here) {
                                let address = SHARED_WINDOW + addresses[lane];
                                core.synchronise(env, self, address, true, false, t.order);
                            }
                        }
                        let access = if strong { Access::StrongRead } else { Access::Read };
                        self.touch_shared(env, core, &addresses, lanes_here, bytes, access)?;
                    }
                    if env.counting {
                        let used: Vec<u32> =
                            lanes(lanes_here).map(|l| addresses[l] as u32).collect();
                        stats.shared(self.pc as usize, &used, bytes as u32);
                    }
                    let base = core.shared.as_mut_ptr();
                    let pointers =
                        std::array::from_fn(|l| base.wrapping_add(addresses[l] as usize));
                    self.gather(t, &pointers, lanes_here);
                    if env.undefined {
                        let defined = &core.shared_defined;
                        let is_clear =
                            |lane: usize| all_defined(defined, addresses[lane] as usize, bytes);
                        if lanes(lanes_here).all(is_clear) {
                            self.define(t, lanes_here);
                        } else {
                            self.load_defined(t, lanes_here, |lane, i| {
                                defined[addresses[lane] as usize + i] != 0
                            });
                        }
                    }
                }
                MemorySpace::Local => {
                    let limit = self.local.len() / LANES;
                    self.check_bounds(&addresses, lanes_here, bytes, limit, "load from", "local")?;
                    let base = self.local.as_mut_ptr();
                    let pointers = std::array::from_fn(|l| {
                        base.wrapping_add((l * limit).wrapping_add(addresses[l] as usize))
                    });
                    self.gather(t, &pointers, lanes_here);
                    if env.undefined {
                        let defined = std::mem::take(&mut self.local_defined);
                        self.load_defined(t, lanes_here, |lane, i| {
                            defined[lane * limit + addresses[lane] as usize + i] != 0
                        });
                        self.local_defined = defined;
                    }
                }
                MemorySpace::Param => {
                    self.check_bounds(
                        &addresses,
                        lanes_here,
                        bytes,
                        env.params.len(),
                        "load from",
                        "parameter",
                    )?;
                    let base = env.params.as_ptr() as *mut u8;
                    if t.at.base == ZERO {
                        // All lanes read the same, and that was found to be inside the parameters.
                        let at = addresses[lanes_here.trailing_zeros() as usize] as usize;
                        self.broadcast(t, base.wrapping_add(at), lanes_here);
                    } else {
                        let pointers =
                            std::array::from_fn(|l| base.wrapping_add(addresses[l] as usize));
                        self.gather(t, &pointers, lanes_here);
                    }
                    self.define(t, lanes_here);
                }
                _ => {
                    let places =
                        self.global_places(env, core, &addresses, lanes_here, bytes, "load from")?;
                    if env.counting {
                        stats.global(
                            self.pc as usize,
                            lanes(lanes_here).map(|l| addresses[l]),
                            bytes as u64,
                        );
                    }
                    if env.race_global && !strong {
                        let read = Access::Read;
                        self.touch_global(env, core, &places, &addresses, lanes_here, bytes, read)?;
                    }
                    self.gather(t, &places.pointers, lanes_here);
                    if env.orders && strong {
                        // After the value was read: whoever wrote it had said before what that orders.
                        for lane in lanes(lanes_here) {
                            core.synchronise(env, self, addresses[lane], true, false, t.order);
                        }
                    }
                    if env.undefined {
                        let first = lanes_here.trailing_zeros() as usize;
                        let all_defined = places.uniform
                            && env.allocations[places.owners[first] as usize].is_all_defined();
                        if all_defined {
                            self.define(t, lanes_here);
                        } else {
                            self.load_defined(t, lanes_here, |lane, i| {
                                env.allocations[places.owners[lane] as usize]
                                    .is_defined(addresses[lane] + i as u64)
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads each lane's elements from its pointer.
    #[inline(always)]
    pub(super) fn gather(&mut self, t: &Transfer, pointers: &[*mut u8; LANES], mask: u32) {
        let size = t.size as usize;
        for (element, r) in t.regs.iter().enumerate() {
            let offset = element * size;
            if t.wide {
                let mut out = [0u64; LANES];
                for lane in lanes(mask) {
                    let p = pointers[lane].wrapping_add(offset);
                    // SAFETY: the caller checked that the access is inside memory that is alive.
                    out[lane] = unsafe { read(p, size, t.signed) };
                }
                self.put_wide(*r, &out, mask);
                continue;
            }
            let mut out = [0u32; LANES];
            match (size, t.signed) {
                (4, _) if mask == ALL => {
                    for lane in 0..LANES {
                        // SAFETY: as above.
                        out[lane] = unsafe {
                            pointers[lane].wrapping_add(offset).cast::<u32>().read_unaligned()
                        };
                    }
                }
                _ => {
                    for lane in lanes(mask) {
                        let p = pointers[lane].wrapping_add(offset);
                        // SAFETY: as above.
                        out[lane] = unsafe { read(p, size, t.signed) as u32 };
                    }
                }
            }
            self.put(*r, &out, mask);
        }
    }

    /// Reads the elements at one pointer into all lanes of a mask.
    #[inline(always)]
    pub(super) fn broadcast(&mut self, t: &Transfer, from: *mut u8, mask: u32) {
        for (element, r) in t.regs.iter().enumerate() {
            let size = t.size as usize;
            // SAFETY: the caller checked that the access is inside memory that is alive.
            let value = unsafe { read(from.wrapping_add(element * size), size, t.signed) };
            if t.wide {
                self.put_wide(*r, &[value; LANES], mask);
            } else {
                self.put(*r, &[value as u32; LANES], mask);
            }
        }
    }

    /// Marks loaded registers as defined.
    pub(super) fn define(&mut self, t: &Transfer, mask: u32) {
        for r in &t.regs {
            self.undef[*r as usize] &= !mask;
        }
    }

    /// Definedness of loaded registers, from that of their bytes.
    pub(super) fn load_defined(
        &mut self,
        t: &Transfer,
        mask: u32,
        is_defined: impl Fn(usize, usize) -> bool,
    ) {
        let size = t.size as usize;
        for (element, r) in t.regs.iter().enumerate() {
            let mut dirty = 0;
            for lane in lanes(mask) {
                dirty |= (!(0..size).all(|i| is_defined(lane, element * size + i)) as u32) << lane;
            }
            self.undef[*r as usize] &= !mask;
            if dirty != 0 {
                self.origins[*r as usize] = self.pc;
            }
            for lane in lanes(dirty) {
                let mut bits =
                    undefined_bits((0..size).map(|i| is_defined(lane, element * size + i)));
                let top = size * 8 - 1;
                if t.signed && size < 8 && bits >> top & 1 != 0 {
                    bits |= u64::MAX << top;
                }
                if !t.wide {
                    bits &= u32::MAX as u64;
                }
                self.shadow_set(*r, t.wide, lane, bits);
            }
        }
    }
}
