//! `nadir synthesize` from real pictures with masks, and what CLIP says of drawn ones.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use image::{GrayImage, Luma, Rgb, RgbImage};
use nadir::data::Examples;
use nadir::data::masks::{MaskSettings, MaskedPictures};
use nadir::io::geotiff::{Cog, CogWriter, GeoTiff, Georeference, SampleKind, Window};
use serde_json::{Value, json};

use crate::{Desk, clip, text};

/// Two classes and a prompt of each.
fn write_classes(desk: &Desk) {
    let class =
        |name: &str| format!("[[class]]\nname = \"{name}\"\ninstructions = [\"{name}:\"]\n");
    fs::write(desk.path("classes.toml"), class("land") + &class("water")).unwrap();
    let prompt = |(label, class): (usize, &str)| {
        let prompt = format!("a satellite image of {class}");
        json!({ "class": class, "label": label, "prompt": prompt, "given": class, "seed": 0 })
            .to_string()
            + "\n"
    };
    let prompts: String = ["land", "water"].into_iter().enumerate().map(prompt).collect();
    fs::write(desk.path("prompts.jsonl"), prompts).unwrap();
}

/// Real pictures, green land and blue water behind a shore of its own each; two of mostly land, two of mostly water.
fn write_sources(desk: &Desk, folder: &str) {
    for below in ["images", "masks"] {
        fs::create_dir_all(desk.path(folder).join(below)).unwrap();
    }
    // Sets differ in their grain.
    let set: u32 = folder.bytes().map(u32::from).sum();
    for i in 0..4u32 {
        let shore = [12, 20, 44, 52][i as usize];
        let is_water = |x: u32, y: u32| x + y / 8 < shore;
        let picture = RgbImage::from_fn(64, 64, |x, y| {
            let grain = ((x * 7 + y * 13 + i * 5 + set) % 11) as u8;
            if is_water(x, y) { Rgb([20, 40 + grain, 90]) } else { Rgb([90, 120 - grain, 60]) }
        });
        picture.save(desk.path(&format!("{folder}/images/{i}.png"))).unwrap();
        let mask = GrayImage::from_fn(64, 64, |x, y| Luma([u8::from(is_water(x, y))]));
        mask.save(desk.path(&format!("{folder}/masks/{i}.png"))).unwrap();
    }
}

fn synthesize(desk: &Desk, output: &str, rest: &[&str]) -> Command {
    let mut command = desk.command(&["synthesize", "--classes=classes.toml", "-o", output, "-q"]);
    command.args(["--prompts=prompts.jsonl", "--judge=none", "--steps=4", "--device=cpu"]);
    // The same source drawn from twice makes pictures that are much alike.
    command.arg("--max-similarity=2");
    command.args(rest);
    command
}

fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

fn refused(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    parts.iter().for_each(|part| assert!(error.contains(part), "{part} in {error}"));
}

fn draws(desk: &Desk, set: &str) -> Vec<Value> {
    let content = fs::read_to_string(desk.path(set).join("draws.jsonl")).unwrap_or_default();
    content.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn files(desk: &Desk, set: &str) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for below in ["", "images", "masks"] {
        for entry in fs::read_dir(desk.path(set).join(below)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(desk.path(set)).unwrap().display().to_string();
                all.insert(name, fs::read(path).unwrap());
            }
        }
    }
    all
}

const FROM: [&str; 4] =
    ["--source=real", "--mask-classes=land,water", "--per-class=3", "--parquet"];

#[test]
fn what_is_drawn_from_real_pictures_keeps_their_masks() {
    let desk = Desk::new();
    write_classes(&desk);
    write_sources(&desk, "real");
    let settings = [&FROM[..], &["--strength=0.6", "--batch=2"]].concat();
    done(&mut synthesize(&desk, "whole", &settings));
    // Killed, and gone on with.
    let mut child = synthesize(&desk, "killed", &settings).stderr(Stdio::null()).spawn().unwrap();
    while draws(&desk, "killed").len() < 2 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    done(&mut synthesize(&desk, "killed", &settings));
    assert!(files(&desk, "killed") == files(&desk, "whole"), "another set");

    let taken: Vec<Value> =
        draws(&desk, "whole").into_iter().filter(|draw| draw["file"].is_string()).collect();
    assert_eq!(taken.len(), 6);
    let gray = |path: std::path::PathBuf| image::open(path).unwrap().into_luma8();
    for draw in &taken {
        let source = desk.path(draw["source"].as_str().unwrap());
        let number: usize = source.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        // Land has the most pixels of the first two, water of the others.
        assert_eq!(number / 2, draw["label"].as_u64().unwrap() as usize, "{draw}");
        let mask = gray(desk.path("whole").join(draw["mask"].as_str().unwrap()));
        assert!(mask == gray(desk.path(&format!("real/masks/{number}.png"))), "{draw}");
        let [picture, real] = [desk.path("whole").join(draw["file"].as_str().unwrap()), source]
            .map(|path| crate::read(&path));
        assert!(picture != real, "{draw}");
    }
    let report = fs::read_to_string(desk.path("whole/report.html")).unwrap();
    assert!(report.contains("at strength 0.6") && report.contains("4 real pictures in real"));
    // A data set to train segmentation on, as a folder and as one file.
    for set in ["whole", "whole/data.parquet"] {
        let classes = vec!["land".to_owned(), "water".to_owned()];
        let settings = MaskSettings { resolution: 64, classes, ..MaskSettings::default() };
        let data = MaskedPictures::open(desk.path(set), settings).unwrap();
        assert_eq!(data.len(), 6, "{set}");
    }
    // It teaches what the real masks say.
    let train = ["train", "segment", "--train-data=whole", "-o=run", "--classes=land,water", "-q"];
    let network = ["--resolution=64", "--base-width=4", "--train-batch-size=6", "--device=cpu"];
    let updates = ["--max-train-steps=40", "--learning-rate=1e-2"];
    done(&mut desk.command(&[&train[..], &network, &updates].concat()));
    let see = ["segment", "real/images/1.png", "-m=run/segmenter", "-o=seen.png", "--device=cpu"];
    done(&mut desk.command(&see));
    let [seen, real] = ["seen.png", "real/masks/1.png"]
        .map(|name| nadir::io::raster::open_mask(desk.path(name)).unwrap().classes);
    let right = seen.iter().zip(&real).filter(|(a, b)| a == b).count();
    assert!(right >= 64 * 64 * 8 / 10, "{right} of {}", 64 * 64);
    refused(
        &mut synthesize(&desk, "whole", &[&FROM[..], &["--strength=0.5"]].concat()),
        &["picture", "synthesis.json"],
    );
    // A picture says what it was drawn from.
    let file = desk.path("whole").join(taken[0]["file"].as_str().unwrap());
    let again = desk.picture(&["replay", file.to_str().unwrap(), "-o", "again.png", "-q"]);
    assert!(again == crate::read(&file));

    // Painted around what is there: it changes less than what is around it.
    done(&mut synthesize(&desk, "around", &[&FROM[..], &["--redraw=outside"]].concat()));
    let (mut inside, mut outside) = ((0.0, 0), (0.0, 0));
    for draw in draws(&desk, "around").iter().filter(|draw| draw["file"].is_string()) {
        let real = crate::read(&desk.path(draw["source"].as_str().unwrap()));
        let picture = crate::read(&desk.path("around").join(draw["file"].as_str().unwrap()));
        let mask = gray(desk.path("around").join(draw["mask"].as_str().unwrap()));
        for (x, y, class) in mask.enumerate_pixels() {
            let own = u64::from(class[0]) == draw["label"].as_u64().unwrap();
            let to = if own { &mut inside } else { &mut outside };
            to.0 += f64::from(picture.get_pixel(x, y)[2].abs_diff(real.get_pixel(x, y)[2]));
            to.1 += 1;
        }
    }
    let [inside, outside] = [inside, outside].map(|(sum, n)| sum / f64::from(n));
    assert!(inside < 0.7 * outside, "{inside} {outside}");
}

#[test]
fn what_is_drawn_lies_where_its_source_does() {
    let desk = Desk::new();
    write_classes(&desk);
    write_sources(&desk, "real");
    // Two of the four are GeoTIFFs of 128 pixels a side, and lie side by side.
    for (i, west) in [(0, 500_000.0), (2, 500_640.0)] {
        let png = desk.path(&format!("real/images/{i}.png"));
        let picture = crate::read(&png);
        let large =
            image::imageops::resize(&picture, 128, 128, image::imageops::FilterType::Nearest);
        fs::remove_file(png).unwrap();
        let bbox = [west, 5_000_000.0, west + 640.0, 5_000_640.0];
        let place = Georeference::from_bbox(bbox, 32632, 128, 128).unwrap();
        let cog =
            Cog { georeference: Some(place), tile: 128, ..Cog::new(128, 128, 3, SampleKind::U8) };
        let path = desk.path(&format!("real/images/{i}.tif"));
        let mut writer = CogWriter::create(&path, cog, false).unwrap();
        writer.write_rows(large.as_raw()).unwrap();
        writer.finish().unwrap();
        let mask = desk.path(&format!("real/masks/{i}.png"));
        let small = image::open(&mask).unwrap().into_luma8();
        let large = image::imageops::resize(&small, 128, 128, image::imageops::FilterType::Nearest);
        large.save(mask).unwrap();
    }
    let from = ["--source=real", "--mask-classes=land,water", "--per-class=2", "--strength=0.6"];
    done(&mut synthesize(&desk, "set", &from));
    let mut places = 0;
    for draw in draws(&desk, "set").iter().filter(|draw| draw["file"].is_string()) {
        let file = draw["file"].as_str().unwrap();
        let scene = desk.path("set").join(file.replace("images", "geotiff")).with_extension("tif");
        let source = draw["source"].as_str().unwrap();
        assert_eq!(scene.exists(), source.ends_with(".tif"), "{draw}");
        if !scene.exists() {
            continue;
        }
        let west = if source.ends_with("0.tif") { 500_000.0 } else { 500_640.0 };
        let mut found = GeoTiff::open(&scene).unwrap();
        let place = found.about().georeference.clone().unwrap();
        assert_eq!(place.epsg(), Some(32632));
        let bbox = [west, 5_000_000.0, west + 640.0, 5_000_640.0];
        assert_eq!(place.bbox(64, 64), Some(bbox));
        let levels = found.read(Window { x: 0, y: 0, width: 64, height: 64 }).unwrap();
        assert!(levels == crate::read(&desk.path("set").join(file)).into_raw());
        places += 1;
    }
    assert_eq!(places, 2);

    // Where they are said to lie.
    let box_ = ["--per-class=1", "--bbox=-1.5,47,-1.4,47.1", "--epsg=4326"];
    done(&mut synthesize(&desk, "said", &box_));
    let scenes: Vec<_> = fs::read_dir(desk.path("said/geotiff")).unwrap().collect();
    assert_eq!(scenes.len(), 2);
    let found = GeoTiff::open(scenes[0].as_ref().unwrap().path()).unwrap();
    let place = found.about().georeference.clone().unwrap();
    assert_eq!((place.epsg(), place.transform.unwrap()[0]), (Some(4326), -1.5));
    let run = |rest: &[&str], parts: &[&str]| refused(&mut synthesize(&desk, "new", rest), parts);
    run(&["--bbox=1,2,3,4"], &["--epsg"]);
    run(&["--bbox=3,2,1,4", "--epsg=4326"], &["--bbox", "west < east"]);
    run(&["--bbox=1,2,3", "--epsg=4326"], &["--bbox", "four numbers"]);
    run(&["--bbox=NaN,2,3,4", "--epsg=4326"], &["--bbox"]);
}

#[test]
fn masks_that_make_no_pairs_are_refused() {
    let desk = Desk::new();
    write_classes(&desk);
    write_sources(&desk, "real");
    let run = |rest: &[&str], parts: &[&str]| {
        refused(&mut synthesize(&desk, "set", rest), parts);
    };
    run(&["--strength=0.5"], &["--strength", "real pictures"]);
    run(&["--redraw=inside"], &["--redraw", "real pictures"]);
    run(&["--mask-classes=land,water"], &["--source"]);
    run(&["--source=nowhere"], &["nowhere"]);
    run(&["--source=real", "--mask-classes=land,water", "--strength=NaN"], &["--strength"]);
    // Numbers are no names of the classes; a name without a level; a class that is nowhere the largest.
    run(&["--source=real"], &["land", "0, 1"]);
    run(&["--source=real", "--mask-classes=land"], &["1 at column", "--ignore-index"]);
    run(&["--source=real", "--mask-classes=land,water", "--ignore-index=1"], &["water"]);
    run(&["--source=real", "--mask-classes=land,water", "--width=96"], &["96x64", "64x64"]);
    GrayImage::new(60, 64).save(desk.path("real/masks/2.png")).unwrap();
    run(&["--source=real", "--mask-classes=land,water"], &["2.png", "60x64"]);
    fs::remove_file(desk.path("real/masks/2.png")).unwrap();
    run(&["--source=real", "--mask-classes=land,water"], &["2.png", "mask"]);
}

#[test]
fn clip_decides_and_its_scores_are_recorded() {
    let desk = Desk::new();
    write_classes(&desk);
    clip::write("quick_gelu", &desk.path("clip"));
    done(&mut synthesize(&desk, "all", &["--per-class=3", "--clip=clip"]));
    let scores: Vec<f64> =
        draws(&desk, "all").iter().map(|draw| draw["clip_score"].as_f64().unwrap()).collect();
    // They are those of `nadir metrics clip-score`.
    let output = desk.run(&["metrics", "clip-score", "all", "--clip=clip", "--json", "-q"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pairs = report["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 6);
    for (score, pair) in scores.iter().zip(pairs) {
        assert!((score - pair["similarity"].as_f64().unwrap()).abs() <= 1e-5, "{pair}");
    }
    let fingerprint = report["clip"]["fingerprint"].as_str().unwrap();
    let page = fs::read_to_string(desk.path("all/report.html")).unwrap();
    assert!(page.contains(fingerprint) && page.contains("CLIP score of the accepted"));

    // What is worse than the least of these is not taken, and others are drawn in its place.
    let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let bound = format!("--min-clip-score={}", least + 1e-6);
    done(&mut synthesize(&desk, "some", &["--per-class=3", "--clip=clip", &bound]));
    let low: Vec<Value> =
        draws(&desk, "some").into_iter().filter(|d| d["verdict"] == "low_clip_score").collect();
    assert!(low.iter().any(|draw| draw["clip_score"].as_f64().unwrap() == least), "{low:?}");
    assert!(low.iter().all(|draw| draw["file"].is_null()));
    let taken = draws(&desk, "some").into_iter().filter(|draw| draw["file"].is_string());
    assert!(taken.map(|draw| draw["clip_score"].as_f64().unwrap()).all(|score| score > least));
    let page = fs::read_to_string(desk.path("some/report.html")).unwrap();
    assert!(page.contains("low CLIP score"));

    // Other settings, and none.
    let run = |set: &str, rest: &[&str], parts: &[&str]| {
        refused(&mut synthesize(&desk, set, &[&["--per-class=3"], rest].concat()), parts);
    };
    run("some", &["--clip=clip", "--min-clip-score=3"], &["min_clip_score", "synthesis.json"]);
    run("all", &[], &["clip", "synthesis.json"]);
    run("new", &["--clip=clip", "--min-clip-score=NaN"], &["--min-clip-score", "-100 to 100"]);
    run("new", &["--min-clip-score=3"], &["--clip"]);
    run("new", &["--clip=nowhere"], &["nowhere"]);
    let alone = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let alone = alone.join("weights/eurosat-64/text_encoder").display().to_string();
    run("new", &["--clip", &alone], &["both encoders"]);
}

fn evaluate(desk: &Desk, output: &str, rest: &[&str]) -> Command {
    let mut command = desk.command(&["evaluate", "downstream", "--synthetic=drawn", "-o", output]);
    command.args(["-q", "--device=cpu", "--seeds=2", "--base-width=8", "--train-batch-size=4"]);
    command.args(rest);
    command
}

const COMPARE: [&str; 5] =
    ["--real=real", "--test=test", "--mask-classes=land,water", "--real-count=3", "--steps=30"];

#[test]
fn what_pairs_teach_a_segmenter_is_measured_by_the_pixel() {
    let desk = Desk::new();
    ["real", "test", "drawn"].iter().for_each(|set| write_sources(&desk, set));
    // A level of none, which is not counted.
    let mut mask = image::open(desk.path("test/masks/0.png")).unwrap().into_luma8();
    mask.rows_mut().take(3).flatten().for_each(|level| level[0] = 255);
    mask.save(desk.path("test/masks/0.png")).unwrap();
    let levels = (0..4).flat_map(|i| {
        image::open(desk.path(&format!("test/masks/{i}.png"))).unwrap().into_luma8().into_raw()
    });
    let water = levels.filter(|level| *level == 1).count() as u64;
    done(&mut evaluate(&desk, "found", &COMPARE));
    let page = fs::read_to_string(desk.path("found/report.html")).unwrap();
    for part in [
        "U-Net on a ResNet-18 of base width 8",
        "4 test pictures, pixel by pixel",
        "mean IoU",
        "<th>IoU</th>",
        "3 real, 4 synthetic",
        "4 are as good as one",
        "<svg",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let run = |name: &str| desk.path("found/runs").join(name).join("scores.json");
    for name in ["real-0-synthetic-4", "real-3-synthetic-0", "real-3-synthetic-4"] {
        for seed in 0..2 {
            let path = run(&format!("{name}-seed-{seed}"));
            let scores: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
            let counts = scores["confusion"]["counts"].as_array().unwrap();
            let count = |i: usize, j: usize| counts[i][j].as_u64().unwrap();
            let all = count(0, 0) + count(0, 1) + count(1, 0) + count(1, 1);
            assert_eq!(all, 4 * 64 * 64 - 3 * 64);
            // Rows are what is there.
            assert_eq!(count(1, 0) + count(1, 1), water);
            let right = (count(0, 0) + count(1, 1)) as f64 / all as f64;
            assert!(right > 0.8, "{name} {seed}: {right}");
            assert!((0.0..=1.0).contains(&scores["calibration_error"].as_f64().unwrap()));
        }
    }
    let classes = vec!["land".to_owned(), "water".to_owned()];
    let settings = MaskSettings { resolution: 64, classes, ..MaskSettings::default() };
    let set = desk.path("found/sets/real-3-synthetic-4-seed-1.parquet");
    assert_eq!(MaskedPictures::open(set, settings).unwrap().len(), 7);

    // Begun again, it computes nothing and finds the same.
    let path = run("real-3-synthetic-4-seed-1");
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    done(&mut evaluate(&desk, "found", &COMPARE));
    assert_eq!(fs::read_to_string(desk.path("found/report.html")).unwrap(), page);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);

    let run = |rest: &[&str], parts: &[&str]| refused(&mut evaluate(&desk, "found", rest), parts);
    run(&[&COMPARE[..4], &["--steps=9"]].concat(), &["settings.json"]);
    let [real, test, classes] = [COMPARE[0], COMPARE[1], COMPARE[2]];
    run(&[real, "--test=real", classes], &["--test"]);
    run(&[real, test, classes, "--real-count=1"], &["--real-count", "2"]);
    run(&[real, test, classes, "--learning-rate=NaN"], &["--learning-rate"]);
    run(&[real, test, "--mask-classes=land"], &["--ignore-index"]);
    run(&[real, test, "--mask-classes=land,water,ice"], &["ice"]);
    run(&[real, test, classes, "--resolution=48"], &["--resolution", "32"]);
    run(&[real, test, classes, "--resolution=96"], &["0.png", "64x64", "96 pixels"]);
    run(&[real, test, "--task=classify"], &["real"]);
    // A test picture that networks learn from.
    fs::copy(desk.path("real/images/2.png"), desk.path("test/images/1.png")).unwrap();
    run(&[real, test, classes], &["test: picture 2", "picture 3 of real", "none of the networks"]);
}
