//! Attention of few queries on the CPU: a step of a decoder, which reads every key and every value once.
//!
//! Keys are turned a block at a time, so that they lie along the lanes of a register, and all queries that share a head of
//! keys meet them while they are in the cache. In bf16 pairs of channels are turned as they lie, and widened in registers.
//! Every product, weight and sum is that of the tiled form (`cpu.rs`), in its order: a query has the same bits in either.

use half::bf16;

use super::cpu::{Head, Heads, KEYS};
use super::{Attention, LENGTHS, dense, keys_seen};
use crate::cpu::gemm::{SCRATCH, prefetch, scratch};
use crate::cpu::math::exp2_of_negative;
use crate::cpu::parallel::{DisjointSlice, try_for_each};
use crate::cpu::simd::{Simd, as_acc, narrow, simd, widen};
use crate::error::Result;
use crate::ops::Inputs;
use crate::tensor::{DType, Float, Tensor};

/// Queries of an entry that are few: a register of the tiled form has 8 or more.
pub(super) const FEW: usize = 8;

impl Attention {
    /// As [`Self::tiled`].
    pub(super) fn few<T: Float<Acc = f32>>(
        &self,
        inputs: &Inputs,
        outputs: &mut [Tensor],
    ) -> Result<()> {
        let tensors = [dense(&inputs[0])?, dense(&inputs[1])?, dense(&inputs[2])?];
        let [q, k, v] =
            [Heads::<T>::new(&tensors[0])?, Heads::new(&tensors[1])?, Heads::new(&tensors[2])?];
        let (batch, queries, heads, channels) = inputs[0].dims4()?;
        let groups = inputs[1].dim(2);
        let sharing = heads / groups;
        let lengths = keys_seen(inputs.get(LENGTHS), batch, k.len)?;
        let factor = self.factor();
        let (out, lse) = super::cpu::result_and_lse::<T, f32>(outputs)?;
        let out = DisjointSlice::new(out);
        try_for_each(batch * groups, &|piece| {
            let (b, group) = (piece / groups, piece % groups);
            let (k, v) = (k.head(b, group), v.head(b, group));
            SCRATCH.with_borrow_mut(|[.., memory]| {
                let (block, of_rows) = (KEYS * channels, 3 * channels * sharing * queries);
                let memory = scratch::<f32>(memory, 2 * block + of_rows);
                let (turned, memory) = memory.split_at_mut(block); // [D, KEYS], or [D / 2, KEYS] of pairs
                let (wide, memory) = memory.split_at_mut(block); // [KEYS, D]
                let mut rows = Vec::with_capacity(sharing * queries);
                for (i, memory) in memory.chunks_exact_mut(3 * channels).enumerate() {
                    let (head, t) = (group * sharing + i / queries, i % queries);
                    let (query, memory) = memory.split_at_mut(channels);
                    widen(q.head(b, head).row(t), query);
                    query.iter_mut().for_each(|x| *x *= factor);
                    let (output, block) = memory.split_at_mut(channels);
                    output.fill(0.0);
                    let seen = self.seen(t, queries, lengths[b]);
                    rows.push(Row { seen, query, max: f32::NEG_INFINITY, sum: 0.0, output, block });
                }
                let keys = rows.iter().map(|row| row.seen).max().unwrap_or(0);
                for start in (0..keys).step_by(KEYS) {
                    let count = KEYS.min(keys - start);
                    let in_pairs = turn(k, start, count, wide, turned);
                    let turned = Turned { keys: turned, in_pairs };
                    let rows = rows.iter_mut().filter(|row| row.seen > start);
                    let own = |row: &Row| count.min(row.seen - start);
                    if T::DTYPE == DType::F16 {
                        widen_rows(v, start, count, wide);
                        rows.for_each(|row| attend(row, turned, own(row), &*wide, channels));
                    } else {
                        let values = v.behind(start);
                        rows.for_each(|row| attend(row, turned, own(row), values, v.stride));
                    }
                }
                for (i, row) in rows.iter_mut().enumerate() {
                    let (head, t) = (group * sharing + i / queries, i % queries);
                    row.output.iter_mut().for_each(|x| *x /= row.sum);
                    let at = ((b * queries + t) * heads + head) * channels;
                    // SAFETY: the row of (b, t, head), which is of this piece alone.
                    narrow(row.output, unsafe { out.part(at, channels) });
                    if let Some(lse) = &lse {
                        // SAFETY: the element of (b, head, t), likewise.
                        let lse = unsafe { lse.part((b * heads + head) * queries + t, 1) };
                        lse[0] = (row.max + row.sum.log2()) * std::f32::consts::LN_2;
                    }
                }
            });
            Ok(())
        })
    }
}

/// One query of one head.
struct Row<'a> {
    /// Keys that it sees.
    seen: usize,
    /// `[D]`, scaled.
    query: &'a mut [f32],
    /// The largest score so far, in base 2.
    max: f32,
    /// The sum of the weights so far.
    sum: f32,
    /// `[D]`: the sum of weighted values so far.
    output: &'a mut [f32],
    /// `[D]`: those of a block.
    block: &'a mut [f32],
}

/// A block of keys along the lanes of registers, zeros behind them.
#[derive(Clone, Copy)]
struct Turned<'a> {
    /// [D, KEYS]; [D / 2, KEYS] where each element is two of bf16.
    keys: &'a [f32],
    in_pairs: bool,
}

simd! {
    /// Turns `count` keys from row `start` on, [KEYS, D], so that they lie along registers, as [`Turned`] has them. Returns
    /// whether they are pairs.
    fn turn[T: Float<Acc = f32>](s, k: Head<'_, T>, start: usize, count: usize, wide: &mut [f32], to: &mut [f32]) -> bool {
        let channels = k.channels;
        assert!(to.len() == KEYS * channels && wide.len() >= 8 * channels);
        let in_pairs = as_pairs(k.row(start)).is_some() && k.stride.is_multiple_of(2);
        let columns = if in_pairs { channels / 2 } else { channels };
        for first in (0..KEYS).step_by(8) {
            let rows = count.saturating_sub(first).min(8);
            // Groups of rows that are far between: memory's own foresight does not see them come.
            let ahead = start + first + 16;
            (ahead..k.len.min(ahead + 8)).for_each(|i| prefetch(k.row(i)));
            let behind = k.behind(start + first.min(count - 1));
            let (whole, stride) = match as_pairs(behind) {
                Some(pairs) if in_pairs => (Some(pairs), k.stride / 2),
                _ => (as_acc(behind), k.stride),
            };
            let (from, stride) = match whole {
                Some(from) if rows == 8 => (from, stride),
                _ => {
                    for (i, to) in wide.chunks_exact_mut(columns).take(rows).enumerate() {
                        let row = k.row(start + first + i);
                        match as_pairs(row) {
                            Some(pairs) if in_pairs => to.copy_from_slice(pairs),
                            _ => widen(row, to),
                        }
                    }
                    wide[rows * columns..8 * columns].fill(0.0);
                    (&*wide, columns)
                }
            };
            assert!(from.len() >= 7 * stride + columns);
            let whole = columns - columns % 8;
            for c in (0..whole).step_by(8) {
                // SAFETY: as asserted, 8 rows of `from` hold `columns` elements each, and `columns` rows of `to` KEYS.
                unsafe {
                    let to = to.as_mut_ptr().add(c * KEYS + first);
                    s.transpose_8x8(from.as_ptr().add(c), stride, to, KEYS);
                }
            }
            for c in whole..columns {
                for i in 0..8 {
                    to[c * KEYS + first + i] = from[i * stride + c];
                }
            }
        }
        in_pairs
    }
}

/// `x` by two elements of bf16, where it is some.
#[inline(always)]
fn as_pairs<T: Float>(x: &[T]) -> Option<&[f32]> {
    let is_whole = T::DTYPE == DType::BF16 && x.len().is_multiple_of(2);
    // It fails where the first element does not begin a pair.
    if is_whole { bytemuck::try_cast_slice(x).ok() } else { None }
}

simd! {
    /// `count` rows from `start` on as f32: [count, D].
    fn widen_rows[T: Float<Acc = f32>](_s, v: Head<'_, T>, start: usize, count: usize, to: &mut [f32]) {
        for (i, to) in to.chunks_exact_mut(v.channels).take(count).enumerate() {
            widen(v.row(start + i), to);
        }
    }
}

simd! {
    /// Adds the first `count` keys of a block and their values, rows [D] of f32 or bf16 `stride` apart, to what a query has seen.
    fn attend[V: Float<Acc = f32>](s, row: &mut Row<'_>, turned: Turned<'_>, count: usize, values: &[V], stride: usize) {
        let Turned { keys, in_pairs } = turned;
        let channels = row.query.len();
        let mut weights = [0.0f32; KEYS];
        let lanes = S::LANES;
        assert!(count <= KEYS && KEYS.is_multiple_of(6 * lanes) && keys.len() == KEYS * channels && row.output.len() == channels);
        assert!((keys.as_ptr() as usize).is_multiple_of(64));
        // SAFETY: `weights` and a row of keys are KEYS, whole registers, and keys begin with a cache line.
        unsafe {
            // 1. scores
            for first in (0..count).step_by(6 * lanes) {
                let (keys, to) = (keys.as_ptr().add(first), weights.as_mut_ptr().add(first));
                match in_pairs {
                    true => scores_of_pairs::<S, 6>(s, row.query, keys.cast(), to),
                    false => scores::<S, 6>(s, row.query, keys, to),
                }
            }
            weights[count..].fill(f32::NEG_INFINITY);
            // 2. weights
            let mut largest = s.splat(f32::NEG_INFINITY);
            for i in (0..KEYS).step_by(lanes) {
                largest = s.max(largest, s.load(weights.as_ptr().add(i)));
            }
            let mut each = [0.0f32; KEYS];
            s.store(each.as_mut_ptr(), largest);
            let old = row.max;
            row.max = each[..lanes].iter().fold(old, |a, &b| if a > b { a } else { b });
            let max = s.splat(row.max);
            for i in (0..KEYS).step_by(lanes) {
                let at = weights.as_mut_ptr().add(i);
                s.store(at, exp2_of_negative(s, s.sub(s.load(at), max)));
            }
            s.store(each.as_mut_ptr(), exp2_of_negative(s, s.sub(s.splat(old), max)));
            let correction = each[0];
            let sum = weights[..count].iter().fold(0.0, |sum, weight| sum + weight);
            row.sum = s.fma(row.sum, correction, sum);
            // 3. values
            let sums = &mut row.block[..channels];
            sums.fill(0.0);
            let row_of = |j: usize| &values[j * stride..][..channels];
            for (j, weights) in weights[..count].chunks(4).enumerate() {
                let j = 4 * j;
                if let [w0, w1, w2, w3] = *weights {
                    let (v0, v1, v2, v3) = (row_of(j), row_of(j + 1), row_of(j + 2), row_of(j + 3));
                    for i in 0..channels {
                        let [v0, v1, v2, v3] = [v0[i], v1[i], v2[i], v3[i]].map(wide);
                        sums[i] = s.fma(v3, w3, s.fma(v2, w2, s.fma(v1, w1, s.fma(v0, w0, sums[i]))));
                    }
                    continue;
                }
                for (j, weight) in weights.iter().enumerate().map(|(i, weight)| (j + i, weight)) {
                    sums.iter_mut().zip(row_of(j)).for_each(|(sum, v)| *sum = s.fma(wide(*v), *weight, *sum));
                }
            }
            for (out, sum) in row.output.iter_mut().zip(&*sums) {
                *out = s.fma(*out, correction, *sum);
            }
        }
    }
}

/// A value that is f32 or bf16.
#[inline(always)]
fn wide<V: Float>(value: V) -> f32 {
    match V::DTYPE {
        DType::BF16 => f32::from_bits(u32::from(bytemuck::cast::<V, u16>(value)) << 16),
        _ => bytemuck::cast(value),
    }
}

/// Products of a query [D] with N registers of keys, columns of [D, KEYS].
///
/// # Safety
/// From `keys` on, N registers of each of its rows must be readable, and as many of `to` writable; both end at KEYS columns
/// at the latest.
#[inline(always)]
unsafe fn scores<S: Simd, const N: usize>(s: S, query: &[f32], keys: *const f32, to: *mut f32) {
    let mut sums = [s.splat(0.0); N];
    for (c, q) in query.iter().enumerate() {
        let q = s.splat(*q);
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *sum = s.mul_add(unsafe { s.load(keys.add(c * KEYS + i * S::LANES)) }, q, *sum);
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { s.store(to.add(i * S::LANES), sum) };
    }
}

/// As [`scores`], of keys whose channels lie in pairs, columns of [D / 2, KEYS, 2].
///
/// # Safety
/// As of [`scores`], and `keys` must be aligned to a register.
#[inline(always)]
unsafe fn scores_of_pairs<S: Simd, const N: usize>(
    s: S,
    query: &[f32],
    keys: *const bf16,
    to: *mut f32,
) {
    let mut sums = [s.splat(0.0); N];
    for (c, q) in query.chunks_exact(2).enumerate() {
        let (even, odd) = (s.splat(q[0]), s.splat(q[1]));
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let keys = keys.add(2 * (c * KEYS + i * S::LANES));
                *sum = s.mul_add(s.load_bf16_even(keys), even, *sum);
                *sum = s.mul_add(s.load_bf16_odd(keys), odd, *sum);
            }
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { s.store(to.add(i * S::LANES), sum) };
    }
}
