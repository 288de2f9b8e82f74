//! What is known from elsewhere: test pictures that networks learn from too, and drawn pictures that are as good as real ones.

use std::collections::HashMap;
use std::path::Path;

use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::pipeline::Cancel;
use crate::pipeline::synthesis::Gallery;

/// Pictures in order, whatever they are labelled with.
pub(super) trait Set {
    /// Where they come from.
    fn path(&self) -> &Path;

    /// How many there are.
    fn count(&self) -> usize;

    /// One of them.
    ///
    /// # Errors
    /// It cannot be read any more.
    fn picture(&self, row: usize) -> Result<RgbImage>;
}

impl Set for Dataset {
    fn path(&self) -> &Path {
        self.path()
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn picture(&self, row: usize) -> Result<RgbImage> {
        self.picture(row)
    }
}

/// How near drawn pictures are to real ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Leak {
    /// The real ones: "test", ...
    pub of: String,
    /// How many there are.
    pub count: usize,
    /// Of each drawn picture the correlation with the nearest, see [`Gallery`]; the row; in descending order.
    pub nearest: Vec<(f32, usize)>,
}

/// How near drawn pictures are to those that networks learn from, to those that they are tested by, and to those that whatever
/// `saw` has seen, if they are others than `real`.
pub(super) fn leaks<S: Set>(
    drawn: &S,
    (real, test): (&S, &S),
    (saw, seen): (&str, Option<&S>),
    cancel: &Cancel,
) -> Result<Vec<Leak>> {
    let mut sets = vec![("the real pictures to learn from", real), ("the test pictures", test)];
    let saw = format!("what {saw} seen");
    sets.extend(seen.filter(|seen| seen.path() != real.path()).map(|seen| (&*saw, seen)));
    let leak = |(of, others): (&str, &S)| {
        let mut gallery = Gallery::default();
        for row in 0..others.count() {
            gallery.add(&others.picture(row)?)?;
            cancel.check()?;
        }
        let mut nearest = Vec::new();
        for row in 0..drawn.count() {
            nearest.push((gallery.similarity(&drawn.picture(row)?)?, row));
            cancel.check()?;
        }
        nearest.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(Leak { of: of.to_owned(), count: others.count(), nearest })
    };
    sets.into_iter().map(leak).collect()
}

/// Checks that none of the pictures that networks are tested by is one that they learn from, by its pixels.
///
/// # Errors
/// One is, or cannot be read; `Interrupted`.
pub(super) fn check_test(real: &impl Set, test: &impl Set, cancel: &Cancel) -> Result<()> {
    if test.path() == real.path() {
        let expected = "pictures that none of the networks learns from";
        return Err(Error::argument("test", test.path().display(), expected));
    }
    let digest = |picture: RgbImage| {
        let (width, height) = picture.dimensions();
        let hash = Sha256::new_with_prefix([width.to_le_bytes(), height.to_le_bytes()].concat());
        hash.chain_update(picture.as_raw()).finalize()
    };
    let mut known = HashMap::new();
    for row in 0..real.count() {
        known.insert(digest(real.picture(row)?), row);
        cancel.check()?;
    }
    for row in 0..test.count() {
        if let Some(same) = known.get(&digest(test.picture(row)?)) {
            let found = format!("picture {} of {}", same + 1, real.path().display());
            let expected = "one that none of the networks learns from";
            let advice =
                "Take it out of one of the two: networks would be asked what they were told.";
            let what = format!("picture {}", row + 1);
            return Err(Error::file(test.path(), what, expected, found, advice));
        }
        cancel.check()?;
    }
    Ok(())
}
