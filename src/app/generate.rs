//! `nadir generate`: from arguments to a recipe.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;

use nadir::tensor::DType;

use super::args::{self, Seed};
use super::draw::{self, Job};
use super::model::Model;
use super::output::Output;
use super::recipe::{Recipe, Source};

pub fn run(args: args::Generate) -> anyhow::Result<()> {
    let output = Output::resolve(args.output.as_deref())?;
    let model = Model::find(args.model.as_deref())?;
    let suggestions = model.suggestions()?;
    let source = |path: PathBuf| Source { path, hash: String::new() };
    let recipe = Recipe {
        nadir: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.name.clone(),
        model_hash: String::new(),
        variant: args.variant,
        dtype: args.run.dtype.unwrap_or(DType::F32),
        device: String::new(),
        prompt: args.prompt.positional.or(args.prompt.named).unwrap_or_default(),
        negative_prompt: args.negative_prompt,
        width: args.width,
        height: args.height,
        num_inference_steps: args.steps.unwrap_or(suggestions.steps),
        guidance_scale: args.cfg_scale.unwrap_or(suggestions.guidance_scale),
        guidance_rescale: args.guidance_rescale,
        eta: args.eta,
        clip_skip: args.clip_skip,
        seed: match args.seed {
            Some(Seed::Number(seed)) => seed,
            Some(Seed::Random) | None => random_seed(),
        },
        num_images: args.num_images,
        scheduler: args.scheduler,
        noise: args.noise,
        long_prompts: args.long_prompts,
        prompt_syntax: args.prompt_syntax,
        vae_tiling: args.vae_tiling,
        init_image: args.init_image.map(source),
        mask_image: args.mask_image.map(source),
        strength: args.strength,
    };
    draw::draw(Job { recipe, model, output, run: args.run, each: true, grid: args.grid })
}

/// 32 bits: short enough to be typed again, and what other programs draw from.
fn random_seed() -> u64 {
    // The standard library keys its hash maps from the system's random numbers: enough for a picture.
    RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}
