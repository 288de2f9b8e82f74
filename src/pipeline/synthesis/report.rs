//! `report.html`: how many draws each class took, why others were not taken, and some that were.

use std::fmt::Write;

use super::records::Records;
use super::{Draw, Verdict, count};
use crate::error::Result;
use crate::io::atomic;
use crate::io::html::{STYLE, escaped, figure};

/// Pictures of a class that are shown.
const SHOWN: usize = 10;

const VERDICTS: [Verdict; 7] = [
    Verdict::Accepted,
    Verdict::OtherClass,
    Verdict::Unsure,
    Verdict::LowClipScore,
    Verdict::NearTraining,
    Verdict::NearAccepted,
    Verdict::NotFinite,
];

/// Writes the page of a set; `notes` are said in front, the settings behind.
///
/// # Errors
/// It cannot be written; a picture of the set is not there any more.
pub fn write(
    records: &Records,
    classes: &[String],
    notes: &[String],
    settings: &serde_json::Value,
) -> Result<()> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>nadir synthesize</title>\
         <style>{STYLE}td{{padding-right:1.5em}}</style></head><body>\n<h1>A data set of drawn pictures</h1>\n"
    );
    for note in notes {
        let _ = writeln!(page, "<p>{}</p>", escaped(note));
    }
    page.push_str("<h2>Yield</h2>\n<table><tr><th>class</th><th>draws</th>");
    for verdict in VERDICTS {
        let _ = write!(page, "<th>{}</th>", verdict.name());
    }
    let has_scores = records.draws().iter().any(|draw| draw.clip_score.is_some());
    page.push_str("<th>yield</th>");
    if has_scores {
        page.push_str("<th>CLIP score of the accepted</th>");
    }
    page.push_str("</tr>\n");
    let row = |page: &mut String, name: &str, draws: Vec<&Draw>| {
        let (counts, n) = (count(draws.iter().copied()), draws.len());
        let get = |verdict| counts.get(&verdict).copied().unwrap_or_default();
        let _ = write!(page, "<tr><th>{}</th><td>{n}</td>", escaped(name));
        for verdict in VERDICTS {
            let _ = write!(page, "<td>{}</td>", get(verdict));
        }
        let share = 100.0 * get(Verdict::Accepted) as f64 / n.max(1) as f64;
        let _ = write!(page, "<td>{share:.0} %</td>");
        if has_scores {
            let accepted = draws.iter().filter(|draw| draw.file.is_some());
            let scores: Vec<f64> = accepted.filter_map(|draw| draw.clip_score).collect();
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            let mean = if scores.is_empty() { "none".into() } else { format!("{mean:.2}") };
            let _ = write!(page, "<td>{mean}</td>");
        }
        page.push_str("</tr>\n");
    };
    let of = |label: usize| records.draws().iter().filter(move |draw| draw.label == label);
    for (label, class) in classes.iter().enumerate() {
        row(&mut page, class, of(label).collect());
    }
    row(&mut page, "all", records.draws().iter().collect());
    page.push_str("</table>\n");
    for (label, class) in classes.iter().enumerate() {
        let _ = writeln!(page, "<h2>{}</h2>\n<div class=\"pictures\">", escaped(class));
        for (draw, file) in
            of(label).filter_map(|draw| Some((draw, draw.file.as_ref()?))).take(SHOWN)
        {
            let sure =
                draw.seen.as_ref().map_or(String::new(), |(_, p)| format!(" ({:.0} %)", 100.0 * p));
            let score = draw.clip_score.map_or(String::new(), |x| format!(" [CLIP {x:.1}]"));
            let text = format!("{}{sure}{score}", draw.prompt);
            page.push_str(&figure(&records.picture(file)?, &text));
        }
        page.push_str("</div>\n");
    }
    let _ = write!(
        page,
        "<h2>Settings</h2>\n<pre>{}</pre>\n</body></html>\n",
        escaped(&format!("{settings:#}"))
    );
    atomic::write(&records.path("report.html"), |out| out.write_all(page.as_bytes()))
}
