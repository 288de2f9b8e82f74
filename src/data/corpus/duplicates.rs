//! Documents that are there already: the same text, or nearly.
//!
//! The same: equal SHA-256 of the words in lower case, without punctuation. Nearly: the sets of their shingles (three words in
//! a row) have a Jaccard similarity of the threshold or more. Candidates are found by MinHash (Broder 1997) and bands of a
//! signature that are equal (Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, 3.4); what counts is their exact
//! similarity. The shingles of what is kept lie in a file, so that a kept document takes about 2 KB of memory, whatever its length.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use unicode_segmentation::UnicodeSegmentation;

use crate::error::{Error, Result};

/// Words of a shingle.
const SHINGLE: usize = 3;

/// Hashes of a signature.
const HASHES: usize = 128;

/// Pairs at the threshold that no band finds, at most.
const MISSED: f64 = 1e-3;

/// Candidates whose estimated similarity is this far below the threshold are not compared: four standard deviations
/// of an estimate by 128 hashes, at its widest.
const MARGIN: f64 = 4.0 * 0.5 / 11.3;

/// What is compared of a text.
pub struct Fingerprint {
    digest: [u8; 32],
    /// Of its shingles, sorted, each once.
    shingles: Vec<u64>,
    signature: Box<[u32; HASHES]>,
}

impl Fingerprint {
    /// Of a cleaned text.
    pub fn new(text: &str) -> Self {
        let lower = text.to_lowercase();
        let words: Vec<&str> = lower.unicode_words().collect();
        let mut digest = Sha256::new();
        for word in &words {
            digest.update(word);
            digest.update(" ");
        }
        let hashes: Vec<u64> = words.iter().map(|word| hash(word.as_bytes())).collect();
        let mut shingles: Vec<u64> =
            hashes.windows(SHINGLE.min(hashes.len()).max(1)).map(joined).collect();
        shingles.sort_unstable();
        shingles.dedup();
        let signature = Box::new(signature(&shingles));
        Self { digest: digest.finalize().into(), shingles, signature }
    }
}

/// FNV-1a, with its bits mixed.
fn hash(bytes: &[u8]) -> u64 {
    let step = |h: u64, &byte: &u8| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The last steps of SplitMix64: every bit of `x` changes every other.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One hash of several in their order.
fn joined(hashes: &[u64]) -> u64 {
    hashes.iter().fold(0, |h, &next| mix(h ^ next).wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// The least of each of [`HASHES`] functions over all shingles: two texts agree in one with the probability of their
/// similarity.
fn signature(shingles: &[u64]) -> [u32; HASHES] {
    let mut least = [u32::MAX; HASHES];
    // Multiply-shift hashing: by an odd factor of each function's own.
    let factors: [(u64, u64); HASHES] =
        std::array::from_fn(|i| (mix(2 * i as u64 + 1) | 1, mix(2 * i as u64 + 2)));
    for shingle in shingles {
        for (least, (a, b)) in least.iter_mut().zip(factors) {
            *least = (*least).min((a.wrapping_mul(*shingle).wrapping_add(b) >> 32) as u32);
        }
    }
    least
}

/// Which document a text is the same as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Twin {
    /// The number of a document with the same words.
    Exact(usize),
    /// The number of a similar one, and how similar.
    Near(usize, f64),
}

/// Documents that were kept, to be compared with.
pub struct Index {
    threshold: f64,
    /// Hashes of a band.
    rows: usize,
    digests: HashMap<[u8; 32], usize>,
    /// Documents that have a band with this hash.
    bands: HashMap<u64, Vec<u32>>,
    kept: Vec<Kept>,
    spill: File,
    path: PathBuf,
    end: u64,
}

struct Kept {
    signature: Box<[u32; HASHES]>,
    /// Where its shingles lie in the file, and how many.
    place: u64,
    shingles: usize,
}

impl Index {
    /// An empty one, whose file, which no other process sees, is in `folder`.
    ///
    /// # Errors
    /// `folder` cannot be written to; a threshold outside 0.1..=1.
    pub fn new(threshold: f64, folder: &Path) -> Result<Self> {
        if !(0.1..=1.0).contains(&threshold) {
            return Err(Error::argument("similarity", threshold, "0.1 to 1"));
        }
        let spill = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        Ok(Self {
            threshold,
            rows: rows(threshold),
            digests: HashMap::new(),
            bands: HashMap::new(),
            kept: Vec::new(),
            spill,
            path: folder.to_owned(),
            end: 0,
        })
    }

    /// Keeps a document, which gets the next number, unless it is there already: the most similar that is, the first of
    /// several.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn insert(&mut self, print: Fingerprint) -> Result<Option<Twin>> {
        if let Some(&twin) = self.digests.get(&print.digest) {
            return Ok(Some(Twin::Exact(twin)));
        }
        let keys = self.keys(&print.signature);
        if let Some(twin) = self.most_similar(&print, &keys)? {
            return Ok(Some(twin));
        }
        let number = self.kept.len();
        self.digests.insert(print.digest, number);
        for key in keys {
            self.bands.entry(key).or_default().push(number as u32);
        }
        let failed = |e| Error::io(&self.path, e);
        self.spill.seek(SeekFrom::Start(self.end)).map_err(failed)?;
        let bytes: &[u8] = bytemuck::cast_slice(&print.shingles);
        self.spill.write_all(bytes).map_err(failed)?;
        let (signature, place, shingles) = (print.signature, self.end, print.shingles.len());
        self.kept.push(Kept { signature, place, shingles });
        self.end += bytes.len() as u64;
        Ok(None)
    }

    /// A hash for each band.
    fn keys(&self, signature: &[u32; HASHES]) -> Vec<u64> {
        let bands = signature.chunks_exact(self.rows).enumerate();
        let key = |(i, band): (usize, &[u32])| {
            band.iter().fold(mix(i as u64 + 1), |h, &row| mix(h ^ u64::from(row)).wrapping_add(1))
        };
        bands.map(key).collect()
    }

    fn most_similar(&mut self, print: &Fingerprint, keys: &[u64]) -> Result<Option<Twin>> {
        let found = keys.iter().filter_map(|key| self.bands.get(key)).flatten();
        let mut candidates: Vec<u32> = found.copied().collect();
        candidates.sort_unstable();
        candidates.dedup();
        let mut best: Option<(usize, f64)> = None;
        for number in candidates {
            let number = number as usize;
            let kept = &self.kept[number];
            if estimate(&kept.signature, &print.signature) < self.threshold - MARGIN {
                continue;
            }
            let mut shingles = vec![0_u64; kept.shingles];
            let failed = |e| Error::io(&self.path, e);
            self.spill.seek(SeekFrom::Start(kept.place)).map_err(failed)?;
            self.spill.read_exact(bytemuck::cast_slice_mut(&mut shingles)).map_err(failed)?;
            let similarity = jaccard(&shingles, &print.shingles);
            if similarity >= self.threshold && best.is_none_or(|(_, most)| similarity > most) {
                best = Some((number, similarity));
            }
        }
        Ok(best.map(|(number, similarity)| Twin::Near(number, similarity)))
    }
}

/// Hashes of a band: as many as leave enough of the pairs at the threshold with a band in common, so that few others have
/// one. A pair of similarity s has none with probability (1 - s^rows)^bands.
fn rows(threshold: f64) -> usize {
    let missed = |rows: usize| {
        let bands = (HASHES / rows) as i32;
        (1.0 - threshold.powi(rows as i32)).powi(bands)
    };
    (1..=HASHES / 4).rev().find(|&rows| missed(rows) <= MISSED).unwrap_or(1)
}

/// The share of equal hashes, which is about the similarity.
fn estimate(a: &[u32; HASHES], b: &[u32; HASHES]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / HASHES as f64
}

/// |A and B| / |A or B| of two sorted sets; of two empty ones 1.
fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        both += usize::from(a[i] == b[j]);
        let (x, y) = (a[i], b[j]);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    match a.len() + b.len() - both {
        0 => 1.0,
        any => both as f64 / any as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets of which `similarity` of all members are in both.
    fn pair(seed: u64, similarity: f64) -> [Vec<u64>; 2] {
        let n = 600;
        let both = (similarity * n as f64).round() as u64;
        let member = |i: u64| mix(seed * 1_000_003 + i + 1);
        let mut sets = [0, 1].map(|side| {
            let own = (both..n).filter(|i| i % 2 == side);
            (0..both).chain(own).map(member).collect::<Vec<u64>>()
        });
        sets.iter_mut().for_each(|set| set.sort_unstable());
        sets
    }

    #[test]
    fn a_signature_estimates_the_similarity() {
        for similarity in [0.0, 0.2, 0.5, 0.8, 0.95, 1.0] {
            let (mut sum, mut squares) = (0.0, 0.0);
            let n = 200;
            for seed in 0..n {
                let [a, b] = pair(seed, similarity);
                assert!((jaccard(&a, &b) - similarity).abs() < 1e-3);
                let found = estimate(&signature(&a), &signature(&b));
                sum += found;
                squares += (found - similarity).powi(2);
            }
            // A mean of `n` estimates of 128 draws each: five of its standard deviations. That of one estimate, within a
            // quarter, which 200 of them tell.
            let deviation = (similarity * (1.0 - similarity) / HASHES as f64).sqrt();
            let error = (sum / n as f64 - similarity).abs();
            assert!(error <= 5.0 * deviation / (n as f64).sqrt(), "{similarity}: {error}");
            let found = (squares / n as f64).sqrt();
            assert!((found - deviation).abs() <= 0.25 * deviation, "{similarity}: {found}");
        }
    }

    #[test]
    fn bands_find_what_is_similar_and_little_else() {
        for threshold in [0.5, 0.8, 0.9, 1.0] {
            let rows = rows(threshold);
            let index = Index::new(threshold, &std::env::temp_dir()).unwrap();
            let share = |similarity: f64| {
                let common = |seed| {
                    let [a, b] = pair(seed, similarity).map(|s| index.keys(&signature(&s)));
                    a.iter().zip(&b).any(|(a, b)| a == b)
                };
                (0..300).filter(|&seed| common(seed)).count()
            };
            assert!(share(threshold) >= 298, "{threshold}: {rows} rows");
            assert!(share(threshold / 8.0) < 100, "{threshold}: {rows} rows");
        }
        assert_eq!(rows(0.8), 5);
    }

    #[test]
    fn the_threshold_decides() {
        let words = |n: usize, other: &[usize]| {
            let word = |i| if other.contains(&i) { format!("x{i}") } else { format!("w{i}") };
            (0..n).map(word).collect::<Vec<_>>().join(" ")
        };
        let index = |threshold| Index::new(threshold, &std::env::temp_dir()).unwrap();
        // One word of 60 is in 3 of 58 shingles: 55 of 61.
        let similarity = 55.0 / 61.0;
        for (threshold, is_found) in [(similarity - 1e-9, true), (similarity + 1e-9, false)] {
            let mut index = index(threshold);
            assert_eq!(index.insert(Fingerprint::new(&words(60, &[]))).unwrap(), None);
            let twin = index.insert(Fingerprint::new(&words(60, &[30]))).unwrap();
            assert_eq!(twin, is_found.then_some(Twin::Near(0, similarity)), "{threshold}");
        }
        // The same words are the same text, and the first is what others are measured by.
        let mut index = index(0.8);
        assert_eq!(index.insert(Fingerprint::new("One two, three.")).unwrap(), None);
        assert_eq!(index.insert(Fingerprint::new("Four five six")).unwrap(), None);
        let twin = index.insert(Fingerprint::new("one TWO three!")).unwrap();
        assert_eq!(twin, Some(Twin::Exact(0)));
        // Fewer words than a shingle has.
        for short in ["", "one", "one two"] {
            assert_eq!(index.insert(Fingerprint::new(short)).unwrap(), None, "{short}");
        }
        for wrong in [0.0, 1.1, f64::NAN] {
            assert!(Index::new(wrong, &std::env::temp_dir()).is_err());
        }
    }
}
