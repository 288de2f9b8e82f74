//! Attention of few queries on the CPU: a step of a decoder, which reads every key and every value once.
//!
//! Keys are turned a block at a time, so that they lie along the lanes of a register, and all queries that share a head of
//! keys meet them while they are in the cache. Every product, weight and sum is that of the tiled form (`cpu.rs`), in its
//! order: a query has the same bits in either.

use super::cpu::{Head, Heads, KEYS};
use super::{Attention, LENGTHS, dense, keys_seen};
use crate::cpu::gemm::prefetch;
use crate::cpu::math::exp2_of_negative;
use crate::cpu::parallel::{DisjointSlice, try_for_each};
use crate::cpu::simd::{Simd, as_acc, narrow, simd, widen};
use crate::error::Result;
use crate::ops::Inputs;
use crate::tensor::{Float, Tensor};

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
            let mut rows = Vec::with_capacity(sharing * queries);
            for head in group * sharing..(group + 1) * sharing {
                for t in 0..queries {
                    let mut query = vec![0.0; channels];
                    widen(q.head(b, head).row(t), &mut query);
                    query.iter_mut().for_each(|x| *x *= factor);
                    let seen = self.seen(t, queries, lengths[b]);
                    rows.push(Row { seen, query, ..Row::default() });
                }
            }
            let keys = rows.iter().map(|row| row.seen).max().unwrap_or(0);
            let mut turned = vec![0.0; KEYS * channels]; // [D, KEYS]
            let mut wide = vec![0.0; KEYS * channels];
            for row in &mut rows {
                row.max = f32::NEG_INFINITY;
                row.output = vec![0.0; channels];
                row.block = vec![0.0; channels];
            }
            for start in (0..keys).step_by(KEYS) {
                let count = KEYS.min(keys - start);
                turn(k, start, count, &mut wide, &mut turned);
                let (values, stride) = match as_acc(v.behind(start)) {
                    Some(values) => (values, v.stride),
                    None => {
                        widen_rows(v, start, count, &mut wide);
                        (&*wide, channels)
                    }
                };
                for row in rows.iter_mut().filter(|row| row.seen > start) {
                    attend(row, &turned, count.min(row.seen - start), values, stride);
                }
            }
            for (i, row) in rows.iter_mut().enumerate() {
                let (head, t) = (group * sharing + i / queries, i % queries);
                row.output.iter_mut().for_each(|x| *x /= row.sum);
                let at = ((b * queries + t) * heads + head) * channels;
                // SAFETY: the row of (b, t, head), which is of this piece alone.
                narrow(&row.output, unsafe { out.part(at, channels) });
                if let Some(lse) = &lse {
                    // SAFETY: the element of (b, head, t), likewise.
                    let lse = unsafe { lse.part((b * heads + head) * queries + t, 1) };
                    lse[0] = (row.max + row.sum.log2()) * std::f32::consts::LN_2;
                }
            }
            Ok(())
        })
    }
}

/// One query of one head.
#[derive(Default)]
struct Row {
    /// Keys that it sees.
    seen: usize,
    /// `[D]`, scaled.
    query: Vec<f32>,
    /// The largest score so far, in base 2.
    max: f32,
    /// The sum of the weights so far.
    sum: f32,
    /// `[D]`: the sum of weighted values so far.
    output: Vec<f32>,
    /// `[D]`: those of a block.
    block: Vec<f32>,
}

simd! {
    /// Turns `count` keys from row `start` on, [KEYS, D], so that they lie along registers: [D, KEYS], zeros behind them.
    fn turn[T: Float<Acc = f32>](s, k: Head<'_, T>, start: usize, count: usize, wide: &mut [f32], to: &mut [f32]) {
        let channels = k.channels;
        assert!(to.len() == KEYS * channels && wide.len() >= 8 * channels);
        for first in (0..KEYS).step_by(8) {
            let rows = count.saturating_sub(first).min(8);
            // Groups of rows that are far between: memory's own foresight does not see them come.
            let ahead = start + first + 16;
            (ahead..k.len.min(ahead + 8)).for_each(|i| prefetch(k.row(i)));
            let (from, stride) = match as_acc(k.behind(start + first.min(count - 1))) {
                Some(from) if rows == 8 => (from, k.stride),
                _ => {
                    for (i, to) in wide.chunks_exact_mut(channels).take(rows).enumerate() {
                        widen(k.row(start + first + i), to);
                    }
                    wide[rows * channels..8 * channels].fill(0.0);
                    (&*wide, channels)
                }
            };
            assert!(from.len() >= 7 * stride + channels);
            let whole = channels - channels % 8;
            for c in (0..whole).step_by(8) {
                // SAFETY: as asserted, 8 rows of `from` hold `channels` elements each, and `channels` rows of `to` KEYS.
                unsafe {
                    let to = to.as_mut_ptr().add(c * KEYS + first);
                    s.transpose_8x8(from.as_ptr().add(c), stride, to, KEYS);
                }
            }
            for c in whole..channels {
                for i in 0..8 {
                    to[c * KEYS + first + i] = from[i * stride + c];
                }
            }
        }
    }
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
    /// Adds the first `count` keys [D, KEYS] of a block and their values, rows [D] `stride` apart, to what a query has seen.
    fn attend(s, row: &mut Row, keys: &[f32], count: usize, values: &[f32], stride: usize) {
        let channels = row.query.len();
        let mut weights = [0.0f32; KEYS];
        let lanes = S::LANES;
        assert!(count <= KEYS && KEYS.is_multiple_of(lanes) && keys.len() == KEYS * channels && row.output.len() == channels);
        // SAFETY: `weights` and a row of keys are KEYS, whole registers.
        unsafe {
            // 1. scores
            for first in (0..count).step_by(3 * lanes) {
                scores::<S, 3>(s, &row.query, keys.as_ptr().add(first), weights.as_mut_ptr().add(first));
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
            let value = |j: usize| &values[j * stride..][..channels];
            for (j, weights) in weights[..count].chunks(4).enumerate() {
                let j = 4 * j;
                if let [w0, w1, w2, w3] = *weights {
                    let (v0, v1, v2, v3) = (value(j), value(j + 1), value(j + 2), value(j + 3));
                    for i in 0..channels {
                        sums[i] = s.fma(v3[i], w3, s.fma(v2[i], w2, s.fma(v1[i], w1, s.fma(v0[i], w0, sums[i]))));
                    }
                    continue;
                }
                for (j, weight) in weights.iter().enumerate().map(|(i, weight)| (j + i, weight)) {
                    sums.iter_mut().zip(value(j)).for_each(|(sum, v)| *sum = s.fma(*v, *weight, *sum));
                }
            }
            for (out, sum) in row.output.iter_mut().zip(&*sums) {
                *out = s.fma(*out, correction, *sum);
            }
        }
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
