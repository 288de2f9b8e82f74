//! What is done with a scene that is looked at through windows: where its mask goes, how it is shown and counted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use nadir::io::geotiff::{Cog, CogWriter, Georeference, SampleKind};
use nadir::io::{atomic, png};
use nadir::pipeline::Cancel;
use nadir::pipeline::scene::{Color, NODATA, Overlay, Palette, Rows, Source, Watcher, legend};
use nadir::{Error, Result};

use super::interrupt;
use super::progress::Progress;

/// Pixels a side of a mask that is no TIFF.
const MAX_SIDE: usize = 16_384;

/// What endings pictures have.
const PICTURES: [&str; 9] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gtiff", "btf"];

/// How scenes are cut, and what is written of them.
#[derive(Debug, Args)]
pub struct SceneArgs {
    /// A .png or .tif file for one input, or an existing folder, which gets NAME-mask.png or NAME-mask.tif [default: this
    /// folder]
    #[arg(short, long, value_name = "PATH", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Also write NAME-overlay.png, the scene with its classes' colours over it, and NAME-legend.svg
    #[arg(long, help_heading = "Output")]
    pub overlay: bool,

    /// Colours of classes, NAME=#rrggbb, by commas [default: such as suit the names]
    #[arg(long, value_name = "COLORS", value_delimiter = ',', value_parser = parse_color)]
    #[arg(visible_alias = "colours", alias = "palette", help_heading = "Output")]
    pub colors: Vec<(String, Color)>,

    /// Height and width in pixels of what is looked at at once
    #[arg(long, value_name = "PIXELS", help_heading = "Scene")]
    pub window: Option<usize>,

    /// Pixels that a window shares with the next, at most half of it
    #[arg(long, value_name = "PIXELS", help_heading = "Scene")]
    pub overlap: Option<usize>,

    /// Windows at a time; nothing depends on it but memory and speed
    #[arg(long, value_name = "N", help_heading = "Scene", alias = "batch")]
    pub batch_size: Option<usize>,

    /// Numbers of the bands that the model sees, in its order, the first being 1 [default: all but one for opacity]
    #[arg(long, value_name = "BANDS", value_delimiter = ',', help_heading = "Scene")]
    pub bands: Option<Vec<usize>>,

    /// Where a picture lies that does not say so: west,south,east,north, in units of --epsg
    #[arg(long, value_name = "BOX", value_delimiter = ',', num_args = 1, requires = "epsg")]
    #[arg(allow_hyphen_values = true, help_heading = "Scene")]
    pub bbox: Option<Vec<f64>>,

    /// EPSG code of the reference system of --bbox
    #[arg(long, value_name = "CODE", requires = "bbox", help_heading = "Scene")]
    pub epsg: Option<u32>,
}

fn parse_color(text: &str) -> std::result::Result<(String, Color), String> {
    let (name, color) = text.rsplit_once('=').ok_or("a class and its colour: NAME=#rrggbb")?;
    Ok((name.to_owned(), color.parse()?))
}

/// A picture, and where what comes of it goes.
struct Job {
    input: PathBuf,
    mask: PathBuf,
    overlay: PathBuf,
    legend: PathBuf,
}

impl SceneArgs {
    /// Looks at pictures one after the other, in `bands` bands, `cell` by `cell` pixels having one class.
    ///
    /// # Errors
    /// Inputs and outputs that cannot go together; a picture that cannot be read; what `look` answers.
    pub fn carry_out(
        &self,
        paths: &[PathBuf],
        (bands, cell): (usize, usize),
        classes: &Classes,
        (quiet, json): (bool, bool),
        look: impl Fn(&mut Source, &mut Work) -> Result<()>,
    ) -> anyhow::Result<()> {
        let jobs = self.jobs(paths)?;
        let mut progress = Progress::new(quiet);
        let cancel = interrupt::switch();
        let alone = jobs.len() == 1;
        if !alone {
            progress.start(jobs.len());
        }
        for job in &jobs {
            cancel.check()?;
            let mut source = Source::open(&job.input, bands, self.bands.as_deref())?;
            let place = self.place(&source)?;
            if source.is_tiff() && place.as_ref().is_none_or(|place| place.transform.is_none()) {
                progress.warn(&format!(
                    "{}: no transform: its mask has no place either; --bbox and --epsg give it one",
                    job.input.display()
                ));
            }
            let with = (&mut progress, cancel.clone(), alone);
            let mut work = Work::begin(self, (&source, cell), classes, job, with)?;
            look(&mut source, &mut work)?;
            let seen = work.finish()?;
            progress.say(&format!("{}: {}", job.input.display(), summary(&seen)));
            match json {
                true => progress.print(&seen),
                false => progress.print(job.mask.display()),
            }
            if !alone {
                progress.step();
            }
        }
        progress.finish();
        Ok(())
    }

    /// Nothing that makes masks has been asked for.
    ///
    /// # Errors
    /// Something has.
    pub fn refuse(&self) -> Result<()> {
        let asked = [
            ("output", self.output.is_some()),
            ("overlay", self.overlay),
            ("colors", !self.colors.is_empty()),
            ("window", self.window.is_some()),
            ("overlap", self.overlap.is_some()),
            ("batch_size", self.batch_size.is_some()),
            ("bands", self.bands.is_some()),
            ("bbox", self.bbox.is_some()),
        ];
        match asked.into_iter().find(|(_, asked)| *asked) {
            Some((name, _)) => Err(Error::argument(name, "this", "with --map only")),
            None => Ok(()),
        }
    }

    /// What there is to do, checked before anything is done.
    ///
    /// # Errors
    /// A folder without pictures; an output that is an input, that cannot be, or that two inputs share.
    fn jobs(&self, paths: &[PathBuf]) -> Result<Vec<Job>> {
        let inputs = pictures(paths)?;
        if self.bbox.is_some() && inputs.len() > 1 {
            let found = format!("a box for {} pictures", inputs.len());
            return Err(Error::argument("bbox", found, "one picture, which lies there"));
        }
        let folder = match self.output.as_deref() {
            None => Some(PathBuf::new()),
            Some(path) if path.is_dir() => Some(path.to_path_buf()),
            Some(path) if inputs.len() > 1 || paths.iter().any(|path| path.is_dir()) => {
                let expected = "an existing folder, for several pictures: make it first (mkdir -p)";
                return Err(Error::argument("output", path.display(), expected));
            }
            Some(_) => None,
        };
        let mut jobs: Vec<Job> = Vec::new();
        for input in inputs {
            let mask = match (&folder, &self.output) {
                (None, Some(file)) => file.clone(),
                (folder, _) => {
                    let end = if is_tiff(&input) { "tif" } else { "png" };
                    let name = input.file_stem().unwrap_or_default().to_string_lossy();
                    folder.clone().unwrap_or_default().join(format!("{name}-mask.{end}"))
                }
            };
            if !is_tiff(&mask) && !has_ending(&mask, &["png"]) {
                let expected = "a file name that ends in .tif or .png, or an existing folder";
                return Err(Error::argument("output", mask.display(), expected));
            }
            let parent = mask.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
            atomic::check_folder(&mask, parent)?;
            let stem = mask.file_stem().unwrap_or_default().to_string_lossy();
            let stem = stem.strip_suffix("-mask").unwrap_or(&stem);
            let overlay = parent.join(format!("{stem}-overlay.png"));
            let legend = parent.join(format!("{stem}-legend.svg"));
            for output in [&mask, &overlay, &legend] {
                let same = |a: &Path, b: &Path| matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b);
                if same(&input, output) {
                    let expected = "another file than the picture itself";
                    return Err(Error::argument("output", output.display(), expected));
                }
            }
            if let Some(other) = jobs.iter().find(|job| job.mask == mask) {
                let found = format!("{} for two pictures", mask.display());
                let names = format!("{} and {}", other.input.display(), input.display());
                let expected = format!("other names than {names}, or one after the other");
                return Err(Error::argument("output", found, expected));
            }
            jobs.push(Job { input, mask, overlay, legend });
        }
        Ok(jobs)
    }

    /// Where a scene lies: as its file says, or as these arguments do.
    ///
    /// # Errors
    /// A box that is none.
    fn place(&self, source: &Source) -> Result<Option<Georeference>> {
        let about = source.about();
        match (&self.bbox, self.epsg) {
            (Some(bbox), Some(epsg)) => {
                let shown = || bbox.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
                let bbox = <[f64; 4]>::try_from(bbox.as_slice()).map_err(|_| {
                    Error::argument("bbox", shown(), "four numbers: west,south,east,north")
                })?;
                Georeference::from_bbox(bbox, epsg, about.width, about.height).map(Some)
            }
            _ => Ok(about.georeference.clone()),
        }
    }
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|end| endings.iter().any(|e| end.eq_ignore_ascii_case(e)))
}

fn is_tiff(path: &Path) -> bool {
    has_ending(path, &["tif", "tiff", "gtiff", "btf"])
}

/// The pictures that paths stand for; a folder's are sorted.
fn pictures(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(|e| Error::io(path, e)))
            .collect::<Result<_>>()?;
        files.retain(|file| file.is_file() && has_ending(file, &PICTURES));
        if files.is_empty() {
            let advice = "Name the pictures, or the folder that has them.";
            let expected = "PNG, JPEG, WebP, BMP or TIFF files";
            return Err(Error::file(path, "pictures", expected, "none", advice));
        }
        files.sort();
        found.append(&mut files);
    }
    Ok(found)
}

/// A mask that is being made.
pub struct Work<'a> {
    job: &'a Job,
    progress: &'a mut Progress,
    cancel: Cancel,
    /// Whether windows are what is counted, not pictures.
    windows: bool,
    classes: &'a [String],
    palette: Palette,
    /// Of the mask's pixels.
    place: Option<Georeference>,
    /// Columns and rows of the mask.
    size: [usize; 2],
    out: Out,
    overlay: Option<Overlay>,
    counts: BTreeMap<u8, u64>,
}

enum Out {
    Cog(Box<CogWriter>),
    Png(Vec<u8>),
}

/// What masks are made with.
pub struct Classes<'a> {
    pub names: &'a [String],
    /// Mean and deviation of the levels that the model knows.
    pub mean: &'a [f32],
    pub std: &'a [f32],
}

impl<'a> Work<'a> {
    /// Begins the mask of a scene, `cell` by `cell` pixels of which have one class.
    ///
    /// # Errors
    /// It cannot be written; a colour of no class; a PNG that would be too large.
    fn begin(
        args: &SceneArgs,
        (source, cell): (&Source, usize),
        classes: &Classes<'a>,
        job: &'a Job,
        (progress, cancel, windows): (&'a mut Progress, Cancel, bool),
    ) -> Result<Self> {
        let palette = Palette::new(classes.names, &args.colors)?;
        let place = args.place(source)?.map(|place| place.part(0.0, 0.0, cell as f64));
        let size = [source.about().width, source.about().height].map(|side| side.div_ceil(cell));
        let [width, height] = size;
        let out = if is_tiff(&job.mask) {
            let number = |(i, name): (usize, &String)| (format!("CLASS_{i}"), name.clone());
            let cog = Cog {
                georeference: place.clone(),
                nodata: Some(NODATA.into()),
                palette: Some(palette.colors().to_vec()),
                metadata: classes.names.iter().enumerate().map(number).collect(),
                ..Cog::new(width, height, 1, SampleKind::U8)
            };
            Out::Cog(Box::new(CogWriter::create(&job.mask, cog, true)?))
        } else if width.max(height) > MAX_SIDE {
            let expected = format!("a .tif file: a PNG has at most {MAX_SIDE} pixels a side");
            return Err(Error::argument("output", job.mask.display(), expected));
        } else {
            Out::Png(Vec::with_capacity(width * height))
        };
        let (mean, std) = (classes.mean, classes.std);
        let overlay = args.overlay.then(|| Overlay::new(source, palette.clone(), mean, std));
        let (classes, counts) = (classes.names, BTreeMap::new());
        Ok(Self {
            job,
            progress,
            cancel,
            windows,
            classes,
            palette,
            place,
            size,
            out,
            overlay,
            counts,
        })
    }

    /// Writes what is there, and says what it is.
    ///
    /// # Errors
    /// It cannot be written.
    fn finish(self) -> Result<Value> {
        let Self { job, classes, palette, place, size, out, overlay, counts, .. } = self;
        match out {
            Out::Cog(writer) => writer.finish()?,
            Out::Png(pixels) => {
                let size = size.map(|side| side as u32);
                png::write_indexed(&job.mask, size, palette.colors(), NODATA, &pixels)?;
            }
        }
        let area = match &place {
            Some(place) => place.pixel_area(),
            None => Err("no transform: pixels have no size".to_owned()),
        };
        let known: u64 = counts.iter().filter(|(class, _)| **class != NODATA).map(|c| c.1).sum();
        let mut seen = Vec::new();
        for (i, name) in classes.iter().enumerate() {
            let pixels = counts.get(&(i as u8)).copied().unwrap_or_default();
            let share = if known > 0 { pixels as f64 / known as f64 } else { 0.0 };
            let area = area.as_ref().ok().map(|area| area * pixels as f64);
            seen.push(json!({
                "class": name, "value": i, "pixels": pixels, "share": share,
                "area_m2": area, "area_ha": area.map(|area| area / 10_000.0),
            }));
        }
        if let Some(overlay) = overlay {
            png::write(&job.overlay, &overlay.into_picture(), &[])?;
            let rows: Vec<(String, String)> =
                seen.iter().map(|class| (text(class), amount(class))).collect();
            let drawn = legend(&palette, &rows);
            atomic::write(&job.legend, |out| out.write_all(drawn.as_bytes()))?;
        }
        Ok(json!({
            "name": job.input.display().to_string(), "mask": job.mask.display().to_string(),
            "width": size[0], "height": size[1],
            "epsg": place.as_ref().and_then(Georeference::epsg),
            "bbox": place.as_ref().and_then(|place| place.bbox(size[0], size[1])),
            "classes": seen,
            "nodata_pixels": counts.get(&NODATA).copied().unwrap_or_default(),
            "no_areas_because": area.err(),
        }))
    }
}

fn text(class: &Value) -> String {
    class["class"].as_str().unwrap_or_default().to_owned()
}

/// Share, and area where it is known.
fn amount(class: &Value) -> String {
    let share = 100.0 * class["share"].as_f64().unwrap_or_default();
    match class["area_ha"].as_f64() {
        Some(area) => format!("{share:.1} %, {area:.1} ha"),
        None => format!("{share:.1} %"),
    }
}

/// A line that says how much there is of each class.
fn summary(seen: &Value) -> String {
    let classes = seen["classes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let classes: Vec<String> =
        classes.iter().map(|class| format!("{} {}", text(class), amount(class))).collect();
    classes.join("; ")
}

impl Watcher for Work<'_> {
    fn start(&mut self, windows: usize) {
        if self.windows {
            self.progress.start(windows);
        }
    }

    fn step(&mut self, windows: usize) -> Result<()> {
        if self.windows {
            (0..windows).for_each(|_| self.progress.step());
        }
        self.cancel.check()
    }

    fn rows(&mut self, rows: Rows) -> Result<()> {
        for class in rows.classes {
            *self.counts.entry(*class).or_default() += 1;
        }
        if let Some(overlay) = &mut self.overlay {
            overlay.add(&rows);
        }
        match &mut self.out {
            Out::Cog(writer) => writer.write_rows(rows.classes),
            Out::Png(pixels) => {
                pixels.extend_from_slice(rows.classes);
                Ok(())
            }
        }
    }
}
