//! Reading and writing registers of all lanes.

use super::{ALL, Warp};
use crate::isa::lanes::LANES;
use crate::isa::*;

impl Warp {
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
}
