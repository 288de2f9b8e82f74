//! `nadir segment` and `nadir classify --map`: scenes, folders and pictures become masks.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use nadir::io::geotiff::{Cog, CogWriter, GeoTiff, Georeference, SampleKind, Window};
use nadir::io::raster::open_mask;
use serde_json::{Value, json};

use crate::{Desk, gpu, text};

/// What the segmenter's two classes look like: dark and bright, each with some grain.
fn level(y: usize, x: usize, bright: bool) -> u8 {
    (if bright { 190 } else { 40 }) + ((y * 31 + x * 17) % 23) as u8
}

/// A desk with `model/segmenter`, which has learnt to tell bright from dark.
fn desk() -> Desk {
    desk_with("--normalize=data")
}

/// The same, trained with one setting more.
fn desk_with(setting: &str) -> Desk {
    let desk = Desk::new();
    fs::create_dir_all(desk.path("data/images")).unwrap();
    fs::create_dir_all(desk.path("data/masks")).unwrap();
    for i in 0..4_u32 {
        let bright = |x: u32, y: u32| (x + i * 13) / 24 % 2 == (y + i * 5) / 20 % 2;
        let color = |x, y| Rgb([level(y as usize, x as usize, bright(x, y)); 3]);
        let class = |x, y| image::Luma([u8::from(bright(x, y))]);
        let (picture, mask) = (format!("data/images/{i}.png"), format!("data/masks/{i}.png"));
        RgbImage::from_fn(64, 64, color).save(desk.path(&picture)).unwrap();
        image::GrayImage::from_fn(64, 64, class).save(desk.path(&mask)).unwrap();
    }
    let output = desk.run(&[
        "train",
        "segment",
        "--train-data=data",
        "-o=model",
        "--classes=land,water",
        "--resolution=64",
        "--base-width=4",
        "--train-batch-size=4",
        "--max-train-steps=40",
        "--learning-rate=1e-2",
        "--random-flip",
        "--device=cpu",
        "--quiet",
        setting,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    desk
}

const MODEL: [&str; 2] = ["-m", "model/segmenter"];

/// Pixels of the checks below.
const SIZE: [usize; 2] = [300, 220];

fn place() -> Georeference {
    Georeference::from_bbox(
        [485_900.0, 5_205_000.0, 487_400.0, 5_206_100.0],
        32614,
        SIZE[0],
        SIZE[1],
    )
    .unwrap()
}

/// A scene whose right third is bright, and whose first 40 x 30 pixels have no data.
fn scene(path: &Path, [width, height]: [usize; 2], georeference: Option<Georeference>) {
    let cog = Cog { georeference, nodata: Some(0.0), ..Cog::new(width, height, 3, SampleKind::U8) };
    let mut writer = CogWriter::create(path, cog, true).unwrap();
    for y in 0..height {
        let level = |x| if x < 40 && y < 30 { 0 } else { level(y, x, 3 * x >= 2 * width) };
        let row: Vec<u8> = (0..width).flat_map(|x| [level(x); 3]).collect();
        writer.write_rows(&row).unwrap();
    }
    writer.finish().unwrap();
}

fn printed(desk: &Desk, args: &[&str]) -> Vec<Value> {
    let output = desk.run(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether there is GDAL; says which test does without.
pub fn gdal(test: &str) -> bool {
    let there = Command::new("gdalinfo").arg("--version").output();
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var_os("NADIR_REQUIRE_TOOLS").is_none(), "no gdalinfo on the path");
        println!("skipped: {test}: what GDAL sees; no gdalinfo on the path (Debian: gdal-bin)");
    }
    there
}

#[test]
fn a_scene_becomes_a_mask_at_its_place() {
    let desk = desk();
    scene(&desk.path("scene.tif"), SIZE, Some(place()));
    let windows = ["--window=64", "--overlap=16", "--overlay", "--json"];
    let args = [&["segment", "scene.tif"], &MODEL[..], &windows].concat();
    let seen = printed(&desk, &[&args[..], &["--colors=land=#c0a080"]].concat()).remove(0);
    let names =
        ["data", "model", "scene-legend.svg", "scene-mask.tif", "scene-overlay.png", "scene.tif"];
    assert_eq!(desk.entries(), names);

    // 1. what is said of it
    assert_eq!((&seen["mask"], &seen["epsg"]), (&json!("scene-mask.tif"), &json!(32614)));
    assert_eq!((&seen["nodata_pixels"], &seen["no_areas_because"]), (&json!(1200), &Value::Null));
    let classes = seen["classes"].as_array().unwrap();
    let pixels = |i: usize| classes[i]["pixels"].as_u64().unwrap();
    assert_eq!(pixels(0) + pixels(1) + 1200, 300 * 220);
    // A third, but for what the network takes for the other where they meet.
    assert!(pixels(1).abs_diff(100 * 220) < 1500, "{seen}");
    assert_eq!(classes[1]["area_m2"], json!(25.0 * pixels(1) as f64));
    assert_eq!(classes[1]["area_ha"], json!(25.0 * pixels(1) as f64 / 10_000.0));

    // 2. the mask
    let mask = desk.path("scene-mask.tif");
    let mut file = GeoTiff::open(&mask).unwrap();
    let about = file.about().clone();
    assert_eq!((about.width, about.height, about.nodata), (300, 220, Some(255.0)));
    assert_eq!(about.georeference, Some(place()));
    assert_eq!(about.palette.unwrap()[..2], [[192, 160, 128], [43, 108, 196]]);
    let classes = file.read(Window { x: 0, y: 0, width: 300, height: 220 }).unwrap();
    let at = |x: usize, y: usize| classes[y * 300 + x];
    assert_eq!([at(20, 20), at(100, 100), at(260, 100), at(299, 219)], [255, 0, 1, 1]);

    // 3. its pictures
    let overlay = crate::read(&desk.path("scene-overlay.png"));
    assert_eq!(overlay.dimensions(), (300, 220));
    assert_eq!(overlay.get_pixel(5, 5), &Rgb([255; 3]));
    let [red, _, blue] = overlay.get_pixel(280, 100).0;
    assert!(blue > red, "water is blue");
    let legend = fs::read_to_string(desk.path("scene-legend.svg")).unwrap();
    assert!(legend.contains("water") && legend.contains("#c0a080") && legend.contains(" ha"));

    // 4. nothing depends on company
    let other = ["--batch-size=7", "--threads=1", "-o=other.tif", "--colors=land=#c0a080"];
    printed(&desk, &[&args[..], &other].concat());
    assert!(fs::read(&mask).unwrap() == fs::read(desk.path("other.tif")).unwrap());

    // 5. what GDAL sees
    if !gdal("a_scene_becomes_a_mask_at_its_place") {
        return;
    }
    let run = |program: &str, args: &[&str]| {
        let output =
            Command::new(program).args(args).current_dir(desk.folder.path()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let info: Value = serde_json::from_str(&run("gdalinfo", &["-json", "scene-mask.tif"])).unwrap();
    assert_eq!(info["geoTransform"], json!([485900.0, 5.0, 0.0, 5206100.0, 0.0, -5.0]));
    assert_eq!(info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"], "COG");
    assert_eq!(info["metadata"][""]["CLASS_1"], "water");
    for (x, y) in [(20, 20), (100, 100), (199, 7), (200, 7), (299, 219)] {
        let (east, north) = (485_902.5 + 5.0 * x as f64, 5_206_097.5 - 5.0 * y as f64);
        let place = [east.to_string(), north.to_string()];
        let seen = run(
            "gdallocationinfo",
            &["-valonly", "-geoloc", "scene-mask.tif", &place[0], &place[1]],
        );
        assert_eq!(seen.trim(), at(x, y).to_string(), "at {x}, {y}");
    }
}

#[test]
fn a_gpu_finds_the_mask_that_the_cpu_finds() {
    if gpu::gpu().is_none() {
        return;
    }
    let desk = desk();
    scene(&desk.path("scene.tif"), [83, 57], None);
    let mask = |device: &str| {
        let output = ["--window=64", "--overlap=16", "--batch-size=2", "-o=mask.tif", device];
        printed(&desk, &[&["segment", "scene.tif", "--json"], &MODEL[..], &output].concat());
        let mut file = GeoTiff::open(desk.path("mask.tif")).unwrap();
        file.read(Window { x: 0, y: 0, width: 83, height: 57 }).unwrap()
    };
    let (cpus, ours) = (mask("--device=cpu"), mask("--device=cuda"));
    assert!([0, 1, 255].iter().all(|class| cpus.contains(class)));
    let other = cpus.iter().zip(&ours).filter(|(a, b)| a != b).count();
    assert!(other == 0, "{other} pixels have another class");
}

#[test]
fn a_scene_in_other_light_has_the_same_mask_where_each_is_normalised_by_itself() {
    let desk = desk_with("--normalize=picture");
    let [width, height] = [150, 110];
    let write = |name: &str, light: u8| {
        let cog = Cog { nodata: Some(0.0), ..Cog::new(width, height, 3, SampleKind::U8) };
        let mut writer = CogWriter::create(&desk.path(name), cog, true).unwrap();
        for y in 0..height {
            // Half of it has no data, which says nothing about the light.
            let level = |x| if y < 55 { 0 } else { level(y, x, 3 * x >= 2 * width) / 4 * light };
            let row: Vec<u8> = (0..width).flat_map(|x| [level(x); 3]).collect();
            writer.write_rows(&row).unwrap();
        }
        writer.finish().unwrap();
    };
    let mask = |name: &str| {
        printed(&desk, &[&["segment", name, "-o=mask.tif", "--json"], &MODEL[..]].concat());
        let window = Window { x: 0, y: 0, width, height };
        GeoTiff::open(desk.path("mask.tif")).unwrap().read(window).unwrap()
    };
    write("bright.tif", 4);
    write("dark.tif", 1);
    let (bright, dark) = (mask("bright.tif"), mask("dark.tif"));
    let right = |y: usize, x: usize| bright[y * width + x] == u8::from(3 * x >= 2 * width);
    let pixels = || (55..height).flat_map(|y| (0..width).map(move |x| (y, x)));
    let count = pixels().filter(|&(y, x)| right(y, x)).count();
    assert!(count >= 55 * width * 9 / 10, "{count} of {}", 55 * width);
    assert!(bright == dark);
    // Going on with it, light is not to be seen otherwise all of a sudden.
    let more = ["train", "segment", "--train-data=data", "-o=more", "--classes=land,water", "-q"];
    let from = ["--init-from=model/segmenter", "--resolution=64", "--device=cpu"];
    let output = desk.run(&[&more[..], &from].concat());
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("_normalize: expected data") && said.contains("found picture"), "{said}");
}

#[test]
fn pictures_and_folders_become_masks() {
    let desk = desk();
    fs::create_dir(desk.path("chips")).unwrap();
    fs::create_dir(desk.path("masks")).unwrap();
    fs::copy(desk.path("data/images/0.png"), desk.path("chips/a.png")).unwrap();
    scene(&desk.path("chips/b.tif"), [61, 45], None);
    fs::write(desk.path("chips/notes.txt"), "x").unwrap();
    let output = desk.run(&[&["segment", "chips"], &MODEL[..], &["-o", "masks"]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(text(&output.stdout), "masks/a-mask.png\nmasks/b-mask.tif\n");
    assert!(said.contains("warning: chips/b.tif: no transform"), "{said}");
    let (ours, truth) = ("masks/a-mask.png", "data/masks/0.png");
    let [ours, truth] = [ours, truth].map(|name| open_mask(desk.path(name)).unwrap());
    let right = ours.classes.iter().zip(&truth.classes).filter(|(a, b)| a == b).count();
    assert!(right > 64 * 64 * 85 / 100, "{right}");
    let bytes = fs::read(desk.path("masks/a-mask.png")).unwrap();
    let info = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    assert_eq!(info.info().palette.as_deref(), Some(&[204, 178, 138, 43, 108, 196][..]));

    // A place that is given, and a mask that is a TIFF.
    let place = ["-o=c.tif", "--bbox=-99.2,47,-99.1,47.1", "--epsg=4326", "--json"];
    let seen =
        printed(&desk, &[&["segment", "chips/a.png"], &MODEL[..], &place].concat()).remove(0);
    assert_eq!((&seen["epsg"], &seen["bbox"]), (&json!(4326), &json!([-99.2, 47.0, -99.1, 47.1])));
    assert!(seen["no_areas_because"].as_str().unwrap().contains("degrees"), "{seen}");
    assert_eq!(seen["classes"][0]["area_ha"], Value::Null);
    assert_eq!(GeoTiff::open(desk.path("c.tif")).unwrap().about().width, 64);
}

#[test]
fn what_cannot_be_is_said_before_work_begins() {
    let desk = desk();
    let path = |name: &str| desk.path(name);
    scene(&path("scene.tif"), [80, 70], None);
    let write = |name: &str, cog: Cog| {
        let bytes = vec![1; cog.width * cog.height * cog.bands * cog.samples.size()];
        let mut writer = CogWriter::create(&path(name), cog, true).unwrap();
        writer.write_rows(&bytes).unwrap();
        writer.finish().unwrap();
    };
    write("five.tif", Cog::new(8, 8, 5, SampleKind::U8));
    write("float.tif", Cog::new(8, 8, 3, SampleKind::F32));
    let whole = fs::read(path("scene.tif")).unwrap();
    fs::write(path("cut.tif"), &whole[..whole.len() - 100]).unwrap();
    fs::write(path("text.tif"), "text").unwrap();
    fs::create_dir(path("empty")).unwrap();
    let cases: [(&[&str], &[&str]); 17] = [
        (&["scene.tif", "-o", "scene.tif"], &["--output", "scene.tif", "another file"]),
        (&["scene.tif", "-o", "./scene.tif"], &["--output", "another file"]),
        (&["scene.tif", "-o", "none/mask.tif"], &["none/mask.tif", "mkdir -p"]),
        (&["scene.tif", "-o", "mask.jpg"], &["--output", ".tif or .png"]),
        (&["scene.tif", "five.tif", "-o", "mask.tif"], &["--output", "an existing folder"]),
        (&["scene.tif", "--overlap", "40", "--window", "64"], &["--overlap", "half of a window"]),
        (&["scene.tif", "--window", "0"], &["--window", "1 to 4096"]),
        (&["scene.tif", "--batch-size", "0"], &["--batch-size"]),
        (&["five.tif"], &["five.tif", "bands", "expected 3", "found 5", "--bands"]),
        (&["five.tif", "--bands", "1,2,6"], &["--bands", "1,2,6"]),
        (&["float.tif"], &["float.tif", "Float32", "gdal_translate"]),
        (&["cut.tif"], &["cut.tif", "cut off"]),
        (&["text.tif"], &["text.tif", "a TIFF"]),
        (&["none.tif"], &["none.tif"]),
        (&["empty"], &["empty", "pictures"]),
        (&["scene.tif", "--colors", "ice=#ffffff"], &["--colors", "land, water"]),
        (&["scene.tif", "--bbox", "2,1,1,3", "--epsg", "32614"], &["--bbox", "west < east"]),
    ];
    let before = desk.entries();
    for (args, words) in cases {
        let output = desk.run(&[&["segment"], args, &MODEL[..]].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: {word} in {said}");
        }
        assert_eq!(desk.entries(), before, "{args:?}");
    }
    let wrong = desk.run(&["segment", "scene.tif", "-m", "none"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    let bare = desk.run(&[&["segment", "scene.tif", "--overlap=0"], &MODEL[..]].concat());
    assert!(text(&bare.stderr).contains("edges may show"), "{}", text(&bare.stderr));
    // A model that says nothing of its data is taken to be one of ImageNet's.
    let config = fs::read_to_string(path("model/segmenter/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    for field in ["_classes", "_mean", "_std", "_resolution"] {
        config.as_object_mut().unwrap().remove(field).unwrap();
    }
    fs::write(path("model/segmenter/config.json"), config.to_string()).unwrap();
    let bare = desk.run(&[&["segment", "scene.tif", "--json"], &MODEL[..]].concat());
    assert!(text(&bare.stderr).contains("as for ImageNet"), "{}", text(&bare.stderr));
    let seen: Value = serde_json::from_slice(&bare.stdout).unwrap();
    assert_eq!(seen["classes"][1]["class"], "1");
    assert!(seen["no_areas_because"].as_str().unwrap().contains("no transform"));
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_scene_and_an_interruption_leaves_nothing() {
    let desk = desk();
    fs::create_dir(desk.path("out")).unwrap();
    let segment = |input: &str| {
        let mut command = desk.command(&["segment", input]);
        command.args(MODEL).args(["-o", "out", "--window=256", "--threads=1", "-q"]);
        command
    };
    // The most memory that a run has had when it is nearly done.
    let peak = |input: &str| {
        let mut child = segment(input).stdout(Stdio::null()).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut most = 0;
        while child.try_wait().unwrap().is_none() {
            let status = fs::read_to_string(&status).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
            most = most.max(kib.unwrap_or_default());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(child.wait().unwrap().success());
        most
    };
    scene(&desk.path("low.tif"), [1500, 500], None);
    scene(&desk.path("high.tif"), [1500, 3000], None);
    let (low, high) = (peak("low.tif"), peak("high.tif"));
    // Held whole, six times the pixels would be 11 MB of levels, 4 MB of classes and 30 MB of probabilities more.
    assert!(high < low + 16 * 1024, "{low} and {high} KiB");

    fs::remove_file(desk.path("out/low-mask.tif")).unwrap();
    fs::remove_file(desk.path("out/high-mask.tif")).unwrap();
    let mut child = segment("high.tif").stderr(Stdio::piped()).spawn().unwrap();
    let entries = || fs::read_dir(desk.path("out")).unwrap().count();
    let started = Instant::now();
    while entries() == 0 && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(entries(), 0);
}

#[test]
fn a_scene_is_classified_window_by_window() {
    let desk = Desk::new();
    // Four quarters of 64 pixels, and a rim of a fifth of that.
    let chip = |i: usize, y: usize, x: usize| -> [u8; 3] {
        let wave = |k: usize| (128.0 + 90.0 * ((x * k + y * (3 - i % 3)) as f32 / 9.0).sin()) as u8;
        [[30, 70, 40], [20, 40, 90], [wave(2), wave(3), 90], [wave(5) / 2 + 100, 140, 120]][i]
    };
    let (width, height) = (140, 128);
    let color = |y: usize, x: usize| chip(2 * (y / 64) + (x / 64).min(1), y % 64, x % 64);
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
    let place =
        Georeference::from_bbox([1000.0, 0.0, 2400.0, 1280.0], 32632, width, height).unwrap();
    let cog =
        Cog { georeference: Some(place.clone()), ..Cog::new(width, height, 3, SampleKind::U8) };
    let mut writer = CogWriter::create(&desk.path("scene.tif"), cog, true).unwrap();
    writer.write_rows(&pixels.flat_map(|(y, x)| color(y, x)).collect::<Vec<u8>>()).unwrap();
    writer.finish().unwrap();
    let args = ["classify", "scene.tif", "--map", "--json", "--overlay", "--device=cpu"];
    let seen = printed(&desk, &args).remove(0);
    assert_eq!((&seen["width"], &seen["height"]), (&json!(3), &json!(2)));
    assert_eq!(seen["classes"].as_array().unwrap().len(), 10);
    let mut mask = GeoTiff::open(desk.path("scene-mask.tif")).unwrap();
    assert_eq!(mask.about().georeference, Some(place.part(0.0, 0.0, 64.0)));
    let classes = mask.read(Window { x: 0, y: 0, width: 3, height: 2 }).unwrap();
    assert_eq!(crate::read(&desk.path("scene-overlay.png")).dimensions(), (140, 128));
    // Each quarter is what the classifier sees in it alone.
    for i in 0..4 {
        let quarter = RgbImage::from_fn(64, 64, |x, y| Rgb(chip(i, y as usize, x as usize)));
        quarter.save(desk.path("chip.png")).unwrap();
        let alone = text(&desk.run(&["classify", "chip.png", "--device=cpu"]).stdout);
        let class = &seen["classes"][usize::from(classes[i / 2 * 3 + i % 2])]["class"];
        assert!(alone.contains(class.as_str().unwrap()), "{i}: {class} and {alone}");
    }
    let wrong = desk.run(&["classify", "scene.tif", "--overlay"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("--map"), "{}", text(&wrong.stderr));
}
