//! The text of an HTML page, or of a piece of one.

use html5gum::emitters::default::DefaultEmitter;
use html5gum::{Token, Tokenizer};

/// Elements whose content is no text of the page, all of which have an end tag.
const SKIPPED: [&str; 16] = [
    "aside", "button", "canvas", "footer", "iframe", "math", "nav", "noscript", "object", "script",
    "select", "style", "svg", "template", "textarea", "title",
];

/// Elements that stand in a line of text.
const INLINE: [&str; 30] = [
    "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "img", "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strong", "sub",
    "sup", "time", "u", "wbr",
];

/// Its text, with an empty line between paragraphs.
pub(super) fn text(html: &str) -> String {
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    let mut out = String::new();
    // The element that is skipped, and how many of its name are open.
    let mut skipped: Option<(Vec<u8>, usize)> = None;
    for Ok(token) in Tokenizer::new_with_emitter(html, emitter) {
        match (token, &mut skipped) {
            (Token::StartTag(tag), Some((name, depth))) => {
                *depth += usize::from(*tag.name == *name && !tag.self_closing);
            }
            (Token::EndTag(tag), Some((name, depth))) if *tag.name == *name => {
                *depth -= 1;
                if *depth == 0 {
                    skipped = None;
                }
            }
            (_, Some(_)) => {}
            (Token::StartTag(tag), None) => {
                let name = String::from_utf8_lossy(&tag.name);
                if SKIPPED.contains(&&*name) && !tag.self_closing {
                    skipped = Some((tag.name.to_vec(), 1));
                }
                separate(&mut out, &name);
            }
            (Token::EndTag(tag), None) => separate(&mut out, &String::from_utf8_lossy(&tag.name)),
            // A line's end in the file is none in the text.
            (Token::String(text), None) => {
                let text = String::from_utf8_lossy(&text);
                out.push_str(&text.replace(['\n', '\r', '\u{c}'], " "));
            }
            _ => {}
        }
    }
    out
}

/// What stands in the text for a tag.
fn separate(out: &mut String, name: &str) {
    match name {
        "br" => out.push('\n'),
        "td" | "th" => out.push(' '),
        name if INLINE.contains(&name) => {}
        _ => out.push_str("\n\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::clean::clean;
    use super::text;

    #[test]
    fn text_is_what_a_reader_reads() {
        let page = "<!DOCTYPE html><html><head><title>No</title><style>p { no: no }</style>\
            <script>if (a < b) { \"<p>no</p>\" }</script><body><nav><p>No <nav>no</nav> no</nav>\
            <h1>Rivers &amp; lakes</h1><p>A <b>river</b>\nis <i>wa</i>ter.<br>It flows&nbsp;on.\
            <p>Unclosed <!-- no --><svg/><ul><li>one<li>two</ul><table><tr><td>a<td>b</table><footer>no</footer>";
        let expected = "Rivers & lakes\nA river is water. It flows on.\nUnclosed\none\ntwo\na b";
        assert_eq!(clean(&text(page)), expected);
        assert_eq!(text("<script>"), "\n\n");
        assert_eq!(clean(&text("1 < 2 &#x41; &unknown; </p")), "1 < 2 A &unknown;");
    }
}
