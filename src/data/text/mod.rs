//! Texts to train language models on: documents as rows of tokens, in batches of about one length.
//!
//! A row is a document, or a part of one that is longer than a block; nothing of another document is ever before a token.
//! Packed, a row is as many of these as a block has room for, and says where they are, so that it stays so.
//! Rows are filled up behind their end to the length of the longest in the batch, which no token sees and no loss counts.

mod source;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::random::{Purpose, permutation};
use super::{Batches, Examples};
use crate::error::{Error, Result};
use crate::io::read_bounded;
use crate::tensor::Tensor;
use source::Entry;

/// Where a template names the class, and the text.
const CLASS: &str = "{class}";
const TEXT: &str = "{text}";

/// The target of a place that is filled up: a loss ignores it.
pub const FILLING: u32 = u32::MAX;

/// Batches whose rows are sorted by length together.
const SORTED: u64 = 16;

/// How documents are made of texts, and rows of documents.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Data")]
pub struct TextSettings {
    /// Tokens of a row; longer documents become several
    #[arg(long, value_name = "TOKENS", default_value_t = 256, allow_negative_numbers = true)]
    pub block_size: usize,

    /// Put several documents into a row, as many as it has room for; none sees another, so that only speed is another
    #[arg(long)]
    pub packing: bool,

    /// How a text with a class becomes a document, such as "{class}: {text}" [default: the text alone]
    #[arg(long, value_name = "TEMPLATE")]
    pub document_template: Option<String>,

    /// JSON file with other words for classes, {"farmland": {"words": ["farmland", "annual crop"]}}: its texts go with each
    /// in turn; with "named_by": ["farm", "crop"] only those that hold one of these go with the class
    #[arg(long, value_name = "FILE")]
    pub class_words: Option<PathBuf>,
}

impl Default for TextSettings {
    fn default() -> Self {
        Self { block_size: 256, packing: false, document_template: None, class_words: None }
    }
}

/// What stands for a class before its texts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassWords {
    words: Vec<String>,
    /// Parts of words, in lower case, one of which a text holds that names the class.
    named_by: Option<Vec<String>>,
}

impl ClassWords {
    fn is_named_in(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.named_by.as_ref().is_none_or(|all| all.iter().any(|part| text.contains(part)))
    }
}

fn read_words(path: &Path) -> Result<BTreeMap<String, ClassWords>> {
    let expected = "an object of classes, {\"farmland\": {\"words\": [\"farmland\"], \"named_by\": [\"farm\"]}}";
    let wrong = |found: String| {
        Error::file(path, "words of classes", expected, found, "Write it in this form.")
    };
    let text = read_bounded(path, 1 << 20)?;
    let all: BTreeMap<String, ClassWords> =
        serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    match all.iter().find(|(_, class)| class.words.is_empty()) {
        Some((class, _)) => Err(wrong(format!("no word for {class:?}"))),
        None => Ok(all),
    }
}

/// The documents in files: a line, a JSON object's text or each of its captions, a parquet row's text or captions. The
/// class of a text is a field `class`, or stands in the name of its picture (`airport_1.jpg`).
///
/// # Errors
/// A file is missing, damaged or of another form; settings that are not possible.
pub fn documents(paths: &[PathBuf], settings: &TextSettings) -> Result<Vec<Vec<String>>> {
    if let Some(template) = settings.document_template.as_ref().filter(|t| !t.contains(TEXT)) {
        let expected = format!("a sentence with {TEXT} in it, such as \"{CLASS}: {TEXT}\"");
        return Err(Error::argument("document_template", format!("{template:?}"), expected));
    }
    let words = settings.class_words.as_deref().map(read_words).transpose()?.unwrap_or_default();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = Vec::new();
    for path in paths {
        for Entry { texts, class } in source::read(path)? {
            let about = class.as_ref().and_then(|class| words.get(class));
            let word = class.as_ref().map(|class| {
                let turn = seen.entry(class.clone()).or_default();
                *turn += 1;
                about.map_or(class, |about| &about.words[(*turn - 1) % about.words.len()])
            });
            let document = |text: String| match (&settings.document_template, word) {
                (Some(template), Some(word)) if about.is_none_or(|a| a.is_named_in(&text)) => {
                    template.replace(CLASS, word).replace(TEXT, text.trim())
                }
                _ => text,
            };
            all.push(texts.into_iter().map(document).collect());
        }
    }
    Ok(all)
}

/// How documents become tokens.
pub struct Framing<'a> {
    /// The tokens of a text.
    pub encode: &'a dyn Fn(&str) -> Result<Vec<u32>>,
    /// What stands before a document.
    pub start: u32,
    /// What stands behind one.
    pub end: u32,
}

/// Documents as tokens.
#[derive(Clone)]
pub struct TextSet {
    path: PathBuf,
    /// Of all documents, one behind the other, each with its start and its end.
    tokens: Vec<u32>,
    /// Places of documents in `tokens`, by the entry that they come from.
    entries: Vec<Vec<Range<usize>>>,
    rows: Vec<Row>,
    block: usize,
    packing: bool,
    filling: u32,
}

/// Places of a row's documents, or of their parts, in the tokens: what is seen, and one token more.
type Row = Vec<Range<usize>>;

/// Tokens of a row that are seen.
fn length(row: &Row) -> usize {
    row.iter().map(|part| part.len() - 1).sum()
}

/// Some rows.
pub struct TokenBatch {
    /// [B, T] i64
    pub ids: Tensor,
    /// [B, T] u32: the token behind each, or [`FILLING`].
    pub targets: Tensor,
    /// Targets that count.
    pub count: usize,
    /// Lengths of the documents in each row, where there are several in one; empty where each row is one.
    pub documents: Vec<Vec<usize>>,
}

/// Puts parts into rows of at most `block` tokens: the longest first, each where it leaves least room (best fit decreasing).
fn packed(mut parts: Row, block: usize) -> Vec<Row> {
    parts.sort_by_key(|part| (Reverse(part.len()), part.start));
    let mut rows: Vec<Row> = Vec::new();
    // Rows by the room that they have left.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for part in parts {
        let needed = part.len() - 1;
        let (room, row) = match open.range((needed, 0)..).next().copied() {
            Some(fitting) => fitting,
            None => {
                rows.push(Vec::new());
                (block, rows.len() - 1)
            }
        };
        open.remove(&(room, row));
        open.insert((room - needed, row));
        rows[row].push(part);
    }
    rows
}

impl TextSet {
    /// Reads files, see [`documents()`], and cuts what is in them. A document that occurs twice in one entry (line, row)
    /// counts once; one without a token is left out.
    ///
    /// # Errors
    /// Those of [`documents()`] and of `encode`; no document is left.
    pub fn open(paths: &[PathBuf], settings: &TextSettings, framing: &Framing) -> Result<Self> {
        let path = paths.first().map_or(Path::new(""), PathBuf::as_path);
        let all = documents(paths, settings)?;
        let mut entries = Vec::with_capacity(all.len());
        for texts in &all {
            let mut own = BTreeSet::new();
            let mut kept = Vec::new();
            for text in texts {
                let tokens = (framing.encode)(text)?;
                if !tokens.is_empty() && own.insert(tokens.clone()) {
                    kept.push(tokens);
                }
            }
            entries.push(kept);
        }
        Self::new(path, entries, settings, framing)
    }

    fn new(
        path: &Path,
        all: Vec<Vec<Vec<u32>>>,
        settings: &TextSettings,
        framing: &Framing,
    ) -> Result<Self> {
        let block = settings.block_size;
        if block == 0 {
            return Err(Error::argument("block_size", block, "at least 1"));
        }
        let (mut tokens, mut entries) = (Vec::new(), Vec::with_capacity(all.len()));
        for entry in all {
            let place = |own: Vec<u32>| {
                let from = tokens.len();
                tokens.push(framing.start);
                tokens.extend(own);
                tokens.push(framing.end);
                from..tokens.len()
            };
            entries.push(entry.into_iter().map(place).collect());
        }
        entries.retain(|entry: &Vec<_>| !entry.is_empty());
        if entries.is_empty() {
            let advice = "A line of text, or a JSON object with a text or captions, is a document.";
            return Err(Error::file(path, "content", "texts", "none", advice));
        }
        let mut set = Self {
            path: path.to_path_buf(),
            tokens,
            entries,
            rows: Vec::new(),
            block,
            packing: settings.packing,
            filling: framing.end,
        };
        set.cut();
        Ok(set)
    }

    /// Makes rows of the documents.
    fn cut(&mut self) {
        let block = self.block;
        let parts = |document: &Range<usize>| {
            let Range { start, end } = *document;
            (start..end - 1).step_by(block).map(move |from| from..(from + block + 1).min(end))
        };
        let parts = self.entries.iter().flatten().flat_map(parts);
        self.rows = if self.packing {
            packed(parts.collect(), block)
        } else {
            parts.map(|part| vec![part]).collect()
        };
    }

    /// The first file that it is from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The documents, each with its start and its end.
    pub fn documents(&self) -> impl Iterator<Item = &[u32]> {
        self.entries.iter().flatten().map(|place| &self.tokens[place.clone()])
    }

    /// The same without the documents that `keep` does not want.
    ///
    /// # Errors
    /// None is left.
    pub fn keeping(mut self, mut keep: impl FnMut(&[u32]) -> bool) -> Result<Self> {
        let tokens = &self.tokens;
        for entry in &mut self.entries {
            entry.retain(|place| keep(&tokens[place.clone()]));
        }
        self.entries.retain(|entry| !entry.is_empty());
        if self.entries.is_empty() {
            let (expected, advice) = ("documents that are wanted", "Take other texts.");
            return Err(Error::file(&self.path, "content", expected, "none", advice));
        }
        self.cut();
        Ok(self)
    }

    /// Parts it in two at random, what is of one entry staying together: the second has the share `held_out` of the
    /// entries, at least one.
    ///
    /// # Errors
    /// A share that leaves one of them empty.
    pub fn split(&self, held_out: f64, seed: u64) -> Result<(Self, Self)> {
        let count = self.entries.len();
        let n = ((count as f64 * held_out).round() as usize).max(1);
        if !(held_out > 0.0 && n < count) {
            let expected = format!("a share of {count} texts that leaves some on both sides");
            return Err(Error::argument("validation_split", held_out, expected));
        }
        let order = permutation(count, seed, 0, Purpose::Split);
        let part = |places: &[usize]| {
            let mut places = places.to_vec();
            places.sort_unstable();
            let entries = places.iter().map(|&place| self.entries[place].clone()).collect();
            let mut part = Self { entries, rows: Vec::new(), ..self.clone() };
            part.cut();
            part
        };
        let (second, first) = order.split_at(n);
        Ok((part(first), part(second)))
    }

    fn batch(&self, rows: &[usize]) -> Result<TokenBatch> {
        let rows: Vec<&Row> = rows.iter().map(|&row| &self.rows[row]).collect();
        let longest = rows.iter().map(|row| length(row)).max().unwrap_or(0);
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        for (i, row) in rows.iter().enumerate() {
            for part in *row {
                let tokens = &self.tokens[part.clone()];
                ids.extend(tokens[..tokens.len() - 1].iter().map(|&token| i64::from(token)));
                targets.extend_from_slice(&tokens[1..]);
            }
            ids.resize((i + 1) * longest, i64::from(self.filling));
            targets.resize((i + 1) * longest, FILLING);
        }
        let count = rows.iter().map(|row| length(row)).sum();
        let mut documents = Vec::new();
        if rows.iter().any(|row| row.len() > 1) {
            let lengths = |row: &&Row| row.iter().map(|part| part.len() - 1).collect();
            documents = rows.iter().map(lengths).collect();
        }
        let shape = [rows.len(), longest];
        let (ids, targets) = (Tensor::from_vec(ids, shape)?, Tensor::from_vec(targets, shape)?);
        Ok(TokenBatch { ids, targets, count, documents })
    }

    /// Rows of the batches `SORTED * window` and following: sorted by length, so that little is filled up, and in an order
    /// of their own.
    fn window(
        &self,
        batch: usize,
        seed: u64,
        window: u64,
        orders: &mut BTreeMap<u64, Vec<usize>>,
    ) -> Vec<Vec<usize>> {
        let n = self.rows.len() as u64;
        let size = SORTED * batch as u64;
        let (first, last) = (window * size, (window + 1) * size);
        orders.retain(|&epoch, _| epoch >= first / n);
        let mut row = |place: u64| {
            let epoch = place / n;
            let new = || permutation(n as usize, seed, epoch, Purpose::Order);
            orders.entry(epoch).or_insert_with(new)[(place % n) as usize]
        };
        let mut rows: Vec<usize> = (first..last).map(&mut row).collect();
        rows.sort_by_key(|&row| length(&self.rows[row]));
        let batches: Vec<&[usize]> = rows.chunks(batch).collect();
        let order = permutation(batches.len(), seed, window, Purpose::Batches);
        order.into_iter().map(|i| batches[i].to_vec()).collect()
    }
}

impl Examples for TextSet {
    type Batch = TokenBatch;

    fn len(&self) -> usize {
        self.rows.len()
    }

    /// Tokens that are predicted.
    fn count(&self) -> usize {
        self.rows.iter().map(length).sum()
    }

    /// Begins with a whole batch: `start` is rounded down to one.
    fn stream(
        &self,
        batch: usize,
        seed: u64,
        start: u64,
        _: usize,
    ) -> Result<Batches<'_, TokenBatch>> {
        if batch == 0 {
            return Err(Error::argument("train_batch_size", batch, "at least 1"));
        }
        let (mut orders, mut now) = (BTreeMap::new(), None);
        let rows = move |number: u64| {
            let window = number / SORTED;
            let batches = match now.take() {
                Some((known, batches)) if known == window => batches,
                _ => self.window(batch, seed, window, &mut orders),
            };
            let rows = self.batch(&batches[(number % SORTED) as usize]);
            now = Some((window, batches));
            rows
        };
        Ok(Box::new((start / batch as u64..).map(rows)))
    }

    /// The short ones first.
    fn pass(&self, batch: usize, _: usize) -> Result<Batches<'_, TokenBatch>> {
        if batch == 0 {
            return Err(Error::argument("train_batch_size", batch, "at least 1"));
        }
        let mut rows: Vec<usize> = (0..self.rows.len()).collect();
        rows.sort_by_key(|&row| length(&self.rows[row]));
        let batches: Vec<Vec<usize>> = rows.chunks(batch).map(<[usize]>::to_vec).collect();
        Ok(Box::new(batches.into_iter().map(|rows| self.batch(&rows))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes, 0 before a document and 1 behind it.
    fn framing() -> Framing<'static> {
        let encode = &|text: &str| Ok(text.bytes().map(u32::from).collect());
        Framing { encode, start: 0, end: 1 }
    }

    fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Documents of 0 to 22 letters of their own.
    fn set(block_size: usize) -> TextSet {
        set_of(TextSettings { block_size, ..TextSettings::default() })
    }

    fn set_of(settings: TextSettings) -> TextSet {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = (1..24u8).map(|n| format!("{}\n", "x".repeat(n.into()))).collect();
        let path = file(folder.path(), "a.txt", &lines);
        TextSet::open(&[path], &settings, &framing()).unwrap()
    }

    /// What is seen and what is predicted of each row, filling left out, which is checked.
    fn rows(batch: &TokenBatch) -> Vec<(Vec<u32>, Vec<u32>)> {
        let (b, t) = (batch.ids.dim(0), batch.ids.dim(1));
        assert_eq!(batch.targets.dims(), [b, t]);
        let (ids, targets) =
            (batch.ids.to_vec::<i64>().unwrap(), batch.targets.to_vec::<u32>().unwrap());
        let mut count = 0;
        let rows = ids.chunks(t).zip(targets.chunks(t)).map(|(ids, targets)| {
            let length = targets.iter().position(|&t| t == FILLING).unwrap_or(t);
            assert!(targets[length..].iter().all(|&t| t == FILLING));
            assert!(ids[length..].iter().all(|&id| id == 1));
            count += length;
            (ids[..length].iter().map(|&id| id as u32).collect(), targets[..length].to_vec())
        });
        let rows: Vec<_> = rows.collect();
        assert_eq!(batch.count, count);
        assert!(rows.iter().any(|row: &(Vec<u32>, _)| row.0.len() == t));
        rows
    }

    #[test]
    fn every_token_is_predicted_once_from_its_own_document_alone() {
        for block in [1, 5, 7, 256] {
            let set = set(block);
            let mut predicted: Vec<u32> = Vec::new();
            let mut all = Vec::new();
            for batch in set.pass(4, 1).unwrap() {
                all.extend(rows(&batch.unwrap()));
            }
            assert_eq!(all.len(), set.len());
            for (seen, targets) in &all {
                assert!(seen.len() <= block && seen.len() == targets.len());
                assert_eq!(seen[1..], targets[..targets.len() - 1]);
                // A start is at the front or nowhere; an end ends a row.
                assert!(!targets.contains(&0) && !seen.contains(&1));
                predicted.extend(targets);
            }
            let documents: Vec<u32> = set.documents().flat_map(|d| d[1..].to_vec()).collect();
            let sorted = |mut tokens: Vec<u32>| {
                tokens.sort_unstable();
                tokens
            };
            assert_eq!(set.count(), predicted.len());
            assert_eq!(sorted(predicted), sorted(documents));
        }
    }

    #[test]
    fn packed_rows_are_full_of_the_same_parts() {
        for block in [1, 7, 24, 256] {
            let mut parts: [Vec<(Vec<i64>, Vec<u32>)>; 2] = [Vec::new(), Vec::new()];
            let sets = [false, true].map(|packing| {
                set_of(TextSettings { block_size: block, packing, ..TextSettings::default() })
            });
            for (set, parts) in sets.iter().zip(&mut parts) {
                for batch in set.pass(3, 1).unwrap() {
                    let TokenBatch { ids, targets, count, documents } = batch.unwrap();
                    let (rows, t) = ids.dims2().unwrap();
                    let (ids, targets) =
                        (ids.to_vec::<i64>().unwrap(), targets.to_vec::<u32>().unwrap());
                    assert!(t <= block && (documents.is_empty() || documents.len() == rows));
                    assert_eq!(count, targets.iter().filter(|&&target| target != FILLING).count());
                    for row in 0..rows {
                        let (ids, targets) = (&ids[row * t..][..t], &targets[row * t..][..t]);
                        let filled =
                            targets.iter().position(|&target| target == FILLING).unwrap_or(t);
                        let one = vec![filled];
                        let mut start = 0;
                        for length in documents.get(row).unwrap_or(&one) {
                            let part = start..start + length;
                            parts.push((ids[part.clone()].to_vec(), targets[part].to_vec()));
                            start += length;
                        }
                        assert_eq!(start, filled);
                    }
                }
                parts.sort();
            }
            let [apart, packed] = parts;
            assert_eq!(apart, packed);
            let [apart, packed] = sets;
            // No two rows would fit into one.
            let mut lengths: Vec<usize> = packed.rows.iter().map(length).collect();
            lengths.sort_unstable();
            assert!(lengths.len() < 2 || lengths[0] + lengths[1] > block, "{lengths:?}");
            assert!(packed.len() <= apart.len() && packed.count() == apart.count());
        }
    }

    #[test]
    fn a_stream_depends_on_its_seed_and_place_alone() {
        let set = set(256);
        let take = |seed, start, n| {
            let batches = set.stream(3, seed, start, 1).unwrap().take(n);
            batches.map(|batch| rows(&batch.unwrap())).collect::<Vec<_>>()
        };
        let all = take(7, 0, 60);
        for start in [1, 8, 16, 40] {
            assert_eq!(take(7, 3 * start, 60 - start as usize), all[start as usize..]);
        }
        assert_ne!(take(8, 0, 60), all);
        // Over whole epochs every row comes as often: windows of 48 rows, 23 rows an epoch.
        let mut times = BTreeMap::new();
        let whole = take(7, 0, 16 * 23);
        for row in whole.iter().flatten() {
            *times.entry(row.0.clone()).or_insert(0) += 1;
        }
        assert!(times.len() == 23 && times.values().all(|&n| n == 48), "{times:?}");
        // Rows of a batch are of about one length.
        let places: usize = whole.iter().map(|batch| 3 * batch[2].0.len()).sum();
        let filled = places - whole.iter().flatten().map(|row| row.0.len()).sum::<usize>();
        assert!(filled * 20 < places, "{filled} of {places}");
    }

    #[test]
    fn files_of_every_form_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let jsonl = file(
            folder.path(),
            "a.jsonl",
            "{\"filename\": \"x/pond_1.jpg\", \"captions\": [\"one\", \"two\", \"one\"]}\n\n\
             {\"text\": \"three\", \"class\": \"pond\"}\n{\"filename\": \"12.jpg\", \"captions\": [\"four\"]}\n",
        );
        let text = file(folder.path(), "b.txt", "five\n\n six\n");
        let words =
            file(folder.path(), "words.json", "{\"pond\": {\"words\": [\"pond\", \"lake\"]}}");
        let settings = TextSettings {
            document_template: Some("{class}: {text}".to_owned()),
            class_words: Some(words),
            ..TextSettings::default()
        };
        let paths = [jsonl, text];
        let all: Vec<Vec<String>> = documents(&paths, &settings).unwrap();
        assert_eq!(
            all,
            [
                &["pond: one", "pond: two", "pond: one"][..],
                &["lake: three"],
                &["four"],
                &["five"],
                &[" six"]
            ]
        );
        let set = TextSet::open(&paths, &settings, &framing()).unwrap();
        let documents: Vec<String> = set
            .documents()
            .map(|d| d[1..d.len() - 1].iter().map(|&byte| byte as u8 as char).collect())
            .collect();
        // What is the same within a line counts once.
        assert_eq!(documents, ["pond: one", "pond: two", "lake: three", "four", "five", " six"]);
        // One that does not name its class goes without.
        let named = "{\"pond\": {\"words\": [\"pond\", \"lake\"], \"named_by\": [\"t\"]}}";
        let named = Some(file(folder.path(), "named.json", named));
        let named = TextSettings { class_words: named, ..settings.clone() };
        let all: Vec<String> = self::documents(&paths, &named).unwrap().concat();
        assert_eq!(all, ["one", "pond: two", "one", "lake: three", "four", "five", " six"]);
        let (first, second) = set.split(0.4, 1).unwrap();
        assert_eq!(first.len() + second.len(), set.len());
        assert!(!second.is_empty());
        // Both captions of a picture are on one side.
        let captions = |set: &TextSet| set.documents().filter(|d| d.len() == 11).count();
        assert!([0, 2].contains(&captions(&first)) && captions(&first) + captions(&second) == 2);
        let long = set.keeping(|document| document.len() > 8).unwrap();
        assert_eq!(long.documents().count(), 3);
        assert!(long.keeping(|_| false).is_err());
        let parquet = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/blue-marble.parquet");
        let set = TextSet::open(&[parquet], &TextSettings::default(), &framing()).unwrap();
        assert_eq!(set.documents().count(), 1000);
    }

    #[test]
    fn what_holds_no_text_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = |name: &str, text: &str, settings: &TextSettings| {
            let path = file(folder.path(), name, text);
            TextSet::open(&[path], settings, &framing()).err().unwrap().to_string()
        };
        let plain = TextSettings::default();
        assert!(error("a.txt", "\n \n", &plain).contains("expected texts"));
        let message = error("a.jsonl", "{\"text\": \"x\"}\n{\"words\": 3}", &plain);
        assert!(message.contains("line 2") && message.contains("captions"), "{message}");
        assert!(error("a.jsonl", "[", &plain).contains("line 1"));
        assert!(error("a.parquet", "PAR1", &plain).contains("a parquet file"));
        let without = TextSettings { document_template: Some("x".to_owned()), ..plain.clone() };
        assert!(error("a.txt", "x", &without).contains("{text}"));
        assert!(
            error("a.txt", "x", &TextSettings { block_size: 0, ..plain }).contains("block_size")
        );
        for wrong in ["[]", "{\"a\": {\"words\": []}}", "{\"a\": {\"word\": [\"b\"]}}"] {
            let words = Some(file(folder.path(), "words.json", wrong));
            let settings = TextSettings { class_words: words, ..TextSettings::default() };
            assert!(error("a.txt", "x", &settings).contains("words of classes"), "{wrong}");
        }
        std::fs::write(folder.path().join("b.txt"), [0xff]).unwrap();
        let path = folder.path().join("b.txt");
        let bad = TextSet::open(&[path], &TextSettings::default(), &framing()).err().unwrap();
        assert!(bad.to_string().contains("UTF-8"));
    }
}
