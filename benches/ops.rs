//! Times operations in the shapes of a Stable Diffusion 1.5 guidance step at 512x512 (a batch of 2 images), and those of a step
//! of GPT-2 124M.
//!
//!     cargo bench --bench ops                       all of them
//!     cargo bench --bench ops -- 'conv2d/f32'       some
//!
//! Products report multiply-adds of their definition as elements a second: half of the usual flop/s, and more
//! than the machine can do where Winograd's algorithm saves some. A decoder's step reports the bytes that it reads, from memory:
//! of each shape there are more copies than caches hold. `decode/read` is what the machine can read.

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use nadir::Result;
use nadir::cpu::memory;
use nadir::ops::attention::{AttentionConfig, attention};
use nadir::ops::conv::{Conv2dConfig, conv2d};
use nadir::ops::matmul::{Activation, Epilogue, linear};
use nadir::ops::norm::{group_norm, layer_norm};
use nadir::ops::weight::{Layout, Weight};
use nadir::tensor::{DType, Tensor};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// Values between -1 and 1 without a pattern.
fn noise(shape: &[usize], dtype: DType) -> Result<Tensor> {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898).sin()).collect();
    Tensor::from_vec(values, shape)?.to_dtype(dtype)
}

/// Times `run`, which takes `work` multiply-adds or bytes.
fn time(
    group: &mut BenchmarkGroup<WallTime>,
    dtype: DType,
    name: String,
    work: Throughput,
    mut run: impl FnMut() -> Result<Tensor>,
) {
    group.throughput(work);
    group.bench_function(format!("{dtype}/{name}"), |b| b.iter(|| run().unwrap()));
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group
}

fn conv2d_shapes(criterion: &mut Criterion) -> Result<()> {
    let mut group = group(criterion, "conv2d");
    let shapes = [
        // side of the image, input and output channels, kernel, stride
        (64, 4, 320, 3, 1),
        (64, 320, 320, 3, 1),
        (64, 320, 320, 3, 2),
        (64, 960, 320, 3, 1),
        (64, 640, 320, 1, 1),
        (32, 640, 640, 3, 1),
        (16, 1280, 1280, 3, 1),
        (8, 1280, 1280, 3, 1),
    ];
    for dtype in DTYPES {
        for (side, i, o, kernel, stride) in shapes {
            let x = noise(&[2, side, side, i], dtype)?;
            let weight = noise(&[o, i, kernel, kernel], dtype)?;
            let packed = Weight::frozen(&weight, Layout::ConvolutionAt(stride), dtype)?;
            let bias = noise(&[o], DType::F32)?;
            let config = Conv2dConfig::new(stride, kernel / 2);
            let run = || conv2d(&x, &packed, config, Epilogue::bias(Some(&bias)));
            let work = Throughput::Elements((run()?.len() * i * kernel * kernel) as u64);
            let name = format!("{kernel}x{kernel}, stride {stride}, {i}@{side}x{side} to {o}");
            time(&mut group, dtype, name, work, run);
        }
    }
    Ok(())
}

fn linear_shapes(criterion: &mut Criterion) -> Result<()> {
    let mut group = group(criterion, "linear");
    let shapes = [
        // rows, inputs, outputs
        (8192, 320, 320),
        (8192, 320, 2560),
        (8192, 1280, 320),
        (2048, 640, 640),
        (512, 1280, 10240),
        (128, 1280, 1280),
        (154, 768, 3072),
        (1, 1280, 1280),
    ];
    for dtype in DTYPES {
        for (m, k, n) in shapes {
            let x = noise(&[m, k], dtype)?;
            let packed = Weight::frozen(&noise(&[n, k], dtype)?, Layout::Matrix, dtype)?;
            let bias = noise(&[n], DType::F32)?;
            for act in [Activation::Identity, Activation::QuickGelu] {
                let epilogue = Epilogue { bias: Some(&bias), act, ..Epilogue::default() };
                let name = format!("[{m}, {k}] to {n}, {act:?}");
                let work = Throughput::Elements((m * k * n) as u64);
                time(&mut group, dtype, name, work, || linear(&x, &packed, epilogue));
            }
        }
    }
    Ok(())
}

fn attention_shapes(criterion: &mut Criterion) -> Result<()> {
    let mut group = group(criterion, "attention");
    let shapes = [
        // queries, keys, head dimension
        (4096, 4096, 40),
        (1024, 1024, 80),
        (256, 256, 160),
        (4096, 77, 40),
        (1024, 77, 80),
    ];
    for dtype in DTYPES {
        for (t, s, d) in shapes {
            let q = noise(&[2, t, 8, d], dtype)?;
            let k = noise(&[2, s, 8, d], dtype)?;
            let v = noise(&[2, s, 8, d], dtype)?;
            let config = AttentionConfig { scale: (d as f32).powf(-0.5), causal: false };
            let work = Throughput::Elements((2 * 2 * 8 * t * s * d) as u64);
            let name = format!("{t} x {s}, 8 heads of {d}");
            time(&mut group, dtype, name, work, || attention(&q, &k, &v, config));
        }
    }
    Ok(())
}

fn norm_shapes(criterion: &mut Criterion) -> Result<()> {
    let mut group = group(criterion, "norm");
    for dtype in DTYPES {
        for (side, c) in [(64, 320), (32, 640), (16, 1280), (8, 2560)] {
            let x = noise(&[2, side, side, c], dtype)?;
            let gamma = noise(&[c], DType::F32)?;
            let beta = noise(&[c], DType::F32)?;
            // Read once, written once.
            let work = Throughput::Bytes((2 * x.len() * dtype.size()) as u64);
            let name = format!("group and SiLU, {c}@{side}x{side}");
            time(&mut group, dtype, name, work.clone(), || {
                group_norm(&x, &gamma, &beta, 32, 1e-5, true)
            });
            let name = format!("layer, {c}@{side}x{side}");
            time(&mut group, dtype, name, work, || layer_norm(&x, &gamma, &beta, 1e-5));
        }
    }
    Ok(())
}

fn decode_shapes(criterion: &mut Criterion) -> Result<()> {
    let mut group = group(criterion, "decode");
    let memory = vec![1.0f32; 128 << 20];
    group.throughput(Throughput::Bytes(size_of_val(&*memory) as u64));
    group.bench_function("read", |b| b.iter(|| memory::sum(black_box(&memory))));
    drop(memory);
    let shapes = [
        // inputs, outputs, copies
        (768, 2304, 12),
        (768, 768, 36),
        (768, 3072, 12),
        (3072, 768, 12),
        (768, 50257, 2),
    ];
    for (format, dtype, size) in
        [("f32", DType::F32, 4), ("bf16", DType::BF16, 2), ("8 bits", DType::BF16, 1)]
    {
        for (k, n, copies) in shapes {
            let weight = noise(&[n, k], dtype)?;
            let load = |_| match size {
                1 => Weight::quantized(&weight, dtype),
                _ => Weight::frozen(&weight, Layout::Matrix, dtype),
            };
            let weights = (0..copies * 4 / size).map(load).collect::<Result<Vec<_>>>()?;
            for batch in [1, 8] {
                let x = noise(&[batch, 1, k], dtype)?;
                group.throughput(Throughput::Bytes((weights.len() * n * k * size) as u64));
                group.bench_function(format!("{format}/{batch} of {k} to {n}"), |b| {
                    b.iter(|| {
                        let product = |w| linear(&x, w, Epilogue::default()).map(drop);
                        weights.iter().try_for_each(product).unwrap();
                    });
                });
            }
        }
    }
    for dtype in DTYPES {
        let (keys, heads, channels, layers) = (1024, 12, 64, 24);
        let q = noise(&[1, 1, heads, channels], dtype)?;
        let kv = |_| noise(&[1, keys, heads, channels], dtype);
        let caches = (0..2 * layers).map(kv).collect::<Result<Vec<_>>>()?;
        let config = AttentionConfig { scale: (channels as f32).powf(-0.5), causal: true };
        let bytes = caches.len() * caches[0].len() * dtype.size();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{dtype}/attention to {keys} keys"), |b| {
            b.iter(|| {
                let step = |kv: &[Tensor]| attention(&q, &kv[0], &kv[1], config).map(drop);
                caches.chunks(2).try_for_each(step).unwrap();
            });
        });
    }
    Ok(())
}

fn all(criterion: &mut Criterion) {
    conv2d_shapes(criterion).unwrap();
    linear_shapes(criterion).unwrap();
    attention_shapes(criterion).unwrap();
    norm_shapes(criterion).unwrap();
    decode_shapes(criterion).unwrap();
}

criterion_group!(benches, all);
criterion_main!(benches);
