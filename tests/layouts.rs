//! Folders as the projects publish them (`golden/layouts.py`), in a hub cache and under the commands that their pages lead to: each
//! is drawn with, or refused by its class with what works instead. `docs/models.md` has every command.

#[allow(dead_code, reason = "nothing is compared with")]
mod golden;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::drawn::Drawn;
use nadir::io::TensorSource;
use nadir::io::safetensors::save;
use nadir::tensor::{DType, Tensor};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

/// What `golden/layouts.py` writes.
#[derive(Deserialize)]
struct Layouts {
    repositories: BTreeMap<String, Repository>,
    commands: Vec<Case>,
}

#[derive(Deserialize)]
struct Repository {
    /// What a file holds; `{"copy": PATH}` for one of this repository's.
    files: BTreeMap<String, Value>,
    /// Names and shapes in a file of weights.
    weights: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
}

#[derive(Deserialize)]
struct Case {
    what: String,
    command: String,
    /// What the refusal says; empty where a picture is drawn.
    refused: Vec<String>,
}

fn layouts() -> Layouts {
    let file = fs::File::open(golden::path("layouts.json.gz")).unwrap();
    serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap()
}

impl Repository {
    fn write(&self, to: &Path) {
        let place = |path: &str| {
            let path = to.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        for (path, content) in &self.files {
            let content = match content["copy"].as_str() {
                Some(from) => fs::read_to_string(golden::root().join(from)).unwrap(),
                None => format!("{content:#}"),
            };
            fs::write(place(path), content).unwrap();
        }
        for (path, shapes) in &self.weights {
            let dtype = if path.contains(".fp16.") { DType::F16 } else { DType::F32 };
            let (scales, drawn): (BTreeMap<_, _>, _) =
                shapes.clone().into_iter().partition(|(_, shape)| shape.is_empty());
            let drawn = Drawn::of_shapes(drawn, dtype);
            let scale = |key: String| (key, Tensor::from_vec(vec![4f32], []).unwrap());
            let tensors = drawn.names().into_iter().map(|key| {
                let tensor = drawn.read(&key).unwrap();
                (key, tensor)
            });
            let tensors: Vec<_> = scales.into_keys().map(scale).chain(tensors).collect();
            save(&place(path), &tensors, &BTreeMap::new()).unwrap();
        }
    }
}

/// A folder to work in, with all repositories in a hub cache or, where they have no owner, beside it.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new(layouts: &Layouts) -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        for (name, repository) in &layouts.repositories {
            if !name.contains('/') || name.starts_with("models/") {
                repository.write(&desk.path(name));
                continue;
            }
            let cached = desk.path(&format!("hub/models--{}", name.replace('/', "--")));
            repository.write(&cached.join("snapshots/0"));
            fs::create_dir_all(cached.join("refs")).unwrap();
            fs::write(cached.join("refs/main"), "0").unwrap();
        }
        let picture = |name: &str, level: &dyn Fn(u32, u32) -> [u8; 3]| {
            let picture = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb(level(x, y)));
            picture.save(desk.path(name)).unwrap();
        };
        picture("chip.png", &|x, y| [(4 * x) as u8, (3 * y) as u8, 60]);
        picture("osm.png", &|x, y| {
            if (x / 9 + y / 7) % 2 == 0 { [242, 239, 233] } else { [170, 211, 223] }
        });
        let mask = image::GrayImage::from_fn(64, 64, |x, _| image::Luma([255 * u8::from(x > 20)]));
        mask.save(desk.path("mask.png")).unwrap();
        fs::write(desk.path("flair.json"), r##"{"0": "#db0e9a", "255": "#46e483"}"##).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
        command.args(args).current_dir(self.folder.path()).env_remove("NADIR_WEIGHTS");
        command.env("HF_HUB_CACHE", self.path("hub")).output().unwrap()
    }
}

/// The words of a command, of which those in quotes are one.
fn words(command: &str) -> Vec<String> {
    let quoted = command.split('"').enumerate();
    let words = quoted.flat_map(|(i, part)| match i % 2 {
        1 => vec![part.to_owned()],
        _ => part.split_whitespace().map(str::to_owned).collect(),
    });
    words.skip(1).collect()
}

#[test]
fn every_project_is_drawn_with_or_refused_by_name() {
    let layouts = layouts();
    let desk = Desk::new(&layouts);
    let mut failures = Vec::new();
    let mut drawn = BTreeMap::new();
    for (i, Case { what, command, refused }) in layouts.commands.iter().enumerate() {
        let mut args = words(command);
        if !args.iter().any(|arg| arg == "--steps") {
            args.push("--steps=2".to_owned());
        }
        let file = format!("{i}.png");
        args.extend(["-s7".to_owned(), "-o".to_owned(), file.clone()]);
        let output = desk.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let right = match (refused.is_empty(), image::open(desk.path(&file))) {
            (true, Ok(picture)) => {
                drawn.insert(picture.to_rgb8().into_raw(), what);
                output.status.success() && (picture.width(), picture.height()) == (64, 64)
            }
            (false, Err(_)) => {
                let code = matches!(output.status.code(), Some(1 | 2));
                code && refused.iter().all(|word| said.contains(word)) && !said.contains("panicked")
            }
            _ => false,
        };
        println!("{what}: {}", said.lines().last().unwrap_or_default());
        if !right {
            failures.push(format!("{what}: {command}\n{said}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // Each by another model, or in another way.
    let pictures = layouts.commands.iter().filter(|case| case.refused.is_empty()).count();
    assert!(drawn.len() >= pictures - 2, "{} of {pictures} pictures differ", drawn.len());
}

#[test]
fn the_documentation_has_every_command() {
    let text = fs::read_to_string(golden::root().join("docs/models.md")).unwrap();
    for Case { what, command, .. } in layouts().commands {
        assert!(text.contains(&command), "{what}: no {command}");
    }
}

#[test]
fn what_is_not_in_the_cache_is_fetched_first() {
    let desk = Desk { folder: tempfile::tempdir().unwrap() };
    for flag in ["--controlnet", "--vae", "--lora"] {
        let output = desk.run(&["generate", "a", flag, "nobody/nothing", "--steps=1"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag}: {said}");
        assert!(said.contains("hf download nobody/nothing"), "{flag}: {said}");
    }
    // What looks like a path of this folder is missed as one.
    fs::create_dir(desk.path("models")).unwrap();
    let output = desk.run(&["generate", "a", "--vae=models/nothing", "--steps=1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("models/nothing/"), "{said}");
    assert!(!said.contains("hf download"), "{said}");
}

/// A training leaves several: none of them is the one.
#[test]
fn of_several_checkpoints_one_is_chosen_by_the_user() {
    let layouts = layouts();
    let desk = Desk { folder: tempfile::tempdir().unwrap() };
    let name = "finetune_sd21_sn-satlas-fmow_snr5_md7norm_bs64";
    layouts.repositories[name].write(&desk.path(name));
    let made = desk.path(name).join("checkpoint-200000/unet");
    fs::create_dir_all(&made).unwrap();
    let output = desk.run(&["generate", "a", "-m", name, "--steps=1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let named = ["checkpoint-150000/unet", "checkpoint-200000/unet", "move it to"];
    assert!(!output.status.success() && named.iter().all(|word| said.contains(word)), "{said}");
}
