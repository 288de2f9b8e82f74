//! `report.html`: what a run has come to so far, on one page that needs no other file.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::csv::Line;
use super::plot::plot;
use crate::error::Result;
use crate::io::html::{STYLE, escaped, figure};
use crate::io::{atomic, png};
use crate::train::settings::Settings;

/// Sampled steps that are shown at most: the first, the last, and some between them.
const SAMPLED: usize = 8;

/// A run's page.
pub(super) struct Report {
    path: PathBuf,
    pictures: PathBuf,
    title: String,
    /// Name and value.
    settings: Vec<(String, String)>,
    steps: u64,
    /// Steps and values by name, in the order of their first coming.
    curves: Vec<(String, Vec<(u64, f64)>)>,
    /// Steps taken, now and when this process began.
    step: u64,
    first: u64,
    began: Instant,
}

impl Report {
    /// That of a task which goes on behind `step` steps, `before` being what was measured up to there.
    pub fn new(
        folder: &Path,
        task: &str,
        settings: &Settings,
        about: &[(String, String)],
        step: u64,
        before: Vec<Line>,
    ) -> Self {
        let mut all = about.to_vec();
        if let Ok(Value::Object(fields)) = serde_json::to_value(settings) {
            let plain = |value: Value| match value {
                Value::String(text) => text,
                Value::Null => "-".to_owned(),
                other => other.to_string(),
            };
            all.extend(fields.into_iter().map(|(name, value)| (name, plain(value))));
        }
        let mut report = Self {
            path: folder.join("report.html"),
            pictures: folder.join(super::PICTURES),
            title: format!("nadir train {task}"),
            settings: all,
            steps: settings.max_train_steps,
            curves: Vec::new(),
            step,
            first: step,
            began: Instant::now(),
        };
        for (step, name, value) in before {
            report.add(step, &name, value);
        }
        report
    }

    /// Takes up what was measured behind a step.
    pub fn add(&mut self, step: u64, name: &str, value: f64) {
        self.step = self.step.max(step);
        match self.curves.iter_mut().find(|(known, _)| known == name) {
            Some((_, curve)) => curve.push((step, value)),
            None => self.curves.push((name.to_owned(), vec![(step, value)])),
        }
    }

    /// Writes the page; `state` says whether the run goes on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, state: &str, goes_on: bool) -> Result<()> {
        let page = self.page(state, goes_on);
        atomic::write(&self.path, |out| out.write_all(page.as_bytes()))
    }

    fn page(&self, state: &str, goes_on: bool) -> String {
        let mut page = String::new();
        let seconds = self.began.elapsed().as_secs_f64();
        let done = self.step - self.first;
        let refresh = if goes_on { "<meta http-equiv=\"refresh\" content=\"30\">" } else { "" };
        let _ = write!(
            page,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">{refresh}\
             <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n\
             <p><b>{}</b>: step {} of {}. This process has taken {done} steps in {}{}; written {}.</p>\n",
            escaped(state),
            self.step,
            self.steps,
            hours(seconds),
            match done {
                0 => String::new(),
                n => format!(", {:.3} s a step", seconds / n as f64),
            },
            utc(),
            title = escaped(&self.title),
        );
        self.draw_curves(&mut page);
        self.show_samples(&mut page);
        page.push_str("<h2>Settings</h2>\n<table>\n");
        for (name, value) in &self.settings {
            let _ =
                writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value));
        }
        page.push_str("</table>\n</body></html>\n");
        page
    }

    fn draw_curves(&self, page: &mut String) {
        page.push_str("<h2>Curves</h2>\n<div class=\"curves\">\n");
        for (name, curve) in &self.curves {
            let Some(svg) = plot(curve, self.steps.max(self.step)) else { continue };
            let last = curve.last().map_or(f64::NAN, |(_, value)| *value);
            let name = escaped(&name.replace('_', " "));
            let _ =
                writeln!(page, "<figure><figcaption>{name}: {last:.5}</figcaption>{svg}</figure>");
        }
        page.push_str("</div>\n");
    }

    /// The pictures and texts in the folder of those; of a file that cannot be read, what is wrong with it.
    fn show_samples(&self, page: &mut String) {
        let mut sampled = super::sampled(&self.pictures);
        sampled.retain(|(step, _)| *step <= self.step);
        let n = sampled.len();
        if n == 0 {
            return;
        }
        page.push_str("<h2>Samples</h2>\n");
        let shown = n.min(SAMPLED);
        // The latest in front.
        for i in (0..shown).rev() {
            let (step, files) =
                &sampled[if shown == 1 { n - 1 } else { i * (n - 1) / (shown - 1) }];
            let _ = writeln!(page, "<h3>Step {step}</h3>\n<div class=\"pictures\">");
            for file in files {
                let shown = std::fs::read(file).map_err(|e| e.to_string());
                let caption = caption(file);
                let is_text = file.extension().is_some_and(|end| end == super::TEXT);
                let _ = match shown {
                    Ok(bytes) if is_text => {
                        let text = String::from_utf8_lossy(&bytes);
                        let (caption, text) = text.split_once('\n').unwrap_or_default();
                        let (caption, text) = (escaped(caption), escaped(text.trim_end()));
                        writeln!(
                            page,
                            "<figure><figcaption>{caption}</figcaption><pre>{text}</pre></figure>"
                        )
                    }
                    Ok(bytes) => writeln!(page, "{}", figure(&bytes, &caption)),
                    Err(error) => writeln!(page, "<p>{}</p>", escaped(&error)),
                };
            }
            page.push_str("</div>\n");
        }
    }
}

/// What a picture says of itself.
fn caption(file: &Path) -> String {
    let texts = png::read_texts(file).unwrap_or_default();
    texts
        .into_iter()
        .find(|(key, _)| key == super::CAPTION)
        .map(|(_, text)| text)
        .unwrap_or_default()
}

/// "1:02:03".
fn hours(seconds: f64) -> String {
    let s = seconds as u64;
    format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// The date and time in Greenwich, from the days since 1970 (Gregorian years of 400-year cycles, begun in March).
fn utc() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs());
    date(seconds)
}

fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (h, m) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year}-{month:02}-{day_of_month:02} {h:02}:{m:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_curves_pictures_and_settings_and_asks_for_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let before = vec![(1, "loss".to_owned(), 2.0)];
        let about = [("data".to_owned(), "a<b>.parquet".to_owned())];
        let mut report = Report::new(folder, "vae", &Settings::default(), &about, 1, before);
        report.add(2, "loss", 1.0);
        report.add(2, "gradient_norm", f64::NAN);
        let picture = image::RgbImage::new(3, 2);
        for (step, text) in [(1, "early"), (2, "a <river> & \"sea\""), (3, "of another run")] {
            super::super::write_picture(folder, step, 0, text, &picture).unwrap();
        }
        super::super::write_text(folder, 2, 1, "a beginning", "and <how> it\ngoes on").unwrap();
        report.write("Training", true).unwrap();
        let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
        for part in [
            "<b>Training</b>: step 2 of 1000",
            "loss: 1.00000",
            "<polyline",
            "a &lt;river&gt; &amp; &quot;sea&quot;",
            "early",
            "<figcaption>a beginning</figcaption><pre>and &lt;how&gt; it\ngoes on</pre>",
            "a&lt;b&gt;.parquet",
            "<th>learning_rate</th><td>0.0001</td>",
            "data:image/png;base64,iVBORw0KGgo",
            "refresh",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("of another run") && !page.contains("gradient norm"));
        for outside in ["http:", "https:", "<script", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
        report.write("Done", false).unwrap();
        assert!(!std::fs::read_to_string(folder.join("report.html")).unwrap().contains("refresh"));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_709_251_199), "2024-02-29 23:59 UTC");
        assert_eq!(date(1_735_689_600), "2025-01-01 00:00 UTC");
        assert_eq!(hours(3723.9), "1:02:03");
    }
}
