//! LDSR-S2 against opensr-model, on the small random configuration of `golden/ldsr.py`; and the command line that gives scenes
//! smaller pixels with it.

mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use golden::drawn::Drawn;
use golden::{assert_close, assert_same, get};
use gpu::gpu;
use nadir::io::checkpoint::{Checkpoint, Supplement};
use nadir::io::geotiff::{Cog, CogWriter, GeoTiff, Georeference, SampleKind, Window};
use nadir::io::safetensors::save;
use nadir::io::{TensorSource, png};
use nadir::noise::NoiseSource;
use nadir::ops::layout::concat;
use nadir::pipeline::super_resolution::{Draw, Sampling, SuperResolver};
use nadir::tensor::{DType, Device, Tensor};
use nadir::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

/// As in `models.rs`: sums of a few hundred terms in another order, through some dozens of layers.
const TOLERANCE: f32 = 1e-5;

/// Of what those layers make when they are asked one time after the other.
const TOLERANCE_OF_STEPS: f32 = 1e-4;

fn config() -> Value {
    serde_json::from_slice(&fs::read(golden::path("ldsr/config.json")).unwrap()).unwrap()
}

/// Writes a model into `folder`: this configuration, the weights that are drawn, and more tensors.
fn write_model(folder: &Path, config: &Value, more: Vec<(String, Tensor)>) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let drawn = Drawn::by_inputs("ldsr");
    let read = |name: String| (name.clone(), drawn.read(&name).unwrap());
    let tensors: Vec<_> = drawn.names().into_iter().map(read).chain(more).collect();
    save(&folder.join("ldsr.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

fn open_with(config: &Value, more: Vec<(String, Tensor)>, device: Device) -> Result<SuperResolver> {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), config, more);
    SuperResolver::open(folder.path(), device)
}

fn open(device: Device) -> SuperResolver {
    open_with(&config(), Vec::new(), device).unwrap()
}

fn check_networks(device: Device) -> Result<()> {
    let golden = golden::open("ldsr/networks")?;
    let of = |name: &str| get(&golden, name).to_device(device);
    let model = open(device);
    let posterior = model.vae().encode(&of("image")?)?;
    let decoded = model.vae().decode(&of("latents")?)?;
    let times = model.unet().embed_timesteps(&get(&golden, "timesteps").to_vec::<f32>()?)?;
    let (noisy, condition) = (of("noisy")?, of("condition")?);
    let out = model.predict(&noisy, &condition, &times)?;
    let found = [&posterior.mean, &posterior.logvar, &decoded, &out];
    for (name, found) in ["mean", "logvar", "decoded", "out"].into_iter().zip(found) {
        assert_close(name, found, &get(&golden, name), TOLERANCE);
    }
    for i in 0..2 {
        let row = |t: &Tensor| t.narrow(0, i, 1);
        let alone = model.predict(&row(&noisy)?, &row(&condition)?, &row(&times)?)?;
        assert_same(&format!("out {i}"), &row(&out)?, &alone);
    }
    Ok(())
}

#[test]
fn the_networks_are_those_of_opensr_model() -> Result<()> {
    check_networks(Device::Cpu)
}

#[test]
fn a_gpu_computes_what_the_cpu_does() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    check_networks(gpu)
}

/// Noise as torch draws it for one image of `[h, w]` latents, one draw after the other.
fn torch_noise(seed: u64, [h, w]: [usize; 2]) -> impl FnMut(Draw) -> Result<Tensor> {
    let mut stream = NoiseSource::Torch.stream(seed);
    move |_| {
        let drawn = Tensor::from_vec(stream.randn(4 * h * w, DType::F32)?, [1, 4, h, w])?;
        drawn.permute(&[0, 2, 3, 1])?.contiguous() // [1, h, w, 4]
    }
}

/// The pictures of `golden/ldsr.py`.
fn pictures() -> [(&'static str, u64, Sampling); 2] {
    let plain = Sampling { steps: 10, eta: 0.0, temperature: 1.0, match_histograms: false };
    let matched = Sampling { steps: 8, eta: 0.5, temperature: 0.8, match_histograms: true };
    [("plain", 3, plain), ("matched", 4, matched)]
}

fn enlarge(
    model: &SuperResolver,
    image: &Tensor,
    sampling: &Sampling,
    noise: &mut dyn FnMut(Draw) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, h, w, _) = image.dims4()?;
    model.enlarge(image, &vec![true; b * h * w], sampling, noise, &mut || Ok(()))
}

fn check_pictures(model: &SuperResolver) -> Result<()> {
    let golden = golden::open("ldsr/pictures")?;
    let image = get(&golden, "image"); // [1, h, w, 4]
    let size = [image.dim(1), image.dim(2)];
    for (name, seed, sampling) in pictures() {
        let of = |part: &str| get(&golden, &format!("{name}.{part}"));
        let mut noise = torch_noise(seed, size);
        let condition = model.encode(&image, &noise(Draw::Condition)?)?;
        assert_close(
            &format!("{name} condition"),
            &condition,
            &of("condition"),
            TOLERANCE_OF_STEPS,
        );
        let latents = model.denoise(&condition, &sampling, &mut noise, &mut || Ok(()))?;
        assert_close(&format!("{name} latents"), &latents, &of("latents"), TOLERANCE_OF_STEPS);
        let large = enlarge(model, &image, &sampling, &mut torch_noise(seed, size))?;
        match sampling.match_histograms {
            false => assert_close(name, &large, &of("image"), TOLERANCE_OF_STEPS),
            true => assert_within_a_rank(&large, &of("image"), &image),
        }
        let psnr = psnr(&large.to_vec()?, &of("image").to_vec()?);
        println!("{name}: {psnr:.1} dB");
        assert!(psnr >= 50.0, "{name}: {psnr} dB");
    }
    Ok(())
}

/// Asserts that levels are theirs, but for a few that rounding has given the next rank: a value between two levels of `image`
/// that are next to each other is one of 16 between them.
fn assert_within_a_rank(ours: &Tensor, theirs: &Tensor, image: &Tensor) {
    let [ours, theirs, image] = [ours, theirs, image].map(|t| t.to_vec::<f32>().unwrap());
    for band in 0..4 {
        let of = |all: &[f32]| all.iter().skip(band).step_by(4).copied().collect::<Vec<f32>>();
        let mut levels = of(&image);
        levels.sort_by(f32::total_cmp);
        let rank = levels.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max) / 16.0;
        let error = |(a, b): (&f32, &f32)| (a - b).abs();
        let errors: Vec<f32> = of(&ours).iter().zip(&of(&theirs)).map(error).collect();
        assert!(errors.iter().all(|error| *error <= rank + TOLERANCE_OF_STEPS), "band {band}");
        let off = errors.iter().filter(|error| **error > TOLERANCE_OF_STEPS).count();
        println!("band {band}: {off} of {} have another rank", errors.len());
        assert!(off * 100 <= errors.len(), "band {band}: {off} of {}", errors.len());
    }
}

fn psnr(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let squares = ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).powi(2));
    -10.0 * (squares.sum::<f64>() / theirs.len() as f64).log10()
}

#[test]
fn pictures_are_those_of_opensr_model() -> Result<()> {
    check_pictures(&open(Device::Cpu))
}

#[test]
fn a_gpu_makes_what_the_cpu_does() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let golden = golden::open("ldsr/pictures")?;
    let image = get(&golden, "image").narrow(1, 0, 4)?.narrow(2, 4, 8)?.contiguous()?;
    let (_, _, matched) = pictures()[1];
    let sampling = Sampling { steps: 2, match_histograms: false, ..matched };
    let make = |device| enlarge(&open(device), &image, &sampling, &mut torch_noise(5, [4, 8]));
    assert_close("image", &make(gpu)?, &make(Device::Cpu)?, TOLERANCE_OF_STEPS);
    Ok(())
}

/// opensr-model loads the schedule with the weights, whatever the configuration says.
#[test]
fn the_schedule_in_a_file_goes_before_that_of_the_configuration() -> Result<()> {
    let golden = golden::open("ldsr/pictures")?;
    let mut other = config();
    other["denoiser_settings"]["linear_end"] = json!(0.02);
    let betas = || vec![("betas".to_owned(), get(&golden, "betas"))];
    check_pictures(&open_with(&other, betas(), Device::Cpu)?)?;
    let (name, seed, sampling) = pictures()[0];
    let model = open_with(&other, Vec::new(), Device::Cpu)?;
    let large =
        enlarge(&model, &get(&golden, "image"), &sampling, &mut torch_noise(seed, [12, 12]))?;
    let psnr = psnr(&large.to_vec()?, &get(&golden, &format!("{name}.image")).to_vec()?);
    assert!(psnr < 50.0, "{psnr} dB with another schedule");
    other["denoiser_settings"]["timesteps"] = json!(500);
    let error = open_with(&other, betas(), Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("trained_betas"), "{error}");
    Ok(())
}

#[test]
fn an_image_does_not_depend_on_its_company() -> Result<()> {
    let model = open(Device::Cpu);
    let sampling = Sampling { steps: 2, ..pictures()[1].2 };
    let image = get(&golden::open("ldsr/pictures")?, "image");
    let image = |i: usize| -> Result<Tensor> {
        image.narrow(1, i % 5, 4)?.narrow(2, i, 6)?.contiguous() // [1, 4, 6, 4]
    };
    let images = (0..7).map(image).collect::<Result<Vec<_>>>()?;
    let noise = |seeds: std::ops::Range<u64>| {
        let mut streams: Vec<_> = seeds.map(|seed| torch_noise(seed, [4, 6])).collect();
        move |draw| {
            let drawn = streams.iter_mut().map(|next| next(draw)).collect::<Result<Vec<_>>>()?;
            concat(&drawn.iter().collect::<Vec<_>>(), 0)
        }
    };
    let all = concat(&images.iter().collect::<Vec<_>>(), 0)?;
    let together = enlarge(&model, &all, &sampling, &mut noise(0..7))?;
    for (i, image) in images.iter().enumerate() {
        let alone = enlarge(&model, image, &sampling, &mut noise(i as u64..i as u64 + 1))?;
        assert_same(&format!("image {i}"), &together.narrow(0, i, 1)?, &alone);
    }
    Ok(())
}

/// What is no data has no part in the histogram, and the rest has that of the data.
#[test]
fn histograms_are_of_what_has_data() -> Result<()> {
    let model = open(Device::Cpu);
    let sampling = Sampling { steps: 1, ..pictures()[1].2 };
    let image = get(&golden::open("ldsr/pictures")?, "image").narrow(1, 0, 8)?.contiguous()?;
    let (_, h, w, bands) = image.dims4()?;
    let data: Vec<bool> = (0..h * w).map(|i| i % w >= 5).collect();
    let mut levels = image.to_vec::<f32>()?;
    for (pixel, _) in levels.chunks_exact_mut(bands).zip(&data).filter(|(_, data)| !**data) {
        pixel.fill(0.0);
    }
    let image = Tensor::from_vec(levels.clone(), [1, h, w, bands])?;
    let mut noise = torch_noise(1, [h, w]);
    let large = model.enlarge(&image, &data, &sampling, &mut noise, &mut || Ok(()))?;
    let large = large.to_vec::<f32>()?;
    for band in 0..bands {
        let seen = levels.chunks_exact(bands).zip(&data).filter(|(_, data)| **data);
        let seen: Vec<f32> = seen.map(|(pixel, _)| pixel[band]).collect();
        let made = large.chunks_exact(bands).enumerate().filter(|(i, _)| i % (4 * w) / 4 >= 5);
        let made: Vec<f32> = made.map(|(_, pixel)| pixel[band]).collect();
        let least = |of: &[f32]| of.iter().copied().fold(f32::INFINITY, f32::min);
        let most = |of: &[f32]| of.iter().copied().fold(0.0, f32::max);
        assert_eq!([least(&made), most(&made)], [least(&seen), most(&seen)], "band {band}");
        let mean = |of: &[f32]| of.iter().sum::<f32>() / of.len() as f32;
        assert!((mean(&made) - mean(&seen)).abs() < 0.02, "{} {}", mean(&made), mean(&seen));
    }
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_is_refused_by_its_field() {
    let refused = |part: Option<&str>, field: &str, value: &Value| {
        let mut json = config();
        match part {
            Some(part) => json[part][field] = value.clone(),
            None => json[field] = value.clone(),
        }
        open_with(&json, Vec::new(), Device::Cpu).err().map(|e| e.to_string())
    };
    for (part, field, value) in [
        (None, "apply_normalization", json!(true)),
        (None, "encode_conditioning", json!(false)),
        (None, "first_stage_config", json!(3)),
        (None, "unknown", json!(1)),
        (Some("denoiser_settings"), "parameterization", json!("x0")),
        (Some("denoiser_settings"), "linear_end", json!(1.5)),
        (Some("denoiser_settings"), "linear_end", json!("much")),
        (Some("denoiser_settings"), "timesteps", json!(1)),
        (Some("denoiser_settings"), "sampling_steps", json!(0)),
        (Some("denoiser_settings"), "sampling_eta", json!(2.0)),
        (Some("denoiser_settings"), "sampling_temperature", json!(-1.0)),
        (Some("first_stage_config"), "embed_dim", json!(3)),
        (Some("first_stage_config"), "ch_mult", json!([1, 2])),
        (Some("first_stage_config"), "ch_mult", json!([])),
        (Some("first_stage_config"), "ch", json!(33)),
        (Some("first_stage_config"), "out_ch", json!(3)),
        (Some("first_stage_config"), "attn_resolutions", json!([16])),
        (Some("first_stage_config"), "attn_type", json!("linear")),
        (Some("cond_stage_config"), "in_channels", json!(4)),
        (Some("cond_stage_config"), "out_channels", json!(3)),
        (Some("cond_stage_config"), "num_head_channels", json!(0)),
        (Some("cond_stage_config"), "num_head_channels", json!(24)),
        (Some("cond_stage_config"), "num_res_blocks", json!(0)),
        (Some("cond_stage_config"), "use_spatial_transformer", json!(true)),
        (Some("cond_stage_config"), "use_scale_shift_norm", json!(true)),
        (Some("other"), "concat_mode", json!(false)),
    ] {
        let error = refused(part, field, &value);
        let error = error.unwrap_or_else(|| panic!("{field} {value} is taken"));
        let named = field.trim_start_matches("sampling_");
        let named = if field == "ch" { "ch_mult" } else { named };
        assert!(error.contains(named), "{field} {value}: {error}");
    }
    // Shapes that are not those of the file are told by the weights.
    for (part, field, value) in [
        ("cond_stage_config", "model_channels", json!(64)),
        ("cond_stage_config", "attention_resolutions", json!([4])),
        ("cond_stage_config", "channel_mult", json!([1, 2, 2, 2])),
        ("first_stage_config", "num_res_blocks", json!(2)),
        ("first_stage_config", "in_channels", json!(3)),
    ] {
        let mut json = config();
        json[part][field] = value.clone();
        if field == "in_channels" {
            json[part]["out_ch"] = value.clone();
        }
        let error = open_with(&json, Vec::new(), Device::Cpu).err();
        assert!(matches!(error, Some(Error::Weights(_))), "{field} {value}: {error:?}");
    }
}

#[test]
fn other_models_are_refused_by_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |names: &[&str]| {
        let path = folder.path().join("other.safetensors");
        let tensor =
            |name: &&str| ((*name).to_owned(), Tensor::from_vec(vec![1.0_f32], [1]).unwrap());
        let tensors: Vec<_> = names.iter().map(tensor).collect();
        save(&path, &tensors, &BTreeMap::new()).unwrap();
        SuperResolver::open(&path, Device::Cpu).err().unwrap().to_string()
    };
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    let vae = "first_stage_model.encoder.conv_in.weight";
    let text = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight";
    assert!(refused(&["something"]).contains(first));
    assert!(refused(&[first]).contains(vae));
    assert!(refused(&[first, vae]).contains("middle_block.1.qkv"));
    assert!(refused(&[first, vae, text]).contains("told a text"));
    let error = SuperResolver::open(&folder.path().join("model.ckpt"), Device::Cpu).err().unwrap();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    fs::write(folder.path().join("model.ckpt"), b"PK\x03\x04").unwrap();
    let error = SuperResolver::open(&folder.path().join("model.ckpt"), Device::Cpu).err().unwrap();
    assert!(error.to_string().contains("nadir convert --script"), "{error}");
    // Of two files in a folder it would have to be said which.
    let two = folder.path().join("two");
    write_model(&two, &config(), Vec::new());
    let error =
        Checkpoint::open(two.join("ldsr.safetensors"), &Supplement::default()).err().unwrap();
    assert!(error.to_string().contains("nadir super-resolve"), "{error}");
    fs::copy(two.join("ldsr.safetensors"), two.join("again.safetensors")).unwrap();
    let error = SuperResolver::open(&two, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("2 of them"), "{error}");
}

/// A folder with `model/` and `scene.tif`.
struct Desk {
    folder: TempDir,
}

/// Pixels of the scene.
const SIZE: [usize; 2] = [37, 29];

/// Bands of the scene; the model sees the second to the last.
const BANDS: usize = 5;

/// What the scene has at a place: no data in the first 20 x 18 pixels.
fn number(y: usize, x: usize, band: usize) -> u16 {
    if x < 20 && y < 18 {
        return 0;
    }
    (400 + 300 * band + (x * 37 + y * 91 + x * y * band) % 900) as u16
}

fn write_scene(path: &Path, georeference: Option<Georeference>, samples: SampleKind) {
    let [width, height] = SIZE;
    let cog = Cog { georeference, nodata: Some(0.0), ..Cog::new(width, height, BANDS, samples) };
    let mut writer = CogWriter::create(path, cog, true).unwrap();
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
    let numbers = places.flat_map(|(y, x)| (0..BANDS).map(move |band| number(y, x, band)));
    let bytes: Vec<u8> = match samples {
        SampleKind::U16 => numbers.flat_map(u16::to_ne_bytes).collect(),
        _ => numbers.map(|number| (number / 16) as u8).collect(),
    };
    writer.write_rows(&bytes).unwrap();
    writer.finish().unwrap();
}

fn place() -> Georeference {
    Georeference::from_bbox([485_900.0, 5_205_000.0, 486_270.0, 5_205_290.0], 32614, 37, 29)
        .unwrap()
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        write_model(&desk.path("model"), &config(), Vec::new());
        write_scene(&desk.path("scene.tif"), Some(place()), SampleKind::U16);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
        let fixed = ["super-resolve", "-m", "model", "--device=cpu"];
        command.args(fixed).args(args).current_dir(self.folder.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What is written of the scene with these arguments more.
    fn made(&self, args: &[&str]) -> Vec<u8> {
        let fixed = ["scene.tif", "-o", "out.tif", "--bands=2,3,4,5", "--steps=2", "--overlap=4"];
        let output = self.run(&[&fixed, args].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {said}");
        assert_eq!(output.stdout, b"out.tif\n");
        fs::read(self.path("out.tif")).unwrap()
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Numbers of a whole file, [height, width, bands].
fn numbers(path: &Path) -> Vec<f64> {
    let mut file = GeoTiff::open(path).unwrap();
    let about = file.about().clone();
    let window = Window { x: 0, y: 0, width: about.width, height: about.height };
    about.samples.numbers(&file.read(window).unwrap())
}

#[test]
fn a_scene_gets_smaller_pixels_at_its_place() {
    let desk = Desk::new();
    desk.made(&[]);
    assert_eq!(desk.entries(), ["model", "out.tif", "scene.tif"]);
    let made = numbers(&desk.path("out.tif"));
    let about = GeoTiff::open(desk.path("out.tif")).unwrap().about().clone();
    let [width, height] = SIZE.map(|side| 4 * side);
    assert_eq!((about.width, about.height, about.bands), (width, height, 4));
    assert_eq!((about.samples, about.nodata), (SampleKind::U16, Some(0.0)));
    // 1. without data where the scene is, and nowhere else; in the order and the range of the bands
    let mut sums = [0.0; 4];
    for (i, pixel) in made.chunks_exact(4).enumerate() {
        let (y, x) = (i / width / 4, i % width / 4);
        let none = number(y, x, 0) == 0;
        assert_eq!(pixel.iter().all(|number| *number == 0.0), none, "{y} {x}: {pixel:?}");
        for (band, number) in pixel.iter().enumerate().filter(|_| !none) {
            let least = 400.0 + 300.0 * (band + 1) as f64;
            assert!((least..least + 900.0).contains(number), "{y} {x}: {pixel:?}");
            sums[band] += number;
        }
    }
    // 2. levels that are those of the scene, by their histograms
    for (band, sum) in sums.into_iter().enumerate() {
        let places = (0..SIZE[1]).flat_map(|y| (0..SIZE[0]).map(move |x| (y, x)));
        let own: f64 = places.map(|(y, x)| f64::from(number(y, x, band + 1))).sum();
        assert!((sum / 16.0 / own - 1.0).abs() < 0.05, "band {band}: {sum} {own}");
    }
    // 3. where GDAL sees it
    if !gdal() {
        return;
    }
    let output = Command::new("gdalinfo").arg("-json").arg(desk.path("out.tif")).output().unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["size"], json!([width, height]));
    assert_eq!(info["geoTransform"], json!([485_900.0, 2.5, 0.0, 5_205_290.0, 0.0, -2.5]));
    assert!(info["coordinateSystem"]["wkt"].as_str().unwrap().contains("UTM zone 14N"), "{info}");
    assert_eq!(info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"], "COG");
    let bands = info["bands"].as_array().unwrap();
    assert_eq!(bands.len(), 4);
    assert!(
        bands.iter().all(|band| band["type"] == "UInt16" && band["noDataValue"] == 0.0),
        "{info}"
    );
}

/// Whether there is GDAL; says what does without.
fn gdal() -> bool {
    let there = Command::new("gdalinfo").arg("--version").output();
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var_os("NADIR_REQUIRE_TOOLS").is_none(), "no gdalinfo on the path");
        println!("skipped: what GDAL sees; no gdalinfo on the path (Debian: gdal-bin)");
    }
    there
}

#[test]
fn a_pixel_depends_on_neither_batch_nor_threads_and_on_the_seed() {
    let desk = Desk::new();
    let noisy = ["--eta=0.5", "--seed=7"];
    let alone = desk.made(&[&noisy[..], &["--batch-size=1", "--threads=1"]].concat());
    let seven = desk.made(&[&noisy[..], &["--batch-size=7", "--threads=2"]].concat());
    assert!(alone == seven, "a batch shows");
    for other in [["--eta=0.5", "--seed=8"], ["--eta=0.6", "--seed=7"]] {
        assert!(desk.made(&other) != alone, "{other:?} does not show");
    }
    let colder = desk.made(&[&noisy[..], &["--temperature=0.5"]].concat());
    assert!(colder != alone, "temperature does not show");
    assert!(desk.made(&[&noisy[..], &["--no-histogram-matching"]].concat()) != alone);
    assert!(desk.made(&[&noisy[..], &["--window=12"]].concat()) != alone);
}

#[test]
fn what_cannot_be_is_said_and_leaves_nothing() {
    let desk = Desk::new();
    write_scene(&desk.path("bytes.tif"), Some(place()), SampleKind::U8);
    png::write(&desk.path("picture.png"), &image::RgbImage::new(8, 8), &[]).unwrap();
    let before = desk.entries();
    let refused = |args: &[&str], expected: &str| {
        let output = desk.run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert_eq!(desk.entries(), before, "{args:?}");
    };
    let scene = ["scene.tif", "-o", "out.tif", "--bands=2,3,4,5"];
    refused(&scene[..3], "expected 4, as the model sees, found 5");
    refused(&[&scene[..3], &["--bands=1,2,3"]].concat(), "--bands");
    refused(&[&scene[..3], &["--bands=3,4,5,6"]].concat(), "from 1 to 5");
    refused(&["picture.png", "-o", "out.tif"], "found 3");
    refused(&["bytes.tif", "-o", "out.tif", "--bands=2,3,4,5"], "--scale");
    for (setting, expected) in [
        ("--scale=5,5", "--scale"),
        ("--scale=0,nan", "--scale"),
        ("--scale=1,2,3", "--scale"),
        ("--window=15", "multiple of 4"),
        ("--overlap=9", "half of a window"),
        ("--batch-size=0", "--batch-size"),
        ("--steps=0", "--steps"),
        ("--steps=1001", "--steps"),
        ("--eta=1.5", "--eta"),
        ("--temperature=-1", "--temperature"),
        ("--model=scene.tif", "scene.tif"),
        ("--model=nothing", "nothing"),
    ] {
        let mut args = scene.to_vec();
        args.push(setting);
        if setting.starts_with("--model") {
            let output = Command::new(env!("CARGO_BIN_EXE_nadir"))
                .args([&["super-resolve", "--device=cpu"], &args[..]].concat())
                .current_dir(desk.folder.path())
                .output()
                .unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
            assert!(said.contains(expected), "{args:?}: {said}");
            continue;
        }
        refused(&args, expected);
    }
    refused(&["scene.tif", "-o", "out.png"], "ends in .tif");
    refused(&["scene.tif", "-o", "scene.tif"], "the scene itself");
    refused(&["scene.tif", "-o", "nowhere/out.tif"], "nowhere");
    refused(&["absent.tif", "-o", "out.tif"], "absent.tif");
}

#[test]
fn a_scene_of_8_bits_or_without_a_place_is_taken_as_it_is() {
    let desk = Desk::new();
    write_scene(&desk.path("scene.tif"), None, SampleKind::U8);
    let fixed = ["scene.tif", "-o", "out.tif", "--bands=2,3,4,5", "--steps=1", "--scale=0,600"];
    let output = desk.run(&fixed);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("no transform"), "{said}");
    let about = GeoTiff::open(desk.path("out.tif")).unwrap().about().clone();
    assert_eq!(about.samples, SampleKind::U8);
    assert_eq!(about.georeference.and_then(|place| place.transform), None);
    let placed = ["--bbox=485900,5205000,486270,5205290", "--epsg=32614", "--quiet"];
    let output = desk.run(&[&fixed, &placed[..]].concat());
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let about = GeoTiff::open(desk.path("out.tif")).unwrap().about().clone();
    let transform = about.georeference.unwrap().transform;
    assert_eq!(transform, Some([485_900.0, 2.5, 0.0, 5_205_290.0, 0.0, -2.5]));
}

#[test]
fn interruption_leaves_nothing() {
    let desk = Desk::new();
    let before = desk.entries();
    let args = ["scene.tif", "-o", "out.tif", "--bands=2,3,4,5", "--steps=500"];
    let mut child = desk.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while desk.entries() == before && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(child.try_wait().unwrap().is_none(), "it is done");
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(desk.entries(), before);
}

/// The whole of a published file's layout: averages and tables that have no part in it are passed over.
#[test]
fn averages_and_tables_have_no_part() -> Result<()> {
    let ones = |name: &str| (name.to_owned(), Tensor::from_vec(vec![1.0_f32; 2], [2]).unwrap());
    let more = ["model_ema.diffusion_modelout2bias", "alphas_cumprod", "model_ema.decay"];
    let model = open_with(&config(), more.map(ones).to_vec(), Device::Cpu)?;
    assert_eq!((model.bands(), model.multiple(), model.window()), (4, 4, 16));
    Ok(())
}
