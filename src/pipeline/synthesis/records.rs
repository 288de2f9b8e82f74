//! The folder of a data set that is being made: what it is made by, every draw and what became of it, the pictures.
//!
//! A picture's file is there, complete, before its draw is recorded, and draws are made in a fixed order. So whenever the
//! process is killed, the next one goes on behind the last draw on record, and makes what it would have made.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Verdict;
use crate::error::{Error, Result};
use crate::io::parquet::{Picture, PictureWriter};
use crate::io::{atomic, config, read_bounded};
use crate::pipeline::language::prompts::ClassPrompt;

/// What the set is made by; must stay the same.
pub(super) const SETTINGS: &str = "synthesis.json";
const PROMPTS: &str = "prompts.jsonl";
/// How many pictures each class is to have: of the process under way alone.
pub(super) const QUOTA: &str = "quota.json";
pub(super) const DRAWS: &str = "draws.jsonl";
/// The pictures, and the index by which data sets read the folder.
const PICTURES: &str = "images";
const MASKS: &str = "masks";
/// The pictures once more, with their places.
const SCENES: &str = "geotiff";
pub(super) const INDEX: &str = "metadata.jsonl";

const MAX_LINE: u64 = 1 << 20;
const MAX_PICTURE: u64 = 64 << 20;

/// A picture that was drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draw {
    /// The class it was drawn for.
    pub class: String,
    /// Its number.
    pub label: usize,
    /// The how manieth of the class, from 0.
    pub draw: usize,
    /// What the model was told.
    pub prompt: String,
    /// What its noise began with.
    pub seed: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// What the judge saw, and how sure it was of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<(String, f32)>,
    /// 100 times the cosine between what CLIP makes of the picture and of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_score: Option<f64>,
    /// The largest correlation with a training picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
    /// Its file, in the set's folder, if it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The real picture that it was drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The file of its mask, which is that of the real picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
}

/// The folder, held by this process alone.
pub struct Records {
    folder: PathBuf,
    /// Locked as long as this lives.
    journal: File,
    draws: Vec<Draw>,
    prompts: Option<Vec<ClassPrompt>>,
}

impl Records {
    /// Begins a set in `folder`, or goes on with the one that is there, of the same `settings`.
    ///
    /// # Errors
    /// The folder holds something else, or a set by other settings; another process is at work in it; it cannot be written.
    pub fn open(folder: &Path, settings: &Value) -> Result<Self> {
        let path = folder.join(SETTINGS);
        if !path.exists() {
            match fs::read_dir(folder) {
                Ok(mut entries) => {
                    let strange = entries
                        .find(|e| e.as_ref().is_ok_and(|e| !atomic::is_temporary(&e.file_name())));
                    if strange.is_some() {
                        let expected = "an empty folder, or one that `nadir synthesize` began";
                        let advice = "Name another folder: nothing is overwritten.";
                        return Err(Error::file(folder, "output", expected, "other files", advice));
                    }
                }
                Err(_) => fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?,
            }
        }
        atomic::remove_abandoned(folder);
        atomic::remove_abandoned(&folder.join(SCENES));
        let has_masks = settings.get("source").is_some_and(|source| !source.is_null());
        for (name, wanted) in [(PICTURES, true), (MASKS, has_masks)] {
            let below = folder.join(name);
            if wanted {
                fs::create_dir_all(&below).map_err(|e| Error::io(&below, e))?;
                atomic::remove_abandoned(&below);
            }
        }
        let file = folder.join(DRAWS);
        let mut options = OpenOptions::new();
        let journal = options.create(true).truncate(false).read(true).write(true).open(&file);
        let mut journal = journal.map_err(|e| Error::io(&file, e))?;
        if let Err(TryLockError::WouldBlock) = journal.try_lock() {
            let advice = "Wait for it, or name another folder.";
            return Err(Error::file(
                folder,
                "output",
                "a folder of its own",
                "another process at work in it",
                advice,
            ));
        }
        if path.exists() {
            let known = config::read_json(&path)?;
            if let Some((name, known, new)) = difference(&known, settings) {
                let advice =
                    "Go on with the settings that it was begun with, or name another folder.";
                let expected = format!("{known}, as it was begun with");
                return Err(Error::file(&path, name, expected, new.to_string(), advice));
            }
        } else {
            let text = format!("{settings:#}\n");
            atomic::write(&path, |out| out.write_all(text.as_bytes()))?;
        }
        let draws = read_draws(&file, &mut journal)?;
        let found = folder.join(PROMPTS);
        let prompts = found.exists().then(|| read_prompts(&found)).transpose()?;
        Ok(Self { folder: folder.to_path_buf(), journal, draws, prompts })
    }

    /// All draws so far.
    pub fn draws(&self) -> &[Draw] {
        &self.draws
    }

    /// The prompts, once they are written.
    pub fn prompts(&self) -> Option<&[ClassPrompt]> {
        self.prompts.as_deref()
    }

    /// Keeps the prompts.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_prompts(&mut self, prompts: Vec<ClassPrompt>) -> Result<()> {
        atomic::write(&self.folder.join(PROMPTS), |out| {
            prompts.iter().try_for_each(|one| writeln!(out, "{}", serde_json::to_string(one)?))
        })?;
        self.prompts = Some(prompts);
        Ok(())
    }

    /// Where the accepted picture of a draw lies: the file's name in the set, and its path.
    pub fn place(&self, class: &str, draw: usize) -> (String, PathBuf) {
        let plain = |c: char| if c.is_alphanumeric() || "-_".contains(c) { c } else { '-' };
        let class: String = class.chars().map(plain).collect();
        let name = format!("{PICTURES}/{class}-{draw:06}.png");
        let path = self.folder.join(&name);
        (name, path)
    }

    /// Where its mask lies, likewise.
    pub fn mask_place(&self, class: &str, draw: usize) -> (String, PathBuf) {
        let name = self.place(class, draw).0.replacen(PICTURES, MASKS, 1);
        let path = self.folder.join(&name);
        (name, path)
    }

    /// Where it lies once more as a GeoTIFF; the folder is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scene_place(&self, class: &str, draw: usize) -> Result<PathBuf> {
        let name = self.place(class, draw).0.replacen(PICTURES, SCENES, 1);
        let path = self.folder.join(name).with_extension("tif");
        let folder = self.folder.join(SCENES);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(path)
    }

    /// The encoded picture of an accepted draw.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn picture(&self, name: &str) -> Result<Vec<u8>> {
        read_bounded(&self.folder.join(name), MAX_PICTURE)
    }

    /// Records draws whose pictures are there, if they were accepted.
    ///
    /// # Errors
    /// The disk is full.
    pub fn add(&mut self, draws: Vec<Draw>) -> Result<()> {
        let path = self.folder.join(DRAWS);
        let mut lines = Vec::new();
        for draw in &draws {
            let line = serde_json::to_string(draw).map_err(|e| Error::io(&path, e.into()))?;
            lines.extend(line.bytes().chain([b'\n']));
        }
        let written = self.journal.write_all(&lines).and_then(|()| self.journal.sync_data());
        written.map_err(|e| Error::io(&path, e))?;
        self.draws.extend(draws);
        Ok(())
    }

    fn accepted(&self) -> impl Iterator<Item = (&Draw, &String)> {
        self.draws.iter().filter_map(|draw| Some((draw, draw.file.as_ref()?)))
    }

    /// Notes how many pictures each class is to have, for who looks at the set while it grows.
    ///
    /// # Errors
    /// The disk is full.
    pub fn keep_quota(&self, per_class: usize) -> Result<()> {
        let quota = json!({ "per_class": per_class }).to_string();
        atomic::write(&self.folder.join(QUOTA), |out| out.write_all(quota.as_bytes()))
    }

    /// Writes the index of the accepted pictures: with it the folder is a data set.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_index(&self) -> Result<()> {
        atomic::write(&self.folder.join(INDEX), |out| {
            self.accepted().try_for_each(|(draw, file)| {
                let mut line = json!({
                    "file_name": file,
                    "text": draw.prompt,
                    "label": draw.label,
                    "class": draw.class,
                    "seed": draw.seed,
                });
                if let Some(mask) = &draw.mask {
                    line["mask"] = json!(mask);
                    line["source"] = json!(draw.source);
                }
                writeln!(out, "{line}")
            })
        })
    }

    /// Writes the same set into one parquet file, of the schema of RSICD with `label` and `class`.
    ///
    /// # Errors
    /// It cannot be written; a picture is not there any more.
    pub fn write_parquet(&self, path: &Path) -> Result<()> {
        let out = atomic::Output::create(path, true)?;
        let mut writer = match self.accepted().any(|(draw, _)| draw.mask.is_some()) {
            true => PictureWriter::with_masks(path, out)?,
            false => PictureWriter::new(path, out)?,
        };
        for (draw, file) in self.accepted() {
            writer.add(Picture {
                filename: Some(
                    file.trim_start_matches(PICTURES).trim_start_matches('/').to_owned(),
                ),
                captions: vec![draw.prompt.clone()],
                label: Some(draw.label as u32),
                class: Some(draw.class.clone()),
                image: self.picture(file)?,
                mask: draw.mask.as_ref().map(|mask| self.picture(mask)).transpose()?,
            })?;
        }
        writer.finish()?.finish()
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The first setting that differs: its name, what it was and what it is.
fn difference(known: &Value, new: &Value) -> Option<(String, Value, Value)> {
    let empty = serde_json::Map::new();
    let [known, new] = [known, new].map(|value| value.as_object().unwrap_or(&empty));
    let names = new.keys().chain(known.keys());
    let get =
        |all: &serde_json::Map<String, Value>, name| all.get(name).cloned().unwrap_or_default();
    names
        .map(|name| (name.clone(), get(known, name), get(new, name)))
        .find(|(_, known, new)| known != new)
}

/// The draws on record. A last line that a killed process left unfinished goes.
fn read_draws(path: &Path, journal: &mut File) -> Result<Vec<Draw>> {
    let io = |e| Error::io(path, e);
    let mut draws = Vec::new();
    let (mut whole, mut lines) = (0, BufReader::new(&mut *journal));
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).map_err(io)?;
        if !line.ends_with(b"\n") && read as u64 != MAX_LINE {
            break;
        }
        let draw = serde_json::from_slice(&line).map_err(|e| {
            let what = format!("line {}", draws.len() + 1);
            let advice = "The file was changed: begin again in another folder.";
            Error::file(path, what, "a draw", e.to_string(), advice)
        })?;
        draws.push(draw);
        whole += read as u64;
    }
    journal.set_len(whole).and_then(|()| journal.seek(SeekFrom::End(0))).map_err(io)?;
    Ok(draws)
}

/// Prompts as [`Records::keep_prompts`] and `nadir lm prompts` write them.
///
/// # Errors
/// The file cannot be read, or a line is none of a prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<ClassPrompt>> {
    let text = crate::io::read_file(path, 1 << 30)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            serde_json::from_str(line).map_err(|e| {
                let expected = "an object with class, label, prompt, given and seed";
                let advice = "`nadir lm prompts` writes such a file.";
                Error::file(path, format!("line {}", i + 1), expected, e.to_string(), advice)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(draw: usize) -> Draw {
        Draw {
            class: "River".into(),
            label: 0,
            draw,
            prompt: "a river".into(),
            seed: 1,
            verdict: Verdict::OtherClass,
            seen: None,
            clip_score: None,
            similarity: None,
            file: None,
            source: None,
            mask: None,
        }
    }

    #[test]
    fn a_line_that_a_killed_process_left_unfinished_goes() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Records::open(folder.path(), &json!({ "seed": 1 })).unwrap();
        open().add(vec![draw(0)]).unwrap();
        let mut file = OpenOptions::new().append(true).open(folder.path().join(DRAWS)).unwrap();
        file.write_all(b"{\"class\": \"Ri").unwrap();
        let mut records = open();
        assert_eq!(records.draws(), [draw(0)]);
        records.add(vec![draw(1)]).unwrap();
        drop(records);
        assert_eq!(open().draws(), [draw(0), draw(1)]);
        let other = Records::open(folder.path(), &json!({ "seed": 2 })).err().unwrap().to_string();
        assert!(other.contains("seed") && other.contains("begun with"), "{other}");
    }

    #[test]
    fn the_index_has_masks_and_what_they_are_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path(), &json!({})).unwrap();
        let taken = Draw {
            file: Some("images/River-000001.png".into()),
            mask: Some("masks/River-000001.png".into()),
            source: Some("real/7.png".into()),
            verdict: Verdict::Accepted,
            ..draw(1)
        };
        records.add(vec![draw(0), taken]).unwrap();
        records.write_index().unwrap();
        let index = fs::read_to_string(folder.path().join(INDEX)).unwrap();
        let rows: Vec<Value> =
            index.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 1, "{index}");
        assert_eq!(rows[0]["mask"], "masks/River-000001.png");
        assert_eq!(rows[0]["source"], "real/7.png");
    }
}
