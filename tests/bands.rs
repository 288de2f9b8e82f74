//! Models of other bands than red, green and blue, and rasters of other numbers than 8 bits: against diffusers, and as rasterio
//! sees them.
//!
//! rasterio is of the Python `NADIR_CLIENTS_PYTHON`, or python3. Without it its part is left out, but under `NADIR_REQUIRE_TOOLS`,
//! which `.ci/run` sets, it fails.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use case::{Case, copy};
use golden::drawn::{component, write};
use golden::{assert_close, assert_same, get};
use gpu::gpu;
use image::RgbImage;
use nadir::io::config::Config;
use nadir::io::folder::Weights;
use nadir::io::geotiff::picture::{self, Form};
use nadir::io::picture::{Nodata, Picture, Samples, Scale};
use nadir::models::vae::{Vae, VaeConfig};
use nadir::nn::Params;
use nadir::pipeline::{InitImage, InitPixels, LoadOptions, Request, TextToImage};
use nadir::tensor::{DType, Device};
use nadir::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

/// As in `models.rs`: sums of a few hundred terms in another order, through some dozens of layers.
const TOLERANCE: f32 = 1e-5;

fn check_autoencoder(device: Device) -> Result<()> {
    let (golden, folder) = (golden::open("models/vae_bands")?, component("vae_bands"));
    let config = VaeConfig::read(&Config::open(folder.path().join("config.json"))?)?;
    let params = Params::new(Weights::open(folder.path(), None)?, DType::F32, device);
    let model = Vae::load(config, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new(), "unused weights");
    for i in 0..2 {
        let images = get(&golden, &format!("encode.{i}.image")).to_device(device)?;
        let seen = model.encode(&images)?;
        assert_close("mean", &seen.mean, &get(&golden, &format!("encode.{i}.mean")), TOLERANCE);
        assert_close(
            "logvar",
            &seen.logvar,
            &get(&golden, &format!("encode.{i}.logvar")),
            TOLERANCE,
        );
        let latents = get(&golden, &format!("decode.{i}.latent")).to_device(device)?;
        let images = model.decode(&latents)?;
        assert_eq!(images.dim(3), 4);
        assert_close("image", &images, &get(&golden, &format!("decode.{i}.image")), TOLERANCE);
        for row in 0..latents.dim(0) {
            let alone = model.decode(&latents.narrow(0, row, 1)?)?;
            assert_same("alone", &images.narrow(0, row, 1)?, &alone);
        }
    }
    let tiled =
        model.decode_tiled(&get(&golden, "tiled.latent").to_device(device)?, &mut || Ok(()))?;
    assert_close("tiled image", &tiled, &get(&golden, "tiled.image"), TOLERANCE);
    Ok(())
}

#[test]
fn an_autoencoder_of_four_bands_is_diffusers() -> Result<()> {
    check_autoencoder(Device::Cpu)
}

#[test]
fn a_gpu_sees_four_bands_as_the_cpu_does() -> Result<()> {
    gpu().map_or(Ok(()), check_autoencoder)
}

/// A folder with a model of four bands, whose pictures are 32 x 32: `model`.
struct Desk(TempDir);

impl Desk {
    fn new() -> Result<Self> {
        let (case, folder) = (Case::open("pndm")?, tempfile::tempdir().unwrap());
        let model = folder.path().join("model");
        for part in ["", "scheduler", "text_encoder", "tokenizer", "unet"] {
            copy(&case.folder().join(part), &model.join(part));
        }
        write("models/vae_bands", &model.join("vae"));
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, device: Device) -> Result<TextToImage> {
        let options = LoadOptions { device, ..LoadOptions::default() };
        TextToImage::load(self.path("model"), &options)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
        command.args(args).current_dir(self.0.path()).env_remove("NADIR_WEIGHTS").output().unwrap()
    }

    fn generate(&self, args: &[&str]) -> Output {
        let common = ["generate", "a river", "-m", "model", "-s3", "--steps=2"];
        self.run(&[&common[..], args].concat())
    }

    /// Runs what should succeed.
    #[track_caller]
    fn draw(&self, args: &[&str]) {
        let output = self.generate(args);
        assert!(output.status.success(), "{args:?}: {}", told(&output));
    }

    /// Runs what should be refused, in these words, with nothing written.
    #[track_caller]
    fn refuse(&self, args: &[&str], words: &str) {
        let output = self.generate(args);
        let told = told(&output);
        assert!(!output.status.success() && told.contains(words), "{args:?}: {told}");
        assert!(!told.contains("panicked") && output.stdout.is_empty(), "{args:?}: {told}");
        assert!(!self.path("no.tif").exists() && !self.path("no.png").exists(), "{args:?}");
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn read(&self, name: &str, scale: &str) -> Picture {
        picture::read(&self.path(name), scale.parse().ok()).unwrap()
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What has rasterio.
fn rasterio(test: &str) -> Option<impl Fn(&[&str], &Path) -> String> {
    let python = std::env::var("NADIR_CLIENTS_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import rasterio"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("NADIR_REQUIRE_TOOLS").is_none(), "rasterio is missing");
        println!("left out: {test}: what rasterio sees; {python} has none");
        return None;
    }
    let script = golden::path("check_rasters.py");
    Some(move |args: &[&str], at: &Path| {
        let mut command = Command::new(&python);
        let output = command.arg(&script).args(args).current_dir(at).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    })
}

/// A raster of four bands: a gradient, pixels without data in a corner.
fn ground(side: usize) -> Picture {
    let places = (0..side * side).map(|i| (i / side, i % side));
    let values = places.clone().flat_map(|(y, x)| {
        (0..4).map(move |band| ((x * (band + 1) + 3 * y) % 41) as f32 / 20.0 - 1.0)
    });
    let missing = places.flat_map(|(y, x)| [y < 5 && x < 7; 4]);
    let nodata = Nodata { value: 65_535.0, missing: missing.collect() };
    Picture::new([side, side, 4], values.collect(), Some(nodata)).unwrap()
}

/// A mask that paints columns from 20 on.
fn mask(side: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, _| image::Rgb([if x >= 20 { 255 } else { 0 }; 3]))
}

fn check_drawing(device: Device) -> Result<()> {
    let desk = Desk::new()?;
    let model = desk.load(device)?;
    assert_eq!((model.bands(), model.default_size()), (4, (32, 32)));
    assert!(model.require_rgb().unwrap_err().to_string().contains("4 bands"));
    let mut request = Request { seed: 4, ..Request::default() };
    request.settings.steps = Some(2);
    // 1. from nothing
    let drawn = model.draw(request.clone())?;
    assert_eq!([drawn.height(), drawn.width(), drawn.bands()], [32, 32, 4]);
    for band in 0..4 {
        let mut values = drawn.values().iter().skip(band).step_by(4);
        let first = *values.next().unwrap();
        assert!(values.any(|value| *value != first), "band {band} is flat");
    }
    // 2. from a raster: what is missing there is missing here, and each band was seen
    let init = |image: Picture, mask: Option<RgbImage>| {
        Some(Arc::new(InitImage { image: InitPixels::Bands(image), mask }))
    };
    request.settings.strength = Some(0.5);
    request.init = init(ground(32), None);
    let redrawn = model.draw(request.clone())?;
    assert_eq!(redrawn.nodata(), ground(32).nodata());
    assert_ne!(redrawn.values(), drawn.values());
    for band in 0..4 {
        let mut values = ground(32).values().to_vec();
        values.iter_mut().skip(band).step_by(4).for_each(|value| *value = -*value);
        request.init = init(Picture::new([32, 32, 4], values, ground(32).nodata().cloned())?, None);
        assert_ne!(model.draw(request.clone())?, redrawn, "band {band} is not seen");
    }
    // 3. into a part of one: what is beside the mask is as it was, number for number
    request.init = init(ground(32), Some(mask(32)));
    let painted = model.draw(request.clone())?;
    let mut differ = 0;
    for (at, (ours, theirs)) in painted.values().iter().zip(ground(32).values()).enumerate() {
        let inside = at / 4 % 32 >= 20;
        assert!(inside || ours.to_bits() == theirs.to_bits(), "{at}");
        differ += usize::from(ours != theirs);
    }
    assert!(differ > 12 * 32 * 3, "{differ}");
    assert_eq!(painted.nodata(), ground(32).nodata());
    // 4. at another size
    request.init = init(ground(48), None);
    let smaller = model.draw(request.clone())?;
    assert_eq!(smaller.width(), 32);
    let missing = smaller.nodata().unwrap().missing.iter().filter(|missing| **missing).count();
    assert_eq!(missing, 4 * 3 * 5, "of 5 by 7 pixels two thirds each way, by the nearest");
    // 5. of other bands it is refused, and so is a picture of red, green and blue
    let three = Picture::new([32, 32, 3], vec![0.0; 32 * 32 * 3], None)?;
    let rgb = InitImage { image: RgbImage::new(32, 32).into(), mask: None };
    for wrong in [init(three, None), Some(Arc::new(rgb))] {
        request.init = wrong;
        let error = model.draw(request.clone()).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "init_image", .. }), "{error}");
        assert!(error.to_string().contains("3 bands"), "{error}");
    }
    Ok(())
}

#[test]
fn pictures_of_four_bands_are_drawn_and_drawn_from() -> Result<()> {
    check_drawing(Device::Cpu)
}

#[test]
fn a_gpu_draws_four_bands() -> Result<()> {
    gpu().map_or(Ok(()), check_drawing)
}

/// In nadir alone: what was written is what is read.
#[test]
fn numbers_survive_files() -> Result<()> {
    let desk = Desk::new()?;
    let scale: Scale = "0,10000".parse()?;
    let ground = ground(20);
    for samples in [Samples::U16, Samples::F32] {
        let form = Form { samples, scale, units: Vec::new(), place: None };
        picture::write(&desk.path("x.tif"), &ground, &form, &[])?;
        let found = desk.read("x.tif", "0,10000");
        assert_eq!(found.numbers(samples, scale), ground.numbers(samples, scale), "{samples}");
        assert_eq!(found.nodata().unwrap().missing, ground.nodata().unwrap().missing);
        let error = picture::read(&desk.path("x.tif"), None).unwrap_err().to_string();
        assert!(error.contains("--scale") && error.contains("x.tif"), "{error}");
    }
    let form = Form::plain(None);
    let error = picture::write(&desk.path("no.tif"), &ground, &form, &[]).unwrap_err().to_string();
    assert!(error.contains("65535") && !desk.path("no.tif").exists(), "{error}");
    Ok(())
}

/// What rasterio wrote is, read and written by nadir, the same to rasterio: numbers, place, and what has no data.
#[test]
fn sixteen_bits_of_four_bands_come_back_exactly() -> Result<()> {
    let Some(rasterio) = rasterio("sixteen_bits_of_four_bands_come_back_exactly") else {
        return Ok(());
    };
    let desk = Desk::new()?;
    let at = desk.0.path();
    // 1. by the library
    rasterio(&["write", "scene.tif"], at);
    let scene = desk.read("scene.tif", "0,10000");
    assert_eq!([scene.height(), scene.width(), scene.bands()], [24, 24, 4]);
    assert!(scene.values().iter().any(|value| *value > 1.0), "brighter than white");
    let place = picture::place(&desk.path("scene.tif"), 24, 24)?;
    let mut form =
        Form { samples: Samples::U16, scale: "0,10000".parse()?, units: Vec::new(), place };
    picture::write(&desk.path("again.tif"), &scene, &form, &[])?;
    rasterio(&["same", "scene.tif", "again.tif"], at);
    // 2. by the command line, where nothing is to be painted
    RgbImage::new(24, 24).save(desk.path("nothing.png")).unwrap();
    let from = ["--init-image=scene.tif", "--mask-image=nothing.png", "--scale=0,10000"];
    desk.draw(&[&from[..], &["-o", "same.tif"]].concat());
    rasterio(&["same", "scene.tif", "same.tif"], at);
    // at the mask's place, where the picture has none
    let nothing = Picture::new([24, 24, 1], vec![-1.0; 24 * 24], None)?;
    picture::write(&desk.path("nothing.tif"), &nothing, &Form::plain(form.place.take()), &[])?;
    picture::write(&desk.path("bare.tif"), &scene, &form, &[])?;
    let from = ["--init-image=bare.tif", "--mask-image=nothing.tif", "--scale=0,10000"];
    desk.draw(&[&from[..], &["-o", "placed.tif"]].concat());
    rasterio(&["same", "scene.tif", "placed.tif"], at);
    // 3. drawn anew: the same place, and no data where there were none
    let from = ["--init-image=scene.tif", "--scale=0,10000", "--strength=0.5", "-W16"];
    desk.draw(&[&from[..], &["-o", "new.tif"]].concat());
    let about =
        |name: &str| -> Value { serde_json::from_str(&rasterio(&["about", name], at)).unwrap() };
    let (old, new) = (about("scene.tif"), about("new.tif"));
    assert_eq!(old["missing"], 4 * 24 + 1);
    assert_eq!(new["size"], json!([16, 24]));
    let transform = json!([15.0, 0.5, 399960.25, -0.375, -10.0, 5300040.75]);
    assert_eq!((&new["transform"], &new["epsg"]), (&transform, &json!(32632)));
    assert_eq!((&new["dtype"], &new["nodata"]), (&json!("uint16"), &json!(0.0)));
    let (least, most) = (new["least"].as_f64().unwrap(), new["most"].as_f64().unwrap());
    assert!(1.0 <= least && least < most && most <= 10_000.0, "{least} {most}");
    // Of 6 columns two thirds.
    assert_eq!(new["missing"], 4 * 4 * 4 + 1);
    // 4. floats, what is none among them
    rasterio(&["float", "float.tif"], at);
    desk.draw(&["--init-image=float.tif", "--scale=0,1", "--strength=0.5", "-o", "floats.tif"]);
    let floats = about("floats.tif");
    assert_eq!((&floats["dtype"], &floats["nodata"]), (&json!("float32"), &json!("nan")));
    assert_eq!(floats["missing"], old["missing"]);
    // 5. text to a raster that lies where it is said to
    let place = ["--bbox=399960,5300000,400280,5300320", "--epsg=32632"];
    desk.draw(&[&place[..], &["--samples=u16", "--scale=0,10000", "-o", "text.tif"]].concat());
    let found = about("text.tif");
    assert_eq!(found["transform"], json!([10.0, 0.0, 399960.0, 0.0, -10.0, 5300320.0]));
    assert_eq!((&found["count"], &found["epsg"]), (&json!(4), &json!(32632)));
    assert_eq!((&found["nodata"], &found["missing"]), (&Value::Null, &json!(0)));
    Ok(())
}

/// What numbers stand for is written as GDAL has it, read where nothing else is said, and kept.
#[test]
fn numbers_stand_for_what_they_are_said_to() -> Result<()> {
    let desk = Desk::new()?;
    let Some(rasterio) = rasterio("numbers_stand_for_what_they_are_said_to") else {
        return Ok(());
    };
    let at = desk.0.path();
    let about =
        |name: &str| -> Value { serde_json::from_str(&rasterio(&["about", name], at)).unwrap() };
    let check = |name: &str, scale: f64, offset: f64| {
        let found = about(name);
        for (name, expected) in [("scales", scale), ("offsets", offset)] {
            let found: Vec<f64> = serde_json::from_value(found[name].clone()).unwrap();
            let near = |found: &f64| (found - expected).abs() <= 1e-15;
            assert!(found.len() == 4 && found.iter().all(near), "{name}: {found:?} {expected}");
        }
    };
    // 1. of text, and of scenes: shares of 1, as reflectances are; of other numbers nothing is said
    desk.draw(&["--samples=u16", "--scale=1000,11000", "-o", "text.tif"]);
    check("text.tif", 1e-4, -0.1);
    let text = desk.read("text.tif", "1000,11000");
    assert_eq!(picture::read(&desk.path("text.tif"), None)?, text);
    assert!(text.nodata().is_none() && text.values().iter().all(|value| value.abs() <= 1.0));
    for samples in ["u8", "f32"] {
        desk.draw(&["--samples", samples, "-o", "other.tif"]);
        check("other.tif", 1.0, 0.0);
    }
    let scene = ["scene", "a", "-m", "model", "-W40", "-H32", "--steps=1", "-o", "scene.tif"];
    let output = desk.run(&[&scene[..], &["--samples=u16", "--scale=0,10000"]].concat());
    assert!(output.status.success(), "{}", told(&output));
    check("scene.tif", 1e-4, 0.0);
    // 2. of a raster: as it says, by which it is read
    RgbImage::new(24, 24).save(desk.path("nothing.png")).unwrap();
    rasterio(&["units", "units.tif"], at);
    desk.draw(&["--init-image=units.tif", "--mask-image=nothing.png", "-o", "same.tif"]);
    rasterio(&["same", "units.tif", "same.tif"], at);
    let from = ["--init-image=units.tif", "--strength=0.5"];
    desk.draw(&[&from[..], &["-o", "new.tif"]].concat());
    check("new.tif", 1e-4, -0.1);
    desk.draw(&[&from[..], &["--scale=1000,11000", "-o", "said.tif"]].concat());
    assert!(desk.bytes("new.tif") == desk.bytes("said.tif"));
    // 3. of bands that differ it has to be said, and is kept
    rasterio(&["mixed", "mixed.tif"], at);
    desk.refuse(&["--init-image=mixed.tif", "-o", "no.tif"], "scale and offset");
    let from = ["--init-image=mixed.tif", "--mask-image=nothing.png", "--scale=0,10000"];
    desk.draw(&[&from[..], &["-o", "mixed-same.tif"]].concat());
    rasterio(&["same", "mixed.tif", "mixed-same.tif"], at);
    Ok(())
}

/// Of a raster of other numbers what is not 0 is painted, and what is no data is not.
#[test]
fn masks_are_rasters_too() -> Result<()> {
    let desk = Desk::new()?;
    let form = |samples, scale: &str| -> Result<Form> {
        let place =
            nadir::io::geotiff::Georeference::from_bbox([0., 0., 320., 320.], 32632, 32, 32)?;
        Ok(Form { samples, scale: scale.parse()?, units: Vec::new(), place: Some(place) })
    };
    let plain = Picture::new([32, 32, 4], vec![0.25; 32 * 32 * 4], None)?;
    let ground = Form { place: None, ..form(Samples::U16, "0,10000")? };
    picture::write(&desk.path("ground.tif"), &plain, &ground, &[])?;
    // Numbers 0, 1, 300 and none, in four columns of eight pixels; the model's are twice that less 1.
    let (numbers, nodata) = ([0.0, 1.0, 300.0, 7.0], [false, false, false, true]);
    let mask = |bands: usize| {
        let each = (0..32 * 32).flat_map(|i| vec![i % 32 / 8; bands]);
        let values = each.clone().map(|i| 2.0 * numbers[i] as f32 - 1.0).collect();
        let missing = each.map(|i| nodata[i]).collect();
        Picture::new([32, 32, bands], values, Some(Nodata { value: 7.0, missing })).unwrap()
    };
    for samples in [Samples::U16, Samples::F32] {
        picture::write(&desk.path("mask.tif"), &mask(1), &form(samples, "0,1")?, &[])?;
        let found = picture::mask(&desk.path("mask.tif"))?;
        for (x, _, pixel) in found.enumerate_pixels() {
            assert_eq!(pixel.0, [if (8..24).contains(&x) { 255 } else { 0 }; 3], "{x}");
        }
        let from = ["--init-image=ground.tif", "--mask-image=mask.tif", "--scale=0,10000"];
        desk.draw(&[&from[..], &["-o", "drawn.tif"]].concat());
        let drawn = desk.read("drawn.tif", "0,10000");
        let kept = desk.read("ground.tif", "0,10000").values()[0];
        let painted = |x: usize| {
            let pixels = (0..32).flat_map(|y| drawn.values()[4 * (32 * y + x)..][..4].to_vec());
            pixels.filter(|value| *value != kept).count()
        };
        assert!((0..8).chain(24..32).all(|x| painted(x) == 0), "{samples}");
        assert!((8..24).all(|x| painted(x) > 100), "{samples}");
        // The picture has no place, and takes the mask's.
        let place = picture::place(&desk.path("drawn.tif"), 32, 32)?.unwrap();
        assert_eq!(place, form(samples, "0,1")?.place.unwrap());
    }
    picture::write(&desk.path("two.tif"), &mask(2), &form(Samples::U16, "0,1")?, &[])?;
    let from = ["--init-image=ground.tif", "--mask-image=two.tif", "--scale=0,10000"];
    desk.refuse(&[&from[..], &["-o", "no.tif"]].concat(), "one band");
    Ok(())
}

#[test]
fn rasters_are_drawn_again_as_they_were() -> Result<()> {
    let desk = Desk::new()?;
    let numbers = ["--samples=u16", "--scale=0,10000"];
    desk.draw(&[&numbers[..], &["-o", "text.tif"]].concat());
    desk.draw(&["-o", "plain.tif"]);
    desk.draw(&["--samples=f32", "-o", "unit.tif"]);
    desk.draw(&["--samples=f32", "--scale=-1,1", "-o", "own.tif"]);
    desk.draw(&["--preview-bands=3,2,1", "-o", "shown.png"]);
    let from = ["--init-image=text.tif", "--scale=0,10000", "--strength=0.5", "-o", "from.tif"];
    desk.draw(&from);
    // 1. all of them are the same numbers
    let (deep, own) = (desk.read("text.tif", "0,10000"), desk.read("own.tif", "-1,1"));
    let near = |other: &Picture, within: f32| {
        let pairs = other.values().iter().zip(own.values());
        assert!(pairs.clone().all(|(a, b)| (a - b).abs() <= within), "{within}");
        assert!(own.values().iter().all(|value| value.abs() <= 1.0));
    };
    // Half a step of each, and what the scale's division rounds.
    near(&deep, 1e-4 + 1e-6);
    near(&desk.read("plain.tif", "0,1"), 1.0 / 255.0 + 1e-6);
    near(&desk.read("unit.tif", "0,1"), 1e-6);
    let shown = image::open(desk.path("shown.png")).unwrap().into_rgb8();
    assert_eq!(shown, own.shown("3,2,1".parse().ok())?);
    assert_ne!(shown, own.shown("1,2,3".parse().ok())?);
    // 2. and are drawn again
    for name in ["text.tif", "plain.tif", "unit.tif", "own.tif", "shown.png", "from.tif"] {
        let again = format!("again-{name}");
        let output = desk.run(&["replay", name, "-o", &again]);
        assert!(output.status.success(), "{name}: {}", told(&output));
        assert!(desk.bytes(&again) == desk.bytes(name), "{name}");
    }
    // 3. as a PNG of the bands that are named
    for name in ["text.tif", "from.tif"] {
        let output = desk.run(&["replay", name, "-o", "look.png"]);
        assert!(
            !output.status.success() && told(&output).contains("--samples"),
            "{}",
            told(&output)
        );
        let output = desk.run(&["replay", name, "-o", "look.png", "--preview-bands=3,2,1"]);
        assert!(output.status.success(), "{name}: {}", told(&output));
    }
    let look = image::open(desk.path("look.png")).unwrap().into_rgb8();
    let from = desk.read("from.tif", "0,10000").shown("3,2,1".parse().ok())?;
    let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
    assert!(look.as_raw().iter().zip(from.as_raw()).all(near));
    // 4. from other numbers than were there it is said
    std::fs::copy(desk.path("plain.tif"), desk.path("text.tif")).unwrap();
    let output = desk.run(&["replay", "from.tif", "-o", "other.tif"]);
    assert!(told(&output).contains("text.tif has changed"), "{}", told(&output));
    Ok(())
}

/// Scenes keep all numbers: a cut of one is that cut, and they are the levels that a PNG shows.
#[test]
fn scenes_have_all_bands() -> Result<()> {
    let desk = Desk::new()?;
    let scene = |args: &[&str]| {
        let common = ["scene", "a river", "-m", "model", "-W56", "-H40", "-s3", "--steps=2"];
        desk.run(&[&common[..], args].concat())
    };
    let draw = |args: &[&str]| {
        let output = scene(args);
        assert!(output.status.success(), "{args:?}: {}", told(&output));
    };
    let place = ["--bbox=0,0,560,400", "--epsg=32632"];
    let numbers = ["--samples=u16", "--scale=0,10000"];
    draw(&[&numbers[..], &place, &["-o", "deep.tif"]].concat());
    draw(&[&numbers[..], &["--window=13,9,30,21", "-o", "cut.tif"]].concat());
    draw(&["-o", "plain.tif"]);
    draw(&["--preview-bands=4,2,1", "-o", "shown.png"]);
    let (deep, cut) = (desk.read("deep.tif", "0,10000"), desk.read("cut.tif", "0,10000"));
    assert_eq!([deep.height(), deep.width(), deep.bands()], [40, 56, 4]);
    for y in 0..21 {
        let row = |picture: &Picture, at: usize| picture.values()[4 * at..][..4 * 30].to_vec();
        assert_eq!(row(&cut, y * 30), row(&deep, (y + 9) * 56 + 13), "{y}");
    }
    // Half a level each.
    let plain = desk.read("plain.tif", "0,1");
    let mut pairs = plain.values().iter().zip(deep.values());
    assert!(pairs.all(|(a, b)| (a - b).abs() <= 1.0 / 255.0 + 1e-4 + 1e-6));
    let shown = image::open(desk.path("shown.png")).unwrap().into_rgb8();
    let expected = deep.shown("4,2,1".parse().ok())?;
    // Tiles are rounded before their mean is taken, and after.
    let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
    assert!(shown.as_raw().iter().zip(expected.as_raw()).all(near));
    let found = picture::place(&desk.path("deep.tif"), 56, 40)?.unwrap();
    assert_eq!(found.transform, Some([0.0, 10.0, 0.0, 400.0, 0.0, -10.0]));

    // Labels lie somewhere, and the scene there.
    let labels = Picture::new([4, 7, 1], vec![-1.0; 28], None)?;
    let form = Form::plain(Some(found.scaled([8.0, 10.0])));
    picture::write(&desk.path("classes.tif"), &labels, &form, &[])?;
    std::fs::write(desk.path("classes.toml"), "0 = \"a forest\"\n").unwrap();
    let by_labels = ["--labels=classes.tif", "--prompts=classes.toml"];
    draw(&[&by_labels[..], &["-o", "labelled.tif"]].concat());
    assert_eq!(picture::place(&desk.path("labelled.tif"), 56, 40)?.unwrap(), found);

    for (args, words) in [
        (&["-o", "no.png"][..], "--preview-bands"),
        (&["-o", "no.png", "--samples=f32"], "--samples"),
        (&["-o", "no.tif", "--samples=u16"], "--scale"),
        (&["-o", "no.tif", "--scale=0,1"], "--samples"),
        (&["-o", "no.tif", "--preview-bands=1,2,3"], "--preview-bands"),
    ] {
        let output = scene(args);
        assert!(!output.status.success() && told(&output).contains(words), "{}", told(&output));
    }
    Ok(())
}

#[test]
fn what_cannot_be_written_or_read_is_told() -> Result<()> {
    let desk = Desk::new()?;
    let (tif, png) = (["-o", "no.tif"], ["-o", "no.png"]);
    desk.draw(&["--samples=u16", "--scale=0,10000", "-o", "deep.tif"]);
    desk.draw(&["-o", "plain.tif"]);
    RgbImage::new(32, 32).save(desk.path("rgb.png")).unwrap();
    let deep = "--init-image=deep.tif";
    let bare =
        Form { samples: Samples::U16, scale: "0,10000".parse()?, units: Vec::new(), place: None };
    picture::write(&desk.path("bare.tif"), &desk.read("deep.tif", "0,10000"), &bare, &[])?;
    for (args, out, words) in [
        (&[][..], png, "--preview-bands"),
        (&["--preview-bands=3,2,5"], png, "1 to 4"),
        (&["--preview-bands=3,2"], png, "three bands"),
        (&["--preview-bands=3,2,1"], tif, "--preview-bands"),
        (&["--preview-bands=3,2,1", "--samples=u16", "--scale=0,1"], png, "--samples"),
        (&["--samples=u16"], tif, "--scale"),
        (&["--samples=u16", "--scale=-1,1"], tif, "UInt16"),
        (&["--samples=i8"], tif, "u8, u16 or f32"),
        (&["--scale=0,10000"], tif, "--samples"),
        (&["--scale=1,0", "--samples=f32"], tif, "LOW,HIGH"),
        (&["--init-image=bare.tif"], tif, "--scale LOW,HIGH"),
        (&["--init-image=rgb.png"], tif, "3 bands"),
        (&["--init-image=plain.tif", "--mask-image=deep.tif"], tif, "deep.tif"),
        (&["--grid", "-b2"], tif, "--preview-bands"),
    ] {
        desk.refuse(&[args, &out].concat(), words);
    }
    // What stands for no data has to be a number of the file.
    let form =
        Form { samples: Samples::F32, scale: "0,10000".parse()?, units: Vec::new(), place: None };
    let nodata = Nodata { value: -9999.0, missing: vec![true; 32 * 32 * 4] };
    let empty = Picture::new([32, 32, 4], vec![0.0; 32 * 32 * 4], Some(nodata))?;
    picture::write(&desk.path("empty.tif"), &empty, &form, &[])?;
    let from = ["--init-image=empty.tif", "--scale=0,10000", "-o", "no.tif"];
    desk.refuse(&[&from[..], &["--samples=u16"]].concat(), "-9999");
    // As floats it can, though nothing is there.
    desk.draw(&["--init-image=empty.tif", "--scale=0,10000", "-o", "empty-again.tif"]);
    assert!(desk.read("empty-again.tif", "0,10000").nodata().unwrap().missing.iter().all(|x| *x));
    // A model of three bands writes 16 bits as well, and reads no four.
    let shipped =
        ["generate", "a", "--steps=1", "--samples=u16", "--scale=0,3000", "-o", "rgb.tif"];
    let output = desk.run(&shipped);
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(desk.read("rgb.tif", "0,3000").bands(), 3);
    let output = desk.run(&["generate", "a", "--steps=1", deep, "--scale=0,1", "-o", "no.tif"]);
    assert!(
        told(&output).contains("4 bands") && !desk.path("no.tif").exists(),
        "{}",
        told(&output)
    );
    Ok(())
}
