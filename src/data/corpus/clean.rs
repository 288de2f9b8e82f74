//! Text as it is meant, of text as it was extracted: without what printing and markup leave in it.

use unicode_normalization::UnicodeNormalization;

/// Paragraphs of `text`, a line each: in NFC, without control characters and invisible ones, ligatures spelt out, words that
/// a line's end has hyphenated joined, white space one space.
///
/// An empty line ends a paragraph, and so does a form feed.
pub fn clean(text: &str) -> String {
    let (mut paragraphs, mut paragraph) = (Vec::new(), String::new());
    let text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}'], "\n");
    let text = text.replace(['\u{c}', '\u{2029}'], "\n\n");
    for line in text.split('\n') {
        let line = line_of(line);
        if line.is_empty() {
            paragraphs.push(std::mem::take(&mut paragraph));
        } else {
            append(&mut paragraph, &line);
        }
    }
    paragraphs.push(paragraph);
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs.join("\n")
}

fn line_of(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for c in line.nfc() {
        match c {
            c if c.is_whitespace() => {
                if !out.is_empty() && !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            c if c.is_control() || is_invisible(c) => {}
            // What typesetters draw as one letter, and no other text has.
            '\u{fb00}' => out.push_str("ff"),
            '\u{fb01}' => out.push_str("fi"),
            '\u{fb02}' => out.push_str("fl"),
            '\u{fb03}' => out.push_str("ffi"),
            '\u{fb04}' => out.push_str("ffl"),
            '\u{fb05}' | '\u{fb06}' => out.push_str("st"),
            c => out.push(c),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Characters that direct, mark or replace others. Joiners (U+200C, U+200D) are part of how words are written.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffd}' | '\u{e000}'..='\u{f8ff}')
}

/// Puts a line behind those of its paragraph.
fn append(paragraph: &mut String, line: &str) {
    let Some(before) = paragraph.strip_suffix(['-', '\u{2010}']) else {
        if !paragraph.is_empty() {
            paragraph.push(' ');
        }
        return paragraph.push_str(line);
    };
    let word = before.rsplit(' ').next().unwrap_or(before);
    let is_cut = word.ends_with(char::is_alphabetic) && line.starts_with(char::is_lowercase);
    match (is_cut, word.contains('-')) {
        (true, false) => paragraph.truncate(before.len()),
        // "state-of-the-" ends with a hyphen that belongs there.
        (true, true) => {}
        (false, _) => paragraph.push(' '),
    }
    paragraph.push_str(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_paragraphs() {
        let text = "  One\tline,\r\nand  another.\n \nA second\u{c}third";
        assert_eq!(clean(text), "One line, and another.\nA second\nthird");
        assert_eq!(clean(" \n\u{0}\n"), "");
    }

    #[test]
    fn what_a_line_has_cut_is_joined() {
        assert_eq!(clean("satel-\nlite ima\u{2010}\ngery"), "satellite imagery");
        assert_eq!(clean("state-of-the-\nart"), "state-of-the-art");
        // Neither is a word that was cut.
        assert_eq!(clean("Sentinel-\n2 and NDVI-\nBased"), "Sentinel- 2 and NDVI- Based");
        assert_eq!(clean("a -\nb"), "a - b");
    }

    #[test]
    fn characters_are_those_that_are_meant() {
        // e and a combining accent; a soft hyphen; a zero-width space; a mark of byte order; a bell.
        let text = "\u{feff}cafe\u{301} ve\u{ad}ge\u{200b}ta\u{7}tion de\u{fb01}ne\u{a0}it";
        assert_eq!(clean(text), "caf\u{e9} vegetation define it");
        let joined = "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}";
        assert_eq!(clean(joined), joined);
    }
}
