//! `nadir synthesize` and `nadir classify`: data sets of drawn pictures by the models that ship.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::{Desk, text};

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name).display().to_string()
}

fn synthesize(desk: &Desk, output: &str, rest: &[&str]) -> Command {
    let classes = data("eurosat-classes.toml");
    let args = [
        "synthesize",
        "--classes",
        &classes,
        "-o",
        output,
        "-q",
        "--steps=10",
        "--prompts-per-class=4",
    ];
    let mut command = desk.command(&args);
    command.args(rest);
    command
}

fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn lines(path: PathBuf) -> Vec<Value> {
    let content = fs::read_to_string(&path).unwrap();
    content.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every file of a set and what is in it, but for the report, which says what is in the others.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for inside in ["", "images"] {
        for entry in fs::read_dir(folder.join(inside)).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                let name = format!("{inside}/{}", entry.file_name().into_string().unwrap());
                all.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_balanced_set_survives_being_killed() {
    let desk = Desk::new();
    let (whole, killed) = (desk.path("whole"), desk.path("killed"));
    let wanted = ["--per-class=10", "--parquet"];
    done(&mut synthesize(&desk, "whole", &wanted));
    // Killed amid the prompts, and when half of the draws are on record.
    let draws = fs::read_to_string(whole.join("draws.jsonl")).unwrap().lines().count();
    let recorded = |n: usize| {
        let found = fs::read_to_string(killed.join("draws.jsonl")).unwrap_or_default();
        found.lines().count() >= n
    };
    for half in [draws / 3, 2 * draws / 3] {
        let mut child = synthesize(&desk, "killed", &wanted).stderr(Stdio::null()).spawn().unwrap();
        while !recorded(half) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!killed.join("data.parquet").exists());
    }
    // What a process leaves that dies while it writes a line.
    let mut torn = fs::read(killed.join("draws.jsonl")).unwrap();
    torn.extend(b"{\"class\":\"Riv");
    fs::write(killed.join("draws.jsonl"), torn).unwrap();
    done(&mut synthesize(&desk, "killed", &wanted));
    assert!(files(&killed) == files(&whole), "another set than the one that was made at once");

    // So many of each class, in order, no picture twice.
    let index = lines(whole.join("metadata.jsonl"));
    let names: Vec<&str> = index.iter().map(|line| line["class"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 100);
    assert!(names.chunks(10).all(|chunk| chunk.iter().all(|name| *name == chunk[0])));
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 10);
    let pictures: BTreeSet<Vec<u8>> = index
        .iter()
        .map(|line| crate::read(&whole.join(line["file_name"].as_str().unwrap())).into_raw())
        .collect();
    assert_eq!(pictures.len(), 100);
    assert_eq!(fs::read_dir(whole.join("images")).unwrap().count(), 100);
    let report = fs::read_to_string(whole.join("report.html")).unwrap();
    assert!(report.contains("<th>SeaLake</th>") && report.matches("data:image/png").count() == 100);

    // What was taken is what a judge sees in it, in the folder and in the one file.
    for set in ["whole", "whole/data.parquet"] {
        let seen = desk.run(&["classify", set]);
        let said = text(&seen.stderr);
        assert!(said.contains("100 of 100 as labelled"), "{said}");
        assert_eq!(text(&seen.stdout).lines().count(), 100);
    }
    // A picture says how it was made.
    let picture = whole.join(index[42]["file_name"].as_str().unwrap());
    let again = desk.picture(&["replay", picture.to_str().unwrap(), "-o", "again.png", "-q"]);
    assert!(again == crate::read(&picture));

    // Neither company nor threads change it; more of each class are added to it; and what was drawn too often is not taken.
    done(&mut synthesize(&desk, "slow", &["--per-class=2", "--batch=3", "-t1"]));
    let few = |name: &str| {
        lines(desk.path(name).join("draws.jsonl"))
            .into_iter()
            .filter(|line| line["label"] == 0)
            .take(2)
            .collect::<Vec<_>>()
    };
    assert_eq!(few("slow"), few("whole"));
    done(&mut synthesize(&desk, "slow", &["--per-class=3"]));
    assert_eq!(lines(desk.path("slow/metadata.jsonl")).len(), 30);
}

#[test]
fn classes_that_no_judge_knows_are_drawn_and_the_output_says_so() {
    let desk = Desk::new();
    let classes = data("classes.toml");
    let args = [
        "synthesize",
        "--classes",
        &classes,
        "-o",
        "set",
        "--per-class=2",
        "--steps=2",
        "--prompts-per-class=2",
    ];
    let output = desk.run(&args);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("No judge has looked"), "{said}");
    assert!(
        fs::read_to_string(desk.path("set/report.html")).unwrap().contains("No judge has looked")
    );
    let index = lines(desk.path("set/metadata.jsonl"));
    assert_eq!(index.len(), 14);
    assert_eq!(index[13]["class"], "Snow/Ice");
    assert!(index[13]["file_name"].as_str().unwrap().starts_with("images/Snow-Ice-"));
}

#[test]
fn pictures_like_those_of_the_training_are_not_taken() {
    let desk = Desk::new();
    done(&mut synthesize(&desk, "first", &["--per-class=1"]));
    // The same again, now that the first are what the model is said to have learned from.
    done(&mut synthesize(&desk, "second", &["--per-class=1", "--training-data=first"]));
    let verdicts = |name: &str| -> Vec<String> {
        let draws = lines(desk.path(name).join("draws.jsonl"));
        draws.iter().map(|line| line["verdict"].as_str().unwrap().to_owned()).collect()
    };
    let near = |all: &[String]| all.iter().filter(|verdict| *verdict == "near_training").count();
    assert_eq!(near(&verdicts("first")), 0);
    assert_eq!(near(&verdicts("second")), 10);
    let pictures =
        |name: &str| files(&desk.path(name)).into_iter().filter(|(name, _)| name.ends_with(".png"));
    let first: BTreeSet<_> = pictures("first").map(|(_, bytes)| bytes).collect();
    assert!(pictures("second").all(|(_, bytes)| !first.contains(&bytes)));
}

#[test]
fn what_no_set_can_be_made_of_is_refused() {
    let desk = Desk::new();
    let refused = |command: &mut Command, parts: &[&str]| {
        let output = command.output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    };
    for (argument, flag) in [
        ("--per-class=0", "--per-class"),
        ("--max-draws=0", "--max-draws"),
        ("--per-class=99999999", "--per-class"),
        ("--min-probability=NaN", "--min-probability"),
        ("--max-similarity=NaN", "--max-similarity"),
        ("--batch=0", "--batch"),
        ("--seed=18446744073709551615", "--seed"),
        ("--steps=0", "--steps"),
    ] {
        refused(&mut synthesize(&desk, "set", &[argument]), &[flag]);
    }
    // A class that the judge does not know, when it was asked for by name.
    let judge = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-judge");
    let judge = judge.to_str().unwrap();
    let mut unknown = desk.command(&[
        "synthesize",
        "--classes",
        &data("classes.toml"),
        "--judge",
        judge,
        "-o",
        "set",
    ]);
    refused(&mut unknown, &["Water body", "AnnualCrop, Forest", "eurosat-judge"]);
    refused(&mut synthesize(&desk, "set", &["--judge=nowhere"]), &["nowhere"]);
    // A class that cannot be filled: what is there stays.
    refused(
        &mut synthesize(&desk, "never", &["--per-class=1", "--max-draws=2", "--min-probability=1"]),
        &["2 draws", "unsure", "AnnualCrop"],
    );
    assert!(desk.path("never/report.html").exists());
    // A folder that holds something else, other settings, another process.
    fs::create_dir(desk.path("full")).unwrap();
    fs::write(desk.path("full/letter.txt"), "dear").unwrap();
    refused(&mut synthesize(&desk, "full", &[]), &["full", "other files"]);
    done(&mut synthesize(&desk, "set", &["--per-class=1"]));
    refused(
        &mut synthesize(&desk, "set", &["--per-class=1", "--guidance-scale=3"]),
        &["picture", "synthesis.json"],
    );
    let held = fs::File::open(desk.path("set/draws.jsonl")).unwrap();
    held.lock().unwrap();
    refused(&mut synthesize(&desk, "set", &["--per-class=1"]), &["another process"]);
    drop(held);
    // A picture that was lost, and a record that was changed.
    let lost = lines(desk.path("set/metadata.jsonl"))[3]["file_name"].as_str().unwrap().to_owned();
    fs::remove_file(desk.path("set").join(&lost)).unwrap();
    refused(&mut synthesize(&desk, "set", &["--per-class=1"]), &[&lost]);
    fs::write(desk.path("set/draws.jsonl"), "{}\n").unwrap();
    refused(&mut synthesize(&desk, "set", &["--per-class=1"]), &["draws.jsonl", "line 1"]);
    // Pictures that are none.
    fs::write(desk.path("x.png"), "no picture").unwrap();
    refused(&mut desk.command(&["classify", "x.png"]), &["x.png"]);
    refused(&mut desk.command(&["classify", "x.png", "--top=0"]), &["--top"]);
}
