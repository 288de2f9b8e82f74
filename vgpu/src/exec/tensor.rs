//! Matrix instructions: `mma.sync`, `ldmatrix`, `stmatrix`.
//!
//! Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k*". With e elements in a 32-bit register,
//! g = lane / 4 and t = lane % 4, element i of A's register r is A[g + 8 (r mod 2)][e t + i + 4e (r div 2)],
//! of B's B[e t + i + 4e r][g], and accumulator c is C[g + 8 (c div 2)][2 t + c mod 2].

use super::Env;
use super::access::all_defined;
use super::block::BlockCore;
use super::counters::Stats;
use super::fault::FaultKind;
use super::memory::SHARED_WINDOW;
use super::shadow::Access;
use super::warp::{ALL, Checked, Warp, found, lanes};
use crate::isa::float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::isa::lanes::{LANES, Slot};
use crate::isa::{MatrixTransfer, MemorySpace, Mma, MmaType};

const ROWS: usize = 16;
const COLUMNS: usize = 8;

/// Place of accumulator `c` of a lane in the 16x8 result.
pub(crate) fn accumulator_at(lane: usize, c: usize) -> (usize, usize) {
    (lane / 4 + 8 * (c / 2), lane % 4 * 2 + c % 2)
}

/// Row and k of element `i` in register `r` of A, `e` elements a register.
pub(crate) fn a_at(lane: usize, r: usize, i: usize, e: usize) -> (usize, usize) {
    (lane / 4 + 8 * (r % 2), lane % 4 * e + i + 4 * e * (r / 2))
}

/// k and column of element `i` in register `r` of B.
pub(crate) fn b_at(lane: usize, r: usize, i: usize, e: usize) -> (usize, usize) {
    (lane % 4 * e + i + 4 * e * r, lane / 4)
}

/// Elements of a type in a register.
pub(crate) fn elements(ty: MmaType) -> usize {
    match ty {
        MmaType::F16 | MmaType::Bf16 => 2,
        MmaType::Tf32 => 1,
        MmaType::S8 | MmaType::U8 => 4,
    }
}

#[inline(always)]
fn element(ty: MmaType, word: u32, i: usize) -> f32 {
    match ty {
        MmaType::F16 => f16_to_f32((word >> (16 * i)) as u16),
        MmaType::Bf16 => bf16_to_f32((word >> (16 * i)) as u16),
        // The hardware does not look at the 13 low bits.
        MmaType::Tf32 => f32::from_bits(word & 0xffff_e000),
        // Products of bytes summed over 32 stay far below 2^24: single precision is exact.
        MmaType::S8 => (word >> (8 * i)) as u8 as i8 as f32,
        MmaType::U8 => (word >> (8 * i)) as u8 as f32,
    }
}

/// Adds A [16, K] times B [K, 8] in the order of k; the registers hold `E` elements each.
#[target_feature(enable = "avx2,fma")]
fn multiply<const K: usize, const E: usize>(
    warp: &Warp,
    mma: &Mma,
    sums: &mut [[f32; COLUMNS]; ROWS],
    of_a: impl Fn(u32, usize) -> f32,
    of_b: impl Fn(u32, usize) -> f32,
) {
    let mut a = [[0f32; K]; ROWS];
    let mut b = [[0f32; COLUMNS]; K];
    for (r, reg) in mma.a.iter().enumerate() {
        let words = warp.narrow(*reg);
        for lane in 0..LANES {
            for i in 0..E {
                let (row, column) = a_at(lane, r, i, E);
                a[row % ROWS][column % K] = of_a(words[lane], i);
            }
        }
    }
    for (r, reg) in mma.b.iter().enumerate() {
        let words = warp.narrow(*reg);
        for lane in 0..LANES {
            for i in 0..E {
                let (row, column) = b_at(lane, r, i, E);
                b[row % K][column % COLUMNS] = of_b(words[lane], i);
            }
        }
    }
    // Eight rows at a time: their sums fit the vector registers, and their chains of additions overlap.
    for (a, sums) in a.as_chunks::<8>().0.iter().zip(sums.as_chunks_mut::<8>().0) {
        let mut acc = *sums;
        for (i, column) in b.iter().enumerate() {
            for r in 0..8 {
                for n in 0..COLUMNS {
                    acc[r][n] = a[r][i].mul_add(column[n], acc[r][n]);
                }
            }
        }
        *sums = acc;
    }
}

/// One 8x8 matrix of 16-bit elements, as `ldmatrix` deals it out; its rows begin at these offsets.
#[inline(always)]
fn load_matrix(shared: &[u8], starts: &[u64], transposed: bool) -> [u32; LANES] {
    let mut rows = [[0u8; 16]; 8];
    for (row, at) in rows.iter_mut().zip(starts) {
        row.copy_from_slice(&shared[*at as usize..*at as usize + 16]);
    }
    let half = |row: usize, column: usize| {
        u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]]) as u32
    };
    if transposed {
        std::array::from_fn(|l| half(l % 4 * 2, l / 4) | half(l % 4 * 2 + 1, l / 4) << 16)
    } else {
        std::array::from_fn(|l| half(l / 4, l % 4 * 2) | half(l / 4, l % 4 * 2 + 1) << 16)
    }
}

/// m16n8k16 of 16-bit elements with single-precision C and D: the shape that kernels are built from.
///
/// In a register of A or B, four lanes in a row hold eight elements of k in their order, so whole registers
/// convert at once. Column n of the result is kept at place n / 2 + 4 (n mod 2), which is where the two
/// accumulators of a row lie side by side. Sums run over k in order, as in [`multiply`].
#[inline(always)]
fn multiply_k16(warp: &Warp, mma: &Mma, of: impl Fn(u32, usize) -> f32) -> [[u32; LANES]; 4] {
    let mut a = [[0f32; 16]; ROWS];
    let mut b = [[0f32; COLUMNS]; 16];
    for r in 0..4 {
        let words = warp.narrow(mma.a[r]);
        for g in 0..8 {
            for j in 0..8 {
                a[g + 8 * (r % 2)][8 * (r / 2) + j] = of(words[4 * g + j / 2], j % 2);
            }
        }
    }
    for r in 0..2 {
        let words = warp.narrow(mma.b[r]);
        for t in 0..4 {
            for place in 0..8 {
                let n = place % 4 * 2 + place / 4;
                let word = words[4 * n + t];
                b[8 * r + 2 * t][place] = of(word, 0);
                b[8 * r + 2 * t + 1][place] = of(word, 1);
            }
        }
    }
    let mut out = [[0; LANES]; 4];
    for half in 0..2 {
        let c = [warp.narrow(mma.c[2 * half]), warp.narrow(mma.c[2 * half + 1])];
        let mut acc = [[0f32; COLUMNS]; 8];
        for g in 0..8 {
            for place in 0..8 {
                acc[g][place] = f32::from_bits(c[place / 4][4 * g + place % 4]);
            }
        }
        for (k, row) in b.iter().enumerate() {
            for g in 0..8 {
                for place in 0..8 {
                    acc[g][place] = a[8 * half + g][k].mul_add(row[place], acc[g][place]);
                }
            }
        }
        for g in 0..8 {
            for place in 0..8 {
                out[2 * half + place / 4][4 * g + place % 4] = acc[g][place].to_bits();
            }
        }
    }
    out
}

#[target_feature(enable = "avx2,fma")]
fn multiply_bf16(warp: &Warp, mma: &Mma) -> [[u32; LANES]; 4] {
    multiply_k16(warp, mma, |w, i| f32::from_bits(if i == 0 { w << 16 } else { w & 0xffff_0000 }))
}

#[target_feature(enable = "avx2,fma")]
fn multiply_f16(warp: &Warp, mma: &Mma) -> [[u32; LANES]; 4] {
    multiply_k16(warp, mma, |w, i| f16_to_f32((w >> (16 * i)) as u16))
}

impl Warp {
    pub(crate) fn mma(&mut self, env: &Env, mma: &Mma) {
        let e = elements(mma.a_type);
        let singles = !mma.half_c && !mma.half_d && mma.k == 16;
        // SAFETY: the device refuses to start on CPUs without these features.
        let outputs = unsafe {
            match mma.a_type {
                MmaType::Bf16 if singles => multiply_bf16(self, mma),
                MmaType::F16 if singles => multiply_f16(self, mma),
                _ => self.products(mma),
            }
        };
        let undefined = if env.undefined { self.undefined_results(mma, e) } else { None };
        for (r, reg) in mma.d.iter().enumerate() {
            self.put(*reg, &outputs[r], ALL);
            self.undef[*reg as usize] = 0;
        }
        if let Some((undefined, origin)) = undefined {
            mma.d.iter().for_each(|r| self.origins[*r as usize] = origin);
            for lane in 0..LANES {
                for c in 0..4 {
                    let (row, column) = accumulator_at(lane, c);
                    if !undefined[row][column] {
                        continue;
                    }
                    let (r, bits) = if mma.half_d {
                        (c / 2, 0xffff << (16 * (c % 2)))
                    } else {
                        (c, u32::MAX as u64)
                    };
                    let old = self.shadow_get(mma.d[r], false, lane);
                    self.shadow_set(mma.d[r], false, lane, old | bits);
                }
            }
        }
    }

    /// The registers of D, for any form.
    fn products(&self, mma: &Mma) -> [[u32; LANES]; 4] {
        let is_int = matches!(mma.a_type, MmaType::S8 | MmaType::U8);
        let mut sums = [[0f32; COLUMNS]; ROWS];
        if !is_int {
            for (r, reg) in mma.c.iter().enumerate() {
                let words = self.narrow(*reg);
                for lane in 0..LANES {
                    if mma.half_c {
                        for i in 0..2 {
                            let (row, column) = accumulator_at(lane, r * 2 + i);
                            sums[row][column] = f16_to_f32((words[lane] >> (16 * i)) as u16);
                        }
                    } else {
                        let (row, column) = accumulator_at(lane, r);
                        sums[row][column] = f32::from_bits(words[lane]);
                    }
                }
            }
        }
        let half = |w, i| element(MmaType::F16, w, i);
        let brain = |w, i| element(MmaType::Bf16, w, i);
        let single = |w, i| element(MmaType::Tf32, w, i);
        let (a_type, b_type) = (mma.a_type, mma.b_type);
        let (byte_a, byte_b) = (|w, i| element(a_type, w, i), |w, i| element(b_type, w, i));
        // SAFETY: the device refuses to start on CPUs without these features.
        unsafe {
            match (a_type, mma.k) {
                (MmaType::F16, 8) => multiply::<8, 2>(self, mma, &mut sums, half, half),
                (MmaType::F16, _) => multiply::<16, 2>(self, mma, &mut sums, half, half),
                (MmaType::Bf16, 8) => multiply::<8, 2>(self, mma, &mut sums, brain, brain),
                (MmaType::Bf16, _) => multiply::<16, 2>(self, mma, &mut sums, brain, brain),
                (MmaType::Tf32, 4) => multiply::<4, 1>(self, mma, &mut sums, single, single),
                (MmaType::Tf32, _) => multiply::<8, 1>(self, mma, &mut sums, single, single),
                (_, 16) => multiply::<16, 4>(self, mma, &mut sums, byte_a, byte_b),
                _ => multiply::<32, 4>(self, mma, &mut sums, byte_a, byte_b),
            }
        }
        let mut outputs = [[0u32; LANES]; 4];
        for lane in 0..LANES {
            for c in 0..4 {
                let (row, column) = accumulator_at(lane, c);
                let sum = sums[row][column];
                if is_int {
                    let old = self.narrow(mma.c[c])[lane] as i32;
                    let add = sum as i32;
                    outputs[c][lane] =
                        if mma.saturate { old.saturating_add(add) } else { old.wrapping_add(add) }
                            as u32;
                } else if mma.half_d {
                    outputs[c / 2][lane] |= (f32_to_f16(sum) as u32) << (16 * (c % 2));
                } else {
                    outputs[c][lane] = sum.to_bits();
                }
            }
        }
        outputs
    }

    /// Which results come from undefined elements: those in the row of one of A, the column of one of B, or
    /// on top of one of C. With them the instruction that the first such element comes from.
    fn undefined_results(&self, mma: &Mma, e: usize) -> Option<([[bool; COLUMNS]; ROWS], u32)> {
        let dirty = |regs: &[u32]| regs.iter().find(|r| self.undef[**r as usize] != 0).copied();
        let first = dirty(&mma.a).or_else(|| dirty(&mma.b)).or_else(|| dirty(&mma.c))?;
        let mut out = [[false; COLUMNS]; ROWS];
        let bits = 32 / e;
        let part =
            |word: u64, i: usize, bits: usize| word >> (bits * i) & ((1u64 << bits) - 1) != 0;
        for (r, reg) in mma.a.iter().enumerate() {
            for lane in lanes(self.undef[*reg as usize]) {
                for i in (0..e).filter(|i| part(self.shadow_get(*reg, false, lane), *i, bits)) {
                    out[a_at(lane, r, i, e).0] = [true; COLUMNS];
                }
            }
        }
        for (r, reg) in mma.b.iter().enumerate() {
            for lane in lanes(self.undef[*reg as usize]) {
                for i in (0..e).filter(|i| part(self.shadow_get(*reg, false, lane), *i, bits)) {
                    let column = b_at(lane, r, i, e).1;
                    out.iter_mut().for_each(|row| row[column] = true);
                }
            }
        }
        let halves = if mma.half_c { 2 } else { 1 };
        for (r, reg) in mma.c.iter().enumerate() {
            for lane in lanes(self.undef[*reg as usize]) {
                for i in (0..halves)
                    .filter(|i| part(self.shadow_get(*reg, false, lane), *i, 32 / halves))
                {
                    let (row, column) = accumulator_at(lane, r * halves + i);
                    out[row][column] = true;
                }
            }
        }
        Some((out, self.origins[first as usize]))
    }

    /// `ldmatrix` and `stmatrix`: lane 8 m + i names row i of matrix m.
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn matrix(
        &mut self,
        env: &Env,
        core: &mut BlockCore,
        stats: &mut Stats,
        m: &MatrixTransfer,
    ) -> Checked<()> {
        let rows = m.regs.len() * 8;
        let naming = if rows == LANES { ALL } else { (1 << rows) - 1 };
        let mut addresses = self.addresses(env, &m.at, naming)?;
        if m.at.space == MemorySpace::Generic {
            if let Some(lane) = lanes(naming).find(|l| addresses[*l] >> 56 != 1) {
                return found(
                    FaultKind::IllegalInstruction,
                    lane,
                    "a matrix row that is not in shared memory",
                );
            }
            addresses.iter_mut().for_each(|a| *a = a.wrapping_sub(SHARED_WINDOW));
        }
        let what = if m.store { "matrix store to" } else { "matrix load from" };
        self.check_bounds(&addresses, naming, 16, core.shared.len(), what, "shared")?;
        if env.shadows {
            let access = if m.store { Access::Write } else { Access::Read };
            let warp = self.index as u32;
            for lane in lanes(naming) {
                // A lane names the row, all of them access it.
                let at = addresses[lane] as usize;
                let conflict = core.shadow.touch(at, 16, access, warp, &self.clock, self.pc);
                if let Some(conflict) = conflict {
                    self.shared_conflict(env, core, conflict, at, 16, access, lane)?;
                }
                if env.race_warp {
                    self.touch_lane(env, core, at, 16, access, lane, true)?;
                }
            }
        }
        if env.counting {
            let used: Vec<u32> = addresses[..rows].iter().map(|a| *a as u32).collect();
            stats.shared(self.pc as usize, &used, 16);
        }
        // Byte of row and column of a lane's element i.
        let place = |lane: usize, i: usize| {
            let (row, column) = if m.transposed {
                (lane % 4 * 2 + i, lane / 4)
            } else {
                (lane / 4, lane % 4 * 2 + i)
            };
            (row, column * 2)
        };
        for (matrix, reg) in m.regs.iter().enumerate() {
            let starts = &addresses[matrix * 8..matrix * 8 + 8];
            if m.store {
                let words = *self.narrow(*reg);
                let masks = self.mask_of(*reg, false);
                for lane in 0..LANES {
                    for i in 0..2 {
                        let (row, byte) = place(lane, i);
                        let at = starts[row] as usize + byte;
                        let value = (words[lane] >> (16 * i)) as u16;
                        core.shared[at..at + 2].copy_from_slice(&value.to_le_bytes());
                        if env.undefined {
                            let bits = masks[lane] >> (16 * i);
                            core.shared_defined[at] = (bits & 0xff == 0) as u8;
                            core.shared_defined[at + 1] = (bits & 0xff00 == 0) as u8;
                        }
                    }
                }
                continue;
            }
            if !env.undefined
                || starts.iter().all(|at| all_defined(&core.shared_defined, *at as usize, 16))
            {
                let words = load_matrix(&core.shared, starts, m.transposed);
                self.put(*reg, &words, ALL);
                self.undef[*reg as usize] = 0;
                continue;
            }
            let mut out = Slot::ZERO;
            let mut dirty = [0u64; LANES];
            let mut any = 0;
            for lane in 0..LANES {
                // A row's neighbours lie side by side, a column's do not.
                let (row, byte) = place(lane, 0);
                let first = starts[row] as usize + byte;
                let (row, byte) = place(lane, 1);
                let second = starts[row] as usize + byte;
                let pair = |bytes: &[u8]| -> u32 {
                    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]) as u32;
                    half(first) | half(second) << 16
                };
                out.0[lane] = pair(&core.shared);
                if pair(&core.shared_defined) != 0x0101_0101 {
                    let bytes = [first, first + 1, second, second + 1];
                    let defined = bytes.into_iter().map(|b| core.shared_defined[b] != 0);
                    dirty[lane] = super::access::undefined_bits(defined);
                    any |= 1 << lane;
                }
            }
            self.put(*reg, &out.0, ALL);
            self.undef[*reg as usize] = 0;
            if any != 0 {
                self.origins[*reg as usize] = self.pc;
            }
            for lane in lanes(any) {
                self.shadow_set(*reg, false, lane, dirty[lane]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The maps against those of another project (tests/golden/fragments.py).
    #[test]
    fn fragments_agree_with_an_independent_source() {
        let mut checked = 0;
        for line in include_str!("../../tests/golden/fragments.txt").lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, ty, matrix, rest @ ..] = &words[..] else { panic!("{line}") };
            let numbers: Vec<usize> = rest.iter().map(|w| w.parse().unwrap()).collect();
            let [lane, value, row, column] = numbers[..] else { panic!("{line}") };
            let e = elements(match *ty {
                "f16" => MmaType::F16,
                "bf16" => MmaType::Bf16,
                "tf32" => MmaType::Tf32,
                _ => MmaType::S8,
            });
            let found = match *matrix {
                "A" => a_at(lane, value / e, value % e, e),
                "B" => {
                    let (k, n) = b_at(lane, value / e, value % e, e);
                    (n, k)
                }
                _ => accumulator_at(lane, value),
            };
            assert_eq!(found, (row, column), "{line}");
            checked += 1;
        }
        assert!(checked > 3000);
    }
}
