//! `nadir generate`: from arguments to a recipe.

use std::path::PathBuf;

use nadir::Error;
use nadir::pipeline::Settings;
use nadir::tensor::DType;

use super::args::{self, Seed};
use super::destination::Destination;
use super::draw::{self, Drawing};
use super::manifest;
use super::model::Model;
use super::recipe::{Embedding, Lora, Recipe, Source};
use super::serve;

pub fn run(args: args::Generate) -> anyhow::Result<()> {
    if let Some(manifest) = args.prompt.manifest.clone() {
        return manifest::run(args, &manifest);
    }
    if args.shard.is_some() {
        return Err(Error::argument("shard", "I/N", "it is a part of --manifest").into());
    }
    let destination = Destination::resolve(args.output.as_deref())?;
    let model = Model::find(args.model.as_deref())?.with(&args.original);
    let prompt = args.prompt.positional.or(args.prompt.named).unwrap_or_default();
    let seed = match args.seed {
        Some(Seed::Number(seed)) => seed,
        Some(Seed::Random) | None => random_seed(),
    };
    let control = args.control.sources()?;
    let prompt_of = &args.image_prompt;
    if prompt_of.ip_adapter.is_some() && prompt_of.ip_image.is_none() {
        let expected = "a picture for the IP-Adapter to see";
        return Err(Error::argument("ip_image", "none", expected).into());
    }
    let bbox = args.bbox.as_deref().map(args::bbox).transpose()?;
    let source = |path: PathBuf| Source { path, hash: String::new() };
    let recipe = Recipe {
        variant: args.variant,
        tokenizer: args.original.tokenizer,
        prediction: args.original.prediction,
        vae: args.vae,
        dtype: args.execution.dtype.unwrap_or(DType::F32),
        num_images: args.num_images,
        init_image: args.init_image.map(source),
        mask_image: args.mask_image.map(source),
        controlnet: args.control.controlnet,
        control,
        guess_mode: args.control.guess_mode,
        ip_adapter: args.image_prompt.ip_adapter.map(source),
        image_encoder: args.image_prompt.image_encoder,
        ip_image: args.image_prompt.ip_image.map(source),
        ip_scale: args.image_prompt.ip_scale,
        bbox,
        epsg: args.epsg,
        samples: args.numbers.samples,
        scale: args.numbers.scale,
        preview_bands: args.numbers.preview_bands,
        lora: args.lora.into_iter().map(Lora::from).collect(),
        embedding: Embedding::all(&args.embedding)?,
        ..Recipe::new(model.name.clone(), Settings { prompt, ..args.settings }, seed)
    };
    let (execution, grid, time) = (args.execution, args.grid, args.time);
    let (separately, metadata) = (true, !args.no_metadata);
    draw::draw(Drawing { recipe, model, destination, execution, time, separately, grid, metadata })
}

/// 32 bits: short enough to be typed again, and what other programs draw from.
fn random_seed() -> u64 {
    serve::random() & u64::from(u32::MAX)
}
