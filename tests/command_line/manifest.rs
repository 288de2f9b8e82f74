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
