//! Prompts for pictures, written by a language model: so many of each class, all different, none with what the model was told.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::classes::PromptClass;
use super::run::{Finish, TextRequest, TextRun};
use super::{LanguageModel, Sampling};
use crate::error::{Error, Result};

/// How prompts are written.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptSettings {
    /// Prompts of each class.
    pub per_class: usize,
    /// Draws for each of them, at most, those that are not taken included.
    pub max_draws: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Draw i of a class has the seed `seed` + i.
    pub seed: u64,
    /// Tokens of a draw, at most; what has more ends with its last whole sentence.
    pub max_new_tokens: usize,
    /// Draws that are computed at once; none depends on it.
    pub batch: usize,
}

/// A prompt for a picture of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassPrompt {
    /// The class's name.
    pub class: String,
    /// Its number.
    pub label: usize,
    /// What the picture shows.
    pub prompt: String,
    /// What the model was given.
    #[serde(default)]
    pub given: String,
    /// What it drew by: the same model goes on from `given` in the same words.
    #[serde(default)]
    pub seed: u64,
}

/// Why a draw is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It says nothing.
    Empty,
    /// It says again what the model was told.
    Echo,
    /// It has no whole sentence.
    Unfinished,
    /// It does not name its class.
    OffClass,
    /// One like it is there.
    Repeated,
}

impl Refusal {
    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Echo => "echoes the instruction",
            Self::Unfinished => "without a whole sentence",
            Self::OffClass => "does not name its class",
            Self::Repeated => "repeated",
        }
    }
}

/// What was written, and what was not taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// By class.
    pub prompts: Vec<ClassPrompt>,
    /// How many draws were refused, for all classes.
    pub refused: BTreeMap<Refusal, usize>,
}

/// Writes prompts for all classes. Nothing depends on the batch. `watch` is told how many are there, and ends all by an error.
///
/// # Errors
/// `Argument`: settings that are not possible, or a class for which too few draws can be taken; those of the model.
pub fn write(
    model: &LanguageModel,
    classes: &[PromptClass],
    settings: &PromptSettings,
    watch: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Written> {
    settings.sampling.check()?;
    let numbers = [
        ("per_class", settings.per_class),
        ("max_draws", settings.max_draws),
        ("max_new_tokens", settings.max_new_tokens),
        ("batch", settings.batch),
    ];
    if let Some((name, _)) = numbers.into_iter().find(|(_, n)| *n == 0) {
        return Err(Error::argument(name, 0, "at least 1"));
    }
    let mut written = Written::default();
    for (label, class) in classes.iter().enumerate() {
        let (mut drawn, mut taken, mut seen) = (0, 0, HashSet::new());
        let mut refused: BTreeMap<Refusal, usize> = BTreeMap::new();
        while taken < settings.per_class {
            let most = settings.max_draws.saturating_mul(settings.per_class);
            let n = (settings.per_class - taken).min(most - drawn);
            if n == 0 {
                let found = format!("{} of class {:?}", settings.per_class, class.name);
                let why = refused.iter().map(|(why, n)| format!("{n} {}", why.name()));
                let why: Vec<_> = why.collect();
                let expected = format!(
                    "of {drawn} draws {taken} can be taken ({}). A higher --temperature or --max-draws, or more \
                     instructions for the class, give more",
                    why.join(", ")
                );
                return Err(Error::argument("per_class", found, expected));
            }
            for (i, text, finish) in draw(model, class, settings, drawn..drawn + n, &mut || {
                watch(written.prompts.len())
            })? {
                let (instruction, beginning) = class.given(i);
                let prompt = settle(&text, finish, instruction, beginning, &class.named_by);
                let prompt = prompt.and_then(|prompt| match seen.insert(words(&prompt)) {
                    true => Ok(prompt),
                    false => Err(Refusal::Repeated),
                });
                match prompt {
                    Ok(prompt) => {
                        taken += 1;
                        written.prompts.push(ClassPrompt {
                            class: class.name.clone(),
                            label,
                            prompt,
                            given: format!("{instruction}{beginning}"),
                            seed: settings.seed.wrapping_add(i as u64),
                        });
                    }
                    Err(why) => *refused.entry(why).or_default() += 1,
                }
            }
            drawn += n;
        }
        for (why, n) in refused {
            *written.refused.entry(why).or_default() += n;
        }
    }
    watch(written.prompts.len())?;
    Ok(written)
}

/// Some draws of a class, in their order: what the model writes behind what it is given.
fn draw(
    model: &LanguageModel,
    class: &PromptClass,
    settings: &PromptSettings,
    draws: std::ops::Range<usize>,
    watch: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<(usize, String, Finish)>> {
    let mut requests = Vec::new();
    let mut capacity = 0;
    for i in draws.clone() {
        let (instruction, beginning) = class.given(i);
        let prompt = model.prompt(&format!("{instruction}{beginning}"))?;
        capacity = capacity.max(TextRun::room(model, prompt.len(), settings.max_new_tokens)?);
        requests.push(TextRequest {
            prompt,
            sampling: settings.sampling,
            seed: settings.seed.wrapping_add(i as u64),
            max_new_tokens: settings.max_new_tokens,
            stop: Vec::new(),
            ignore_eos: false,
        });
    }
    let mut run = TextRun::new(model, settings.batch.min(requests.len()), capacity)?;
    let mut requests = requests.into_iter();
    let mut texts: Vec<(String, Finish)> = vec![(String::new(), Finish::Length); draws.len()];
    loop {
        watch()?;
        let next = if run.has_room() { requests.next() } else { None };
        let pieces = match next {
            Some(request) => vec![run.join(request)?],
            None if run.is_empty() => break,
            None => run.step()?,
        };
        for piece in pieces {
            texts[piece.id].0.push_str(&piece.text);
            if let Some(answer) = piece.answer {
                texts[piece.id].1 = answer.finish;
            }
        }
    }
    Ok(draws.zip(texts).map(|(i, (text, finish))| (i, text, finish)).collect())
}

/// The prompt that a draw is: what stands behind the instruction, should it be there once more, with the beginning that the
/// model was given; in one line, of whole sentences.
fn settle(
    text: &str,
    finish: Finish,
    instruction: &str,
    beginning: &str,
    named_by: &[String],
) -> Result<String, Refusal> {
    let text = format!("{beginning}{text}");
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let told = words(instruction);
    // 1. the instruction, once or several times
    while let Some(rest) = behind(&text, &told) {
        text = rest.to_owned();
    }
    let text = text.trim_matches(['"', '\u{201c}', '\u{201d}', ' ']);
    if words(text).is_empty() {
        return Err(Refusal::Empty);
    }
    // A word or two, such as a class's name, may be said again.
    if told.split(' ').count() > 2 && words(text).contains(&told) {
        return Err(Refusal::Echo);
    }
    // 2. whole sentences
    let text = match finish {
        Finish::End | Finish::Stop => text,
        Finish::Length => match text.rfind(['.', '!', '?']) {
            Some(end) => &text[..=end],
            None => return Err(Refusal::Unfinished),
        },
    };
    // 3. the class
    let lower = text.to_lowercase();
    if !named_by.is_empty() && !named_by.iter().any(|part| lower.contains(part)) {
        return Err(Refusal::OffClass);
    }
    Ok(text.to_owned())
}

/// A text's words in lower case, without punctuation.
fn words(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// What `text` has behind the words that it begins with, where these are the words of an instruction.
fn behind<'a>(text: &'a str, told: &str) -> Option<&'a str> {
    if told.is_empty() {
        return None;
    }
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let mut ends = ends.filter(|&end| !text[end..].starts_with(char::is_alphanumeric));
    // The first end at which they are all there: behind it come those signs that belong to them.
    let end = ends.find(|&end| words(&text[..end]) == told)?;
    let rest = text[end..].trim_start_matches(|c: char| !c.is_alphanumeric() && c != '(');
    // A sentence that merely begins with the class's name is none that repeats an instruction.
    let is_label = text[end..].trim_start().starts_with([':', '.', '-', '\u{2013}', '\u{2014}']);
    (is_label || told.split(' ').count() > 2).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_model_was_told_is_no_part_of_a_prompt() {
        let settle = |text, instruction, beginning| {
            settle(text, Finish::End, instruction, beginning, &["river".to_owned()])
        };
        let told = "Describe a satellite image of a river.";
        for text in [
            " A river in a city.",
            "\n\n\"A river in  a city.\"",
            "Describe a satellite image of a river. A river in a city.",
            "DESCRIBE A SATELLITE IMAGE OF A RIVER: describe a satellite image of a river\nA river in a city.",
        ] {
            assert_eq!(settle(text, told, "").as_deref(), Ok("A river in a city."), "{text}");
        }
        let echo = "A river. Now describe a satellite image of a river!";
        assert_eq!(settle(echo, told, ""), Err(Refusal::Echo));
        assert_eq!(settle(" \n.", told, ""), Err(Refusal::Empty));
        assert_eq!(settle(told, told, ""), Err(Refusal::Empty));
        assert_eq!(settle("a lake.", told, ""), Err(Refusal::OffClass));
        // A class's name is a label before a colon, and a word elsewhere.
        assert_eq!(settle(" river: a wide river.", "river:", "").as_deref(), Ok("a wide river."));
        assert_eq!(settle(" river banks.", "river:", "").as_deref(), Ok("river banks."));
        // What it was to begin with stays.
        assert_eq!(settle(" river.", "", "a wide").as_deref(), Ok("a wide river."));
    }

    #[test]
    fn what_does_not_end_ends_with_its_last_sentence() {
        let settle = |text| settle(text, Finish::Length, "river:", "", &[]);
        assert_eq!(settle(" A river. It is wi").as_deref(), Ok("A river."));
        assert_eq!(settle(" A river that is"), Err(Refusal::Unfinished));
    }
}
