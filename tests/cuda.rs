//! Whole pictures on a GPU, or on the virtual device that stands in for one: against diffusers, against the CPU. `cargo xtask test` draws them twice on the virtual device: with memory of its own for
//! every tensor and kernels launched one by one, and as users have it, with sentinels in the memory of graphs.
//!
//! Without a device these tests do nothing, but under `NADIR_REQUIRE_CUDA`, which `cargo xtask test` sets, they fail.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of company use the rest")]
mod case;
#[allow(dead_code, reason = "as above")]
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use case::{Case, check_f32, generate, levels, psnr};
use gpu::gpu;
use nadir::Result;
use nadir::pipeline::{Cancel, LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::{DType, Device, Tensor};

macro_rules! cases {
    ($($(#[$attribute:meta])* $name:ident)*) => {
        mod f32_is_diffusers {
            $(
                #[test]
                $(#[$attribute])*
                fn $name() -> nadir::Result<()> {
                    super::gpu().map_or(Ok(()), |gpu| super::check_f32(stringify!($name), gpu))
                }
            )*
        }
    };
}

cases! {
    pndm
    heun
    euler_a_clip_skip
    img2img_euler
    inpaint_ddim
    inpaint9_unipc
    #[ignore = "minutes: cargo xtask test --all"] ddim_v_zero_snr
    #[ignore = "minutes: cargo xtask test --all"] euler_karras
    #[ignore = "minutes: cargo xtask test --all"] dpmpp_2m_karras
    #[ignore = "minutes: cargo xtask test --all"] unipc_v
    #[ignore = "minutes: cargo xtask test --all"] ddim_eta
    #[ignore = "minutes: cargo xtask test --all"] dpmpp_2m_sde
    #[ignore = "minutes: cargo xtask test --all"] lcm
    #[ignore = "minutes: cargo xtask test --all"] img2img_pndm
    #[ignore = "minutes: cargo xtask test --all"] inpaint_euler_a
    #[ignore = "minutes: cargo xtask test --all"] inpaint9_dpmpp
    #[ignore = "minutes: cargo xtask test --all"] eurosat
}

fn shipped(dtype: DType, device: Device) -> Result<TextToImage> {
    let folder = golden::root().join("weights/eurosat-64");
    TextToImage::load(folder, &LoadOptions { dtype, device, ..LoadOptions::default() })
}

/// The model that ships draws on the GPU what it draws on the CPU: in f32 but for the order of sums, which changes few
/// levels and those by one (60 dB is one level in one of 15 values); in 16 bits as close to the CPU's f32 as the CPU's own.
fn check_shipped(dtype: DType, steps: usize) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let settings = Settings {
        prompt: "a satellite image of a river".into(),
        steps: Some(steps),
        ..Settings::default()
    };
    let request = Request { settings, seed: 7, ..Request::default() };
    let exact = shipped(DType::F32, Device::Cpu)?.draw(request.clone())?.rgb()?;
    let ours = shipped(dtype, gpu)?.draw(request.clone())?.rgb()?;
    let found = psnr(ours.as_raw(), &levels(&exact));
    let allowed = match dtype {
        DType::F32 => 60.0,
        _ => {
            psnr(shipped(dtype, Device::Cpu)?.draw(request)?.rgb()?.as_raw(), &levels(&exact)) - 3.0
        }
    };
    println!("{steps} steps in {dtype}: {found:.1} dB, {allowed:.1} allowed");
    assert!(found >= allowed, "{steps} steps in {dtype}: {found} dB, not {allowed}");
    Ok(())
}

#[test]
fn the_shipped_model_draws_as_on_the_cpu_in_f32() -> Result<()> {
    check_shipped(DType::F32, 4)
}

#[test]
fn the_shipped_model_draws_as_on_the_cpu_in_bf16() -> Result<()> {
    check_shipped(DType::BF16, 4)
}

#[test]
fn the_shipped_model_draws_as_on_the_cpu_in_f16() -> Result<()> {
    check_shipped(DType::F16, 4)
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn the_shipped_model_draws_as_on_the_cpu_in_20_steps() -> Result<()> {
    [DType::F32, DType::BF16, DType::F16].into_iter().try_for_each(|dtype| check_shipped(dtype, 20))
}

/// Without guidance samplers are given what the UNet predicts itself, and the multi-step ones remember it.
#[test]
fn predictions_may_be_remembered() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let case = Case::open("pndm")?;
    let mut request = case.request();
    (request.settings.guidance_scale, request.settings.steps) = (Some(1.0), Some(6));
    let draw = |device| generate(&case.load(DType::F32, device)?, vec![request.clone()], 1);
    let (ours, theirs) = (draw(gpu)?.remove(0), draw(Device::Cpu)?.remove(0));
    for (i, (ours, theirs)) in ours.latents.iter().zip(&theirs.latents).enumerate() {
        golden::assert_close(&format!("step {i}"), ours, theirs, 1e-4);
    }
    Ok(())
}

#[test]
fn tiles_are_decoded_as_on_the_cpu() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let case = Case::open("pndm")?;
    let values = (0..20 * 12 * 4).map(|i| (i as f32 * 0.37).sin()).collect();
    let latents: Tensor = Tensor::from_vec::<f32>(values, [1, 20, 12, 4])?;
    let decode = |device| {
        let model = case.load(DType::F32, device)?;
        model.decode(&latents.to_device(device)?, true, &Cancel::default())
    };
    // As one pass through a network against diffusers.
    golden::assert_close("tiles", &decode(gpu)?, &decode(Device::Cpu)?, 1e-5);
    Ok(())
}
