//! Chunks of a text, cut at the ends of sentences.

use unicode_segmentation::UnicodeSegmentation;

use crate::error::Result;

/// What a full stop behind does not end a sentence.
const ABBREVIATIONS: [&str; 32] = [
    "al", "approx", "ca", "cf", "ch", "dept", "dr", "e.g", "ed", "eds", "eq", "eqs", "fig", "figs",
    "i.e", "inc", "jr", "ltd", "mr", "mrs", "ms", "prof", "ref", "refs", "resp", "sec", "sect",
    "sr", "st", "tab", "viz", "vs",
];

/// As those, where a number is next.
const BEFORE_NUMBERS: [&str; 5] = ["no", "nos", "p", "pp", "vol"];

/// The sentences of a cleaned text, end to end: each with the white space behind it.
///
/// By Unicode's rules (UAX #29), which know no abbreviations: a sentence goes on behind those of English papers ("Fig.",
/// "et al.", "e.g."), and behind a single capital ("J. Smith").
pub fn sentences(text: &str) -> Vec<&str> {
    let (mut all, mut start) = (Vec::new(), 0);
    for (at, piece) in text.split_sentence_bound_indices() {
        let end = at + piece.len();
        if end == text.len() || !goes_on(&text[start..end], &text[end..]) {
            all.push(&text[start..end]);
            start = end;
        }
    }
    all
}

fn goes_on(sentence: &str, rest: &str) -> bool {
    if sentence.ends_with('\n') {
        return false;
    }
    let Some(sentence) = sentence.trim_end().strip_suffix('.') else { return false };
    let word = sentence.rsplit([' ', '\n', '(', '[']).next().unwrap_or_default();
    let lower = word.to_lowercase();
    let mut letters = word.chars();
    let is_initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none();
    is_initial
        || ABBREVIATIONS.contains(&lower.as_str())
        || BEFORE_NUMBERS.contains(&lower.as_str()) && rest.starts_with(|c: char| c.is_numeric())
}

/// Chunks of whole sentences, each as long as it can be within `limit` by `length`, which is taken of sentences with a space
/// before them. A sentence that is longer by itself is cut between words; a word never is.
///
/// # Errors
/// Those of `length`.
pub fn chunks(
    text: &str,
    limit: usize,
    length: &(dyn Fn(&str) -> Result<usize> + Sync),
) -> Result<Vec<String>> {
    let mut all = Chunks { done: Vec::new(), chunk: String::new(), long: 0, limit };
    for sentence in sentences(text) {
        let long = measure(sentence, length)?;
        if long <= limit {
            all.add(sentence, long);
            continue;
        }
        all.end();
        for word in sentence.split_inclusive(char::is_whitespace) {
            all.add(word, measure(word, length)?);
        }
        all.end();
    }
    all.end();
    Ok(all.done)
}

fn measure(piece: &str, length: &(dyn Fn(&str) -> Result<usize> + Sync)) -> Result<usize> {
    length(&format!(" {}", piece.trim_end()))
}

struct Chunks {
    done: Vec<String>,
    chunk: String,
    long: usize,
    limit: usize,
}

impl Chunks {
    fn add(&mut self, piece: &str, long: usize) {
        if self.long + long > self.limit {
            self.end();
        }
        self.chunk.push_str(piece);
        self.long += long;
    }

    fn end(&mut self) {
        let chunk = std::mem::take(&mut self.chunk);
        self.long = 0;
        if !chunk.trim().is_empty() {
            self.done.push(chunk.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Water is dark in Fig. 3 and bright in none. Smith et al. Found that e.g. Lakes freeze! J. Doe \
        (cf. Sec. 2) did not.\nWhy? See vol. 7 of it. The answer is no. We agree";

    fn words(text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }

    #[test]
    fn a_sentence_ends_where_a_reader_ends_it() {
        let found: Vec<&str> = sentences(TEXT).into_iter().map(str::trim).collect();
        let expected = [
            "Water is dark in Fig. 3 and bright in none.",
            "Smith et al. Found that e.g. Lakes freeze!",
            "J. Doe (cf. Sec. 2) did not.",
            "Why?",
            "See vol. 7 of it.",
            "The answer is no.",
            "We agree",
        ];
        assert_eq!(found, expected);
        assert_eq!(sentences(TEXT).concat(), TEXT);
        assert!(sentences("").is_empty());
    }

    #[test]
    fn chunks_are_sentences_and_nothing_is_lost() {
        for limit in 1..40 {
            let chunks = chunks(TEXT, limit, &words).unwrap();
            let joined = chunks.join(" ");
            let all: Vec<&str> = joined.split_whitespace().collect();
            assert_eq!(all, TEXT.split_whitespace().collect::<Vec<_>>(), "{limit}");
            let longest = sentences(TEXT).iter().map(|s| words(s).unwrap()).max().unwrap();
            for (i, chunk) in chunks.iter().enumerate() {
                assert!(words(chunk).unwrap() <= limit, "{limit}: {chunk}");
                let at_end = chunk.ends_with(['.', '!', '?']) || i + 1 == chunks.len();
                assert!(at_end || limit < longest, "{limit}: {chunk}");
            }
        }
        // As few as can be, and whole sentences wherever one fits.
        assert_eq!(chunks(TEXT, 100, &words).unwrap().len(), 1);
        let all = chunks(TEXT, 16, &words).unwrap();
        assert!(all[0].ends_with("bright in none.") && all[1].starts_with("Smith"), "{all:?}");
    }
}
