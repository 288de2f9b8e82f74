//! Matrices of a linear layer in 8 bits: a quarter of the memory of f32, which is what a decoder's step is made of.

use half::{bf16, f16};

use crate::cpu::gemm::{self, Dense, i8_kernel};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_row;
use crate::cpu::simd::{self, Level};
use crate::error::{Error, Result};
use crate::ops::epilogue::{Epilogue, with_epilogue};
use crate::tensor::{DType, Device, Float, Tensor};

/// Most that a byte stands for: -128 is left out, so that the range is symmetric.
const LARGEST: f32 = 127.0;

/// A matrix [N, K] as whole numbers from -127 to 127 in panels of the CPU's product, and what those of a row are multiples of.
pub(in crate::ops) struct Quantized {
    k: usize,
    n: usize,
    level: Level,
    panels: Tensor,
    scales: Vec<f32>,
}

impl Quantized {
    /// Rounds each row of `weight` [N, K], f32, to the nearest multiples of a 127th of its largest magnitude.
    ///
    /// # Errors
    /// `Value` when an element is not finite.
    pub(super) fn new(op: &'static str, weight: &Tensor) -> Result<Self> {
        let weight = weight.contiguous()?;
        let ((n, k), level) = (weight.dims2()?, simd::level());
        let from = weight.as_slice::<f32>()?;
        let mut scales = vec![0.0; n];
        let mut bytes = vec![0i8; n * k];
        if k > 0 {
            for_each_row(&mut scales, 1, |i, scale| {
                let largest = |max: f32, x: &f32| {
                    if x.is_finite() { max.max(x.abs()) } else { f32::INFINITY }
                };
                scale[0] = from[i * k..][..k].iter().fold(0.0, largest) / LARGEST;
            });
            for_each_row(&mut bytes, k, |i, to| {
                let scale = scales[i];
                for (to, x) in to.iter_mut().zip(&from[i * k..]) {
                    let steps = if scale > 0.0 { x / scale } else { 0.0 };
                    *to = steps.round_ties_even().clamp(-LARGEST, LARGEST) as i8;
                }
            });
        }
        if let Some(row) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(Error::value(op, format!("row {row} of the weight is not finite")));
        }
        let kernel = i8_kernel(level);
        let len = gemm::packed_len(kernel, k, n);
        let mut panels = Tensor::uninit([len], DType::U8, Device::Cpu)?;
        let to = bytemuck::cast_slice_mut(panels.as_mut_slice::<u8>()?);
        gemm::pack_rows(kernel, (k, n), &bytes, to);
        Ok(Self { k, n, level, panels, scales })
    }

    /// The matrix [N, K] that it stands for, f32.
    pub(super) fn elements(&self) -> Result<Tensor> {
        let mut bytes = vec![0i8; self.n * self.k];
        let order = gemm::Order::Weights { taps: 1 };
        let panels = bytemuck::cast_slice(self.panels.as_slice::<u8>()?);
        gemm::unpack(i8_kernel(self.level), (self.k, self.n), panels, order, &mut bytes);
        let row = |i: usize| self.scales.get(i / self.k.max(1)).copied().unwrap_or_default();
        let values = bytes.iter().enumerate().map(|(i, &x)| f32::from(x) * row(i));
        Tensor::from_vec(values.collect(), [self.n, self.k])
    }

    /// Multiplies the rows of `x` [.., K] into `out` [.., N]: sums of whole numbers times x in f32, then the row's scale, then
    /// the epilogue.
    pub(in crate::ops) fn multiply(
        &self,
        op: &'static str,
        x: &Tensor,
        epilogue: &Epilogue,
        out: &mut Tensor,
    ) -> Result<()> {
        match x.dtype() {
            DType::F32 => self.run::<f32>(x, epilogue, out),
            DType::F16 => self.run::<f16>(x, epilogue, out),
            DType::BF16 => self.run::<bf16>(x, epilogue, out),
            found => Err(Error::DType { op, expected: "f32, f16 or bf16", found }),
        }
    }

    fn run<T: Float<Acc = f32>>(
        &self,
        x: &Tensor,
        epilogue: &Epilogue,
        out: &mut Tensor,
    ) -> Result<()>
    where
        T::Acc: Math,
    {
        let (x, m) = (x.contiguous()?, out.len() / self.n);
        let panels: &[i8] = bytemuck::cast_slice(self.panels.as_slice::<u8>()?);
        let (size, rows) = ((m, self.n, self.k), Dense { stride: self.k });
        with_epilogue::<T>(epilogue, out, |out, finish| {
            let x = x.as_slice::<T>()?;
            gemm::gemm(
                i8_kernel(self.level),
                size,
                x,
                &rows,
                panels,
                out,
                &|row, column, sums, out| {
                    for (sum, scale) in sums.iter_mut().zip(&self.scales[column..]) {
                        *sum *= scale;
                    }
                    finish(row, column, sums, out);
                },
            );
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::simd;
    use crate::ops::matmul::{Activation, Epilogue, linear};
    use crate::ops::testing::{Sum, assert_sums, bits, devices, random, random_in, values};
    use crate::ops::weight::{Layout, Weight};
    use crate::tensor::{DType, Device, Tensor};

    const SIZES: [(usize, usize, usize); 6] =
        [(1, 1, 1), (1, 768, 100), (7, 33, 65), (13, 321, 17), (150, 645, 50), (3, 72, 24)];

    #[test]
    fn products_are_those_of_the_elements_it_stands_for() {
        simd::at_each_level(|level| {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for (m, k, n) in SIZES {
                    let (x, w) = (random_in(dtype, [m, k], 1), random([n, k], 2));
                    let quantized = Weight::quantized(&w, dtype).unwrap();
                    let y = linear(&x, &quantized, Epilogue::default()).unwrap();
                    let (x, w) = (values(&x), values(&whole(&w)));
                    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).collect();
                    let exact: Vec<Sum> =
                        x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect();
                    assert_sums(
                        &y,
                        &exact,
                        k,
                        &format!("{} {dtype} [{m}, {k}, {n}]", level.name()),
                    );
                }
            }
        });
    }

    /// The definition of what it stands for, in f32.
    fn whole(weight: &Tensor) -> Tensor {
        let (n, k) = weight.dims2().unwrap();
        let rows = weight.to_vec::<f32>().unwrap();
        let rows = rows.chunks(k).flat_map(|row| {
            let scale = row.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
            row.iter().map(move |x| (x / scale).round_ties_even() * scale)
        });
        Tensor::from_vec(rows.collect(), [n, k]).unwrap()
    }

    #[test]
    fn what_it_stands_for_is_near_and_can_be_read_back() {
        let w = random([37, 65], 3);
        let quantized = Weight::quantized(&w, DType::F32).unwrap();
        assert_eq!((quantized.dtype(), quantized.tensor().is_none()), (DType::F32, true));
        let back = quantized.elements().unwrap();
        assert_eq!(values(&back), values(&whole(&w)));
        for (row, (back, w)) in values(&back).chunks(65).zip(values(&w).chunks(65)).enumerate() {
            let largest = w.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
            for (back, w) in back.iter().zip(w) {
                // Half a step, and the roundings of the quotient and of the product.
                let tolerance = largest / 254.0 * (1.0 + 127.0 * 4.0 * f64::from(f32::EPSILON));
                assert!((back - w).abs() <= tolerance, "row {row}: {back} instead of {w}");
            }
        }
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_or_on_threads() {
        let (k, n) = (700, 83);
        simd::at_each_level(|level| {
            for dtype in [DType::F32, DType::BF16] {
                let x = random_in(dtype, [64, k], 3);
                let weight = Weight::quantized(&random([n, k], 4), dtype).unwrap();
                let bias = random([n], 5);
                let product = |x: &Tensor| {
                    let epilogue = Epilogue {
                        bias: Some(&bias),
                        act: Activation::Silu,
                        ..Epilogue::default()
                    };
                    bits(&linear(x, &weight, epilogue).unwrap())
                };
                let whole = product(&x);
                assert!(simd::pool(1).install(|| product(&x)) == whole, "{} {dtype}", level.name());
                for (start, m) in [(0, 1), (33, 7), (3, 12), (1, 40)] {
                    let part = product(&x.narrow(0, start, m).unwrap());
                    assert!(
                        part == whole[start * n..][..m * n],
                        "{} {dtype} {start} + {m}",
                        level.name()
                    );
                }
            }
        });
    }

    #[test]
    fn rows_of_zeros_stay_so_and_what_is_not_finite_is_an_error() {
        let mut w = random([3, 5], 1).to_vec::<f32>().unwrap();
        w[5..10].fill(0.0);
        let quantized = Weight::quantized(&Tensor::from_slice(&w, [3, 5]).unwrap(), DType::F32);
        assert_eq!(values(&quantized.unwrap().elements().unwrap())[5..10], [0.0; 5]);
        for bad in [f32::NAN, f32::INFINITY] {
            w[7] = bad;
            let message = Weight::quantized(&Tensor::from_slice(&w, [3, 5]).unwrap(), DType::F32);
            let message = message.err().unwrap().to_string();
            assert!(message.contains("row 1"), "{message}");
        }
        assert!(Weight::quantized(&random([3], 1), DType::F32).is_err());
        assert!(Weight::quantized(&random([3, 2], 1), DType::F64).is_err());
        assert_eq!(
            Weight::quantized(&random([3, 2], 1), DType::BF16).unwrap().layout(),
            Layout::Matrix
        );
    }

    #[test]
    fn a_gpu_has_no_kernel_for_it() {
        for device in devices().filter(|device| *device != Device::Cpu) {
            let weight = random([4, 8], 1).to_device(device).unwrap();
            let error = Weight::quantized(&weight, DType::F32).err().unwrap();
            assert!(matches!(error, crate::Error::NoKernel { .. }), "{error}");
        }
    }
}
