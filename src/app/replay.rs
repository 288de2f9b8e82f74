//! `nadir replay`: from a picture to the recipe that it keeps.

use super::args;
use super::destination::Destination;
use super::draw::{self, Drawing};
use super::model::Model;
use super::recipe::Recipe;

pub fn run(args: args::Replay) -> anyhow::Result<()> {
    let destination = Destination::resolve(args.output.as_deref())?;
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
    let model = Model::find(Some(&recipe.model))?;
    let grid = recipe.num_images > 1;
    let execution = args.execution;
    draw::draw(Drawing { recipe, model, destination, execution, separately: !grid, grid })
}
