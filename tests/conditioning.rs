//! Models that are told more of a picture than a prompt, against diffusers, on the small random configurations of
//! `golden/conditioning.py`; and the command line that tells it.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use case::{Case, check_case, check_company};
use golden::drawn::Drawn;
use golden::{assert_close, assert_same, get};
use gpu::gpu;
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::png::read_replay;
use nadir::io::safetensors::SafeTensors;
use nadir::models::unet::{ClassEmbedding, Unet, UnetConfig, Vector};
use nadir::nn::{Keep, Params, parameters, save as save_module};
use nadir::ops::elementwise::mul;
use nadir::ops::gradient::backward;
use nadir::ops::layout::concat;
use nadir::ops::reduce::mean;
use nadir::pipeline::{Request, Settings};
use nadir::tensor::{DType, Device, Tensor};

/// As in `models.rs`: sums of a few hundred terms in another order, through some dozens of layers.
const TOLERANCE: f32 = 1e-5;

const KINDS: [&str; 6] =
    ["table", "timestep", "identity", "projection", "simple_projection", "sat"];

fn config(name: &str) -> Result<UnetConfig> {
    let path = golden::path(&format!("conditioning/{name}/config.json"));
    UnetConfig::read(
        &Config::open(path)?.bounded_by(&Drawn::by_inputs(&format!("conditioning/{name}"))),
    )
}

fn load(name: &str, dtype: DType, device: Device, keep: Keep) -> Result<Unet> {
    let weights = Drawn::by_inputs(&format!("conditioning/{name}"));
    let params = Params::new(weights, dtype, device).keeping(keep);
    let model = Unet::load(config(name)?, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new(), "unused weights");
    Ok(model)
}

/// What image `i` of a golden file is told.
fn vector(model: &Unet, labels: &Tensor, i: usize) -> Vector {
    let row = labels.narrow(0, i, 1).unwrap().to_vec::<f32>().unwrap();
    match model.config().vector.metadata {
        0 => Vector { class: row, ..Vector::default() },
        _ => Vector { metadata: row, ..Vector::default() },
    }
}

/// The prediction for batch `index` of a golden file, and for each of its images alone.
fn predict(
    model: &Unet,
    golden: &SafeTensors,
    index: usize,
    device: Device,
) -> Result<(Tensor, Vec<Tensor>)> {
    let [sample, text, timesteps] =
        ["sample", "text", "timesteps"].map(|name| get(golden, &format!("{index}.{name}")));
    let (sample, text) = (sample.to_device(device)?, text.to_device(device)?);
    let (labels, timesteps) = (get(golden, "labels"), timesteps.to_vec::<f32>()?);
    let embed = |i: usize| model.embed(&timesteps[i..=i], &vector(model, &labels, i));
    let embedded = (0..sample.dim(0)).map(embed).collect::<Result<Vec<_>>>()?;
    let times = concat(&embedded.iter().collect::<Vec<_>>(), 0)?;
    let together = model.forward(&sample, &times, &model.context(&text)?)?;
    let alone = embedded.iter().enumerate().map(|(i, times)| {
        let context = model.context(&text.narrow(0, i, 1)?)?;
        model.forward(&sample.narrow(0, i, 1)?, times, &context)
    });
    Ok((together, alone.collect::<Result<_>>()?))
}

fn check_unet(name: &str, device: Device) -> Result<()> {
    let golden = golden::open(&format!("conditioning/{name}"))?;
    let model = load(name, DType::F32, device, Keep::Frozen)?;
    for index in 0..2 {
        let (together, alone) = predict(&model, &golden, index, device)?;
        let theirs = get(&golden, &format!("{index}.out"));
        assert_close(&format!("{name} {index}"), &together, &theirs, TOLERANCE);
        for (i, alone) in alone.iter().enumerate() {
            assert_same(&format!("{name} {index} image {i}"), &together.narrow(0, i, 1)?, alone);
        }
    }
    Ok(())
}

#[test]
fn every_way_of_telling_is_diffusers() -> Result<()> {
    KINDS.iter().try_for_each(|name| check_unet(name, Device::Cpu))
}

#[test]
fn a_gpu_is_told_what_the_cpu_is() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    KINDS.iter().try_for_each(|name| check_unet(name, gpu))
}

#[test]
fn every_weight_gets_a_gradient_and_is_saved() -> Result<()> {
    for name in KINDS {
        let golden = golden::open(&format!("conditioning/{name}"))?;
        let model = load(name, DType::F32, Device::Cpu, Keep::Trainable)?;
        let (out, _) = predict(&model, &golden, 0, Device::Cpu)?;
        let gradients = backward(mean(&mul(&out, &out)?, &[0, 1, 2, 3])?)?;
        for (weight, parameter) in parameters(&model) {
            let gradient = gradients.get(&parameter.tensor().unwrap()).unwrap();
            let values = gradient.to_vec::<f32>()?;
            assert!(values.iter().any(|&x| x != 0.0), "{name}: {weight}");
            assert!(values.iter().all(|x| x.is_finite()), "{name}: {weight}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let source = Drawn::by_inputs(&format!("conditioning/{name}"));
        save_module(&model, &source, &path, None)?;
        let saved = SafeTensors::open(&path)?;
        assert_eq!(saved.names(), source.names(), "{name}");
        for weight in source.names() {
            assert_same(&weight, &saved.read(&weight)?, &source.read(&weight)?);
        }
    }
    Ok(())
}

#[test]
fn what_is_not_told_as_the_model_takes_it_is_an_error() -> Result<()> {
    let fails = |model: &Unet, class: &[f32], metadata: &[f32], words: &str| {
        let (class, metadata) = (class.to_vec(), metadata.to_vec());
        let vector = Vector { class, metadata, ..Vector::default() };
        let error = model.embed(&[1.0], &vector).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    };
    let of = |name| load(name, DType::F32, Device::Cpu, Keep::Frozen);
    let (table, sat) = (of("table")?, of("sat")?);
    fails(&table, &[7.0], &[], "0 to 6");
    fails(&table, &[1.5], &[], "0 to 6");
    fails(&table, &[], &[], "class labels: 1 numbers, not 0");
    fails(&table, &[f32::NAN], &[], "NaN");
    fails(&sat, &[], &[0.0; 6], "metadata: 7 numbers, not 6");
    fails(&sat, &[0.0], &[0.0; 7], "class labels: 0 numbers, not 1");
    assert!(table.embed_timesteps(&[1.0]).is_err());

    let read = |change: &[(&str, serde_json::Value)]| {
        let path = golden::path("conditioning/sat/config.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change.iter().for_each(|(name, value)| json[name] = value.clone());
        UnetConfig::read(&Config::from_value("config.json", json).unwrap())
    };
    // DiffusionSat's class says nothing where it has its defaults.
    let silent = read(&[("use_metadata", ().into()), ("num_metadata", ().into())])?.vector;
    assert_eq!((silent.class, silent.metadata), (None, 7));
    assert_eq!(read(&[("use_metadata", false.into())])?.vector.metadata, 0);
    let both = read(&[("class_embed_type", "timestep".into())])?.vector;
    assert_eq!((both.class, both.metadata), (Some(ClassEmbedding::Timestep), 7));
    for (name, value) in [
        ("num_metadata", 8.into()),
        ("class_embeddings_concat", true.into()),
        ("class_embed_type", "text".into()),
        ("class_embed_type", "projection".into()),
        ("num_class_embeds", 0.into()),
    ] {
        let error = read(&[(name, value)]).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("field"), "{error}");
    }
    Ok(())
}

fn open(name: &str) -> Result<Case> {
    Case::of("conditioning", name)
}

#[test]
fn text2earth_draws_as_on_the_unet_of_diffusers() -> Result<()> {
    check_case(&open("text2earth")?, "text2earth", Device::Cpu)
}

#[test]
fn diffusionsat_draws_as_our_reference() -> Result<()> {
    check_case(&open("diffusionsat")?, "diffusionsat", Device::Cpu)
}

#[test]
fn a_gpu_draws_what_it_is_told() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    check_case(&open("diffusionsat")?, "diffusionsat", gpu)
}

/// Each picture is told its own, and is the one that is drawn alone.
#[test]
fn company_changes_nothing_that_is_told() -> Result<()> {
    let model = open("diffusionsat")?.load(DType::F32, Device::Cpu)?;
    let request = |seed: u64| {
        let date = format!("2{seed:03}-01-{:02}", 1 + seed);
        let settings = Settings {
            steps: Some(3),
            place: format!("{},{}", 10 * seed, -20 * seed as i64).parse().ok(),
            cloud: Some(seed as f64 / 7.0),
            date: date.parse().ok().filter(|_| seed < 5),
            guidance_scale: Some(if seed == 3 { 1.0 } else { 5.0 }),
            ..Settings::default()
        };
        Request { settings, seed: 1, ..Request::default() }
    };
    check_company(&model, &(0..7).map(request).collect::<Vec<_>>())
}

fn nadir(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(args).current_dir(at).env_remove("NADIR_WEIGHTS").output().unwrap()
}

/// Draws one picture into `name`.
fn draw(at: &Path, model: &Path, name: &str, args: &[&str]) -> Vec<u8> {
    let common = ["-m", model.to_str().unwrap(), "-s3", "--steps=10", "-W48", "-H64", "-o", name];
    let output = nadir(at, &[&["generate"], args, &common].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image::open(at.join(name)).unwrap().into_rgb8().into_raw()
}

/// The commands that the projects' READMEs lead to, on folders of their layout.
#[test]
fn the_command_line_tells_by_meaning() -> Result<()> {
    let desk = tempfile::tempdir().unwrap();
    let at = desk.path();
    let golden = |name: &str| {
        let image = get(&golden::open(&format!("conditioning/{name}")).unwrap(), "image");
        image.to_vec::<f32>().unwrap()
    };
    let (text2earth, diffusionsat) = (open("text2earth")?, open("diffusionsat")?);

    let words = "Seven green circular farmlands are neatly arranged on the ground";
    let prompt = format!("16_GOOGLE_LEVEL_{words}");
    let level = draw(at, text2earth.folder(), "level.png", &[&prompt, "--cfg-scale=4"]);
    let psnr = case::psnr(&level, &golden("text2earth"));
    assert!(psnr >= 50.0, "{psnr} dB");
    for same in [["--level=16"], ["--gsd=2m"], ["--class-labels=16"]] {
        let args = [&[words, "--cfg-scale=4"], &same[..]].concat();
        assert!(draw(at, text2earth.folder(), "same.png", &args) == level, "{same:?}");
    }
    let other = draw(at, text2earth.folder(), "other.png", &[words, "--cfg-scale=4", "--level=12"]);
    assert!(other != level);

    let caption = "a fmow satellite image of a harbour";
    let told = ["--place", "48.85,2.35", "--gsd=1.2m", "--cloud=0.1", "--date=2021-07-04"];
    let sat = draw(at, diffusionsat.folder(), "sat.png", &[&[caption], &told[..]].concat());
    let psnr = case::psnr(&sat, &golden("diffusionsat"));
    assert!(psnr >= 50.0, "{psnr} dB");

    // The picture keeps what was said, and a manifest says the same.
    let kept = read_replay(&at.join("sat.png"))?;
    let fields = ["place", "gsd", "cloud", "date"].map(|name| kept[name].to_string());
    assert_eq!(fields, ["\"48.85,2.35\"", "1.2", "0.1", "\"2021-07-04\""]);
    let again = nadir(at, &["replay", "sat.png", "-o", "again.png"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let table = format!(
        "prompt,place,gsd,cloud,date,seed,steps,width,height\n{caption},\"48.85,2.35\",1.2m,0.1,2021-07-04,3,10,48,64\n"
    );
    fs::write(at.join("rows.csv"), table).unwrap();
    let model = diffusionsat.folder().to_str().unwrap();
    let drawn = nadir(at, &["generate", "--manifest", "rows.csv", "-m", model, "-o", "rows"]);
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let mut pictures: Vec<_> =
        fs::read_dir(at.join("rows")).unwrap().map(|e| e.unwrap().path()).collect();
    pictures.retain(|path| path.extension().is_some_and(|ending| ending == "png"));
    let [row] = &*pictures else { panic!("{pictures:?}") };
    for path in [at.join("again.png"), row.clone()] {
        assert!(image::open(path).unwrap().into_rgb8().into_raw() == sat);
    }
    Ok(())
}

#[test]
fn the_command_line_refuses_what_cannot_be_told() -> Result<()> {
    let desk = tempfile::tempdir().unwrap();
    let shipped = golden::root().join("weights/eurosat-64");
    let (text2earth, diffusionsat) = (open("text2earth")?, open("diffusionsat")?);
    for (model, args, words) in [
        (text2earth.folder(), &["a", "--level=19"][..], "--level"),
        (text2earth.folder(), &["a", "--level=-1"], "--level"),
        (text2earth.folder(), &["a", "--gsd=10cm"], "--gsd"),
        (text2earth.folder(), &["a", "--place=0,0"], "--place"),
        (text2earth.folder(), &["9_GOOGLE_LEVEL_a"], "--prompt"),
        (diffusionsat.folder(), &["a"], "--place"),
        (diffusionsat.folder(), &["a", "--place=91,0"], "--place"),
        (diffusionsat.folder(), &["a", "--place=-91,0"], "--place"),
        (diffusionsat.folder(), &["a", "--date=2021-02-30"], "--date"),
        (diffusionsat.folder(), &["a", "--date=1960-01-01"], "--date"),
        (diffusionsat.folder(), &["a", "--cloud=NaN"], "--cloud"),
        (diffusionsat.folder(), &["a", "--level=16"], "--level"),
        (&*shipped, &["a", "--place=48.85,2.35"], "--place"),
        (&*shipped, &["a", "--level=16"], "--level"),
    ] {
        let output =
            nadir(desk.path(), &[&["generate", "-m", model.to_str().unwrap()], args].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains(words), "{args:?}: {told}");
    }
    assert_eq!(fs::read_dir(desk.path()).unwrap().count(), 0);
    Ok(())
}
