//! The product that sums over the rows of both matrices, `C[n, k] = sum over m of G[m, n] * A[m, k]`: the gradient of
//! a linear layer or a convolution by its weight, with G the gradient of the result and the rows of A what each of
//! its rows was computed from (of a convolution the patch under the kernel, which is never written out as a whole).
//!
//! m is long, n and k are short. A piece of work is a group of rows and of columns of C over a slice of m, which goes
//! through the caches a block of [`KC`] at a time, in ascending order; slices are added up in ascending order too. How
//! many there are follows from the shape alone, so that the sums do not depend on the number of threads.

use super::gemm::{self, KC, LDA, MicroKernel, SCRATCH};
use super::parallel::{DisjointSlice, for_each, for_each_chunk};
use super::simd::{simd, widen};
use crate::types::{DType, Float, Real};

/// Pieces of work that there are at least, where m is long enough.
const PIECES: usize = 32;

/// The images [batch, height, width, channels] that a kernel went over, to [batch, out_height, out_width, ..].
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    /// Of the input.
    pub height: usize,
    /// Of the input.
    pub width: usize,
    /// Of the input.
    pub channels: usize,
    /// Of the output.
    pub out_height: usize,
    /// Of the output.
    pub out_width: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Distance between patches.
    pub stride: usize,
    /// Rows of zeros above the input.
    pub top: usize,
    /// Columns of zeros left of the input.
    pub left: usize,
}

/// Panels of columns of a group: what a block of G, transposed, is used for.
const PANELS: usize = 4;
/// Rows of a group: with [`KC`] of m, two thirds of a MiB of G.
const ROWS: usize = 512;

/// How the work is cut.
struct Plan {
    blocks: usize,
    /// Of rows and of columns.
    groups: [usize; 2],
    slices: usize,
}

impl Plan {
    fn new((m, n, k): (usize, usize, usize), nr: usize) -> Self {
        let (blocks, groups) = (m.div_ceil(KC), [n.div_ceil(ROWS), k.div_ceil(PANELS * nr)]);
        let slices = PIECES.div_ceil((groups[0] * groups[1]).max(1)).clamp(1, blocks.max(1));
        Self { blocks, groups, slices }
    }
}

/// Elements of the working memory of [`products`]: the sums of its slices.
pub fn working_memory<C>(kernel: MicroKernel<C, C, C>, (m, n, k): (usize, usize, usize)) -> usize {
    Plan::new((m, n, k), kernel.nr).slices * n * k
}

/// Fills `out` [n, channels, taps], the layout of a weight, from `grad` [m, n] and images `x`.
///
/// # Panics
/// When a slice has another length than the shape gives.
pub fn products<T: Float<Acc = C>, C: Real>(
    kernel: MicroKernel<C, C, C>,
    n: usize,
    grad: &[T],
    x: &[T],
    patches: Patches,
    sums: &mut [C],
    out: &mut [C],
) {
    let (nr, taps) = (kernel.nr, patches.kernel[0] * patches.kernel[1]);
    let (m, k) = (grad.len() / n, patches.channels * taps);
    let plan = Plan::new((m, n, k), nr);
    assert!(grad.len() == m * n && out.len() == n * k);
    assert_eq!(sums.len(), working_memory(kernel, (m, n, k)));
    if m == 0 {
        return out.fill(C::ZERO);
    }
    // 1. a group over a slice
    let parts = DisjointSlice::new(sums);
    let [row_groups, column_groups] = plan.groups;
    for_each(plan.slices * row_groups * column_groups, &|piece| {
        let (slice, group) = (piece / column_groups / row_groups, piece % column_groups);
        let row_group = piece / column_groups % row_groups;
        let blocks = slice * plan.blocks / plan.slices..(slice + 1) * plan.blocks / plan.slices;
        let rows = row_group * ROWS..n.min((row_group + 1) * ROWS);
        let columns = group * PANELS * nr..k.min((group + 1) * PANELS * nr);
        let spans: Vec<_> = columns
            .clone()
            .step_by(nr)
            .map(|first| patches.spans(first, nr.min(columns.end - first)))
            .collect();
        let ldc = gemm::row_len::<C>(spans.len() * nr);
        SCRATCH.with_borrow_mut(|[a, b, c]| {
            let a: &mut [C] = gemm::scratch(a, rows.len() * LDA);
            let b: &mut [C] = gemm::scratch(b, spans.len() * KC * nr); // [panel, KC, nr]
            let c: &mut [C] = gemm::scratch(c, rows.len() * ldc);
            b.fill(C::ZERO);
            for block in blocks.clone() {
                let kc = KC.min(m - block * KC);
                let grad = &grad[block * KC * n + rows.start..(block * KC + kc - 1) * n + rows.end];
                transpose_block(grad, kc, n, rows.len(), a);
                for (spans, b) in spans.iter().zip(b.chunks_exact_mut(KC * nr)) {
                    gather(x, &patches, spans, block * KC, nr, &mut b[..kc * nr]);
                }
                let panel = |i: usize| {
                    let panel = b.chunks_exact(KC * nr).nth(i);
                    panel.map_or(&[][..], |panel| &panel[..kc * nr])
                };
                let size = (rows.len(), kc);
                gemm::multiply_block(
                    kernel,
                    size,
                    a,
                    spans.len(),
                    panel,
                    c,
                    ldc,
                    block > blocks.start,
                );
            }
            for (row, from) in rows.clone().zip(c.chunks(ldc)) {
                // SAFETY: these columns of these rows of a slice belong to this piece alone.
                let to =
                    unsafe { parts.part((slice * n + row) * k + columns.start, columns.len()) };
                to.copy_from_slice(&from[..to.len()]);
            }
        });
    });
    // 2. the slices' sum, from (tap, channel) to (channel, tap)
    let sums = &*sums; // [slice, n, k]
    for_each_chunk(out, k, |row, out| {
        let slices = sums.chunks_exact(n * k).map(|slice| &slice[row * k..][..k]);
        add_slices(slices, patches.channels, out);
    });
}

/// The sum of `slices` [taps, channels] to `out` [channels, taps].
fn add_slices<'a, C: Real>(
    mut slices: impl Iterator<Item = &'a [C]>,
    channels: usize,
    out: &mut [C],
) {
    let taps = out.len() / channels;
    let mut add = |put: fn(&mut C, C)| {
        let Some(slice) = slices.next() else { return false };
        for (tap, slice) in slice.chunks_exact(channels).enumerate() {
            out[tap..].iter_mut().step_by(taps).zip(slice).for_each(|(to, &from)| put(to, from));
        }
        true
    };
    add(|to, from| *to = from);
    while add(|to, from| *to += from) {}
}

/// Neighbouring columns of A that are neighbours in the image: one tap's.
struct Span {
    tap: [usize; 2],
    channel: usize,
    len: usize,
    /// Its place in the panel.
    at: usize,
}

impl Patches {
    /// The parts of `len` columns from `column` on, which run over (tap, channel).
    fn spans(&self, column: usize, len: usize) -> Vec<Span> {
        let (mut spans, mut at) = (Vec::new(), 0);
        while at < len {
            let (tap, channel) = ((column + at) / self.channels, (column + at) % self.channels);
            let len = (self.channels - channel).min(len - at);
            let tap = [tap / self.kernel[1], tap % self.kernel[1]];
            spans.push(Span { tap, channel, len, at });
            at += len;
        }
        spans
    }
}

simd! {
    /// Writes columns of the rows of A from `first` on into rows of `nr` elements of `to`.
    fn gather[T: Float](s, x: &[T], patches: &Patches, spans: &[Span], first: usize, nr: usize, to: &mut [T::Acc]) {
        let _ = s;
        let Patches { height, width, channels, out_height, out_width, stride, top, left, .. } = *patches;
        for &Span { tap, channel, len, at } in spans {
            let (rest, mut ox) = (first / out_width, first % out_width);
            let (mut image, mut oy) = (rest / out_height, rest % out_height);
            for row in to.chunks_exact_mut(nr) {
                // Above or left of the image these wrap around to huge values, which are outside as well.
                let y = (oy * stride + tap[0]).wrapping_sub(top);
                let x_at = (ox * stride + tap[1]).wrapping_sub(left);
                let row = &mut row[at..at + len];
                if y < height && x_at < width {
                    let from = &x[((image * height + y) * width + x_at) * channels + channel..][..len];
                    // Whole registers where the length is known.
                    match len {
                        32 => widen(&from[..32], &mut row[..32]),
                        16 => widen(&from[..16], &mut row[..16]),
                        _ => widen(from, row),
                    }
                } else {
                    row.fill(T::Acc::ZERO);
                }
                ox += 1;
                if ox == out_width {
                    (ox, oy) = (0, oy + 1);
                    if oy == out_height {
                        (oy, image) = (0, image + 1);
                    }
                }
            }
        }
    }
}

simd! {
    /// `to` [n, LDA] from the first n elements of `rows` rows of `from`, `stride` apart.
    pub(super) fn transpose_block[T: Float](s, from: &[T], rows: usize, stride: usize, n: usize, to: &mut [T::Acc]) {
        assert!(rows <= LDA && n <= stride && (rows * n == 0 || from.len() >= (rows - 1) * stride + n));
        let whole = if T::DTYPE == DType::F32 { (rows / 8 * 8, n / 8 * 8) } else { (0, 0) };
        for i in (0..whole.0).step_by(8) {
            let from: &[f32] = bytemuck::cast_slice(&from[i * stride..][..7 * stride + whole.1]);
            let to: &mut [f32] = bytemuck::cast_slice_mut(to);
            for j in (0..whole.1).step_by(8) {
                let (from, to) = (from[j..][..7 * stride + 8].as_ptr(), to[j * LDA + i..][..7 * LDA + 8].as_mut_ptr());
                // SAFETY: the slices have just been cut to the 8 rows of 8 on either side.
                unsafe { s.transpose_8x8(from, stride, to, LDA) };
            }
        }
        for i in 0..rows {
            let start = if i < whole.0 { whole.1 } else { 0 };
            for j in start..n {
                to[j * LDA + i] = from[i * stride + j].to_acc();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gemm::{f32_kernel, f64_kernel};
    use super::super::simd::{at_each_level, pool};
    use super::*;

    fn value(i: usize) -> f64 {
        (i * 7919 % 2003) as f64 / 1000.0 - 1.0
    }

    /// The products of `grad` and `x`, and for an element its exact sum and the sum of its terms' magnitudes.
    fn check<T: Float<Acc = C>, C: Real>(
        kernel: MicroKernel<C, C, C>,
        batch: usize,
        n: usize,
        patches: Patches,
    ) -> Vec<f64> {
        let Patches {
            height,
            width,
            channels,
            out_height,
            out_width,
            kernel: [kh, kw],
            stride,
            top,
            left,
        } = patches;
        let of = |len: usize, seed| {
            (0..len).map(|i| T::from_acc(C::from_f64(value(i + seed)))).collect::<Vec<T>>()
        };
        let grad = of(batch * out_height * out_width * n, 1);
        let x = of(batch * height * width * channels, 2);
        let k = channels * kh * kw;
        let mut sums = vec![C::ONE; working_memory(kernel, (grad.len() / n, n, k))];
        let mut out = vec![C::ONE; n * k];
        products(kernel, n, &grad, &x, patches, &mut sums, &mut out);
        let unit =
            if C::DTYPE == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) } / 2.0;
        for (at, out) in out.iter().enumerate() {
            let (o, i, ky, kx) = (at / k, at / (kh * kw) % channels, at / kw % kh, at % kw);
            let (mut exact, mut magnitude, mut terms) = (0.0, 0.0, 0);
            for row in 0..batch * out_height * out_width {
                let (image, oy, ox) =
                    (row / out_width / out_height, row / out_width % out_height, row % out_width);
                let (y, xx) =
                    ((oy * stride + ky).wrapping_sub(top), (ox * stride + kx).wrapping_sub(left));
                if y < height && xx < width {
                    let product = grad[row * n + o].to_acc().to_f64()
                        * x[((image * height + y) * width + xx) * channels + i].to_acc().to_f64();
                    exact += product;
                    magnitude += product.abs();
                    terms += 1;
                }
            }
            let error = (out.to_f64() - exact).abs();
            // Higham, Accuracy and Stability, 3.1.
            assert!(
                error <= (terms + 4) as f64 * unit * magnitude,
                "{patches:?}, {n}: {at}: {error:e}"
            );
        }
        out.iter().map(|x| x.to_f64()).collect()
    }

    fn patches(
        [height, width, channels]: [usize; 3],
        kernel: [usize; 2],
        stride: usize,
        [top, left]: [usize; 2],
    ) -> Patches {
        let out =
            |size: usize, kernel: usize, before: usize| (size + before + 1 - kernel) / stride + 1;
        let (out_height, out_width) = (out(height, kernel[0], top), out(width, kernel[1], left));
        Patches { height, width, channels, out_height, out_width, kernel, stride, top, left }
    }

    #[test]
    fn every_element_is_its_sum() {
        let cases = [
            (1, 1, patches([1, 1, 1], [1, 1], 1, [0, 0])),
            (7, 3, patches([5, 3, 33], [3, 3], 1, [1, 1])),
            (2, 40, patches([8, 7, 16], [3, 3], 2, [0, 1])),
            (3, 13, patches([21, 18, 4], [3, 3], 1, [1, 1])),
            (2, 5, patches([9, 8, 3], [5, 2], 3, [2, 0])),
            (1, 33, patches([1, 700, 65], [1, 1], 1, [0, 0])),
        ];
        for (batch, n, patches) in cases {
            at_each_level(|level| {
                let all = check::<f32, _>(f32_kernel(level), batch, n, patches);
                check::<half::bf16, _>(f32_kernel(level), batch, n, patches);
                check::<half::f16, _>(f32_kernel(level), batch, n, patches);
                check::<f64, _>(f64_kernel(level), batch, n, patches);
                let one = pool(1).install(|| check::<f32, _>(f32_kernel(level), batch, n, patches));
                assert_eq!(all, one, "the number of threads changed a bit");
            });
        }
    }
}
