//! IP-Adapters against diffusers, on what `golden/ip_adapter.py` writes; and the command line that is given pictures as prompts.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use case::{Case, check_company, check_drawn, generate, psnr};
use golden::drawn::{Drawn, write};
use golden::{assert_close, get};
use gpu::gpu;
use image::RgbImage;
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::unet::{IpAdapter, Unet, UnetConfig};
use nadir::nn::Params;
use nadir::pipeline::{ImagePrompt, LoadOptions, Request, TextToImage};
use nadir::tensor::{DType, Device, Tensor};
use tempfile::TempDir;

const KINDS: [&str; 2] = ["base", "plus"];

/// A pipeline, and beside it an adapter, an encoder and a picture.
struct Desk {
    case: Case,
    beside: TempDir,
}

impl Desk {
    fn open(name: &str) -> Result<Self> {
        let (case, beside) = (Case::of("ip_adapter", name)?, tempfile::tempdir().unwrap());
        let desk = Self { case, beside };
        Drawn::by_inputs(&format!("ip_adapter/{name}")).save(&desk.path("adapter.safetensors"));
        write("ip_adapter/encoder", &desk.path("encoder"));
        picture(name)?.save(desk.path("picture.png")).unwrap();
        Ok(desk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.beside.path().join(name)
    }

    fn load(&self, device: Device) -> Result<TextToImage> {
        let (ip_adapter, image_encoder) =
            (Some(self.path("adapter.safetensors")), Some(self.path("encoder")));
        let options = LoadOptions { ip_adapter, image_encoder, device, ..LoadOptions::default() };
        TextToImage::load(self.case.folder(), &options)
    }

    fn request(&self, name: &str) -> Result<Request> {
        let scale = self.case.json["scale"].as_f64().unwrap() as f32;
        let image_prompt = Some(ImagePrompt { picture: Arc::new(picture(name)?), scale });
        Ok(Request { image_prompt, ..self.case.request() })
    }
}

/// The picture that is the prompt.
fn picture(name: &str) -> Result<RgbImage> {
    let levels = get(&golden::open(&format!("ip_adapter/{name}"))?, "picture"); // [H, W, 3]
    let (height, width) = (levels.dim(0) as u32, levels.dim(1) as u32);
    Ok(RgbImage::from_raw(width, height, levels.to_vec()?).unwrap())
}

fn check(name: &str, device: Device) -> Result<()> {
    let desk = Desk::open(name)?;
    check_drawn(&desk.case, name, &desk.load(device)?, &desk.request(name)?, device)
}

#[test]
fn pictures_are_those_of_diffusers() -> Result<()> {
    KINDS.iter().try_for_each(|name| check(name, Device::Cpu))
}

#[test]
fn a_gpu_sees_what_the_cpu_does() -> Result<()> {
    gpu().map_or(Ok(()), |gpu| check("plus", gpu))
}

#[test]
fn a_picture_of_the_size_of_one_token_is_seen() -> Result<()> {
    let desk = Desk::open("base")?;
    let model = desk.load(Device::Cpu)?;
    let mut request = desk.request("base")?;
    request.settings.steps = Some(1);
    for (width, height) in [(1, 1), (7, 33), (200, 3)] {
        let picture = Arc::new(RgbImage::new(width, height));
        request.image_prompt = Some(ImagePrompt { picture, scale: 1.0 });
        model.draw(request.clone())?;
    }
    Ok(())
}

/// In one run after the other, with guidance and without.
#[test]
fn every_picture_is_seen() -> Result<()> {
    let desk = Desk::open("base")?;
    let model = desk.load(Device::Cpu)?;
    for guidance in [1.0, 5.0] {
        let mut one = desk.request("base")?;
        (one.settings.steps, one.settings.guidance_scale) = (Some(2), Some(guidance));
        let mut other = one.clone();
        let prompt = other.image_prompt.as_mut().unwrap();
        prompt.picture = Arc::new(image::imageops::flip_vertical(&*prompt.picture));
        let apart = [model.draw(one.clone())?.rgb()?, model.draw(other.clone())?.rgb()?];
        assert!(apart[0] != apart[1], "{guidance}");
        let drawn = generate(&model, vec![one, other], 1)?;
        assert!(drawn.iter().zip(&apart).all(|(a, b)| a.picture == *b), "{guidance}");
    }
    Ok(())
}

/// Pictures drawn in company, each by another picture or weight, are those drawn alone.
#[test]
fn company_changes_nothing_that_is_seen() -> Result<()> {
    let desk = Desk::open("base")?;
    let model = desk.load(Device::Cpu)?;
    let request = |i: u64| {
        let mut request = desk.request("base").unwrap();
        request.settings.steps = Some(3);
        request.settings.guidance_scale = Some(if i == 3 { 1.0 } else { 5.0 });
        let prompt = request.image_prompt.as_mut().unwrap();
        prompt.scale = i as f32 / 4.0;
        if i == 5 {
            prompt.picture = Arc::new(image::imageops::flip_vertical(&*prompt.picture));
        }
        request
    };
    check_company(&model, &(0..7).map(request).collect::<Vec<_>>())
}

fn unet() -> Result<Unet> {
    let config = Config::open(golden::path("models/unet_sd15/config.json"))?;
    let weights = Drawn::by_inputs("models/unet_sd15");
    Unet::load(UnetConfig::read(&config)?, &Params::new(weights, DType::F32, Device::Cpu))
}

fn nadir(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(args).current_dir(at).env_remove("NADIR_WEIGHTS").output().unwrap()
}

#[test]
fn the_command_line_shows_pictures() -> Result<()> {
    let desk = Desk::open("base")?;
    let at = desk.beside.path();
    let arguments = &desk.case.json["arguments"];
    let text = |name: &str| arguments[name].as_str().unwrap();
    let common = ["-m", desk.case.folder().to_str().unwrap(), "--steps=6", "-s2", "-W48", "-H64"];
    let draw = |args: &[&str], out: &str| {
        let asked = ["generate", text("prompt"), "-n", text("negative_prompt"), "-o", out];
        nadir(at, &[&asked[..], &common, &["--cfg-scale=7.5"], args].concat())
    };
    let shown = [
        "--ip-adapter=adapter.safetensors",
        "--ip-image=picture.png",
        "--ip-scale=0.8",
        "--image-encoder=encoder",
    ];
    let output = draw(&shown, "out.png");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| image::open(at.join(name)).unwrap().into_rgb8().into_raw();
    let theirs = get(&golden::open("ip_adapter/base")?, "image").to_vec()?;
    let found = psnr(&read("out.png"), &theirs);
    assert!(found >= 50.0, "{found} dB");
    let again = nadir(at, &["replay", "out.png", "-o", "again.png"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(read("again.png") == read("out.png"));

    // What cannot be seen by is refused by name.
    let stored = SafeTensors::open(at.join("adapter.safetensors"))?;
    type Change = dyn Fn(&str, Tensor) -> Option<(String, Tensor)>;
    let changed = |file: &str, change: &Change| {
        let names = stored.names().into_iter();
        let tensors: Vec<_> =
            names.filter_map(|name| change(&name, stored.read(&name).unwrap())).collect();
        save(&at.join(file), &tensors, &Default::default()).unwrap();
    };
    changed("few.safetensors", &|name, tensor| {
        (!name.starts_with("ip_adapter.5.")).then(|| (name.to_owned(), tensor))
    });
    changed("face.safetensors", &|name, tensor| {
        Some((name.replace("image_proj.proj.weight", "image_proj.proj.0.weight"), tensor))
    });
    changed("wide.safetensors", &|name, tensor| {
        let wide = || Tensor::zeros([48], DType::F32, Device::Cpu).unwrap();
        let tensor = if name.starts_with("image_proj.norm") { wide() } else { tensor };
        Some((name.to_owned(), tensor))
    });
    std::fs::write(at.join("old.bin"), b"PK\x03\x04").unwrap();
    for (adapter, words) in [
        ("few.safetensors", "ip_adapter.5.to_"),
        ("face.safetensors", "FaceID"),
        ("wide.safetensors", "cross_attention_dim"),
        ("old.bin", "pickle_to_safetensors.py"),
        ("none.safetensors", "none.safetensors"),
    ] {
        let adapter = format!("--ip-adapter={adapter}");
        let output = draw(&[&[&*adapter], &shown[1..]].concat(), "refused.png");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{adapter}: {told}");
        assert!(told.contains(words) && !told.contains("panicked"), "{adapter}: {told}");
    }
    for (args, words) in [
        (&shown[..3], "--image-encoder"),
        (&[shown[0], shown[1], shown[3], "--ip-scale=NaN"], "--ip-scale"),
        (&[shown[0], shown[3]], "--ip-image"),
        (&[shown[1]], "--ip-adapter"),
        (&[shown[0], shown[3], "--ip-image=none.png"], "none.png"),
    ] {
        let output = draw(args, "refused.png");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {told}");
        assert!(told.contains(words) && !told.contains("panicked"), "{args:?}: {told}");
    }
    assert!(!at.join("refused.png").exists());
    Ok(())
}

/// Rows that see pictures, in company, are the pictures of the command line, one by one.
#[test]
fn a_manifest_shows_pictures() -> Result<()> {
    let desk = Desk::open("base")?;
    let at = desk.beside.path();
    let flipped =
        image::imageops::flip_vertical(&image::open(at.join("picture.png")).unwrap().into_rgb8());
    flipped.save(at.join("flipped.png")).unwrap();
    let common = [
        "-m",
        desk.case.folder().to_str().unwrap(),
        "--steps=2",
        "-W48",
        "-H64",
        "--cfg-scale=7.5",
        "--ip-adapter=adapter.safetensors",
        "--image-encoder=encoder",
    ];
    let said: [(&str, &[&str]); 4] = [
        ("picture.png,", &["--ip-image=picture.png"]),
        ("flipped.png,0.5", &["--ip-image=flipped.png", "--ip-scale=0.5"]),
        ("picture.png,0.5", &["--ip-image=picture.png", "--ip-scale=0.5"]),
        (",", &["--ip-image=flipped.png"]),
    ];
    let rows = said.iter().map(|(row, _)| format!("a river,3,{row}\n"));
    let table = format!("prompt,seed,ip_image,ip_scale\n{}", rows.collect::<String>());
    std::fs::write(at.join("rows.csv"), &table).unwrap();
    let done = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let draw = |manifest: &str, out: &str| {
        let args = ["generate", "--manifest", manifest, "-o", out, "--batch=3"];
        nadir(at, &[&args[..], &common, &["--ip-image=flipped.png"]].concat())
    };
    done(draw("rows.csv", "out"));
    let lines = std::fs::read_to_string(at.join("out/metadata.jsonl")).unwrap();
    let read = |path: &Path| image::open(path).unwrap().into_rgb8().into_raw();
    let mut rows = Vec::new();
    for (line, (_, args)) in lines.lines().zip(said) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let row = at.join("out").join(line["file_name"].as_str().unwrap());
        let alone = ["generate", "a river", "-s3", "-o", "alone.png"];
        done(nadir(at, &[&alone[..], &common, args].concat()));
        assert!(read(&row) == read(&at.join("alone.png")), "{args:?}");
        done(nadir(at, &["replay", row.to_str().unwrap(), "-o", "again.png"]));
        assert!(read(&row) == read(&at.join("again.png")), "{args:?}");
        assert!(!rows.contains(&read(&row)), "{args:?}");
        rows.push(read(&row));
    }
    assert_eq!(rows.len(), 4);
    std::fs::write(at.join("odd.csv"), table + "a river,3,none.png,\n").unwrap();
    let output = draw("odd.csv", "nothing");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("row 5") && told.contains("none.png"), "{told}");
    assert_eq!(std::fs::read_dir(at.join("nothing")).map_or(0, |entries| entries.count()), 0);
    Ok(())
}

#[test]
fn an_adapter_counts_for_nothing_without_weight() -> Result<()> {
    let (desk, unet) = (Desk::open("plus")?, unet()?);
    let file = SafeTensors::open(desk.path("adapter.safetensors"))?;
    let adapter = IpAdapter::load(file, &unet, DType::F32, Device::Cpu)?;
    let golden = golden::open("models/unet_sd15")?;
    let [sample, text] = ["1.sample", "1.text"].map(|name| get(&golden, name));
    let seen = get(&golden::open("ip_adapter/plus")?, "seen"); // [1, N, D]
    let times = unet.embed_timesteps(get(&golden, "1.timesteps").as_slice()?)?;
    let context = unet.context(&text)?;
    let plain = unet.forward(&sample, &times, &context)?;
    let with = |weight| {
        unet.forward(&sample, &times, &unet.with_image(&context, &adapter, &seen, weight)?)
    };
    assert_close("weight 0", &with(0.0)?, &plain, 1e-6);
    assert!(with(1.0)?.to_vec::<f32>()? != plain.to_vec::<f32>()?);
    Ok(())
}
