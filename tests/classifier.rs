//! Residual networks against torchvision, on the narrow configurations of `golden/resnet.py`.

mod golden;

use golden::{assert_close, assert_same, get};
use nadir::Result;
use nadir::io::config::Config;
use nadir::io::folder::Weights;
use nadir::models::resnet::{ResNet, ResNetConfig};
use nadir::nn::{Keep, Params, parameters, save};
use nadir::ops::cross_entropy::{CrossEntropy, cross_entropy};
use nadir::ops::gradient::backward;
use nadir::tensor::{DType, Device, Tensor};

/// As in `models.rs`: sums of a few hundred terms in another order, a few dozen layers of them.
const TOLERANCE: f32 = 1e-5;

/// What is divided by the deviation of three images in the last stage takes part of their differences' digits along:
/// 50 layers of such norms pass a rounding error on some ten times enlarged.
const TRAINING_TOLERANCE: f32 = 2e-4;

fn load(name: &str, keep: Keep) -> Result<ResNet> {
    let folder = golden::path(&format!("models/{name}"));
    let config = ResNetConfig::read(&Config::open(folder.join("config.json"))?)?;
    let params = Params::new(Weights::open(&folder, None)?, DType::F32, Device::Cpu).keeping(keep);
    let model = ResNet::load(config, &params)?;
    // PyTorch counts batches, and reads files without the count.
    let unused = params.finish()?;
    assert!(unused.iter().all(|name| name.ends_with("num_batches_tracked")), "{unused:?}");
    Ok(model)
}

fn check_use(name: &str) -> Result<()> {
    let golden = golden::open(&format!("models/{name}"))?;
    let images = get(&golden, "images");
    for keep in [Keep::Frozen, Keep::Trainable] {
        let model = load(name, keep)?;
        let features = model.features(&images)?;
        assert_close("features", &features, &get(&golden, "features"), TOLERANCE);
        let logits = model.forward(&images)?;
        assert_close("logits", &logits, &get(&golden, "logits"), TOLERANCE);
        for i in 0..images.dim(0) {
            let alone = model.forward(&images.narrow(0, i, 1)?)?;
            assert_same("an image alone", &logits.narrow(0, i, 1)?, &alone);
        }
    }
    Ok(())
}

fn check_training(name: &str) -> Result<()> {
    let golden = golden::open(&format!("models/{name}"))?;
    let model = load(name, Keep::Trainable)?;
    let logits = model.forward_training(&get(&golden, "images"))?;
    assert_close("logits", &logits, &get(&golden, "training.logits"), TRAINING_TOLERANCE);
    let targets: Vec<u32> =
        get(&golden, "targets").to_vec::<i64>()?.into_iter().map(|t| t as u32).collect();
    let targets = Tensor::from_vec(targets, [3])?;
    let settings = CrossEntropy { label_smoothing: 0.1, ignore_index: None };
    let loss = cross_entropy(&logits, &targets, settings)?;
    assert_close("loss", &loss, &get(&golden, "training.loss"), TRAINING_TOLERANCE);
    let gradients = backward(loss)?;
    let mut compared = 0;
    for (name, parameter) in parameters(&model) {
        let tensor = parameter.tensor().unwrap();
        let gathered = name.contains("running_");
        assert_eq!(parameter.is_trainable(), !gathered, "{name}");
        if gathered {
            let key = format!("buffer.{name}");
            if key.starts_with("buffer.bn1.") || key.starts_with("buffer.layer4.1.") {
                assert_close(&name, &tensor, &get(&golden, &key), TRAINING_TOLERANCE);
                compared += 1;
            }
            continue;
        }
        let gradient = gradients.get(&tensor).unwrap_or_else(|| panic!("no gradient of {name}"));
        let values = gradient.to_vec::<f32>()?;
        assert!(values.iter().all(|x| x.is_finite()) && values.iter().any(|&x| x != 0.0), "{name}");
        let first = name.split('.').next().unwrap();
        if ["conv1", "bn1", "fc"].contains(&first)
            || name.contains("downsample")
            || name.contains("layer4.0.bn")
        {
            assert_close(
                &name,
                gradient,
                &get(&golden, &format!("gradient.{name}")),
                TRAINING_TOLERANCE,
            );
            compared += 1;
        }
    }
    assert!(compared >= 20, "{compared}");
    Ok(())
}

#[test]
fn resnet18_is_torchvisions() -> Result<()> {
    check_use("resnet18")
}

#[test]
fn resnet50_is_torchvisions() -> Result<()> {
    check_use("resnet50")
}

#[test]
fn resnet18_trains_as_torchvisions() -> Result<()> {
    check_training("resnet18")
}

#[test]
fn resnet50_trains_as_torchvisions() -> Result<()> {
    check_training("resnet50")
}

#[test]
fn a_saved_network_is_the_same() -> Result<()> {
    let golden = golden::open("models/resnet18")?;
    let model = load("resnet18", Keep::Plain)?;
    let images = get(&golden, "images");
    // Statistics that are not those of the file.
    model.forward_training(&images)?;
    let folder = tempfile::tempdir().unwrap();
    let source = Weights::open(golden::path("models/resnet18"), None)?;
    save(&model, &source, &folder.path().join("model.safetensors"), None)?;
    let params = Params::new(Weights::open(folder.path(), None)?, DType::F32, Device::Cpu);
    let again = ResNet::load(model.config().clone(), &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new());
    // Frozen convolutions may run by Winograd's algorithm.
    assert_close("logits", &again.forward(&images)?, &model.forward(&images)?, TOLERANCE);
    Ok(())
}

#[test]
fn frozen_networks_do_not_train_and_configurations_are_checked() -> Result<()> {
    let golden = golden::open("models/resnet18")?;
    let error = load("resnet18", Keep::Frozen)?.forward_training(&get(&golden, "images"));
    assert!(error.unwrap_err().to_string().contains("frozen"));
    let read = |value| ResNetConfig::read(&Config::from_value("config.json", value)?);
    let good = ResNetConfig::resnet50(16, 7);
    assert_eq!(read(good.to_json())?, good);
    for (field, value) in [
        ("layers", serde_json::json!([2, 2, 2])),
        ("layers", serde_json::json!([2, 0, 2, 2])),
        ("base_width", serde_json::json!(0)),
        ("num_classes", serde_json::json!(0)),
        ("_class_name", serde_json::json!("VGG")),
        ("groups", serde_json::json!(32)),
    ] {
        let mut config = good.to_json();
        config[field] = value;
        let error = read(config).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    Ok(())
}
