//! The text of a Markdown file (CommonMark with tables and front matter).

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::html;

/// Its text, with an empty line between paragraphs; blocks of code and front matter are none.
pub(super) fn text(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let (mut out, mut markup) = (String::new(), String::new());
    let mut skipped = false;
    for event in Parser::new_ext(markdown, options) {
        match event {
            Event::Start(Tag::CodeBlock(_) | Tag::MetadataBlock(_) | Tag::Image { .. }) => {
                skipped = true;
            }
            Event::End(TagEnd::CodeBlock | TagEnd::MetadataBlock(_) | TagEnd::Image) => {
                skipped = false;
            }
            _ if skipped => {}
            Event::Html(html) => markup.push_str(&html),
            Event::End(TagEnd::HtmlBlock) => {
                out.push_str("\n\n");
                out.push_str(&html::text(&std::mem::take(&mut markup)));
                out.push_str("\n\n");
            }
            Event::Text(text) | Event::Code(text) => out.push_str(&text),
            Event::SoftBreak | Event::HardBreak => out.push('\n'),
            Event::Start(Tag::TableCell) => out.push(' '),
            Event::Rule
            | Event::Start(Tag::List(_))
            | Event::End(
                TagEnd::Paragraph
                | TagEnd::Heading(_)
                | TagEnd::Item
                | TagEnd::TableHead
                | TagEnd::TableRow,
            ) => out.push_str("\n\n"),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::clean::clean;
    use super::text;

    #[test]
    fn text_is_what_a_reader_reads() {
        let page = "---\ntitle: no\n---\n# Rivers\n\nA *river* is [water](http://no) that\nflows `on`.[^1]\n\n\
            ```\nno\n```\n\n- one\n  - two\n- three\n\n<div>four <b>five</b><script>no</script></div>\n\n\
            | a | b |\n|---|---|\n| c | d |\n\n![no](no.png) six <br> seven\n\n[^1]: A note.\n";
        let expected = "Rivers\nA river is water that flows on.\none\ntwo\nthree\nfour five\na b\nc d\nsix seven\nA note.";
        assert_eq!(clean(&text(page)), expected);
    }
}
