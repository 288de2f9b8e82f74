//! Carries out a recipe: loads the model, draws, and writes each picture as soon as it is ready.

use std::fmt::Display;
use std::time::Instant;

use image::RgbImage;

use nadir::cpu::memory;
use nadir::pipeline::{
    Event, InitImage, LoadOptions, MemoryEstimate, SIZE_STEP, Settings, SlotId, TextToImage,
    Warning,
};
use nadir::tensor::{Device, cuda};
use nadir::{Error, Result, io};

use super::args::Execution;
use super::destination::{Destination, Which};
use super::interrupt;
use super::model::Model;
use super::progress::Progress;
use super::recipe::{Recipe, Source};

/// More than any machine has cores; each takes memory of its own.
const MAX_THREADS: usize = 1024;

/// One command's work.
pub struct Drawing {
    pub recipe: Recipe,
    pub model: Model,
    pub destination: Destination,
    pub execution: Execution,
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
    let Drawing { mut recipe, model, destination, execution, separately, grid, metadata } = drawing;
    // What needs no model is judged before one is loaded.
    recipe.check()?;
    let batch = check_batch(execution.batch, recipe.num_images)?;
    destination.check(&pictures(&recipe, separately, grid))?;
    set_threads(execution.threads)?;
    let progress = Progress::new(execution.quiet);
    let sampler = model.sampler_name(recipe.settings.scheduler.as_deref())?;
    let init = read_init(&mut recipe, &progress)?;
    let device = choose_device(&execution.device, &progress)?;
    recipe.device = device.to_string();
    let options = LoadOptions {
        dtype: recipe.dtype,
        device,
        variant: recipe.variant.clone(),
        ..LoadOptions::default()
    };
    let estimate = MemoryEstimate::open(&model.folder, &options)?;
    let kept = if grid { check_grid(&recipe, &estimate)? } else { 0 };
    check_memory(&recipe.settings, &estimate, batch, kept, device)?;
    progress.busy(&format!("loading {}", model.name));
    let clock = Instant::now();
    let pipeline = TextToImage::load(&model.folder, &options)?;
    pipeline.notes().iter().for_each(|note| progress.warn(note));
    let (hash, what) = (pipeline.fingerprint().to_owned(), format!("the model {}", model.name));
    replace_checksum(&mut recipe.model_hash, hash, what, &progress);
    recipe.settings = pipeline.resolve(&recipe.settings)?;
    progress.say(&format!(
        "{} in {}, loaded in {:.1} s; {sampler}, {} steps, guidance {}, seed {}",
        model.name,
        recipe.dtype,
        clock.elapsed().as_secs_f64(),
        recipe.settings.steps.unwrap_or_default(),
        recipe.settings.guidance_scale.unwrap_or_default(),
        recipe.seed
    ));

    let requests = recipe.requests(init, interrupt::switch());
    let mut session = Session {
        recipe: &recipe,
        sampler,
        destination,
        progress,
        batch,
        separately,
        grid,
        metadata,
        pictures: Vec::new(),
        written: 0,
        failed: None,
    };
    let drawn = pipeline.generate(requests, batch, &mut |event| session.see(event));
    session.progress.finish();
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
                if self.grid {
                    self.pictures.push(picture);
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
        self.write(which, &io::image::grid(&self.pictures)?, seed, num_images)
    }

    fn write(&self, which: Which, image: &RgbImage, seed: u64, num_images: usize) -> Result<()> {
        let recipe = Recipe { seed, num_images, ..self.recipe.clone() };
        let texts =
            if self.metadata { Vec::from(recipe.texts(&self.sampler)?) } else { Vec::new() };
        let texts: Vec<_> = texts.iter().map(|(keyword, text)| (*keyword, text.as_str())).collect();
        let path = self.destination.save(which, |out| io::png::encode(out, image, &texts))?;
        if let Some(path) = path {
            self.progress.print(path.display());
        }
        Ok(())
    }
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

/// Pictures at a time: no more than there are.
fn check_batch(batch: usize, num_images: usize) -> Result<usize> {
    match batch {
        0 => Err(Error::argument("batch", 0, "at least 1")),
        batch => Ok(batch.min(num_images)),
    }
}

/// Bytes of the grid and of the pictures that wait for it, where there can be such a grid.
fn check_grid(recipe: &Recipe, estimate: &MemoryEstimate) -> Result<u64> {
    let (width, height) = estimate.size(&recipe.settings)?;
    let (width, height) = io::image::grid_size(recipe.num_images, width as u32, height as u32)?;
    Ok(2 * 3 * u64::from(width) * u64::from(height))
}

/// Refuses what the machine has no memory for, before anything is loaded.
fn check_memory(
    settings: &Settings,
    estimate: &MemoryEstimate,
    batch: usize,
    kept: u64,
    device: Device,
) -> Result<()> {
    // What is free on a GPU its driver knows when it is asked.
    let Some(space) = memory::tightest().filter(|_| device == Device::Cpu) else { return Ok(()) };
    let peak = |batch| Ok::<_, Error>(estimate.peak(settings, batch)?.saturating_add(kept));
    let fits = |batch| Ok::<_, Error>(peak(batch)? <= space.free);
    if fits(batch)? {
        return Ok(());
    }
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
    let needed = gib(peak(batch)?);
    let need =
        format!("about {needed} of memory would be needed, and {} are free", gib(space.free));
    if batch > 1 && fits(1)? {
        let (mut fitting, mut beyond) = (1, batch);
        while beyond - fitting > 1 {
            let middle = fitting + (beyond - fitting) / 2;
            if fits(middle)? { fitting = middle } else { beyond = middle }
        }
        return Err(Error::argument(
            "batch",
            batch,
            format!("{need}; {fitting} at a time would fit"),
        ));
    }
    let (width, height) = estimate.size(settings)?;
    let lower = if settings.vae_tiling { "" } else { ", decode with --vae-tiling" };
    let expected = format!("{need}; lower --width and --height{lower} or take --dtype bf16");
    Err(Error::argument("width", format!("{width}x{height}"), expected))
}

/// The device that was asked for; says why where that was left to nadir.
fn choose_device(request: &str, progress: &Progress) -> Result<Device> {
    let (device, why) = cuda::choose(request).map_err(|error| match error {
        Error::Cuda(reason) => Error::argument("device", request, reason),
        other => other,
    })?;
    if request == "auto" {
        progress.say(&format!("device: {why}"));
    }
    Ok(device)
}

fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    match threads {
        None => Ok(()),
        Some(n) if !(1..=MAX_THREADS).contains(&n) => {
            Err(Error::argument("threads", n, format!("a number from 1 to {MAX_THREADS}")).into())
        }
        Some(n) => Ok(rayon::ThreadPoolBuilder::new().num_threads(n).build_global()?),
    }
}

/// Reads what the recipe starts from, and fills in what follows from it.
fn read_init(recipe: &mut Recipe, progress: &Progress) -> Result<Option<InitImage>> {
    let read = |source: &mut Source| {
        let image = io::image::open(&source.path)?;
        let what = source.path.display();
        replace_checksum(&mut source.hash, checksum(&image), what, progress);
        Ok::<_, Error>(image)
    };
    let mask = recipe.mask_image.as_mut().map(read).transpose()?;
    let Some(source) = &mut recipe.init_image else { return Ok(None) };
    let image = read(source)?;
    // As in diffusers: the size is that of the picture to start from.
    let whole = |side: u32| (side as usize / SIZE_STEP).max(1) * SIZE_STEP;
    let settings = &mut recipe.settings;
    settings.width.get_or_insert(whole(image.width()));
    settings.height.get_or_insert(whole(image.height()));
    // Its defaults for image to image and for inpainting.
    settings.strength.get_or_insert(if mask.is_some() { 1.0 } else { 0.8 });
    Ok(Some(InitImage { image, mask }))
}

/// Puts the checksum that was found in place of the known one, if any, and warns where they differ.
fn replace_checksum(known: &mut String, found: String, what: impl Display, progress: &Progress) {
    if !known.is_empty() && *known != found {
        progress
            .warn(&format!("{what} has changed since the picture was made: expect another one"));
    }
    *known = found;
}

fn checksum(image: &RgbImage) -> String {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&image.width().to_le_bytes());
    sum.update(image.as_raw());
    format!("{:08x}", sum.finalize())
}
