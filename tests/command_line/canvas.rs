//! `nadir scene`: one picture whatever part of it is drawn, in whatever order, by however many processes, and however often
//! they are killed.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use image::RgbImage;
use nadir::io::geotiff::{GeoTiff, Window};

use crate::{Desk, gpu, read, text};

/// A canvas of 176 x 150 pixels: 4 x 3 windows of 64, the last over its ends.
const CANVAS: [&str; 8] = [
    "scene",
    "a satellite image of a river",
    "-W=176",
    "-H=150",
    "--overlap=16",
    "-s=7",
    "--steps=2",
    "--quiet",
];

fn scene(desk: &Desk, args: &[&str]) -> RgbImage {
    desk.picture(&[&CANVAS[..], args].concat())
}

fn cut(picture: &RgbImage, x: u32, y: u32, width: u32, height: u32) -> RgbImage {
    image::imageops::crop_imm(picture, x, y, width, height).to_image()
}

#[test]
fn a_scene_is_the_same_in_parts_backwards_and_by_several_processes() {
    let desk = Desk::new();
    let whole = scene(&desk, &["-o=whole.png"]);
    assert_eq!(whole.dimensions(), (176, 150));
    assert_eq!(desk.entries(), ["whole.png"]);
    // 1. in another order, by another number of windows at once and of threads
    let args = ["--backwards", "--batch=1", "--threads=1", "-o=backwards.png"];
    assert!(scene(&desk, &args) == whole);
    // 2. parts of it: inside of a window, over several, at an edge
    for (i, [x, y, w, h]) in
        [[70, 60, 5, 3], [37, 11, 90, 77], [99, 100, 77, 50]].into_iter().enumerate()
    {
        let (window, output) = (format!("--window={x},{y},{w},{h}"), format!("-o=part-{i}.png"));
        assert!(scene(&desk, &[&window, &output]) == cut(&whole, x, y, w, h), "{window}");
    }
    // 3. four processes: two of any part, and shards that begin one after the other
    let start = |output: &str, more: &[&str]| -> Child {
        let args = [&CANVAS[..], &[output, "--batch=2"], more].concat();
        desk.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut shared: Vec<Child> = (0..2).map(|_| start("-o=shared.png", &[])).collect();
    shared.extend(["--shard=1/2", "--shard=2/2"].map(|shard| start("-o=shards.png", &[shard])));
    let mut printed = Vec::new();
    for child in shared {
        let output = child.wait_with_output().unwrap();
        // Who begins when all is done is told that it is there.
        let told = text(&output.stderr);
        assert!(output.status.success() || told.contains("shared.png"), "{told}");
        printed.push(text(&output.stdout));
    }
    printed.sort();
    assert_eq!(printed[2..], ["shards.png\n", "shared.png\n"]);
    assert!(read(&desk.path("shared.png")) == whole && read(&desk.path("shards.png")) == whole);
    let told = desk.run(&[&CANVAS[..7], &["--window=70,60,5,3", "-o=told.png"]].concat());
    let told = text(&told.stderr);
    assert!(told.contains("5x3 pixels: 2 windows of 64x64 that share 16"), "{told}");
    assert!(told.contains("7 more beyond the edges"), "{told}");
}

#[test]
fn a_ring_has_no_ends() {
    let desk = Desk::new();
    let ring = [
        "scene",
        "a forest",
        "-W=192",
        "-H=96",
        "--overlap=16",
        "--wrap=x,y",
        "--steps=2",
        "--quiet",
    ];
    let whole = desk.picture(&[&ring[..], &["-o=ring.png"]].concat());
    let part = desk.picture(&[&ring[..], &["--window=150,60,42,36", "-o=part.png"]].concat());
    assert!(part == cut(&whole, 150, 60, 42, 36));
    // What meets at the ends differs by no more than what lies side by side: were the ends not joined, it would as far pixels
    // do, two and a half times as much.
    let difference = |a: u32, b: u32| -> f64 {
        let level = |x, y: u32| whole.get_pixel(x, y).0.map(f64::from);
        let of = |y| (0..3).map(|c| (level(a, y)[c] - level(b, y)[c]).abs()).sum::<f64>();
        (0..96).map(of).sum::<f64>() / 288.0
    };
    let beside = (0..191).map(|x| difference(x, x + 1)).sum::<f64>() / 191.0;
    let far = (0..96).map(|x| difference(x, x + 96)).sum::<f64>() / 96.0;
    assert!(difference(191, 0) < 1.5 * beside, "{} {beside}", difference(191, 0));
    assert!(far > 2.0 * beside, "{far} {beside}");
}

/// Starts a scene, and kills it when it has made some of its files, so many times; what is then made is what is made at once.
fn killed(desk: &Desk, args: &[&str], times: usize) {
    let whole = scene(desk, &[args, &["-o=whole.tif"]].concat());
    let args = [&CANVAS[..], args, &["-o=killed.tif", "--batch=1"]].concat();
    let folder = desk.path("killed.tif.parts");
    let files = || {
        let count = |part: &str| fs::read_dir(folder.join(part)).map_or(0, Iterator::count);
        count("latents") + count("tiles")
    };
    for _ in 0..times {
        let before = files();
        let mut child = desk.command(&args).stdout(Stdio::null()).spawn().unwrap();
        while files() <= before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(files() > 0 && !desk.path("killed.tif").exists(), "it was killed too late");
    let tiff = |name: &str| fs::read(desk.path(name)).unwrap();
    desk.files(&args);
    assert!(read(&desk.path("killed.tif")) == whole);
    assert!(tiff("killed.tif") == tiff("whole.tif"));
    assert_eq!(desk.entries(), ["killed.tif", "whole.tif"]);
}

#[test]
fn a_scene_that_is_killed_goes_on() {
    let all = std::env::var_os("NADIR_TEST_ALL").is_some();
    killed(&Desk::new(), &[], if all { 20 } else { 4 });
}

/// Ctrl-C, then the same with something else, then as it was.
#[cfg(unix)]
#[test]
fn a_scene_that_is_interrupted_goes_on_as_it_was_begun() {
    let desk = Desk::new();
    let classes = "0 = \"a sea or lake\"\n255 = \"annual crop fields\"\n";
    let labels = |levels: [u8; 2]| {
        let picture = image::GrayImage::from_raw(2, 1, levels.to_vec()).unwrap();
        picture.save(desk.path("classes.png")).unwrap();
    };
    labels([0, 255]);
    fs::write(desk.path("classes.toml"), classes).unwrap();
    let scene = ["scene", "-W=176", "-H=64", "--steps=4", "--quiet", "--batch=1"];
    let scene = [&scene[..], &["--labels=classes.png", "--prompts=classes.toml"]].concat();
    let with = |more: &[&'static str]| [&scene[..], more].concat();
    let whole = desk.picture(&with(&["-s=7", "-o=whole.png"]));
    let other = desk.picture(&with(&["-s=4294967303", "-o=other.png"]));
    assert!(other != whole, "seeds that differ by 2^32");

    let args = with(&["-s=7", "-o=a.png"]);
    let child = desk.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let latents = desk.path("a.png.parts/latents");
    let first = || fs::read_dir(&latents).ok()?.next().map(|entry| entry.unwrap().path());
    while first().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("what is drawn is kept"), "{}", text(&output.stderr));
    assert!(!desk.path("a.png").exists());

    let refused = |words: &[&str]| {
        let output = desk.run(&args);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(words.iter().all(|word| told.contains(word)), "{words:?}: {told}");
        assert!(!told.contains("panicked") && !desk.path("a.png").exists(), "{told}");
    };
    // 1. other levels, and other words of them
    labels([255, 0]);
    refused(&["regions", "scene.json"]);
    labels([0, 255]);
    fs::write(desk.path("classes.toml"), classes.replace("annual", "permanent")).unwrap();
    refused(&["regions", "scene.json"]);
    fs::write(desk.path("classes.toml"), classes).unwrap();
    // 2. what is drawn has another size
    let path = latents.join("0-0");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(&["0-0", "size", "remove it"]);
    // 3. as it was
    fs::write(&path, bytes).unwrap();
    assert!(desk.picture(&args) == whole);
    assert!(!latents.exists());
}

#[test]
fn a_scene_lies_where_it_is_said_to() {
    let desk = Desk::new();
    let place = ["--bbox=485900,5205000,487660,5206500", "--epsg=32614"];
    let whole = scene(&desk, &[&place[..], &["-o=a.tif"]].concat());
    let mut tiff = GeoTiff::open(desk.path("a.tif")).unwrap();
    let about = tiff.about().clone();
    assert_eq!((about.width, about.height, about.bands), (176, 150, 3));
    let levels = tiff.read(Window { x: 0, y: 0, width: 176, height: 150 }).unwrap();
    assert!(levels == whole.into_raw());
    let found = about.georeference.unwrap();
    assert_eq!(found.epsg(), Some(32614));
    assert_eq!(found.transform, Some([485_900.0, 10.0, 0.0, 5_206_500.0, 0.0, -10.0]));
    scene(&desk, &[&place[..], &["--window=70,60,5,3", "-o=b.tif"]].concat());
    let part = GeoTiff::open(desk.path("b.tif")).unwrap().about().georeference.clone().unwrap();
    assert_eq!(part.transform, Some([486_600.0, 10.0, 0.0, 5_205_900.0, 0.0, -10.0]));
}

#[test]
fn regions_are_drawn_as_they_say() {
    let desk = Desk::new();
    let square = |west: f64, prompt: &str| {
        let (east, south, north) = (west + 0.1, 50.0, 50.1);
        format!(
            r#"{{"type": "Feature", "properties": {{"prompt": "{prompt}"}}, "geometry": {{"type": "Polygon", "coordinates":
            [[[{west}, {south}], [{east}, {south}], [{east}, {north}], [{west}, {north}], [{west}, {south}]]]}}}}"#
        )
    };
    let areas = format!(
        r#"{{"type": "FeatureCollection", "features": [{}, {}]}}"#,
        square(10.0, "a sea or lake"),
        square(10.1, "annual crop fields")
    );
    fs::write(desk.path("areas.geojson"), areas).unwrap();
    image::GrayImage::from_raw(2, 1, vec![1, 2]).unwrap().save(desk.path("classes.png")).unwrap();
    fs::write(desk.path("classes.toml"), "1 = \"a sea or lake\"\n2 = \"annual crop fields\"\n")
        .unwrap();
    let scene = |args: &[&str]| {
        let canvas = ["scene", "-W=352", "-H=64", "-s=7", "--steps=4", "--quiet"];
        desk.picture(&[&canvas[..], args].concat())
    };
    let place = ["--bbox=10,50,10.2,50.1", "--epsg=4326"];
    let by_areas = scene(&[&["--regions=areas.geojson", "-o=areas.tif"], &place[..]].concat());
    let by_levels = scene(&["--labels=classes.png", "--prompts=classes.toml", "-o=levels.png"]);
    assert!(by_areas == by_levels);
    // Where no region's windows are near, it is the scene of that prompt alone.
    let lake = scene(&["a sea or lake", "-o=lake.png"]);
    let crops = scene(&["annual crop fields", "-o=crops.png"]);
    assert!(cut(&by_levels, 0, 0, 48, 64) == cut(&lake, 0, 0, 48, 64));
    assert!(cut(&by_levels, 300, 0, 52, 64) == cut(&crops, 300, 0, 52, 64));
    assert!(cut(&lake, 300, 0, 52, 64) != cut(&crops, 300, 0, 52, 64));
}

#[test]
fn what_cannot_be_drawn_is_said_before_it_is_begun() {
    let desk = Desk::new();
    fs::write(desk.path("bad.geojson"), r#"{"type": "Feature"}"#).unwrap();
    let area = r#"{"type": "Feature", "properties": {"prompt": "a river"}, "geometry": {"type": "Polygon",
        "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}}"#;
    fs::write(desk.path("area.geojson"), area).unwrap();
    let refused = |args: &[&str]| {
        let output = desk.run(&[&["scene", "a forest", "--quiet"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let size = ["-W=176", "-H=150", "-o=a.png"];
    let place = ["-W=176", "-H=150", "-o=a.tif", "--bbox=0,0,1,1"];
    let off = ["-W=176", "-H=150", "-o=a.tif", "--regions=area.geojson"];
    let with = |base: &[&'static str], more: &[&'static str]| refused(&[base, more].concat());
    for (told, expected) in [
        (refused(&["-W=0", "-H=150", "-o=a.png"]), "--width: 0"),
        (refused(&["-W=9999999999", "-H=9999999999", "-o=a.png"]), "2147483647"),
        (refused(&["-W=99999999999999999999", "-H=8", "-o=a.png"]), "--width"),
        (refused(&["-W=2147483647", "-H=150", "-o=a.png"]), "--window x,y,w,h"),
        (refused(&["-W=176", "-H=150", "-o=a.jpg"]), ".png or .tif"),
        (refused(&["-W=176", "-H=150", "-o=none/a.png"]), "mkdir"),
        (with(&size, &["--window=170,0,7,1"]), "176x150"),
        (with(&size, &["--window=0,0,0,1"]), "--window"),
        (with(&size, &["--window=18446744073709551615,0,2,1"]), "176x150"),
        (with(&size, &["--window=1,2,3"]), "four whole numbers"),
        (with(&size, &["--wrap=x"]), "128 or 192"),
        (with(&size, &["--wrap=z"]), "--wrap"),
        (with(&size, &["--overlap=36"]), "--overlap"),
        (with(&size, &["--overlap=6"]), "a multiple of 4"),
        (with(&size, &["--strength=0.5"]), "--strength"),
        (with(&size, &["--noise=philox"]), "--noise"),
        (with(&size, &["--scheduler=none"]), "--scheduler"),
        (with(&size, &["--level=16"]), "--level"),
        (with(&size, &["--batch=0"]), "--batch"),
        (with(&size, &["--bbox=0,0,1,1", "--epsg=4326"]), "a .tif file"),
        (with(&place, &["--epsg=70000"]), "--epsg"),
        (with(&place, &["--epsg=1024", "--regions=bad.geojson"]), "--epsg: 1024"),
        (with(&place, &["--epsg=4326", "--regions=bad.geojson"]), "bad.geojson"),
        (with(&place, &["--epsg=4326", "--regions=none.geojson"]), "none.geojson"),
        (with(&off, &["--bbox=nan,0,1,1", "--epsg=32614"]), "--bbox"),
        (with(&off, &["--bbox=-inf,0,inf,1", "--epsg=32614"]), "--bbox"),
        (with(&off, &["--bbox=0,89,1,91", "--epsg=4326"]), "--bbox"),
        (with(&off, &["--bbox=1e300,1e300,2e300,2e300", "--epsg=32614"]), "on the globe"),
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    assert_eq!(desk.entries(), ["area.geojson", "bad.geojson"]);

    // A picture that is there stays, and what another is made by is not mixed with it.
    fs::write(desk.path("a.png"), "mine").unwrap();
    assert!(with(&size, &[]).contains("a name that nothing has"));
    assert_eq!(fs::read(desk.path("a.png")).unwrap(), b"mine");
    assert_eq!(desk.entries(), ["a.png", "area.geojson", "bad.geojson"]);
    fs::remove_file(desk.path("a.png")).unwrap();
    let mut child =
        desk.command(&[&CANVAS[..], &["-o=a.png", "--batch=1"]].concat()).spawn().unwrap();
    while !desk.path("a.png.parts/scene.json").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let other = desk.run(&[&CANVAS[..5], &["-o=a.png", "--seed=8", "--steps=2"]].concat());
    let told = text(&other.stderr);
    assert_eq!(other.status.code(), Some(2), "{told}");
    assert!(told.contains("seed") && told.contains("8"), "{told}");
}

#[test]
fn a_gpu_draws_the_same_scene_and_its_parts() {
    if gpu::gpu().is_none() {
        return;
    }
    let desk = Desk::new();
    // Two windows, whose noise is of their places at every step.
    let scene = |args: &[&str]| {
        let canvas = ["scene", "a forest", "-W=100", "-H=64", "--steps=2", "--quiet"];
        desk.picture(&[&canvas[..], &["--scheduler=euler_a", "--batch=1"], args].concat())
    };
    let whole = scene(&["--device=cuda", "-o=gpu.png"]);
    let part = scene(&["--device=cuda", "--window=60,8,40,30", "-o=part.png"]);
    assert!(part == cut(&whole, 60, 8, 40, 30));
    let host = scene(&["--device=cpu", "-o=cpu.png"]);
    let far = whole.as_raw().iter().zip(host.as_raw()).filter(|(a, b)| a.abs_diff(**b) > 2);
    assert_eq!(far.count(), 0);
}
