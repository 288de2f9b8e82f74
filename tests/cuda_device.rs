//! What a GPU, or the virtual device that stands in for one, is asked to do, and what is said where there is none, or it
//! fails.
//!
//! Without a device most of these tests do nothing, but under `NADIR_REQUIRE_CUDA`, which `cargo xtask test` sets, they fail.

#[path = "golden/gpu.rs"]
mod gpu;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gpu::{gpu, is_virtual};
use nadir::io::config::Config;
use nadir::models::unet::{Unet, UnetConfig};
use nadir::nn::Params;
use nadir::pipeline::{LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::{DType, Device, Tensor, cuda};
use nadir::{Error, Result};
use serde_json::json;

/// nadir itself, where cargo or a bundle has it.
fn program() -> OsString {
    std::env::var_os("NADIR_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_nadir").into())
}

/// The models that ship, where the repository or a bundle has them.
fn weights() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::var_os("NADIR_WEIGHTS").map_or(repository.join("weights"), PathBuf::from)
}

/// A profile names the kernels; of the virtual device it tells counts, never times.
#[test]
fn a_profile_names_the_kernels_of_a_picture() {
    if !is_virtual() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program());
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

/// By module, too, each by the path of its weights.
#[test]
fn a_profile_names_the_parts_of_the_model() {
    if !is_virtual() {
        return;
    }
    let mut command = Command::new(program());
    command.args(["profile", "a river", "--device=cuda", "--steps=1", "-W=16", "-H=16"]);
    let output = command.arg("--by=module").env_remove("VGPU_COUNTERS").output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names: Vec<&str> = table.lines().filter_map(|line| line.split(' ').next()).collect();
    for layer in LAYERS {
        assert!(names.contains(&layer), "{layer}: {table}");
    }
}

/// Some that launch kernels of their own.
const LAYERS: [&str; 6] = [
    "text_encoder.encoder.layers.0.self_attn",
    "unet.conv_in",
    "unet.down_blocks.0.resnets.0.conv1",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q",
    "vae.decoder.conv_in",
];

/// What NVIDIA's tools are told: ranges with the paths of the weights around what each layer launches, closed in the order in
/// which they were opened. The virtual device listens as such a tool does.
#[test]
fn ranges_tell_tools_which_layer_launches_what() {
    if !is_virtual() {
        return;
    }
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut libraries = std::env::split_paths(&paths).map(|folder| folder.join("libcuda.so"));
    let tool = libraries.find(|library| library.exists()).unwrap();
    let noted = |tool: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("calls");
        let variables = [
            ("NADIR_GRAPH", "off"),
            ("NVTX_INJECTION64_PATH", tool),
            ("VGPU_CALLS", file.to_str().unwrap()),
        ];
        let args = ["--device=cuda", "-s=1", "-W=16", "-H=16", "--steps=1"];
        let output = nadir(folder.path(), &variables, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(file).unwrap()
    };
    let text = noted(tool.to_str().unwrap());
    let (mut open, mut launched) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("nvtxRangePushA", name)) => {
                assert!(open.last().is_none_or(|outer| name.starts_with(outer)), "{open:?} {name}");
                open.push(name);
            }
            None if line == "nvtxRangePop" => assert!(open.pop().is_some(), "closed before opened"),
            // Before the first, weights are laid out.
            None if line.starts_with("cuLaunch") && !(open.is_empty() && launched.is_empty()) => {
                *launched.entry(open.last().unwrap_or(&"")).or_default() += 1;
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "still open: {open:?}");
    for layer in LAYERS {
        assert!(launched.contains_key(layer), "{layer}: {launched:#?}");
    }
    // Most is of some layer; without a tool there is nothing to tell.
    let all: usize = launched.values().sum();
    assert!(launched[""] < all / 3, "{launched:#?}");
    assert!(!noted("").contains("nvtx"));
}

/// Runs `nadir generate` with these variables and arguments in `folder`.
fn nadir(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(program());
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

fn tests_all() -> bool {
    std::env::var_os("NADIR_TEST_ALL").is_some()
}

/// An allocation is refused, of the first three hundred of a load or a picture one after the other (a tenth of them, but for
/// `cargo xtask test --all`), with and without those behind it. All that is one process: what follows is as if nothing had been.
#[test]
fn memory_may_run_out_at_any_time() {
    if !is_virtual() {
        return;
    }
    for pool in if tests_all() { &["off", "on"][..] } else { &["off"] } {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "requests_outlive_refusals"])
            .env("VGPU_FAIL_ALLOC", format!("@{}", file.path().display()))
            .envs([("NADIR_POOL", *pool), ("VGPU_CHECKS", "off")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "pool {pool}: {said}{error}");
        println!("pool {pool}: {said}");
    }
}

#[test]
#[ignore = "run by memory_may_run_out_at_any_time"]
fn requests_outlive_refusals() -> Result<()> {
    let file = std::env::var("VGPU_FAIL_ALLOC").unwrap_or_default();
    let (Some(file), Some(device)) = (file.strip_prefix('@'), gpu()) else { return Ok(()) };
    let refuse = |which: &str| fs::write(file, which).unwrap();
    let folder = weights().join("eurosat-64");
    let load = || TextToImage::load(&folder, &LoadOptions { device, ..LoadOptions::default() });
    let settings = Settings {
        prompt: "a river".into(),
        steps: Some(1),
        width: Some(16),
        height: Some(16),
        ..Settings::default()
    };
    let draw = |model: &TextToImage| {
        model.draw(Request { settings: settings.clone(), seed: 1, ..Request::default() })
    };
    let model = load()?;
    let expected = draw(&model)?;
    let is_refused = |result: Result<()>| match result {
        Ok(()) => false,
        Err(Error::OutOfMemory { device: found, .. }) => found == device,
        Err(error) => panic!("{error}"),
    };
    let step = if tests_all() { 1 } else { 10 };
    let (mut loads, mut pictures) = (0, 0);
    for (i, n) in (1..=300).step_by(step).enumerate() {
        let both = [format!("{n}"), format!("{n}+")];
        for which in if tests_all() { &both[..] } else { &both[i % 2..][..1] } {
            // Else the driver would not be asked: the pool has what the last one left.
            cuda::release_unused(device)?;
            refuse(which);
            loads += usize::from(is_refused(load().map(drop)));
            refuse("");
            cuda::release_unused(device)?;
            refuse(which);
            let drawn = draw(&model).map(|picture| assert!(picture == expected, "{which}"));
            pictures += usize::from(is_refused(drawn));
            refuse("");
        }
        if i % if tests_all() { 10 } else { 4 } == 0 {
            assert!(draw(&model)? == expected, "behind allocation {n}");
        }
    }
    assert!(draw(&load()?)? == expected);
    println!("{loads} loads and {pictures} pictures refused");
    assert!(loads > 0 && pictures > 0);
    Ok(())
}

#[test]
fn a_driver_too_old_for_the_kernels_is_an_error_of_the_request() {
    if is_virtual() {
        let old = [("VGPU_DRIVER", "12020")];
        refuses(&old, &["--device=cuda"], "the driver is one for CUDA 12.2: install a driver");
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
        let variables = [
            ("NADIR_POOL", "on"),
            ("NADIR_GRAPH", "on"),
            ("VGPU_CHECKS", "off"),
            ("VGPU_FAIL_ALLOC", &n),
        ];
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
