//! Carries out a recipe: loads the model, draws, and writes each picture as soon as it is ready.

use std::fmt::Display;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use image::RgbImage;

use nadir::io::geotiff::{Georeference, SampleKind, picture};
use nadir::io::picture::{Picture, Samples, ShownBands};
use nadir::io::raster::{Levels, Raster};
use nadir::nn::lora;
use nadir::pipeline::plan::{Target, Timings};
use nadir::pipeline::{
    Control, Event, ImagePrompt, InitImage, InitPixels, LoadOptions, SIZE_STEP, SlotId,
    TextToImage, Warning,
};
use nadir::tensor::{Device, cuda};
use nadir::{Error, Result, io};

use super::args::{Execution, Time};
use super::deadline;
use super::destination::{Destination, Which};
use super::interrupt;
use super::limits;
use super::model::Model;
use super::progress::Progress;
use super::recipe::{ControlSource, Embedding, Lora, Recipe, Source};

/// One command's work.
pub struct Drawing {
    pub recipe: Recipe,
    pub model: Model,
    pub destination: Destination,
    pub execution: Execution,
    pub time: Time,
    /// Write a file for each picture.
    pub separately: bool,
    /// Write all pictures as one.
    pub grid: bool,
    /// Write into each file how it was made.
    pub metadata: bool,
}

/// Draws the pictures of `drawing`: all of them or, after Ctrl-C, those that were finished.
///
/// # Errors
/// What is wrong with the recipe, the model or the place for the pictures; `Interrupted` after Ctrl-C.
pub fn draw(drawing: Drawing) -> anyhow::Result<()> {
    let Drawing { mut recipe, model, destination, execution, time, separately, grid, metadata } =
        drawing;
    // What needs no model is judged before one is loaded.
    recipe.check()?;
    let mut batch = limits::check_batch(execution.batch, recipe.num_images)?;
    let target = time.target()?;
    destination.check(&pictures(&recipe, separately, grid))?;
    check_place(&recipe, &destination)?;
    // Of a grid that is one too these are the bands.
    let shown = recipe.preview_bands.filter(|_| !grid);
    check_form(recipe.samples, shown, destination.is_geotiff())?;
    limits::set_threads(execution.threads)?;
    let progress = Progress::new(execution.quiet);
    let mut sampler = model.sampler_name(recipe.settings.scheduler.as_deref())?;
    let init = read_init(&mut recipe, &destination, &progress)?.map(Arc::new);
    let controls = read_controls(&mut recipe, &progress)?;
    let image_prompt = read_image_prompt(&mut recipe, &progress)?;
    let device = choose_device(&execution.device, |line| progress.say(line))?;
    recipe.device = device.to_string();
    let options = LoadOptions {
        dtype: recipe.dtype,
        device,
        variant: recipe.variant.clone(),
        supplement: model.supplement.clone(),
        adapters: recipe.lora.iter().map(Lora::adapter).collect(),
        embeddings: recipe.embedding.iter().map(Embedding::inversion).collect(),
        controlnets: recipe.controlnet.clone(),
        vae: recipe.vae.clone(),
        ip_adapter: recipe.ip_adapter.as_ref().map(|source| source.path.clone()),
        image_encoder: recipe.image_encoder.clone(),
        ..LoadOptions::default()
    };
    let mut same = true;
    for (lora, adapter) in recipe.lora.iter_mut().zip(&options.adapters) {
        let (found, what) = (adapter.checksum()?, lora.path.display());
        same &= replace_checksum(&mut lora.hash, found, what, &progress);
    }
    if let Some(source) = &mut recipe.ip_adapter {
        let (found, what) = (lora::checksum(&source.path)?, source.path.display());
        same &= replace_checksum(&mut source.hash, found, what, &progress);
    }
    for (source, inversion) in recipe.embedding.iter_mut().zip(&options.embeddings) {
        let (found, what) = (inversion.checksum()?, source.path.display());
        same &= replace_checksum(&mut source.hash, found, what, &progress);
    }
    limits::check_memory(&model, &options, &recipe, batch, grid)?;
    progress.busy(&format!("loading {}", model.name));
    let clock = Instant::now();
    let pipeline = TextToImage::load(&model.folder, &options)?;
    pipeline.notes().iter().for_each(|note| progress.warn(note));
    let (hash, what) = (pipeline.fingerprint().to_owned(), format!("the model {}", model.name));
    if !same {
        // That the two together have changed was said.
        recipe.model_hash.clear();
    }
    replace_checksum(&mut recipe.model_hash, hash, what, &progress);
    let wanted_steps = recipe.settings.steps;
    recipe.settings = pipeline.resolve(&recipe.settings, init.as_deref())?;
    progress.say(&format!(
        "{} in {}, loaded in {:.1} s; {sampler}, {} steps, guidance {}, seed {}",
        model.name,
        recipe.dtype,
        clock.elapsed().as_secs_f64(),
        recipe.settings.steps.unwrap_or_default(),
        recipe.settings.guidance_scale.unwrap_or_default(),
        recipe.seed
    ));

    let form = form(&recipe, &destination, (pipeline.bands(), grid), &progress)?;
    if let Some(target) = target {
        progress.busy("measuring this machine");
        let texts = if metadata { Vec::from(recipe.texts(&sampler)?) } else { Vec::new() };
        let mut keep =
            |picture: &Picture| destination.rehearse(|out| form.encode(out, picture, &texts));
        let (from, follow, prompt) = (init.clone(), controls.clone(), image_prompt.clone());
        let like = recipe.requests(from, follow, prompt, interrupt::switch()).next();
        let like = like.unwrap_or_default();
        let limits = time.limits(wanted_steps, batch);
        let (plan, other) = deadline::plan(target, limits, &pipeline, &like, &mut keep)?;
        (recipe.settings.steps, batch) = (Some(plan.steps), plan.batch);
        let mut by = String::new();
        if let Some(name) = other {
            recipe.settings.scheduler = Some(name.to_owned());
            sampler = model.sampler_name(Some(name))?;
            by = format!(" of {sampler}");
        }
        progress.say(&format!(
            "{} at once with {} steps{by}: done in {:.0} ms",
            plan.batch,
            plan.steps,
            plan.expected.as_secs_f64() * 1e3
        ));
    }
    let requests = recipe.requests(init, controls, image_prompt, interrupt::switch());
    let mut session = Session {
        recipe: &recipe,
        sampler,
        destination,
        form,
        progress,
        batch,
        separately,
        grid,
        metadata,
        pictures: Vec::new(),
        written: 0,
        failed: None,
        clock: Instant::now(),
        timings: Timings::default(),
    };
    let drawn = pipeline.generate(requests, batch, &mut |event| session.see(event));
    session.progress.finish();
    if let Some(target) = target {
        session.progress.say(&session.told(target));
    }
    match drawn.and_then(|()| session.finish()) {
        Err(Error::Interrupted) => {
            let kept = format!("kept {} of {} pictures", session.written, recipe.num_images);
            Err(anyhow::Error::from(Error::Interrupted).context(kept))
        }
        other => Ok(other?),
    }
}

/// Writes pictures while the pipeline makes them.
struct Session<'a> {
    recipe: &'a Recipe,
    sampler: String,
    destination: Destination,
    form: Form,
    progress: Progress,
    /// Pictures at a time.
    batch: usize,
    separately: bool,
    grid: bool,
    metadata: bool,
    /// For the grid.
    pictures: Vec<RgbImage>,
    written: usize,
    /// Why a picture is missing.
    failed: Option<Error>,
    /// Since when the batch is under way.
    clock: Instant,
    timings: Timings,
}

impl Session<'_> {
    fn see(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Began { slot: SlotId(0), evaluations, warnings } => {
                self.progress.start(evaluations * self.recipe.num_images.div_ceil(self.batch));
                // The prompt is the same for all.
                warnings.iter().for_each(|warning| self.progress.warn(&in_our_words(warning)));
            }
            // The first of a batch speaks for the others: all have as many steps.
            Event::Stepped { slot, .. } if slot.0.is_multiple_of(self.batch) => {
                self.progress.step();
            }
            Event::Finished { slot, result: Ok(picture) } => {
                if self.separately {
                    let seed = self.recipe.seed + slot.0 as u64;
                    let which = match self.recipe.num_images {
                        1 => Which::Only { seed },
                        _ => Which::OneOfSeveral { seed },
                    };
                    self.write(which, &picture, seed, 1)?;
                }
                self.written += 1;
                if self.written.is_multiple_of(self.batch) || self.written == self.recipe.num_images
                {
                    self.timings.add(self.clock.elapsed());
                    self.clock = Instant::now();
                }
                if self.grid {
                    self.pictures.push(picture.shown(self.recipe.preview_bands)?);
                }
            }
            // One picture's numbers say nothing about those of others.
            Event::Finished { result: Err(error @ Error::NotFinite(_)), .. } => {
                self.failed.get_or_insert(error);
            }
            Event::Finished { result: Err(error), .. } => return Err(error),
            _ => {}
        }
        Ok(())
    }

    /// How long batches took.
    fn told(&self, target: Target) -> String {
        let ms = |share| self.timings.quantile(share).as_secs_f64() * 1e3;
        let mut told = format!(
            "{} batches: p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
            self.timings.len(),
            ms(0.5),
            ms(0.99),
            ms(1.0)
        );
        if let Target::Deadline(deadline) = target {
            told += &format!(
                "; {} later than {} ms",
                self.timings.above(deadline),
                deadline.as_millis()
            );
        }
        told
    }

    /// What is to be done when all pictures have been seen.
    fn finish(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if !self.grid {
            return Ok(());
        }
        let Recipe { seed, num_images, .. } = *self.recipe;
        let which = if self.separately { Which::Grid { seed } } else { Which::Only { seed } };
        let grid = Picture::of_rgb(&io::image::grid(&self.pictures)?)?;
        self.write(which, &grid, seed, num_images)
    }

    fn write(&self, which: Which, image: &Picture, seed: u64, num_images: usize) -> Result<()> {
        let recipe = Recipe { seed, num_images, ..self.recipe.clone() };
        let texts =
            if self.metadata { Vec::from(recipe.texts(&self.sampler)?) } else { Vec::new() };
        let form = match &self.form {
            // A grid of pictures lies nowhere, and is of the bands that are shown.
            Form::GeoTiff(_) if num_images > 1 => &Form::GeoTiff(picture::Form::plain(None)),
            Form::Png(_) if num_images > 1 => &Form::Png(None),
            form => form,
        };
        let path = self.destination.save(which, |out| form.encode(out, image, &texts))?;
        if let Some(path) = path {
            self.progress.print(path.display());
        }
        Ok(())
    }
}

/// What pictures are written as.
enum Form {
    /// Of the bands that are named, if they are.
    Png(Option<ShownBands>),
    GeoTiff(picture::Form),
}

impl Form {
    fn encode(
        &self,
        out: &mut dyn Write,
        image: &Picture,
        texts: &[(&str, String)],
    ) -> std::io::Result<()> {
        match self {
            Self::Png(bands) => {
                let image = image.shown(*bands).map_err(std::io::Error::other)?;
                let texts: Vec<_> = texts.iter().map(|(k, text)| (*k, text.as_str())).collect();
                io::png::encode(out, &image, &texts)
            }
            Self::GeoTiff(form) => picture::encode(out, image, form, texts),
        }
    }
}

/// What can be said of a picture's place before its size is known.
fn check_place(recipe: &Recipe, destination: &Destination) -> Result<()> {
    let (Some(bbox), Some(epsg)) = (recipe.bbox, recipe.epsg) else { return Ok(()) };
    if !destination.is_geotiff() {
        let found = bbox.map(|x| x.to_string()).join(",");
        return Err(Error::argument("bbox", found, "a place is kept by a GeoTIFF: -o NAME.tif"));
    }
    if recipe.num_images > 1 {
        let expected = "1 with --bbox: of several pictures only one can lie there";
        return Err(Error::argument("num_images", recipe.num_images, expected));
    }
    Georeference::from_bbox(bbox, epsg, 1, 1).map(drop)
}

/// What can be said of a picture's numbers and bands before the model is known.
///
/// # Errors
/// `Argument`: a PNG of other numbers than 8 bits, a GeoTIFF of some bands.
pub fn check_form(
    samples: Option<Samples>,
    bands: Option<ShownBands>,
    is_geotiff: bool,
) -> Result<()> {
    match (is_geotiff, samples, bands) {
        (true, _, Some(bands)) => {
            let expected = "none: a GeoTIFF keeps all bands; a PNG shows three";
            Err(Error::argument("preview_bands", bands, expected))
        }
        (false, Some(samples), _) if samples != Samples::U8 => {
            let expected = "u8 of a PNG: other numbers are kept by a GeoTIFF, -o NAME.tif";
            Err(Error::argument("samples", samples, expected))
        }
        _ => Ok(()),
    }
}

/// What the pictures of a recipe are written as: where it says they lie, or where the picture lies that they start from.
fn form(
    recipe: &Recipe,
    destination: &Destination,
    (bands, grid): (usize, bool),
    progress: &Progress,
) -> Result<Form> {
    if !destination.is_geotiff() || grid {
        // What it shows of them.
        ShownBands::of(recipe.preview_bands, bands)?;
    }
    if !destination.is_geotiff() {
        return Ok(Form::Png(recipe.preview_bands));
    }
    let samples = recipe.samples.unwrap_or_default();
    let (scale, place) = (samples.scale(recipe.scale)?, place(recipe, progress)?);
    let init = recipe.init_image.as_ref().map(|source| source.path.as_path());
    let units = picture::units(init, recipe.scale, (samples, scale), bands)?;
    Ok(Form::GeoTiff(picture::Form { samples, scale, units, place }))
}

/// Where the pictures of a recipe lie.
fn place(recipe: &Recipe, progress: &Progress) -> Result<Option<Georeference>> {
    let size = [recipe.settings.width, recipe.settings.height];
    let [width, height] = size.map(Option::unwrap_or_default);
    if let (Some(bbox), Some(epsg)) = (recipe.bbox, recipe.epsg) {
        return Georeference::from_bbox(bbox, epsg, width, height).map(Some);
    }
    let Some(init) = &recipe.init_image else { return Ok(None) };
    let mut place = None;
    for source in std::iter::once(init).chain(&recipe.mask_image) {
        if place.is_none() {
            place = picture::place(&source.path, width, height)?;
        }
    }
    if place.is_none() {
        let source = init.path.display();
        progress
            .warn(&format!("{source} does not say where it lies, and neither will the picture"));
    }
    Ok(place)
}

/// What will be written: of several pictures the one with the longest name.
fn pictures(recipe: &Recipe, separately: bool, grid: bool) -> Vec<Which> {
    let Recipe { seed, num_images, .. } = *recipe;
    let one = match num_images {
        1 => Which::Only { seed },
        n => Which::OneOfSeveral { seed: seed + n as u64 - 1 },
    };
    match (separately, grid) {
        (true, false) => vec![one],
        (true, true) => vec![one, Which::Grid { seed }],
        (false, _) => vec![Which::Only { seed }],
    }
}

/// A warning as the command line has it.
fn in_our_words(warning: &Warning) -> String {
    match warning {
        Warning::PromptCut { .. } => format!("{warning} (--long-prompts chunk uses all of it)"),
        _ => warning.to_string(),
    }
}

/// The device that was asked for; says why where that was left to nadir.
pub(super) fn choose_device(request: &str, say: impl FnOnce(&str)) -> Result<Device> {
    let (device, why) = cuda::choose(request).map_err(|error| match error {
        Error::Cuda(reason) => Error::argument("device", request, reason),
        other => other,
    })?;
    if request == "auto" {
        say(&format!("device: {why}"));
    }
    Ok(device)
}

/// Reads the picture that is a prompt.
pub(super) fn read_image_prompt(
    recipe: &mut Recipe,
    progress: &Progress,
) -> Result<Option<ImagePrompt>> {
    let Some(source) = &mut recipe.ip_image else { return Ok(None) };
    let picture = io::image::open(&source.path)?;
    replace_checksum(&mut source.hash, checksum(&picture), source.path.display(), progress);
    let scale = recipe.ip_scale.unwrap_or(1.0);
    let prompt = ImagePrompt { picture: Arc::new(picture), scale };
    prompt.check()?;
    Ok(Some(prompt))
}

/// Reads what the recipe starts from, and fills in what follows from it.
fn read_init(
    recipe: &mut Recipe,
    destination: &Destination,
    progress: &Progress,
) -> Result<Option<InitImage>> {
    let replace = |source: &mut Source, found: String| {
        let what = source.path.display();
        replace_checksum(&mut source.hash, found, what, progress);
    };
    let mask = match &mut recipe.mask_image {
        None => None,
        Some(source) => {
            let mask = picture::mask(&source.path)?;
            replace(source, checksum(&mask));
            Some(mask)
        }
    };
    let mut raster = None;
    let mut init = None;
    if let Some(source) = &mut recipe.init_image {
        raster = picture::raster(&source.path)?;
        // What the raster itself says, where nobody says anything.
        if raster.is_some_and(|kind| kind != SampleKind::U8) {
            recipe.scale = picture::scale(&source.path, recipe.scale)?;
        }
        let (image, [width, height]) = if raster.is_some() {
            let image = picture::read(&source.path, recipe.scale)?;
            replace(source, checksum_of_numbers(&image));
            let size = [image.width(), image.height()];
            (InitPixels::Bands(image), size)
        } else {
            let image = io::image::open(&source.path)?;
            replace(source, checksum(&image));
            let size = [image.width() as usize, image.height() as usize];
            (image.into(), size)
        };
        // As in diffusers: the size is that of the picture to start from.
        let whole = |side: usize| (side / SIZE_STEP).max(1) * SIZE_STEP;
        let settings = &mut recipe.settings;
        settings.width.get_or_insert(whole(width));
        settings.height.get_or_insert(whole(height));
        init = Some(InitImage { image, mask });
    }
    settle_numbers(recipe, destination, raster)?;
    if let (true, Some(InitImage { image: InitPixels::Bands(image), .. })) =
        (destination.is_geotiff(), &init)
        && let Some(nodata) = image.nodata()
    {
        picture::check_nodata(recipe.samples.unwrap_or_default(), nodata.value)?;
    }
    Ok(init)
}

/// What numbers are written: those of the raster that a picture starts from, unless others were asked for.
fn settle_numbers(
    recipe: &mut Recipe,
    destination: &Destination,
    raster: Option<SampleKind>,
) -> Result<()> {
    if let (true, None, Some(kind)) = (destination.is_geotiff(), recipe.samples, raster) {
        recipe.samples = Some(Samples::like(kind));
    }
    let samples = recipe.samples.unwrap_or_default();
    match raster {
        Some(kind) if kind != SampleKind::U8 => samples.scale(recipe.scale),
        _ => samples.own_scale(recipe.scale),
    }
    .map(drop)
}

/// Reads what ControlNets follow, and fills in the size: as in diffusers that of the first.
pub(super) fn read_controls(recipe: &mut Recipe, progress: &Progress) -> Result<Vec<Control>> {
    let mut controls = Vec::new();
    for source in &mut recipe.control {
        let picture = source.preprocessor.open(&source.path)?;
        let found = checksum_of_levels(&picture);
        replace_checksum(&mut source.hash, found, source.path.display(), progress);
        let ControlSource { scale, start, end, .. } = *source;
        let control = Control { scale, start, end, ..Control::new(picture) };
        control.check()?;
        controls.push(control);
    }
    if let Some(first) = controls.first() {
        let whole = |side: usize| (side / SIZE_STEP).max(1) * SIZE_STEP;
        recipe.settings.width.get_or_insert(whole(first.picture.width));
        recipe.settings.height.get_or_insert(whole(first.picture.height));
    }
    Ok(controls)
}

/// Puts the checksum that was found in place of the known one, if any, and warns where they differ.
/// Whether they agree.
fn replace_checksum(
    known: &mut String,
    found: String,
    what: impl Display,
    progress: &Progress,
) -> bool {
    let same = known.is_empty() || *known == found;
    if !same {
        progress
            .warn(&format!("{what} has changed since the picture was made: expect another one"));
    }
    *known = found;
    same
}

/// Tells pictures apart: a checksum of the pixels.
pub fn checksum(image: &RgbImage) -> String {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&image.width().to_le_bytes());
    sum.update(image.as_raw());
    format!("{:08x}", sum.finalize())
}

/// Tells pictures of any bands apart, likewise.
fn checksum_of_numbers(picture: &Picture) -> String {
    let mut sum = crc32fast::Hasher::new();
    for side in [picture.height(), picture.width(), picture.bands()] {
        sum.update(&(side as u32).to_le_bytes());
    }
    picture.values().iter().for_each(|value| sum.update(&value.to_le_bytes()));
    if let Some(nodata) = picture.nodata() {
        sum.update(&nodata.value.to_le_bytes());
        nodata.missing.iter().for_each(|missing| sum.update(&[u8::from(*missing)]));
    }
    format!("{:08x}", sum.finalize())
}

/// Tells rasters apart, likewise.
pub fn checksum_of_levels(raster: &Raster) -> String {
    let mut sum = crc32fast::Hasher::new();
    for side in [raster.height, raster.width, raster.bands] {
        sum.update(&(side as u32).to_le_bytes());
    }
    match &raster.levels {
        Levels::U8(levels) => sum.update(levels),
        Levels::U16(levels) => levels.iter().for_each(|x| sum.update(&x.to_le_bytes())),
    }
    format!("{:08x}", sum.finalize())
}
