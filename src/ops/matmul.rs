//! Matrix products: a linear layer over weights in their kernel's layout with its epilogue fused, and the plain
//! product. Kernels: `kernels/matmul.cu`.

pub(super) mod cuda;
mod gated;

use half::{bf16, f16};

use super::epilogue::{Settings, WEIGHT, X, with_epilogue};
use super::gradient::Call;
use super::weight::{Layout, Packed, Panels, Weight};
use super::weight_gradient::{Geometry, weight_gradient};
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::gemm::{self, Dense, MicroKernel, Order, Rows};
use crate::cpu::math::Math;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Float, Tensor};

pub use super::activation::Activation;
pub use super::epilogue::Epilogue;
pub use gated::linear_geglu;

impl Panels {
    /// Multiplies the rows of A, gathered from `x`, into `out` [.., N].
    pub(super) fn multiply(
        &self,
        op: &'static str,
        x: &Tensor,
        rows: &impl Rows,
        epilogue: &Epilogue,
        out: &mut Tensor,
    ) -> Result<()> {
        use gemm::{bf16_dot_kernel, bf16_kernel, f16_kernel, f32_kernel, f64_kernel};
        let l = self.level;
        match (x.dtype(), self.dtype()) {
            (DType::F32, DType::F32) => {
                self.run::<f32, _, _>(f32_kernel(l), x, rows, epilogue, out)
            }
            (DType::F32, DType::F16) => {
                self.run::<f32, _, _>(f16_kernel(l), x, rows, epilogue, out)
            }
            (DType::F32, DType::BF16) => {
                self.run::<f32, _, _>(bf16_kernel(l), x, rows, epilogue, out)
            }
            (DType::F16, DType::F16) => {
                self.run::<f16, _, _>(f16_kernel(l), x, rows, epilogue, out)
            }
            (DType::BF16, DType::BF16) => match bf16_dot_kernel(l) {
                Some(kernel) => self.run::<bf16, _, _>(kernel, x, rows, epilogue, out),
                None => self.run::<bf16, _, _>(bf16_kernel(l), x, rows, epilogue, out),
            },
            (DType::F64, DType::F64) => {
                self.run::<f64, _, _>(f64_kernel(l), x, rows, epilogue, out)
            }
            (found, w) => Err(Error::DType { op, expected: w.name(), found }),
        }
    }

    fn run<T: Float<Acc: Math>, A: Float, B: Float>(
        &self,
        kernel: MicroKernel<A, B, T::Acc>,
        x: &Tensor,
        rows: &impl Rows,
        epilogue: &Epilogue,
        out: &mut Tensor,
    ) -> Result<()> {
        let x = x.contiguous()?;
        let (panels, m) = (self.elements.as_slice::<B>()?, out.len() / self.n);
        with_epilogue::<T>(epilogue, out, |out, finish| {
            gemm::gemm(kernel, (m, self.n, self.k), x.as_slice::<T>()?, rows, panels, out, finish);
            Ok(())
        })
    }
}

/// [`linear`]; inputs `x`, `weight`, and the epilogue's `bias`, `add_channel`, `residual`.
#[derive(Clone, Copy, Debug)]
struct Linear {
    epilogue: Settings,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, w) = (&inputs[X], inputs.weight(WEIGHT));
        let &[n, k] = &**w.shape() else {
            return Err(Error::expected_shape(self.name(), "weight", "[N, K]", w.shape()));
        };
        if x.shape().last() != Some(&k) {
            let expected = format!("[.., {k}] to go with a weight of [{n}, {k}]");
            return Err(Error::expected_shape(self.name(), "x", &expected, x.shape()));
        }
        if w.layout() != Layout::Matrix {
            return Err(Error::value(
                self.name(),
                "a weight that is laid out for another operation",
            ));
        }
        w.check_dtype(self.name(), x.dtype())?;
        let out = Meta { shape: x.shape().with(x.rank() - 1, n), dtype: x.dtype() };
        self.epilogue.with(inputs).check(self.name(), &out)?;
        Ok(vec![out])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, epilogue, out) = (&inputs[X], self.epilogue.with(inputs), &mut outputs[0]);
        match inputs.weight(WEIGHT).packed()? {
            Packed::Panels(w) => w.multiply(self.name(), x, &Dense { stride: w.k }, &epilogue, out),
            Packed::Quantized(w) => w.multiply(self.name(), x, &epilogue, out),
            _ => unreachable!("a matrix is packed as panels"),
        }
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let Packed::Rows(w) = inputs.weight(WEIGHT).packed()? else {
            unreachable!("a matrix on a GPU is packed as rows")
        };
        let x = inputs[X].contiguous()?;
        if x.dtype() != w.dtype() {
            return Err(Error::no_kernel("linear with 16-bit weights of f32"));
        }
        cuda::multiply_rows(
            self.name(),
            (&x, w),
            None,
            &self.epilogue.with(inputs),
            &mut outputs[0],
        )
    }

    fn saves(&self) -> Saves {
        Saves { inputs: Settings::SAVED, result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (x, weight) = (call.tensor(X)?, call.weight(WEIGHT)?);
        let product = |epilogue: Epilogue| linear(x, weight, epilogue);
        let (g, [bias, add_channel, residual]) = self.epilogue.backward(call, grad, product)?;
        let g = rows(&g)?; // [M, N]
        let of_x = call.wants(X).then(|| {
            let weight = weight.elements()?.to_dtype(g.dtype())?; // [N, K]
            matmul(&g, &weight)?.reshape(*x.shape()) // [.., K]
        });
        let of_weight = call.wants(WEIGHT).then(|| {
            let x = rows(x)?; // [M, K]
            by_weight(&g, &x)?.to_dtype(weight.meta().dtype)
        });
        Ok(vec![of_x.transpose()?, of_weight.transpose()?, bias, add_channel, residual])
    }
}

/// `grad` [M, N], `x` [M, K] -> [N, K]
fn by_weight(grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    let image = |t: &Tensor| t.reshape([1, 1, t.dim(0), t.dim(1)]);
    let tap = Geometry { kernel: [1, 1], stride: 1, before: [0, 0] };
    weight_gradient(&image(grad)?, &image(x)?, tap)?.reshape([grad.dim(1), x.dim(1)])
}

/// [.., N] -> [M, N]
fn rows(x: &Tensor) -> Result<Tensor> {
    let n = x.dim(x.rank() - 1);
    x.reshape([x.len() / n.max(1), n])
}

/// A linear layer: `epilogue(x * weight^T)`, [.., K] -> [.., N], in x's dtype.
///
/// `weight` has the layout [`Matrix`](super::weight::Layout::Matrix); `x` has its dtype, or is f32 over 16-bit
/// weights. Sums are taken in f32 (f64 for f64). `add_channel` takes x's first dimension as the batch.
///
/// # Errors
/// `Shape` and `DType` when x or the epilogue's tensors do not fit; `NoKernel` on a GPU for f32 over 16-bit weights.
pub fn linear(x: &Tensor, weight: &Weight, epilogue: Epilogue) -> Result<Tensor> {
    apply(Linear { epilogue: epilogue.settings() }, &epilogue.slots(x, weight))
}

/// [`matmul`]; inputs `a`, `b`.
#[derive(Clone, Copy, Debug)]
struct MatMul;

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (a, b) = (&inputs[0], &inputs[1]);
        let mismatch = || {
            Error::shape(
                self.name(),
                format!(
                    "{} by {}: expected [.., M, K] by [.., K, N] or [K, N]",
                    a.shape(),
                    b.shape()
                ),
            )
        };
        let (&[ref batch_a @ .., _, k], &[ref batch_b @ .., k_b, n]) = (a.dims(), b.dims()) else {
            return Err(mismatch());
        };
        if k != k_b || !(batch_b.is_empty() || batch_a == batch_b) {
            return Err(mismatch());
        }
        if a.dtype() != b.dtype() {
            return Err(Error::DType {
                op: self.name(),
                expected: a.dtype().name(),
                found: b.dtype(),
            });
        }
        Ok(vec![Meta { shape: a.shape().with(a.rank() - 1, n), dtype: a.dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (a, b, out) = (&inputs[0], &inputs[1], &mut outputs[0]);
        let (k, n) = (b.dim(b.rank() - 2), b.dim(b.rank() - 1));
        let batch = b.dims()[..b.rank() - 2].iter().product::<usize>();
        let (a, b) = (a.reshape([batch, out.len() / (batch * n), k])?, b.reshape([batch, k, n])?);
        let product = |i, out: &mut Tensor| {
            let b =
                Panels::new(self.name(), &b.narrow(0, i, 1)?, b.dtype(), (k, n), Order::Matrix)?;
            let a = a.narrow(0, i, 1)?;
            b.multiply(self.name(), &a, &Dense { stride: k }, &Epilogue::default(), out)
        };
        if batch == 1 {
            return product(0, out);
        }
        let parts = (0..batch).map(|i| {
            let mut part = Tensor::uninit([out.len() / (batch * n), n], out.dtype(), Device::Cpu)?;
            product(i, &mut part)?;
            Ok(part)
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        crate::dispatch_float!(self.name(), out.dtype(), T => {
            let len = out.len() / batch;
            for (to, from) in out.as_mut_slice::<T>()?.chunks_exact_mut(len).zip(&parts) {
                to.copy_from_slice(from.as_slice::<T>()?);
            }
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let a = inputs[0].contiguous()?;
        let b = inputs[1].transpose(inputs[1].rank() - 2, inputs[1].rank() - 1)?.contiguous()?; // [.., N, K]
        let batch = b.dims()[..b.rank() - 2].iter().product();
        cuda::multiply_rows(
            self.name(),
            (&a, &b),
            Some(batch),
            &Epilogue::default(),
            &mut outputs[0],
        )
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (a, b) = (call.tensor(0)?, call.tensor(1)?);
        let swapped = |t: &Tensor| t.transpose(t.rank() - 2, t.rank() - 1);
        let of_a = call.wants(0).then(|| matmul(grad, &swapped(b)?)); // [.., M, K]
        let of_b = call.wants(1).then(|| {
            if a.rank() == b.rank() {
                matmul(&swapped(a)?, grad) // [.., K, N]
            } else {
                matmul(&rows(a)?.transpose(0, 1)?, &rows(grad)?) // [K, N]
            }
        });
        Ok(vec![of_a.transpose()?, of_b.transpose()?])
    }
}

/// The matrix product `a * b`: [.., M, K] by [.., K, N] with equal leading dimensions, or by one [K, N].
///
/// It packs b on every call: for weights there is [`linear`].
///
/// # Errors
/// `Shape` and `DType` when they do not fit.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply(MatMul, &tensors(&[a, b]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd;
    use crate::ops::testing::{
        Sum, assert_sums, bits, check_batch, check_gradient, check_sums, devices, random,
        random_in, shapes, values,
    };
    use crate::ops::weight::Layout;

    /// A weight [N, K] in the layout of the kernel.
    fn frozen(weight: &Tensor, dtype: DType) -> Weight {
        Weight::frozen(weight, Layout::Matrix, dtype).unwrap()
    }

    const DTYPES: [(DType, DType); 6] = [
        (DType::F32, DType::F32),
        (DType::F16, DType::F16),
        (DType::BF16, DType::BF16),
        (DType::F64, DType::F64),
        (DType::F32, DType::F16),
        (DType::F32, DType::BF16),
    ];

    /// The exact product of the rows of x [.., K] by the rows of w [N, K].
    fn products(x: &[f64], w: &[f64], k: usize) -> Vec<Sum> {
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).collect::<Sum>();
        x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
    }

    const SIZES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (1, 7, 33),
        (7, 33, 1),
        (33, 65, 31),
        (13, 321, 17),
        (150, 645, 50),
        // Whole vectors of k: more than a GPU's tile has rows, columns and stages, and less.
        (129, 136, 200),
        (3, 72, 24),
    ];

    #[test]
    fn linear_is_the_formula_at_odd_sizes() {
        simd::at_each_level(|level| {
            for (m, k, n) in SIZES {
                check_sums(
                    &format!("linear [{m}, {k}, {n}], {}", level.name()),
                    &[random([m, k], 1), random([n, k], 2)],
                    k,
                    |t| {
                        linear(
                            t[0],
                            &Weight::frozen(t[1], Layout::Matrix, t[1].dtype())?,
                            Epilogue::default(),
                        )
                    },
                    |t| products(&t[0], &t[1], k),
                );
            }
        });
    }

    #[test]
    fn weights_of_16_bits_multiply_f32() {
        simd::at_each_level(|level| {
            for w_type in [DType::F16, DType::BF16] {
                for (m, k, n) in SIZES {
                    let (x, w) = (random([m, k], 1), random_in(w_type, [n, k], 2));
                    let y = linear(&x, &frozen(&w, w_type), Epilogue::default()).unwrap();
                    let exact = products(&values(&x), &values(&w), k);
                    assert_sums(
                        &y,
                        &exact,
                        k,
                        &format!("{} {w_type} [{m}, {k}, {n}]", level.name()),
                    );
                }
            }
        });
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_or_on_threads() {
        let (k, n) = (700, 83);
        simd::at_each_level(|level| {
            let one_thread = simd::pool(1);
            for (x_type, w_type) in DTYPES {
                let x = random_in(x_type, [512, k], 3);
                let packed = frozen(&random_in(w_type, [n, k], 4), w_type);
                let product = |x: &Tensor| bits(&linear(x, &packed, Epilogue::default()).unwrap());
                let whole = product(&x);
                assert!(one_thread.install(|| product(&x)) == whole, "{} {x_type}", level.name());
                for (start, m) in [(0, 1), (311, 1), (505, 7), (64, 64), (1, 145)] {
                    let part = product(&x.narrow(0, start, m).unwrap());
                    assert!(
                        part == whole[start * n..][..m * n],
                        "{} {x_type} {start} + {m}",
                        level.name()
                    );
                }
            }
        });
    }

    #[test]
    fn the_epilogue_is_the_formula() {
        let (images, t, k, n) = (3, 5, 40, 70);
        let exact_act = |act, x: f64| match act {
            Activation::Identity => x,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => x / 2.0 * (1.0 + crate::cpu::math::erf_f64(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / 2.0 * (1.0 + inner.tanh())
            }
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        };
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let x = random_in(dtype, [images, t, k], 5);
            let w = random_in(dtype, [n, k], 6);
            let (bias, add) = (random_in(acc, [n], 7), random_in(dtype, [images, n], 8));
            let residual = random_in(dtype, [images, t, n], 9);
            let packed = frozen(&w, dtype);
            for act in Activation::ALL {
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    add_channel: Some(&add),
                    residual: Some(&residual),
                    act,
                    scale: 0.75,
                };
                let y = linear(&x, &packed, epilogue).unwrap();
                let on_device = devices().skip(1).filter(|_| dtype != DType::F64).map(|device| {
                    let [x, w, bias, add, residual] =
                        [&x, &w, &bias, &add, &residual].map(|t| t.to_device(device).unwrap());
                    let epilogue = Epilogue {
                        bias: Some(&bias),
                        add_channel: Some(&add),
                        residual: Some(&residual),
                        ..epilogue
                    };
                    linear(&x, &frozen(&w, dtype), epilogue).unwrap()
                });
                let results: Vec<Tensor> = [y].into_iter().chain(on_device).collect();
                let [x, w, bias, add, residual] = [&x, &w, &bias, &add, &residual].map(values);
                let expected: Vec<Sum> = products(&x, &w, k)
                    .into_iter()
                    .enumerate()
                    .map(|(i, Sum { exact, magnitude })| {
                        let (row, j) = (i / n, i % n);
                        let sum = exact + bias[j] + add[row / t * n + j];
                        // Every activation's slope is below 1.2; `vector_*` are exact to 4 ulp.
                        let exact = exact_act(act, sum) * 0.75 + residual[i];
                        Sum { exact, magnitude: 1.2 * magnitude + 4.0 }
                    })
                    .collect();
                for y in results {
                    assert_sums(&y, &expected, k, &format!("{act:?} on {}", y.device()));
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let f64s = |shape: &[usize], seed| random_in(DType::F64, shape, seed);
        let plain = |w: &Tensor| Weight::plain(w, Layout::Matrix, w.dtype());
        for (x, k, n) in [(&[1][..], 1, 1), (&[7], 5, 3), (&[2, 5], 33, 17), (&[3, 4, 2], 6, 9)] {
            let (of_x, of_y) = ([x, &[k]].concat(), [x, &[n]].concat());
            let images = if x.is_empty() { 1 } else { x[0] };
            let inputs = [
                f64s(&of_x, 21),
                f64s(&[n, k], 22),
                f64s(&[n], 23),
                f64s(&[images, n], 24),
                f64s(&of_y, 25),
            ];
            check_gradient("linear", &inputs[..2], |t| {
                linear(t[0], &plain(t[1])?, Epilogue::default())
            });
            for act in Activation::ALL {
                check_gradient(&format!("linear, {act:?}"), &inputs, |t| {
                    let epilogue = Epilogue {
                        bias: Some(t[2]),
                        add_channel: Some(t[3]),
                        residual: Some(t[4]),
                        act,
                        scale: 0.75,
                    };
                    linear(t[0], &plain(t[1])?, epilogue)
                });
            }
            // A frozen weight lets the gradient through to x.
            check_gradient("linear, frozen", &inputs[..1], |t| {
                let weight = inputs[1].to_dtype(t[0].dtype())?.to_device(t[0].device())?;
                linear(t[0], &frozen(&weight, t[0].dtype()), Epilogue::default())
            });
        }
        for [m, k, n] in shapes() {
            let inputs = [
                f64s(&[2, m, k], 28),
                f64s(&[n, k], 29),
                f64s(&[n], 30),
                f64s(&[2, n], 31),
                f64s(&[2, m, n], 32),
            ];
            check_gradient("linear", &inputs, |t| {
                let epilogue = Epilogue {
                    bias: Some(t[2]),
                    add_channel: Some(t[3]),
                    residual: Some(t[4]),
                    act: Activation::Silu,
                    scale: 0.75,
                };
                linear(t[0], &plain(t[1])?, epilogue)
            });
            check_gradient("matmul", &[f64s(&[2, m, k], 33), f64s(&[2, k, n], 34)], |t| {
                matmul(t[0], t[1])
            });
        }
        for (a, b) in [
            (&[1, 1][..], &[1, 1][..]),
            (&[5, 7], &[7, 3]),
            (&[2, 5, 7], &[2, 7, 3]),
            (&[2, 5, 7], &[7, 3]),
        ] {
            check_gradient("matmul", &[f64s(a, 26), f64s(b, 27)], |t| matmul(t[0], t[1]));
        }
    }

    #[test]
    fn matmul_is_the_formula_at_odd_sizes() {
        for (batch, m, k, n) in [(1, 1, 1, 1), (7, 1, 33, 5), (2, 65, 31, 7), (3, 7, 1, 18)] {
            check_sums(
                &format!("matmul {batch} x [{m}, {k}, {n}]"),
                &[random([batch, m, k], 31), random([batch, k, n], 32)],
                k,
                |t| matmul(t[0], t[1]),
                |t| {
                    let element = |i: usize| {
                        let (b, row, column) = (i / (m * n), i / n % m, i % n);
                        let (a, b) = (&t[0][(b * m + row) * k..], &t[1][b * k * n + column..]);
                        (0..k).map(|l| a[l] * b[l * n]).collect()
                    };
                    (0..batch * m * n).map(element).collect()
                },
            );
        }
    }

    #[test]
    fn matmul_is_a_batch_of_products() {
        let (batch, m, k, n) = (3, 7, 33, 18);
        let a = random([batch, k, m], 10).transpose(1, 2).unwrap();
        let b = random([batch, n, k], 11);
        let c = matmul(&a, &b.transpose(1, 2).unwrap()).unwrap();
        assert_eq!(c.dims(), [batch, m, n]);
        for i in 0..batch {
            let packed = frozen(&b.narrow(0, i, 1).unwrap().reshape([n, k]).unwrap(), DType::F32);
            let row = linear(&a.narrow(0, i, 1).unwrap(), &packed, Epilogue::default()).unwrap();
            assert_eq!(bits(&c.narrow(0, i, 1).unwrap()), bits(&row));
        }
        let one = b.narrow(0, 0, 1).unwrap().reshape([n, k]).unwrap().transpose(0, 1).unwrap();
        let first = matmul(&a, &one).unwrap().narrow(0, 0, 1).unwrap();
        assert_eq!(bits(&first), bits(&c.narrow(0, 0, 1).unwrap()));
    }

    #[test]
    fn images_do_not_depend_on_their_neighbours() {
        // Of more rows than a tile has; k with and without whole vectors.
        for k in [72, 45] {
            let w = random([140, k], 14);
            check_batch("linear", &random([7, 21, k], 15), |x| {
                let w = w.to_dtype(x.dtype())?.to_device(x.device())?;
                linear(x, &frozen(&w, x.dtype()), Epilogue::default())
            });
        }
        check_batch("matmul", &random([7, 21, 40], 16), |a| {
            let b = random([40, 33], 17).to_dtype(a.dtype())?.to_device(a.device())?;
            matmul(a, &b)
        });
    }

    #[test]
    fn not_a_number_stays_in_its_row() {
        let mut x = values(&random([9, 40], 12));
        x[4 * 40 + 39] = f64::NAN;
        let x = Tensor::from_vec(x, [9, 40]).unwrap().to_dtype(DType::F32).unwrap();
        let packed = frozen(&random([20, 40], 13), DType::F32);
        for act in [Activation::Identity, Activation::Silu, Activation::Gelu, Activation::QuickGelu]
        {
            let y = values(&linear(&x, &packed, Epilogue { act, ..Default::default() }).unwrap());
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i / 20 == 4)));
        }
    }

    #[test]
    fn empty_products() {
        let packed = frozen(&random([5, 0], 1), DType::F32);
        let bias = random([5], 2);
        let y = linear(&random([2, 0], 3), &packed, Epilogue::bias(Some(&bias))).unwrap();
        assert_eq!(values(&y), values(&bias).repeat(2));
        let packed = frozen(&random([5, 3], 1), DType::F32);
        assert!(linear(&random([0, 3], 3), &packed, Epilogue::default()).unwrap().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let packed = frozen(&random([5, 3], 1), DType::F32);
        let x = random([2, 3], 2);
        let wrong = random([2, 3], 3);
        let shape = |name: &str, result: Result<Tensor>| match result {
            Err(Error::Shape { op, .. }) => assert_eq!(op, name),
            other => panic!("{name}: {other:?}"),
        };
        let linear = |x: &Tensor, epilogue| linear(x, &packed, epilogue);
        shape("linear", linear(&random([2, 4], 2), Epilogue::default()));
        let other = linear(&random_in(DType::BF16, [2, 3], 2), Epilogue::default());
        assert!(matches!(other, Err(Error::DType { op: "linear", .. })), "{other:?}");
        shape("linear", linear(&x, Epilogue::bias(Some(&wrong))));
        shape("linear", linear(&x, Epilogue { residual: Some(&wrong), ..Default::default() }));
        shape("linear", linear(&x, Epilogue { add_channel: Some(&wrong), ..Default::default() }));
        shape("matmul", matmul(&x, &wrong));
        shape("matmul", matmul(&random([3], 1), &wrong));
    }
}
