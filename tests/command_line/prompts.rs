//! `nadir lm prompts`: of the model that ships, for the seven classes that ship.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{Desk, text};

fn shipped() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/classes.toml").display().to_string()
}

#[test]
fn every_class_gets_prompts_of_its_own() {
    let desk = Desk::new();
    let classes = shipped();
    let prompts = |rest: &[&str]| {
        let args = ["lm", "prompts", "--classes", &classes, "--per-class=4", "-q", "-t1"];
        let output = desk.run(&[&args[..], rest].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let shown = prompts(&[]);
    let lines: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line["class"].as_str().unwrap()).collect();
    let expected = [
        "Water body",
        "Bare ground",
        "Woody Vegetation",
        "Cultivated Vegetation",
        "Crop Land",
        "Natural Vegetation",
        "Snow/Ice",
    ];
    assert_eq!(names, expected.iter().flat_map(|name| [*name; 4]).collect::<Vec<_>>());
    for (i, of_class) in lines.chunks(4).enumerate() {
        let prompts: BTreeSet<&str> =
            of_class.iter().map(|line| line["prompt"].as_str().unwrap()).collect();
        assert_eq!(prompts.len(), 4, "{prompts:?}");
        for line in of_class {
            let (prompt, given) =
                (line["prompt"].as_str().unwrap(), line["given"].as_str().unwrap());
            assert_eq!(line["label"], i);
            let told = given.split(':').next().unwrap();
            assert!(
                !prompt.starts_with(&format!("{told}:")) && prompt.split(' ').count() > 2,
                "{prompt}"
            );
        }
    }
    // Neither company nor number changes a prompt; the seed does.
    assert_eq!(prompts(&["--batch=3"]), shown);
    assert_ne!(prompts(&["--seed=7"]), shown);
    // It is what the model says to what it was given.
    let (given, seed) = (lines[0]["given"].as_str().unwrap(), lines[0]["seed"].to_string());
    let again = desk.run(&["lm", "generate", given, "--seed", &seed, "-q", "--max-new-tokens=64"]);
    assert_eq!(text(&again.stdout).trim(), lines[0]["prompt"].as_str().unwrap());
    // A file of prompts alone.
    prompts(&["-o", "prompts.txt"]);
    assert_eq!(fs::read_to_string(desk.path("prompts.txt")).unwrap().lines().count(), 28);
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let desk = Desk::new();
    let shipped = shipped();
    let put = |name: &str, text: &str| fs::write(desk.path(name), text).unwrap();
    put("none.toml", "");
    put("empty.toml", "[[class]]\nname = \"a\"\n");
    put(
        "twice.toml",
        "[[class]]\nname = \"a\"\nbeginnings = [\"b\"]\n[[class]]\nname = \"a\"\nbeginnings = [\"b\"]\n",
    );
    put("other.toml", "[[class]]\nname = \"a\"\nbegin = [\"b\"]\n");
    put(
        "never.toml",
        "[[class]]\nname = \"a\"\ninstructions = [\"river:\"]\nnamed_by = [\"xylophone\"]\n",
    );
    for (args, parts) in [
        (&["--classes", "none.toml"][..], &["none.toml", "[[class]]"][..]),
        (&["--classes", "empty.toml"], &["class \"a\"", "neither"]),
        (&["--classes", "twice.toml"], &["class \"a\"", "another"]),
        (&["--classes", "other.toml"], &["begin"]),
        (&["--classes", "missing.toml"], &["missing.toml"]),
        (
            &["--classes", "never.toml", "-n1", "--max-draws=3"],
            &["--per-class", "class \"a\"", "3 does not name its class", "--temperature"],
        ),
        // The likeliest words are always the same.
        (
            &["--classes", &shipped, "-n7", "--max-draws=2", "--temperature=0"],
            &["Water body", "repeated"],
        ),
        (&["--classes", &shipped, "-n0"], &["--per-class"]),
        (&["--classes", &shipped, "-o", "a.csv"], &["--output", ".jsonl"]),
        (&["--classes", &shipped, "-o", "no/a.txt"], &["mkdir -p"]),
    ] {
        let output = desk.run(&[&["lm", "prompts", "-q", "-t1"][..], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        let said = text(&output.stderr);
        assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}
