//! What is said of a picture: one of its captions, or a sentence made of its class.

use std::collections::BTreeMap;
use std::path::Path;

use super::random::Draws;
use crate::error::{Error, Result};

/// Where a template names the class.
const CLASS: &str = "{class}";

/// Which of a picture's captions it goes with.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum CaptionChoice {
    /// One of them, drawn anew each epoch.
    #[default]
    Random,
    /// The first.
    First,
    /// All of them, one behind the other: text encoders cut what is too long.
    Joined,
}

/// Sentences about classes.
#[derive(Clone, Debug, Default)]
pub(super) struct Sentences {
    templates: Vec<String>,
    /// Words for a class; the class's own name where it has none here.
    words: BTreeMap<String, Vec<String>>,
}

impl Sentences {
    /// `words` is a JSON file of the form `{"Forest": ["forest", "woodland"]}`.
    ///
    /// # Errors
    /// A template does not name the class; the file is of another form.
    pub fn new(templates: &[String], words: Option<&Path>) -> Result<Self> {
        if let Some(template) = templates.iter().find(|t| !t.contains(CLASS)) {
            let expected =
                format!("a sentence with {CLASS} in it, such as \"a satellite image of {CLASS}\"");
            return Err(Error::argument("caption_template", format!("{template:?}"), expected));
        }
        let words = words.map(read_words).transpose()?.unwrap_or_default();
        Ok(Self { templates: templates.to_vec(), words })
    }

    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// The sentence for `class`: the first, or one that is drawn.
    pub fn about(&self, class: &str, draws: Option<&mut Draws>) -> String {
        let own = [class.to_owned()];
        let words = self.words.get(class).map_or(&own[..], Vec::as_slice);
        let (template, word) = match draws {
            Some(draws) => (draws.below(self.templates.len()), draws.below(words.len())),
            None => (0, 0),
        };
        self.templates.get(template).map_or_else(String::new, |t| t.replace(CLASS, &words[word]))
    }

    /// The first class that words are given for and that is not among `classes`.
    pub fn unknown_class(&self, classes: &[String]) -> Option<&String> {
        self.words.keys().find(|class| !classes.contains(class))
    }
}

/// The caption of a picture that has some; `draws` where one is to be drawn.
pub(super) fn choose(
    captions: &[String],
    choice: CaptionChoice,
    draws: Option<&mut Draws>,
) -> String {
    let first = || captions.first().cloned().unwrap_or_default();
    match (choice, draws) {
        (CaptionChoice::Joined, _) => captions.join(" "),
        (CaptionChoice::Random, Some(draws)) => {
            captions.get(draws.below(captions.len())).cloned().unwrap_or_default()
        }
        _ => first(),
    }
}

fn read_words(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let expected = "an object of classes and their words, {\"Forest\": [\"forest\", \"woodland\"]}";
    let wrong = |found: String| {
        Error::file(path, "words of classes", expected, found, "Write it in this form.")
    };
    let text = crate::io::read_bounded(path, 1 << 20)?;
    let words: BTreeMap<String, Vec<String>> =
        serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    match words.iter().find(|(_, words)| words.is_empty()) {
        Some((class, _)) => Err(wrong(format!("no word for {class:?}"))),
        None => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::Purpose;

    #[test]
    fn every_template_and_word_has_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.json");
        std::fs::write(&path, r#"{"Highway": ["highway", "motorway", "main road"]}"#).unwrap();
        let templates = ["a {class}".to_owned(), "{class} from above, {class}".to_owned()];
        let sentences = Sentences::new(&templates, Some(&path)).unwrap();
        let mut draws = Draws::new(1, 0, 0, Purpose::Row);
        let mut seen: Vec<_> =
            (0..200).map(|_| sentences.about("Highway", Some(&mut draws))).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(
            seen,
            [
                "a highway",
                "a main road",
                "a motorway",
                "highway from above, highway",
                "main road from above, main road",
                "motorway from above, motorway"
            ]
        );
        assert_eq!(sentences.about("River", None), "a River");
        assert_eq!(sentences.unknown_class(&["River".to_owned()]).unwrap(), "Highway");
        assert_eq!(sentences.unknown_class(&["Highway".to_owned()]), None);
    }

    #[test]
    fn what_makes_no_sentence_is_an_error() {
        let error = Sentences::new(&["a picture".to_owned()], None).unwrap_err().to_string();
        assert!(error.contains("\"a picture\"") && error.contains("{class}"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.json");
        for (text, found) in [("[]", "expected a map"), ("{\"A\": []}", "no word for \"A\"")] {
            std::fs::write(&path, text).unwrap();
            let error = Sentences::new(&[], Some(&path)).unwrap_err().to_string();
            assert!(error.contains("words.json") && error.contains(found), "{error}");
        }
    }

    #[test]
    fn captions_are_chosen() {
        let captions = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let mut draws = Draws::new(1, 0, 0, Purpose::Row);
        let mut random: Vec<_> =
            (0..50).map(|_| choose(&captions, CaptionChoice::Random, Some(&mut draws))).collect();
        random.sort();
        random.dedup();
        assert_eq!(random, ["a", "b", "c"]);
        assert_eq!(choose(&captions, CaptionChoice::Random, None), "a");
        assert_eq!(choose(&captions, CaptionChoice::First, Some(&mut draws)), "a");
        assert_eq!(choose(&captions, CaptionChoice::Joined, None), "a b c");
        assert_eq!(choose(&[], CaptionChoice::Random, Some(&mut draws)), "");
    }
}
