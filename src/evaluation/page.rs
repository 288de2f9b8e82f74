//! The page of a downstream evaluation: tables, confusion matrices, nearest neighbours.

use std::fmt::Write;
use std::path::Path;

use image::RgbImage;

use super::downstream::{self, DownstreamSettings, Found, Scores};
use super::leak::Leak;
use super::scores::{ClassScores, Confusion, Interval, interval};
use crate::error::{Error, Result};
use crate::io::html::{STYLE, escaped, figure};
use crate::io::{atomic, png};

/// Pairs of a drawn picture and its nearest neighbour that are shown.
const PAIRS: usize = 12;

/// Correlation from which on two pictures are as good as one: see [`Gallery`](crate::pipeline::synthesis::Gallery).
const SAME: f32 = 0.95;

/// What a page is of.
pub(super) struct Page<'a> {
    /// The networks.
    pub network: String,
    /// What they are tested by.
    pub test: String,
    /// Where the page comes to.
    pub folder: &'a Path,
    pub classes: &'a [String],
    /// Pictures that generator and judge have seen, if that is known.
    pub seen: Option<usize>,
    /// A drawn picture, by its row.
    #[allow(clippy::type_complexity, reason = "a name would say no more")]
    pub picture: &'a dyn Fn(usize) -> Result<RgbImage>,
}

pub(super) fn write(
    what: &Page,
    settings: &DownstreamSettings,
    found: &[Found],
    leaks: &[Leak],
) -> Result<()> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>nadir evaluate downstream</title>\
         <style>{STYLE}td,th{{padding-right:1.5em;text-align:left}}</style></head><body>\n\
         <h1>What drawn pictures teach</h1>\n<p>{}, from new weights, {} updates of {} pictures each; {}. Mean of {} networks, and how far it may be off with 95 % confidence (Student's t).</p>\n",
        escaped(&what.network),
        settings.steps,
        settings.batch,
        what.test,
        settings.seeds
    );
    summary(&mut page, what, found);
    let classes = what.classes;
    for one in found {
        let mut all = Confusion::new(classes.len());
        one.scores.iter().for_each(|scores| all.merge(&scores.confusion));
        let name = one.condition.name();
        let picture = confusion_svg(&all, classes);
        let file = format!("confusion-{}.svg", name.replace(", ", "-").replace(' ', "-"));
        atomic::write(&what.folder.join(file), |out| out.write_all(picture.as_bytes()))?;
        let _ = writeln!(page, "<h2>{}</h2>\n{picture}", escaped(&name));
        by_class(&mut page, one, classes);
    }
    for leak in leaks {
        neighbours(&mut page, what, leak)?;
    }
    page.push_str("</body></html>\n");
    atomic::write(&downstream::page(what.folder), |out| out.write_all(page.as_bytes()))
}

/// A row for each kind of network.
fn summary(page: &mut String, what: &Page, found: &[Found]) {
    page.push_str(
        "<table><tr><th>learned from</th><th>accuracy</th><th>macro F1</th><th>mean IoU</th><th>calibration error</th>\
         <th>real pictures behind it</th></tr>\n",
    );
    for one in found {
        let of = |score: &dyn Fn(&Scores) -> f64| {
            percent(interval(&one.scores.iter().map(score).collect::<Vec<_>>()))
        };
        let behind = match (what.seen, one.condition.synthetic) {
            (_, 0) => one.condition.real.to_string(),
            (Some(seen), _) => {
                format!(
                    "{}, and the {} that generator and judge have seen",
                    one.condition.real, seen
                )
            }
            (None, _) => {
                format!("{}, and what drew and judged has learned from", one.condition.real)
            }
        };
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{behind}</td></tr>",
            escaped(&one.condition.name()),
            of(&|s| s.confusion.accuracy()),
            of(&|s| s.confusion.macro_f1()),
            of(&|s| s.confusion.mean_iou()),
            of(&|s| s.calibration_error),
        );
    }
    page.push_str("</table>\n");
}

/// "93.1 ± 0.4 %".
pub(super) fn percent(value: Interval) -> String {
    let Interval { mean, half_width } = value;
    match half_width.is_finite() {
        true => format!("{:.1} \u{b1} {:.1} %", 100.0 * mean, 100.0 * half_width),
        false => format!("{:.1} %", 100.0 * mean),
    }
}

fn by_class(page: &mut String, one: &Found, classes: &[String]) {
    page.push_str(
        "<table><tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>IoU</th></tr>\n",
    );
    let scores: Vec<Vec<ClassScores>> = one.scores.iter().map(|s| s.confusion.classes()).collect();
    for (i, class) in classes.iter().enumerate() {
        let of = |score: &dyn Fn(&ClassScores) -> f64| {
            percent(interval(&scores.iter().map(|all| score(&all[i])).collect::<Vec<_>>()))
        };
        let (precision, recall, f1) = (of(&|s| s.precision), of(&|s| s.recall), of(&|s| s.f1));
        let iou = of(&|s| s.iou);
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{precision}</td><td>{recall}</td><td>{f1}</td><td>{iou}</td></tr>",
            escaped(class)
        );
    }
    page.push_str("</table>\n");
}

/// A confusion matrix as a picture: rows are what it is, columns what was seen, in per cent of the row.
fn confusion_svg(all: &Confusion, classes: &[String]) -> String {
    const CELL: usize = 44;
    let n = classes.len();
    let longest = classes.iter().map(|class| class.chars().count()).max().unwrap_or_default();
    let margin = 8 * longest + 16;
    let side = margin + n * CELL + 8;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side} {side}\" style=\"max-width:{side}px;\
         font:12px system-ui,sans-serif\" role=\"img\" aria-label=\"confusion matrix\">\n"
    );
    let center = |i: usize| margin + i * CELL + CELL / 2;
    for (i, class) in classes.iter().enumerate() {
        let (class, at, edge) = (escaped(class), center(i), margin - 8);
        let _ =
            writeln!(svg, "<text x=\"{edge}\" y=\"{}\" text-anchor=\"end\">{class}</text>", at + 4);
        let _ = writeln!(
            svg,
            "<text transform=\"translate({},{edge}) rotate(-90)\">{class}</text>",
            at + 4
        );
    }
    for (i, row) in all.counts.iter().enumerate() {
        let total = row.iter().sum::<u64>().max(1) as f64;
        for (j, &count) in row.iter().enumerate() {
            let share = count as f64 / total;
            let (x, y) = (margin + j * CELL, margin + i * CELL);
            let hue = if i == j { "31,111,235" } else { "207,34,46" };
            // Few mistakes are to be seen too.
            let opacity = if count == 0 { 0.0 } else { share.sqrt().max(0.08) };
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"rgba({hue},{opacity:.2})\" \
                 stroke=\"#d0d7de\"/>"
            );
            if count > 0 {
                let ink = if opacity > 0.6 { "#fff" } else { "#1c2430" };
                let (x, y) = (center(j), center(i) + 4);
                let _ = writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" fill=\"{ink}\">{:.0}</text>",
                    100.0 * share
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// How near drawn pictures come to others, and the nearest.
fn neighbours(page: &mut String, what: &Page, leak: &Leak) -> Result<()> {
    let n = leak.nearest.len();
    let same = leak.nearest.iter().filter(|(similarity, _)| *similarity >= SAME).count();
    let _ = writeln!(page, "<h2>Beside {}</h2>", escaped(&leak.of));
    let median = leak.nearest.get(n / 2).map_or(f32::NAN, |(similarity, _)| *similarity);
    let _ = writeln!(
        page,
        "<p>Correlation of 16x16 pixels of each of {n} drawn pictures with the nearest of {}: median {median:.2}; {same} are as \
         good as one ({SAME} or more). The nearest:</p>\n<div class=\"pictures\">",
        leak.count
    );
    for (similarity, row) in leak.nearest.iter().take(PAIRS) {
        page.push_str(&figure(&encoded(what, *row)?, &format!("{similarity:.2}")));
    }
    page.push_str("</div>\n");
    Ok(())
}

/// A picture as PNG.
fn encoded(what: &Page, row: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let picture = (what.picture)(row)?;
    png::encode(&mut bytes, &picture, &[]).map_err(|e| Error::io(what.folder, e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_shows_shares_of_its_rows() {
        let mut all = Confusion::new(2);
        [(0, 0), (0, 0), (0, 0), (0, 1), (1, 1)].into_iter().for_each(|(a, b)| all.add(a, b));
        let svg = confusion_svg(&all, &["a<b".to_owned(), "sea".to_owned()]);
        for part in [">75</text>", ">25</text>", ">100</text>", ">a&lt;b</text>"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("<rect").count(), 4);
        assert_eq!(percent(interval(&[0.5, 0.7])), "60.0 \u{b1} 127.1 %");
        assert_eq!(percent(interval(&[0.5])), "50.0 %");
    }
}
