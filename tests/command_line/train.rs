//! `nadir train`, as far as the command line has to do with it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Desk, text};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/blue-marble.parquet")
}

/// A run of a few steps, and what it leaves.
#[test]
fn a_classifier_is_trained_and_goes_on() {
    let desk = Desk::new();
    let set = shipped();
    let train = |steps: &str| {
        let mut args =
            vec!["train", "classify", "--train-data", set.to_str().unwrap(), "-o", "run"];
        args.extend([
            "--base_width",
            "4",
            "--resolution",
            "32",
            "--train_batch_size",
            "8",
            "--threads",
            "1",
        ]);
        args.extend(["--validation-split", "0.1", "--export-dtype", "bf16"]);
        args.extend(["--resume_from_checkpoint", "latest", "--max_train_steps", steps]);
        desk.run(&args)
    };
    let output = train("2");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("180 pictures, 20 held out"), "{said}");
    assert!(said.contains("validation_accuracy"), "{said}");
    let output = train("3");
    assert!(text(&output.stderr).contains("resumed behind step 2"), "{}", text(&output.stderr));
    let config = fs::read(desk.path("run/classifier/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["classes"][0], &config["base_width"]), (&"coast".into(), &4.into()));
    assert!(desk.path("run/classifier/model.safetensors").is_file());
    assert!(desk.path("run/checkpoint-3").is_dir());
    assert!(desk.path("run/metrics.csv").is_file());
    // One page of both parts, two files of events.
    let page = fs::read_to_string(desk.path("run/report.html")).unwrap();
    for part in ["<b>Done</b>: step 3 of 3", "validation loss:", "blue-marble.parquet", "<svg"] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert_eq!(fs::read_dir(desk.path("run/logs")).unwrap().count(), 2);
}

#[test]
fn what_cannot_be_trained_on_is_an_error() {
    let desk = Desk::new();
    let set = shipped();
    let refused = |data: &str, args: &[&str], parts: &[&str]| {
        let first = ["train", "classify", "--train-data", data, "-o", "run", "--resolution", "32"];
        let output = desk.run(&[&first, args].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
    };
    let set = set.to_str().unwrap();
    refused("none.parquet", &[], &["none.parquet"]);
    refused(set, &["--base-width", "0"], &["--base-width"]);
    refused(set, &["--label-smoothing", "NaN"], &["--label-smoothing"]);
    refused(set, &["--gradient_checkpointing"], &["--gradient-checkpointing", "classifiers"]);
    refused(set, &["--learning-rate", "NaN"], &["--learning-rate"]);
    refused(set, &["--lr-plateau-factor", "NaN"], &["--lr-plateau-factor"]);
    refused(set, &["--early-stopping-patience", "0"], &["--early-stopping-patience"]);
    refused(set, &["--validation-steps", "0"], &["--validation-steps"]);
    refused(set, &["--recipe", "none"], &["--recipe", "downstream"]);
    refused(set, &["--brightness", "2"], &["--brightness"]);
    refused(set, &["--num-train-epochs", "0"], &["--num-train-epochs"]);
    refused(set, &["--num-train-epochs", "1", "--max-train-steps", "1"], &["cannot be used with"]);
    refused(set, &["--train-batch-size", "0"], &["--train-batch-size"]);
    refused(set, &["--init-from", "nowhere"], &["nowhere"]);
    // Adapters of a new model.
    let first = ["train", "diffusion", "--train-data", set, "-o", "run", "--vae", "v"];
    let output = desk.run(&[&first[..], &["--tokenizer", "t", "--lora-rank", "2"]].concat());
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("--lora-rank") && error.contains("--init-from"), "{error}");
    // Pictures without classes.
    fs::create_dir(desk.path("folder")).unwrap();
    image::RgbImage::new(32, 32).save(desk.path("folder/a.png")).unwrap();
    let line = "{\"file_name\": \"a.png\", \"text\": \"a\"}\n";
    fs::write(desk.path("folder/metadata.jsonl"), line).unwrap();
    refused("folder", &[], &["folder", "classes", "file_name, text"]);
}
