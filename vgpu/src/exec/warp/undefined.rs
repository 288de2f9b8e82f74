//! Which bits of registers are undefined, and how that spreads.

use super::{Warp, lanes};
use crate::isa::lanes::{LANES, Slot, Wide};
use crate::isa::*;

impl Warp {
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

    pub(super) fn joined_undef(
        &self,
        join: Join,
        a: u32,
        a_undef: u32,
        b: u32,
        b_undef: u32,
    ) -> u32 {
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
    pub(super) fn propagate(&mut self, alu: &Alu, guard: u32, dirty: u32) {
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
        self.inherit(alu.d, &alu.src, guard);
        for lane in lanes(guard) {
            self.shadow_set(alu.d, alu.wide, lane, out[lane]);
        }
    }
}
