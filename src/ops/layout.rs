//! Putting tensors together and taking them apart. Views (`narrow`, `permute`, `reshape`) are methods of
//! [`Tensor`]; here is what needs a copy. Kernels: `kernels/layout.cu`.

use bytemuck::NoUninit;

use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::cpu::parallel::for_each_row;
use crate::error::{Error, Result};
use crate::tensor::{DType, Element, MAX_RANK, Tensor};

kernels! {
    fn strided_copy_1(y: Out<u8>, x: In<u8>, dims: CopyDims);
    fn strided_copy_2(y: Out<f16>, x: In<f16>, dims: CopyDims);
    fn strided_copy_4(y: Out<u32>, x: In<u32>, dims: CopyDims);
    fn strided_copy_8(y: Out<i64>, x: In<i64>, dims: CopyDims);
    /// Words of 16 bytes.
    fn strided_copy_16(y: Out<i64>, x: In<i64>, dims: CopyDims);
    /// A block a tile of 32 x 32 words.
    fn transpose_1(y: Out<u8>, x: In<u8>, dims: CopyDims);
    fn transpose_2(y: Out<f16>, x: In<f16>, dims: CopyDims);
    fn transpose_4(y: Out<u32>, x: In<u32>, dims: CopyDims);
    fn transpose_8(y: Out<i64>, x: In<i64>, dims: CopyDims);
}

#[derive(Clone, Copy, Debug, PartialEq, NoUninit)]
#[repr(C)]
struct CopyDims {
    in_strides: [u64; 6],
    out_strides: [u64; 6],
    in_offset: u64,
    out_offset: u64,
    shape: [u32; 6],
    len: u32,
    reserved: u32,
}

/// Words along each side of a tile.
const TILE: u64 = 32;
/// Threads of a block. The kernels need at most 32 registers each (nvcc 13, sm_80): eight such blocks fill an SM.
const THREADS: usize = 256;

/// Tensors one after the other along dimension `dim`; all other dimensions and the dtype are equal.
///
/// # Errors
/// `Shape` when there is no tensor, no such dimension, or another dimension differs; `DType` when the
/// dtypes differ.
pub fn concat(tensors: &[&Tensor], dim: usize) -> Result<Tensor> {
    match tensors {
        [one] if dim < one.rank() => Ok((*one).clone()),
        _ => apply(Concat { dim }, &super::tensors(tensors)),
    }
}

/// Consecutive parts of dimension `dim` with the given lengths, as views.
///
/// # Errors
/// `Shape` when there is no such dimension or the lengths do not add up to it.
pub fn split(x: &Tensor, dim: usize, lengths: &[usize]) -> Result<Vec<Tensor>> {
    let total = lengths.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    if dim >= x.rank() || total != Some(x.dim(dim)) {
        return Err(Error::shape(
            "split",
            format!("dimension {dim} of {} into parts of {lengths:?}", x.shape()),
        ));
    }
    let mut start = 0;
    lengths
        .iter()
        .map(|&len| {
            start += len;
            x.narrow(dim, start - len, len)
        })
        .collect()
}

impl Tensor {
    /// The same elements in row-major order without gaps; itself when it is so already.
    ///
    /// # Errors
    /// `OutOfMemory` when there is no room for the copy.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() { Ok(self.clone()) } else { apply(Contiguous, &tensors(&[self])) }
    }
}

/// [`Tensor::contiguous`]
#[derive(Clone, Copy, Debug)]
struct Contiguous;

impl Op for Contiguous {
    fn name(&self) -> &'static str {
        "contiguous"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        inputs[0].copy_into(&mut outputs[0])
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        copy_on_device("contiguous", &inputs[0], &mut outputs[0], None)
    }

    fn backward(&self, _: &Call, grad: &Tensor) -> Result<Grads> {
        Ok(vec![Some(grad.clone())])
    }
}

/// [`concat()`].
#[derive(Clone, Copy, Debug)]
struct Concat {
    /// The dimension along which the tensors are put together.
    pub dim: usize,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let mut inputs = inputs.tensors();
        let first = inputs.next().ok_or_else(|| Error::shape("concat", "no tensor was given"))?;
        let mut meta = Meta::like(first);
        if self.dim >= first.rank() {
            return Err(Error::shape(
                "concat",
                format!("dimension {} of {}", self.dim, first.shape()),
            ));
        }
        for t in inputs {
            let fits = t.rank() == first.rank()
                && t.shape().with(self.dim, first.dim(self.dim)) == *first.shape();
            if !fits {
                return Err(Error::shape(
                    "concat",
                    format!("{} and {} along dimension {}", first.shape(), t.shape(), self.dim),
                ));
            }
            if t.dtype() != first.dtype() {
                return Err(Error::DType {
                    op: "concat",
                    expected: first.dtype().name(),
                    found: t.dtype(),
                });
            }
            meta.shape[self.dim] += t.dim(self.dim);
        }
        Ok(vec![meta])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        match out.dtype() {
            DType::F32 => self.copy::<f32>(inputs, out),
            DType::F16 => self.copy::<half::f16>(inputs, out),
            DType::BF16 => self.copy::<half::bf16>(inputs, out),
            DType::F64 => self.copy::<f64>(inputs, out),
            DType::I64 => self.copy::<i64>(inputs, out),
            DType::U32 => self.copy::<u32>(inputs, out),
            DType::U8 => self.copy::<u8>(inputs, out),
        }
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let mut start = 0;
        inputs.tensors().try_for_each(|t| {
            copy_on_device("concat", t, &mut outputs[0], Some((self.dim, start)))?;
            start += t.dim(self.dim);
            Ok(())
        })
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let mut start = 0;
        let part = |i| {
            let length = call.meta(i).map_or(0, |meta| meta.shape[self.dim]);
            start += length;
            let part = || grad.narrow(self.dim, start - length, length);
            call.wants(i).then(part).transpose()
        };
        (0..call.places()).map(part).collect()
    }
}

impl Concat {
    fn copy<T: Element>(&self, inputs: &Inputs, out: &mut Tensor) -> Result<()> {
        let inputs: Vec<Tensor> =
            inputs.tensors().map(Tensor::contiguous).collect::<Result<_>>()?;
        // A tensor is a matrix here: what lies before `dim` are rows, the rest is columns.
        let columns = |t: &Tensor| t.dims()[self.dim..].iter().product::<usize>();
        let width = columns(out);
        let parts: Vec<(&[T], usize)> =
            inputs.iter().map(|t| Ok((t.as_slice::<T>()?, columns(t)))).collect::<Result<_>>()?;
        for_each_row(out.as_mut_slice::<T>()?, width, |i, row| {
            let mut at = 0;
            for &(part, n) in &parts {
                row[at..at + n].copy_from_slice(&part[i * n..(i + 1) * n]);
                at += n;
            }
        });
        Ok(())
    }
}

/// A convolution's kernel [O, I, KH, KW] turned by half, its channels swapped: [I, O, KH, KW].
///
/// # Errors
/// `Shape` when it has another rank.
pub(super) fn turned(weight: &Tensor) -> Result<Tensor> {
    let (o, i, kh, kw) = weight.dims4()?;
    let taps = weight.reshape([o, i, kh * kw])?;
    apply(Turn, &tensors(&[&taps]))?.reshape([i, o, kh, kw])
}

/// [`turned`]: [O, I, taps] -> [I, O, taps], the taps in falling order.
#[derive(Clone, Copy, Debug)]
struct Turn;

impl Op for Turn {
    fn name(&self) -> &'static str {
        "turn"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (o, i, taps) = inputs[0].dims3()?;
        Ok(vec![Meta { shape: [i, o, taps].into(), dtype: inputs[0].dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, out) = (inputs[0].contiguous()?, &mut outputs[0]);
        match out.dtype() {
            DType::F32 => turn::<f32>(&x, out),
            DType::F16 => turn::<half::f16>(&x, out),
            DType::BF16 => turn::<half::bf16>(&x, out),
            DType::F64 => turn::<f64>(&x, out),
            DType::I64 => turn::<i64>(&x, out),
            DType::U32 => turn::<u32>(&x, out),
            DType::U8 => turn::<u8>(&x, out),
        }
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].transpose(0, 1)?; // [I, O, taps]
        let taps = x.dim(2);
        (0..taps).try_for_each(|tap| {
            let from = x.narrow(2, taps - 1 - tap, 1)?;
            copy_on_device(self.name(), &from, &mut outputs[0], Some((2, tap)))
        })
    }

    fn backward(&self, _: &Call, grad: &Tensor) -> Result<Grads> {
        Ok(vec![Some(apply(Turn, &tensors(&[grad]))?)])
    }
}

fn turn<T: Element>(x: &Tensor, out: &mut Tensor) -> Result<()> {
    let (_, i, taps) = x.dims3()?;
    let row = out.dim(1) * taps;
    let x = x.as_slice::<T>()?;
    for_each_row(out.as_mut_slice::<T>()?, row, |input, row| {
        for (output, to) in row.chunks_exact_mut(taps).enumerate() {
            let from = &x[(output * i + input) * taps..][..taps];
            to.iter_mut().zip(from.iter().rev()).for_each(|(to, from)| *to = *from);
        }
    });
    Ok(())
}

/// Copies a tensor of a device, whatever its strides, over `out`; with `part`, over that part of `out` which begins at
/// `part.1` of dimension `part.0`.
fn copy_on_device(
    op: &'static str,
    x: &Tensor,
    out: &mut Tensor,
    part: Option<(usize, usize)>,
) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let start = part.map_or(0, |(dim, start)| start * out.strides()[dim]);
    let offsets = (x.offset(), out.offset() + start);
    let size = x.dtype().size();
    let copy = Copy::new(x.dims(), (x.strides(), out.strides()), offsets, size);
    let (dims, tiles) = copy.dims(op)?;
    let dtype = match copy.word {
        1 => DType::U8,
        2 => DType::F16,
        4 => DType::U32,
        _ => DType::I64,
    };
    let x = x.storage_as(dtype);
    let blocks = tiles.unwrap_or_else(|| (dims.len as usize).div_ceil(THREADS).min(1 << 14));
    let config = LaunchConfig::new([to_u32(op, blocks)?, 1], THREADS as u32);
    out.with_storage_as(dtype, |y| match (tiles, copy.word) {
        (None, 1) => kernel::strided_copy_1(config, y, &x, dims),
        (None, 2) => kernel::strided_copy_2(config, y, &x, dims),
        (None, 4) => kernel::strided_copy_4(config, y, &x, dims),
        (None, 8) => kernel::strided_copy_8(config, y, &x, dims),
        (None, _) => kernel::strided_copy_16(config, y, &x, dims),
        (Some(_), 1) => kernel::transpose_1(config, y, &x, dims),
        (Some(_), 2) => kernel::transpose_2(config, y, &x, dims),
        (Some(_), 4) => kernel::transpose_4(config, y, &x, dims),
        (Some(_), _) => kernel::transpose_8(config, y, &x, dims),
    })
}

/// A copy as its kernel sees it: as few dimensions of as wide words as the two layouts allow.
#[derive(Debug, PartialEq)]
struct Copy {
    /// Bytes of a word.
    word: u64,
    /// Outermost first, in words.
    dims: Vec<Dim>,
    in_offset: u64,
    out_offset: u64,
    /// The last two dimensions are a matrix for the tiled kernel: rows side by side in the input, columns in the output.
    is_transpose: bool,
}

/// A dimension: its length and the two strides.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Dim {
    len: u64,
    from: u64,
    to: u64,
}

impl Copy {
    /// Of `shape`, with strides and offsets of input and output in elements of `size` bytes.
    fn new(
        shape: &[usize],
        strides: (&[usize], &[usize]),
        offsets: (usize, usize),
        size: usize,
    ) -> Self {
        let bytes = |elements: usize| (elements * size) as u64;
        // 1. merge what is one dimension in both layouts
        let mut dims: Vec<Dim> = Vec::with_capacity(MAX_RANK);
        for ((&len, &from), &to) in shape.iter().zip(strides.0).zip(strides.1) {
            let dim = Dim { len: len as u64, from: bytes(from), to: bytes(to) };
            match dims.last_mut() {
                _ if len == 1 => {}
                Some(outer) if outer.from == dim.len * dim.from && outer.to == dim.len * dim.to => {
                    *outer = Dim { len: outer.len * dim.len, ..dim };
                }
                _ => dims.push(dim),
            }
        }
        let size = bytes(1);
        let (in_offset, out_offset) = (bytes(offsets.0), bytes(offsets.1));
        let mut copy = Self { word: size, dims, in_offset, out_offset, is_transpose: false };
        match copy.dims.last().copied() {
            // 2. the widest word that all ends of runs are multiples of
            Some(Dim { len, from, to }) if from == size && to == size => {
                let outer = &copy.dims[..copy.dims.len() - 1];
                let mut ends: Vec<u64> = outer.iter().flat_map(|d| [d.from, d.to]).collect();
                ends.extend([len * size, in_offset, out_offset]);
                let fits = |word: &u64| ends.iter().all(|end| end.is_multiple_of(*word));
                copy.word = [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1).max(size);
                if let Some(last) = copy.dims.last_mut() {
                    *last = Dim { len: len * size / copy.word, from: copy.word, to: copy.word };
                }
            }
            // 3. a matrix, if it is large enough to fill tiles
            Some(last) if last.to == size && last.len >= TILE / 4 => {
                let rows = copy.dims.iter().position(|d| d.from == size && d.len >= TILE / 4);
                if let Some(rows) = rows {
                    let rows = copy.dims.remove(rows);
                    copy.dims.insert(copy.dims.len() - 1, rows);
                    copy.is_transpose = true;
                }
            }
            _ => {}
        }
        for dim in &mut copy.dims {
            dim.from /= copy.word;
            dim.to /= copy.word;
        }
        copy.in_offset /= copy.word;
        copy.out_offset /= copy.word;
        copy
    }

    /// The kernel's argument, and how many tiles there are if it is the tiled one.
    fn dims(&self, op: &'static str) -> Result<(CopyDims, Option<usize>)> {
        let unused = MAX_RANK - self.dims.len();
        let mut dims = CopyDims {
            in_strides: [0; 6],
            out_strides: [0; 6],
            in_offset: self.in_offset,
            out_offset: self.out_offset,
            shape: [1; 6],
            len: to_u32(op, self.dims.iter().map(|d| d.len as usize).product())?,
            reserved: 0,
        };
        for (k, dim) in self.dims.iter().enumerate() {
            dims.shape[unused + k] = to_u32(op, dim.len as usize)?;
            dims.in_strides[unused + k] = dim.from;
            dims.out_strides[unused + k] = dim.to;
        }
        let (outer, matrix) = self.dims.split_at(self.dims.len().saturating_sub(2));
        let tiles = outer.iter().map(|d| d.len).chain(matrix.iter().map(|d| d.len.div_ceil(TILE)));
        let tiles = self.is_transpose.then(|| tiles.product::<u64>() as usize);
        Ok((dims, tiles))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, devices, random, shapes, strided, values};
    use crate::tensor::{Device, Shape};

    #[test]
    fn a_kernel_is_turned_and_its_channels_swapped() {
        for [o, i, kh, kw] in [[1, 1, 1, 1], [3, 5, 2, 3], [40, 7, 3, 3], [2, 1, 1, 4]] {
            let wide = random([o, i + 2, kh, kw], 3);
            for dtype in [DType::F32, DType::BF16, DType::F64] {
                for device in devices() {
                    let wide = wide.to_dtype(dtype).unwrap().to_device(device).unwrap();
                    let kernel = wide.narrow(1, 1, i).unwrap();
                    let (from, to) = (values(&kernel), turned(&kernel).unwrap());
                    assert_eq!(to.dims(), [i, o, kh, kw]);
                    for (at, &found) in values(&to).iter().enumerate() {
                        let (tap, rest) = (at % (kh * kw), at / (kh * kw));
                        let (input, output) = (rest / o, rest % o);
                        let expected = from[(output * i + input + 1) * kh * kw - 1 - tap];
                        assert_eq!(found, expected, "{device} {dtype} [{o}, {i}, {kh}, {kw}] {at}");
                    }
                }
            }
            check_gradient("turn", &[random([o, i, kh, kw], 4)], |x| turned(x[0]));
        }
        assert!(matches!(turned(&random([2, 3, 3], 5)), Err(Error::Shape { .. })));
    }

    /// `shape` seen through `order` from a tensor whose dimension `i` lies between `before[i]` and `after[i]` others.
    struct View {
        shape: &'static [usize],
        order: &'static [usize],
        before: &'static [usize],
        after: &'static [usize],
    }

    impl View {
        fn of(&self, t: &Tensor) -> Tensor {
            let mut view = t.clone();
            for (dim, &before) in self.before.iter().enumerate() {
                view = view.narrow(dim, before, self.shape[dim]).unwrap();
            }
            view.permute(self.order).unwrap()
        }

        fn storage(&self) -> Shape {
            let around = self.before.iter().zip(self.after).map(|(b, a)| b + a);
            let dims: Vec<usize> = self.shape.iter().zip(around).map(|(n, a)| n + a).collect();
            Shape::from(&dims[..])
        }
    }

    /// Of each path of the kernels: words of every width, tiles full and cut, one to six dimensions.
    const VIEWS: [View; 12] = [
        View { shape: &[97], order: &[0], before: &[3], after: &[2] },
        View { shape: &[5, 64], order: &[0, 1], before: &[1, 16], after: &[0, 16] },
        View { shape: &[5, 64], order: &[0, 1], before: &[1, 1], after: &[0, 3] },
        View { shape: &[3, 7, 10], order: &[1, 0, 2], before: &[0, 1, 2], after: &[1, 0, 4] },
        View { shape: &[33, 65], order: &[1, 0], before: &[1, 1], after: &[0, 2] },
        View { shape: &[31, 7], order: &[1, 0], before: &[0, 0], after: &[0, 0] },
        // [B, H, W, C] <-> [B, C, H, W]
        View { shape: &[2, 9, 7, 40], order: &[0, 3, 1, 2], before: &[0; 4], after: &[0; 4] },
        View { shape: &[2, 40, 9, 7], order: &[0, 2, 3, 1], before: &[0; 4], after: &[0; 4] },
        View {
            shape: &[2, 9, 8, 40],
            order: &[0, 3, 1, 2],
            before: &[1, 1, 0, 3],
            after: &[0, 1, 2, 0],
        },
        View {
            shape: &[2, 3, 2, 3, 2, 5],
            order: &[5, 4, 3, 2, 1, 0],
            before: &[0; 6],
            after: &[0; 6],
        },
        View {
            shape: &[2, 3, 9, 3, 2, 12],
            order: &[0, 5, 1, 3, 4, 2],
            before: &[0, 1, 0, 1, 0, 1],
            after: &[0; 6],
        },
        View {
            shape: &[2, 1, 3, 1, 2, 8],
            order: &[2, 1, 0, 3, 4, 5],
            before: &[0; 6],
            after: &[0; 6],
        },
    ];

    #[test]
    fn views_become_contiguous_wherever_they_are() {
        for (i, view) in VIEWS.iter().enumerate() {
            let whole: Vec<i64> = (0..view.storage().elements() as i64).collect();
            let whole = Tensor::from_vec(whole, view.storage()).unwrap();
            let expected = view.of(&whole).to_vec::<i64>().unwrap();
            let device = devices().last().unwrap();
            let of = |whole: &Tensor| {
                view.of(&whole.to_device(device).unwrap())
                    .contiguous()
                    .unwrap()
                    .to_device(Device::Cpu)
                    .unwrap()
            };
            assert_eq!(of(&whole).to_vec::<i64>().unwrap(), expected, "view {i}, 8 bytes");
            macro_rules! same {
                ($word:ty, $from:expr) => {{
                    let words = |v: &[i64]| v.iter().map(|&v| $from(v)).collect::<Vec<$word>>();
                    let t =
                        Tensor::from_vec(words(whole.as_slice().unwrap()), view.storage()).unwrap();
                    let found = of(&t).to_vec::<$word>().unwrap();
                    assert!(
                        found == words(&expected),
                        "view {i}, {}",
                        std::any::type_name::<$word>()
                    );
                }};
            }
            same!(u8, |v| v as u8);
            same!(half::f16, |v| half::f16::from_bits(v as u16 & 0x3fff));
            same!(half::bf16, |v| half::bf16::from_bits(v as u16 & 0x3fff));
            same!(u32, |v| v as u32);
            same!(f64, |v| v as f64);
        }
    }

    /// What the kernels are asked for: that the wide words and the tiles are used at all.
    #[test]
    fn copies_are_of_few_wide_words() {
        let copy = |shape: &[usize], from: &[usize], at, size| {
            let to = Shape::from(shape).contiguous_strides();
            Copy::new(shape, (from, &to), (at, 0), size)
        };
        let dim = |len, from, to| Dim { len, from, to };
        // Rows of 320 halves out of rows of 640, all rows of a batch one dimension.
        let rows = copy(&[2, 64, 320], &[64 * 640, 640, 1], 320, 2);
        assert_eq!((rows.word, rows.in_offset), (16, 40));
        assert_eq!(rows.dims, [dim(128, 80, 40), dim(40, 1, 1)]);
        let odd = copy(&[2, 64, 320], &[64 * 640, 640, 1], 321, 2);
        assert_eq!((odd.word, odd.in_offset), (2, 321));
        // [B, H, W, C] -> [B, C, H, W]
        let images = copy(&[2, 320, 64, 96], &[64 * 96 * 320, 1, 96 * 320, 320], 0, 4);
        assert!(images.is_transpose);
        assert_eq!(images.dims[1..], [dim(320, 1, 64 * 96), dim(64 * 96, 320, 1)]);
        assert_eq!(images.dims("contiguous").unwrap().1, Some(2 * 10 * 192));
        // Three channels fill no tile.
        assert!(!copy(&[1, 3, 64, 64], &[64 * 64 * 3, 1, 64 * 3, 3], 0, 4).is_transpose);
    }

    #[test]
    fn parts_of_a_tensor_make_it_again() {
        let x = random([3, 5, 7, 2], 1);
        for (dim, lengths) in [(0, vec![1, 2]), (1, vec![2, 0, 3]), (2, vec![7]), (3, vec![1, 1])] {
            let parts = split(&x, dim, &lengths).unwrap();
            let again = concat(&parts.iter().collect::<Vec<_>>(), dim).unwrap();
            assert_eq!(again.to_vec::<f32>().unwrap(), x.to_vec::<f32>().unwrap(), "dim {dim}");
            let views: Vec<Tensor> =
                parts.iter().map(|p| if p.is_empty() { p.clone() } else { strided(p) }).collect();
            let again = concat(&views.iter().collect::<Vec<_>>(), dim).unwrap();
            assert_eq!(
                again.to_vec::<f32>().unwrap(),
                x.to_vec::<f32>().unwrap(),
                "dim {dim}, views"
            );
            for device in devices() {
                let parts = split(&x.to_device(device).unwrap(), dim, &lengths).unwrap();
                let again = concat(&parts.iter().collect::<Vec<_>>(), dim).unwrap();
                let what = format!("dim {dim}, on {device}");
                assert_eq!(again.to_vec::<f32>().unwrap(), x.to_vec::<f32>().unwrap(), "{what}");
            }
        }
    }

    #[test]
    fn every_dtype_is_copied() {
        let a = Tensor::from_vec(vec![1i64, 2], [1, 2]).unwrap();
        let b = Tensor::from_vec(vec![3i64], [1, 1]).unwrap();
        assert_eq!(concat(&[&a, &b], 1).unwrap().to_vec::<i64>().unwrap(), [1, 2, 3]);
        let a = Tensor::from_vec(vec![1u8, 2], [2, 1]).unwrap();
        assert_eq!(concat(&[&a, &a], 0).unwrap().to_vec::<u8>().unwrap(), [1, 2, 1, 2]);
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let all = [[2, 3, 5]].into_iter().chain(shapes());
        for (shape, dim) in all.flat_map(|shape| (0..3).map(move |dim| (shape, dim))) {
            let part = |length, seed| random(Shape::from(shape).with(dim, length), seed);
            let parts = [part(1, 51), part(4, 52), part(2, 53)];
            check_gradient("concat", &parts, |x| concat(x, dim));
            check_gradient("concat with itself", &parts[..1], |x| concat(&[x[0], x[0]], dim));
            check_gradient("split", &parts[1..2], |x| {
                let parts = split(x[0], dim, &[1, 3])?;
                concat(&[&parts[1], &parts[0]], dim)
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (a, b) = (random([2, 3], 1), random([2, 4], 2));
        assert!(matches!(concat(&[&a, &b], 0), Err(Error::Shape { .. })));
        assert!(matches!(concat(&[&a, &b], 2), Err(Error::Shape { .. })));
        assert!(matches!(concat(&[&a], 2), Err(Error::Shape { .. })));
        assert!(matches!(concat(&[], 0), Err(Error::Shape { .. })));
        assert!(matches!(
            concat(&[&a, &b.to_dtype(DType::F16).unwrap()], 1),
            Err(Error::DType { .. })
        ));
        assert!(matches!(concat(&[&a, &random([2], 1)], 1), Err(Error::Shape { .. })));
        assert!(matches!(split(&a, 1, &[1, 1]), Err(Error::Shape { .. })));
        assert!(matches!(split(&a, 2, &[3]), Err(Error::Shape { .. })));
        assert!(matches!(split(&a, 1, &[usize::MAX, 4]), Err(Error::Shape { .. })));
    }
}
