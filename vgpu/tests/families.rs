//! Kernels in the usual style of the field agree with references in double precision.
#![cfg(vgpu_supported)]

mod common;

use common::{Rng, from_bf16, gpu, kernel, to_bf16};
use vgpu::{Arguments, Counters, Gpu};

const FILE: &str = "families.cu";

fn bf16s(rng: &mut Rng, n: usize) -> Vec<u16> {
    (0..n).map(|_| to_bf16(rng.unit())).collect()
}

fn run_gemm(
    gpu: &mut Gpu,
    ptx: &str,
    m: usize,
    n: usize,
    k: usize,
) -> (Counters, Vec<f32>, Vec<u16>, Vec<u16>) {
    let mut rng = Rng(7);
    let (a, b) = (bf16s(&mut rng, m * k), bf16s(&mut rng, n * k));
    let gemm = kernel(gpu, ptx, "gemm").unwrap();
    let (da, db) = (gpu.upload(&a).unwrap(), gpu.upload(&b).unwrap());
    let dc = gpu.allocate(m * n * 4).unwrap();
    let args = Arguments::new()
        .pointer(da)
        .pointer(db)
        .pointer(dc)
        .int(m as i32)
        .int(n as i32)
        .int(k as i32);
    let grid = [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1];
    let counters = gpu.launch(&gemm, grid, [128, 1, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
    (counters, gpu.download(dc, m * n).unwrap(), a, b)
}

#[test]
fn tensor_core_gemm() {
    let Some(ptx) = common::compile(FILE) else { return };
    for (m, n, k) in [(64, 64, 32), (65, 31, 72), (1, 200, 8), (130, 67, 136)] {
        let (_, c, a, b) = run_gemm(&mut gpu(), &ptx, m, n, k);
        for row in 0..m {
            for column in 0..n {
                let terms =
                    (0..k).map(|i| from_bf16(a[row * k + i]) * from_bf16(b[column * k + i]));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()));
                // k roundings to single precision of partial sums that never exceed the sum of magnitudes.
                let tolerance = k as f64 * 2f64.powi(-24) * size;
                let error = (c[row * n + column] as f64 - sum).abs();
                assert!(
                    error <= tolerance,
                    "{m}x{n}x{k} at {row}, {column}: {error:e} > {tolerance:e}"
                );
            }
        }
    }
}

#[test]
fn flash_attention() {
    let Some(ptx) = common::compile(FILE) else { return };
    let d = 64;
    for (heads, queries, keys) in [(1, 32, 32), (2, 33, 77), (1, 7, 1), (3, 65, 100)] {
        let mut gpu = gpu();
        let mut rng = Rng(11);
        let q = bf16s(&mut rng, heads * queries * d);
        let k = bf16s(&mut rng, heads * keys * d);
        let v = bf16s(&mut rng, heads * keys * d);
        let attention = kernel(&mut gpu, &ptx, "attention").unwrap();
        let (dq, dk, dv) =
            (gpu.upload(&q).unwrap(), gpu.upload(&k).unwrap(), gpu.upload(&v).unwrap());
        let out = gpu.allocate(heads * queries * d * 4).unwrap();
        let scale = 0.125f32;
        let args = Arguments::new().pointer(dq).pointer(dk).pointer(dv).pointer(out);
        let args = args.int(queries as i32).int(keys as i32).float(scale);
        let grid = [queries.div_ceil(32) as u32, heads as u32, 1];
        gpu.launch(&attention, grid, [64, 1, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
        let o: Vec<f32> = gpu.download(out, heads * queries * d).unwrap();
        for h in 0..heads {
            for i in 0..queries {
                let row = |x: &[u16], len: usize, t: usize| -> Vec<f64> {
                    x[(h * len + t) * d..][..d].iter().map(|e| from_bf16(*e)).collect()
                };
                let qi = row(&q, queries, i);
                let scores: Vec<f64> = (0..keys)
                    .map(|t| {
                        row(&k, keys, t).iter().zip(&qi).map(|(a, b)| a * b).sum::<f64>()
                            * scale as f64
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for e in 0..d {
                    let exact: f64 =
                        (0..keys).map(|t| weights[t] / total * row(&v, keys, t)[e]).sum();
                    // The weights are rounded to bf16 (2^-9 relative) and values are at most 1.
                    let tolerance = 2f64.powi(-8);
                    let error = (o[(h * queries + i) * d + e] as f64 - exact).abs();
                    assert!(error <= tolerance, "head {h} query {i} element {e}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn implicit_gemm_convolution() {
    let Some(ptx) = common::compile(FILE) else { return };
    for (batch, height, width, channels, out_channels, stride) in
        [(1, 5, 7, 3, 4, 1), (2, 9, 6, 5, 17, 2), (1, 1, 1, 1, 1, 1)]
    {
        let mut gpu = gpu();
        let mut rng = Rng(3);
        let (oh, ow) = ((height - 1) / stride + 1, (width - 1) / stride + 1);
        let x = rng.vec(batch * height * width * channels);
        let w = rng.vec(9 * channels * out_channels);
        let bias = rng.vec(out_channels);
        let conv = kernel(&mut gpu, &ptx, "convolution").unwrap();
        let (dx, dw, db) =
            (gpu.upload(&x).unwrap(), gpu.upload(&w).unwrap(), gpu.upload(&bias).unwrap());
        let pixels = batch * oh * ow;
        let dy = gpu.allocate(pixels * out_channels * 4).unwrap();
        let shape = [batch, height, width, channels, oh, ow, out_channels, stride];
        let shape: Vec<u8> = shape.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
        let args = Arguments::new().pointer(dx).pointer(dw).pointer(db).pointer(dy).bytes(&shape);
        let grid = [pixels.div_ceil(16) as u32, out_channels.div_ceil(16) as u32, 1];
        gpu.launch(&conv, grid, [16, 16, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
        let y: Vec<f32> = gpu.download(dy, pixels * out_channels).unwrap();
        for p in 0..pixels {
            let (ox, oy, image) = (p % ow, p / ow % oh, p / (ow * oh));
            for o in 0..out_channels {
                let mut sum = bias[o] as f64;
                for tap in 0..9 {
                    let (iy, ix) = (
                        (oy * stride + tap / 3).wrapping_sub(1),
                        (ox * stride + tap % 3).wrapping_sub(1),
                    );
                    if iy < height && ix < width {
                        for c in 0..channels {
                            let value =
                                x[((image * height + iy) * width + ix) * channels + c] as f64;
                            sum += value * w[(tap * channels + c) * out_channels + o] as f64;
                        }
                    }
                }
                let exact = sum / (1.0 + (-sum).exp());
                // 9 channels roundings of terms up to 1, and an approximate exponential of a few ulp.
                let tolerance = (9 * channels + 8) as f64 * 2f64.powi(-23) * (1.0 + sum.abs());
                let error = (y[p * out_channels + o] as f64 - exact).abs();
                assert!(error <= tolerance, "pixel {p} channel {o}: {error:e} > {tolerance:e}");
            }
        }
    }
}

#[test]
fn reduction_with_atomics() {
    let Some(ptx) = common::compile(FILE) else { return };
    for n in [1usize, 33, 1000, 5001] {
        let mut gpu = gpu();
        let x = Rng(5).vec(n);
        let sum = kernel(&mut gpu, &ptx, "sum_of_squares").unwrap();
        let dx = gpu.upload(&x).unwrap();
        let total = gpu.upload(&[0f64]).unwrap();
        let args = Arguments::new().pointer(dx).pointer(total).int(n as i32);
        gpu.launch(&sum, [5, 1, 1], [96, 1, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
        let found = gpu.download::<f64>(total, 1).unwrap()[0];
        let exact: f64 = x.iter().map(|v| *v as f64 * *v as f64).sum();
        // n roundings to double precision.
        assert!(
            (found - exact).abs() <= n as f64 * f64::EPSILON * exact,
            "{n}: {found} against {exact}"
        );
    }
}

#[test]
fn philox_known_answers() {
    let Some(ptx) = common::compile(FILE) else { return };
    let mut gpu = gpu();
    let philox = kernel(&mut gpu, &ptx, "philox").unwrap();
    let n = 4 * 70 + 3;
    let out = gpu.allocate(n * 4).unwrap();
    let (key, stream) = (0x1234_5678_9abc_def0u64, 0x0fed_cba9_8765_4321u64);
    let args = Arguments::new().pointer(out).pointer(key).pointer(stream).int(n as i32);
    gpu.launch(&philox, [3, 1, 1], [32, 1, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
    let found: Vec<u32> = gpu.download(out, n).unwrap();
    for (i, value) in found.iter().enumerate() {
        let mut c = [(i / 4) as u32, 0, stream as u32, (stream >> 32) as u32];
        let mut k = [key as u32, (key >> 32) as u32];
        for _ in 0..10 {
            let (p0, p1) = (0xD251_1F53u64 * c[0] as u64, 0xCD9E_8D57u64 * c[2] as u64);
            c = [
                (p1 >> 32) as u32 ^ c[1] ^ k[0],
                p1 as u32,
                (p0 >> 32) as u32 ^ c[3] ^ k[1],
                p0 as u32,
            ];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        assert_eq!(*value, c[i % 4], "word {i}");
    }
}

unsafe extern "C" {
    fn erf(x: f64) -> f64;
}

#[test]
fn mathematical_functions() {
    let Some(ptx) = common::compile(FILE) else { return };
    let mut gpu = gpu();
    let f = kernel(&mut gpu, &ptx, "functions").unwrap();
    let x: Vec<f32> = Rng(9).vec(100).iter().map(|v| v * 4.0).collect();
    let dx = gpu.upload(&x).unwrap();
    let (y, z) = (gpu.allocate(x.len() * 64).unwrap(), gpu.allocate(x.len() * 64).unwrap());
    let args = Arguments::new().pointer(dx).pointer(y).pointer(z).int(x.len() as i32);
    gpu.launch(&f, [4, 1, 1], [32, 1, 1], 0, &args).unwrap_or_else(|e| panic!("{e}"));
    let (y, z): (Vec<f32>, Vec<f64>) =
        (gpu.download(y, x.len() * 16).unwrap(), gpu.download(z, x.len() * 8).unwrap());
    // SAFETY: the C library's erf takes any double.
    let erf = |x: f64| unsafe { erf(x) };
    for (i, v) in x.iter().enumerate() {
        let (d, a) = (*v as f64, v.abs() as f64);
        let t = |s: f32| (*v * s) as f64;
        let exact = [
            d.exp(),
            a.ln(),
            t(1000.0).sin(),
            d.cos(),
            d.tanh(),
            erf(d),
            a.sqrt(),
            1.0 / a.sqrt(),
            d / 3.0,
            a.powf(1.7f32 as f64),
            d.atan2(2.0),
            d % 0.3f32 as f64,
            d.cbrt(),
            a.ln_1p(),
            t(1e9).sin(),
            t(10.0).round_ties_even() + d.floor() + d.ceil() + t(7.0).trunc(),
        ];
        for (j, e) in exact.iter().enumerate() {
            let found = y[i * 16 + j] as f64;
            // CUDA C++ Programming Guide, "Mathematical Functions": none of these errs by more than 5 ulp
            // where the result is not close to zero; the absolute term covers zeros of log, sin and cos.
            let tolerance = 5.0 * 2f64.powi(-23) * e.abs() + 2f64.powi(-23);
            assert!((found - e).abs() <= tolerance, "function {j} of {v}: {found} against {e}");
        }
        let exact =
            [d.exp(), a.ln(), (d * 1e5).sin(), a.powf(2.3), a.sqrt(), d / 3.0, d.tanh(), erf(d)];
        for (j, e) in exact.iter().enumerate() {
            let found = z[i * 8 + j];
            let tolerance = 4.0 * f64::EPSILON * e.abs() + f64::EPSILON;
            assert!(
                (found - e).abs() <= tolerance,
                "double function {j} of {v}: {found} against {e}"
            );
        }
    }
}
