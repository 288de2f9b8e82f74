//! What a run leaves for its reader: `metrics.csv`, TensorBoard's events, pictures, and a page that shows them.
//!
//! Training does not depend on any of it: what cannot be written is told once, and the run goes on.

mod csv;
mod events;
mod plot;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::image::RgbImage;

use super::settings::Settings;
use crate::error::{Error, Result};
use crate::io::{atomic, png};
use csv::Csv;
use events::EventLog;
use report::Report;

/// The folder of pictures and texts, and that of events.
const PICTURES: &str = "validation";
const LOGS: &str = "logs";
/// Keyword of the text in a picture that says what it shows: where viewers look for a prompt.
const CAPTION: &str = png::PARAMETERS;
/// How names of texts end.
const TEXT: &str = "txt";
/// The page is written anew this often, and whenever a checkpoint is.
const INTERVAL: Duration = Duration::from_secs(30);

/// Something that shows what a model can do.
pub struct Sample {
    /// What it shows.
    pub caption: String,
    /// It itself.
    pub content: Content,
}

/// What a model makes.
pub enum Content {
    /// A picture.
    Picture(RgbImage),
    /// A text.
    Text(String),
}

/// All of it.
pub(super) struct Records {
    folder: PathBuf,
    csv: Csv,
    events: Option<EventLog>,
    report: Report,
    written: Instant,
    /// Of the files that could not be written last time, why.
    failing: BTreeMap<&'static str, String>,
    /// What has not been told yet.
    news: Vec<String>,
}

impl Records {
    /// Goes on behind `step` steps of a task; `about` is what the page says of the run besides its settings.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn open(
        folder: &Path,
        task: &str,
        settings: &Settings,
        about: &[(String, String)],
        step: u64,
    ) -> Result<Self> {
        let (csv, before) = Csv::open(folder, step)?;
        let mut records = Self {
            folder: folder.to_path_buf(),
            csv,
            events: None,
            report: Report::new(folder, task, settings, about, step, before),
            written: Instant::now(),
            failing: BTreeMap::new(),
            news: Vec::new(),
        };
        let events = EventLog::create(&folder.join(LOGS), step);
        records.events = records.tell(LOGS, events);
        Ok(records)
    }

    /// Values behind a step.
    pub fn values(&mut self, step: u64, values: &[(&str, f64)]) {
        let written = self.csv.write(step, values);
        self.tell("metrics.csv", written);
        if let Some(events) = &mut self.events {
            let written = events.scalars(step, values);
            self.tell(LOGS, written);
        }
        for (name, value) in values {
            self.report.add(step, name, *value);
        }
        if self.written.elapsed() >= INTERVAL {
            self.show("Training", true);
        }
    }

    /// Pictures and texts behind a step.
    pub fn samples(&mut self, step: u64, samples: &[Sample]) {
        for (i, Sample { caption, content }) in samples.iter().enumerate() {
            let picture = match content {
                Content::Picture(picture) => picture,
                Content::Text(text) => {
                    let written = write_text(&self.folder, step, i, caption, text);
                    self.tell(PICTURES, written);
                    continue;
                }
            };
            let written = write_picture(&self.folder, step, i, caption, picture);
            let Some(png) = self.tell(PICTURES, written) else { continue };
            if let Some(events) = &mut self.events {
                let name = format!("{PICTURES}/{i}");
                let written = events.picture(step, &name, picture.dimensions().into(), &png);
                self.tell(LOGS, written);
            }
        }
    }

    /// Writes the page.
    pub fn show(&mut self, state: &str, goes_on: bool) {
        self.written = Instant::now();
        let written = self.report.write(state, goes_on);
        self.tell("report.html", written);
    }

    /// What could not be written since this was last asked for; of files that fail again and again, only the first time.
    pub fn news(&mut self) -> Vec<String> {
        std::mem::take(&mut self.news)
    }

    fn tell<T>(&mut self, file: &'static str, written: Result<T>) -> Option<T> {
        match written {
            Ok(value) => {
                self.failing.remove(file);
                Some(value)
            }
            Err(error) => {
                let error = error.to_string();
                if self.failing.insert(file, error.clone()).as_ref() != Some(&error) {
                    self.news.push(error);
                }
                None
            }
        }
    }
}

/// Writes picture `number` of a step; gives the file's content.
fn write_picture(
    folder: &Path,
    step: u64,
    number: usize,
    caption: &str,
    picture: &RgbImage,
) -> Result<Vec<u8>> {
    let folder = folder.join(PICTURES);
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let path = folder.join(format!("step-{step:08}-{number:02}.png"));
    png::write(&path, picture, &[(CAPTION, caption)])?;
    std::fs::read(&path).map_err(|e| Error::io(&path, e))
}

/// Writes text `number` of a step, its caption in the first line.
fn write_text(folder: &Path, step: u64, number: usize, caption: &str, text: &str) -> Result<()> {
    let folder = folder.join(PICTURES);
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let path = folder.join(format!("step-{step:08}-{number:02}.{TEXT}"));
    let caption = caption.replace('\n', " ");
    atomic::write(&path, |out| writeln!(out, "{caption}\n{text}"))
}

/// The files of [`write_picture`] and [`write_text`] in the folder of pictures, by step.
fn sampled(folder: &Path) -> Vec<(u64, Vec<PathBuf>)> {
    let mut all: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let step = path
            .file_name()
            .and_then(|name| {
                let (name, end) = name.to_str()?.strip_prefix("step-")?.split_once('.')?;
                ["png", TEXT].contains(&end).then(|| name.split_once('-'))?
            })
            .and_then(|(step, _)| step.parse().ok());
        if let Some(step) = step {
            all.entry(step).or_default().push(path);
        }
    }
    all.values_mut().for_each(|files| files.sort());
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_cannot_be_written_is_told_once_and_the_rest_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::os::unix::fs::symlink("/dev/full", folder.join("report.html")).unwrap();
        std::fs::write(folder.join(LOGS), "a file").unwrap();
        let mut records = Records::open(folder, "vae", &Settings::default(), &[], 0).unwrap();
        assert!(matches!(&records.news()[..], [told] if told.contains(LOGS)));
        for step in 1..=3 {
            records.values(step, &[("loss", 1.0)]);
            records.show("Training", true);
            let news = records.news();
            match step {
                1 => assert!(
                    news[0].contains("report.html") && news[0].contains("full disk"),
                    "{news:?}"
                ),
                _ => assert!(news.is_empty(), "{news:?}"),
            }
        }
        let text = std::fs::read_to_string(folder.join("metrics.csv")).unwrap();
        assert_eq!(text.lines().count(), 4);
        // It can be written again, and then no more.
        std::fs::remove_file(folder.join("report.html")).unwrap();
        records.show("Training", true);
        assert!(records.news().is_empty() && folder.join("report.html").is_file());
        std::fs::remove_file(folder.join("report.html")).unwrap();
        std::fs::create_dir(folder.join("report.html")).unwrap();
        records.show("Training", true);
        assert_eq!(records.news().len(), 1);
    }
}
