//! Gradient of attention in f32, head by head: the weights of some hundred queries are computed again from the logarithms
//! of their sums, and used while they are in the second cache (Dao et al. 2022, algorithm 4, with blocks of queries only).
//!
//! With P = e^(scale Q Kᵀ - lse), g the gradient of the result and r the sums of the rows of P ⊙ g Vᵀ:
//!
//! ```text
//! dV = Pᵀ g      dS = scale P ⊙ (g Vᵀ - r)      dQ = dS K      dK = dSᵀ Q
//! ```
//!
//! A head of an entry's keys, with all heads of queries that share it, is one piece of work, so that its bits depend
//! neither on the batch nor on the number of threads.

use super::gemm::{self, KC, LDA, MicroKernel, SCRATCH, row_len};
use super::math::Math;
use super::outer::transpose_block;
use super::parallel::{DisjointSlice, for_each};
use super::simd::{simd, sum};

/// Most channels of a head: those that a tile sums at once.
pub const MAX_CHANNELS: usize = KC;

/// What is computed.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads of an entry.
    pub heads: usize,
    /// Heads of its keys and values, a divisor: as many of the former share one of the latter.
    pub groups: usize,
    /// Queries of an entry.
    pub queries: usize,
    /// Keys of an entry.
    pub keys: usize,
    /// Channels of a head, at most [`MAX_CHANNELS`].
    pub channels: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether query i sees keys 0..=i only, and as many beyond them as there are keys beyond the number of queries.
    pub causal: bool,
}

/// A kernel of f32.
type Kernel = MicroKernel<f32, f32, f32>;

/// Fills the gradients by q [B, T, H, D], k and v [B, S, G, D], given `lse` [B, H, T] and that of the result `grad`;
/// entry b sees its first `lengths[b]` keys.
///
/// # Panics
/// When a slice has another length than the shape gives, or there are more channels than possible.
pub fn gradients(
    kernel: Kernel,
    shape: Heads,
    [q, k, v, grad, lse]: [&[f32]; 5],
    lengths: &[usize],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let Heads { heads, groups, queries, keys, channels, .. } = shape;
    let (rows, columns) = (lengths.len() * heads * queries, lengths.len() * groups * keys);
    assert!(channels <= MAX_CHANNELS && lse.len() == rows);
    assert!([q.len(), grad.len(), dq.len()] == [rows * channels; 3]);
    assert!([k.len(), v.len(), dk.len(), dv.len()] == [columns * channels; 4]);
    let [dq, dk, dv] = [dq, dk, dv].map(DisjointSlice::new);
    let sharing = heads / groups;
    for_each(lengths.len() * groups, &|piece| {
        let (entry, group) = (piece / groups, piece % groups);
        // SAFETY: the rows of these heads of this entry belong to this piece alone.
        let row = |of: &DisjointSlice<'_, f32>, i: usize| unsafe {
            let part: *mut [f32] = of.part(i * channels, channels);
            &mut *part
        };
        for head in group * sharing..(group + 1) * sharing {
            let of_q = |x| Rows { x, first: entry * queries * heads + head, step: heads, channels };
            let of_k = |x| Rows { x, first: entry * keys * groups + group, step: groups, channels };
            let inputs = [of_q(q), of_k(k), of_k(v), of_q(grad)];
            let lse = &lse[(entry * heads + head) * queries..][..queries];
            let store_q = |i: usize, from: &[f32]| {
                row(&dq, (entry * queries + i) * heads + head).copy_from_slice(from);
            };
            // Heads that share keys add up, in their order.
            let add = |of: &DisjointSlice<'_, f32>, i: usize, from: &[f32]| {
                let to = row(of, (entry * keys + i) * groups + group);
                match head % sharing {
                    0 => to.copy_from_slice(from),
                    _ => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
                }
            };
            let store_k = |i: usize, from: &[f32]| add(&dk, i, from);
            let store_v = |i: usize, from: &[f32]| add(&dv, i, from);
            one_head(kernel, shape, inputs, lse, lengths[entry], (&store_q, &store_k, &store_v));
        }
    });
}

/// The rows of one head: `channels` elements each, `step` rows apart.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    first: usize,
    step: usize,
    channels: usize,
}

impl Rows<'_> {
    fn row(&self, i: usize) -> &[f32] {
        &self.x[(self.first + i * self.step) * self.channels..][..self.channels]
    }

    /// Copies `count` rows from `from` on to rows of `stride`.
    fn copy(&self, from: usize, count: usize, stride: usize, to: &mut [f32]) {
        for (i, to) in to.chunks_mut(stride).take(count).enumerate() {
            to[..self.channels].copy_from_slice(self.row(from + i));
        }
    }

    /// Panels of the matrix B [count, channels] of rows from `from` on.
    fn panels(&self, from: usize, count: usize, nr: usize, to: &mut [f32]) {
        for (p, panel) in to.chunks_exact_mut(count * nr).enumerate() {
            let columns = p * nr..self.channels.min((p + 1) * nr);
            for (i, to) in panel.chunks_exact_mut(nr).enumerate() {
                to[..columns.len()].copy_from_slice(&self.row(from + i)[columns.clone()]);
                to[columns.len()..].fill(0.0);
            }
        }
    }

    /// Panels of the matrix B [channels, count] whose columns are the rows.
    fn panels_of_columns(&self, count: usize, nr: usize, to: &mut [f32]) {
        for (p, panel) in to.chunks_exact_mut(self.channels * nr).enumerate() {
            let columns = nr.min(count - p * nr);
            for j in 0..columns {
                for (c, x) in self.row(p * nr + j).iter().enumerate() {
                    panel[c * nr + j] = *x;
                }
            }
            for to in panel.chunks_exact_mut(nr) {
                to[columns..].fill(0.0);
            }
        }
    }
}

/// Where the rows of a gradient go.
type Store<'a> = &'a dyn Fn(usize, &[f32]);

fn one_head(
    kernel: Kernel,
    shape: Heads,
    [q, k, v, grad]: [Rows; 4],
    lse: &[f32],
    length: usize,
    (dq, dk, dv): (Store, Store, Store),
) {
    let Heads { queries, keys, channels, scale, causal, .. } = shape;
    let nr = kernel.nr;
    let zeros = vec![0.0; channels];
    (length..keys).for_each(|i| [dk, dv].iter().for_each(|store| store(i, &zeros)));
    if length == 0 {
        return (0..queries).for_each(|i| dq(i, &zeros));
    }
    let wide = [length.next_multiple_of(nr), channels.next_multiple_of(nr)];
    let [lds, ldd] = wide.map(row_len::<f32>);
    let block = KC.min(queries);
    SCRATCH.with_borrow_mut(|[memory, _, _]| {
        let sizes = [
            wide[0] * channels, // Kᵀ and Vᵀ, as B
            wide[0] * channels,
            wide[1] * length, // K, as B
            block * LDA,      // Q and g, as A
            block * LDA,
            wide[1] * block, // Q and g, as B
            wide[1] * block,
            block * lds, // P and dS
            block * lds,
            length.max(block) * LDA, // Pᵀ, dSᵀ and dS, as A
            block * ldd,             // dQ
            length * ldd,            // dK and dV
            length * ldd,
        ];
        // Each part begins with a cache line.
        let padded = sizes.map(|size| size.next_multiple_of(16));
        let mut rest = gemm::scratch::<f32>(memory, padded.iter().sum());
        let [kt, vt, kb, qa, ga, qb, gb, p, ds, a, of_q, of_k, of_v] = padded.map(|size| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(size);
            rest = behind;
            part
        });
        let product = |(height, kc): (usize, usize),
                       a: &[f32],
                       b: &[f32],
                       rows: [usize; 2],
                       c: &mut [f32],
                       ldc,
                       more| {
            // B has `rows[1]` rows, of which `kc` from `rows[0]` on are multiplied by.
            let panels = b.len() / (rows[1] * nr);
            let panel = |i: usize| match i < panels {
                true => &b[(i * rows[1] + rows[0]) * nr..][..kc * nr],
                false => &[],
            };
            gemm::multiply_block(kernel, (height, kc), a, panels, panel, c, ldc, more);
        };
        k.panels_of_columns(length, nr, &mut kt[..sizes[0]]);
        v.panels_of_columns(length, nr, &mut vt[..sizes[1]]);
        k.panels(0, length, nr, &mut kb[..sizes[2]]);
        for first in (0..queries).step_by(block) {
            let rows = block.min(queries - first);
            let part = wide[1] * rows;
            q.copy(first, rows, LDA, qa);
            grad.copy(first, rows, LDA, ga);
            q.panels(first, rows, nr, &mut qb[..part]);
            grad.panels(first, rows, nr, &mut gb[..part]);
            // 1. P and dS
            product((rows, channels), qa, &kt[..sizes[0]], [0, channels], p, lds, false);
            product((rows, channels), ga, &vt[..sizes[1]], [0, channels], ds, lds, false);
            for i in 0..rows {
                let beyond = length.saturating_sub(queries);
                let seen = if causal { length.min(beyond + first + i + 1) } else { length };
                let (p, ds) = (&mut p[i * lds..][..length], &mut ds[i * lds..][..length]);
                weights(p, ds, seen, scale, lse[first + i]);
            }
            // 2. dV and dK, on which queries after queries add up
            for (weights, b, to) in [(&*p, &*gb, &mut *of_v), (&*ds, &*qb, &mut *of_k)] {
                transpose_block(weights, rows, lds, length, a);
                product((length, rows), a, &b[..part], [0, rows], to, ldd, first > 0);
            }
            // 3. dQ
            for from in (0..length).step_by(KC) {
                let kc = KC.min(length - from);
                for (to, weights) in a.chunks_mut(LDA).zip(ds.chunks(lds)).take(rows) {
                    to[..kc].copy_from_slice(&weights[from..from + kc]);
                }
                product((rows, kc), a, &kb[..sizes[2]], [from, length], of_q, ldd, from > 0);
            }
            for (i, row) in of_q.chunks(ldd).take(rows).enumerate() {
                dq(first + i, &row[..channels]);
            }
        }
        for (of, store) in [(of_k, dk), (of_v, dv)] {
            for (i, row) in of.chunks(ldd).take(length).enumerate() {
                store(i, &row[..channels]);
            }
        }
    });
}

simd! {
    /// From a row of products Q Kᵀ to weights, and from one of g Vᵀ to the gradient by the products.
    fn weights(s, p: &mut [f32], ds: &mut [f32], seen: usize, scale: f32, lse: f32) {
        for p in p[..seen].iter_mut() {
            *p = (*p * scale - lse).vector_exp_normal(s);
        }
        p[seen..].fill(0.0);
        ds[seen..].fill(0.0);
        let mut products = [0.0f32; 512];
        let mut total = 0.0;
        for (p, ds) in p[..seen].chunks(products.len()).zip(ds[..seen].chunks(products.len())) {
            let products = &mut products[..p.len()];
            for i in 0..p.len() {
                products[i] = p[i] * ds[i];
            }
            total += sum(products, |x| x);
        }
        for i in 0..seen {
            ds[i] = scale * (p[i] * (ds[i] - total));
        }
    }
}
