//! The command line as a user meets it: the real binary, the model that ships, few steps.

mod adversity;
mod canvas;
#[path = "../golden/clip.rs"]
mod clip;
mod convert;
mod corpus;
mod data;
mod deadline;
mod evaluate;
#[path = "../golden/gpu.rs"]
mod gpu;
mod interrupted_training;
mod language;
mod lora;
mod manifest;
mod metrics;
#[path = "../golden/original.rs"]
mod original;
mod pairs;
mod papers;
mod prompts;
mod rasters;
mod scenes;
mod synthesize;
mod train;
mod train_lm;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Enough to go through every part of the pipeline.
const STEPS: &str = "--steps=2";

/// A folder to work in, and the program to run in it.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
        command.args(args).current_dir(self.folder.path()).env_remove("NADIR_WEIGHTS");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what should succeed; the paths that it printed.
    fn files(&self, args: &[&str]) -> Vec<PathBuf> {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| self.path(line)).collect()
    }

    /// Runs what should succeed with one picture; its pixels.
    fn picture(&self, args: &[&str]) -> image::RgbImage {
        match self.files(args).as_slice() {
            [file] => read(file),
            files => panic!("{args:?}: {files:?}"),
        }
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn read(file: &Path) -> image::RgbImage {
    image::open(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).into_rgb8()
}

fn weights() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64")
}

#[test]
fn a_prompt_gives_a_picture() {
    let desk = Desk::new();
    let output = desk.run(&["generate", "a satellite image of a river", "-s", "7", STEPS]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "nadir-7.png\n");
    assert_eq!(desk.entries(), ["nadir-7.png"]);
    let picture = read(&desk.path("nadir-7.png"));
    assert_eq!(picture.dimensions(), (64, 64));
    assert!(picture.pixels().any(|p| p != picture.get_pixel(0, 0)), "one flat colour");

    let bytes = fs::read(desk.path("nadir-7.png")).unwrap();
    let info = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
    let parameters = &info.info().uncompressed_latin1_text;
    let parameters = parameters.iter().find(|chunk| chunk.keyword == "parameters").unwrap();
    assert!(parameters.text.starts_with("a satellite image of a river\n"), "{}", parameters.text);
    for field in ["Steps: 2", "Seed: 7", "Size: 64x64", "CFG scale: 4"] {
        assert!(parameters.text.contains(field), "{field} in {}", parameters.text);
    }
}

#[test]
fn names_that_are_taken_are_left_alone_unless_they_were_given() {
    let desk = Desk::new();
    let same = ["generate", "a forest", "-s", "1", STEPS];
    desk.files(&same);
    assert_eq!(desk.files(&same), [desk.path("nadir-1-2.png")]);
    for _ in 0..2 {
        assert_eq!(desk.files(&[&same[..], &["-o", "x.png"]].concat()), [desk.path("x.png")]);
    }
    assert_eq!(desk.entries(), ["nadir-1-2.png", "nadir-1.png", "x.png"]);
}

#[test]
fn a_picture_does_not_depend_on_its_company() {
    let desk = Desk::new();
    let base = ["generate", "--prompt=a sea or lake", "--num_inference_steps", "2", "--seed=40"];
    let all = desk.files(&[&base[..], &["-b", "3", "--threads=1"]].concat());
    assert_eq!(all, ["nadir-40.png", "nadir-41.png", "nadir-42.png"].map(|name| desk.path(name)));
    let together = [&base[..], &["-b3", "--batch", "2", "-o", "x.png", "--threads=2"]].concat();
    let together = desk.files(&together);
    assert_eq!(together, ["x-40.png", "x-41.png", "x-42.png"].map(|name| desk.path(name)));
    let alone = desk.picture(&["generate", "a sea or lake", "-s42", "-o=alone.png", STEPS]);
    for (one, other) in all.iter().zip(&together) {
        assert_eq!(read(one), read(other));
    }
    assert_eq!(read(&all[2]), alone);
    assert_ne!(read(&all[0]), read(&all[1]));
}

#[test]
fn a_seed_that_is_not_given_is_told() {
    let desk = Desk::new();
    let mut seeds = Vec::new();
    for seed in [&[][..], &["--seed", "-1"]] {
        let output = desk.run(&[&["generate", "", STEPS], seed].concat());
        let file = text(&output.stdout);
        let seed = file.trim().strip_prefix("nadir-").unwrap().strip_suffix(".png").unwrap();
        assert!(text(&output.stderr).contains(&format!("seed {seed}")), "{output:?}");
        seeds.push(seed.to_owned());
    }
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn long_prompts_are_cut_with_a_warning_or_used_whole() {
    let desk = Desk::new();
    let long = "a satellite image of a river ".repeat(20) + "and a forest";
    let short = "a satellite image of a river ".repeat(20);
    let run = |prompt: &str, more: &[&str]| {
        let output =
            desk.run(&[&["generate", prompt, "-q", "-s1", "-o=x.png", STEPS], more].concat());
        assert!(output.status.success(), "{output:?}");
        (read(&desk.path("x.png")), text(&output.stderr))
    };
    let (cut, warning) = run(&long, &[]);
    assert!(warning.contains("and a forest") && warning.contains("--long-prompts"), "{warning}");
    assert_eq!(cut, run(&short, &[]).0, "what is left out has no effect");
    let (whole, silence) = run(&long, &["--long-prompts", "chunk"]);
    assert_eq!(silence, "");
    assert_ne!(cut, whole);
    assert_ne!(whole, run(&short, &["--long-prompts", "chunk"]).0);
}

#[test]
fn sixteen_bits_draw_nearly_the_same_picture() {
    let desk = Desk::new();
    let draw = |dtype: &str| desk.picture(&["generate", "a river", "-s1", "--dtype", dtype, STEPS]);
    let exact = draw("f32");
    for dtype in ["bf16", "f16"] {
        let other = draw(dtype);
        let error = exact.iter().zip(other.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        let mean = error.sum::<f64>() / exact.len() as f64;
        // 30 dB: far above the error of bf16, far below that of another picture. The pipelines' own
        // tests hold 16 bits to the error of the reference.
        assert!(mean <= 255.0 * 255.0 * 1e-3, "{dtype}: mean squared error {mean}");
    }
}

#[test]
fn replay_gives_the_same_bits() {
    let desk = Desk::new();
    let settings = "-s 3 -n haze --cfg-scale 4.3 --eta 0.7 --guidance-rescale 0.3 -W 72 -H 56 --noise philox:80x16";
    let settings: Vec<_> = settings.split(' ').collect();
    let first = desk.picture(&[&["generate", "(dense:1.2) forest", STEPS], &settings[..]].concat());
    assert_eq!(first.dimensions(), (72, 56));
    assert_eq!(first, desk.picture(&["replay", "nadir-3.png"]));
    assert_eq!(first, desk.picture(&["replay", "nadir-3-2.png", "-o", "again.png"]));
    assert_eq!(
        fs::read(desk.path("nadir-3.png")).unwrap(),
        fs::read(desk.path("again.png")).unwrap(),
        "the settings of a replayed picture are those of the first"
    );
}

#[test]
fn a_recipe_that_was_tampered_with_is_refused() {
    let desk = Desk::new();
    desk.files(&["generate", "a river", "-o", "x.png", STEPS]);
    let recipe = nadir::io::png::read_replay(&desk.path("x.png")).unwrap();
    let cases: [(&str, serde_json::Value, &str); 6] = [
        ("prompt", "a\0river".into(), "NUL"),
        ("num_images", u64::MAX.into(), "--num-images"),
        ("width", 1_000_000.into(), "--width"),
        ("num_inference_steps", "two".into(), "x.png"),
        ("of_a_later_version", true.into(), "of_a_later_version"),
        ("mask_image", serde_json::json!({ "path": "x.png" }), "--init-image"),
    ];
    for (field, value, message) in cases {
        let mut recipe = recipe.clone();
        recipe[field] = value;
        let texts = [(nadir::io::png::REPLAY, recipe.to_string())];
        let texts = texts.each_ref().map(|(keyword, text)| (*keyword, text.as_str()));
        nadir::io::png::write(&desk.path("x.png"), &image::RgbImage::new(1, 1), &texts).unwrap();
        let output = desk.run(&["replay", "x.png", "-o", "y.png"]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{field}: {error}");
        assert!(error.contains(message), "{field}: {error:?} does not say {message:?}");
        assert_eq!(desk.entries(), ["x.png"], "{field}");
    }
}

#[test]
fn a_grid_holds_every_picture_and_can_be_replayed() {
    let desk = Desk::new();
    let files = desk.files(&["generate", "a highway", "-b", "3", "-s", "5", "--grid", STEPS]);
    let grid = read(&desk.path("nadir-5-grid.png"));
    assert_eq!(files.len(), 4);
    assert_eq!(grid.dimensions(), (128, 128));
    let tile = image::imageops::crop_imm(&grid, 64, 0, 64, 64).to_image();
    assert_eq!(tile, read(&desk.path("nadir-6.png")));
    assert_eq!(grid, desk.picture(&["replay", "nadir-5-grid.png", "-o", "again.png"]));
}

#[test]
fn a_picture_can_start_from_another() {
    let desk = Desk::new();
    let start = desk.picture(&["generate", "a forest", "-s1", "-o", "start.png", STEPS]);
    let mask =
        image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if x < 32 { 0 } else { 255 }]));
    mask.save(desk.path("mask.png")).unwrap();
    let args = ["generate", "a river", "--init-image=start.png", "-s", "2", "--steps=4"];
    let changed = desk.picture(&[&args[..], &["--strength", "0.5", "-o", "changed.png"]].concat());
    assert_ne!(changed, start);
    assert_eq!(changed, desk.picture(&["replay", "changed.png"]));

    let painted = desk.picture(&[&args[..], &["--mask-image=mask.png", "-o=painted.png"]].concat());
    let difference = |from: u32, to: u32| -> f64 {
        let pixels = (from..to).flat_map(|x| (0..64).map(move |y| (x, y)));
        pixels
            .map(|(x, y)| f64::from(painted.get_pixel(x, y)[0].abs_diff(start.get_pixel(x, y)[0])))
            .sum()
    };
    assert!(difference(0, 24) < difference(40, 64), "the masked half should change less");

    // The picture it started from is part of what the result depends on.
    fs::copy(desk.path("changed.png"), desk.path("start.png")).unwrap();
    let output = desk.run(&["replay", "changed.png", "-o", "other.png"]);
    assert!(text(&output.stderr).contains("warning: start.png has changed"), "{output:?}");
}

#[test]
fn what_cannot_be_is_said_and_leaves_nothing() {
    let desk = Desk::new();
    fs::write(desk.path("text.png"), "not a picture").unwrap();
    fs::create_dir(desk.path("empty")).unwrap();
    let before = desk.entries();
    let cases: &[(&[&str], &str)] = &[
        (&["--width", "0"], "--width"),
        (&["--height", "0"], "--height"),
        (&["--width", "63"], "multiple"),
        (&["--height", "1000000"], "--height"),
        (&["--width", "-8"], "--width"),
        (&["--steps", "0"], "--steps"),
        (&["--steps", "2.5"], "--steps"),
        (&["--num-images", "0"], "--num-images"),
        (&["--batch", "0"], "--batch"),
        (&["--threads", "0"], "--threads"),
        (&["--seed", "x"], "2^64"),
        (&["--seed", "18446744073709551615", "-b", "2"], "--seed"),
        (&["--cfg-scale", "nan"], "--cfg-scale"),
        (&["--cfg-scale", "-1"], "--cfg-scale"),
        (&["--eta", "1.5"], "--eta"),
        (&["--guidance-rescale", "inf"], "--guidance-rescale"),
        (&["--clip-skip", "99"], "clip"),
        (&["--scheduler", "magic"], "euler"),
        (&["--dtype", "f8"], "bf16"),
        (&["--dtype", "f64"], "bf16"),
        (&["--device", "tpu"], "cuda"),
        (&["--noise", "pink"], "philox"),
        (&["--long-prompts", "x"], "chunk"),
        (&["--model", "no/such/model"], "no/such/model"),
        (&["--model", "nobody/nothing"], "hf download nobody/nothing"),
        (&["--model", "empty"], "model_index.json"),
        (&["--model", "text.png"], "folder"),
        (&["--init-image", "none.png"], "none.png"),
        (&["--init-image", "text.png"], "text.png"),
        (&["--init-image", "empty"], "empty"),
        (&["--strength", "0.5"], "--init-image"),
        (&["--mask-image", "text.png"], "--init-image"),
        (&["--output", "none/"], "mkdir"),
        (&["--output", "none/x.png"], "mkdir"),
        (&["--output", "text.png/x.png"], "folder"),
        (&["--output", "x.jpg"], ".png"),
        (&["--prompt", "another"], "--prompt"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (args, message) in cases {
        let output = desk.run(&[&["generate", "a river", STEPS], *args].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains("error: "), "{args:?}: {error}");
        assert!(error.contains(message), "{args:?}: {error:?} does not say {message:?}");
        assert!(!error.contains("panic"), "{args:?}: {error}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
        assert_eq!(desk.entries(), before, "{args:?}");
    }
    for (args, message) in [
        (["replay", "none.png"], "none.png"),
        (["replay", "text.png"], "text.png"),
        (["generate", "-b2"], "PROMPT"),
    ] {
        let output = desk.run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(message), "{args:?}: {}", text(&output.stderr));
        assert_eq!(desk.entries(), before, "{args:?}");
    }
}

#[test]
#[cfg(unix)]
fn damaged_models_are_named() {
    use std::os::unix::fs::symlink;

    let unet = "unet/diffusion_pytorch_model.safetensors";
    let whole = fs::read(weights().join(unet)).unwrap();
    let config = |name: &str| fs::read_to_string(weights().join(name)).unwrap();
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let cases: &[(&str, Option<Vec<u8>>, &str)] = &[
        (unet, Some(whole[..whole.len() / 2].to_vec()), unet),
        (unet, Some(huge), unet),
        (unet, None, "unet"),
        ("model_index.json", Some(b"{".to_vec()), "model_index.json"),
        (
            "unet/config.json",
            Some(config("unet/config.json").replace("    128,", "    \"x\",").into()),
            "block_out_channels",
        ),
        (
            "unet/config.json",
            Some(config("unet/config.json").replace("    128,", "    64,").into()),
            "64",
        ),
        (
            "scheduler/scheduler_config.json",
            Some(
                config("scheduler/scheduler_config.json")
                    .replace("DDIMScheduler", "MagicScheduler")
                    .into(),
            ),
            "MagicScheduler",
        ),
        ("tokenizer/vocab.json", Some(b"[]".to_vec()), "tokenizer"),
        ("nadir.json", Some(b"{\"num_inference_steps\": \"many\"}".to_vec()), "nadir.json"),
    ];
    for (file, content, message) in cases {
        let desk = Desk::new();
        for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
            fs::create_dir_all(desk.path("model").join(part)).unwrap();
            for entry in fs::read_dir(weights().join(part)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    symlink(entry.path(), desk.path("model").join(part).join(entry.file_name()))
                        .unwrap();
                }
            }
        }
        let damaged = desk.path("model").join(file);
        fs::remove_file(&damaged).unwrap();
        if let Some(content) = content {
            fs::write(&damaged, content).unwrap();
        }
        let output = desk.run(&["generate", "a river", "-m", "model", "--steps=1"]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{file}: {error}");
        assert!(error.contains(message), "{file}: {error:?} does not say {message:?}");
        assert_eq!(desk.entries(), ["model"], "{file}");
    }
}

#[test]
#[cfg(unix)]
fn interruption_keeps_what_is_finished() {
    let desk = Desk::new();
    let mut child = desk
        .command(&["generate", "a pasture", "-b", "200", "-s", "0", STEPS])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut files = vec![lines.next().unwrap().unwrap()];
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    files.extend(lines.map(Result::unwrap));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(&format!("kept {} of 200", files.len())), "{output:?}");
    files.sort();
    assert_eq!(desk.entries(), files);
    for file in files {
        read(&desk.path(&file));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let desk = Desk::new();
    let output = desk.run(&["generate", "a river", STEPS, "-o", "/dev/full"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("/dev/full: output"), "{}", text(&output.stderr));
    assert!(desk.entries().is_empty());
}

#[test]
#[cfg(unix)]
fn models_are_found_in_the_hub_cache() {
    let desk = Desk::new();
    let model = desk.path("cache/models--nadir--eurosat-64");
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(model.join("snapshots")).unwrap();
    fs::write(model.join("refs/main"), "0123abc").unwrap();
    std::os::unix::fs::symlink(weights(), model.join("snapshots/0123abc")).unwrap();
    let run = |args: &[&str]| {
        let output = desk.command(args).env("HF_HUB_CACHE", desk.path("cache")).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        read(&desk.path(text(&output.stdout).trim()))
    };
    let settings = ["generate", "a river", STEPS, "-s=9"];
    let hub = run(&[&settings[..], &["-m", "nadir/eurosat-64"]].concat());
    assert_eq!(hub, run(&settings));
    assert_eq!(hub, run(&["replay", "nadir-9.png"]));
}

#[test]
fn the_doctor_reports() {
    let desk = Desk::new();
    let output = desk.run(&["doctor", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["model"]["error"].is_null(), "{report}");
    assert!(report["cpu"]["threads"].as_u64().unwrap() >= 1);
    assert!(report["cuda"]["choice"].is_string());
    assert!(text(&desk.run(&["doctor"]).stdout).contains("eurosat-64"));
}

#[test]
fn help_shows_examples() {
    let desk = Desk::new();
    for args in [&["--help"][..], &["generate", "--help"], &["replay", "-h"], &["doctor", "--help"]]
    {
        let output = desk.run(args);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("\n  nadir "), "{args:?}");
    }
}

#[test]
fn every_instruction_set_draws_the_same_picture() {
    let desk = Desk::new();
    let draw = |level: &str| {
        let args = ["generate", "a river", STEPS, "-s", "5", "-o", "x.png"];
        let output = desk.command(&args).env("NADIR_SIMD", level).output().unwrap();
        (output.status.code(), text(&output.stderr).to_owned())
    };
    let (code, error) = draw("mmx");
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("NADIR_SIMD") && error.contains("portable"), "{error}");

    let best = desk.picture(&["generate", "a river", STEPS, "-s", "5"]);
    assert_eq!(draw("portable").0, Some(0));
    // Sums in another order differ in their last bits, which moves an 8-bit level only where it is at the edge.
    let portable = read(&desk.path("x.png"));
    let moved = best.as_raw().iter().zip(portable.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(moved.is_some_and(|moved| moved <= 1), "{moved:?}");
}
