//! A data set in figures, for who is about to train on it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Dataset;

/// What a data set holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Rows that can be used.
    pub rows: usize,
    /// Rows that cannot.
    pub faults: usize,
    /// Rows by class, by label.
    pub classes: Vec<(String, usize)>,
    /// Pictures by width and height, the most frequent first.
    pub sizes: Vec<([u32; 2], usize)>,
    /// What is said of them.
    pub captions: Captions,
}

/// The captions of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Captions {
    /// All of them.
    pub count: usize,
    /// Those that differ.
    pub distinct: usize,
    /// Rows without one.
    pub rows_without: usize,
    /// Words of one, on average and at most.
    pub mean_words: f64,
    /// Words of the longest.
    pub most_words: usize,
}

impl Summary {
    pub(super) fn of(data: &Dataset) -> Self {
        let mut classes: Vec<_> = data.classes().iter().map(|name| (name.clone(), 0)).collect();
        let (mut sizes, mut distinct) = (BTreeMap::new(), BTreeSet::new());
        let (mut captions, mut words) = (Captions::default(), 0);
        for row in 0..data.len() {
            if let Some(class) = classes.get_mut(data.label(row) as usize) {
                class.1 += 1;
            }
            *sizes.entry(data.all.sizes[data.rows[row]]).or_insert(0) += 1;
            captions.rows_without += usize::from(data.captions(row).is_empty());
            for caption in data.captions(row) {
                let length = caption.split_whitespace().count();
                words += length;
                captions.count += 1;
                captions.most_words = captions.most_words.max(length);
                distinct.insert(caption.as_str());
            }
        }
        captions.distinct = distinct.len();
        captions.mean_words = words as f64 / captions.count.max(1) as f64;
        let mut sizes: Vec<([u32; 2], usize)> = sizes.into_iter().collect();
        sizes.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        Self { rows: data.len(), faults: data.faults().len(), classes, sizes, captions }
    }
}
