//! Training that is killed, or cannot be gone on with, and requests that no run can be made of.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::adversity::size;
use super::{Desk, text};

/// A small autoencoder, and pictures to train it on.
fn prepare(desk: &Desk) {
    let folder = desk.folder.path();
    fs::create_dir(folder.join("pictures")).unwrap();
    let mut index = String::new();
    for i in 0..6u32 {
        let pixel = |x: u32, y: u32| image::Rgb([(x * 16) as u8, (y * 16) as u8, (i * 40) as u8]);
        let name = format!("{i}.png");
        image::RgbImage::from_fn(16, 16, pixel).save(folder.join("pictures").join(&name)).unwrap();
        index += &format!("{}\n", json!({ "file_name": name, "text": "a picture" }));
    }
    fs::write(folder.join("pictures/metadata.jsonl"), index).unwrap();
    let config = config(8);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn config(width: usize) -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [width, 2 * width],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "latent_channels": 4,
        "layers_per_block": 1,
        "mid_block_add_attention": false,
        "norm_num_groups": 4,
        "sample_size": 16,
    })
}

const TRAIN: [&str; 17] = [
    "train",
    "vae",
    "--train-data",
    "pictures",
    "--config",
    "config.json",
    "--train_batch_size=2",
    "--max-train-steps=10",
    "--checkpointing-steps=1",
    "--checkpoints-total-limit=2",
    "--validation-split=0.2",
    "--learning-rate=1e-3",
    "--use-ema",
    "--resume-from-checkpoint=latest",
    "--threads=1",
    "--quiet",
    "-o",
];

/// How the loss is scaled in fp16 is part of where a run stands.
const KINDS: [&[&str]; 2] = [&[], &["--mixed_precision=fp16", "--gradient_checkpointing"]];

fn train(desk: &Desk, output: &str, kind: &[&str]) -> Command {
    let mut command = desk.command(&TRAIN);
    command.arg(output).args(kind);
    command
}

fn content(desk: &Desk, output: &str, name: &str) -> Vec<u8> {
    fs::read(desk.folder.path().join(output).join(name)).unwrap()
}

#[test]
fn a_run_that_is_killed_goes_on_from_its_last_checkpoint_with_the_same_bits() {
    let desk = Desk::new();
    prepare(&desk);
    let whole = ["whole-0", "whole-1"];
    let lengths = [0, 1].map(|kind| {
        let started = Instant::now();
        let whole = train(&desk, whole[kind], KINDS[kind]).output().unwrap();
        assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
        started.elapsed()
    });

    // Moments all over the run, a fifth of a moment's share away from where they would be regular. A checkpoint a step:
    // many fall into the writing of one.
    let moments = size(50);
    for i in 0..moments {
        let share = (i as f64 + 0.5 + 0.2 * (i as f64 * 2.4).sin()) / moments as f64;
        let (output, kind) = (format!("killed-{i}"), i % 2);
        let mut child = train(&desk, &output, KINDS[kind]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(lengths[kind].as_secs_f64() * share));
        let _ = child.kill();
        child.wait().unwrap();
        let rest = train(&desk, &output, KINDS[kind]).output().unwrap();
        assert_eq!(rest.status.code(), Some(0), "moment {share:.2}: {}", text(&rest.stderr));
        for name in [
            "checkpoint-10/state.safetensors",
            "checkpoint-10/state.json",
            "vae/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "metrics.csv",
        ] {
            let same = content(&desk, whole[kind], name) == content(&desk, &output, name);
            assert!(same, "killed at {share:.2} of the run: {name} differs");
        }
    }
}

fn refused(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn what_no_run_can_be_made_of_is_refused() {
    let desk = Desk::new();
    prepare(&desk);
    let folder = desk.folder.path();
    let with = |argument: &str| {
        let mut command = train(&desk, "run", &[]);
        command.arg(argument);
        command
    };
    for (argument, flag) in [
        ("--adam-beta1=NaN", "--adam-beta1"),
        ("--max-grad-norm=-1", "--max-grad-norm"),
        ("--loader-threads=0", "--loader-threads"),
        ("--kl-weight=-1", "--kl-weight"),
        ("--resolution=15", "--resolution"),
    ] {
        refused(&mut with(argument), &[flag]);
    }
    let mut nan = Command::new(env!("CARGO_BIN_EXE_nadir"));
    nan.current_dir(folder).args(["train", "vae", "--train-data", "pictures", "-o", "run"]);
    refused(nan.arg("--learning-rate=NaN"), &["--learning-rate", "NaN"]);

    // A checkpoint of another model, of a newer format, half deleted.
    assert_eq!(train(&desk, "run", &[]).status().unwrap().code(), Some(0));
    fs::write(folder.join("config.json"), config(16).to_string()).unwrap();
    refused(&mut train(&desk, "run", &[]), &["another model", "checkpoint-10"]);
    fs::write(folder.join("config.json"), config(8).to_string()).unwrap();
    let state = folder.join("run/checkpoint-10/state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    refused(&mut train(&desk, "run", &[]), &["state.json", "format", "another version"]);
    fs::write(&state, text).unwrap();
    fs::remove_file(folder.join("run/checkpoint-10/state.safetensors")).unwrap();
    refused(&mut train(&desk, "run", &[]), &["state.safetensors"]);
}

#[test]
fn a_run_goes_on_where_a_checkpoint_cannot_be_written() {
    let desk = Desk::new();
    prepare(&desk);
    let folder = desk.folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    // Where the folder of a checkpoint should be.
    fs::write(folder.join("run/checkpoint-5"), "").unwrap();
    let output = train(&desk, "run", &[]).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(error.contains("not saved") && error.contains("checkpoint-5"), "{error}");
    for step in [9, 10] {
        let files = ["state.json", "state.safetensors"];
        let checkpoint = folder.join(format!("run/checkpoint-{step}"));
        assert!(files.iter().all(|name| checkpoint.join(name).is_file()), "{step}");
    }
}
