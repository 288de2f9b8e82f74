//! `nadir data inspect`: what a data set holds, before anyone trains on it.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use image::RgbImage;
use serde_json::json;

use nadir::data::{DataSettings, Dataset, Summary};
use nadir::io::{atomic, image as pictures, png};
use nadir::{Error, Result};

use super::args::{Data, Inspect};
use super::progress::Progress;
use super::terminal;

/// Side of a picture in a contact sheet, and the gap between two.
const SIDE: u32 = 96;
const GAP: u32 = 4;

/// Pictures in a row of a contact sheet, and its rows at most.
const COLUMNS: usize = 10;
const ROWS: usize = 60;

/// Captions and faults that are shown.
const SHOWN: usize = 5;

/// Carries out `nadir data ...`.
pub fn run(command: Data) -> anyhow::Result<()> {
    match command {
        Data::Inspect(args) => inspect(&args),
    }
}

fn inspect(args: &Inspect) -> anyhow::Result<()> {
    if let Some(sheet) = &args.sheet {
        check_sheet(sheet)?;
    }
    let progress = Progress::new(false);
    progress.busy(&format!("reading {}", args.path.display()));
    // Sizes may differ: nothing is made of the pictures here.
    let settings = DataSettings {
        resolution: Some(SIDE as usize),
        strict: args.strict,
        caption_template: args.caption_template.clone(),
        class_words: args.class_words.clone(),
        ..DataSettings::default()
    };
    let data = Dataset::open(&args.path, settings)?;
    drop(progress);
    let summary = data.summary();
    let text = match args.json {
        true => terminal::printable_json(&as_json(&data, &summary)?),
        false => describe(&data, &summary),
    };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("standard output", e))?;
    if let Some(path) = &args.sheet {
        png::write(path, &contact_sheet(&data)?, &[])?;
        terminal::say(&format!("contact sheet: {}", path.display()));
    }
    Ok(())
}

/// Whether a sheet can be written there, said before the data set is read.
fn check_sheet(path: &Path) -> Result<()> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        return Err(Error::argument("sheet", path.display(), "a file name that ends in .png"));
    }
    let folder = path.parent().filter(|parent| *parent != Path::new(""));
    atomic::check_folder(path, folder.unwrap_or(Path::new(".")))
}

/// Rows of each class in turn, from the first on, or of all.
fn examples(data: &Dataset, each: usize) -> Vec<Vec<usize>> {
    let classes = data.classes().len().max(1);
    let mut rows = vec![Vec::new(); classes];
    for row in 0..data.len() {
        let rows = &mut rows[data.label(row) as usize];
        if rows.len() < each {
            rows.push(row);
        }
    }
    rows
}

/// A row of pictures for each class, in the order of the labels; without classes, of the first pictures.
fn contact_sheet(data: &Dataset) -> Result<RgbImage> {
    let lines: Vec<Vec<usize>> = if data.classes().is_empty() {
        let first: Vec<usize> = (0..data.len().min(COLUMNS * COLUMNS)).collect();
        first.chunks(COLUMNS).map(<[usize]>::to_vec).collect()
    } else {
        let mut lines = examples(data, COLUMNS);
        lines.truncate(ROWS);
        lines
    };
    let length = |n: usize| n as u32 * (SIDE + GAP) + GAP;
    let white = image::Rgb([255; 3]);
    let mut sheet = RgbImage::from_pixel(length(COLUMNS), length(lines.len()), white);
    for (y, line) in lines.iter().enumerate() {
        for (x, &row) in line.iter().enumerate() {
            let picture = data.picture(row)?;
            // Whole, whatever its proportions.
            let scale = f64::from(SIDE) / f64::from(picture.width().max(picture.height()));
            let side = |n: u32| ((f64::from(n) * scale).round() as u32).clamp(1, SIDE);
            let small = pictures::resize(&picture, side(picture.width()), side(picture.height()))?;
            let place = |n: usize| i64::from(length(n));
            image::imageops::replace(&mut sheet, &small, place(x), place(y));
        }
    }
    Ok(sheet)
}

fn as_json(data: &Dataset, summary: &Summary) -> anyhow::Result<String> {
    let mut report = serde_json::to_value(summary)?;
    let fault = |f: &nadir::data::Fault| json!({"row": f.row, "error": f.error.to_string()});
    report["faults"] = data.faults().iter().map(fault).collect();
    Ok(serde_json::to_string_pretty(&report)?)
}

fn describe(data: &Dataset, summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        let _ = writeln!(text, "{}", terminal::printable(&line));
    };
    line(format!("{}: {} rows that can be used", data.path().display(), summary.rows));

    line(String::new());
    for ([width, height], count) in summary.sizes.iter().take(SHOWN) {
        line(format!("  {count:>7} of {width}x{height} pixels"));
    }
    if let more @ 1.. = summary.sizes.len().saturating_sub(SHOWN) {
        line(format!("          and {more} more sizes"));
    }

    line(String::new());
    match summary.classes.len() {
        0 => line("no classes".to_owned()),
        n => line(format!("{n} classes, by label:")),
    }
    for (label, (class, count)) in summary.classes.iter().enumerate() {
        line(format!("  {count:>7} {label:>3} {class}"));
    }

    line(String::new());
    let captions = &summary.captions;
    if captions.count == 0 {
        line("no captions".to_owned());
    } else {
        line(format!(
            "{} captions, {} of them different, {:.1} words on average, {} at most; {} rows have none:",
            captions.count,
            captions.distinct,
            captions.mean_words,
            captions.most_words,
            captions.rows_without
        ));
    }
    // From one end to the other: neighbours are often of one class.
    let shown = SHOWN.min(data.len());
    let shown: Vec<String> = (0..shown).map(|i| data.caption(i * data.len() / shown)).collect();
    for caption in shown.iter().filter(|caption| !caption.is_empty()) {
        line(format!("  {caption}"));
    }

    line(String::new());
    match data.faults().len() {
        0 => line("no rows that cannot be used".to_owned()),
        n => line(format!("{n} rows that cannot be used:")),
    }
    for fault in data.faults().iter().take(4 * SHOWN) {
        line(format!("  {}", fault.error));
    }
    if let more @ 1.. = data.faults().len().saturating_sub(4 * SHOWN) {
        line(format!("  and {more} more (--json has all)"));
    }
    text.truncate(text.trim_end().len());
    text
}
