//! From tokens to text while they come: whole characters, and an end at a stop string.

use crate::error::Result;
use crate::text::byte_level::ByteLevel;

/// What stands for bytes that are no character (yet).
const INCOMPLETE: char = '\u{fffd}';

/// The text of an answer as far as it is certain.
#[derive(Clone, Debug, Default)]
pub(super) struct Text {
    tokens: Vec<u32>,
    /// Tokens before this are not looked at again.
    context: usize,
    /// Tokens before this have become text.
    read: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    stops: Vec<String>,
    stopped: bool,
}

impl Text {
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, ..Self::default() }
    }

    /// The tokens that it was given.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether a stop string has come.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What the next token makes certain of the text. Nothing comes behind a stop string, which is left out itself.
    pub fn push(&mut self, tokenizer: &ByteLevel, token: u32) -> Result<String> {
        self.tokens.push(token);
        // How a token reads may depend on those before it: a space at the beginning of a text, say.
        let before = tokenizer.decode(&self.tokens[self.context..self.read])?;
        let after = tokenizer.decode(&self.tokens[self.context..])?;
        if after.len() <= before.len() || after.ends_with(INCOMPLETE) {
            return Ok(String::new());
        }
        (self.context, self.read) = (self.read, self.tokens.len());
        let new = after.get(before.len()..).unwrap_or_default().to_owned();
        Ok(self.released(&new))
    }

    /// The rest, once no token follows.
    pub fn finish(&mut self, tokenizer: &ByteLevel) -> Result<String> {
        let before = tokenizer.decode(&self.tokens[self.context..self.read])?;
        let after = tokenizer.decode(&self.tokens[self.context..])?;
        self.read = self.tokens.len();
        let new = after.get(before.len()..).unwrap_or_default().to_owned();
        let mut text = self.released(&new);
        if !self.stopped {
            text.push_str(&std::mem::take(&mut self.held));
        }
        Ok(text)
    }

    fn released(&mut self, new: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(new);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let held = self.held.as_str();
        let beginning = |from: usize| {
            held.is_char_boundary(from) && self.stops.iter().any(|s| s.starts_with(&held[from..]))
        };
        let from = (0..held.len()).find(|&from| beginning(from)).unwrap_or(held.len());
        let rest = self.held.split_off(from);
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> ByteLevel {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        ByteLevel::open(&root.join("tests/golden/decoder/tokenizer")).unwrap()
    }

    /// The pieces of a text whose tokens come one by one, and whether it was stopped.
    fn pieces(text: &str, stops: &[&str]) -> (Vec<String>, bool) {
        let tokenizer = tokenizer();
        let mut growing = Text::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let tokens = tokenizer.encode(text).unwrap();
        let mut pieces: Vec<String> =
            tokens.iter().map(|&token| growing.push(&tokenizer, token).unwrap()).collect();
        assert_eq!(growing.tokens(), tokens);
        pieces.push(growing.finish(&tokenizer).unwrap());
        (pieces, growing.is_stopped())
    }

    #[test]
    fn pieces_are_the_text_in_whole_characters() {
        for text in ["", "a river, 12 km²\n\n  wide", "🛰🛰é", "the Work 's 're"] {
            let (pieces, stopped) = pieces(text, &[]);
            assert_eq!(pieces.concat(), text);
            assert!(
                !stopped && !pieces.iter().any(|piece| piece.contains(INCOMPLETE)),
                "{pieces:?}"
            );
        }
        // Most of a text is there long before its end.
        let (pieces, _) = pieces("a river, 12 km² wide", &[]);
        assert!(pieces[..8].iter().all(|piece| !piece.is_empty()), "{pieces:?}");
    }

    #[test]
    fn bytes_that_make_no_character_end_the_text_all_the_same() {
        let tokenizer = tokenizer();
        let tokens = tokenizer.encode("é").unwrap();
        assert!(tokens.len() > 1, "two bytes");
        let mut text = Text::new(Vec::new());
        assert_eq!(text.push(&tokenizer, tokens[0]).unwrap(), "");
        assert_eq!(text.finish(&tokenizer).unwrap(), "\u{fffd}");
    }

    #[test]
    fn nothing_comes_of_a_stop_string_or_behind_it() {
        for (text, stops, expected) in [
            ("one two three", &["two"][..], "one "),
            ("one two three", &["three", " two"], "one"),
            ("aab aaab", &["aaa"], "aab "),
            ("one two", &["two!", ""], "one two"),
            ("a\n\nb", &["\n\n"], "a"),
            ("é²é²x", &["é²x"], "é²"),
        ] {
            let (pieces, stopped) = pieces(text, stops);
            assert_eq!(pieces.concat(), expected, "{text} {stops:?}");
            assert_eq!(stopped, expected != text, "{text} {stops:?}");
        }
    }
}
