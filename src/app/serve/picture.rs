//! From what is asked of pictures to work for the device, and back to a PNG that says how it was made.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ImageReader, RgbImage};
use nadir::io::{image as pictures, png};
use nadir::pipeline::{Cancel, Control, InitImage, Preprocessor, Request, SIZE_STEP, Settings};
use nadir::{Error, Result};

use super::App;
use super::engine::Work;
use super::fault::Fault;
use super::jobs::blocking;
use crate::app::recipe::{ControlSource, Recipe, Source};

/// Pictures of one kind with consecutive seeds.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub settings: Settings,
    pub seed: Option<u64>,
    pub num_images: usize,
    /// A picture to start from, as it was uploaded.
    pub init: Option<Vec<u8>>,
    /// Where to paint.
    pub mask: Option<Mask>,
    /// A picture to follow for each ControlNet.
    pub controls: Vec<Followed>,
    /// Whether ControlNets leave the unconditional half alone.
    pub guess_mode: bool,
    /// Whether pictures on the way are wanted.
    pub preview: bool,
}

/// A picture for a ControlNet, as it was uploaded, and how it counts.
#[derive(Clone, Debug)]
pub struct Followed {
    pub picture: Vec<u8>,
    pub preprocessor: Preprocessor,
    pub scale: f32,
    pub start: f64,
    pub end: f64,
}

/// Where to paint, as it was uploaded.
#[derive(Clone, Debug)]
pub enum Mask {
    /// White.
    White(Vec<u8>),
    /// Where it is transparent.
    Transparent(Vec<u8>),
}

/// Work that can be done, and what is told of it.
pub struct Ready {
    pub works: Vec<Work>,
    pub seeds: Vec<u64>,
    pub cancel: Cancel,
    pub signature: Signature,
}

/// How pictures are made, which each of them carries.
#[derive(Clone)]
pub struct Signature {
    recipe: Recipe,
    sampler: String,
}

impl Signature {
    /// The settings, what was left to the model filled in.
    pub fn settings(&self) -> &Settings {
        &self.recipe.settings
    }

    /// The sampler, as other programs know it.
    pub fn sampler(&self) -> &str {
        &self.sampler
    }

    /// The texts of picture `index`.
    pub fn texts(&self, index: u64) -> Result<[(&'static str, String); 2]> {
        let recipe = Recipe { seed: self.recipe.seed + index, ..self.recipe.clone() };
        recipe.texts(&self.sampler)
    }

    /// Picture `index` as PNG.
    ///
    /// # Errors
    /// The picture is empty.
    pub fn png(&self, picture: &RgbImage, index: u64) -> Result<Vec<u8>> {
        let texts = self.texts(index)?;
        let texts = texts.each_ref().map(|(keyword, text)| (*keyword, text.as_str()));
        let mut bytes = Vec::new();
        png::encode(&mut bytes, picture, &texts).map_err(|e| Error::io("picture", e))?;
        Ok(bytes)
    }
}

impl App {
    /// Holds what is asked for against what can be, and makes it ready.
    ///
    /// # Errors
    /// 400 with the field, in the words of [`Settings`]; 503 while the model is loaded.
    pub async fn pictures(self: &Arc<Self>, asked: Asked) -> Result<Ready, Fault> {
        // Uploads are decoded a few at a time: each takes memory.
        let _turn = match asked.init.is_some() || !asked.controls.is_empty() {
            true => self.decoders.acquire().await.ok(),
            false => None,
        };
        let app = self.clone();
        blocking(move || app.ready(asked)).await?
    }

    fn ready(&self, asked: Asked) -> Result<Ready, Fault> {
        let models = self.models()?;
        let Asked { mut settings, seed, num_images, init, mask, controls, guess_mode, preview } =
            asked;
        let limits = &self.limits;
        if !(1..=limits.images).contains(&num_images) {
            let expected = format!("1 to {} at once", limits.images);
            return Err(Error::argument("num_images", num_images, expected).into());
        }
        // Small enough to be kept exactly by clients that hold numbers as JavaScript does.
        let seed = seed.unwrap_or_else(|| super::random() & u64::from(u32::MAX));
        settings.check()?;
        // 1. pictures to start from
        let mut recipe = Recipe::new(self.about.model.name.clone(), Settings::default(), seed);
        let init = match (init, mask) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(Fault::field("init_image", "a mask needs a picture to start from"));
            }
            (Some(init), mask) => {
                let image = self.decoded("init_image", &init)?;
                let mask = mask.map(|mask| self.mask(&mask)).transpose()?;
                let whole = |side: u32| (side as usize / SIZE_STEP).max(1) * SIZE_STEP;
                settings.width.get_or_insert(whole(image.width()));
                settings.height.get_or_insert(whole(image.height()));
                let source = |image: &RgbImage| Source {
                    path: PathBuf::from("upload"),
                    hash: crate::app::draw::checksum(image),
                };
                recipe.init_image = Some(source(&image));
                recipe.mask_image = mask.as_ref().map(source);
                Some(Arc::new(InitImage { image: image.into(), mask }))
            }
        };
        let mut followed = Vec::new();
        for Followed { picture, preprocessor, scale, start, end } in controls {
            let picture = preprocessor.of(self.decoded("control_images", &picture)?)?;
            settings.width.get_or_insert((picture.width / SIZE_STEP).max(1) * SIZE_STEP);
            settings.height.get_or_insert((picture.height / SIZE_STEP).max(1) * SIZE_STEP);
            let hash = crate::app::draw::checksum_of_levels(&picture);
            let path = PathBuf::from("upload");
            recipe.control.push(ControlSource { path, preprocessor, scale, start, end, hash });
            followed.push(Control { scale, start, end, ..Control::new(picture) });
        }
        recipe.guess_mode = guess_mode;
        // 2. the settings, and how long they take
        let settings = models.image.resolve(&settings, init.as_deref())?;
        let size = models.image.size(&settings)?;
        if size.0 * size.1 > limits.pixels {
            let expected = format!("at most {} pixels", limits.pixels);
            return Err(Error::argument("width", format!("{}x{}", size.0, size.1), expected).into());
        }
        recipe.model_hash = models.image.fingerprint().to_owned();
        recipe.variant = self.about.variant.clone();
        recipe.tokenizer = self.about.original.tokenizer.clone();
        recipe.prediction = self.about.original.prediction;
        recipe.lora = self.about.lora.clone();
        recipe.controlnet = self.about.controlnet.clone();
        recipe.embedding = self.about.embedding.clone();
        recipe.vae = self.about.vae.clone();
        recipe.dtype = self.about.dtype;
        recipe.device = self.about.device.to_string();
        recipe.settings = settings;
        recipe.num_images = num_images;
        if recipe.seed.checked_add(num_images as u64 - 1).is_none() {
            return Err(Error::argument("seed", seed, "less than 2^64 for the last picture").into());
        }
        let cancel = Cancel::default();
        let requests: Vec<Request> = (0..num_images as u64)
            .map(|i| Request {
                settings: recipe.settings.clone(),
                seed: seed + i,
                init: init.clone(),
                controls: followed.clone(),
                guess_mode,
                cancel: cancel.clone(),
                ..Request::default()
            })
            .collect();
        let sampler = models.image.sampler(&requests[0])?;
        let start = match &init {
            Some(_) => sampler.start_index(models.image.strength(&requests[0]))?,
            None => 0,
        };
        let evaluations = sampler.timesteps().len() - start;
        recipe.num_images = 1;
        let sampler = self.about.model.sampler_name(recipe.settings.scheduler.as_deref())?;
        let works = requests.into_iter().map(|request| Work::Picture {
            request: Box::new(request),
            size,
            evaluations,
            preview,
        });
        Ok(Ready {
            works: works.collect(),
            seeds: (0..num_images as u64).map(|i| seed + i).collect(),
            cancel,
            signature: Signature { recipe, sampler },
        })
    }

    /// An uploaded picture.
    ///
    /// # Errors
    /// 400 with the field: it is none, or too large; how large is known before it is decoded.
    pub fn decoded(&self, field: &'static str, bytes: &[u8]) -> Result<RgbImage, Fault> {
        self.check_pixels(field, bytes)?;
        pictures::decode(bytes, Path::new(field))
            .map_err(|error| Fault::field(field, Fault::from(error).told.message))
    }

    fn check_pixels(&self, field: &'static str, bytes: &[u8]) -> Result<(), Fault> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
        let size = reader.ok().and_then(|reader| reader.into_dimensions().ok());
        let Some((width, height)) = size else {
            return Err(Fault::field(field, "expected a PNG, JPEG, WebP, BMP or TIFF picture"));
        };
        // An upload may be larger than what is drawn from it.
        let most = self.limits.pixels.max(4096 * 4096) as u64;
        if u64::from(width) * u64::from(height) > most {
            return Err(Fault::field(field, format!("{width}x{height} pixels: at most {most}")));
        }
        Ok(())
    }

    fn mask(&self, mask: &Mask) -> Result<RgbImage, Fault> {
        const FIELD: &str = "mask_image";
        match mask {
            Mask::White(bytes) => self.decoded(FIELD, bytes),
            Mask::Transparent(bytes) => {
                self.check_pixels(FIELD, bytes)?;
                let picture = image::load_from_memory(bytes)
                    .map_err(|error| Fault::field(FIELD, error.to_string()))?;
                if !picture.color().has_alpha() {
                    let text = "a PNG with an alpha channel: what is transparent is painted anew";
                    return Err(Fault::field(FIELD, text));
                }
                let picture = picture.into_rgba8();
                let (width, height) = picture.dimensions();
                Ok(RgbImage::from_fn(width, height, |x, y| {
                    image::Rgb([if picture.get_pixel(x, y)[3] == 0 { 255 } else { 0 }; 3])
                }))
            }
        }
    }
}
