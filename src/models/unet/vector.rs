//! What a UNet is told of a picture beside its prompt: numbers that become a vector, which is added to the embedding of
//! the timestep.
//!
//! Reference implementations: diffusers, `models/unets/unet_2d_condition.py` (`class_embed_type`); DiffusionSat (Khanna et
//! al. 2024), `diffusionsat/sat_unet.py` (`metadata_embedding`).

use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::nn::{Embedding, Linear, Module, Parameter, Params, module};
use crate::ops::elementwise::add;
use crate::ops::embedding::timestep_embedding;
use crate::ops::matmul::{Activation, Epilogue};
use crate::tensor::{DType, Device, Tensor};

/// Sinusoids of a number: `Timesteps` of diffusers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sinusoids {
    /// How many.
    pub width: usize,
    /// Cosines first.
    pub flip_sin_to_cos: bool,
    /// Shift of the frequencies.
    pub freq_shift: f32,
}

impl Sinusoids {
    /// `numbers` `[N]` -> [N, width], f32
    pub(super) fn of(&self, numbers: &[f32]) -> Result<Tensor> {
        let period = 10_000.0;
        timestep_embedding(numbers, self.width, self.flip_sin_to_cos, self.freq_shift, period)
    }
}

/// Sinusoids of the scale of guidance, [1, `width`] f32: `get_guidance_scale_embedding` of diffusers' LCM pipelines. Each
/// operation is rounded to f32 as there: the angles reach thousands, and their rounding shows in the sinusoids.
fn guidance_embedding(scale: f32, width: usize) -> Result<Tensor> {
    /// diffusers' scale of 1 is the paper's 0.
    const NONE: f64 = 1.0;
    // A user's 7.3 is that to 64 bits there.
    let scale = scale.to_string().parse().unwrap_or(f64::from(scale));
    let angle = (scale - NONE) as f32 * 1000.0;
    let half = width / 2;
    let fall = 10_000f64.ln() as f32 / (half as f32 - 1.0);
    let angles = (0..half).map(|i| f64::from(angle * f64::from(i as f32 * -fall).exp() as f32));
    let angles: Vec<f64> = angles.collect();
    let (sines, cosines) = (angles.iter().map(|x| x.sin()), angles.iter().map(|x| x.cos()));
    let mut row: Vec<f32> = sines.chain(cosines).map(|x| x as f32).collect();
    row.resize(width, 0.0);
    Tensor::from_vec(row, [1, width])
}

/// How labels of a picture are embedded: `class_embed_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassEmbedding {
    /// A row of a table of so many: null, with `num_class_embeds`.
    Table(usize),
    /// A number, as a timestep is.
    Timestep,
    /// So many numbers, added as they are.
    Identity(usize),
    /// So many numbers, through two layers.
    Projection(usize),
    /// So many numbers, through one layer.
    SimpleProjection(usize),
}

impl ClassEmbedding {
    /// Numbers of a picture's label.
    pub fn inputs(self) -> usize {
        match self {
            Self::Table(_) | Self::Timestep => 1,
            Self::Identity(inputs) | Self::Projection(inputs) | Self::SimpleProjection(inputs) => {
                inputs
            }
        }
    }
}

/// How sizes of a picture and what is known of its prompt as a whole are embedded: `addition_embed_type: text_time`, SDXL's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTime {
    /// Sinusoids of each size: `addition_time_embed_dim`.
    pub sinusoids: usize,
    /// Numbers of the prompt, and the sinusoids of all sizes: `projection_class_embeddings_input_dim`.
    pub inputs: usize,
}

/// What a model is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorConfig {
    /// Labels, if it takes any.
    pub class: Option<ClassEmbedding>,
    /// Numbers of DiffusionSat's kind, each embedded by layers of its own.
    pub metadata: usize,
    /// Sizes and a prompt as a whole, if it takes any.
    pub text_time: Option<TextTime>,
    /// Sinusoids that tell the scale of guidance, of a model that was distilled with it (LCM); 0 of any other.
    pub guidance: usize,
}

impl VectorConfig {
    /// Reads the fields of a model whose embedding of timesteps has `width` channels.
    ///
    /// # Errors
    /// A kind that nadir does not know.
    pub(super) fn read(c: &Config, width: usize) -> Result<Self> {
        c.neutral("class_embeddings_concat", &[false.into()])?;
        let rows = c.get("num_class_embeds", "a number of classes")?;
        let inputs = c.get("projection_class_embeddings_input_dim", "a number of inputs")?;
        let required = |inputs: Option<usize>| {
            inputs.filter(|&inputs| inputs > 0).ok_or_else(|| {
                let expected = "the number of inputs that are projected";
                c.wrong("projection_class_embeddings_input_dim", expected)
            })
        };
        let kind: Option<String> = c.get("class_embed_type", "a string")?;
        let class = match (kind.as_deref(), rows) {
            (None, Some(0)) => return Err(c.wrong("num_class_embeds", "at least one class")),
            (None, rows) => rows.map(ClassEmbedding::Table),
            (Some("timestep"), _) => Some(ClassEmbedding::Timestep),
            (Some("identity"), _) => Some(ClassEmbedding::Identity(width)),
            (Some("projection"), _) => Some(ClassEmbedding::Projection(required(inputs)?)),
            (Some("simple_projection"), _) => {
                Some(ClassEmbedding::SimpleProjection(required(inputs)?))
            }
            (Some(_), _) => {
                let known = "null, timestep, identity, projection or simple_projection";
                return Err(c.wrong("class_embed_type", known));
            }
        };
        // DiffusionSat's class says nothing where it has its defaults.
        let is_sat = c.value("_class_name").is_some_and(|class| class == "SatUNet");
        let count = c.usize("num_metadata", 7)?;
        let metadata = if c.bool("use_metadata", is_sat)? { count } else { 0 };
        if metadata != 0 && metadata != 7 {
            return Err(c.wrong("num_metadata", "the 7 that DiffusionSat has: longitude to day"));
        }
        let guidance: Option<usize> = c.get("time_cond_proj_dim", "a number of sinusoids")?;
        if guidance.is_some_and(|guidance| guidance < 4) {
            return Err(c.wrong("time_cond_proj_dim", "4 sinusoids or more"));
        }
        let kind: Option<String> = c.get("addition_embed_type", "a string")?;
        let sinusoids = c.get("addition_time_embed_dim", "a number of sinusoids")?;
        let text_time = match kind.as_deref() {
            None => None,
            Some("text_time") => match sinusoids.filter(|&sinusoids| sinusoids > 1) {
                Some(sinusoids) => Some(TextTime { sinusoids, inputs: required(inputs)? }),
                None => return Err(c.wrong("addition_time_embed_dim", "2 sinusoids or more")),
            },
            Some(_) => return Err(c.wrong("addition_embed_type", "null or text_time")),
        };
        Ok(Self { class, metadata, text_time, guidance: guidance.unwrap_or(0) })
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a model is told of one picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vector {
    /// Its labels, [`ClassEmbedding::inputs`] of them.
    pub class: Vec<f32>,
    /// DiffusionSat's, [`VectorConfig::metadata`] of them.
    pub metadata: Vec<f32>,
    /// Sizes in pixels: `time_ids`.
    pub sizes: Vec<f32>,
    /// What a text encoder makes of the prompt as a whole: `text_embeds`.
    pub pooled: Vec<f32>,
    /// The scale of guidance, where it is told.
    pub guidance: Option<f32>,
}

/// Two layers with SiLU between them.
pub(super) struct TimestepEmbedding {
    /// Of what is added to the input, so many sinusoids.
    condition: Option<Linear>,
    guidance: usize,
    first: Linear,
    second: Linear,
}

module!(TimestepEmbedding { "cond_proj": condition, "linear_1": first, "linear_2": second });

impl TimestepEmbedding {
    pub(super) fn load(p: &Params, inputs: usize, outputs: usize) -> Result<Self> {
        let first = Linear::load(&p.pp("linear_1"), inputs, outputs, true)?;
        let second = Linear::load(&p.pp("linear_2"), outputs, outputs, true)?;
        Ok(Self { condition: None, guidance: 0, first, second })
    }

    /// That of timesteps, which may be told the scale of guidance by so many sinusoids.
    pub(super) fn load_guided(
        p: &Params,
        inputs: usize,
        outputs: usize,
        guidance: usize,
    ) -> Result<Self> {
        let condition = || Linear::load(&p.pp("cond_proj"), guidance, inputs, false);
        let condition = (guidance > 0).then(condition).transpose()?;
        Ok(Self { condition, guidance, ..Self::load(p, inputs, outputs)? })
    }

    /// `x` [N, inputs] -> [N, outputs]
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let silu = Epilogue { act: Activation::Silu, ..Epilogue::default() };
        self.second.forward(&self.first.forward_with(x, silu)?)
    }

    /// `x` [N, inputs], of a scale of guidance where the layers are told one.
    pub(super) fn forward_guided(&self, x: &Tensor, scale: Option<f32>) -> Result<Tensor> {
        let Some(layer) = &self.condition else {
            return match scale {
                None => self.forward(x),
                Some(scale) => Err(Error::value("unet", format!("guidance: none, not {scale}"))),
            };
        };
        let Some(scale) = scale.filter(|scale| scale.is_finite()) else {
            let found = scale.map_or("none".to_owned(), |scale| scale.to_string());
            return Err(Error::value("unet", format!("guidance: a finite scale, not {found}")));
        };
        let scale = guidance_embedding(scale, self.guidance)?;
        let told = layer.forward(&scale.to_dtype(x.dtype())?.to_device(x.device())?)?; // [1, inputs]
        self.forward(&add(x, &told.reshape([told.dim(1)])?)?)
    }
}

/// The layers that make a vector of what a model is told.
pub(super) struct VectorEmbedding {
    config: VectorConfig,
    class: ClassLayers,
    metadata: Vec<TimestepEmbedding>,
    text_time: Option<TimestepEmbedding>,
    sinusoids: Sinusoids,
    dtype: DType,
    device: Device,
}

module!(VectorEmbedding {
    "class_embedding": class,
    "metadata_embedding": metadata,
    "add_embedding": text_time,
});

#[allow(clippy::large_enum_variant, reason = "a model has one")]
enum ClassLayers {
    None,
    Table(Embedding),
    Two(TimestepEmbedding),
    One(Linear),
}

impl Module for ClassLayers {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        match self {
            Self::None => {}
            Self::Table(layer) => layer.visit(prefix, visit),
            Self::Two(layers) => layers.visit(prefix, visit),
            Self::One(layer) => layer.visit(prefix, visit),
        }
    }
}

impl VectorEmbedding {
    /// `outputs` channels, those of the embedding of timesteps.
    pub(super) fn load(
        config: VectorConfig,
        p: &Params,
        sinusoids: Sinusoids,
        outputs: usize,
    ) -> Result<Self> {
        use ClassEmbedding as Kind;
        let at = p.pp("class_embedding");
        let two = |inputs| {
            let layers = TimestepEmbedding::load(&at, inputs, outputs)?;
            Ok::<_, Error>(ClassLayers::Two(layers))
        };
        let class = match config.class {
            None | Some(Kind::Identity(_)) => ClassLayers::None,
            Some(Kind::Table(rows)) => ClassLayers::Table(Embedding::load(&at, rows, outputs)?),
            Some(Kind::Timestep) => two(sinusoids.width)?,
            Some(Kind::Projection(inputs)) => two(inputs)?,
            Some(Kind::SimpleProjection(inputs)) => {
                ClassLayers::One(Linear::load(&at, inputs, outputs, true)?)
            }
        };
        let metadata = (0..config.metadata).map(|i| {
            TimestepEmbedding::load(&p.pp("metadata_embedding").pp(i), sinusoids.width, outputs)
        });
        let metadata = metadata.collect::<Result<_>>()?;
        let text_time = config.text_time.map(|TextTime { inputs, .. }| {
            TimestepEmbedding::load(&p.pp("add_embedding"), inputs, outputs)
        });
        let text_time = text_time.transpose()?;
        Ok(Self {
            config,
            class,
            metadata,
            text_time,
            sinusoids,
            dtype: p.dtype(),
            device: p.device(),
        })
    }

    /// What is added to the embedding of every timestep, `[outputs]`. `None` where the model is told nothing.
    pub(super) fn of(&self, vector: &Vector) -> Result<Option<Tensor>> {
        let inputs = self.config.class.map_or(0, ClassEmbedding::inputs);
        let sinusoids = self.config.text_time.map_or(1, |text_time| text_time.sinusoids);
        let of_text_time = vector.pooled.len() + vector.sizes.len() * sinusoids;
        for (what, numbers, found, expected) in [
            ("class labels", &vector.class, vector.class.len(), inputs),
            ("metadata", &vector.metadata, vector.metadata.len(), self.config.metadata),
            (
                "sizes and the prompt as a whole",
                &[&vector.sizes[..], &vector.pooled].concat(),
                of_text_time,
                self.config.text_time.map_or(0, |text_time| text_time.inputs),
            ),
        ] {
            if found != expected {
                return Err(Error::value(
                    "unet",
                    format!("{what}: {expected} numbers, not {found}"),
                ));
            }
            if let Some(x) = numbers.iter().find(|x| !x.is_finite()) {
                return Err(Error::value("unet", format!("{what}: finite numbers, not {x}")));
            }
        }
        let sent = |x: Tensor| x.to_dtype(self.dtype)?.to_device(self.device);
        let row = || sent(Tensor::from_slice(&vector.class, [1, inputs])?);
        let sinusoids = |x: f32| sent(self.sinusoids.of(&[x])?); // [1, width]
        let mut parts = Vec::new(); // of [1, outputs]
        match (&self.class, self.config.class) {
            (ClassLayers::Table(table), Some(ClassEmbedding::Table(rows))) => {
                let label = vector.class[0];
                if label.fract() != 0.0 || !(0.0..rows as f32).contains(&label) {
                    let message =
                        format!("a class is a number from 0 to {}, not {label}", rows - 1);
                    return Err(Error::value("unet", message));
                }
                parts.push(table.forward(&Tensor::from_slice(&[label as i64], [1])?)?);
            }
            (ClassLayers::Two(layers), Some(ClassEmbedding::Timestep)) => {
                parts.push(layers.forward(&sinusoids(vector.class[0])?)?);
            }
            (ClassLayers::Two(layers), _) => parts.push(layers.forward(&row()?)?),
            (ClassLayers::One(layer), _) => parts.push(layer.forward(&row()?)?),
            (_, Some(_)) => parts.push(row()?),
            (_, None) => {}
        }
        for (layers, &number) in self.metadata.iter().zip(&vector.metadata) {
            parts.push(layers.forward(&sinusoids(number)?)?);
        }
        if let (Some(layers), Some(TextTime { sinusoids, inputs })) =
            (&self.text_time, self.config.text_time)
        {
            let sizes = Sinusoids { width: sinusoids, ..self.sinusoids }.of(&vector.sizes)?;
            let numbers = [&vector.pooled[..], sizes.as_slice()?].concat();
            parts.push(layers.forward(&sent(Tensor::from_vec(numbers, [1, inputs])?)?)?);
        }
        let sum = parts.into_iter().map(Ok).reduce(|a, b| add(&a?, &b?)).transpose()?;
        sum.map(|sum| sum.reshape([sum.dim(1)])).transpose() // [1, outputs] -> [outputs]
    }
}
