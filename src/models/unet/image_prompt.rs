//! IP-Adapter: a picture as a prompt, whose tokens every cross attention attends to beside the text's, by keys and values of
//! their own.
//!
//! Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models". Reference implementation:
//! diffusers, `loaders/unet.py`, `ImageProjection` and `IPAdapterPlusImageProjection` of `models/embeddings.py`.

use super::{Context, Unet};
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::safetensors::SafeTensors;
use crate::nn::{KeyValue, LayerNorm, Linear, Parameter, Params};
use crate::ops::attention::{AttentionConfig, attention};
use crate::ops::elementwise::{add, gelu, scale};
use crate::ops::layout::concat;
use crate::tensor::{DType, Device, Tensor};

/// Epsilon of every norm; torch's default.
const EPS: f32 = 1e-5;

/// Channels of a head of the resampler; diffusers fixes it.
const HEAD: usize = 64;

/// An IP-Adapter of a UNet.
pub struct IpAdapter {
    projection: Projection,
    /// Of keys and of values of every cross attention, in order of execution.
    layers: Vec<[Linear; 2]>,
    dtype: DType,
    device: Device,
}

/// How what an encoder makes of a picture becomes tokens.
enum Projection {
    /// Of the picture as a whole.
    Whole { proj: Box<Linear>, norm: Box<LayerNorm> },
    /// Of its patches: IP-Adapter Plus.
    Patches(Box<Resampler>),
}

impl IpAdapter {
    /// Reads the adapter of `unet` from a file with `image_proj.*` and `ip_adapter.N.to_{k,v}_ip.weight`.
    ///
    /// # Errors
    /// It is of another kind, or of another model; as [`Params::raw`].
    pub fn load(source: SafeTensors, unet: &Unet, dtype: DType, device: Device) -> Result<Self> {
        let shape = |name: &str| source.info(name).map(|info| info.shape);
        let seen = shape("image_proj.proj.weight");
        let queries = shape("image_proj.latents");
        let names = source.names();
        let file = names.first().map(|name| source.origin(name)).unwrap_or_default();
        let width = unet.config().cross_attention_dim.first().copied().unwrap_or_default();
        if seen.is_none() && queries.is_none() {
            let advice = "IP-Adapter and IP-Adapter Plus are supported, not Full and FaceID.";
            let expected = "image_proj.proj.weight, or image_proj.latents";
            let other = names.iter().find(|name| name.starts_with("image_proj."));
            let found = other.cloned().unwrap_or_else(|| "no image_proj".to_owned());
            return Err(Error::file(file, "adapter", expected, found, advice));
        }
        let own = shape("image_proj.norm.weight").or_else(|| shape("image_proj.norm_out.weight"));
        if own.as_deref() != Some(&[width]) {
            let advice = "The adapter is of another model: SD 1.5's, SD 2.1's and SDXL's do not fit each other.";
            let expected = format!("tokens of {width}, as the unet's cross_attention_dim is");
            let found = format!("of {}", own.and_then(|own| own.first().copied()).unwrap_or(0));
            return Err(Error::file(file, "image_proj", expected, found, advice));
        }
        let resampler = Shape::of(&source);
        let p = Params::new(source, dtype, device).of_model("ip_adapter");
        let below = p.pp("image_proj");
        let projection = match seen.as_deref() {
            Some(&[outputs, inputs]) => Projection::Whole {
                proj: Linear::load(&below.pp("proj"), inputs, outputs, true)?.into(),
                norm: LayerNorm::load(&below.pp("norm"), width, EPS)?.into(),
            },
            _ => Projection::Patches(Resampler::load(&resampler, width, &below)?.into()),
        };
        let layers = unet.places().into_iter().map(|(number, channels)| {
            let p = p.pp("ip_adapter").pp(number);
            let load = |name: &str| Linear::load(&p.pp(name), width, channels, false);
            Ok([load("to_k_ip")?, load("to_v_ip")?])
        });
        let layers = layers.collect::<Result<_>>()?;
        match p.finish()?.first() {
            None => Ok(Self { projection, layers, dtype, device }),
            Some(unused) => {
                let (expected, advice) = ("what the model has", "The adapter is of another model.");
                Err(Error::file(file, format!("tensor {unused:?}"), expected, "more", advice))
            }
        }
    }

    /// Whether it takes what the encoder makes of patches, rather than of the picture as a whole.
    pub fn takes_patches(&self) -> bool {
        matches!(self.projection, Projection::Patches(_))
    }

    /// What it was trained to take the length of.
    pub fn inputs(&self) -> usize {
        match &self.projection {
            Projection::Whole { proj, .. } => proj.inputs(),
            Projection::Patches(resampler) => resampler.proj_in.inputs(),
        }
    }

    /// What an encoder makes of pictures, [B, inputs] as a whole or [B, S, inputs] of patches -> tokens [B, N, D].
    ///
    /// # Errors
    /// `Shape` when they are of another encoder.
    pub fn tokens(&self, seen: &Tensor) -> Result<Tensor> {
        let seen = seen.to_dtype(self.dtype)?.to_device(self.device)?;
        match &self.projection {
            Projection::Whole { proj, norm } => {
                let y = proj.forward(&seen)?; // [B, N D]
                let width = norm.channels();
                let tokens = y.dim(1) / width;
                norm.forward(&y.reshape([y.dim(0), tokens, width])?)
            }
            Projection::Patches(resampler) => resampler.forward(&seen),
        }
    }
}

impl Unet {
    /// Numbers and channels of the cross attentions in order of execution: diffusers counts down, up and then the middle, with
    /// a self attention before each.
    fn places(&self) -> Vec<(usize, usize)> {
        let down = self.encoder.down.iter().flat_map(|block| &block.attentions);
        let down: usize = down.map(|attention| attention.layers().len()).sum();
        let up = self.up.iter().flat_map(|block| &block.attentions);
        let up: usize = up.map(|attention| attention.layers().len()).sum();
        let layers = self.cross_attentions().map(|attention| attention.channels());
        let layers = layers.collect::<Vec<_>>();
        let mid = layers.len() - down - up;
        let place = |i: usize| match i {
            i if i < down => i,
            i if i < down + mid => i + up,
            i => i - mid,
        };
        layers.into_iter().enumerate().map(|(i, width)| (2 * place(i) + 1, width)).collect()
    }

    /// A context of the same batch that also attends to `tokens` [B, N, D] of pictures, `weight` times.
    ///
    /// # Errors
    /// Tokens of another adapter.
    pub fn with_image(
        &self,
        context: &Context,
        adapter: &IpAdapter,
        tokens: &Tensor,
        weight: f32,
    ) -> Result<Context> {
        let attentions = self.cross_attentions().zip(&adapter.layers);
        let layers = context.0.iter().zip(attentions).map(|(text, (attention, [k, v]))| {
            let v = scale(&v.forward(tokens)?, weight)?;
            text.beside(attention.apart(&k.forward(tokens)?, &v)?)
        });
        Ok(Context(layers.collect::<Result<Vec<KeyValue>>>()?))
    }
}

/// IPAdapterPlusImageProjection: learned queries gather what patches show (Perceiver; Jaegle et al. 2021).
struct Resampler {
    latents: Parameter,
    proj_in: Linear,
    layers: Vec<Gathering>,
    proj_out: Linear,
    norm_out: LayerNorm,
}

/// IPAdapterPlusImageProjectionBlock.
struct Gathering {
    norm1: LayerNorm,
    norm2: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    norm3: LayerNorm,
    ff1: Linear,
    ff2: Linear,
    heads: usize,
}

/// Of a resampler: inputs, queries, width, channels of all heads, inner width, layers.
#[derive(Default)]
struct Shape {
    inputs: usize,
    queries: usize,
    width: usize,
    heads: usize,
    inner: usize,
    layers: usize,
}

impl Shape {
    fn of(source: &SafeTensors) -> Self {
        let dim = |name: &str, i: usize| {
            let shape = source.info(&format!("image_proj.{name}")).map(|info| info.shape);
            shape.and_then(|shape| shape.get(i).copied()).unwrap_or_default()
        };
        let is_there = |i: &usize| dim(&format!("layers.{i}.0.to_q.weight"), 0) > 0;
        Self {
            inputs: dim("proj_in.weight", 1),
            queries: dim("latents", 1),
            width: dim("latents", 2),
            heads: dim("layers.0.0.to_q.weight", 0) / HEAD,
            inner: dim("layers.0.1.1.weight", 0),
            layers: (0..).take_while(is_there).count(),
        }
    }
}

impl Resampler {
    fn load(shape: &Shape, outputs: usize, p: &Params) -> Result<Self> {
        let width = shape.width;
        let layers = (0..shape.layers).map(|i| Gathering::load(shape, &p.pp("layers").pp(i)));
        Ok(Self {
            latents: p.tensor("latents", &[1, shape.queries, width])?,
            proj_in: Linear::load(&p.pp("proj_in"), shape.inputs, width, true)?,
            layers: layers.collect::<Result<_>>()?,
            proj_out: Linear::load(&p.pp("proj_out"), width, outputs, true)?,
            norm_out: LayerNorm::load(&p.pp("norm_out"), outputs, EPS)?,
        })
    }

    /// `x` [B, S, inputs] -> [B, queries, outputs]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.proj_in.forward(x)?; // [B, S, W]
        let queries = self.latents.value().to_dtype(x.dtype())?; // [1, N, W]
        let mut y = concat(&vec![&queries; x.dim(0)], 0)?; // [B, N, W]
        for layer in &self.layers {
            y = layer.forward(&x, &y)?;
        }
        self.norm_out.forward(&self.proj_out.forward(&y)?)
    }
}

impl Gathering {
    fn load(shape: &Shape, p: &Params) -> Result<Self> {
        let (width, inner) = (shape.width, HEAD * shape.heads);
        let (attention, feed) = (p.pp(0), p.pp(1));
        Ok(Self {
            norm1: LayerNorm::load(&attention.pp("norm1"), width, EPS)?,
            norm2: LayerNorm::load(&attention.pp("norm2"), width, EPS)?,
            to_q: Linear::load(&attention.pp("to_q"), width, inner, false)?,
            to_kv: Linear::load(&attention.pp("to_kv"), width, 2 * inner, false)?,
            to_out: Linear::load(&attention.pp("to_out"), inner, width, false)?,
            norm3: LayerNorm::load(&feed.pp(0), width, EPS)?,
            ff1: Linear::load(&feed.pp(1), width, shape.inner, false)?,
            ff2: Linear::load(&feed.pp(3), shape.inner, width, false)?,
            heads: shape.heads,
        })
    }

    /// `x` [B, S, W], `queries` [B, N, W]
    fn forward(&self, x: &Tensor, queries: &Tensor) -> Result<Tensor> {
        let (b, n, _) = queries.dims3()?;
        let y = self.norm2.forward(queries)?;
        let all = concat(&[&self.norm1.forward(x)?, &y], 1)?; // [B, S + N, W]
        let q = self.to_q.forward(&y)?.reshape([b, n, self.heads, HEAD])?;
        let kv = self.to_kv.forward(&all)?.reshape([b, all.dim(1), 2 * self.heads, HEAD])?;
        let part = |i: usize| kv.narrow(2, i * self.heads, self.heads); // [B, S + N, heads, 64], a view
        let config = AttentionConfig { scale: (HEAD as f32).sqrt().recip(), causal: false };
        let y = attention(&q, &part(0)?, &part(1)?, config)?.reshape([b, n, self.heads * HEAD])?;
        let y = add(&self.to_out.forward(&y)?, queries)?; // [B, N, W]
        let h = gelu(&self.ff1.forward(&self.norm3.forward(&y)?)?)?; // [B, N, inner]
        add(&self.ff2.forward(&h)?, &y)
    }
}
