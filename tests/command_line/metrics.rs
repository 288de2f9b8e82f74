//! `nadir metrics`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use nadir::io::TensorSource;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::noise::Mt19937;
use nadir::tensor::Tensor;
use serde_json::Value;

use crate::{Desk, STEPS, clip, text};

/// Writes `count` pictures, smooth and with noise, about as bright as `tone`.
fn write_pictures(desk: &Desk, folder: &str, count: usize, side: u32, tone: f32, seed: u64) {
    fs::create_dir_all(desk.path(folder)).unwrap();
    let mut noise = Mt19937::new(seed);
    for i in 0..count {
        let base = noise.randn(16);
        let grain = noise.randn((side * side * 3) as usize);
        let picture = image::RgbImage::from_fn(side, side, |x, y| {
            let patch = base[(4 * x / side + 4 * (4 * y / side)) as usize];
            let at = ((y * side + x) * 3) as usize;
            image::Rgb([0, 1, 2].map(|c| (tone + 40.0 * patch + 8.0 * grain[at + c]) as u8))
        });
        picture.save(desk.path(&format!("{folder}/{i:03}.png"))).unwrap();
    }
}

impl Desk {
    fn report(&self, args: &[&str]) -> Value {
        let output = self.run(&[&["metrics"], args, &["--json", "--device=cpu"]].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn warns(report: &Value, part: &str) -> bool {
    let warnings = report["warnings"].as_array().unwrap();
    warnings.iter().any(|warning| warning.as_str().unwrap().contains(part))
}

#[test]
fn sets_are_compared_by_the_judge_and_what_that_is_worth_is_said() {
    let desk = Desk::new();
    write_pictures(&desk, "a", 14, 64, 90.0, 1);
    write_pictures(&desk, "b", 12, 64, 150.0, 2);
    let report =
        desk.report(&["distance", "a", "b", "--inception-score", "--fid", "--kid", "--prdc"]);
    let metrics = &report["metrics"];
    assert!(metrics["fid"].as_f64().unwrap() > 1.0, "{report:#}");
    assert_eq!(metrics["kid"]["subset_size"], 12);
    for share in ["precision", "recall", "coverage"] {
        assert!((0.0..=1.0).contains(&metrics[share].as_f64().unwrap()), "{share}: {report:#}");
    }
    assert!(metrics["inception_score"]["mean"].as_f64().unwrap() >= 1.0);
    assert_eq!(report["features"]["compares_with_published"], false);
    for part in ["no published one", "a has 14 pictures", "b has 12 pictures", "subsets of 12"] {
        assert!(warns(&report, part), "{part}: {report:#}");
    }

    // Nothing from itself, and what is not asked for is not there.
    let report = desk.report(&["distance", "a", "a", "--fid"]);
    assert!(report["metrics"]["fid"].as_f64().unwrap() <= 1e-6, "{report:#}");
    assert!(report["metrics"].get("kid").is_none() && !warns(&report, "subsets"), "{report:#}");

    let output = desk.run(&["metrics", "distance", "a", "b"]);
    let (shown, said) = (text(&output.stdout), text(&output.stderr));
    assert!(
        shown.contains("Frechet distance") && shown.contains("14 pictures of 64x64"),
        "{shown}"
    );
    assert!(said.contains("warning: features are those of classifier eurosat-judge"), "{said}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let desk = Desk::new();
    write_pictures(&desk, "a", 3, 64, 90.0, 1);
    write_pictures(&desk, "one", 1, 64, 90.0, 1);
    write_pictures(&desk, "large", 3, 80, 90.0, 1);
    write_pictures(&desk, "mixed", 2, 64, 90.0, 1);
    fs::copy(desk.path("large/002.png"), desk.path("mixed/003.png")).unwrap();
    write_pictures(&desk, "broken", 2, 64, 90.0, 1);
    fs::write(desk.path("broken/001.png"), "no picture").unwrap();
    fs::create_dir(desk.path("empty")).unwrap();
    fs::write(desk.path("weights.pth"), b"\x80\x02}q\x00.").unwrap();
    fs::write(desk.path("prompts.txt"), "\n").unwrap();
    let refused = |args: &[&str], parts: &[&str]| {
        let output = desk.run(&[&["metrics", "distance"], args].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
    };
    refused(&["a"], &["two sets, or one and a --model"]);
    refused(&["a", "one"], &["one, of 1 picture", "no spread"]);
    refused(&["a", "large"], &["large, of 80x80", "64x64", "--inception"]);
    refused(&["a", "mixed"], &["003.png", "80x80", "64x64 pixels as the first"]);
    refused(&["a", "broken"], &["001.png", "picture"]);
    refused(&["a", "empty"], &["empty", "pictures"]);
    refused(&["a", "missing"], &["missing"]);
    refused(&["a", "a", "--inception", "weights.pth"], &["weights.pth", "pickle"]);
    refused(&["a", "a", "--kid", "--kid-subset-size", "4"], &["--kid-subset-size", "2 to 3"]);
    refused(&["a", "a", "--prdc"], &["neighbor", "1 to 2"]);
    refused(&["a", "--model", "eurosat-64", "--prompts", "prompts.txt"], &["prompts.txt", "none"]);
}

/// Random weights in the shape of InceptionV3's.
fn write_inception(desk: &Desk) {
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/perceptual/weights.json");
    let mut shapes: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(&fs::read_to_string(shapes).unwrap()).unwrap();
    let draw = |(name, shape): (String, Vec<usize>)| {
        let count = shape.iter().product::<usize>();
        let fan_in = shape[1..].iter().product::<usize>() as f32;
        let mut state = crc32fast::hash(name.as_bytes());
        let values = (0..count).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            match shape.len() {
                1 if name.ends_with("running_var") || name.ends_with("weight") => 1.0,
                1 => 0.1 * uniform,
                _ => uniform * (6.0 / fan_in).sqrt(),
            }
        });
        (name.clone(), Tensor::from_vec(values.collect::<Vec<f32>>(), &shape[..]).unwrap())
    };
    let tensors: Vec<_> = shapes.remove("inception").unwrap().into_iter().map(draw).collect();
    save(&desk.path("inception.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn inception_takes_pictures_of_any_size_and_features_are_kept() {
    let desk = Desk::new();
    write_inception(&desk);
    write_pictures(&desk, "a", 2, 32, 90.0, 1);
    write_pictures(&desk, "b", 3, 40, 120.0, 2);
    let args = ["distance", "a", "b", "--fid", "--inception=inception.safetensors", "--cache=kept"];
    let first = desk.report(&args);
    assert_eq!(first["features"]["width"], 2048);
    assert_eq!(first["features"]["compares_with_published"], true);
    assert!(warns(&first, "32x32 and 40x40") && !warns(&first, "no published"), "{first:#}");
    let kept = || {
        let files = fs::read_dir(desk.path("kept")).unwrap();
        let mut files: Vec<_> = files.map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    };
    assert_eq!(kept().len(), 2);
    let written =
        || kept().iter().map(|f| f.metadata().unwrap().modified().unwrap()).collect::<Vec<_>>();
    let before = written();
    assert_eq!(desk.report(&args)["metrics"], first["metrics"]);
    assert_eq!(written(), before, "features are not computed again");

    // Others by another way to 299 pixels, and by other pictures; a damaged file is not believed.
    let clean = desk.report(&[&args[..], &["--resize=clean"]].concat());
    assert_ne!(clean["metrics"], first["metrics"]);
    assert_eq!(kept().len(), 4);
    fs::write(&kept()[0], "damaged").unwrap();
    fs::write(&kept()[1], "damaged").unwrap();
    let again = desk.report(&args);
    assert_eq!(again["metrics"], first["metrics"]);
}

#[test]
fn a_models_pictures_are_judged_as_those_that_it_writes() {
    let desk = Desk::new();
    fs::write(
        desk.path("prompts.txt"),
        "a satellite image of a forest\na satellite image of a river\n",
    )
    .unwrap();
    fs::create_dir(desk.path("drawn")).unwrap();
    for (i, class) in ["forest", "river", "forest", "river", "forest"].iter().enumerate() {
        let (prompt, seed) = (format!("a satellite image of a {class}"), (40 + i).to_string());
        let file = format!("drawn/{i}.png");
        desk.files(&["generate", &prompt, "-s", &seed, STEPS, "-o", &file, "--device=cpu"]);
    }
    write_pictures(&desk, "real", 6, 64, 90.0, 3);
    let drawn = desk.report(&["distance", "drawn", "real", "--fid", "--kid"]);
    let model =
        ["--model=eurosat-64", "--prompts=prompts.txt", "-n", "5", "-s", "40", STEPS, "--batch=2"];
    let direct = desk.report(&[&["distance", "real", "--fid", "--kid"], &model[..]].concat());
    assert_eq!(drawn["metrics"], direct["metrics"]);
    assert_eq!(desk.entries(), ["drawn", "prompts.txt", "real"]);
}

#[test]
fn pictures_are_compared_pair_by_pair() {
    let desk = Desk::new();
    write_pictures(&desk, "a", 3, 24, 90.0, 1);
    write_pictures(&desk, "b", 3, 24, 90.0, 2);
    let report = desk.report(&["similarity", "a", "b", "--window=gaussian"]);
    let pairs = report["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 3);
    assert!(pairs.iter().all(|pair| pair["ssim"].as_f64().unwrap() < 0.9), "{report:#}");
    let same = desk.report(&["similarity", "a/000.png", "a/000.png"]);
    assert_eq!((&same["pairs"][0]["psnr"], &same["pairs"][0]["ssim"]), (&Value::Null, &1.0.into()));
    let output = desk.run(&["metrics", "similarity", "a", "b/000.png"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

/// The Python that the documentation shows converts what it says; it needs torch and safetensors.
#[test]
fn the_documented_conversion_works() {
    let desk = Desk::new();
    let guide = text(&desk.run(&["metrics", "weights"]).stdout);
    let snippets: Vec<&str> =
        guide.split("```python\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(snippets.len(), 2);
    assert!(snippets.iter().all(|snippet| snippet.contains("weights_only=True")), "{guide}");
    let python = std::env::var("NADIR_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import torch, safetensors.torch"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: {python} has no torch and safetensors (NADIR_PYTHON names another)");
        return;
    }
    let make = "import torch; torch.save({'features.0.weight': torch.ones(2, 3), 'classifier.1.weight': torch.ones(1), \
                'bn.num_batches_tracked': torch.tensor(3)}, 'a.pth'); torch.save({'lin0.model.1.weight': torch.zeros(4)}, 'b.pth')";
    let run = |args: &[&str]| {
        let output =
            Command::new(&python).args(args).current_dir(desk.folder.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    };
    run(&["-c", make]);
    run(&["-c", snippets[0], "a.pth", "one.safetensors"]);
    run(&["-c", snippets[1], "a.pth", "b.pth", "both.safetensors"]);
    let names = |file: &str| {
        let mut names = SafeTensors::open(desk.path(file)).unwrap().names();
        names.sort();
        names
    };
    assert_eq!(names("one.safetensors"), ["classifier.1.weight", "features.0.weight"]);
    assert_eq!(names("both.safetensors"), ["features.0.weight", "lin0.model.1.weight"]);
}

/// What `golden/clip.py` has torchmetrics measure.
#[test]
fn pictures_are_scored_against_their_captions() {
    let desk = Desk::new();
    clip::write("quick_gelu", &desk.path("clip"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden = golden.join("clip");
    let texts = fs::read_to_string(golden.join("texts.json")).unwrap();
    let texts: Vec<String> = serde_json::from_str(&texts).unwrap();
    let golden = SafeTensors::open(golden.join("quick_gelu/golden.safetensors")).unwrap();
    fs::create_dir(desk.path("set")).unwrap();
    let mut index = String::new();
    for (i, text) in texts.iter().enumerate() {
        let levels = golden.read(&format!("picture.{i}")).unwrap();
        let (width, height) = (levels.dim(1) as u32, levels.dim(0) as u32);
        let picture = image::RgbImage::from_raw(width, height, levels.to_vec().unwrap()).unwrap();
        picture.save(desk.path(&format!("set/{i}.png"))).unwrap();
        let line = serde_json::json!({ "file_name": format!("{i}.png"), "text": text });
        index += &format!("{line}\n");
    }
    fs::write(desk.path("set/metadata.jsonl"), index).unwrap();
    let value = |report: &Value| report["clip_score"].as_f64().unwrap();
    let close = |found: f64, name: &str, i: usize| {
        let expected = f64::from(golden.read(name).unwrap().to_vec::<f32>().unwrap()[i]);
        assert!((found - expected).abs() <= 1e-4, "{name} {i}: {found}, not {expected}");
    };
    // The third has an empty caption, which is none in a data set: it is scored alone.
    for (i, text) in texts.iter().enumerate() {
        let picture = format!("set/{i}.png");
        let report = desk.report(&["clip-score", &picture, "--text", text, "--clip=clip"]);
        close(value(&report), "scores", i);
    }
    fs::write(
        desk.path("set/metadata.jsonl"),
        fs::read_to_string(desk.path("set/metadata.jsonl"))
            .unwrap()
            .replace("\"text\":\"\"", "\"text\":\"river\""),
    )
    .unwrap();
    let report = desk.report(&["clip-score", "set", "--clip=clip", "--batch=2"]);
    let pairs = report["pairs"].as_array().unwrap();
    let mean = pairs.iter().map(|pair| pair["similarity"].as_f64().unwrap()).sum::<f64>() / 3.0;
    assert!((value(&report) - mean.max(0.0)).abs() <= 1e-9, "{report:#}");
    assert!(pairs[0]["similarity"].as_f64().unwrap() < 0.0, "{report:#}");
    close(pairs[1]["similarity"].as_f64().unwrap(), "scores", 1);
    let fingerprint = report["clip"]["fingerprint"].as_str().unwrap();
    assert_eq!(fingerprint.len(), 8);
    let shown = text(&desk.run(&["metrics", "clip-score", "set", "--clip=clip"]).stdout);
    assert!(shown.contains(fingerprint) && shown.contains("CLIP score"), "{shown}");
    // A caption that is too long is said.
    let long = "river ".repeat(90);
    let report = desk.report(&["clip-score", "set/0.png", "--text", &long, "--clip=clip"]);
    assert!(warns(&report, "1 captions are longer"), "{report:#}");

    let refused = |args: &[&str], parts: &[&str]| {
        let output = desk.run(&[&["metrics", "clip-score"], args].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
    };
    refused(&["set", "--clip=nowhere"], &["nowhere", "metrics weights"]);
    refused(&["set"], &["--clip"]);
    // One encoder alone, as Stable Diffusion's folders have it.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64/text_encoder");
    refused(
        &["set", "--clip", &model.display().to_string()],
        &["clip_text_model", "both encoders"],
    );
    fs::write(desk.path("set/metadata.jsonl"), "{\"file_name\": \"0.png\"}").unwrap();
    refused(&["set", "--clip=clip"], &["caption"]);
}
