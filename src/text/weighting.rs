//! Weights on parts of a prompt, and prompts longer than the text encoder's context.
//!
//! `(text:1.3)` gives `text` the weight 1.3. That is all of the syntax by default, so that a prompt with
//! plain brackets means what it means to diffusers. [`Syntax::Webui`] adds the rest of what users of the
//! AUTOMATIC1111 web UI write: `(text)` is 1.1, `[text]` is 1 / 1.1, and groups nest by multiplication. In both
//! a backslash takes the meaning from a bracket: `\(`, `\)`.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::tokenizer::{ClipTokenizer, check_prompt};
use crate::error::Result;

/// What one level of plain brackets multiplies a weight with.
const BRACKET: f32 = 1.1;

/// Which weight syntax a prompt is read with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Syntax {
    /// None: every character is text.
    Plain,
    /// `(text:1.3)` only.
    #[default]
    Explicit,
    /// `(text:1.3)`, `(text)` and `[text]`.
    Webui,
}

/// What becomes of a prompt that is longer than the context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LongPrompt {
    /// Cut off and report, as diffusers does.
    #[default]
    Truncate,
    /// Use all of it: chunks of `max_length - 2` tokens, each encoded on its own between start and end, their
    /// embeddings to be laid end to end.
    Chunk,
}

/// A part of a prompt, and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    /// The text, brackets and backslashes of the syntax removed.
    pub text: String,
    /// 1 where nothing is said.
    pub weight: f32,
}

/// Token ids of a prompt with a weight each.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedTokens {
    /// One or more chunks, each as long as the context.
    pub chunks: Vec<Chunk>,
    /// The end of the prompt that did not fit ([`LongPrompt::Truncate`]).
    pub truncated: Option<String>,
}

/// What the text encoder takes at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Start, text, end, padding.
    pub ids: Vec<u32>,
    /// The weight of each id; 1 for all but text.
    pub weights: Vec<f32>,
}

impl WeightedTokens {
    /// Appends empty chunks until there are `n`: prompt and negative prompt go through the UNet together, and
    /// need embeddings of one length.
    pub fn pad_to(&mut self, n: usize, tokenizer: &ClipTokenizer) {
        while self.chunks.len() < n {
            self.chunks.push(Chunk::new(tokenizer, &[]));
        }
    }
}

impl Chunk {
    fn new(tokenizer: &ClipTokenizer, tokens: &[(u32, f32)]) -> Self {
        let text: Vec<u32> = tokens.iter().map(|t| t.0).collect();
        let mut weights = vec![1.0; tokenizer.max_length()];
        for (slot, (_, weight)) in weights[1..].iter_mut().zip(tokens) {
            *slot = *weight;
        }
        Self { ids: tokenizer.frame(&text), weights }
    }

    /// Whether any weight differs from 1: without weights, embeddings are used as they are.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().any(|&weight| weight != 1.0)
    }
}

/// Token ids of a prompt, aligned with the weights that its syntax gives them.
///
/// Fragments are encoded one by one, as the web UI does; a prompt without weights is one fragment, and its ids
/// are those of [`ClipTokenizer::encode`].
///
/// # Errors
/// As for [`ClipTokenizer::text_ids`].
pub fn encode(
    tokenizer: &ClipTokenizer,
    prompt: &str,
    syntax: Syntax,
    long: LongPrompt,
) -> Result<WeightedTokens> {
    check_prompt("prompt", prompt)?;
    let mut tokens: Vec<(u32, f32)> = Vec::new();
    for Fragment { text, weight } in parse(prompt, syntax) {
        tokens.extend(tokenizer.text_ids(&text)?.into_iter().map(|id| (id, weight)));
    }
    let room = tokenizer.max_length() - 2;
    let mut truncated = None;
    if long == LongPrompt::Truncate && tokens.len() > room {
        let rest: Vec<u32> = tokens.split_off(room).into_iter().map(|t| t.0).collect();
        truncated = Some(tokenizer.decode(&rest)?);
    }
    let mut chunks: Vec<Chunk> =
        tokens.chunks(room).map(|text| Chunk::new(tokenizer, text)).collect();
    if chunks.is_empty() {
        chunks.push(Chunk::new(tokenizer, &[])); // an empty prompt
    }
    Ok(WeightedTokens { chunks, truncated })
}

/// Splits a prompt into fragments of one weight. Neighbours differ in weight, and none is empty.
///
/// A bracket without its partner is text; but an open one ends with the prompt in [`Syntax::Webui`].
pub fn parse(prompt: &str, syntax: Syntax) -> Vec<Fragment> {
    if syntax == Syntax::Plain {
        return merge(vec![Fragment { text: prompt.to_owned(), weight: 1.0 }]);
    }
    let webui = syntax == Syntax::Webui;
    let mut parts: Vec<Fragment> = Vec::new();
    // Open brackets: which kind, and the part that holds its character until a partner is found.
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        let text = &rest[..taken];
        match c {
            '\\' if rest[1..].starts_with(['(', ')'])
                || webui && rest[1..].starts_with(['[', ']', '\\']) =>
            {
                taken = 2;
                push(&mut parts, &rest[1..2]);
            }
            '(' | '[' if c == '(' || webui => {
                open.push((c, parts.len()));
                parts.push(Fragment { text: text.to_owned(), weight: 1.0 });
                // What follows is a part of its own, which a weight can be applied to.
                parts.push(Fragment { text: String::new(), weight: 1.0 });
            }
            ':' if open.last().is_some_and(|(kind, _)| *kind == '(') => match explicit_weight(rest)
            {
                Some((weight, length)) => {
                    taken = length;
                    close(&mut parts, open.pop(), weight);
                }
                None => push(&mut parts, text),
            },
            ')' if open.last().is_some_and(|(kind, _)| *kind == '(') => {
                let opened = open.pop();
                if webui { close(&mut parts, opened, BRACKET) } else { push(&mut parts, text) }
            }
            ']' if open.last().is_some_and(|(kind, _)| *kind == '[') => {
                close(&mut parts, open.pop(), 1.0 / BRACKET);
            }
            _ => push(&mut parts, text),
        }
        rest = &rest[taken..];
    }
    // The web UI takes a group that is never closed to end with the prompt.
    while webui && let Some(opened) = open.pop() {
        let weight = if opened.0 == '(' { BRACKET } else { 1.0 / BRACKET };
        close(&mut parts, Some(opened), weight);
    }
    merge(parts)
}

fn push(parts: &mut Vec<Fragment>, text: &str) {
    match parts.last_mut() {
        Some(last) => last.text.push_str(text),
        None => parts.push(Fragment { text: text.to_owned(), weight: 1.0 }),
    }
}

/// Ends a group: its opening character is no text after all, and its parts are weighted.
fn close(parts: &mut Vec<Fragment>, opened: Option<(char, usize)>, weight: f32) {
    let Some((_, at)) = opened else { return };
    parts[at].text.clear();
    for part in &mut parts[at + 1..] {
        part.weight *= weight;
    }
    parts.push(Fragment { text: String::new(), weight: 1.0 });
}

/// `:1.3)` at the start of `text`: the weight, and the length of what says it.
fn explicit_weight(text: &str) -> Option<(f32, usize)> {
    // Digits only: `f32` would take "inf" and "nan" for numbers too.
    let written = |b: u8| b.is_ascii_digit() || b"+-. ".contains(&b);
    let end = 1 + text.bytes().skip(1).take_while(|&b| written(b)).count();
    if text.as_bytes().get(end) != Some(&b')') {
        return None;
    }
    let weight: f32 = text[1..end].trim().parse().ok()?;
    weight.is_finite().then_some((weight, end + 1))
}

fn merge(parts: Vec<Fragment>) -> Vec<Fragment> {
    let mut merged: Vec<Fragment> = Vec::new();
    for part in parts.into_iter().filter(|p| !p.text.is_empty()) {
        match merged.last_mut() {
            Some(last) if last.weight == part.weight => last.text.push_str(&part.text),
            _ => merged.push(part),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use Syntax::{Explicit, Plain, Webui};

    fn check(prompt: &str, syntax: Syntax, expected: &[(&str, f32)]) {
        let found = parse(prompt, syntax);
        let found: Vec<(&str, f32)> = found.iter().map(|f| (f.text.as_str(), f.weight)).collect();
        assert_eq!(found, expected, "{prompt:?} as {syntax:?}");
    }

    #[test]
    fn explicit_weights_are_the_whole_default_syntax() {
        check("", Explicit, &[]);
        check("a (red:1.3) barn", Explicit, &[("a ", 1.0), ("red", 1.3), (" barn", 1.0)]);
        check("(a:0.5)(b:0.5)", Explicit, &[("ab", 0.5)]);
        check("(a (b:2) c:0.5)", Explicit, &[("a ", 0.5), ("b", 1.0), (" c", 0.5)]);
        check("(x:-.5) (y: +2 )", Explicit, &[("x", -0.5), (" ", 1.0), ("y", 2.0)]);
        // Brackets that are no weights are text, and leave the prompt in one piece.
        for text in [
            "a (red) [barn]",
            "((a",
            "a))",
            "(a:b)",
            "(a:1.2.3)",
            "(a:inf)",
            "(a:nan)",
            "(a:)",
            "a:1.3)",
            "[a:2)",
        ] {
            check(text, Explicit, &[(text, 1.0)]);
        }
        check("((x) y:1.5)", Explicit, &[("(x) y", 1.5)]);
        check(r"\(a:1.3\) \[b\] \c", Explicit, &[(r"(a:1.3) \[b\] \c", 1.0)]);
        check("(été:1.2)", Explicit, &[("été", 1.2)]);
        check(r"a\", Explicit, &[(r"a\", 1.0)]);
    }

    #[test]
    fn plain_takes_everything_for_text() {
        check(r"(a:1.3) \(b\)", Plain, &[(r"(a:1.3) \(b\)", 1.0)]);
    }

    #[test]
    fn webui_brackets_nest() {
        check("a (b) [c]", Webui, &[("a ", 1.0), ("b", 1.1), (" ", 1.0), ("c", 1.0 / 1.1)]);
        check("((a))", Webui, &[("a", 1.1 * 1.1)]);
        check("(a (b:1.5))", Webui, &[("a ", 1.1), ("b", 1.5 * 1.1)]);
        check(r"\[a\] \\ b)", Webui, &[(r"[a] \ b)", 1.0)]);
        check("a (b [c", Webui, &[("a ", 1.0), ("b ", 1.1), ("c", 1.0 / 1.1 * 1.1)]);
    }
}
