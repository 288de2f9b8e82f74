//! Segmentation against segmentation-models-pytorch, on what `golden/segmentation.py` writes.

mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use golden::{assert_close, assert_same, get};
use image::{GrayImage, Luma, RgbImage, Rgba, RgbaImage};
use nadir::Result;
use nadir::data::Examples;
use nadir::data::masks::{MaskSettings, MaskedBatch, MaskedPictures, Normal};
use nadir::io::config::Config;
use nadir::io::folder::Weights;
use nadir::io::safetensors::SafeTensors;
use nadir::io::{TensorInfo, TensorSource};
use nadir::models::segmentation::{
    Decoder, DeepLabConfig, FpnConfig, SegmentationConfig, Segmenter, UnetConfig,
};
use nadir::nn::{Keep, Params, parameters};
use nadir::noise::Mt19937;
use nadir::ops::cross_entropy::{CrossEntropy, cross_entropy};
use nadir::ops::gradient::backward;
use nadir::ops::pixel_loss::PixelLoss;
use nadir::pipeline::Cancel;
use nadir::tensor::tape::no_grad;
use nadir::tensor::{DType, Device, Tensor};
use nadir::train::checkpoint::Resume;
use nadir::train::random::{Purpose, Random};
use nadir::train::segment::{MaskLoss, SegmentTask};
use nadir::train::{Event, Run, Settings, Task};
use serde_json::json;

/// As for classifiers: sums of a few hundred terms in another order, a few dozen layers of them.
const TOLERANCE: f32 = 1e-5;

/// In f64, of values that the file holds in f32.
const EXACT: f32 = 1e-6;

const IGNORED: u32 = 255;

/// Uniform in -1..1, by the words of torch's generator.
fn uniform(name: &str) -> impl Iterator<Item = f64> {
    let mut generator = Mt19937::new(u64::from(crc32fast::hash(name.as_bytes())));
    std::iter::repeat_with(move || {
        f64::from(generator.next_u32() % (1 << 24)) / f64::from(1 << 23) - 1.0
    })
}

/// The values that `draw` of `golden/segmentation.py` makes.
fn draw(name: &str, shape: &[usize]) -> Result<Tensor> {
    let deviation = (6.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
    let around_one = name.ends_with("weight") || name.ends_with("running_var");
    let values = uniform(name).take(shape.iter().product()).map(|uniform| {
        let value = match (shape.len(), around_one) {
            (1, true) => 1.0 + 0.3 * uniform,
            (1, false) => 0.2 * uniform,
            _ => uniform * deviation,
        };
        value as f32
    });
    Tensor::from_vec(values.collect(), shape)
}

/// [B, H, W, C] of what is drawn as [B, C, H, W].
fn images(shape: [usize; 4]) -> Result<Tensor> {
    draw("images", &shape)?.permute(&[0, 2, 3, 1])?.contiguous()
}

/// Classes [B, H, W], and a fifth of them ignored.
fn mask(shape: [usize; 3], classes: usize) -> Result<Tensor> {
    let class = |uniform: f64| match ((uniform + 1.0) / 2.0 * (classes as f64 * 1.25)) as u32 {
        class if class >= classes as u32 => IGNORED,
        class => class,
    };
    let count = shape.iter().product();
    Tensor::from_vec(uniform("mask").take(count).map(class).collect(), shape)
}

/// The weights that the library saves for a model.
struct Drawn {
    shapes: BTreeMap<String, Vec<usize>>,
    /// In front of each name.
    prefix: &'static str,
}

impl Drawn {
    fn of(name: &str, prefix: &'static str) -> Self {
        let path = golden::path(&format!("segmentation/{name}/weights.json"));
        let shapes = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        Self { shapes, prefix }
    }
}

impl TensorSource for Drawn {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().map(|name| format!("{}{name}", self.prefix)).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let shape = self.shapes.get(name.strip_prefix(self.prefix)?)?.clone();
        Some(TensorInfo { shape, dtype: DType::F32 })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let name = name.strip_prefix(self.prefix).unwrap();
        draw(name, &self.shapes[name])
    }

    fn origin(&self, _: &str) -> String {
        "drawn".into()
    }
}

fn config(name: &str) -> Result<SegmentationConfig> {
    let path = golden::path(&format!("segmentation/{name}/config.json"));
    SegmentationConfig::read(&Config::open(path)?)
}

fn load(name: &str, dtype: DType, keep: Keep, prefix: &'static str) -> Result<Segmenter> {
    let params = Params::new(Drawn::of(name, prefix), dtype, Device::Cpu).keeping(keep);
    let mut config = config(name)?;
    // The goldens are of training that leaves nothing out.
    match &mut config.decoder {
        Decoder::Unet(_) => {}
        Decoder::DeepLabV3Plus(decoder) => decoder.dropout = 0.0,
        Decoder::Fpn(decoder) => decoder.dropout = 0.0,
    }
    let model = Segmenter::load(config, &params)?;
    // Of an encoder that is shallower the library saves the last stages all the same.
    let unused = params.finish()?;
    let beyond: &[&str] = match name {
        "unet_resnet50" => &["encoder.layer4."],
        "unet_resnet34" => &["encoder.layer3.", "encoder.layer4."],
        _ => &[],
    };
    let saved = |stage: &&&str| unused.iter().any(|name| name.starts_with(**stage));
    assert_eq!(beyond.iter().filter(saved).count(), beyond.len(), "{unused:?}");
    let known = |name: &String| beyond.iter().any(|stage| name.starts_with(stage));
    assert!(unused.iter().all(known), "{unused:?}");
    Ok(model)
}

fn check(name: &str) -> Result<()> {
    let golden = golden::open(&format!("segmentation/{name}"))?;
    let model = load(name, DType::F32, Keep::Frozen, "")?;
    let theirs = get(&golden, "logits");
    let (batch, height, width, classes) = theirs.dims4()?;
    let images = images([batch, model.config().in_channels, height, width])?;
    let ours = model.forward(&images)?;
    assert_close(name, &ours, &theirs, TOLERANCE);
    for i in 0..batch {
        let alone = model.forward(&images.narrow(0, i, 1)?)?;
        assert_same("an image alone", &ours.narrow(0, i, 1)?, &alone);
    }
    if golden.info("training.loss").is_none() {
        return Ok(());
    }
    // Nothing being left out, a step of training.
    let model = load(name, DType::F64, Keep::Trainable, "")?;
    let logits = model.forward_training(&images.to_dtype(DType::F64)?, &mut || 1.0)?;
    let ignoring = CrossEntropy { ignore_index: Some(IGNORED), label_smoothing: 0.0 };
    let loss = cross_entropy(&logits, &mask([batch, height, width], classes)?, ignoring)?;
    assert_close("loss", &loss, &get(&golden, "training.loss"), EXACT);
    let gradients = backward(loss)?;
    for (parameter, value) in parameters(&model) {
        let value = value.tensor().unwrap();
        if !value.requires_grad() {
            assert!(parameter.contains("running_"), "{parameter}");
            continue;
        }
        let gradient = gradients.get(&value).unwrap_or_else(|| panic!("no gradient: {parameter}"));
        if let Ok(theirs) = golden.read(&format!("gradient.{parameter}")) {
            assert_close(&parameter, gradient, &theirs, EXACT);
        }
    }
    Ok(())
}

#[test]
fn unet_is_the_librarys() -> Result<()> {
    check("unet_resnet18")?;
    // Encoders of depth 3 and 4.
    check("unet_resnet34")?;
    check("unet_resnet50")
}

#[test]
fn deeplab_is_the_librarys() -> Result<()> {
    check("deeplab_resnet34")?;
    check("deeplab_resnet50")
}

#[test]
fn fpn_is_the_librarys() -> Result<()> {
    check("fpn_resnet18")?;
    check("fpn_resnet34")
}

/// The networks at a width that takes a virtual device no time.
fn narrow(decoder: Decoder, encoder: &str) -> SegmentationConfig {
    SegmentationConfig {
        encoder: encoder.to_owned(),
        base_width: 8,
        in_channels: 4,
        classes: 3,
        decoder,
    }
}

fn all_narrow() -> [SegmentationConfig; 3] {
    let deeplab = DeepLabConfig { channels: 16, ..DeepLabConfig::default() };
    let fpn = FpnConfig { pyramid_channels: 16, segmentation_channels: 32, ..FpnConfig::default() };
    [
        narrow(Decoder::Unet(UnetConfig { channels: vec![32, 16, 16, 8, 8] }), "resnet18"),
        narrow(Decoder::DeepLabV3Plus(deeplab), "resnet18"),
        narrow(Decoder::Fpn(fpn), "resnet50"),
    ]
}

#[test]
fn a_gpu_finds_what_the_cpu_finds() -> Result<()> {
    let Some(device) = gpu::gpu() else { return Ok(()) };
    let images = images([1, 4, 32, 32])?;
    for config in all_narrow() {
        let run = |device| -> Result<Tensor> {
            let params = Params::initial(draw, DType::F32, device);
            Segmenter::load(config.clone(), &params)?.forward(&images)?.to_device(Device::Cpu)
        };
        // Ten times what two orders of the same sums have been seen to differ by.
        assert_close(config.decoder.name(), &run(device)?, &run(Device::Cpu)?, 1e-4);
    }
    Ok(())
}

/// Each gradient of a step of training. An input of a ReLU that is zero but for rounding passes its gradient on or not: that
/// moves PyTorch's own gradients of such networks, in f64, by up to 0.5 % when images change by a millionth (ResNet-50, with
/// eight positions under its last batch norms, by 3 %; so that is not among these).
#[test]
fn a_gpu_learns_what_the_cpu_learns() -> Result<()> {
    let Some(device) = gpu::gpu() else { return Ok(()) };
    let shape = [2, 4, 64, 64];
    for mut config in all_narrow() {
        config.encoder = "resnet18".to_owned();
        match &mut config.decoder {
            Decoder::Unet(_) => {}
            Decoder::DeepLabV3Plus(decoder) => decoder.dropout = 0.0,
            Decoder::Fpn(decoder) => decoder.dropout = 0.0,
        }
        let run = |device| -> Result<Vec<(String, Tensor)>> {
            let params = Params::initial(draw, DType::F32, device).keeping(Keep::Trainable);
            let model = Segmenter::load(config.clone(), &params)?;
            let images = images(shape)?.to_device(device)?;
            let classes = mask([2, 64, 64], config.classes)?.to_device(device)?;
            let ignoring = CrossEntropy { ignore_index: Some(IGNORED), label_smoothing: 0.0 };
            let logits = model.forward_training(&images, &mut || 1.0)?;
            let gradients = backward(cross_entropy(&logits, &classes, ignoring)?)?;
            let mut found = Vec::new();
            for (name, value) in parameters(&model) {
                let value = value.tensor().unwrap();
                if value.requires_grad() {
                    let gradient = gradients.get(&value).expect(&name);
                    found.push((name, gradient.to_device(Device::Cpu)?));
                }
            }
            Ok(found)
        };
        let decoder = config.decoder.name();
        for ((name, ours), (_, cpus)) in run(device)?.iter().zip(run(Device::Cpu)?) {
            assert_close(&format!("{decoder}: {name}"), ours, &cpus, 1e-2);
        }
    }
    Ok(())
}

#[test]
fn a_checkpoint_of_torchgeos_names_is_the_same_model() -> Result<()> {
    let images = images([2, 4, 33, 47])?;
    let [one, other] = ["", "model."].map(|prefix| {
        load("unet_resnet18", DType::F32, Keep::Frozen, prefix).and_then(|m| m.forward(&images))
    });
    assert_same("names", &one?, &other?);
    Ok(())
}

#[test]
fn what_is_written_is_read_again() -> Result<()> {
    for config in all_narrow() {
        let again = Config::from_value("config.json", config.to_json())?;
        assert_eq!(SegmentationConfig::read(&again)?, config);
    }
    for name in ["unet_resnet34", "unet_resnet50", "deeplab_resnet50", "fpn_resnet34"] {
        let path = golden::path(&format!("segmentation/{name}/config.json"));
        let theirs = nadir::io::config::read_json(&path)?;
        // Lists and numbers alike, but for the order of fields.
        assert_eq!(config(name)?.to_json(), theirs, "{name}");
    }
    Ok(())
}

#[test]
fn what_is_not_implemented_or_does_not_fit_is_an_error() -> Result<()> {
    let good = narrow(Decoder::Unet(UnetConfig::default()), "resnet18").to_json();
    for (field, value, expected) in [
        ("encoder_name", serde_json::json!("resnext50_32x4d"), "resnet18, resnet34, resnet50"),
        ("decoder_attention_type", "scse".into(), "null"),
        ("decoder_use_norm", "layernorm".into(), "batchnorm"),
        ("decoder_interpolation", "bilinear".into(), "nearest"),
        ("activation", "sigmoid".into(), "identity"),
        ("aux_params", serde_json::json!({"classes": 2}), "null"),
        ("decoder_channels", serde_json::json!([8, 8]), "5 numbers"),
        ("encoder_depth", 2.into(), "3, 4 or 5"),
        ("classes", 0.into(), "above 0"),
        ("_model_class", "Segformer".into(), "Unet, DeepLabV3Plus, FPN"),
        ("surprise", 1.into(), "a field that nadir knows"),
    ] {
        let mut config = good.clone();
        config[field] = value;
        let config = Config::from_value("config.json", config)?;
        let error = SegmentationConfig::read(&config).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains(expected), "{field}: {error}");
    }
    // Of these the library has shallower encoders too.
    let [_, deeplab, fpn] = all_narrow();
    for (config, depth) in [(&deeplab, 4), (&deeplab, 3), (&fpn, 4), (&fpn, 3)] {
        let mut config = config.to_json();
        config["encoder_depth"] = depth.into();
        let config = Config::from_value("config.json", config)?;
        let error = SegmentationConfig::read(&config).unwrap_err().to_string();
        assert!(error.contains("config.json: field \"encoder_depth\": expected 5"), "{error}");
    }
    let model = Segmenter::load(deeplab, &Params::initial(draw, DType::F32, Device::Cpu))?;
    let error = |shape| model.forward(&images(shape).unwrap()).unwrap_err().to_string();
    let bands = error([1, 3, 32, 32]);
    assert!(bands.contains("4 bands") && bands.contains("images of 3"), "{bands}");
    let size = error([1, 4, 33, 32]);
    assert!(size.contains("33x32") && size.contains("multiple of 16"), "{size}");
    Ok(())
}

#[test]
fn losses_are_the_librarys() -> Result<()> {
    let golden = SafeTensors::open(golden::path("segmentation/losses.safetensors"))?;
    let logits = get(&golden, "logits").to_dtype(DType::F64)?;
    for (name, loss) in [
        ("dice", PixelLoss::DICE),
        ("dice_smooth", PixelLoss::Dice { smooth: 1.0 }),
        ("focal", PixelLoss::FOCAL),
        ("focal_balanced", PixelLoss::Focal { gamma: 1.5, alpha: Some(0.25) }),
    ] {
        for kind in ["mask", "whole", "missing"] {
            let targets = get(&golden, kind).to_vec::<i64>()?.into_iter().map(|t| t as u32);
            let targets = Tensor::from_vec(targets.collect(), &logits.dims()[..3])?;
            let logits = logits.variable();
            let ours = loss.of(&logits, &targets, Some(IGNORED))?;
            let what = format!("{name}.{kind}");
            assert_close(&what, &ours, &get(&golden, &what), EXACT);
            let gradients = backward(ours)?;
            let theirs = get(&golden, &format!("{what}.gradient"));
            assert_close(&what, gradients.get(&logits).unwrap(), &theirs, EXACT);
        }
    }
    Ok(())
}

/// Writes pictures of four bands, 8 bits, and masks: a disc of class 1 in another, noisy, colour; the first row of each mask
/// is of no class.
fn write_discs(folder: &Path, count: usize) {
    for part in ["images", "masks"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    let mut noise = uniform("discs");
    for i in 0..count {
        let (width, height) = (41, 37);
        let mut picture = RgbaImage::new(width, height);
        let mut mask = GrayImage::new(width, height);
        for (x, y, level) in mask.enumerate_pixels_mut() {
            let (dx, dy) = (x as f64 - 12.0 - 5.0 * i as f64, y as f64 - 20.0);
            let inside = dx * dx + dy * dy < 100.0;
            level.0 = [if y == 0 { 255 } else { u8::from(inside) }];
            let mut of = |base: f64| (base + 30.0 * noise.next().unwrap()) as u8;
            let levels =
                if inside { [60.0, 90.0, 140.0, 40.0] } else { [90.0, 110.0, 80.0, 160.0] };
            picture.put_pixel(x, y, Rgba(levels.map(&mut of)));
        }
        picture.save(folder.join(format!("images/{i}.tif"))).unwrap();
        mask.save(folder.join(format!("masks/{i}.png"))).unwrap();
    }
}

fn discs(folder: &Path) -> MaskedPictures {
    write_discs(folder, 4);
    let settings = MaskSettings {
        resolution: 32,
        classes: vec!["land".into(), "water".into()],
        random_flip: true,
        vertical_flip: true,
        random_rotate: true,
        ..MaskSettings::default()
    };
    MaskedPictures::open(folder, settings).unwrap()
}

/// Trains up to `stop` steps of a run of `settings`, in `folder`; what was measured at the end.
fn train(
    data: &MaskedPictures,
    folder: &Path,
    settings: &Settings,
    stop: u64,
) -> Vec<(&'static str, f64)> {
    let (data, held_out) = data.split(0.25, 1).unwrap();
    let shape = |bands, classes| {
        let decoder = UnetConfig { channels: vec![32, 16, 16, 8, 8] };
        SegmentationConfig {
            in_channels: bands,
            classes,
            ..narrow(Decoder::Unet(decoder), "resnet18")
        }
    };
    let task = SegmentTask::new(&data, shape, settings.seed, Device::Cpu).unwrap();
    let task = task.losing(&[MaskLoss::CrossEntropy, MaskLoss::Dice, MaskLoss::Focal]).unwrap();
    let cancel = Cancel::default();
    let run = Run {
        task: &task,
        settings,
        data: &data,
        held_out: Some(&held_out),
        folder,
        about: &[],
        resume: Some(&Resume::Latest),
        cancel: &cancel,
    };
    let mut measured = Vec::new();
    run.run(&mut |event| match event {
        Event::Step(progress) if progress.step == stop => {
            cancel.cancel();
        }
        Event::Validated(_, found) => measured = found,
        Event::Failed(message) => panic!("{message}"),
        _ => {}
    })
    .unwrap();
    measured
}

#[test]
fn masks_are_learnt_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let data = discs(&folder.path().join("data"));
    let settings = Settings {
        train_batch_size: 4,
        max_train_steps: 40,
        learning_rate: 3e-3,
        ..Settings::default()
    };
    let measured = train(&data, folder.path(), &settings, u64::MAX);
    let iou = measured.iter().find(|(name, _)| *name == "validation_mean_iou").unwrap().1;
    assert!(iou >= 0.8, "{measured:?}");

    // What was exported is what was measured.
    let segmenter = folder.path().join("segmenter");
    let again = SegmentTask::open(&segmenter, &data, Device::Cpu).unwrap();
    let (_, held_out) = data.split(0.25, 1).unwrap();
    for batch in held_out.pass(16, 1).unwrap() {
        let mut random = Random::new(0, Purpose::Validation, 0);
        no_grad(|| again.validate(&batch.unwrap(), &mut random)).unwrap();
    }
    let found = again.conclude(&Vec::new());
    assert_eq!(found[0], ("validation_mean_iou", iou));

    // It is not taken for a network of other classes or bands.
    let path = segmenter.join("config.json");
    let config = nadir::io::config::read_json(&path).unwrap();
    for (field, value, expected) in
        [("_classes", json!(["land", "moon"]), "moon"), ("in_channels", json!(3), "4, the bands")]
    {
        let mut config = config.clone();
        config[field] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = SegmentTask::open(&segmenter, &data, Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = discs(&folder.path().join("data"));
    let settings = Settings { train_batch_size: 3, max_train_steps: 6, ..Settings::default() };
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    for path in [&whole, &parts] {
        std::fs::create_dir_all(path).unwrap();
    }
    train(&data, &whole, &settings, u64::MAX);
    for stop in [2, 3, u64::MAX] {
        train(&data, &parts, &settings, stop);
    }
    let read = |path: &Path| std::fs::read(path.join("segmenter/model.safetensors")).unwrap();
    assert!(read(&whole) == read(&parts), "another network");
}

#[test]
fn a_pass_has_every_pixel_once_and_a_stream_moves_masks_with_pictures() {
    let folder = tempfile::tempdir().unwrap();
    write_discs(folder.path(), 4);
    // A mask of its picture's own levels.
    for i in 0..4 {
        let mask = GrayImage::from_fn(41, 37, |x, y| Luma([((x * 7 + y * 3) % 250) as u8]));
        let [m, p] = [format!("masks/{i}.png"), format!("images/{i}.tif")];
        mask.save(folder.path().join(m)).unwrap();
        let picture = RgbaImage::from_fn(41, 37, |x, y| {
            let [level] = mask.get_pixel(x, y).0;
            Rgba([level, 0, x as u8, y as u8])
        });
        picture.save(folder.path().join(p)).unwrap();
    }
    let settings = MaskSettings {
        resolution: 16,
        random_flip: true,
        vertical_flip: true,
        random_rotate: true,
        ..MaskSettings::default()
    };
    let data = MaskedPictures::open(folder.path(), settings).unwrap();
    let pixels = |batch: MaskedBatch| {
        let levels = batch.images.to_vec::<f32>().unwrap();
        let classes = batch.classes.to_vec::<u32>().unwrap();
        let levels: Vec<_> = levels
            .chunks_exact(4)
            .map(|level| [level[0], level[2], level[3]].map(|x| (x * 255.0).round() as u32))
            .collect();
        levels.into_iter().zip(classes).filter(|(_, class)| *class != u32::MAX).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for batch in data.pass(5, 1).unwrap() {
        all.extend(pixels(batch.unwrap()));
    }
    assert_eq!(all.len(), 4 * 41 * 37);
    let places: BTreeSet<_> = all.iter().map(|([_, x, y], _)| (*x, *y)).collect();
    assert_eq!(places.len(), 41 * 37);
    let mut turned = 0;
    let seen: Vec<_> =
        data.stream(3, 9, 0, 1).unwrap().take(6).map(|b| pixels(b.unwrap())).collect();
    for batch in &seen {
        assert_eq!(batch.len(), 3 * 256);
        assert!(batch.iter().all(|([level, ..], class)| level == class));
        turned += usize::from(batch[1].0[1] != batch[0].0[1] + 1);
    }
    assert!(turned > 0);
    // A run that goes on, in other batches.
    let rest: Vec<_> =
        data.stream(6, 9, 6, 2).unwrap().take(2).flat_map(|b| pixels(b.unwrap())).collect();
    assert_eq!(rest, seen[2..].concat());

    // Light changes crops that are drawn, each band by itself, and nothing that is passed over.
    let lit =
        MaskSettings { resolution: 16, brightness: 0.5, contrast: 0.5, ..MaskSettings::default() };
    let plain = MaskSettings { resolution: 16, ..MaskSettings::default() };
    let [lit, plain] =
        [lit, plain].map(|settings| MaskedPictures::open(folder.path(), settings).unwrap());
    let first = |batch: Option<Result<MaskedBatch>>| {
        batch.unwrap().unwrap().images.to_vec::<f32>().unwrap()
    };
    let passed = [&lit, &plain].map(|data| first(data.pass(5, 1).unwrap().next()));
    assert_eq!(passed[0], passed[1]);
    let drawn = [&lit, &plain].map(|data| first(data.stream(3, 9, 0, 1).unwrap().next()));
    let means = |values: &[f32]| {
        [0, 2, 3]
            .map(|band| values[..16 * 16 * 4].iter().skip(band).step_by(4).sum::<f32>() / 256.0)
    };
    let [lit, plain] = [means(&drawn[0]), means(&drawn[1])];
    let factors = [0, 1, 2].map(|band| lit[band] / plain[band]);
    assert!(
        factors.iter().all(|f| (0.4..1.6).contains(f) && (f - 1.0).abs() > 1e-3),
        "{factors:?}"
    );
    assert!((factors[0] - factors[1]).abs() > 1e-3 && (factors[1] - factors[2]).abs() > 1e-3);
}

#[test]
fn what_is_normalised_by_picture_has_no_light_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    write_discs(folder.path(), 2);
    // The second picture is darker than the first.
    let path = folder.path().join("images/1.tif");
    let mut dark = image::open(&path).unwrap().into_rgba8();
    dark.pixels_mut().for_each(|pixel| pixel.0.iter_mut().for_each(|level| *level /= 3));
    dark.save(&path).unwrap();
    let settings =
        MaskSettings { resolution: 37, normalize: Normal::Picture, ..MaskSettings::default() };
    let data = MaskedPictures::open(folder.path(), settings).unwrap();
    // Two crops of each picture, which have its first 37 columns, and its last.
    let batch = data.pass(4, 1).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.images.dims(), [4, 37, 37, 4]);
    let values = batch.images.to_vec::<f32>().unwrap();
    for picture in 0..2 {
        for band in 0..4 {
            let at = |crop: usize, y: usize, x: usize| {
                f64::from(values[((crop * 37 + y) * 37 + x) * 4 + band])
            };
            let first = (0..37).flat_map(|y| (0..37).map(move |x| (2 * picture, y, x)));
            let last = (0..37).flat_map(|y| (33..37).map(move |x| (2 * picture + 1, y, x)));
            let all: Vec<f64> = first.chain(last).map(|(crop, y, x)| at(crop, y, x)).collect();
            let n = all.len() as f64;
            let mean = all.iter().sum::<f64>() / n;
            let square = all.iter().map(|x| x * x).sum::<f64>() / n;
            assert!(n == 37.0 * 41.0 && mean.abs() < 1e-5 && (square - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn masks_that_do_not_fit_are_errors() {
    let error = |spoil: &dyn Fn(&Path), settings: MaskSettings| {
        let folder = tempfile::tempdir().unwrap();
        write_discs(folder.path(), 2);
        spoil(folder.path());
        MaskedPictures::open(folder.path(), settings).err().unwrap().to_string()
    };
    let small = || MaskSettings { resolution: 32, ..MaskSettings::default() };
    let named = |names: &[&str]| MaskSettings {
        classes: names.iter().map(|&name| name.to_owned()).collect(),
        ..small()
    };
    let mask = |level: u8, width: u32| {
        move |folder: &Path| {
            GrayImage::from_pixel(width, 37, Luma([level]))
                .save(folder.join("masks/1.png"))
                .unwrap()
        }
    };
    let size = error(&mask(1, 40), small());
    assert!(size.contains("1.tif") && size.contains("41x37") && size.contains("40x37"), "{size}");
    let unknown = error(&mask(7, 41), named(&["land", "water"]));
    assert!(unknown.contains("land, water") && unknown.contains("7 at column 0"), "{unknown}");
    let empty = error(&|_| {}, named(&["land", "water", "ice"]));
    assert!(empty.contains("none of \"ice\""), "{empty}");
    let gap = error(&mask(3, 41), small());
    assert!(gap.contains("none of \"2\""), "{gap}");
    let large = error(&|_| {}, MaskSettings::default());
    assert!(large.contains("256x256") && large.contains("--resolution"), "{large}");
    let without = error(&|f| std::fs::remove_file(f.join("masks/0.png")).unwrap(), small());
    assert!(without.contains("0.tif") && without.contains("masks/0"), "{without}");
    let dark = error(&|_| {}, MaskSettings { brightness: f32::NAN, ..small() });
    assert!(dark.contains("brightness") && dark.contains("NaN"), "{dark}");
    let alone = error(&|f| std::fs::remove_file(f.join("images/0.tif")).unwrap(), small());
    assert!(alone.contains("0.png") && alone.contains("a picture"), "{alone}");
    let bands = error(
        &|folder| {
            let picture = RgbImage::new(41, 37);
            picture.save(folder.join("images/1.tif")).unwrap();
        },
        small(),
    );
    assert!(bands.contains("4, as the first") && bands.contains('3'), "{bands}");
}

/// The library builds the network that a folder describes, from its weights, and finds what nadir finds.
#[test]
fn the_library_reads_what_is_exported() {
    let python = std::env::var("NADIR_GOLDEN_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let run = |arguments: &[&std::ffi::OsStr]| {
        std::process::Command::new(&python).args(arguments).output()
    };
    let there = run(&["-c".as_ref(), "import segmentation_models_pytorch".as_ref()]);
    if !there.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no segmentation-models-pytorch");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = discs(&folder.path().join("data"));
    let shape = |bands, classes| SegmentationConfig {
        base_width: 64,
        in_channels: bands,
        classes,
        ..narrow(Decoder::Unet(UnetConfig::default()), "resnet18")
    };
    let task = SegmentTask::new(&data, shape, 1, Device::Cpu).unwrap();
    task.export(folder.path(), &Vec::new()).unwrap();
    let script = golden::path("check_segmentation.py");
    let found = folder.path().join("logits.safetensors");
    let segmenter = folder.path().join("segmenter");
    let output = run(&[script.as_os_str(), segmenter.as_os_str(), found.as_os_str()]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let params = Params::new(Weights::open(&segmenter, None).unwrap(), DType::F32, Device::Cpu);
    let config = Config::open(segmenter.join("config.json")).unwrap();
    let model = Segmenter::load(SegmentationConfig::read(&config).unwrap(), &params).unwrap();
    let ours = model.forward(&images([1, 4, 33, 47]).unwrap()).unwrap();
    let theirs = get(&SafeTensors::open(found).unwrap(), "logits");
    assert_close("exported", &ours, &theirs, TOLERANCE);
}
