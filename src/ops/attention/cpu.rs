//! Attention on the CPU.
//!
//! It computes everything transposed: queries lie along the lanes of a register, keys and
//! head channels along its rows. Maxima and sums over keys then need no exchange between lanes, neither
//! the head dimension nor the number of keys is padded to a register's length, and both products are
//! one kernel: `scores = K Q^T` and `output = V^T P^T`, a broadcast element of K or V against registers of
//! queries. Keys and values are packed once a head, so that the kernel reads each as one stream.

use super::{Attention, LENGTHS, dense, keys_seen};
use crate::cpu::math::exp2_of_negative;
use crate::cpu::parallel::{DisjointSlice, for_each, for_each_chunk, try_for_each};
use crate::cpu::simd::{Simd, narrow, simd, transpose, widen};
use crate::error::Result;
use crate::ops::Inputs;
use crate::tensor::{DType, Device, Element, Float, Tensor};

/// Keys that are scored before their values are added, whole panels of them; fewer would rescale the output
/// more often.
pub(super) const KEYS: usize = 96;
/// Groups of queries (two registers each) that share a block of keys while it is in the cache.
const GROUPS: usize = 4;

impl Attention {
    /// Of the scores. Base 2, since that is the exponential the machine is good at.
    pub(super) fn factor(&self) -> f32 {
        (f64::from(self.config.scale) * std::f64::consts::LOG2_E) as f32
    }

    /// How many of an entry's `length` keys query `t` of `queries` sees.
    pub(super) fn seen(&self, t: usize, queries: usize, length: usize) -> usize {
        let beyond = length.saturating_sub(queries);
        if self.config.causal { length.min(beyond + t + 1) } else { length }
    }

    /// The definition, row by row, in f64.
    pub(super) fn plain(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [q, k, v] = [inputs[0].contiguous()?, inputs[1].contiguous()?, inputs[2].contiguous()?];
        let (batch, queries, heads, channels) = q.dims4()?;
        let (keys, groups) = (k.dim(1), k.dim(2));
        let lengths = keys_seen(inputs.get(LENGTHS), batch, keys)?;
        let [q, k, v] = [q.as_slice::<f64>()?, k.as_slice::<f64>()?, v.as_slice::<f64>()?];
        let (out, lse) = result_and_lse::<f64, f64>(outputs)?;
        for_each_chunk(out, channels, |i, out| {
            let q = &q[i * channels..][..channels];
            let (b, t, h) = (i / heads / queries, i / heads % queries, i % heads);
            let group = h / (heads / groups);
            let row = |s: usize| ((b * keys + s) * groups + group) * channels..;
            let dot = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
            let seen = self.seen(t, queries, lengths[b]);
            let mut weights: Vec<f64> =
                (0..seen).map(|s| f64::from(self.config.scale) * dot(&k[row(s)])).collect();
            let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            weights.iter_mut().for_each(|w| *w = (*w - max).exp());
            let total: f64 = weights.iter().sum();
            out.fill(if seen == 0 { f64::NAN } else { 0.0 });
            if let Some(lse) = &lse {
                // SAFETY: the element of (b, h, t), which is that of this row alone.
                unsafe { lse.part((b * heads + h) * queries + t, 1)[0] = max + total.ln() };
            }
            for (s, w) in weights.iter().enumerate() {
                out.iter_mut().zip(&v[row(s)]).for_each(|(o, v)| *o += w / total * v);
            }
        });
        Ok(())
    }

    pub(super) fn tiled<T: Float<Acc = f32>>(
        &self,
        inputs: &Inputs,
        outputs: &mut [Tensor],
    ) -> Result<()> {
        let tensors = [dense(&inputs[0])?, dense(&inputs[1])?, dense(&inputs[2])?];
        let [q, k, v] =
            [Heads::<T>::new(&tensors[0])?, Heads::new(&tensors[1])?, Heads::new(&tensors[2])?];
        let (batch, queries, heads, channels) = inputs[0].dims4()?;
        let lengths = keys_seen(inputs.get(LENGTHS), batch, k.len)?;
        let blocking = Blocking::new(channels);
        let length = GROUPS * blocking.queries;
        let factor = self.factor();
        let groups = inputs[1].dim(2);
        let (sharing, tiles) = (heads / groups, queries.div_ceil(length));
        let (out, lse) = result_and_lse::<T, f32>(outputs)?;
        let rows = DisjointSlice::new(out);

        try_for_each(batch * groups, &|piece| {
            let (b, group) = (piece / groups, piece % groups);
            let keys = lengths[b];
            let k = pack_keys(Head { len: keys, ..k.head(b, group) }, &blocking)?;
            let v = pack_values(Head { len: keys, ..v.head(b, group) }, &blocking)?;
            let (k, v) = (k.as_slice::<f32>()?, v.as_slice::<f32>()?);
            for_each(sharing * tiles, &|i| {
                let (h, i) = (group * sharing + i / tiles, i % tiles);
                let mut scratch = Scratch::default();
                let (first, count) = (i * length, length.min(queries - i * length));
                let tile = QueryTile {
                    blocking,
                    keys,
                    channels,
                    first,
                    count,
                    causal: self.config.causal.then(|| keys.saturating_sub(queries)),
                };
                scratch.start(&tile, q.head(b, h), factor);
                attend(&tile, k, v, &mut scratch);
                scratch.finish(&tile);
                for (t, row) in scratch.rows.chunks_exact(channels).take(count).enumerate() {
                    let at = ((b * queries + first + t) * heads + h) * channels;
                    // SAFETY: the row of (b, first + t, h), and no other task has the same b, h and tile.
                    narrow(row, unsafe { rows.part(at, channels) });
                }
                if let Some(lse) = &lse {
                    // SAFETY: the elements of (b, h, first ..), which are those of this tile alone.
                    let lse = unsafe { lse.part((b * heads + h) * queries + first, count) };
                    scratch.log_sum_exp(lse);
                }
            });
            Ok(())
        })
    }
}

/// The elements of the result, and of the logarithms of sums where they are wanted.
pub(super) fn result_and_lse<T: Element, L: Element>(
    outputs: &mut [Tensor],
) -> Result<(&mut [T], Option<DisjointSlice<'_, L>>)> {
    let Some((out, rest)) = outputs.split_first_mut() else { unreachable!("as inferred") };
    let lse = rest.first_mut().map(|lse| lse.as_mut_slice::<L>().map(DisjointSlice::new));
    Ok((out.as_mut_slice::<T>()?, lse.transpose()?))
}

/// A tensor [B, T, H, D], D without gaps, by its heads.
pub(super) struct Heads<'a, T> {
    data: &'a [T],
    /// Of B, T and H.
    strides: [usize; 3],
    pub(super) len: usize,
    channels: usize,
}

impl<'a, T: Float> Heads<'a, T> {
    pub(super) fn new(t: &'a Tensor) -> Result<Self> {
        Ok(Self {
            data: t.as_strided_slice()?,
            strides: [t.strides()[0], t.strides()[1], t.strides()[2]],
            len: t.dim(1),
            channels: t.dim(3),
        })
    }

    pub(super) fn head(&self, b: usize, h: usize) -> Head<'a, T> {
        let [batch, token, head] = self.strides;
        let data = &self.data[b * batch + h * head..];
        Head { data, stride: token, len: self.len, channels: self.channels }
    }
}

/// One head [T, D].
#[derive(Clone, Copy)]
pub(super) struct Head<'a, T> {
    data: &'a [T],
    pub(super) stride: usize,
    pub(super) len: usize,
    pub(super) channels: usize,
}

impl<T: Float<Acc = f32>> Head<'_, T> {
    /// Row `i` [D].
    pub(super) fn row(&self, i: usize) -> &[T] {
        &self.behind(i)[..self.channels]
    }

    /// Everything from row `i` on: its rows lie `stride` apart.
    pub(super) fn behind(&self, i: usize) -> &[T] {
        &self.data[i * self.stride..]
    }

    /// Rows `first..first + count` as f32, to the front of `to`: [count, D].
    fn widen(&self, first: usize, count: usize, to: &mut [f32]) {
        for (i, to) in to.chunks_exact_mut(self.channels).take(count).enumerate() {
            widen(self.row(first + i), to);
        }
    }

    /// Rows `first..first + count` as f32, and zeros up to `padded` rows: [padded, D].
    fn rows(&self, first: usize, count: usize, padded: usize) -> Vec<f32> {
        let mut wide = vec![0.0; padded * self.channels];
        self.widen(first, count, &mut wide);
        wide
    }
}

/// The shape of the kernel's register tiles: `panel` broadcast elements against two registers of queries.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    /// Queries of a group.
    queries: usize,
    /// Keys of a panel.
    keys: usize,
    /// Channels of a panel of values.
    channels: usize,
}

impl Blocking {
    /// Panels of values are those that pad `channels` the least; the larger where they tie.
    fn new(channels: usize) -> Self {
        let (lanes, registers) = registers();
        let (keys, panels) = if registers >= 32 { (12, [12, 10, 8]) } else { (6, [6, 5, 4]) };
        let panel = panels.into_iter().min_by_key(|&n| channels.next_multiple_of(n));
        Self { queries: 2 * lanes, keys, channels: panel.unwrap_or(keys) }
    }
}

simd! {
    fn registers(_s) -> (usize, usize) {
        (S::LANES, S::REGISTERS)
    }
}

/// Panels of keys, [panels][D][keys of a panel], zeros where there is no key.
fn pack_keys<T: Float<Acc = f32>>(k: Head<T>, blocking: &Blocking) -> Result<Tensor> {
    let (panel, channels) = (blocking.keys, k.channels);
    // Enough panels at a time to fill the registers that transpose them.
    let group = 8 * panel;
    let mut transposed = vec![0.0; group * channels];
    let len = k.len.next_multiple_of(panel) * channels;
    let mut packed = Tensor::uninit([len], DType::F32, Device::Cpu)?;
    for (i, to) in packed.as_mut_slice::<f32>()?.chunks_mut(group * channels).enumerate() {
        let rows = k.rows(i * group, group.min(k.len - i * group), group);
        transpose(&rows, group, channels, &mut transposed); // [D, group]
        for (p, to) in to.chunks_exact_mut(panel * channels).enumerate() {
            let columns = transposed[p * panel..].chunks(group);
            match panel {
                6 => copy_columns::<6>(columns, to),
                _ => copy_columns::<12>(columns, to),
            }
        }
    }
    Ok(packed)
}

/// The first N elements of each of `from`, one after the other.
fn copy_columns<'a, const N: usize>(from: impl Iterator<Item = &'a [f32]>, to: &mut [f32]) {
    for (to, from) in to.chunks_exact_mut(N).zip(from) {
        to.copy_from_slice(&from[..N]);
    }
}

/// Panels of values, [panels][S][channels of a panel], zeros where there is no channel.
fn pack_values<T: Float<Acc = f32>>(v: Head<T>, blocking: &Blocking) -> Result<Tensor> {
    let panel = blocking.channels;
    let len = v.len * v.channels.next_multiple_of(panel);
    let mut tensor = Tensor::uninit([len], DType::F32, Device::Cpu)?;
    let packed = tensor.as_mut_slice::<f32>()?;
    let mut row = vec![0.0; v.channels.next_multiple_of(panel)];
    for i in 0..v.len {
        widen(v.row(i), &mut row[..v.channels]);
        match panel {
            4 => scatter::<4>(&row, i, v.len, packed),
            5 => scatter::<5>(&row, i, v.len, packed),
            6 => scatter::<6>(&row, i, v.len, packed),
            8 => scatter::<8>(&row, i, v.len, packed),
            10 => scatter::<10>(&row, i, v.len, packed),
            _ => scatter::<12>(&row, i, v.len, packed),
        }
    }
    Ok(tensor)
}

/// Row `i` of `rows` of each panel [rows, N] in `to`.
fn scatter<const N: usize>(row: &[f32], i: usize, rows: usize, to: &mut [f32]) {
    for (panel, from) in to.chunks_exact_mut(rows * N).zip(row.chunks_exact(N)) {
        panel[i * N..][..N].copy_from_slice(from);
    }
}

/// A tile of queries of one head.
struct QueryTile {
    blocking: Blocking,
    keys: usize,
    channels: usize,
    /// The tile's first query, and how many there are.
    first: usize,
    count: usize,
    /// How many keys a causal query sees beyond those up to its own number.
    causal: Option<usize>,
}

/// What a thread needs for a tile; G groups of W queries, D channels.
#[derive(Default)]
struct Scratch {
    /// [G, D, W], scaled.
    queries: Vec<f32>,
    /// [KEYS, W]
    scores: Vec<f32>,
    /// [G, W]: the largest score so far, in base 2.
    max: Vec<f32>,
    /// [G, W]: the sum of the weights so far.
    sum: Vec<f32>,
    /// [G, D to a panel's multiple, W]: the sum of weighted values so far.
    output: Vec<f32>,
    /// [G W, D]: the result.
    rows: Vec<f32>,
}

impl Scratch {
    /// Loads the tile's queries, times `factor`, and resets the rest.
    fn start<T: Float<Acc = f32>>(&mut self, tile: &QueryTile, q: Head<T>, factor: f32) {
        let width = tile.blocking.queries;
        let groups = tile.count.div_ceil(width);
        let refill = |v: &mut Vec<f32>, len: usize, x: f32| {
            v.clear();
            v.resize(len, x);
        };
        refill(&mut self.queries, groups * tile.channels * width, 0.0);
        refill(&mut self.max, groups * width, f32::NEG_INFINITY);
        refill(&mut self.sum, groups * width, 0.0);
        let padded = tile.channels.next_multiple_of(tile.blocking.channels);
        refill(&mut self.output, groups * padded * width, 0.0);
        self.scores.resize(KEYS * width, 0.0);
        self.rows.resize(groups * width * tile.channels, 0.0);
        let mut rows = q.rows(tile.first, tile.count, groups * width);
        rows.iter_mut().for_each(|x| *x *= factor);
        let size = width * tile.channels;
        for (rows, to) in rows.chunks_exact(size).zip(self.queries.chunks_exact_mut(size)) {
            transpose(rows, width, tile.channels, to);
        }
    }

    /// Divides by the sums of weights, and turns the tile into rows [D] of queries.
    fn finish(&mut self, tile: &QueryTile) {
        let width = tile.blocking.queries;
        let padded = tile.channels.next_multiple_of(tile.blocking.channels);
        let groups = self.output.chunks_exact_mut(padded * width).zip(self.sum.chunks_exact(width));
        let rows = self.rows.chunks_exact_mut(width * tile.channels);
        for ((output, sum), rows) in groups.zip(rows) {
            for lanes in output.chunks_exact_mut(width) {
                lanes.iter_mut().zip(sum).for_each(|(x, sum)| *x /= sum);
            }
            transpose(&output[..width * tile.channels], tile.channels, width, rows);
        }
    }

    /// Natural logarithms of the first queries' sums of `e^score`.
    fn log_sum_exp(&self, to: &mut [f32]) {
        for (to, (max, sum)) in to.iter_mut().zip(self.max.iter().zip(&self.sum)) {
            *to = (max + sum.log2()) * std::f32::consts::LN_2;
        }
    }
}

simd! {
    /// Softmax of a tile's scores and the sum of the values that it weights, not yet divided by its sum.
    fn attend(s, tile: &QueryTile, keys: &[f32], values: &[f32], scratch: &mut Scratch) {
        if S::REGISTERS >= 32 {
            match tile.blocking.channels {
                12 => attend_tile::<S, 12, 12>(s, tile, keys, values, scratch),
                10 => attend_tile::<S, 12, 10>(s, tile, keys, values, scratch),
                _ => attend_tile::<S, 12, 8>(s, tile, keys, values, scratch),
            }
        } else {
            match tile.blocking.channels {
                6 => attend_tile::<S, 6, 6>(s, tile, keys, values, scratch),
                5 => attend_tile::<S, 6, 5>(s, tile, keys, values, scratch),
                _ => attend_tile::<S, 6, 4>(s, tile, keys, values, scratch),
            }
        }
    }
}

/// [`attend`] with panels of K keys and V channels.
#[inline(always)]
fn attend_tile<S: Simd, const K: usize, const V: usize>(
    s: S,
    tile: &QueryTile,
    keys: &[f32],
    values: &[f32],
    scratch: &mut Scratch,
) {
    let (width, channels) = (2 * S::LANES, tile.channels);
    let padded = channels.next_multiple_of(V);
    let groups = tile.count.div_ceil(width);
    // What the loops below read and write without further checks.
    assert!(
        tile.blocking.queries == width && tile.blocking.keys == K && tile.blocking.channels == V
    );
    assert!(keys.len() == tile.keys.next_multiple_of(K) * channels);
    assert!(values.len() == tile.keys * padded);
    assert!(scratch.queries.len() == groups * channels * width);
    assert!(scratch.output.len() == groups * padded * width);
    assert!(scratch.scores.len() == KEYS * width && KEYS.is_multiple_of(K));
    assert!(scratch.max.len() == groups * width && scratch.sum.len() == groups * width);

    let scores = scratch.scores.as_mut_ptr();
    for start in (0..tile.keys).step_by(KEYS) {
        let count = KEYS.min(tile.keys - start);
        for g in 0..groups {
            let first = tile.first + g * width;
            let last = tile.causal.map(|beyond| first + beyond); // key that the first query sees
            if last.is_some_and(|last| start >= last + width) {
                continue; // all of these keys come after all of these queries
            }
            // SAFETY: the lengths were checked above. A panel of keys holds K * channels elements and there
            // are count.div_ceil(K) of them from `start`, a multiple of K, on; scores have
            // count.next_multiple_of(K) rows of `width`; a panel of values holds V * tile.keys elements, of which V * count from
            // V * start on are read; g < groups.
            unsafe {
                let queries = scratch.queries.as_ptr().add(g * channels * width);
                for p in 0..count.div_ceil(K) {
                    let panel = keys.as_ptr().add((start + p * K) * channels);
                    let products = product::<S, K>(s, panel, queries, channels);
                    for (i, row) in products.into_iter().enumerate() {
                        store(s, scores.add((p * K + i) * width), row);
                    }
                }
                if let Some(last) = last.filter(|last| start + count > last + 1) {
                    for key in 0..count {
                        // The query of each lane sees one key more.
                        let unseen = (start + key).saturating_sub(last).min(width);
                        std::slice::from_raw_parts_mut(scores.add(key * width), unseen)
                            .fill(f32::NEG_INFINITY);
                    }
                }

                let old = load(s, scratch.max.as_ptr().add(g * width));
                let mut max = old;
                for key in 0..count {
                    let row = load(s, scores.add(key * width));
                    max = [s.max(max[0], row[0]), s.max(max[1], row[1])];
                }
                let correction = exp2_difference(s, old, max);
                let mut sum = [s.splat(0.0); 2];
                for key in 0..count {
                    let at = scores.add(key * width);
                    let weight = exp2_difference(s, load(s, at), max);
                    sum = [s.add(sum[0], weight[0]), s.add(sum[1], weight[1])];
                    store(s, at, weight);
                }
                let total = scratch.sum.as_mut_ptr().add(g * width);
                accumulate(s, total, correction, sum);
                store(s, scratch.max.as_mut_ptr().add(g * width), max);

                let output = scratch.output.as_mut_ptr().add(g * padded * width);
                for p in 0..padded / V {
                    let panel = values.as_ptr().add((p * tile.keys + start) * V);
                    let products = product::<S, V>(s, panel, scores, count);
                    for (i, row) in products.into_iter().enumerate() {
                        accumulate(s, output.add((p * V + i) * width), correction, row);
                    }
                }
            }
        }
    }
}

/// `2^(a - b)`, a <= b.
#[inline(always)]
fn exp2_difference<S: Simd>(s: S, a: [S::F32; 2], b: [S::F32; 2]) -> [S::F32; 2] {
    [exp2_of_negative(s, s.sub(a[0], b[0])), exp2_of_negative(s, s.sub(a[1], b[1]))]
}

/// `to = to * factor + row`, two registers.
///
/// # Safety
/// `to` must be readable and writable for both.
#[inline(always)]
unsafe fn accumulate<S: Simd>(s: S, to: *mut f32, factor: [S::F32; 2], row: [S::F32; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        let before = load(s, to);
        let sums =
            [s.mul_add(before[0], factor[0], row[0]), s.mul_add(before[1], factor[1], row[1])];
        store(s, to, sums);
    }
}

/// `a^T b` of `a` [n, M] and `b` [n, two registers]: the kernel.
///
/// # Safety
/// Both must be readable for n rows.
#[inline(always)]
unsafe fn product<S: Simd, const M: usize>(
    s: S,
    a: *const f32,
    b: *const f32,
    n: usize,
) -> [[S::F32; 2]; M] {
    let mut sums = [[s.splat(0.0); 2]; M];
    for i in 0..n {
        // SAFETY: row i < n of both.
        unsafe {
            let b = load(s, b.add(i * 2 * S::LANES));
            for j in 0..M {
                let a = s.splat(*a.add(i * M + j));
                sums[j] = [s.mul_add(a, b[0], sums[j][0]), s.mul_add(a, b[1], sums[j][1])];
            }
        }
    }
    sums
}

/// Two registers.
///
/// # Safety
/// `from` must be readable for both.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, from: *const f32) -> [S::F32; 2] {
    // SAFETY: the caller's promise.
    unsafe { [s.load(from), s.load(from.add(S::LANES))] }
}

/// Writes two registers.
///
/// # Safety
/// `to` must be writable for both.
#[inline(always)]
unsafe fn store<S: Simd>(s: S, to: *mut f32, row: [S::F32; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        s.store(to, row[0]);
        s.store(to.add(S::LANES), row[1]);
    }
}
