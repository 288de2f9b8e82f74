//! What a machine cannot do for a request, said before work begins and not after it.

use nadir::cpu::memory;
use nadir::pipeline::{LoadOptions, MemoryEstimate};
use nadir::tensor::Device;
use nadir::{Error, Result, io};

use super::model::Model;
use super::recipe::Recipe;

/// More than any machine has cores; each takes memory of its own.
const MAX_THREADS: usize = 1024;

/// Computes with this many threads from now on.
pub fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    match threads {
        None => Ok(()),
        Some(n) if !(1..=MAX_THREADS).contains(&n) => {
            Err(Error::argument("threads", n, format!("a number from 1 to {MAX_THREADS}")).into())
        }
        Some(n) => Ok(rayon::ThreadPoolBuilder::new().num_threads(n).build_global()?),
    }
}

/// Pictures at a time: no more than there are.
pub fn check_batch(batch: usize, num_images: usize) -> Result<usize> {
    match batch {
        0 => Err(Error::argument("batch", 0, "at least 1")),
        batch => Ok(batch.min(num_images)),
    }
}

/// Refuses what the machine has no memory for, before anything is loaded.
pub fn check_memory(
    model: &Model,
    options: &LoadOptions,
    recipe: &Recipe,
    batch: usize,
    grid: bool,
) -> Result<()> {
    let estimate = MemoryEstimate::open(&model.folder, options)?;
    let settings = &recipe.settings;
    let kept = if grid { check_grid(recipe, &estimate)? } else { 0 };
    // What is free on a GPU its driver knows when it is asked.
    let space = memory::tightest().filter(|_| options.device == Device::Cpu);
    let Some(space) = space else { return Ok(()) };
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

/// Bytes of the grid and of the pictures that wait for it, where there can be such a grid.
fn check_grid(recipe: &Recipe, estimate: &MemoryEstimate) -> Result<u64> {
    let (width, height) = estimate.size(&recipe.settings)?;
    let (width, height) = io::image::grid_size(recipe.num_images, width as u32, height as u32)?;
    Ok(2 * 3 * u64::from(width) * u64::from(height))
}
