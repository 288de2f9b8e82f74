//! What a run keeps on disk so that it can go on: `checkpoint-STEP/` with `state.safetensors` (weights, moments,
//! averages) and `state.json` (where the run stands, and its settings).
//!
//! Each file is complete or absent, and `state.json` comes last when a checkpoint is written and goes first when it is
//! removed: a folder without it is no checkpoint, whenever the process was killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::precision::LossScaler;
use super::settings::Settings;
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::atomic;
use crate::io::safetensors::{SafeTensors, save};
use crate::tensor::{DType, Tensor};

/// The version of what is written here.
const FORMAT: u32 = 1;
const PREFIX: &str = "checkpoint-";
const STATE: &str = "state.json";
const TENSORS: &str = "state.safetensors";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the form.
    pub format: u32,
    /// Version of nadir that wrote it.
    pub version: String,
    /// The task: `vae`, `diffusion`, ...
    pub task: String,
    /// Steps taken.
    pub step: u64,
    /// Those of them that left the weights as they were, since a gradient overflowed.
    #[serde(default)]
    pub skipped: u64,
    /// Pictures seen.
    pub pictures: u64,
    /// The run's settings.
    pub settings: Settings,
    /// What the tensors mean besides, by the names of the task's settings.
    #[serde(default)]
    pub particulars: BTreeMap<String, String>,
    /// What it has made of its losses.
    #[serde(default)]
    pub watch: Watch,
    /// What losses are scaled by, in fp16.
    #[serde(default)]
    pub scaler: Option<LossScaler>,
}

impl State {
    /// That of a run by this build which begins.
    pub fn new(task: &str, particulars: BTreeMap<String, String>, settings: &Settings) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task: task.to_owned(),
            step: 0,
            skipped: 0,
            pictures: 0,
            settings: settings.clone(),
            particulars,
            watch: Watch::default(),
            scaler: LossScaler::new(settings.mixed_precision),
        }
    }
}

/// Which checkpoint to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The one with most steps in the run's folder; none there: the run begins.
    Latest,
    /// This one.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(if text == "latest" { Self::Latest } else { Self::From(text.into()) })
    }
}

/// A checkpoint that was opened.
pub struct Checkpoint {
    path: PathBuf,
    state: State,
    tensors: SafeTensors,
}

impl Checkpoint {
    /// Opens what [`write()`] wrote.
    ///
    /// # Errors
    /// A file is missing or damaged, or of a newer format.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.join(STATE);
        let text = crate::io::read_bounded(&file, 1 << 20)?;
        let advice = "Resume from another checkpoint.";
        let json: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|e| Error::file(&file, "content", "JSON", e.to_string(), advice))?;
        let format = json.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if format != u64::from(FORMAT) {
            let advice = "It was written by another version of nadir: use that one.";
            let (expected, found) = (FORMAT.to_string(), format.to_string());
            return Err(Error::file(&file, "format", expected, found, advice));
        }
        let state = serde_json::from_value(json).map_err(|e| {
            Error::file(&file, "content", "the state of a run", e.to_string(), advice)
        })?;
        let tensors = SafeTensors::open(path.join(TENSORS))?;
        Ok(Self { path: path.to_path_buf(), state, tensors })
    }

    /// The checkpoint to go on from; `None`: there is none yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn find(folder: &Path, resume: &Resume) -> Result<Option<Self>> {
        match resume {
            Resume::From(path) => Self::open(path).map(Some),
            Resume::Latest => all(folder).last().map(|(_, path)| Self::open(path)).transpose(),
        }
    }

    /// Where the run stood.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// It is not there, or of another shape or dtype: the checkpoint is of another model.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let expected = format!("f32 {shape:?}");
        let found = match self.tensors.info(name) {
            Some(info) if info.shape == shape && info.dtype == DType::F32 => {
                return self.tensors.read(name);
            }
            Some(info) => format!("{} {:?}", info.dtype, info.shape),
            None => "no such tensor".to_owned(),
        };
        let advice = "The checkpoint is of another model or of other settings.";
        let what = format!("tensor {name:?}");
        Err(Error::file(self.path.join(TENSORS), what, expected, found, advice))
    }
}

/// Writes a checkpoint into the folder of a run, and removes the oldest beyond `limit`. Its path.
///
/// # Errors
/// The disk is full, or the folder cannot be written to. Those before are as they were.
pub fn write(
    folder: &Path,
    state: &State,
    tensors: &[(String, Tensor)],
    limit: Option<usize>,
) -> Result<PathBuf> {
    let path = folder.join(format!("{PREFIX}{}", state.step));
    std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
    atomic::remove_abandoned(&path);
    // An older one of the same step must not speak for these tensors.
    let json = path.join(STATE);
    if json.exists() {
        std::fs::remove_file(&json).map_err(|e| Error::io(&json, e))?;
    }
    save(&path.join(TENSORS), tensors, &BTreeMap::new())?;
    let text = serde_json::to_string_pretty(state)
        .map_err(|e| Error::io(&json, std::io::Error::other(e)))?;
    atomic::write(&json, |out| out.write_all(text.as_bytes()))?;
    if let Some(limit) = limit {
        let all = all(folder);
        for (_, old) in &all[..all.len().saturating_sub(limit)] {
            remove(old)?;
        }
    }
    Ok(path)
}

/// The checkpoints in a folder, by ascending step.
pub fn all(folder: &Path) -> Vec<(u64, PathBuf)> {
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(STATE).is_file())
        .filter_map(|path| Some((step(&path)?, path)))
        .collect();
    found.sort();
    found
}

fn remove(path: &Path) -> Result<()> {
    for name in [STATE, TENSORS] {
        let file = path.join(name);
        std::fs::remove_file(&file).map_err(|e| Error::io(&file, e))?;
    }
    // Something of the user's may be in there.
    let _ = std::fs::remove_dir(path);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    fn tensors(value: f64) -> Vec<(String, Tensor)> {
        let tensor = Tensor::full([2, 3], value, DType::F32, Device::Cpu).unwrap();
        vec![("weight.a".to_owned(), tensor)]
    }

    fn written(folder: &Path, step: u64) -> PathBuf {
        let begun = State::new("test", BTreeMap::new(), &Settings::default());
        let state = State { step, pictures: 8 * step, ..begun };
        write(folder, &state, &tensors(step as f64), Some(2)).unwrap()
    }

    #[test]
    fn the_latest_ones_are_kept_and_found() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(Checkpoint::find(folder, &Resume::Latest).unwrap().is_none());
        for step in [9, 10, 101] {
            written(folder, step);
        }
        let steps: Vec<u64> = all(folder).into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [10, 101]);
        assert!(!folder.join("checkpoint-9").exists());
        let latest = Checkpoint::find(folder, &Resume::Latest).unwrap().unwrap();
        assert_eq!((latest.state().step, latest.state().pictures), (101, 808));
        let tensor = latest.read("weight.a", &[2, 3]).unwrap();
        assert_eq!(tensor.to_vec::<f32>().unwrap(), [101.0; 6]);
    }

    #[test]
    fn a_checkpoint_that_was_not_finished_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        written(folder, 1);
        let half = written(folder, 2);
        std::fs::remove_file(half.join(STATE)).unwrap();
        let latest = Checkpoint::find(folder, &Resume::Latest).unwrap().unwrap();
        assert_eq!(latest.state().step, 1);
    }

    #[test]
    fn what_cannot_be_gone_on_from_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), 3);
        let checkpoint = Checkpoint::open(&path).unwrap();
        for (name, shape) in [("weight.b", &[2, 3][..]), ("weight.a", &[3, 2])] {
            let error = checkpoint.read(name, shape).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("another model"), "{error}");
        }
        // Half deleted, of a newer format, no JSON.
        let error = |change: &dyn Fn()| {
            change();
            Checkpoint::open(&path).err().unwrap().to_string()
        };
        let json = path.join(STATE);
        let newer = || std::fs::write(&json, r#"{"format": 2}"#).unwrap();
        assert!(error(&newer).contains("another version"));
        assert!(error(&|| std::fs::write(&json, "{").unwrap()).contains("JSON"));
        written(folder.path(), 3);
        let deleted = || std::fs::remove_file(path.join(TENSORS)).unwrap();
        assert!(error(&deleted).contains(TENSORS));
    }
}
