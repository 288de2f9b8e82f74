//! ControlNets against diffusers, on the small random configurations of `golden/controlnet.py`; and the command line that
//! gives them pictures.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;
#[path = "golden/server.rs"]
mod server;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use case::{Case, check_company, check_drawn, psnr};
use golden::drawn::{self, Drawn};
use golden::{assert_close, assert_same, get};
use gpu::gpu;
use image::{Rgb, RgbImage};
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::raster::{Levels, Raster};
use nadir::io::safetensors::SafeTensors;
use nadir::models::unet::{ControlNet, ControlNetConfig, Unet, UnetConfig};
use nadir::nn::{Params, parameters};
use nadir::pipeline::{Control, LoadOptions, Preprocessor, Request, TextToImage, canny};
use nadir::tensor::{DType, Device};
use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;

/// As in `models.rs`: sums of a few hundred terms in another order, through some dozens of layers.
const TOLERANCE: f32 = 1e-5;

const NETS: [&str; 5] = ["plain", "bgr", "five", "pooled", "sd21"];

fn load(name: &str, device: Device) -> Result<ControlNet> {
    let weights = Drawn::by_inputs(&format!("controlnet/{name}"));
    let config = Config::open(golden::path(&format!("controlnet/{name}/config.json")))?;
    let config = ControlNetConfig::read(&config.bounded_by(&weights))?;
    let params = Params::new(weights, DType::F32, device);
    let model = ControlNet::load(config, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new(), "unused weights");
    assert_eq!(
        parameters(&model).len(),
        Drawn::by_inputs(&format!("controlnet/{name}")).names().len()
    );
    Ok(model)
}

/// The UNet that a network goes with.
fn unet(net: &str, device: Device) -> Result<Unet> {
    let name = if net == "sd21" { "models/unet_sd21" } else { "models/unet_sd15" };
    let config = Config::open(golden::path(&format!("{name}/config.json")))?;
    let weights = Drawn::by_inputs(name);
    Unet::load(UnetConfig::read(&config)?, &Params::new(weights, DType::F32, device))
}

fn check_net(name: &str, device: Device) -> Result<()> {
    let golden = golden::open(&format!("controlnet/{name}"))?;
    let (net, unet) = (load(name, device)?, unet(name, device)?);
    let of = |name: &str| get(&golden, name).to_device(device);
    let (sample, text, picture) = (of("sample")?, of("text")?, of("picture")?);
    let timesteps = get(&golden, "timesteps").to_vec::<f32>()?;
    let hint = net.hint(&picture)?;
    let (own, times) = (net.embed_timesteps(&timesteps)?, unet.embed_timesteps(&timesteps)?);
    for (output, guess) in [("out", false), ("guess", true)] {
        let together = {
            let added = net.forward(&sample, &hint, &own, &net.context(&text)?, 0.7, guess)?;
            unet.forward_with(&sample, &times, &unet.context(&text)?, &[added])?
        };
        assert_close(&format!("{name} {output}"), &together, &get(&golden, output), TOLERANCE);
        for i in 0..sample.dim(0) {
            let row = |t: &nadir::tensor::Tensor| t.narrow(0, i, 1);
            let text = row(&text)?;
            let context = net.context(&text)?;
            let added =
                net.forward(&row(&sample)?, &row(&hint)?, &row(&own)?, &context, 0.7, guess)?;
            let context = unet.context(&text)?;
            let alone = unet.forward_with(&row(&sample)?, &row(&times)?, &context, &[added])?;
            assert_same(&format!("{name} {output} {i}"), &together.narrow(0, i, 1)?, &alone);
        }
    }
    Ok(())
}

#[test]
fn every_network_adds_what_diffusers_does() -> Result<()> {
    NETS.iter().try_for_each(|name| check_net(name, Device::Cpu))
}

#[test]
fn a_gpu_adds_what_the_cpu_does() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    check_net("pooled", gpu)
}

fn write(name: &str, to: &Path) {
    drawn::write(&format!("controlnet/{name}"), to);
}

/// A pipeline, and ControlNets beside it.
struct Desk {
    case: Case,
    beside: TempDir,
    nets: Vec<PathBuf>,
}

impl Desk {
    fn open(name: &str) -> Result<Self> {
        let case = Case::of("controlnet", name)?;
        let beside = tempfile::tempdir().unwrap();
        let own = case.json["components"].get("controlnet").is_some();
        let mut nets = Vec::new();
        for net in case.json["nets"].as_array().unwrap().iter().filter(|_| !own) {
            let to = beside.path().join(net.as_str().unwrap());
            write(net.as_str().unwrap(), &to);
            nets.push(to);
        }
        Ok(Self { case, beside, nets })
    }

    fn load(&self, device: Device) -> Result<TextToImage> {
        let controlnets = self.nets.clone();
        let options = LoadOptions { device, controlnets, ..LoadOptions::default() };
        TextToImage::load(self.case.folder(), &options)
    }

    fn request(&self, pictures: &[RgbImage]) -> Request {
        let json = &self.case.json;
        let controls = json["controls"].as_array().unwrap().iter().zip(pictures);
        let control = |(control, picture): (&Value, &RgbImage)| {
            let number = |i: usize| control[i].as_f64().unwrap();
            let (scale, start, end) = (number(0) as f32, number(1), number(2));
            Control { scale, start, end, ..Control::new(raster(picture)) }
        };
        let guess_mode = json["guess_mode"].as_bool().unwrap();
        Request { controls: controls.map(control).collect(), guess_mode, ..self.case.request() }
    }
}

fn raster(picture: &RgbImage) -> Raster {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Raster { height, width, bands: 3, levels: Levels::U8(picture.as_raw().clone()) }
}

/// What `pipelines.py` starts from: a smooth picture, and a mask.
fn pictures() -> [RgbImage; 2] {
    let golden = golden::open("pipelines/inpaint_ddim").unwrap();
    let of = |name: &str| get(&golden, name).to_vec::<u8>().unwrap();
    let (chip, mask) = (of("init"), of("mask"));
    let chip = RgbImage::from_raw(48, 64, chip).unwrap();
    let mask = mask.into_iter().flat_map(|level| [level; 3]).collect();
    [chip, RgbImage::from_raw(48, 64, mask).unwrap()]
}

fn check_picture(name: &str, device: Device) -> Result<()> {
    let [chip, mask] = pictures();
    let pictures = if matches!(name, "pool" | "image") { vec![mask] } else { vec![chip, mask] };
    let desk = Desk::open(name)?;
    check_drawn(&desk.case, name, &desk.load(device)?, &desk.request(&pictures), device)
}

#[test]
fn one_that_the_pipeline_has_counts_for_a_part_of_the_steps() -> Result<()> {
    check_picture("one", Device::Cpu)
}

#[test]
fn two_count_each_by_its_scale() -> Result<()> {
    check_picture("two", Device::Cpu)
}

/// As `MultiControlNetModel.save_pretrained` of diffusers writes them into a pipeline's folder.
#[test]
fn two_that_the_pipeline_has_count_as_two_beside_it() -> Result<()> {
    let desk = Desk::open("two")?;
    let index = desk.case.folder().join("model_index.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    json["_class_name"] = "StableDiffusionControlNetPipeline".into();
    json["controlnet"] = json!(["diffusers", "MultiControlNetModel"]);
    fs::write(&index, json.to_string()).unwrap();
    for (net, folder) in [("plain", "controlnet"), ("bgr", "controlnet_1")] {
        write(net, &desk.case.folder().join(folder));
    }
    let model = TextToImage::load(desk.case.folder(), &LoadOptions::default())?;
    check_drawn(&desk.case, "two", &model, &desk.request(&pictures()), Device::Cpu)
}

#[test]
fn in_guess_mode_the_unconditional_half_sees_nothing() -> Result<()> {
    check_picture("guess", Device::Cpu)
}

#[test]
fn a_pooled_one_is_in_guess_mode_always() -> Result<()> {
    check_picture("pool", Device::Cpu)
}

#[test]
fn a_picture_is_started_from_and_another_followed() -> Result<()> {
    check_picture("image", Device::Cpu)
}

#[test]
fn a_picture_is_painted_into_as_another_says() -> Result<()> {
    check_picture("paint", Device::Cpu)
}

#[test]
fn a_gpu_follows_what_the_cpu_follows() -> Result<()> {
    if gpu().is_none() {
        return Ok(());
    }
    check_picture("guess", gpu().unwrap())
}

/// Pictures that are followed in company, each another by another weight for other steps, are those drawn alone.
#[test]
fn company_changes_nothing_that_is_followed() -> Result<()> {
    let desk = Desk::open("two")?;
    let model = desk.load(Device::Cpu)?;
    let [chip, mask] = pictures();
    let request = |i: u64| {
        let mut request = desk.request(&[chip.clone(), mask.clone()]);
        request.settings.steps = Some(4);
        request.guess_mode = i == 2 || i == 3;
        request.settings.guidance_scale = Some(if i == 3 || i == 4 { 1.0 } else { 5.0 });
        request.controls[0].scale = if i == 5 { 0.0 } else { 1.0 };
        request.controls[1].start = if i == 6 { 0.25 } else { 0.0 };
        if i == 1 {
            request.controls[0].picture = Arc::new(raster(&mask));
        }
        request
    };
    check_company(&model, &(0..7).map(request).collect::<Vec<_>>())
}

#[test]
fn edges_are_those_of_opencv() {
    let golden = SafeTensors::open(golden::path("controlnet/edges.safetensors")).unwrap();
    let levels = get(&golden, "picture");
    let (height, width) = (levels.dim(0) as u32, levels.dim(1) as u32);
    let picture = RgbImage::from_raw(width, height, levels.to_vec().unwrap()).unwrap();
    for (low, high) in [(300, 500), (100, 200), (20, 600)] {
        let theirs = get(&golden, &format!("{low}.{high}")).to_vec::<u8>().unwrap();
        assert!(canny(&picture, low, high) == theirs, "{low} {high}");
    }
    assert!(canny(&RgbImage::from_pixel(1, 1, Rgb([9; 3])), 0, 0) == [0]);
}

#[test]
fn a_preprocessor_says_what_it_is() {
    for text in ["as-is", "canny:20,60", "palette:colors.json"] {
        assert_eq!(text.parse::<Preprocessor>().unwrap().to_string(), text);
    }
    assert_eq!("canny".parse::<Preprocessor>().unwrap(), Preprocessor::Canny(100, 200));
    for text in ["", "depth", "canny:1", "canny:2,1", "canny:-1,2", "palette:", "as-is:x"] {
        assert!(text.parse::<Preprocessor>().is_err(), "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    image::GrayImage::from_raw(2, 1, vec![0, 3]).unwrap().save(at("mask.png")).unwrap();
    let paint = |json: &str| {
        fs::write(at("colors.json"), json).unwrap();
        Preprocessor::Palette(at("colors.json")).open(&at("mask.png"))
    };
    let painted = paint(r##"{"0": "#010203", "3": "#ff0080"}"##).unwrap();
    assert_eq!((painted.width, painted.height, painted.bands), (2, 1, 3));
    assert_eq!(painted.levels, Levels::U8(vec![1, 2, 3, 255, 0, 128]));
    for (json, words) in [
        (r##"{"0": "#010203"}"##, "class 3"),
        (r##"["#010203", "#010203", "#010203", "red"]"##, "class 3"),
        ("{", "JSON"),
    ] {
        let error = paint(json).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("colors.json"), "{error}");
    }
}

fn nadir(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(args).current_dir(at).env_remove("NADIR_WEIGHTS").output().unwrap()
}

#[test]
fn the_command_line_gives_pictures_to_follow() -> Result<()> {
    let [chip, mask] = pictures();
    for name in ["one", "two"] {
        let desk = Desk::open(name)?;
        let at = desk.beside.path();
        chip.save(at.join("chip.png")).unwrap();
        mask.save(at.join("mask.png")).unwrap();
        let arguments = &desk.case.json["arguments"];
        let text = |name: &str| arguments[name].as_str().unwrap();
        let mut args = vec!["generate", text("prompt"), "-n", text("negative_prompt")];
        args.extend(["-m", desk.case.folder().to_str().unwrap(), "-s2", "--steps=10"]);
        args.extend(["-W24", "-H32", "--cfg-scale=7.5", "-o", "out.png"]);
        args.extend(match name {
            "one" => &[
                "--control-image=chip.png",
                "--control-scale=0.8",
                "--control-start=0.2",
                "--control-end=0.75",
            ][..],
            _ => &[
                "--controlnet=plain",
                "--controlnet=bgr",
                "--control-image=chip.png",
                "--control-image=mask.png",
                "--control-scale=0.6",
                "--control-scale=0.9",
                "--control-end=1",
                "--control-end=0.5",
            ],
        });
        let output = nadir(at, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let picture = |name: &str| image::open(at.join(name)).unwrap().into_rgb8().into_raw();
        let theirs = get(&golden::open(&format!("controlnet/{name}"))?, "image").to_vec()?;
        let psnr = psnr(&picture("out.png"), &theirs);
        assert!(psnr >= 50.0, "{name}: {psnr} dB");
        let again = nadir(at, &["replay", "out.png", "-o", "again.png"]);
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        assert!(picture("again.png") == picture("out.png"), "{name}");
    }
    Ok(())
}

/// Rows that follow pictures, in company, are the pictures of the command line, one by one.
#[test]
fn a_manifest_gives_pictures_to_follow() -> Result<()> {
    let [chip, mask] = pictures();
    let desk = Desk::open("one")?;
    let at = desk.beside.path();
    let model = desk.case.folder().to_str().unwrap();
    let common = ["-m", model, "--steps=3", "-n", "low quality", "--control-scale=0.7"];
    let beside = ["--controlnet=bgr"];
    write("bgr", &at.join("bgr"));
    fs::create_dir(at.join("in")).unwrap();
    for folder in ["", "in"] {
        chip.save(at.join(folder).join("chip.png")).unwrap();
        mask.save(at.join(folder).join("mask.png")).unwrap();
    }
    // Both ControlNets follow pictures of their own; some count for a part of the steps or not at all.
    let said = [
        (r#""control_image": ["chip.png", "mask.png"]"#, &["chip.png", "mask.png"][..], &[][..]),
        (r#""control_image": ["mask.png", "chip.png"]"#, &["mask.png", "chip.png"], &[]),
        (
            r#""control_image": ["chip.png", "mask.png"], "control_scale": [0.5, 1.5]"#,
            &["chip.png", "mask.png"],
            &["--control-scale=0.5", "--control-scale=1.5"],
        ),
        (
            r#""control_image": ["chip.png", "chip.png"], "control_end": [0.5, 1], "control_start": 0.1"#,
            &["chip.png", "chip.png"],
            &["--control-scale=0.7", "--control-end=0.5", "--control-end=1", "--control-start=0.1"],
        ),
        (
            r#""control_image": ["chip.png", "mask.png"], "control_scale": 0, "guidance_scale": 1"#,
            &["chip.png", "mask.png"],
            &["--control-scale=0", "--cfg-scale=1"],
        ),
        (r#""control_image": ["mask.png", "mask.png"]"#, &["mask.png", "mask.png"], &[]),
        (
            r#""control_image": ["mask.png", "chip.png"], "control_scale": [1.5, 0.5]"#,
            &["mask.png", "chip.png"],
            &["--control-scale=1.5", "--control-scale=0.5"],
        ),
    ];
    let rows =
        said.iter().map(|(row, ..)| format!("{{\"prompt\": \"a river\", \"seed\": 5, {row}}}"));
    let rows: Vec<String> = rows.collect();
    fs::write(at.join("in/rows.jsonl"), rows.join("\n")).unwrap();
    let draw = |manifest: &str, out: &str| {
        let args = ["generate", "--manifest", manifest, "-o", out, "--batch=3"];
        nadir(at, &[&args[..], &common, &beside].concat())
    };
    let files = |output: &Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    assert_eq!(files(&draw("in/rows.jsonl", "out")), 7);
    let read = |path: &Path| image::open(path).unwrap().into_rgb8();
    let lines = fs::read_to_string(at.join("out/metadata.jsonl")).unwrap();
    let names: Vec<String> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["file_name"].as_str().unwrap().into()
        })
        .collect();
    let row = |i: usize| read(&at.join("out").join(&names[i]));
    for (i, (_, images, more)) in said.iter().enumerate() {
        let images: Vec<String> = images.iter().map(|n| format!("--control-image={n}")).collect();
        let images: Vec<&str> = images.iter().map(String::as_str).collect();
        let scale = if more.is_empty() { &common[..] } else { &common[..5] };
        let args = ["generate", "a river", "-s5", "-o", "alone.png"];
        files(&nadir(at, &[&args[..], scale, &beside, &images, more].concat()));
        assert!(read(&at.join("alone.png")) == row(i), "row {}", i + 1);
        assert!((0..i).all(|other| row(other) != row(i)), "row {}", i + 1);
    }
    // What is there is done, wherever the pictures lie that were followed; others are others.
    fs::rename(at.join("in"), at.join("moved")).unwrap();
    assert_eq!(files(&draw("moved/rows.jsonl", "out")), 0);
    let picture = at.join("out").join(&names[2]);
    let replay = |to: &str| nadir(at, &["replay", picture.to_str().unwrap(), "-o", to]);
    assert!(!replay("again.png").status.success());
    fs::rename(at.join("moved"), at.join("in")).unwrap();
    files(&replay("again.png"));
    assert!(read(&at.join("again.png")) == row(2));
    chip.save(at.join("in/mask.png")).unwrap();
    assert_eq!(files(&draw("in/rows.jsonl", "out")), 4);

    // Nothing is drawn of a manifest that cannot be.
    fs::write(at.join("in/text.png"), "no picture").unwrap();
    for (last, words) in [
        (r#""control_image": ["chip.png", "none.png"]"#, &["row 8", "none.png"][..]),
        (r#""control_image": ["chip.png", "text.png"]"#, &["row 8", "text.png"]),
        (r#""control_image": "chip.png""#, &["row 8", "2 in all"]),
        (
            r#""control_image": ["chip.png", "chip.png"], "control_scale": -1"#,
            &["row 8", "control_scale"],
        ),
        (
            r#""control_image": ["chip.png", "chip.png"], "control_scale": [1, 1, 1]"#,
            &["row 8", "control_scale", "3 of them"],
        ),
        (r#""control_scale": 1"#, &["row 8", "control_scale"]),
        (
            r#""control_image": ["chip.png", "chip.png"], "ip_image": "chip.png""#,
            &["row 8", "no IP-Adapter"],
        ),
    ] {
        fs::write(at.join("in/odd.jsonl"), format!("{}\n{{{last}}}\n", rows.join("\n"))).unwrap();
        let output = draw("in/odd.jsonl", "nothing");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(1 | 2)) && !told.contains("panicked"),
            "{told}"
        );
        assert!(words.iter().all(|word| told.contains(word)), "{last}: {told}");
        let drawn = fs::read_dir(at.join("nothing")).map_or(0, |entries| entries.count());
        assert_eq!(drawn, 0, "{last}");
    }
    Ok(())
}

#[test]
fn a_server_is_sent_pictures_to_follow() -> Result<()> {
    let base64 = |picture: &RgbImage| {
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        STANDARD.encode(png.into_inner())
    };
    let [chip, mask] = pictures().map(|picture| base64(&picture));
    for name in ["one", "two"] {
        let desk = Desk::open(name)?;
        let (nets, controls) = match name {
            "one" => (vec![], json!([{"image": chip, "scale": 0.8, "start": 0.2, "end": 0.75}])),
            _ => (
                vec!["--controlnet=plain", "--controlnet=bgr"],
                json!([{"image": chip, "scale": 0.6}, {"image": mask, "scale": 0.9, "end": 0.5}]),
            ),
        };
        let folder = format!("--model={}", desk.case.folder().display());
        let server = Server::start(desk.beside.path(), &[&[folder.as_str()], &nets[..]].concat());
        let arguments = &desk.case.json["arguments"];
        let mut body = json!({
            "kind": "image", "prompt": arguments["prompt"],
            "negative_prompt": arguments["negative_prompt"], "seed": 2, "steps": 10,
            "width": 24, "height": 32, "guidance_scale": 7.5, "control_images": controls,
        });
        // 1. it is diffusers' picture
        let png = server.picture(&body);
        let ours = image::load_from_memory(&png).unwrap().into_rgb8().into_raw();
        let theirs = get(&golden::open(&format!("controlnet/{name}"))?, "image").to_vec()?;
        let psnr = psnr(&ours, &theirs);
        assert!(psnr >= 50.0, "{name}: {psnr} dB");
        // 2. in the web UI's words it is the same
        let units = |controls: &Value| {
            let unit = |control: &Value| {
                json!({"image": control["image"], "module": "none", "pixel_perfect": true, "weight": control["scale"],
                    "guidance_start": control.get("start").unwrap_or(&json!(0)),
                    "guidance_end": control.get("end").unwrap_or(&json!(1))})
            };
            controls.as_array().unwrap().iter().map(unit).collect::<Vec<_>>()
        };
        let mut webui = json!({
            "prompt": arguments["prompt"], "negative_prompt": arguments["negative_prompt"], "seed": 2, "steps": 10,
            "width": 24, "height": 32, "cfg_scale": 7.5,
            "alwayson_scripts": {"ControlNet": {"args": units(&controls)}},
        });
        let (status, told) = server.post_to("/sdapi/v1/txt2img", &webui);
        assert_eq!(status, 200, "{told}");
        let same = STANDARD.decode(told["images"][0].as_str().unwrap()).unwrap();
        assert!(image::load_from_memory(&same).unwrap().into_rgb8().into_raw() == ours, "{name}");
        let of_unit = |field: &str, value: Value| {
            let mut units = units(&controls);
            units[0][field] = value;
            json!({"controlnet": {"args": units}})
        };
        let at = "alwayson_scripts.controlnet.args";
        for (scripts, field) in [
            (of_unit("enabled", json!(false)), at.to_owned()),
            (of_unit("image", json!(null)), format!("{at}[0].image")),
            (of_unit("module", json!("depth_midas")), format!("{at}[0].module")),
            (of_unit("weight", json!(-1)), format!("{at}.weight")),
            (of_unit("control_mode", json!(1)), format!("{at}[0].control_mode")),
            (of_unit("threshold_a", json!("high")), format!("{at}[0]")),
            (json!({"ADetailer": {"args": [{}]}}), "alwayson_scripts.ADetailer".to_owned()),
        ] {
            webui["alwayson_scripts"] = scripts;
            let (status, told) = server.post_to("/sdapi/v1/txt2img", &webui);
            assert_eq!((status, &told["error"]["field"]), (400, &json!(field)), "{told}");
        }
        if name == "two" {
            let named = |model: &str| {
                json!({"controlnet": {"args": [
                {"image": chip, "model": model}, {"image": mask, "model": "bgr"}]}})
            };
            webui["alwayson_scripts"] = named("bgr [12345678]");
            let (status, told) = server.post_to("/sdapi/v1/txt2img", &webui);
            assert_eq!(status, 400, "{told}");
            assert!(told["error"]["message"].as_str().unwrap().contains("plain, bgr"), "{told}");
            webui["alwayson_scripts"] = named("plain [12345678]");
            assert_eq!(server.post_to("/sdapi/v1/txt2img", &webui).0, 200);
        }
        // 3. what cannot be is refused by its name
        let none = json!([]);
        let of = |field: &str, value: Value| {
            let mut controls = controls.clone();
            controls[0][field] = value;
            controls
        };
        for (wrong, field) in [
            (none, "control_images"),
            (of("image", json!("AAAA")), "control_images"),
            (of("scale", json!(-1)), "control_images.scale"),
            (of("end", json!(0)), "control_images.end"),
            (of("preprocessor", json!("palette:/etc/passwd")), "control_images.preprocessor"),
            (of("preprocessor", json!("depth")), "control_images.preprocessor"),
            (of("path", json!("chip.png")), "control_images[0].path"),
        ] {
            body["control_images"] = wrong;
            let (status, told) = server.post(&body);
            assert_eq!((status, &told["error"]["field"]), (400, &json!(field)), "{told}");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let desk = Desk::open("two")?;
    let at = desk.beside.path();
    let [chip, _] = pictures();
    chip.save(at.join("chip.png")).unwrap();
    let changed = |name: &str, field: &str, value: Value| {
        let to = at.join(name);
        write("plain", &to);
        let path = to.join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[field] = value;
        fs::write(path, json.to_string()).unwrap();
    };
    changed("wide", "block_out_channels", vec![16, 24, 40].into());
    changed("text", "cross_attention_dim", 48.into());
    changed("time", "_class_name", "ControlNetModel3D".into());
    changed("told", "class_embed_type", "timestep".into());
    let model = desk.case.folder().to_str().unwrap();
    let image = "--control-image=chip.png";
    for (args, words) in [
        (&["--controlnet=wide", image][..], "block_out_channels"),
        (&["--controlnet=text", image], "cross_attention_dim"),
        (&["--controlnet=time", image], "3D ControlNets"),
        (&["--controlnet=told", image], "class_embed_type"),
        (&["--controlnet=none", image], "none"),
        (&["--controlnet=plain"], "--control-image"),
        (&[image], "--control-image"),
        (&["--controlnet=plain", image, image], "--control-image"),
        (&["--controlnet=plain", "--control-image=none.png"], "none.png"),
        (&["--controlnet=plain", image, "--control-scale=NaN"], "--control-scale"),
        (
            &["--controlnet=plain", image, "--control-scale=1", "--control-scale=2"],
            "--control-scale",
        ),
        (&["--controlnet=plain", image, "--control-start=-0.1"], "--control-start"),
        (
            &["--controlnet=plain", image, "--control-start=0.5", "--control-end=0.5"],
            "--control-end",
        ),
        (&["--controlnet=plain", image, "--control-preprocessor=depth"], "--control-preprocessor"),
        (&["--guess-mode"], "--guess-mode"),
    ] {
        let common = ["generate", "a", "-m", model, "-W24", "-H32", "--steps=1"];
        let output = nadir(at, &[&common, args].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {told}");
        assert!(told.contains(words) && !told.contains("panicked"), "{args:?}: {told}");
    }
    Ok(())
}
