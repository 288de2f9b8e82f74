//! `nadir evaluate downstream`: small networks, few updates, pictures whose classes a network can tell by their colour.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::{Desk, text};

const CLASSES: [&str; 3] = ["Forest", "River", "SeaLake"];

/// A folder of `count` pictures of each class, of levels that differ by class; `kind` tells sets apart.
fn pictures(desk: &Desk, name: &str, count: u32, kind: u32) {
    let folder = desk.path(name);
    fs::create_dir(&folder).unwrap();
    let mut index = String::new();
    for (label, class) in CLASSES.iter().enumerate() {
        for i in 0..count {
            let texture =
                |x: u32, y: u32| ((x * 13 + y * 7 + x * y * (i + 3) + kind * 31) % 40) as u8;
            let pixel = |x: u32, y: u32| {
                let mut levels = [texture(x, y); 3];
                levels[label] += 120;
                image::Rgb(levels)
            };
            let file = format!("{class}-{i}.png");
            image::RgbImage::from_fn(16, 16, pixel).save(folder.join(&file)).unwrap();
            // Sets number classes as they like; their names tell what they are.
            let label = (label as u32 + kind) % 3;
            index += &format!("{}\n", json!({ "file_name": file, "label": label, "class": class }));
        }
    }
    fs::write(folder.join("metadata.jsonl"), index).unwrap();
}

fn evaluate(desk: &Desk, rest: &[&str]) -> Command {
    let mut command =
        desk.command(&["evaluate", "downstream", "--synthetic", "drawn", "-o", "found", "-t1"]);
    command.args(rest);
    command
}

const COMPARE: [&str; 8] = [
    "--real=real",
    "--test=test",
    "--seen=real",
    "--real-count=6",
    "--seeds=2",
    "--steps=120",
    "--train-batch-size=6",
    "--base-width=4",
];

#[test]
fn networks_learn_from_real_drawn_and_both_and_are_tested_on_what_is_left() {
    let desk = Desk::new();
    pictures(&desk, "real", 8, 0);
    pictures(&desk, "drawn", 4, 1);
    pictures(&desk, "test", 5, 2);
    // One of the drawn is a real one.
    fs::copy(desk.path("real/River-5.png"), desk.path("drawn/River-2.png")).unwrap();
    let output = evaluate(&desk, &COMPARE).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for name in ["12 synthetic", "6 real", "6 real, 12 synthetic"] {
        assert!(said.contains(&format!("{name}: accuracy")), "{name} in {said}");
    }
    let nearest = "nearest of the real pictures to learn from: correlation 1.00";
    assert!(said.contains(nearest), "{said}");
    let page = fs::read_to_string(desk.path("found/report.html")).unwrap();
    for part in [
        "<svg",
        "calibration error",
        "Student",
        "6, and the 24 that generator and judge have seen",
        "data:image/png",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["http:", "https:", "<script"] {
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
    }
    assert!(desk.path("found/confusion-6-real-12-synthetic.svg").exists());
    // Colours are told apart by every network, and every picture of the test was looked at.
    let runs: Vec<_> =
        fs::read_dir(desk.path("found/runs")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(runs.len(), 6);
    for run in &runs {
        let scores: serde_json::Value =
            serde_json::from_slice(&fs::read(run.join("scores.json")).unwrap()).unwrap();
        let rows = scores["confusion"]["counts"].as_array().unwrap();
        let row = |row: &serde_json::Value| {
            row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>()
        };
        assert_eq!(rows.iter().map(row).collect::<Vec<_>>(), [5, 5, 5]);
        let right: u64 = (0..3).map(|i| rows[i][i].as_u64().unwrap()).sum();
        assert!(right >= 12, "{}: {right} of 15", run.display());
    }
    // Six of the real ones, two of each class, others for another seed; and what was learned from is a data set of its own.
    let inspect = |set: &str| {
        text(&desk.run(&["data", "inspect", &format!("found/sets/{set}.parquet"), "--json"]).stdout)
    };
    let first: serde_json::Value =
        serde_json::from_str(&inspect("real-6-synthetic-12-seed-0")).unwrap();
    assert_eq!(first["rows"], 18, "{first}");
    let bytes = |seed: u32| {
        fs::read(desk.path(&format!("found/sets/real-6-synthetic-0-seed-{seed}.parquet"))).unwrap()
    };
    assert!(bytes(0) != bytes(1));

    // Begun again, it computes nothing and finds the same.
    let scores = runs[0].join("scores.json");
    let written = fs::metadata(&scores).unwrap().modified().unwrap();
    fs::remove_file(desk.path("found/report.html")).unwrap();
    assert!(evaluate(&desk, &COMPARE).status().unwrap().success());
    assert_eq!(fs::read_to_string(desk.path("found/report.html")).unwrap(), page);
    assert_eq!(fs::metadata(&scores).unwrap().modified().unwrap(), written);
    // Of two data sets, or with other settings, nothing is mixed.
    let refused = |rest: &[&str], parts: &[&str]| {
        let output = evaluate(&desk, rest).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part} in {error}"));
    };
    refused(&[&COMPARE[..5], &["--steps=9"]].concat(), &["settings.json"]);
    refused(&["--real=real", "--test=real"], &["--test"]);
    refused(
        &["--real=real", "--test=test", "--real-count=2"],
        &["--real-count", "3, as many as there are classes"],
    );
    refused(&["--real=real", "--test=test", "--real-count=99"], &["--real-count", "24"]);
    refused(&["--real=real", "--test=test", "--steps=0"], &["--steps"]);
    refused(&["--real=real", "--test=test", "--learning-rate=NaN"], &["--learning-rate"]);
    refused(&["--real=real", "--test=nowhere"], &["nowhere"]);
    // A test picture that networks learn from.
    let river = desk.path("test/River-3.png");
    let own = fs::read(&river).unwrap();
    fs::copy(desk.path("real/River-5.png"), &river).unwrap();
    refused(&COMPARE, &["test: picture 9", "picture 14 of real", "none of the networks"]);
    fs::write(&river, own).unwrap();
    // A set of the same name and size that holds other pictures.
    fs::copy(desk.path("drawn/River-0.png"), desk.path("drawn/River-1.png")).unwrap();
    refused(&COMPARE, &["settings.json", "drawn"]);
    let strange = json!({ "file_name": "Forest-0.png", "label": 0, "class": "Glacier" });
    fs::write(desk.path("drawn/metadata.jsonl"), strange.to_string()).unwrap();
    refused(&["--real=real", "--test=test"], &["Glacier", "Forest, River, SeaLake"]);
}

#[test]
fn the_published_protocol_says_what_is_wrong_with_it() {
    let desk = Desk::new();
    pictures(&desk, "drawn", 10, 1);
    let output = evaluate(&desk, &["--as-published", "--resolution=16"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("nothing about real ones"), "{said}");
    assert!(text(&output.stdout).starts_with("accuracy on 3 drawn pictures: "));
    let wrong = evaluate(&desk, &["--as-published", "--real=drawn"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    // Without it, real pictures are asked for.
    assert_eq!(evaluate(&desk, &[]).output().unwrap().status.code(), Some(2));
}
