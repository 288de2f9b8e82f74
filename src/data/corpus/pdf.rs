//! The text of a PDF: of its pages, without what is printed on each of them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use pdf_extract::{Document, Object, ObjectId, PlainTextOutput, output_doc_page};

use crate::error::{Error, Result};
use crate::io::caught;

/// Lines at the top and at the bottom of a page that may be a header or a footer.
const EDGE: usize = 2;

/// Pages, at least, that a header is on, and their share.
const PAGES: usize = 3;
const SHARE: f64 = 0.5;

/// Forms in forms, at most.
const DEPTH: usize = 16;

/// Its text, where it has any: a scan has none.
///
/// # Errors
/// `File`: a password is needed, or the file is damaged or makes its parser panic.
pub(super) fn text(path: &Path, bytes: &[u8]) -> Result<String> {
    let wrong = |found: String| {
        let advice = "Print it into a new PDF, or leave it out.";
        Error::file(path, "content", "a readable PDF", found, advice)
    };
    let open = || -> std::result::Result<Option<Document>, pdf_extract::Error> {
        let mut document = Document::load_mem(bytes)?;
        // Many are encrypted so that no one changes them, and open without a password.
        let is_locked = document.is_encrypted() && document.decrypt("").is_err();
        Ok((!is_locked).then_some(document))
    };
    let opened = caught(open).map_err(wrong)?;
    let document = match opened {
        Ok(Some(document)) => document,
        Err(e) if !is_about_encryption(&e) => return Err(wrong(e.to_string())),
        Ok(None) | Err(_) => {
            let advice = "Save it without: qpdf --decrypt --password=... FILE NEW.";
            let found = "an encrypted one";
            return Err(Error::file(path, "content", "a PDF without a password", found, advice));
        }
    };
    check_forms(&document).map_err(wrong)?;
    let mut pages = Vec::new();
    for number in document.get_pages().into_keys() {
        let mut page = String::new();
        let read = || output_doc_page(&document, &mut PlainTextOutput::new(&mut page), number);
        let read = caught(read).and_then(|done| done.map_err(|e| e.to_string()));
        read.map_err(|found| wrong(format!("on page {number}: {found}")))?;
        pages.push(page);
    }
    Ok(without_repeated(&pages))
}

fn is_about_encryption(error: &pdf_extract::Error) -> bool {
    use pdf_extract::Error as E;
    matches!(error, E::Decryption(_) | E::InvalidPassword | E::UnsupportedSecurityHandler(_))
}

/// A form that draws itself would never end.
fn check_forms(document: &Document) -> std::result::Result<(), String> {
    let mut checked = HashSet::new();
    for (id, object) in &document.objects {
        if object.as_stream().is_ok() {
            descend(document, *id, &mut Vec::new(), &mut checked)?;
        }
    }
    Ok(())
}

fn descend(
    document: &Document,
    id: ObjectId,
    above: &mut Vec<ObjectId>,
    checked: &mut HashSet<ObjectId>,
) -> std::result::Result<(), String> {
    if above.contains(&id) || above.len() > DEPTH {
        return Err("forms that are drawn in themselves".to_owned());
    }
    if checked.contains(&id) {
        return Ok(());
    }
    let stream = document.get_object(id).and_then(Object::as_stream);
    let value = |object: &Object| match object {
        Object::Reference(id) => document.get_object(*id).and_then(Object::as_dict).cloned(),
        object => object.as_dict().cloned(),
    };
    let forms = stream
        .and_then(|stream| stream.dict.get(b"Resources").and_then(value))
        .and_then(|resources| resources.get(b"XObject").and_then(value));
    above.push(id);
    for (_, form) in forms.iter().flat_map(|forms| forms.iter()) {
        if let Ok(form) = form.as_reference() {
            descend(document, form, above, checked)?;
        }
    }
    above.pop();
    checked.insert(id);
    Ok(())
}

/// Pages one behind the other, without lines at their edges that are on half of them but for digits: titles, page numbers.
fn without_repeated(pages: &[String]) -> String {
    let masked = |line: &str| -> String {
        line.trim()
            .chars()
            .map(|c| if c.is_numeric() { '#' } else { c })
            .collect::<String>()
            .replace("##", "#")
    };
    let lines = |page: &str| -> Vec<String> {
        page.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    };
    let edges = |n: usize| (0..n).filter(move |i| *i < EDGE || *i + EDGE >= n);
    let mut times: HashMap<String, usize> = HashMap::new();
    for page in pages {
        let lines = lines(page);
        let once: HashSet<String> = edges(lines.len()).map(|i| masked(&lines[i])).collect();
        once.into_iter().for_each(|line| *times.entry(line).or_default() += 1);
    }
    let most = ((pages.len() as f64 * SHARE).ceil() as usize).max(PAGES);
    let mut out = String::new();
    for page in pages {
        let count = lines(page).len();
        let (mut i, mut kept) = (0, Vec::new());
        for line in page.lines() {
            let is_edge = !line.trim().is_empty() && (i < EDGE || i + EDGE >= count);
            i += usize::from(!line.trim().is_empty());
            if !(is_edge && times.get(&masked(line)).is_some_and(|&n| n >= most)) {
                kept.push(line);
            }
        }
        // A sentence goes on over the page's end.
        let between = if out.ends_with(['.', '!', '?']) { "\n\n" } else { "\n" };
        out.push_str(between);
        out.push_str(kept.join("\n").trim());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_page_numbers_are_no_text() {
        let page = |n: usize, text: &str| {
            format!("\n\nJournal of Rivers {n}\n\nAuthor et al.\n{text}\n\n{n} of 12\n")
        };
        let texts = [
            "One\nsentence",
            "ends here.\nAnother",
            "begins.\nAuthor et al.\nSix\nseven",
            "and ends.",
        ];
        let pages: Vec<String> = (8..).zip(texts).map(|(n, text)| page(n, text)).collect();
        let found = super::super::clean::clean(&without_repeated(&pages));
        let words: Vec<&str> = found.split_whitespace().collect();
        let expected = "One sentence ends here. Another begins. Author et al. Six seven and ends.";
        assert_eq!(words.join(" "), expected);
        // Of two pages nobody can tell.
        assert!(without_repeated(&pages[..2]).contains("Journal of Rivers 9"));
    }
}
