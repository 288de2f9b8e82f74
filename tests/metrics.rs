//! Metrics against torch-fidelity, prdc and scikit-image, on the features and pictures of `golden/metrics.py`; InceptionV3
//! against torch-fidelity's and clean-fid's, and learned similarity against the lpips package, with the drawn weights of
//! `golden/perceptual.py`.

mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::collections::BTreeMap;

use golden::{assert_close, assert_same, get};
use nadir::Result;
use nadir::io::image::RgbImage;
use nadir::io::safetensors::SafeTensors;
use nadir::io::{TensorInfo, TensorSource};
use nadir::metrics::kernel::KernelSettings;
use nadir::metrics::similarity::{Ssim, Window, psnr, ssim};
use nadir::metrics::{Features, Resize, frechet, inception_score, kernel, prdc};
use nadir::models::inception::InceptionV3;
use nadir::models::lpips::{Lpips, Trunk};
use nadir::nn::Params;
use nadir::noise::Mt19937;
use nadir::ops::layout::concat;
use nadir::tensor::{DType, Device, Tensor};

/// Of sums in f64 over features in f32, stored in f32; torch-fidelity's roots of eigenvalues that should be zero are the
/// largest part.
const RELATIVE: f64 = 1e-5;

#[track_caller]
fn assert_value(golden: &SafeTensors, name: &str, found: f64) {
    let expected = f64::from(get(golden, name).to_vec::<f32>().unwrap()[0]);
    let error = (found - expected).abs();
    println!("{name}: {found}, off by {:.1e}", error / expected.abs());
    assert!(error <= RELATIVE * expected.abs(), "{name}: {found}, not {expected}");
}

#[test]
fn distances_are_those_of_torch_fidelity_and_prdc() -> Result<()> {
    let golden = golden::open("metrics")?;
    for (first, second, subset_size) in [("a", "b", 60), ("few", "b", 15), ("a", "few", 17)] {
        let [a, b] = [first, second].map(|name| Features::new(&get(&golden, name)).unwrap());
        let check =
            |name: &str, found| assert_value(&golden, &format!("{first}-{second}.{name}"), found);
        check("frechet_inception_distance", frechet::distance(&a, &b)?);
        let settings = KernelSettings { subsets: 20, subset_size, seed: 2020, resamples: 0 };
        let found = kernel::distance(&a, &b, &settings)?;
        check("kernel_inception_distance_mean", found.mean);
        check("kernel_inception_distance_std", found.deviation);
        let found = prdc::precision_recall(&a, &b, 3)?;
        check("precision", found.precision);
        check("recall", found.recall);
        let found = prdc::density_coverage(&a, &b, 5)?;
        check("density", found.density);
        check("coverage", found.coverage);
    }
    Ok(())
}

#[test]
fn the_inception_score_is_torch_fidelitys() -> Result<()> {
    let golden = golden::open("metrics")?;
    let found = inception_score::score(&Features::new(&get(&golden, "logits"))?, 5, 2020)?;
    assert_value(&golden, "inception_score_mean", found.mean);
    assert_value(&golden, "inception_score_std", found.deviation);
    Ok(())
}

#[test]
fn likeness_is_scikit_images() -> Result<()> {
    let golden = golden::open("metrics")?;
    let picture = |name: &str, scale: f64| {
        let levels = get(&golden, name);
        let values = levels.to_vec::<u8>().unwrap().iter().map(|&x| f64::from(x) * scale).collect();
        Tensor::from_vec::<f64>(values, *levels.shape()).unwrap()
    };
    let (a, b) = (picture("picture.a", 1.0), picture("picture.b", 1.0));
    assert_value(&golden, "psnr", psnr(&a, &b, 255.0)?);
    let gaussian = Window::Gaussian(1.5);
    let of = |window| ssim(&a, &b, &Ssim { window, ..Ssim::default() });
    assert_value(&golden, "ssim.uniform", of(Window::Uniform(7))?);
    assert_value(&golden, "ssim.uniform5", of(Window::Uniform(5))?);
    assert_value(&golden, "ssim.gaussian", of(gaussian)?);
    let paper = Ssim { window: gaussian, range: 1.0, sample_covariance: false };
    let (a, b) = (picture("picture.a", 1.0 / 255.0), picture("picture.b", 1.0 / 255.0));
    assert_value(&golden, "ssim.paper", ssim(&a, &b, &paper)?);
    Ok(())
}

/// Sums of up to 3,456 terms, 48 layers of them, in f32 against f64; 3x3 ones by Winograd's algorithm.
const TOLERANCE: f32 = 1e-5;

/// The weights that `draw` of `golden/perceptual.py` makes, under names that begin with `renamed` instead of its first.
struct Drawn {
    shapes: BTreeMap<String, Vec<usize>>,
    renamed: Option<[&'static str; 2]>,
}

impl Drawn {
    fn of(kind: &str) -> Self {
        let text = std::fs::read_to_string(golden::path("perceptual/weights.json")).unwrap();
        let mut all: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
            serde_json::from_str(&text).unwrap();
        Self { shapes: all.remove(kind).unwrap(), renamed: None }
    }

    /// What the generator calls it.
    fn original(&self, name: &str) -> Option<String> {
        if let Some([prefix, number]) = self.renamed {
            // features.3.weight is net.slice2.3.weight.
            if let Some(rest) = name.strip_prefix(prefix) {
                let found = self
                    .shapes
                    .keys()
                    .find(|key| key.starts_with(number) && key.splitn(3, '.').nth(2) == Some(rest));
                return found.cloned();
            }
        }
        self.shapes.contains_key(name).then(|| name.to_owned())
    }
}

impl TensorSource for Drawn {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let name = self.original(name)?;
        Some(TensorInfo { shape: self.shapes[&name].clone(), dtype: DType::F32 })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let name = self.original(name).unwrap();
        let shape = &self.shapes[&name];
        let mut generator = Mt19937::new(u64::from(crc32fast::hash(name.as_bytes())));
        let factor = (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
        let values = (0..shape.iter().product()).map(|_| {
            let uniform = f64::from(generator.next_u32() % (1 << 24)) / f64::from(1 << 23) - 1.0;
            let value = match (shape.len(), name.ends_with("weight")) {
                _ if name.ends_with("running_var") => 1.25 + 0.75 * uniform,
                _ if name.starts_with("lin") => 0.5 * (uniform + 1.0),
                (1, true) => 1.0 + 0.3 * uniform,
                (1, false) => 0.1 * uniform,
                _ => uniform * factor,
            };
            value as f32
        });
        Tensor::from_vec(values.collect(), &shape[..])
    }

    fn origin(&self, _: &str) -> String {
        "drawn".into()
    }
}

fn pictures(golden: &SafeTensors) -> Vec<RgbImage> {
    let picture = |i| {
        let levels = get(golden, &format!("picture.{i}"));
        let (width, height) = (levels.dim(1) as u32, levels.dim(0) as u32);
        RgbImage::from_raw(width, height, levels.to_vec().unwrap()).unwrap()
    };
    (0..3).map(picture).collect()
}

#[test]
fn features_are_torch_fidelitys_and_clean_fids() -> Result<()> {
    let golden = golden::open("perceptual")?;
    let params = Params::new(Drawn::of("inception"), DType::F32, Device::Cpu);
    let model = InceptionV3::load(&params)?;
    assert_eq!(params.finish()?, Vec::<String>::new());
    let pictures = pictures(&golden);
    for resize in [Resize::TensorFlow, Resize::Clean] {
        let batch = resize.batch(&pictures)?;
        let levels = batch.to_vec::<f32>()?.iter().map(|x| x * 128.0 + 128.0).collect();
        let levels = Tensor::from_vec::<f32>(levels, *batch.shape())?;
        let some = some(&levels, 37, 23)?;
        let name = resize.name();
        assert_close(name, &some, &get(&golden, &format!("{name}.resized")), 1e-6);
        let features = model.features(&batch)?;
        assert_close(name, &features, &get(&golden, &format!("{name}.features")), TOLERANCE);
        if resize == Resize::TensorFlow {
            let logits = model.logits(&features)?;
            assert_close("logits", &logits, &get(&golden, "tensorflow.logits"), TOLERANCE);
            let alone = model.features(&resize.batch(&pictures[1..2])?)?;
            assert_same("a picture alone", &alone, &features.narrow(0, 1, 1)?);
        }
    }
    Ok(())
}

/// Every so many rows and columns.
fn some(x: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let mut parts = Vec::new();
    for y in (0..x.dim(1)).step_by(rows) {
        let row = x.narrow(1, y, 1)?;
        let pixels = (0..x.dim(2)).step_by(columns).map(|at| row.narrow(2, at, 1));
        let pixels = pixels.collect::<Result<Vec<_>>>()?;
        parts.push(concat(&pixels.iter().collect::<Vec<_>>(), 2)?);
    }
    concat(&parts.iter().collect::<Vec<_>>(), 1)
}

#[test]
fn similarity_is_the_lpips_packages() -> Result<()> {
    let golden = golden::open("perceptual")?;
    let scaled = |picture: &RgbImage| -> Vec<f32> {
        picture.as_raw().iter().map(|&x| 2.0 * f32::from(x) / 255.0 - 1.0).collect()
    };
    let (a, b) = (scaled(&pictures(&golden)[0]), scaled(&pictures(&golden)[1]));
    let mean: Vec<f32> = a.iter().zip(&b).map(|(a, b)| (a + b) / 2.0).collect();
    let shape = [2, 64, 64, 3];
    let first = Tensor::from_vec([a, b].concat(), shape)?;
    let second = Tensor::from_vec(mean.repeat(2), shape)?;
    for (name, trunk) in [("alex", Trunk::Alex), ("vgg", Trunk::Vgg)] {
        // The package's names, and torchvision's.
        let renamed = [None, Some(["features.", "net."])];
        for renamed in &renamed[..if trunk == Trunk::Alex { 2 } else { 1 }] {
            let source = Drawn { renamed: *renamed, ..Drawn::of(name) };
            let params = Params::new(source, DType::F32, Device::Cpu);
            let measure = Lpips::load(&params, trunk)?;
            if renamed.is_none() {
                assert_eq!(params.finish()?, Vec::<String>::new());
            }
            let found = measure.distance(&first, &second)?;
            let found = Tensor::from_vec(found.iter().map(|&x| x as f32).collect(), [2])?;
            assert_close(name, &found, &get(&golden, name), TOLERANCE);
            if trunk == Trunk::Alex {
                assert_eq!(measure.distance(&first, &first)?, [0.0; 2]);
            }
        }
    }
    Ok(())
}

/// The whole network, at a size at which its last blocks see a pixel; wider ones are seen by the blocks' own test.
#[test]
fn a_gpu_sees_what_the_cpu_sees() -> Result<()> {
    let Some(device) = gpu::gpu() else { return Ok(()) };
    let shape = [1, 75, 79, 3];
    let images = Tensor::from_vec(Mt19937::new(75).randn(shape.iter().product()), shape)?;
    let run = |device| -> Result<[Tensor; 2]> {
        let params = Params::new(Drawn::of("inception"), DType::F32, device);
        let model = InceptionV3::load(&params)?;
        let features = model.features(&images)?;
        Ok([model.logits(&features)?.to_device(Device::Cpu)?, features.to_device(Device::Cpu)?])
    };
    for (what, (ours, cpus)) in
        ["logits", "features"].iter().zip(run(device)?.iter().zip(run(Device::Cpu)?))
    {
        assert_close(what, ours, &cpus, TOLERANCE);
    }
    Ok(())
}

#[test]
fn a_gpu_finds_pictures_as_alike_as_the_cpu() -> Result<()> {
    let Some(device) = gpu::gpu() else { return Ok(()) };
    for (name, trunk, shape) in
        [("alex", Trunk::Alex, [2, 31, 35, 3]), ("vgg", Trunk::Vgg, [1, 16, 19, 3])]
    {
        let picture = |seed| {
            let values = Mt19937::new(seed).randn(shape.iter().product());
            Tensor::from_vec(values.iter().map(|x| x.clamp(-1.0, 1.0)).collect(), shape)
        };
        let run = |device| -> Result<Tensor> {
            let params = Params::new(Drawn::of(name), DType::F32, device);
            let found = Lpips::load(&params, trunk)?.distance(&picture(1)?, &picture(2)?)?;
            Tensor::from_vec(found.iter().map(|&x| x as f32).collect(), [shape[0]])
        };
        assert_close(name, &run(device)?, &run(Device::Cpu)?, TOLERANCE);
    }
    Ok(())
}
