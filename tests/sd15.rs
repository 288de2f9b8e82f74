//! Stable Diffusion 1.5's denoiser at its real size, 512 x 512 with guidance, on a GPU or on the virtual device: how many
//! pieces of work an evaluation is, and whether it predicts what the CPU does. Its weights are random.
//!
//! Without a device these tests do nothing, but under `NADIR_REQUIRE_CUDA`, which `cargo xtask test` sets, they fail.
//! On the virtual device each is many minutes, though nothing is checked there: what kernels do is checked at small sizes.

use std::path::Path;
use std::process::Command;

use nadir::Result;
use nadir::io::config::Config;
use nadir::models::unet::{Unet, UnetConfig};
use nadir::nn::Params;
use nadir::tensor::{DType, Device, Tensor, cuda};
use serde_json::json;

/// Pieces of work that an evaluation may be.
const MOST: usize = 340;

/// Numbers between -1 and 1 that follow from the name.
fn noise(name: &str, len: usize) -> impl Iterator<Item = f32> {
    let mut state =
        name.bytes().fold(1u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(len)
}

/// A weight of a layer, which keeps the variance of what it is multiplied by; of a norm, one; a small bias.
fn weight(name: &str, shape: &[usize]) -> Result<Tensor> {
    let len = shape.iter().product();
    let terms: usize = shape[1..].iter().product();
    let scale = match shape.len() {
        1 => 0.02,
        _ => (3.0 / terms as f32).sqrt(),
    };
    let offset = if shape.len() == 1 && name.ends_with("weight") { 1.0 } else { 0.0 };
    Tensor::from_vec(noise(name, len).map(|x| x * scale + offset).collect(), shape)
}

/// What a denoiser in `dtype` on `device` predicts for an image with and without its prompt.
fn predict(dtype: DType, device: Device) -> Result<Vec<f32>> {
    let config = json!({"attention_head_dim": 8, "cross_attention_dim": 768});
    let config = UnetConfig::read(&Config::from_value(Path::new("unet"), config)?)?;
    let unet = Unet::load(config, &Params::initial(weight, dtype, device))?;
    let random = |name: &str, shape: &[usize]| {
        let values: Vec<f32> = noise(name, shape.iter().product()).collect();
        Tensor::from_vec(values, shape)?.to_dtype(dtype)?.to_device(device)
    };
    let context = unet.context(&random("prompts", &[2, 77, 768])?)?;
    let times = unet.embed_timesteps(&[500.0, 500.0])?;
    let latents = random("latents", &[2, 64, 64, 4])?.to_dtype(DType::F32)?;
    let forward = || unet.forward(&latents, &times, &context);
    if device == Device::Cpu {
        return forward()?.to_vec::<f32>();
    }
    let mut graph = cuda::Graph::capture(device, forward)?;
    let nodes = graph.nodes();
    println!("{dtype}: {nodes} nodes");
    assert!(nodes < MOST, "{dtype}: {nodes} nodes");
    graph.launch()?.to_vec::<f32>()
}

/// The error of `got` against `expected`, as a part of what is expected: both by their root mean squares.
fn error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let errors: f64 = got.iter().zip(expected).map(|(got, x)| square(got - x)).sum();
    (errors / expected.iter().copied().map(square).sum::<f64>()).sqrt()
}

/// `allowed` gives the error that a GPU may have against the CPU's f32. On the virtual device the test of this name runs once more
/// for it, in a process of its own.
fn check(test: &str, dtype: DType, allowed: impl FnOnce(&[f32]) -> Result<f64>) -> Result<()> {
    let gpu = match cuda::choose("cuda") {
        Ok((device, _)) => device,
        Err(error) => {
            assert!(std::env::var_os("NADIR_REQUIRE_CUDA").is_none(), "{error}");
            return Ok(());
        }
    };
    let is_unchecked = std::env::var("VGPU_CHECKS").is_ok_and(|checks| checks == "off");
    if cuda::devices()?[0].is_virtual() && !is_unchecked {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", test]);
        let status = command.env("VGPU_CHECKS", "off").env("NADIR_POOL", "on").status().unwrap();
        assert!(status.success(), "{test}");
        return Ok(());
    }
    let ours = predict(dtype, gpu)?;
    let exact = predict(DType::F32, Device::Cpu)?;
    let (error, allowed) = (error(&ours, &exact), allowed(&exact)?);
    println!("{dtype}: an error of {error:.2e}, {allowed:.2e} allowed");
    assert!(error <= allowed, "{dtype}: an error of {error}, not {allowed}");
    Ok(())
}

/// In f32 both lose what rounding does to sums of up to 23,040 products, in some 60 layers one behind the other: each errs by
/// about sqrt(terms) units of 2^-24, 1e-5, and errors of layers that know nothing of each other add up by their squares.
#[test]
#[ignore = "many minutes: cargo xtask test --all"]
fn an_evaluation_predicts_as_on_the_cpu_in_f32() -> Result<()> {
    check("an_evaluation_predicts_as_on_the_cpu_in_f32", DType::F32, |_| Ok(1e-5 * 60f64.sqrt()))
}

/// In 16 bits as close to the CPU's f32 as twice the CPU's own.
#[test]
#[ignore = "many minutes: cargo xtask test --all"]
fn an_evaluation_predicts_as_on_the_cpu_in_bf16() -> Result<()> {
    let of_cpu = |exact: &[f32]| Ok(2.0 * error(&predict(DType::BF16, Device::Cpu)?, exact));
    check("an_evaluation_predicts_as_on_the_cpu_in_bf16", DType::BF16, of_cpu)
}
