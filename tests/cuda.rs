//! Whole pictures on a GPU, or on the virtual device that stands in for one: against diffusers, against the CPU, against
//! themselves in other company; and what is said where there is none, or it fails.
//!
//! Without a device these tests do nothing, but under `NADIR_REQUIRE_CUDA`, which `cargo xtask test` sets, they fail.

#[path = "golden/case.rs"]
mod case;
mod golden;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use case::{Case, assert_drawn_alike, check_f32, generate, levels, psnr, seeds};
use nadir::Result;
use nadir::io::config::Config;
use nadir::models::unet::{Unet, UnetConfig};
use nadir::nn::Params;
use nadir::pipeline::{Cancel, LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::{DType, Device, Tensor, cuda};
use serde_json::json;

/// The first GPU.
fn gpu() -> Option<Device> {
    match cuda::choose("cuda") {
        Ok((device, _)) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("NADIR_REQUIRE_CUDA").is_none(), "{error}");
            None
        }
    }
}

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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
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
    let exact = shipped(DType::F32, Device::Cpu)?.draw(request.clone())?;
    let ours = shipped(dtype, gpu)?.draw(request.clone())?;
    let found = psnr(ours.as_raw(), &levels(&exact));
    let allowed = match dtype {
        DType::F32 => 60.0,
        _ => psnr(shipped(dtype, Device::Cpu)?.draw(request)?.as_raw(), &levels(&exact)) - 3.0,
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

/// A picture does not depend on how many are drawn with it, or on its place among them.
fn check_company(name: &str, dtype: DType) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let case = Case::open(name)?;
    let model = case.load(dtype, gpu)?;
    let mut request = case.request();
    request.settings.steps = Some(2);
    let requests = seeds(&request, 7);
    let alone = generate(&model, requests.clone(), 1)?;
    assert_ne!(alone[0].picture, alone[1].picture);
    for limit in [2, 7] {
        let reversed = requests.iter().rev().cloned().collect();
        let mut together = generate(&model, reversed, limit)?;
        together.reverse();
        for (i, (one, other)) in alone.iter().zip(&together).enumerate() {
            assert_drawn_alike(&format!("{name} in {dtype}: {i} of {limit}"), one, other);
        }
    }
    Ok(())
}

#[test]
fn company_changes_no_image_in_f32() -> Result<()> {
    check_company("pndm", DType::F32)
}

#[test]
fn company_changes_no_image_in_bf16() -> Result<()> {
    check_company("unipc_v", DType::BF16)
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

/// A profile names the kernels; of the virtual device it tells counts, never times.
#[test]
fn a_profile_names_the_kernels_of_a_picture() {
    if !is_virtual() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(["profile", "a river", "--device=cuda", "--steps=1", "-W=32", "-H=32"]);
    command.env("VGPU_COUNTERS", folder.path().join("counts.jsonl"));
    let output = command.output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for kernel in ["attention_any_f32", "group_norm_at_once_f32", "matmul_", "conv2d_"] {
        assert!(table.contains(kernel), "{kernel}: {table}");
    }
    assert!(table.contains("instructions") && !table.contains(" ms "), "{table}");
}

/// Runs `nadir generate` with these variables and arguments in `folder`.
fn nadir(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(["generate", "a river"]).args(args).current_dir(folder);
    command.envs(variables.iter().copied()).output().unwrap()
}

/// Asserts that this ends with exit code 2, a line that has `says`, and no file.
fn refuses(variables: &[(&str, &str)], args: &[&str], says: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = nadir(folder.path(), variables, &[&["--steps=1"], args].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{variables:?} {args:?}: {message}");
    assert!(message.contains(says), "{variables:?} {args:?}: {message}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{variables:?} {args:?}");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    // Where there is no driver at all, nobody can count its devices.
    let says =
        if gpu().is_some() { "cuda:7 is not possible: this machine has" } else { "--device" };
    refuses(&[], &["--device=cuda:7"], says);
    refuses(&[], &["--device=gpu"], "one of auto, cpu, cuda, cuda:N");
}

#[test]
fn auto_says_what_it_chose() {
    let Some(gpu) = gpu() else { return };
    let (device, why) = cuda::choose("auto").unwrap();
    assert_eq!(device, gpu);
    assert!(why.starts_with("cuda:0: "), "{why}");
}

/// Whether the device is the virtual one, which can be told to fail.
fn is_virtual() -> bool {
    gpu().is_some() && cuda::devices().unwrap()[0].is_virtual()
}

/// Memory that runs out at the n-th allocation.
fn check_full(n: usize) {
    let n = format!("{n}+");
    refuses(&[("VGPU_FAIL_ALLOC", &n)], &["--device=cuda"], "cuda:0: out of memory");
}

#[test]
fn memory_that_runs_out_is_an_error_of_the_request() {
    if is_virtual() {
        [1, 2, 70, 300].into_iter().for_each(check_full);
    }
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn memory_may_run_out_at_any_time() {
    if is_virtual() {
        (1..=300).for_each(check_full);
    }
}

#[test]
fn a_launch_that_fails_is_an_error_of_the_request() {
    if is_virtual() {
        for n in ["1", "400"] {
            refuses(&[("VGPU_FAIL_LAUNCH", n)], &["--device=cuda"], "cuda:0: lost");
        }
    }
}

/// From the third step on, which replays what the second captured, everything comes from the pool: a longer picture asks
/// the device for memory no more often.
#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn a_longer_picture_allocates_no_more() {
    if !is_virtual() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let refused = |steps: &str, n: usize| {
        let n = n.to_string();
        let variables = [("NADIR_POOL", "on"), ("VGPU_CHECKS", "off"), ("VGPU_FAIL_ALLOC", &n)];
        let args = ["--device=cuda", "-s=1", "-W=16", "-H=16", steps];
        let output = nadir(folder.path(), &variables, &args);
        String::from_utf8_lossy(&output.stderr).contains("refused (VGPU_FAIL_ALLOC)")
    };
    let (mut allocations, mut beyond) = (1, 2000);
    while beyond - allocations > 1 {
        let middle = allocations + (beyond - allocations) / 2;
        match refused("--steps=3", middle) {
            true => allocations = middle,
            false => beyond = middle,
        }
    }
    println!("{allocations} allocations");
    assert!(allocations > 1 && !refused("--steps=8", beyond));
}

/// How often a picture of so many steps calls each function of the driver.
fn calls(steps: usize) -> BTreeMap<String, isize> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls");
    let steps = format!("--steps={steps}");
    let args = ["--device=cuda", "-s=1", "-W=16", "-H=16", "--scheduler=euler_a", &steps];
    let variables = [
        ("NADIR_POOL", "on"),
        ("NADIR_GRAPH", "on"),
        ("VGPU_CHECKS", "off"),
        ("VGPU_CALLS", file.to_str().unwrap()),
    ];
    let output = nadir(folder.path(), &variables, &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut counts = BTreeMap::new();
    for name in fs::read_to_string(&file).unwrap().lines() {
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// From the third evaluation on, which replays what the second captured, one is a graph, a kernel for the step, and the two
/// copies that give the graph what it reads: no memory is asked for, nothing is sent to the device or waited for.
#[test]
fn an_evaluation_is_a_graph_and_a_kernel() {
    if !is_virtual() {
        return;
    }
    // With noise in every step. So many steps that what is made before the first is of the same classes of size.
    let (few, more) = (calls(6), calls(8));
    let of_more = |name: &str| more.get(name).unwrap_or(&0) - few.get(name).unwrap_or(&0);
    for (name, times) in more.keys().map(|name| (name, of_more(name))) {
        println!("{name}: {times}");
        let waits = ["Alloc", "Free", "Synchronize", "HtoD", "DtoH", "Query", "Memset", "Wait"];
        let most = match &**name {
            "cuMemcpyDtoDAsync_v2" => 4,
            name if waits.iter().any(|wait| name.contains(wait)) => 0,
            _ => isize::MAX,
        };
        assert!(times <= most, "{name}: {times}");
    }
    assert_eq!((of_more("cuGraphLaunch"), of_more("cuLaunchKernel")), (2, 2));
}

/// What a denoiser launches costs a card time between one kernel and the next, however small they are: with and without
/// the prompt, Stable Diffusion 1.5's blocks are so many pieces of work. Their number follows from the blocks, not from
/// their widths; where sums are shared out among blocks, one more zeroes what these count each other by.
#[test]
fn a_guidance_step_of_sd15_is_few_nodes() -> Result<()> {
    const MOST: usize = 340;
    let Some(gpu) = gpu() else { return Ok(()) };
    let config = json!({
        "block_out_channels": [16, 32, 64, 64], "norm_num_groups": 8, "attention_head_dim": 2, "cross_attention_dim": 24,
    });
    for dtype in [DType::F32, DType::F16] {
        let config = UnetConfig::read(&Config::from_value(Path::new("unet"), config.clone())?)?;
        let zeros = move |_: &str, shape: &[usize]| Tensor::zeros(shape, DType::F32, Device::Cpu);
        let unet = Unet::load(config, &Params::initial(zeros, dtype, gpu))?;
        let on = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, gpu);
        let context = unet.context(&on(&[2, 5, 24], dtype)?)?;
        let timestep = unet.embed_timesteps(&[1.0, 1.0])?;
        let latents = on(&[2, 16, 16, 4], DType::F32)?;
        let forward = || unet.forward(&latents, &timestep, &context);
        forward()?; // loads the kernels
        let graph = cuda::Graph::capture(gpu, forward)?;
        println!("{dtype}: {} nodes", graph.nodes());
        assert!(graph.nodes() < MOST, "{dtype}: {} nodes", graph.nodes());
    }
    Ok(())
}
