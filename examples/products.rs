//! Times the products of a Stable Diffusion 1.5 guidance step at 512x512 (two images), and of its VAE, on a GPU.
//!
//!     cargo run --release --example products             in bf16
//!     cargo run --release --example products f16         in another dtype
//!
//! A line is one layer: its shape, the time of a call out of many that follow each other, and operations a second, of
//! which a multiply-add is two.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use nadir::ops::conv::{Conv2dConfig, conv2d};
use nadir::ops::matmul::{Epilogue, linear};
use nadir::ops::weight::{Layout, Weight};
use nadir::tensor::cuda::{Properties, Stream, devices};
use nadir::tensor::{DType, Device, Tensor};

const GPU: Device = Device::Cuda(0);

/// Values between -1 and 1 without a pattern.
fn noise(shape: &[usize], dtype: DType) -> Result<Tensor> {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898).sin()).collect();
    Ok(Tensor::from_vec(values, shape)?.to_dtype(dtype)?.to_device(GPU)?)
}

/// Prints the time of a call of `run`, which takes `products` multiply-adds an output.
fn time(name: &str, products: usize, run: impl Fn() -> nadir::Result<Tensor>) -> Result<()> {
    // Nobody asks a virtual device how long it takes.
    let calls = if devices()?.iter().all(Properties::is_virtual) { 1 } else { 50 };
    let stream = Stream::current(GPU)?;
    let outputs = run()?.len();
    stream.synchronize()?;
    let start = Instant::now();
    for _ in 0..calls {
        run()?;
    }
    stream.synchronize()?;
    let seconds = start.elapsed().as_secs_f64() / f64::from(calls);
    let rate = 2.0 * (outputs * products) as f64 / seconds / 1e12;
    println!("{name:<42} {:9.1} us {rate:8.1} TFLOP/s", seconds * 1e6);
    Ok(())
}

fn main() -> Result<()> {
    let dtype = match std::env::args().nth(1).as_deref() {
        None | Some("bf16") => DType::BF16,
        Some("f16") => DType::F16,
        Some("f32") => DType::F32,
        Some(other) => bail!("{other}: expected bf16, f16 or f32"),
    };
    let all = devices()?;
    let device = all.first().context("there is no device")?;
    println!("{}, {dtype}", device.name);
    if device.is_virtual() {
        println!("a virtual device: these are no times of a GPU");
    }

    // rows of an image, inputs, outputs
    for (rows, k, n) in [
        (4096, 320, 320),
        (4096, 320, 2560),
        (4096, 1280, 320),
        (1024, 640, 640),
        (1024, 640, 5120),
        (1024, 2560, 640),
        (256, 1280, 1280),
        (256, 1280, 10_240),
        (256, 5120, 1280),
        (64, 1280, 1280),
    ] {
        let (x, w) = (noise(&[2, rows, k], dtype)?, noise(&[n, k], dtype)?);
        let (w, bias) = (Weight::frozen(&w, Layout::Matrix, dtype)?, noise(&[n], DType::F32)?);
        let name = format!("linear [2, {rows}, {k}] to {n}");
        time(&name, k, || linear(&x, &w, Epilogue::bias(Some(&bias))))?;
    }
    // images, side, channels in and out, kernel, stride
    for (images, side, i, o, kernel, stride) in [
        (2, 64, 4, 320, 3, 1),
        (2, 64, 320, 320, 3, 1),
        (2, 64, 960, 320, 3, 1),
        (2, 64, 320, 320, 3, 2),
        (2, 64, 640, 320, 1, 1),
        (2, 32, 640, 640, 3, 1),
        (2, 32, 1920, 640, 3, 1),
        (2, 16, 1280, 1280, 3, 1),
        (2, 16, 2560, 1280, 3, 1),
        (2, 8, 1280, 1280, 3, 1),
        (2, 8, 2560, 1280, 3, 1),
        (1, 64, 512, 512, 3, 1),
        (1, 128, 512, 512, 3, 1),
        (1, 256, 256, 256, 3, 1),
        (1, 512, 128, 128, 3, 1),
        (1, 512, 128, 3, 3, 1),
    ] {
        let x = noise(&[images, side, side, i], dtype)?;
        let w = noise(&[o, i, kernel, kernel], dtype)?;
        let w = Weight::frozen(&w, Layout::Convolution, dtype)?;
        let bias = noise(&[o], DType::F32)?;
        let config = Conv2dConfig::new(stride, kernel / 2);
        let name = format!(
            "conv {kernel}x{kernel} [{images}, {side}, {side}, {i}] to {o}, stride {stride}"
        );
        let products = i * kernel * kernel;
        time(&name, products, || conv2d(&x, &w, config, Epilogue::bias(Some(&bias))))?;
    }
    Ok(())
}
