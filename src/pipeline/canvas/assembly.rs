//! Putting a picture together of tiles that overlap, a row of them at a time.

use super::grid::{Beside, Id};
use super::{Plan, State};
use crate::error::Result;

impl Plan {
    /// Tiles of the picture that are not there yet.
    pub fn missing(&self, state: &State) -> usize {
        let [rows, columns] = self.tiles();
        let ids = rows.iter().flat_map(|&y| columns.iter().map(move |&x| [y, x]));
        ids.filter(|id| !state.has_tile(*id)).count()
    }
}

/// Gives `write` the rows of the picture, [rows, width, 3] of 8 bits, as soon as no further tile reaches them. A pixel is the
/// mean of the tiles over it, weighted as the windows are.
///
/// # Errors
/// A tile is missing or damaged; what `write` answers.
pub fn assemble(
    plan: &Plan,
    state: &State,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    assemble_numbers(plan, state, &mut |means| {
        let levels = means.iter().map(|mean| (mean + 0.5) as u8);
        write(&levels.collect::<Vec<u8>>())
    })
}

/// As [`assemble`], the means as they are: of levels, or of the model's numbers, [rows, width, bands].
///
/// # Errors
/// As there.
pub fn assemble_numbers(
    plan: &Plan,
    state: &State,
    write: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let ([down, across], part) = ([0, 1].map(|axis| plan.over(axis)), plan.part());
    let (_, height) = plan.window();
    let row = part.width * state.tiles.bands();
    let end = part.y + part.height;
    // Of the rows from `top` on, as many as a tile has: [rows, width, bands]
    let mut sums = vec![0.0_f32; height * row];
    let mut top = part.y;
    for (i, y) in down.iter().enumerate() {
        let first = y.offset * plan.factor as isize;
        for x in &across {
            add(plan, state, [y, x], top, &mut sums)?;
        }
        let next = down.get(i + 1).map(|next| next.offset * plan.factor as isize);
        let next = next.unwrap_or(first + height as isize).clamp(top as isize, end as isize);
        let done = (next as usize - top) * row;
        if done > 0 {
            write(&sums[..done])?;
        }
        sums.copy_within(done.., 0);
        let rest = sums.len() - done;
        sums[rest..].fill(0.0);
        top = next as usize;
    }
    Ok(())
}

/// Adds a tile to the rows from `top` on.
fn add(
    plan: &Plan,
    state: &State,
    [y, x]: [&Beside; 2],
    top: usize,
    sums: &mut [f32],
) -> Result<()> {
    let (part, bands, id): (_, _, Id) = (plan.part(), state.tiles.bands(), [y.index, x.index]);
    let row = part.width * bands;
    let [down, across] = plan.grid.weights(id, plan.factor);
    let tile = state.tiles.read(&state.tile_path(id), [down.len(), across.len()])?;
    let [y0, x0] = [y, x].map(|beside| beside.offset * plan.factor as isize);
    // What of the tile's columns is on the part.
    let from = (part.x as isize - x0).max(0) as usize;
    let to = ((part.x + part.width) as isize - x0).min(across.len() as isize).max(0) as usize;
    let end = part.y + part.height;
    for (i, vertical) in down.iter().enumerate() {
        let at = y0 + i as isize;
        if at < top as isize || at >= end as isize || from >= to {
            continue;
        }
        let own = &mut sums[(at as usize - top) * row..][..row];
        let levels = &tile[i * across.len() * bands..][..across.len() * bands];
        for j in from..to {
            let weight = vertical * across[j];
            let column = ((x0 + j as isize) as usize - part.x) * bands;
            for c in 0..bands {
                own[column + c] += weight * levels[j * bands + c];
            }
        }
    }
    Ok(())
}
