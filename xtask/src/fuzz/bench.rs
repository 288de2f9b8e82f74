//! The files that are damaged, and the programs that read them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::limits::{self, Outcome};
use super::mutate::{self, Rng};
use super::png;
use crate::process::{cargo, root, run as run_program, target_dir};

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Configurations,
    Weights,
    Pictures,
    Replay,
    Ptx,
}

pub const KINDS: [Kind; 5] =
    [Kind::Configurations, Kind::Weights, Kind::Pictures, Kind::Replay, Kind::Ptx];

/// The model that ships: its folders, and the files in them that are damaged.
const MODEL: &str = "weights/eurosat-64";
const PARTS: [&str; 6] = ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"];
const CONFIGURATIONS: [&str; 9] = [
    "model_index.json",
    "nadir.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
];
const WEIGHTS: [&str; 3] = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Pictures in other formats than nadir's own: 48x40 pixels of a gradient.
const PICTURES: [(&str, &[u8]); 4] = [
    ("picture.jpg", include_bytes!("samples/picture.jpg")),
    ("picture.webp", include_bytes!("samples/picture.webp")),
    ("picture.bmp", include_bytes!("samples/picture.bmp")),
    ("picture.tif", include_bytes!("samples/picture.tif")),
];

/// A picture that nadir drew, and what it is called once it is damaged.
const OWN: &str = "own.png";
const DAMAGED: &str = "picture.png";

/// Kernels by nvcc.
const PTX: &str = "sample.ptx";

/// A file of a case: its name in the model or in the bench's folder, and what is in it.
#[derive(Clone)]
pub struct Sample {
    pub name: String,
    pub content: Vec<u8>,
}

/// A folder with all files of a case, and the programs.
pub struct Bench {
    folder: PathBuf,
    nadir: PathBuf,
    ptx: PathBuf,
}

impl Kind {
    /// Damages a file of this kind.
    pub fn damage(self, rng: &mut Rng, Sample { name, content }: &mut Sample) {
        match self {
            Self::Configurations | Self::Ptx => mutate::text(rng, content),
            Self::Weights => weights(rng, content),
            Self::Pictures | Self::Replay if name.ends_with("png") => png::damage(rng, content),
            Self::Pictures | Self::Replay => mutate::bytes(rng, content),
        }
    }

    /// What a refusal may name: the file, another that the file does not go with, or the setting of a picture.
    pub fn names(self, file: &str) -> Vec<String> {
        let file = file.to_owned();
        match self {
            Self::Configurations | Self::Weights => vec![file, "/model".into(), "error: --".into()],
            Self::Pictures | Self::Ptx => vec![file],
            Self::Replay => vec![file, "error: --".into()],
        }
    }
}

/// Damages the header of a safetensors file, its data, or its length.
fn weights(rng: &mut Rng, file: &mut Vec<u8>) {
    let length = file.first_chunk().map_or(0, |&length| u64::from_le_bytes(length)) as usize;
    match rng.below(8) {
        0..4 => {
            let data = file.split_off(8 + length);
            let mut header = file.split_off(8);
            mutate::text(rng, &mut header);
            *file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header);
            file.extend(data);
        }
        4 => {
            let mut prefix = file[..8].to_vec();
            mutate::bytes(rng, &mut prefix);
            file.splice(..8, prefix);
        }
        5 => mutate::bytes(rng, file),
        _ => {
            // Numbers that are none, none that are small, and a few flipped bits.
            let from = 8 + length + rng.below(file.len() - 8 - length);
            let stretch = (1 << rng.below(20)).min(file.len() - from);
            let data = &mut file[from..from + stretch];
            match rng.below(3) {
                0 => data.fill(*rng.pick(&[0, 0x7f, 0xff, 0x7b])),
                1 => data.iter_mut().for_each(|byte| *byte = rng.bits() as u8),
                _ => (0..8).for_each(|_| data[rng.below(stretch)] ^= 1 << rng.below(8)),
            }
        }
    }
}

impl Bench {
    /// Builds the programs and lays out what they read.
    pub fn new() -> Result<Self> {
        run_program(cargo().args(["build", "--quiet", "--bin", "nadir"]))?;
        run_program(cargo().args(["build", "--quiet", "--package", "vgpu", "--example", "run"]))?;
        let target = target_dir()?;
        let folder = target.join("fuzz");
        let bench = Self { nadir: folder.join("nadir"), ptx: folder.join("run"), folder };
        if bench.folder.exists() {
            fs::remove_dir_all(&bench.folder)?;
        }
        fs::create_dir_all(bench.faults())?;
        // Copies: others may build meanwhile.
        fs::copy(target.join("debug/nadir"), &bench.nadir)?;
        fs::copy(target.join("debug/examples/run"), &bench.ptx)?;
        for part in PARTS {
            let (from, to) = (root().join(MODEL).join(part), bench.model().join(part));
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(&from)? {
                let entry = entry?;
                if entry.path().is_file() {
                    symlink(entry.path(), to.join(entry.file_name()))?;
                }
            }
        }
        let outcome = bench.draw(&["-o", OWN])?;
        ensure!(outcome.code == Some(0), "cannot draw a picture: {}", outcome.stderr);
        Ok(bench)
    }

    /// Where the files of faults are kept.
    pub fn faults(&self) -> PathBuf {
        self.folder.join("faults")
    }

    fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    /// The names of the files of a kind.
    pub fn names(kind: Kind) -> Vec<&'static str> {
        match kind {
            Kind::Configurations => CONFIGURATIONS.to_vec(),
            Kind::Weights => WEIGHTS.to_vec(),
            Kind::Pictures => PICTURES.iter().map(|(name, _)| *name).chain([DAMAGED]).collect(),
            Kind::Replay => vec![DAMAGED],
            Kind::Ptx => vec![PTX],
        }
    }

    /// An undamaged file.
    pub fn original(&self, name: &str) -> Result<Sample> {
        let path = match name {
            DAMAGED => self.folder.join(OWN),
            PTX => root().join("vgpu/tests/golden").join(PTX),
            _ => root().join(MODEL).join(name),
        };
        let content = match PICTURES.iter().find(|(picture, _)| *picture == name) {
            Some((_, content)) => content.to_vec(),
            None => fs::read(&path).with_context(|| path.display().to_string())?,
        };
        Ok(Sample { name: name.to_owned(), content })
    }

    /// Has the program read a file, which lies in its place for so long.
    pub fn read(&self, kind: Kind, file: &Sample) -> Result<Outcome> {
        let in_model = matches!(kind, Kind::Configurations | Kind::Weights);
        let path = if in_model { self.model() } else { self.folder.clone() }.join(&file.name);
        if path.exists() {
            fs::remove_file(&path)?;
        }
        fs::write(&path, &file.content)?;
        let outcome = match kind {
            Kind::Configurations | Kind::Weights => self.draw(&["-o", "drawn.png"]),
            Kind::Pictures => {
                self.draw(&["-i", &file.name, "--strength", "0.5", "-o", "drawn.png"])
            }
            Kind::Replay => self.run(&self.nadir, &["replay", &file.name, "--dry-run"]),
            Kind::Ptx => self.run(&self.ptx, &[&file.name]),
        };
        fs::remove_file(&path)?;
        if in_model {
            symlink(root().join(MODEL).join(&file.name), &path)?;
        }
        outcome
    }

    /// Keeps what made a fault.
    pub fn keep(&self, case: u64, file: &Sample, outcome: &Outcome) -> Result<()> {
        let name = format!("{case}-{}", file.name.replace('/', "-"));
        fs::write(self.faults().join(format!("{name}.stderr")), &outcome.stderr)?;
        Ok(fs::write(self.faults().join(name), &file.content)?)
    }

    /// A picture in two steps by the model, which may be damaged.
    fn draw(&self, more: &[&str]) -> Result<Outcome> {
        let model = self.model();
        let model = model.to_str().context("a path in UTF-8")?;
        let args = ["generate", "a river", "-m", model, "-s", "1", "--steps", "2", "-t", "1"];
        let size = ["-W", "64", "-H", "64", "--device", "cpu", "--quiet"];
        self.run(&self.nadir, &[&args[..], &size, more].concat())
    }

    fn run(&self, program: &Path, args: &[&str]) -> Result<Outcome> {
        limits::run(program, args, &self.folder)
    }
}
