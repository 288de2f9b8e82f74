//! What goes to standard error. Nothing about messages may cost a picture: whether anybody reads them does not matter.
//!
//! Names in files, settings in pictures and prompts are other people's text: what a terminal would obey is escaped, and
//! what is endless is cut.

use std::io::{Write, stderr};

/// Characters of one message.
const MOST: usize = 2000;

/// Writes a message on a line of its own.
pub fn say(message: &str) {
    let _ = writeln!(stderr(), "{}", printable(message));
}

/// `text` as a terminal may show it.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(MOST) {
        match c {
            // So that no line but the first looks like one of ours.
            '\n' => shown.push_str("\n  "),
            c if obeyed(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    match text.chars().count().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown}... ({more} more characters)"),
    }
}

/// `text` of several lines as a terminal may show it, whole.
pub fn printable_text(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if obeyed(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// Pretty JSON as a terminal may show it: the same JSON.
pub fn printable_json(json: &str) -> String {
    let mut shown = String::new();
    for c in json.chars() {
        match c {
            '\n' => shown.push(c),
            c if obeyed(c) => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    shown
}

/// Control characters, and those that turn the direction of writing.
fn obeyed(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_escaped_and_cut() {
        assert_eq!(printable("a é \u{1f6f0}"), "a é \u{1f6f0}");
        assert_eq!(printable("\x1b[31m\r\u{9b}\u{202e}"), r"\u{1b}[31m\u{d}\u{9b}\u{202e}");
        assert_eq!(printable("a\nerror: b"), "a\n  error: b");
        let long = printable(&"x".repeat(3000));
        assert!(long.ends_with("x... (1000 more characters)") && long.len() < 2100, "{long}");
    }

    #[test]
    fn json_stays_json() {
        let text = "\x1b\u{9b}\u{202e}\n\"é";
        let shown = printable_json(&serde_json::to_string_pretty(&[text]).unwrap());
        assert!(shown.chars().all(|c| c == '\n' || !obeyed(c)), "{shown}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [text]);
    }
}
