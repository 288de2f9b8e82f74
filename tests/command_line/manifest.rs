//! Pictures of a file, by several processes at once.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Child;
use std::time::Duration;

use super::*;

/// Two rows ask for the same picture.
const ROWS: [&str; 8] = [
    r#"{"prompt": "a river", "seed": 1, "class": "River"}"#,
    r#"{"prompt": "a forest", "seed": 2, "steps": 3}"#,
    r#"{"prompt": "a river", "seed": 1}"#,
    r#"{"prompt": "a forest", "seed": 3, "width": 96}"#,
    r#"{"prompt": "fields", "guidance_scale": 1.0}"#,
    r#"{"prompt": "fields", "scheduler": "euler_a"}"#,
    r#"{"prompt": "a lake"}"#,
    r#"{"prompt": "a motorway", "negative_prompt": "snow"}"#,
];

fn pictures(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|ending| ending == "png"))
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
        })
        .collect()
}

fn manifest(desk: &Desk) {
    fs::write(desk.path("rows.jsonl"), ROWS.join("\n")).unwrap();
}

#[test]
fn a_manifest_is_drawn_once_and_is_a_data_set() {
    let desk = Desk::new();
    manifest(&desk);
    let args = ["generate", "--manifest=rows.jsonl", STEPS, "-o", "out", "--batch=3"];
    let files = desk.files(&args);
    assert_eq!(files.len(), 7);
    // A row is the picture that the command line draws.
    let lines = fs::read_to_string(desk.path("out/metadata.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 8);
    assert_eq!(lines[0]["file_name"], lines[2]["file_name"]);
    assert_eq!((&lines[0]["class"], &lines[4]["seed"]), (&"River".into(), &4.into()));
    let alone = desk.picture(&["generate", "a forest", "--seed=2", "--steps=3", "-o", "alone.png"]);
    let forest = desk.path("out").join(lines[1]["file_name"].as_str().unwrap());
    assert!(read(&forest) == alone);
    // What is there is done.
    assert!(desk.files(&args).is_empty());
    fs::remove_file(&forest).unwrap();
    assert_eq!(desk.files(&args), [forest]);
    assert!(!desk.path("out/.nadir-claims").exists());
}

#[test]
fn processes_on_one_folder_lose_and_repeat_nothing() {
    let desk = Desk::new();
    manifest(&desk);
    desk.files(&["generate", "--manifest=rows.jsonl", STEPS, "-o", "alone"]);
    let start = |shard: &str| -> Child {
        let args =
            ["generate", "--manifest=rows.jsonl", STEPS, "-o", "out", "--shard", shard, "-q"];
        desk.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut printed: BTreeMap<String, usize> = BTreeMap::new();
    let mut tell = |child: &mut Child| {
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        // The last line of one that was killed may be cut.
        for line in text.lines().filter(|line| line.ends_with(".png")) {
            *printed.entry(line.to_owned()).or_default() += 1;
        }
    };
    // Killed at one place after another: the two parts, and one that wants all of them.
    let rounds = if std::env::var_os("NADIR_TEST_ALL").is_some() { 20 } else { 12 };
    for round in 0..rounds {
        let mut children = ["1/2", "2/2", "1/1"].map(start);
        std::thread::sleep(Duration::from_millis(100 + 1080 * round / rounds));
        for child in &mut children {
            let _ = child.kill();
            child.wait().unwrap();
            tell(child);
        }
    }
    let mut children = ["1/2", "2/2", "1/1"].map(start);
    for child in &mut children {
        assert!(child.wait().unwrap().success());
        tell(child);
    }
    assert!(printed.values().all(|&times| times == 1), "{printed:?}");
    assert!(pictures(&desk.path("out")) == pictures(&desk.path("alone")));
    let lines = |name: &str| {
        let text = fs::read_to_string(desk.path(name)).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (odd, even) = (lines("out/metadata-1-of-2.jsonl"), lines("out/metadata-2-of-2.jsonl"));
    assert_eq!((odd.len(), even.len()), (4, 4));
    assert_eq!(
        (&odd[0], &even[0]),
        (&lines("alone/metadata.jsonl")[0], &lines("alone/metadata.jsonl")[1])
    );
}

#[test]
fn what_a_manifest_cannot_be_is_told() {
    let desk = Desk::new();
    manifest(&desk);
    fs::write(
        desk.path("odd.jsonl"),
        "{\"prompt\": \"x\"}\n{\"prompt\": \"x\", \"width\": 8184, \"scheduler\": \"no\"}",
    )
    .unwrap();
    fs::write(desk.path("file"), "").unwrap();
    for (args, told) in [
        (vec!["--manifest=odd.jsonl", "-o", "out"], "row 2"),
        (vec!["--manifest=none.jsonl", "-o", "out"], "none.jsonl"),
        (vec!["--manifest=rows.jsonl", "-o", "file"], "file"),
        (vec!["--manifest=rows.jsonl", "--shard=3/2", "-o", "out"], "3/2"),
        (vec!["--manifest=rows.jsonl", "-b", "2", "-o", "out"], "--num-images"),
        (vec!["--manifest=rows.jsonl", "a prompt"], "--manifest"),
        (vec!["a prompt", "--shard=1/2"], "--manifest"),
    ] {
        let output = desk.run(&[&["generate"][..], &args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(told), "{args:?}: {}", text(&output.stderr));
        assert!(pictures(desk.folder.path()).is_empty());
    }
}

/// What a row says of its place, and the command line of numbers.
#[test]
fn rows_that_lie_somewhere_are_rasters() {
    use nadir::io::geotiff::{GeoTiff, SampleKind};
    let desk = Desk::new();
    let rows = [
        r#"{"prompt": "a river", "seed": 1, "bbox": [485900, 5205627, 486540, 5206267], "epsg": 26914}"#,
        r#"{"prompt": "a river", "seed": 1, "bbox": [0, 0, 1, 1], "epsg": 4326}"#,
        r#"{"prompt": "a river", "seed": 1}"#,
    ];
    fs::write(desk.path("rows.jsonl"), rows.join("\n")).unwrap();
    let args = ["generate", "--manifest=rows.jsonl", STEPS, "-o"];
    let files = desk.files(&[&args[..], &["out"]].concat());
    let ends = |ending: &str| files.iter().filter(|f| f.extension().unwrap() == ending).count();
    assert_eq!((files.len(), ends("tif"), ends("png")), (3, 2, 1));
    let lines = fs::read_to_string(desk.path("out/metadata.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named =
        |line: &serde_json::Value| desk.path("out").join(line["file_name"].as_str().unwrap());
    let places = lines[..2].iter().map(|line| {
        let place = GeoTiff::open(named(line)).unwrap().about().georeference.clone().unwrap();
        (place.epsg(), place.transform.unwrap()[1])
    });
    assert_eq!(places.collect::<Vec<_>>(), [(Some(26914), 10.0), (Some(4326), 1.0 / 64.0)]);
    assert_eq!((&lines[0]["epsg"], lines[2].get("epsg")), (&26914.into(), None));
    assert!(read(&named(&lines[0])) == read(&named(&lines[2])));
    // One is drawn again as it was.
    let again = desk.run(&["replay", named(&lines[0]).to_str().unwrap(), "-o", "again.tif"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(fs::read(desk.path("again.tif")).unwrap() == fs::read(named(&lines[0])).unwrap());
    // Numbers are said for all.
    let deep = ["deep", "--samples=u16", "--scale=0,10000"];
    for file in desk.files(&[&args[..], &deep].concat()) {
        let about = GeoTiff::open(file).unwrap().about().clone();
        assert_eq!((about.bands, about.samples), (3, SampleKind::U16));
    }
    for (extra, row, words) in [
        (vec!["--samples=u16"], rows[2], "--scale"),
        (vec!["--scale=0,1"], rows[2], "--samples"),
        (vec!["--bbox=0,0,1,1", "--epsg=4326"], rows[2], "--bbox"),
        (vec![], r#"{"prompt": "a", "bbox": [0, 95, 1, 96], "epsg": 4326}"#, "row 1"),
        (vec![], r#"{"prompt": "a", "bbox": [0, 1, 1, 2]}"#, "epsg"),
    ] {
        fs::write(desk.path("rows.jsonl"), row).unwrap();
        let output = desk.run(&[&args[..], &["wrong"], &extra[..]].concat());
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(words), "{extra:?} {row}: {told}");
    }
}
