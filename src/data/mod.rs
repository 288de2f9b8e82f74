//! Data sets to train on: pictures with captions, with classes, or with masks of classes; texts.
//!
//! ```text
//! parquet file or folder -> rows (names, captions, classes) -> batches: decoded, cropped, turned, normalised
//! papers, pages -> corpus: cleaned, each once, in chunks
//! texts -> documents -> rows of tokens -> batches of about one length
//! ```
//!
//! What a batch holds follows from the seed, the epoch and the place in it alone: not from the number of threads, and
//! not from where a run was interrupted.

mod augment;
mod caption;
pub mod corpus;
#[cfg(test)]
mod fixture;
mod loader;
pub mod masks;
pub mod moments;
mod random;
mod source;
mod summary;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde::{Deserialize, Serialize};

pub(crate) use augment::plain;
pub use augment::{Augment, Normalize};
pub use caption::CaptionChoice;
pub use loader::{Batch, Loader};
pub use source::Fault;
pub use summary::Summary;

use crate::cpu::parallel::for_each;
use crate::error::{Error, Result};
use crate::io::image::{self, RgbImage};
use caption::Sentences;
use random::{Draws, Purpose, permutation};
use source::{Row, Source};

/// What a run learns from, or is measured by: rows, in batches.
pub trait Examples {
    /// Some rows, as a task takes them.
    type Batch: Sync;

    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What means over all rows are taken of: the rows, or what there are several of in one.
    fn count(&self) -> usize {
        self.len()
    }

    /// Batches without end, shuffled by `seed`, behind the first `start` rows. Nothing depends on the number of threads.
    ///
    /// # Errors
    /// A batch or a number of threads of 0.
    fn stream(
        &self,
        batch: usize,
        seed: u64,
        start: u64,
        threads: usize,
    ) -> Result<Batches<'_, Self::Batch>>;

    /// Every row once. The last batch may be shorter.
    ///
    /// # Errors
    /// A batch or a number of threads of 0.
    fn pass(&self, batch: usize, threads: usize) -> Result<Batches<'_, Self::Batch>>;
}

fn check_counts(batch: usize, threads: usize) -> Result<()> {
    for (name, n) in [("train_batch_size", batch), ("loader_threads", threads)] {
        if n == 0 {
            return Err(Error::argument(name, n, "at least 1"));
        }
    }
    Ok(())
}

/// Batches one after the other.
pub type Batches<'a, B> = Box<dyn Iterator<Item = Result<B>> + 'a>;

/// How pictures and captions are made of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Args)]
#[serde(default)]
pub struct DataSettings {
    /// Height and width of a training picture in pixels [default: those of the data set's pictures]
    #[arg(long, value_name = "PIXELS", help_heading = "Data", allow_negative_numbers = true)]
    pub resolution: Option<usize>,

    /// Sentence for a picture that has a class and no caption, {class} being its name; several may be given
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    pub caption_template: Vec<String>,

    /// JSON file with other words for classes, {"Forest": ["forest", "woodland"]}: one of them is drawn each epoch
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub class_words: Option<PathBuf>,

    /// Which of a picture's captions it goes with
    #[arg(long, value_enum, default_value_t, help_heading = "Data")]
    pub captions: CaptionChoice,

    /// Stop at a row that cannot be used, rather than leave it out
    #[arg(long, help_heading = "Data")]
    pub strict: bool,

    /// What may be changed about a picture
    #[command(flatten)]
    #[serde(flatten)]
    pub augment: Augment,

    /// What becomes of levels; the task says it.
    #[arg(skip)]
    pub normalize: Normalize,
}

impl Default for DataSettings {
    /// Pictures as they are, in -1..1.
    fn default() -> Self {
        Self {
            resolution: None,
            caption_template: Vec::new(),
            class_words: None,
            captions: CaptionChoice::default(),
            strict: false,
            augment: Augment::default(),
            normalize: Normalize::default(),
        }
    }
}

/// A data set, or a part of one. Cheap to clone.
#[derive(Clone)]
pub struct Dataset {
    all: Arc<All>,
    /// Places in `all.source.rows`.
    rows: Arc<[usize]>,
}

/// What all parts of a data set share.
struct All {
    source: Source,
    settings: DataSettings,
    sentences: Sentences,
    /// By row; empty when rows have no class.
    labels: Vec<u32>,
    classes: Vec<String>,
    /// Width and height by row.
    sizes: Vec<[u32; 2]>,
    /// Height and width of what batches hold.
    size: [usize; 2],
}

impl Dataset {
    /// Opens a parquet file, or a folder with a `metadata.jsonl`, and looks at every row and picture.
    ///
    /// Rows that cannot be used (no picture, one that does not decode, a class without a name) are left out and kept
    /// count of, see [`faults`](Self::faults); with `strict`, the first is an error.
    ///
    /// Of a file without classes, those are taken from the pictures' names, if all have one in front as RSICD's do
    /// (`airport_1.jpg`).
    ///
    /// # Errors
    /// The file is missing, damaged or of another schema; settings that are not possible; no row can be used.
    pub fn open(path: impl AsRef<Path>, settings: DataSettings) -> Result<Self> {
        settings.augment.check()?;
        if settings.resolution.is_some_and(|side| !(1..=4096).contains(&side)) {
            let found = settings.resolution.unwrap_or_default();
            return Err(Error::argument("resolution", found, "1 to 4096 pixels"));
        }
        let sentences =
            Sentences::new(&settings.caption_template, settings.class_words.as_deref())?;
        let mut source = Source::open(path.as_ref())?;

        // 1. classes
        let classes = name_classes(&mut source);

        // 2. pictures
        let sizes = look_at_pictures(&mut source);
        source.faults.sort_by_key(|fault| fault.row);
        if settings.strict && !source.faults.is_empty() {
            return Err(source.faults.swap_remove(0).error);
        }
        let Some(first) = sizes.first() else {
            return Err(no_rows(source));
        };

        // 3. what batches will hold
        let size = match settings.resolution {
            Some(side) => [side; 2],
            None => [first[1] as usize, first[0] as usize],
        };
        if let (None, Some(other)) = (settings.resolution, sizes.iter().position(|s| s != first)) {
            let [w, h] = sizes[other];
            let what = source.describe(&source.rows[other]);
            let expected = format!("{}x{} pixels as the first", first[0], first[1]);
            let advice = "Pictures of several sizes need --resolution.";
            return Err(Error::file(what, "picture", expected, format!("{w}x{h}"), advice));
        }
        if let Some(class) = sentences.unknown_class(&classes) {
            let path = settings.class_words.as_deref().unwrap_or(Path::new(""));
            let expected = format!("classes of the data set ({})", classes.join(", "));
            let advice = "Write it as the data set does.";
            return Err(Error::file(path, "class", expected, format!("{class:?}"), advice));
        }
        let label = |row: &Row| row.label.unwrap_or_default();
        let labels = match classes.is_empty() {
            true => Vec::new(),
            false => source.rows.iter().map(label).collect(),
        };
        let rows = (0..source.rows.len()).collect();
        let all = All { source, settings, sentences, labels, classes, sizes, size };
        Ok(Self { all: Arc::new(all), rows })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Where it comes from.
    pub fn path(&self) -> &Path {
        &self.all.source.path
    }

    /// Height and width of the pictures in a batch.
    pub fn size(&self) -> [usize; 2] {
        self.all.size
    }

    /// What has become of levels.
    pub fn normalize(&self) -> Normalize {
        self.all.settings.normalize
    }

    /// Names of the classes, by label; empty when rows have none.
    pub fn classes(&self) -> &[String] {
        &self.all.classes
    }

    /// The rows that were left out, of the whole file.
    pub fn faults(&self) -> &[Fault] {
        &self.all.source.faults
    }

    /// The label of a row; 0 where rows have none.
    pub fn label(&self, row: usize) -> u32 {
        self.all.labels.get(self.rows[row]).copied().unwrap_or_default()
    }

    /// What a row's picture is called.
    pub fn name(&self, row: usize) -> &str {
        &self.row(row).name
    }

    /// The captions that a row has in the file.
    pub fn captions(&self, row: usize) -> &[String] {
        &self.row(row).captions
    }

    /// A row's picture as it is.
    ///
    /// # Errors
    /// It cannot be read any more.
    pub fn picture(&self, row: usize) -> Result<RgbImage> {
        decode(&self.all.source, self.row(row))
    }

    /// A row's picture as its file has it.
    ///
    /// # Errors
    /// It cannot be read any more.
    pub fn encoded(&self, row: usize) -> Result<Vec<u8>> {
        self.all.source.read(self.row(row))
    }

    /// All rows in an order drawn by `seed`.
    pub(crate) fn order(&self, seed: u64) -> Vec<usize> {
        permutation(self.len(), seed, 0, Purpose::Split)
    }

    /// What there is, counted.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }

    /// Checks that every row has a caption, or a class that a template speaks of.
    ///
    /// # Errors
    /// `File`, naming the first row without.
    pub fn require_captions(&self) -> Result<()> {
        if !self.all.sentences.is_empty() && !self.classes().is_empty() {
            return Ok(());
        }
        let row = match (0..self.len()).find(|&row| self.captions(row).is_empty()) {
            None => return Ok(()),
            Some(row) => self.row(row),
        };
        let expected = "a caption, or a class and a --caption-template";
        let advice = "Say how a class becomes a sentence: --caption-template \"a satellite image of {class}\".";
        let found = format!("neither (columns {})", self.all.source.columns.join(", "));
        Err(Error::file(self.all.source.describe(row), "captions", expected, found, advice))
    }

    /// Checks that rows have classes.
    ///
    /// # Errors
    /// `File`, with the columns that were found.
    pub fn require_classes(&self) -> Result<()> {
        if !self.classes().is_empty() {
            return Ok(());
        }
        let found = format!("columns {}", self.all.source.columns.join(", "));
        let advice = "A class is a number in a column label with its name in a column class, or stands in front of the \
             picture's name, airport_1.jpg.";
        Err(Error::file(self.path(), "schema", "classes", found, advice))
    }

    /// Parts it in two at random: the second has the share `held_out` of the rows, at least one.
    ///
    /// # Errors
    /// A share that leaves one of them empty.
    pub fn split(&self, held_out: f64, seed: u64) -> Result<(Self, Self)> {
        let n = ((self.len() as f64 * held_out).round() as usize).max(1);
        if !(held_out > 0.0 && n < self.len()) {
            let expected = format!("a share of {} rows that leaves some on both sides", self.len());
            return Err(Error::argument("validation_split", held_out, expected));
        }
        let order = permutation(self.len(), seed, 0, Purpose::Split);
        let part = |places: &[usize]| {
            let mut rows: Vec<usize> = places.iter().map(|&place| self.rows[place]).collect();
            rows.sort_unstable();
            Self { all: self.all.clone(), rows: rows.into() }
        };
        let (second, first) = order.split_at(n);
        Ok((part(first), part(second)))
    }

    fn row(&self, row: usize) -> &Row {
        &self.all.source.rows[self.rows[row]]
    }

    /// What a row goes with: the first of its captions, of the templates, of its class's words.
    pub fn caption(&self, row: usize) -> String {
        self.draw_caption(row, None)
    }

    fn draw_caption(&self, row: usize, draws: Option<&mut Draws>) -> String {
        let class = self.all.classes.get(self.label(row) as usize);
        match class {
            Some(class) if !self.all.sentences.is_empty() => self.all.sentences.about(class, draws),
            _ => caption::choose(self.captions(row), self.all.settings.captions, draws),
        }
    }
}

impl Examples for Dataset {
    type Batch = Batch;

    fn len(&self) -> usize {
        self.len()
    }

    fn stream(
        &self,
        batch: usize,
        seed: u64,
        start: u64,
        threads: usize,
    ) -> Result<Batches<'_, Batch>> {
        Ok(Box::new(self.stream(batch, seed, start, threads)?))
    }

    fn pass(&self, batch: usize, threads: usize) -> Result<Batches<'_, Batch>> {
        Ok(Box::new(self.pass(batch, threads)?))
    }
}

/// Gives every row of a file with classes a label and returns the names; rows without become faults.
fn name_classes(source: &mut Source) -> Vec<String> {
    let labelled = source.rows.iter().any(|row| row.label.is_some());
    if !labelled && source.rows.iter().all(|row| row.class.is_none()) {
        // RSICD has no column for them.
        let classes: Option<Vec<String>> =
            source.rows.iter().map(|row| class_in_name(&row.name)).collect();
        let Some(classes) = classes else { return Vec::new() };
        for (row, class) in source.rows.iter_mut().zip(classes) {
            row.class = Some(class);
        }
    }
    // 1. the name of each label
    let mut names = BTreeMap::new();
    if labelled {
        let known = source.class_names.iter().flatten();
        names.extend(known.enumerate().map(|(label, name)| (label as u32, name.clone())));
        for row in &source.rows {
            if let (Some(label), Some(class)) = (row.label, &row.class) {
                names.entry(label).or_insert_with(|| class.clone());
            }
        }
    } else {
        let all: BTreeSet<_> = source.rows.iter().filter_map(|row| row.class.clone()).collect();
        names.extend(all.into_iter().enumerate().map(|(label, name)| (label as u32, name)));
        let labels: BTreeMap<_, _> = names.iter().map(|(label, name)| (name, *label)).collect();
        for row in &mut source.rows {
            row.label = row.class.as_ref().and_then(|class| labels.get(class).copied());
        }
    }
    // 2. every row by itself
    let rows = std::mem::take(&mut source.rows);
    for row in rows {
        let (column, expected, found) = match (row.label, &row.class) {
            (None, None) => ("label", "a class".to_owned(), "none".to_owned()),
            (None, Some(class)) => ("label", format!("a number for {class:?}"), "none".to_owned()),
            (Some(label), class) => match (names.get(&label), class) {
                (None, _) => {
                    let found =
                        format!("label {label}, which no row and no metadata has a name for");
                    ("class", "a name".to_owned(), found)
                }
                (Some(name), Some(class)) if name != class => (
                    "class",
                    format!("{name:?}, as label {label} is called elsewhere"),
                    format!("{class:?}"),
                ),
                _ => {
                    source.rows.push(row);
                    continue;
                }
            },
        };
        let advice = "A class is a number in column label and its name in column class.";
        let error =
            Error::file(source.describe(&row), format!("column {column}"), expected, found, advice);
        source.faults.push(Fault { row: row.number, error });
    }
    let count = names.keys().next_back().map_or(0, |last| *last as usize + 1);
    (0..count).map(|label| names.remove(&(label as u32)).unwrap_or_default()).collect()
}

/// The class in front of a picture's name: `airport` of `images/airport_1.jpg`.
fn class_in_name(name: &str) -> Option<String> {
    let stem = Path::new(name).file_stem()?.to_str()?;
    let class = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbered = class.len() < stem.len();
    let class = class.trim_end_matches(['_', '-', ' ']);
    (numbered && !class.is_empty()).then(|| class.to_owned())
}

/// Decodes every picture; those that do not decode become faults. Returns width and height of the others.
fn look_at_pictures(source: &mut Source) -> Vec<[u32; 2]> {
    let looks: Vec<Mutex<Option<Result<[u32; 2]>>>> =
        source.rows.iter().map(|_| Mutex::default()).collect();
    for_each(looks.len(), &|i| {
        let size = decode(source, &source.rows[i]).map(|picture| picture.dimensions().into());
        *looks[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
    });
    let mut sizes = Vec::with_capacity(looks.len());
    for (row, look) in std::mem::take(&mut source.rows).into_iter().zip(looks) {
        match look.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(Ok(size)) => {
                sizes.push(size);
                source.rows.push(row);
            }
            Some(Err(error)) => source.faults.push(Fault { row: row.number, error }),
            None => {}
        }
    }
    sizes
}

fn decode(source: &Source, row: &Row) -> Result<RgbImage> {
    let origin = source.describe(row);
    let picture = image::decode(&source.read(row)?, &origin)?;
    if picture.width().min(picture.height()) == 0 {
        let advice = "Leave the row out.";
        return Err(Error::file(origin, "picture", "at least one pixel", "none", advice));
    }
    Ok(picture)
}

/// The error of a data set without rows that can be used.
fn no_rows(mut source: Source) -> Error {
    let advice = "Nothing can be learnt from it.";
    let found = match source.faults.len() {
        0 => "none".to_owned(),
        n => format!("{n} that cannot be used; the first: {}", source.faults.swap_remove(0).error),
    };
    Error::file(&source.path, "rows", "pictures", found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fixture::{FixtureRow, picture, rows, write};

    const ALL: [&str; 5] = ["filename", "captions", "label", "class", "image"];

    fn open(rows: &[FixtureRow], columns: &[&str], settings: DataSettings) -> Result<Dataset> {
        let folder = tempfile::tempdir().unwrap();
        Dataset::open(write(folder.path(), rows, columns, None), settings)
    }

    fn strict() -> DataSettings {
        DataSettings { strict: true, ..DataSettings::default() }
    }

    /// What is said of the one fault among `rows`, which must be the error with `strict`.
    fn fault(rows: &[FixtureRow], columns: &[&str]) -> String {
        let data = open(rows, columns, DataSettings::default()).unwrap();
        assert_eq!((data.len(), data.faults().len()), (rows.len() - 1, 1));
        let fault = data.faults()[0].error.to_string();
        let error = open(rows, columns, strict()).err().unwrap().to_string();
        let number = |text: &str| text[text.find(".parquet").unwrap()..].to_owned();
        assert_eq!(number(&error), number(&fault));
        fault
    }

    #[test]
    fn rows_are_read_as_they_are() {
        let data = open(&rows(7), &ALL, strict()).unwrap();
        assert_eq!((data.len(), data.size()), (7, [8, 8]));
        assert_eq!(data.classes(), ["Forest", "River", "Highway", "Sea"]);
        for row in 0..7 {
            assert_eq!(data.label(row) as usize, row % 4);
            assert_eq!(data.name(row), format!("chips/{row}.png"));
            assert_eq!(data.captions(row), [format!("first of {row}"), format!("second of {row}")]);
            assert_eq!(data.picture(row).unwrap().get_pixel(0, 0).0, [row as u8, 0, 9]);
        }
        data.require_captions().unwrap();
        let summary = data.summary();
        assert_eq!((summary.rows, summary.faults, &summary.sizes[..]), (7, 0, &[([8, 8], 7)][..]));
        let counts: Vec<_> = summary.classes.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 2, 2, 1]);
        let captions = summary.captions;
        assert_eq!((captions.count, captions.distinct, captions.rows_without), (14, 14, 0));
        assert_eq!((captions.mean_words, captions.most_words), (3.0, 3));
    }

    #[test]
    fn classes_come_from_columns_metadata_or_names() {
        // Names alone: in the order of the alphabet.
        let data = open(&rows(5), &["class", "image"], strict()).unwrap();
        assert_eq!(data.classes(), ["Forest", "Highway", "River", "Sea"]);
        assert_eq!((0..5).map(|row| data.label(row)).collect::<Vec<_>>(), [0, 2, 1, 3, 0]);
        // Numbers, whose names the metadata has.
        let folder = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c", "d", "e"];
        let path = write(folder.path(), &rows(5), &["label", "image"], Some(&names));
        let data = Dataset::open(path, strict()).unwrap();
        assert_eq!(data.classes(), names);
        // In front of the pictures' names.
        let mut named = rows(3);
        for (row, name) in
            named.iter_mut().zip(["x/airport_1.jpg", "x/sea2.jpg", "x/airport_10.jpg"])
        {
            row.filename = Some(name.to_owned());
        }
        let data = open(&named, &["filename", "image"], strict()).unwrap();
        assert_eq!(data.classes(), ["airport", "sea"]);
        assert_eq!([data.label(0), data.label(1), data.label(2)], [0, 1, 0]);
        // Nowhere.
        let data = open(&rows(3), &["filename", "image"], strict()).unwrap();
        assert!(data.classes().is_empty());
        let error = data.require_classes().unwrap_err().to_string();
        assert!(error.contains("filename, image.bytes, image.path"), "{error}");
        let error = data.require_captions().unwrap_err().to_string();
        assert!(
            error.contains("row 1 (chips/0.png)") && error.contains("--caption-template"),
            "{error}"
        );
    }

    #[test]
    fn a_row_that_cannot_be_used_is_named() {
        let broken = |change: fn(&mut FixtureRow)| {
            let mut rows = rows(6);
            change(&mut rows[3]);
            rows
        };
        for (change, parts) in [
            (broken(|r| r.image = None), ["row 4", "column image", "chips/3.png"]),
            (broken(|r| r.image = Some(b"GIF89a".to_vec())), ["row 4", "(chips/3.png)", "picture"]),
            (
                broken(|r| r.image.as_mut().unwrap().truncate(60)),
                ["row 4", "(chips/3.png)", "picture"],
            ),
            (broken(|r| r.label = Some(-1)), ["row 4", "column label", "-1"]),
            (broken(|r| r.label = Some(70_000)), ["row 4", "column label", "70000"]),
            (broken(|r| r.label = None), ["row 4", "column label", "a number for \"Sea\""]),
            (broken(|r| r.class = Some("Lake".into())), ["row 4", "column class", "\"Lake\""]),
        ] {
            // Label 3 is called Sea in the last row.
            let mut change = change;
            let mut last = rows(8).remove(7);
            std::mem::swap(&mut change[0], &mut last);
            let error = fault(&change, &ALL);
            assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
        }
        // The one row of a class, without its name.
        let error = fault(&broken(|r| (r.label, r.class) = (Some(9), None)), &ALL);
        assert!(error.contains("row 4") && error.contains("label 9"), "{error}");
        // None is left.
        let empty = open(&[FixtureRow::default()], &ALL, DataSettings::default());
        let error = empty.err().unwrap().to_string();
        assert!(error.contains("1 that cannot be used") && error.contains("row 1"), "{error}");
        let error = open(&[], &ALL, DataSettings::default()).err().unwrap().to_string();
        assert!(error.contains("expected pictures, found none"), "{error}");
    }

    #[test]
    fn sizes_that_differ_need_a_resolution() {
        let mut rows = rows(4);
        rows[2].image = Some(picture(8, 12, 1));
        let error = open(&rows, &ALL, DataSettings::default()).err().unwrap().to_string();
        assert!(error.contains("row 3") && error.contains("8x12"), "{error}");
        let settings = DataSettings { resolution: Some(4), ..DataSettings::default() };
        let data = open(&rows, &ALL, settings).unwrap();
        assert_eq!(data.pass(4, 1).unwrap().next().unwrap().unwrap().images.dims(), [4, 4, 4, 3]);
        for resolution in [0, 5000] {
            let settings = DataSettings { resolution: Some(resolution), ..DataSettings::default() };
            let error = open(&rows, &ALL, settings).err().unwrap().to_string();
            assert!(
                error.contains("resolution") && error.contains(&resolution.to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn templates_speak_of_classes() {
        let settings = DataSettings {
            caption_template: vec!["a satellite image of {class}".into()],
            ..strict()
        };
        let data = open(&rows(4), &["label", "class", "image"], settings.clone()).unwrap();
        data.require_captions().unwrap();
        let batch = data.pass(4, 1).unwrap().next().unwrap().unwrap();
        assert_eq!(batch.captions[2], "a satellite image of Highway");
        let folder = tempfile::tempdir().unwrap();
        let words = folder.path().join("words.json");
        std::fs::write(&words, r#"{"Lake": ["lake"]}"#).unwrap();
        let settings = DataSettings { class_words: Some(words), ..settings };
        let error = open(&rows(4), &ALL, settings).err().unwrap().to_string();
        assert!(error.contains("words.json") && error.contains("\"Lake\""), "{error}");
    }

    #[test]
    fn a_folder_is_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir(path.join("sub")).unwrap();
        std::fs::write(path.join("sub/a.png"), picture(8, 8, 1)).unwrap();
        std::fs::write(path.join("b.png"), picture(8, 8, 2)).unwrap();
        let index =
            |lines: &[&str]| std::fs::write(path.join("metadata.jsonl"), lines.join("\n")).unwrap();
        let good = [
            r#"{"file_name": "sub/a.png", "text": "a field", "class": "Field"}"#,
            "",
            r#"{"file_name": "b.png", "captions": ["a lake", "water"], "class": "Lake", "other": 1}"#,
        ];
        index(&good);
        let data = Dataset::open(path, strict()).unwrap();
        assert_eq!((data.len(), data.classes()), (2, &["Field".to_owned(), "Lake".to_owned()][..]));
        assert_eq!(data.captions(1), ["a lake", "water"]);
        for (line, parts) in [
            ("{", ["line 4", "content", "EOF"]),
            ("{\"text\": \"x\"}", ["line 4", "fields", "file_name"]),
            ("{\"file_name\": \"../b.png\"}", ["line 4", "inside of the folder", "../b.png"]),
            ("{\"file_name\": \"/etc/hosts\"}", ["line 4", "inside of the folder", "/etc/hosts"]),
            ("{\"file_name\": \"c.png\", \"class\": \"Lake\"}", ["c.png", "No such file", ""]),
            ("{\"file_name\": \"b.png\", \"label\": -1}", ["line 4", "fields", "-1"]),
        ] {
            index(&[good[0], good[1], good[2], line]);
            let error = Dataset::open(path, strict()).err().unwrap().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
            let data = Dataset::open(path, DataSettings::default()).unwrap();
            assert_eq!((data.len(), data.faults().len()), (2, 1));
        }
        std::fs::remove_file(path.join("metadata.jsonl")).unwrap();
        let error = Dataset::open(path, strict()).err().unwrap().to_string();
        assert!(error.contains("metadata.jsonl"), "{error}");
    }

    #[test]
    fn a_split_parts_all_rows() {
        let data = open(&rows(20), &ALL, strict()).unwrap();
        let (train, held_out) = data.split(0.1, 42).unwrap();
        assert_eq!((train.len(), held_out.len()), (18, 2));
        let mut names: Vec<_> =
            [&train, &held_out].iter().flat_map(|d| (0..d.len()).map(|row| d.name(row))).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 20);
        // A part's rows are its own.
        let batch = held_out.pass(4, 1).unwrap().next().unwrap().unwrap();
        assert_eq!(batch.captions.len(), 2);
        let name = |caption: &str| format!("chips/{}.png", caption.rsplit(' ').next().unwrap());
        assert_eq!(name(&batch.captions[1]), held_out.name(1));
        assert_ne!(held_out.name(0), data.split(0.1, 43).unwrap().1.name(0));
        for share in [0.0, 1.0, f64::NAN, -1.0] {
            let error = data.split(share, 1).err().unwrap().to_string();
            assert!(error.contains(&share.to_string()), "{share}: {error}");
        }
    }
}
