//! Carries out a recipe: loads the model, draws, and writes each picture as soon as it is ready.

use std::fmt::Display;
use std::path::Path;
use std::time::Instant;

use image::RgbImage;

use nadir::pipeline::{InitImage, LoadOptions, TextToImage, Watch};
use nadir::tensor::{Device, cuda};
use nadir::{Error, Result, io};

use super::args::Run;
use super::interrupt;
use super::model::Model;
use super::output::Output;
use super::progress::Progress;
use super::recipe::{Recipe, Source};

/// Sizes that every Stable Diffusion model can draw are multiples of this.
const SIZE_STEP: usize = 8;

/// One command's work.
pub struct Job {
    pub recipe: Recipe,
    pub model: Model,
    pub output: Output,
    pub run: Run,
    /// Write a file for each picture.
    pub each: bool,
    /// Write all pictures as one.
    pub grid: bool,
}

/// Draws the pictures of `job`: all of them or, after Ctrl-C, those that were finished.
///
/// # Errors
/// What is wrong with the recipe, the model or the place for the pictures; `Interrupted` after Ctrl-C.
pub fn draw(job: Job) -> anyhow::Result<()> {
    let Job { mut recipe, model, output, run, each, grid } = job;
    // What needs no model is judged before one is loaded.
    recipe.request(None, run.batch)?;
    set_threads(run.threads)?;
    interrupt::listen()?;
    let progress = Progress::new(run.quiet);
    let sampler = model.sampler_name(recipe.scheduler.as_deref())?;
    let init = read_init(&mut recipe, &progress)?;
    let device = choose_device(&run.device, &progress)?;
    recipe.device = device.to_string();
    progress.busy(&format!("loading {}", model.name));
    let hash = model.fingerprint(recipe.variant.as_deref())?;
    renew(&mut recipe.model_hash, hash, format!("the model {}", model.name), &progress);

    let clock = Instant::now();
    let options = LoadOptions { dtype: recipe.dtype, device, variant: recipe.variant.clone() };
    let pipeline = TextToImage::load(&model.folder, &options)?;
    pipeline.notes().iter().for_each(|note| progress.warn(note));
    let request = recipe.request(init, run.batch)?;
    progress.say(&format!(
        "{} in {}, loaded in {:.1} s; {sampler}, {} steps, guidance {}, seed {}",
        model.name,
        recipe.dtype,
        clock.elapsed().as_secs_f64(),
        recipe.num_inference_steps,
        recipe.guidance_scale,
        recipe.seed
    ));

    let batches = recipe.num_images.div_ceil(run.batch);
    let mut session = Session { recipe, sampler, output, progress, batches, each, written: 0 };
    let drawn = pipeline.generate(&request, &mut session);
    session.progress.finish();
    match drawn {
        Ok(images) if grid => Ok(session.write_grid(&images)?),
        Ok(_) => Ok(()),
        Err(Error::Interrupted) => {
            let kept =
                format!("kept {} of {} pictures", session.written, session.recipe.num_images);
            Err(anyhow::Error::from(Error::Interrupted).context(kept))
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes pictures while the pipeline makes them.
struct Session {
    recipe: Recipe,
    sampler: String,
    output: Output,
    progress: Progress,
    /// How often the pipeline will start.
    batches: usize,
    each: bool,
    written: usize,
}

impl Session {
    fn write(&self, path: &Path, image: &RgbImage, seed: u64, num_images: usize) -> Result<()> {
        Recipe { seed, num_images, ..self.recipe.clone() }.write(path, image, &self.sampler)?;
        self.progress.print(path.display());
        Ok(())
    }

    fn write_grid(&self, images: &[RgbImage]) -> Result<()> {
        let Recipe { seed, num_images, .. } = self.recipe;
        let path = if self.each { self.output.grid(seed) } else { self.output.image(seed, false) };
        self.write(&path, &io::image::grid(images)?, seed, num_images)
    }
}

impl Watch for Session {
    fn started(&mut self, steps: usize) {
        self.progress.start(steps * self.batches);
    }

    fn step(&mut self, _: usize) {
        self.progress.step();
    }

    fn image(&mut self, index: usize, image: &RgbImage) -> Result<()> {
        let (width, height) = image.dimensions();
        (self.recipe.width, self.recipe.height) = (Some(width as usize), Some(height as usize));
        if self.each {
            let seed = self.recipe.seed + index as u64;
            let path = self.output.image(seed, self.recipe.num_images > 1);
            self.write(&path, image, seed, 1)?;
            self.written += 1;
        }
        Ok(())
    }

    fn cancelled(&self) -> bool {
        interrupt::requested()
    }

    fn warn(&mut self, message: &str) {
        self.progress.warn(message);
    }
}

/// The device that was asked for; says why where that was left to nadir.
fn choose_device(request: &str, progress: &Progress) -> Result<Device> {
    let (device, why) = cuda::choose(request).map_err(|error| match error {
        Error::Cuda(reason) => Error::argument("--device", request, reason),
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
        Some(0) => Err(Error::argument("--threads", 0, "at least 1").into()),
        Some(n) => Ok(rayon::ThreadPoolBuilder::new().num_threads(n).build_global()?),
    }
}

/// Reads what the recipe starts from, and fills in what follows from it.
fn read_init(recipe: &mut Recipe, progress: &Progress) -> Result<Option<InitImage>> {
    let read = |source: &mut Source| {
        let image = io::image::open(&source.path)?;
        renew(&mut source.hash, checksum(&image), source.path.display(), progress);
        Ok::<_, Error>(image)
    };
    let mask = recipe.mask_image.as_mut().map(read).transpose()?;
    let Some(source) = &mut recipe.init_image else {
        return match (mask, recipe.strength) {
            (None, None) => Ok(None),
            _ => {
                Err(Error::argument("--init-image", "none", "a picture, with a mask or a strength"))
            }
        };
    };
    let image = read(source)?;
    // As in diffusers: the size is that of the picture to start from.
    let whole = |side: u32| (side as usize / SIZE_STEP).max(1) * SIZE_STEP;
    recipe.width.get_or_insert(whole(image.width()));
    recipe.height.get_or_insert(whole(image.height()));
    // Its defaults for image to image and for inpainting.
    let strength = *recipe.strength.get_or_insert(if mask.is_some() { 1.0 } else { 0.8 });
    Ok(Some(InitImage { image, strength, mask }))
}

/// Puts the checksum that was found in place of the known one, if any, and warns where they differ.
fn renew(known: &mut String, found: String, what: impl Display, progress: &Progress) {
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
