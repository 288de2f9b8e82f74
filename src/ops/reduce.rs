//! Sums, means and extremes over dimensions. Kernels: `kernels/reduce.cu`.

use bytemuck::NoUninit;

use super::elementwise::{add, require_float, scale};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{fold, simd, widened};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Float, Real, Shape, Tensor};

/// Elements folded in the type they are computed in; blocks of them are combined in f64.
const BLOCK: usize = 1 << 12;

kernels! {
    /// A warp a row.
    fn reduce_by_warps(y: Out, x: In, dims: ReduceDims);
    /// A block a row.
    fn reduce_by_blocks(y: Out, x: In, dims: ReduceDims);
    /// A warp a row.
    fn extreme_gradient(dx: Out, x: In, y: In, grad: In, dims: ReduceDims);
    /// A block 32 columns of a chunk of rows.
    fn sum_columns(y: Out<U>, x: In<T>, dims: ColumnDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ReduceDims {
    rows: u32,
    columns: u32,
    reduction: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ColumnDims {
    rows: u32,
    columns: u32,
    chunks: u32,
    rows_of_chunk: u32,
    divisor: f32,
}

/// Sum over `dims`, which the result no longer has.
///
/// # Errors
/// `Shape` when a dimension is not there or named twice, `DType` for integers; likewise below.
pub fn sum(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    reduce(x, dims, Reduction::Sum)
}

/// Mean over `dims`, which the result no longer has; NaN when there is nothing to take it of.
pub fn mean(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    reduce(x, dims, Reduction::Mean)
}

/// The largest element over `dims`, which the result no longer has; NaN if any is NaN. Elements that are equal share the
/// gradient, as with `torch.amax`.
///
/// # Errors
/// `Shape` also when there is no element to choose from; likewise for [`min`].
pub fn max(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    reduce(x, dims, Reduction::Max)
}

/// The least element over `dims`, likewise.
pub fn min(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    reduce(x, dims, Reduction::Min)
}

fn reduce(x: &Tensor, dims: &[usize], reduction: Reduction) -> Result<Tensor> {
    apply(Reduce { reduction, dims: dims.to_vec() }, &tensors(&[x]))
}

/// What [`Reduce`] computes. The numbers are the kernels'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reduction {
    /// [`sum`]
    Sum,
    /// [`mean`]
    Mean,
    /// [`max`]
    Max,
    /// [`min`]
    Min,
}

/// [`sum`], [`mean`], [`max`], [`min`]
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reduce {
    /// What is computed.
    pub reduction: Reduction,
    /// Over which dimensions.
    pub dims: Vec<usize>,
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        match self.reduction {
            Reduction::Sum => "sum",
            Reduction::Mean => "mean",
            Reduction::Max => "max",
            Reduction::Min => "min",
        }
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let x = &inputs[0];
        require_float(self.name(), x)?;
        let repeated = self.dims.iter().enumerate().any(|(i, d)| self.dims[..i].contains(d));
        if repeated || self.dims.iter().any(|&d| d >= x.rank()) {
            return Err(Error::shape(
                self.name(),
                format!("dimensions {:?} of {}", self.dims, x.shape()),
            ));
        }
        let elements: usize = self.dims.iter().map(|&d| x.dim(d)).product();
        if elements == 0 && matches!(self.reduction, Reduction::Max | Reduction::Min) {
            return Err(Error::shape(
                self.name(),
                format!("no element over {:?} of {}", self.dims, x.shape()),
            ));
        }
        let kept: Vec<usize> = self.kept(x).map(|d| x.dim(d)).collect();
        Ok(vec![Meta { shape: Shape::new(&kept), dtype: x.dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        if let Some(columns) = self.columns(&inputs[0]) {
            let x = inputs[0].contiguous()?;
            return dispatch_float!(self.name(), x.dtype(), T => {
                let mean = self.reduction == Reduction::Mean;
                sum_columns(x.as_slice::<T>()?, columns, mean, out.as_mut_slice::<T>()?);
                Ok(())
            });
        }
        // What is reduced becomes the rows of a matrix.
        let order: Vec<usize> = self.kept(&inputs[0]).chain(self.dims.iter().copied()).collect();
        let x = inputs[0].permute(&order)?.contiguous()?;
        dispatch_float!(self.name(), x.dtype(), T => {
            let (x, y) = (x.as_slice::<T>()?, out.as_mut_slice::<T>()?);
            let n = x.len() / y.len();
            let rows = (BLOCK / n.max(1)).max(1);
            for_each_chunk(y, rows, |i, y| {
                y.iter_mut().enumerate().for_each(|(j, y)| *y = self.row(&x[(i * rows + j) * n..][..n]));
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        if let Some([rows, columns]) = self.columns(&inputs[0])
            && out.len() / columns <= MAX_MATRICES
        {
            let x = inputs[0].contiguous()?;
            let divisor = if self.reduction == Reduction::Mean { rows as f32 } else { 1.0 };
            return sum_columns_on_device(self.name(), &x, [rows, columns], divisor, out);
        }
        // As on the CPU.
        let order: Vec<usize> = self.kept(&inputs[0]).chain(self.dims.iter().copied()).collect();
        let x = inputs[0].permute(&order)?.contiguous()?;
        let rows = out.len();
        let dims = ReduceDims {
            rows: to_u32(self.name(), rows)?,
            columns: to_u32(self.name(), x.len() / rows)?,
            reduction: self.reduction as u32,
        };
        // A warp has 32 elements a lane by then: more are shared out over eight warps.
        if dims.columns <= 1024 {
            let config = LaunchConfig::new([dims.rows.div_ceil(4), 1], 4 * 32);
            kernel::reduce_by_warps(config, out, &x, dims)
        } else {
            let config = LaunchConfig::new([dims.rows, 1], 8 * 32);
            kernel::reduce_by_blocks(config, out, &x, dims)
        }
    }

    fn saves(&self) -> Saves {
        match self.reduction {
            Reduction::Sum | Reduction::Mean => Saves::default(),
            Reduction::Max | Reduction::Min => Saves { inputs: &[0], result: true },
        }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let x = call.meta(0).ok_or_else(|| Error::no_gradient(self.name()))?;
        let rank = x.shape.len();
        let elements: usize = self.dims.iter().map(|&d| x.shape[d]).product();
        let grad = match self.reduction {
            Reduction::Sum => grad.clone(),
            Reduction::Mean => scale(grad, 1.0 / elements as f32)?,
            Reduction::Max | Reduction::Min => {
                let x = call.tensor(0)?;
                let order: Vec<usize> = self.kept(x).chain(self.dims.iter().copied()).collect();
                let x = x.permute(&order)?;
                let dx = apply(ExtremeGradient, &tensors(&[&x, call.output(0)?, grad]))?;
                return Ok(vec![Some(dx.permute(&inverse(&order))?)]);
            }
        };
        // Repeated along what was summed over: those dimensions first, then back to their places.
        let kept = (0..rank).filter(|d| !self.dims.contains(d));
        let order: Vec<usize> = self.dims.iter().copied().chain(kept).collect();
        let shape: Vec<usize> = order.iter().map(|&d| x.shape[d]).collect();
        let repeated = add(&Tensor::zeros(&shape, x.dtype, grad.device())?, &grad)?;
        Ok(vec![Some(repeated.permute(&inverse(&order))?)])
    }
}

/// The permutation that takes dimensions back from `order`.
fn inverse(order: &[usize]) -> Vec<usize> {
    (0..order.len()).map(|d| order.iter().position(|&o| o == d).unwrap_or(d)).collect()
}

/// Gradient of [`max`] and [`min`] over the last dimensions; inputs `x`, the extremes, `grad`.
#[derive(Clone, Copy, Debug)]
struct ExtremeGradient;

impl Op for ExtremeGradient {
    fn name(&self) -> &'static str {
        "extreme_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [x, y, grad] = [0, 1, 2].map(|i| inputs[i].contiguous());
        let (x, y, grad) = (x?, y?, grad?);
        dispatch_float!(self.name(), x.dtype(), T => {
            let (x, y, grad) = (x.as_slice::<T>()?, y.as_slice::<T>()?, grad.as_slice::<T>()?);
            let n = x.len() / y.len();
            for_each_chunk(outputs[0].as_mut_slice::<T>()?, n, |row, dx| {
                let (x, y) = (&x[row * n..][..n], y[row].to_acc());
                let equal = x.iter().filter(|x| x.to_acc() == y).count();
                // NaN equals nothing: 0 times infinity is NaN again.
                let share = grad[row].to_acc() / <T as Float>::Acc::from_f64(equal as f64);
                for (dx, x) in dx.iter_mut().zip(x) {
                    let weight = if x.to_acc() == y { 1.0 } else { 0.0 };
                    *dx = T::from_acc(share * <T as Float>::Acc::from_f64(weight));
                }
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [x, y, grad] = [0, 1, 2].map(|i| inputs[i].contiguous());
        let (x, y, grad) = (x?, y?, grad?);
        let (rows, columns) =
            (to_u32(self.name(), y.len())?, to_u32(self.name(), x.len() / y.len())?);
        let dims = ReduceDims { rows, columns, reduction: 0 };
        let config = LaunchConfig::new([rows.div_ceil(4), 1], 4 * 32);
        kernel::extreme_gradient(config, &mut outputs[0], &x, &y, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// Rows of a matrix that are added up by themselves in the type they are computed in.
const ROWS: usize = 128;

/// Sums over the columns of matrices `x` [.., rows, columns] into `y` [.., columns]: rows in ascending order,
/// [`ROWS`] at a time, and these sums in f64.
fn sum_columns<T: Float<Acc: Math>>(x: &[T], [rows, columns]: [usize; 2], mean: bool, y: &mut [T]) {
    let blocks = rows.div_ceil(ROWS);
    let mut sums = vec![T::Acc::ZERO; y.len() * blocks]; // [.., block, columns]
    for_each_chunk(&mut sums, columns, |i, sums| {
        let (matrix, first) = (i / blocks, i % blocks * ROWS);
        let x = &x[(matrix * rows + first) * columns..][..ROWS.min(rows - first) * columns];
        add_rows(x, sums);
    });
    for (i, y) in y.chunks_exact_mut(columns).enumerate() {
        let sums = &sums[i * blocks * columns..][..blocks * columns];
        for (column, y) in y.iter_mut().enumerate() {
            let parts = sums.iter().skip(column).step_by(columns);
            let sum = parts.map(|part| part.to_f64()).sum::<f64>();
            *y = T::from_acc(T::Acc::from_f64(if mean { sum / rows as f64 } else { sum }));
        }
    }
}

/// Matrices whose columns a launch can sum.
pub(super) const MAX_MATRICES: usize = 65_535;
/// Rows that a block of a GPU sums: 64 of each of its warps.
const ROWS_OF_CHUNK: usize = 512;

/// Sums over the columns of matrices `x` [.., rows, columns] on a GPU, divided: `y` [.., columns]. Chunks of rows are summed
/// by themselves first, so that an order follows from the number of rows alone.
pub(super) fn sum_columns_on_device(
    op: &'static str,
    x: &Tensor,
    [rows, columns]: [usize; 2],
    divisor: f32,
    y: &mut Tensor,
) -> Result<()> {
    let matrices = y.len() / columns;
    let chunks = rows.div_ceil(ROWS_OF_CHUNK);
    let dims = ColumnDims {
        rows: to_u32(op, rows)?,
        columns: to_u32(op, columns)?,
        chunks: to_u32(op, chunks)?,
        rows_of_chunk: ROWS_OF_CHUNK as u32,
        divisor: if chunks == 1 { divisor } else { 1.0 },
    };
    let blocks = to_u32(op, columns.div_ceil(32) * chunks)?;
    let config = LaunchConfig::new([blocks, to_u32(op, matrices)?], 8 * 32);
    if chunks == 1 {
        return kernel::sum_columns(config, y, x, dims);
    }
    let mut sums = Tensor::uninit([matrices, chunks, columns], DType::F32, x.device())?;
    kernel::sum_columns(config, &mut sums, x, dims)?;
    sum_columns_on_device(op, &sums, [chunks, columns], divisor, y)
}

simd! {
    fn add_rows[T: Float<Acc: Math>](_s, x: &[T], sums: &mut [T::Acc]) {
        let mut scratch = Vec::new();
        for row in x.chunks_exact(sums.len()) {
            let row = widened(row, &mut scratch);
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += *x;
            }
        }
    }
}

impl Reduce {
    /// Rows and columns of the matrices in `x` whose columns are summed, where it is that.
    fn columns(&self, x: &Tensor) -> Option<[usize; 2]> {
        let sums = matches!(self.reduction, Reduction::Sum | Reduction::Mean);
        let first = *self.dims.first()?;
        let consecutive = self.dims.iter().enumerate().all(|(i, &d)| d == first + i);
        if !sums || !consecutive {
            return None;
        }
        let behind = first + self.dims.len();
        let columns = x.dims()[behind..].iter().product();
        let rows = x.dims()[first..behind].iter().product();
        (behind < x.rank() && columns > 1 && rows > 0).then_some([rows, columns])
    }

    fn kept(&self, x: &Tensor) -> impl Iterator<Item = usize> {
        (0..x.rank()).filter(|d| !self.dims.contains(d))
    }

    fn row<T: Float<Acc: Math>>(&self, row: &[T]) -> T {
        let reduction = self.reduction;
        let block = |scratch: &mut Vec<T::Acc>, x: &[T]| {
            fold_block(widened(x, scratch), reduction).to_f64()
        };
        // In parallel only where it pays; the blocks are the same either way.
        let blocks: Vec<f64> = if row.len() < 16 * BLOCK {
            let mut scratch = Vec::new();
            row.chunks(BLOCK).map(|x| block(&mut scratch, x)).collect()
        } else {
            let mut blocks = vec![0.0; row.len().div_ceil(BLOCK)];
            for_each_chunk(&mut blocks, 4, |i, sums| {
                let (blocks, mut scratch) = (row[i * 4 * BLOCK..].chunks(BLOCK), Vec::new());
                sums.iter_mut().zip(blocks).for_each(|(sum, x)| *sum = block(&mut scratch, x));
            });
            blocks
        };
        let total = match reduction {
            Reduction::Sum => blocks.iter().sum(),
            Reduction::Mean => blocks.iter().sum::<f64>() / row.len() as f64,
            Reduction::Max => blocks.into_iter().fold(f64::NEG_INFINITY, Real::max),
            Reduction::Min => blocks.into_iter().fold(f64::INFINITY, Real::min),
        };
        T::from_acc(T::Acc::from_f64(total))
    }
}

simd! {
    fn fold_block[A: Math](_s, x: &[A], reduction: Reduction) -> A {
        match reduction {
            Reduction::Sum | Reduction::Mean => crate::cpu::simd::sum(x, |x| x),
            Reduction::Max => fold(x, A::NEG_INFINITY, Real::max, Real::max),
            Reduction::Min => fold(x, -A::NEG_INFINITY, Real::min, Real::min),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        assert_close, check, check_batch, check_gradient, check_nan, devices, random, values,
    };
    use crate::tensor::DType;

    type Case = (&'static str, fn(&Tensor, &[usize]) -> Result<Tensor>, fn(&[f64]) -> f64);

    const CASES: [Case; 4] = [
        ("sum", sum, |x| x.iter().sum()),
        ("mean", mean, |x| x.iter().sum::<f64>() / x.len() as f64),
        ("max", max, |x| x.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        ("min", min, |x| x.iter().copied().fold(f64::INFINITY, f64::min)),
    ];

    #[test]
    fn reductions_equal_their_formulas() {
        let shape = [3, 5, 7, 11];
        for (name, op, formula) in CASES {
            for dims in [&[3][..], &[0], &[1, 2], &[2, 0], &[0, 1, 2, 3], &[]] {
                let reference = |x: &[Vec<f64>]| {
                    let mut groups = std::collections::BTreeMap::<Vec<usize>, Vec<f64>>::new();
                    for (i, &v) in x[0].iter().enumerate() {
                        let index = [i / 385, i / 77 % 5, i / 11 % 7, i % 11];
                        let kept = (0..4).filter(|d| !dims.contains(d)).map(|d| index[d]).collect();
                        groups.entry(kept).or_default().push(v);
                    }
                    groups.values().map(|v| formula(v)).collect()
                };
                // 64 units: up to 36 terms a running sum, which partly cancel.
                check(name, &[random(shape, 1)], 64.0, |x| op(x[0], dims), reference);
                // An extreme is one of the elements: no rounding at all.
                if ["max", "min"].contains(&name) {
                    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
                        let x = random(shape, 1).to_dtype(dtype).unwrap();
                        let found = values(&op(&x, dims).unwrap());
                        assert_eq!(
                            found,
                            reference(&[values(&x)]),
                            "{name} over {dims:?}, {dtype}"
                        );
                    }
                }
            }
            let batch = random([7, 9, 5], 2);
            check_batch(name, &batch, |x| op(x, &[1]));
            for at in [0, 100, 314] {
                check_nan(name, &batch, at, |x| op(x, &[1, 2]));
            }
        }
    }

    #[test]
    fn long_rows_keep_their_digits() {
        let n = 40 * BLOCK + 3;
        let x = random([2, n], 3);
        for (name, op, formula) in CASES {
            let expected: Vec<f64> = values(&x).chunks(n).map(formula).collect();
            for device in devices() {
                let found = op(&x.to_device(device).unwrap(), &[1]).unwrap();
                match name {
                    "max" | "min" => assert_eq!(values(&found), expected, "{name} on {device}"),
                    // Sums that cancel to a thousandth of their terms' magnitudes.
                    _ => assert_close(&found, &expected, 1000.0, &format!("{name} on {device}")),
                }
            }
            check_batch(name, &x, |x| op(x, &[1]));
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for shape in [[3, 4, 5], [1, 1, 1], [7, 2, 33], [2, 65, 3]] {
            let x = random(shape, 61);
            // No two are so near that a difference changes which is the largest.
            let mut order: Vec<usize> = (0..x.len()).collect();
            let of = values(&x);
            order.sort_by(|&a, &b| of[a].total_cmp(&of[b]));
            let mut apart = vec![0.0f32; x.len()];
            order.iter().enumerate().for_each(|(rank, &at)| apart[at] = 0.01 * rank as f32);
            let (x, apart) = ([x], [Tensor::from_vec(apart, shape).unwrap()]);
            for dims in [&[][..], &[0], &[1], &[2], &[2, 0], &[0, 1, 2]] {
                check_gradient("sum", &x, |x| sum(x[0], dims));
                check_gradient("mean", &x, |x| mean(x[0], dims));
                check_gradient("max", &apart, |x| max(x[0], dims));
                check_gradient("min", &apart, |x| min(x[0], dims));
            }
        }
    }

    #[test]
    fn equal_extremes_share_a_gradient() {
        for device in devices() {
            let gradient = |values_of: Vec<f32>| {
                let x = Tensor::from_vec(values_of, [5]).unwrap().to_device(device).unwrap();
                let x = x.variable();
                let gradients = crate::ops::gradient::backward(max(&x, &[0]).unwrap()).unwrap();
                values(gradients.get(&x).unwrap())
            };
            assert_eq!(gradient(vec![2.0, -1.0, 2.0, 0.0, 1.0]), [0.5, 0.0, 0.5, 0.0, 0.0]);
            assert!(gradient(vec![2.0, f32::NAN, 2.0, 0.0, 1.0]).iter().all(|g| g.is_nan()));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random([2, 3], 1);
        assert!(matches!(sum(&x, &[2]), Err(Error::Shape { .. })));
        assert!(matches!(sum(&x, &[1, 1]), Err(Error::Shape { .. })));
        assert!(matches!(
            sum(&Tensor::from_vec(vec![1i64], [1]).unwrap(), &[0]),
            Err(Error::DType { .. })
        ));
        for device in devices() {
            let empty = random([2, 0], 1).to_device(device).unwrap();
            assert!(matches!(max(&empty, &[1]), Err(Error::Shape { .. })));
            assert_eq!(values(&sum(&empty, &[1]).unwrap()), [0.0, 0.0]);
            assert!(values(&mean(&empty, &[1]).unwrap())[0].is_nan());
        }
    }
}
