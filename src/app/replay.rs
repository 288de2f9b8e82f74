//! `nadir replay`: from a picture to the recipe that it keeps.

use std::io::Write;

use nadir::Error;
use nadir::io::geotiff::picture;

use super::args;
use super::destination::Destination;
use super::draw::{self, Drawing};
use super::model::Model;
use super::recipe::Recipe;
use super::terminal;

pub fn run(args: args::Replay) -> anyhow::Result<()> {
    let mut recipe = Recipe::read(&args.image)?;
    if let Some(dtype) = args.execution.dtype {
        recipe.dtype = dtype;
    }
    if let Some(model) = args.model {
        recipe.model = model;
    }
    let moved =
        [(&mut recipe.init_image, args.init_image), (&mut recipe.mask_image, args.mask_image)];
    for (source, path) in moved {
        if let (Some(source), Some(path)) = (source, path) {
            source.path = path;
        }
    }
    if !args.lora.is_empty() && args.lora.len() != recipe.lora.len() {
        let (found, expected) = (args.lora.len(), recipe.lora.len());
        let expected = format!("the picture was made with {expected}: name each, in their order");
        return Err(Error::argument("lora", format!("{found} of them"), expected).into());
    }
    if args.tokenizer.is_some() {
        recipe.tokenizer = args.tokenizer;
    }
    if args.vae.is_some() {
        recipe.vae = args.vae;
    }
    if !args.embedding.is_empty() && args.embedding.len() != recipe.embedding.len() {
        let (found, expected) = (args.embedding.len(), recipe.embedding.len());
        let expected = format!("the picture was made with {expected}: name each, in their order");
        return Err(Error::argument("embedding", format!("{found} of them"), expected).into());
    }
    recipe.embedding.iter_mut().zip(args.embedding).for_each(|(e, path)| e.path = path);
    recipe.lora.iter_mut().zip(args.lora).for_each(|(lora, path)| lora.path = path);
    recipe.check()?;
    if args.dry_run {
        let json = serde_json::to_string_pretty(&recipe)?;
        // Nobody may be reading.
        let _ = writeln!(std::io::stdout(), "{}", terminal::printable_json(&json));
        return Ok(());
    }
    let destination = Destination::resolve(args.output.as_deref())?;
    if destination.is_geotiff() && recipe.num_images == 1 {
        recipe.preview_bands = None;
    } else if args.preview_bands.is_some() {
        // A look at what has other numbers, or more bands.
        (recipe.preview_bands, recipe.samples) = (args.preview_bands, None);
        let init = recipe.init_image.as_ref();
        if init.map(|init| picture::raster(&init.path)).transpose()?.flatten().is_none() {
            recipe.scale = None;
        }
    }
    let original =
        args::Original { tokenizer: recipe.tokenizer.clone(), prediction: recipe.prediction };
    let model = Model::find(Some(&recipe.model))?.with(&original);
    let grid = recipe.num_images > 1;
    draw::draw(Drawing {
        recipe,
        model,
        destination,
        execution: args.execution,
        time: args::Time::default(),
        separately: !grid,
        grid,
        metadata: true,
    })
}
