//! Classes that prompts are wanted for, and what a language model is given for each.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::read_file;

const MAX_FILE: u64 = 1 << 20;

/// A class, of land cover say.
///
/// Draw `i` is given one of the instructions and one of the beginnings, every pair in turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptClass {
    /// Its name.
    pub name: String,
    /// What a model is told, and what is no part of what it writes: "river:", or "Describe a satellite image of a river.\n".
    #[serde(default)]
    pub instructions: Vec<String>,
    /// What a prompt begins with.
    #[serde(default)]
    pub beginnings: Vec<String>,
    /// What an image model is told of the class before a prompt: "a satellite image of a river, ".
    #[serde(default)]
    pub picture: String,
    /// Parts of words, in lower case, one of which a prompt holds that is about the class; none: any prompt is.
    #[serde(default)]
    pub named_by: Vec<String>,
}

impl PromptClass {
    /// The instruction and the beginning of draw `i`.
    pub(super) fn given(&self, i: usize) -> (&str, &str) {
        let turn = |all: &'_ [String], i: usize| i.checked_rem(all.len());
        let instruction = turn(&self.instructions, i);
        let beginning = turn(&self.beginnings, i / self.instructions.len().max(1));
        (
            instruction.map_or("", |i| &self.instructions[i]),
            beginning.map_or("", |i| &self.beginnings[i]),
        )
    }
}

/// The classes in a TOML file, by the order of which they are numbered: tables `[[class]]` with the fields of
/// [`PromptClass`].
///
/// # Errors
/// The file is missing, or of another form; two classes have one name, or one has nothing to give.
pub fn open(path: &Path) -> Result<Vec<PromptClass>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Classes {
        class: Vec<PromptClass>,
    }
    let wrong = |what: &str, found: String| {
        let expected = "[[class]] with a name, and instructions or beginnings";
        let advice = "data/classes.toml is an example.";
        Error::file(path, what, expected, found, advice)
    };
    let text = read_file(path, MAX_FILE)?;
    let Classes { class } =
        toml::from_str(&text).map_err(|e| wrong("classes", e.to_string().trim().to_owned()))?;
    if class.is_empty() {
        return Err(wrong("classes", "none".to_owned()));
    }
    let mut names = BTreeSet::new();
    for one in &class {
        let what = format!("class {:?}", one.name);
        if one.name.trim().is_empty() || !names.insert(&one.name) {
            return Err(wrong(&what, "a name that is empty, or that another has".to_owned()));
        }
        if one.instructions.is_empty() && one.beginnings.is_empty() {
            return Err(wrong(&what, "neither instructions nor beginnings".to_owned()));
        }
    }
    Ok(class)
}
