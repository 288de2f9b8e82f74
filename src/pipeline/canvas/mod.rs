//! Scenes of any size: a canvas that is drawn in overlapping windows of the model's own size, over noise that belongs to the
//! place.
//!
//! ```text
//! place, seed -> noise -> windows, each after those that it sees -> latents -> tiles, decoded -> rows of pixels
//! ```
//!
//! After each evaluation a window's latents become a mean of its own and those that the windows before it had after the same
//! evaluation, weighted as they overlap: MultiDiffusion (Bar-Tal et al. 2023, "MultiDiffusion: Fusing Diffusion Paths for
//! Controlled Image Generation") in one direction only. There a window hears of all others in as many steps; here of those at
//! most two windows away (`grid.rs`). So a pixel is a function of its place, of the canvas and of what is asked, whatever part
//! is drawn, in whatever order and by however many processes, and what a part costs beyond itself is bounded.

mod assembly;
mod grid;
mod regions;
mod state;
mod tiles;
mod windows;

pub use assembly::{assemble, assemble_numbers};
pub use regions::Regions;
pub use state::State;
pub use tiles::Tiles;
pub use windows::{Job, News, draw};

pub use crate::io::geotiff::Window;

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::pipeline::text_to_image::TextToImage;
use grid::{Axis, Beside, Grid, Id};

/// Pixels a side, at most.
const MAX_SIDE: usize = i32::MAX as usize;

/// Bytes that a row of tiles takes while it is put together, at most.
const MAX_MEMORY: usize = 8 << 30;

/// What is painted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Canvas {
    /// Columns of pixels.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Whether its right side is joined to its left, and its lower to its upper.
    pub wrap: [bool; 2],
    /// Pixels that a window shares with the next; `None` is half of it.
    pub overlap: Option<usize>,
}

/// A canvas, or a part of one, as it is drawn with a model.
#[derive(Clone, Debug)]
pub struct Plan {
    canvas: Canvas,
    part: Window,
    grid: Grid,
    /// Pixels a latent.
    factor: usize,
    channels: usize,
}

/// Numbers of a pixel whose sums are held, of a model of no more bands.
const BANDS: usize = 3;

impl Plan {
    /// How `part` of `canvas` is drawn, or all of it.
    ///
    /// # Errors
    /// `Argument`: a size beyond 2^31 - 1 or of nothing, a part outside, a side that wraps and is no even number of windows, an
    /// overlap that cannot be.
    pub fn new(model: &TextToImage, canvas: Canvas, part: Option<Window>) -> Result<Self> {
        let vae = model.vae.config();
        let (factor, channels) = (vae.factor(), vae.latent_channels());
        let numbers = vae.out_channels().max(BANDS);
        Self::with(model.default_size(), (factor, channels, numbers), canvas, part)
    }

    fn with(
        (width, height): (usize, usize),
        (factor, channels, numbers): (usize, usize, usize),
        canvas: Canvas,
        part: Option<Window>,
    ) -> Result<Self> {
        for (name, side) in [("width", canvas.width), ("height", canvas.height)] {
            if !(1..=MAX_SIDE).contains(&side) {
                return Err(Error::argument(name, side, format!("1 to {MAX_SIDE} pixels")));
            }
        }
        let whole = Window { x: 0, y: 0, width: canvas.width, height: canvas.height };
        let part = part.unwrap_or(whole);
        let inside = |from: usize, len: usize, side: usize| {
            len > 0 && from.checked_add(len).is_some_and(|end| end <= side)
        };
        if !inside(part.x, part.width, whole.width) || !inside(part.y, part.height, whole.height) {
            let found = format!("{},{},{},{}", part.x, part.y, part.width, part.height);
            let expected = format!("a part of the canvas, {}x{} pixels", whole.width, whole.height);
            return Err(Error::argument("window", found, expected));
        }
        let least = width.min(height);
        let overlap = canvas.overlap.unwrap_or((least / factor / 2).max(1) * factor);
        if overlap == 0 || overlap > least / 2 || !overlap.is_multiple_of(factor) {
            let expected = format!("a multiple of {factor} from {factor} to {}", least / 2);
            return Err(Error::argument("overlap", overlap, expected));
        }
        let axis = |name, side: usize, wraps, window: usize| {
            if wraps && !side.is_multiple_of(factor) {
                let near = side.next_multiple_of(factor);
                let expected = format!("with --wrap a multiple of {factor} pixels, such as {near}");
                return Err(Error::argument(name, side, expected));
            }
            let lengths = [window / factor, overlap / factor];
            Axis::new(side.div_ceil(factor), lengths, wraps, (name, factor))
        };
        if part.width.saturating_mul(height).saturating_mul(4 * numbers) > MAX_MEMORY {
            let expected =
                "a narrower part of the canvas: --window x,y,w,h draws one of the same scene";
            return Err(Error::argument("width", part.width, expected));
        }
        let down = axis("height", canvas.height, canvas.wrap[1], height)?;
        let across = axis("width", canvas.width, canvas.wrap[0], width)?;
        Ok(Self { canvas, part, grid: Grid([down, across]), factor, channels })
    }

    /// The part of the canvas that is drawn.
    pub fn part(&self) -> Window {
        self.part
    }

    /// The canvas.
    pub fn canvas(&self) -> &Canvas {
        &self.canvas
    }

    /// Width and height of a window in pixels.
    pub fn window(&self) -> (usize, usize) {
        let [height, width] = [0, 1].map(|axis| self.grid.0[axis].size * self.factor);
        (width, height)
    }

    /// Pixels that a window shares with the next.
    pub fn overlap(&self) -> usize {
        let [_, across] = &self.grid.0;
        (across.size - across.stride) * self.factor
    }

    /// Windows over the part that is drawn, which are drawn and decoded; and those that are drawn besides, since these see
    /// them: at most two more on each side, whatever the size and the steps.
    pub fn windows(&self) -> (usize, usize) {
        let counts = [0, 1].map(|axis| {
            let (axis, [first, last]) = (&self.grid.0[axis], self.span(axis));
            let count = |first: isize, last: isize| match axis.wraps {
                true => axis.count.min((last - first + 1) as usize),
                false => (last.min(axis.count as isize - 1) - first.max(0) + 1) as usize,
            };
            // A tile shows the windows beside it; of those the odd ones see their neighbours.
            let (before, behind) = (first - 1, last + 1);
            let odd = |i: isize| i.rem_euclid(2);
            [count(first, last), count(before - odd(before), behind + odd(behind))]
        });
        let [[down, all_down], [across, all_across]] = counts;
        (down * across, all_down * all_across - down * across)
    }

    /// The first and the last window over the part along one side, counted beyond the ends of one that wraps.
    fn span(&self, axis: usize) -> [isize; 2] {
        let stride = self.grid.0[axis].stride as isize;
        let over = self.over(axis);
        [over.first(), over.last()].map(|window| window.map_or(0, |window| window.offset / stride))
    }

    /// The windows over the part that is drawn along one side.
    fn over(&self, axis: usize) -> Vec<Beside> {
        let [from, len] = match axis {
            0 => [self.part.y, self.part.height],
            _ => [self.part.x, self.part.width],
        };
        let latents = [from / self.factor, (from + len).div_ceil(self.factor)];
        self.grid.0[axis].over(latents).collect()
    }

    /// Rows of windows that are decoded, and those in each.
    fn tiles(&self) -> [Vec<usize>; 2] {
        [0, 1].map(|axis| {
            let all: BTreeSet<usize> = self.over(axis).iter().map(|window| window.index).collect();
            all.into_iter().collect()
        })
    }

    /// Whether a window is decoded.
    fn is_shown(&self, id: Id, tiles: &[Vec<usize>; 2]) -> bool {
        [0, 1].iter().all(|&axis| tiles[axis].binary_search(&id[axis]).is_ok())
    }

    /// Numbers of a window's latents.
    fn numbers(&self) -> usize {
        self.grid.0[0].size * self.grid.0[1].size * self.channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(canvas: [usize; 2], wrap: [bool; 2], part: Option<[usize; 4]>) -> Plan {
        let [width, height] = canvas;
        let canvas = Canvas { width, height, wrap, overlap: Some(16) };
        let part = part.map(|[x, y, width, height]| Window { x, y, width, height });
        Plan::with((64, 64), (4, 4, 3), canvas, part).unwrap()
    }

    /// What is counted is what is drawn: the windows that tiles show, those that they see, and so on.
    #[test]
    fn what_a_part_costs_is_counted_and_bounded() {
        let sizes = [[176, 150], [960, 480], [40, 64]];
        for (canvas, wrap) in [
            (sizes[0], [false; 2]),
            (sizes[1], [true, false]),
            (sizes[1], [true; 2]),
            (sizes[2], [false; 2]),
        ] {
            let [width, height] = canvas;
            for (x, y) in
                (0..width).step_by(37).flat_map(|x| (0..height).step_by(29).map(move |y| (x, y)))
            {
                for side in [1, 50, 300] {
                    let (w, h) = (side.min(width - x), side.min(height - y));
                    let plan = plan(canvas, wrap, Some([x, y, w, h]));
                    let [rows, columns] = plan.tiles();
                    let tiles: Vec<Id> =
                        rows.iter().flat_map(|y| columns.iter().map(|x| [*y, *x])).collect();
                    let mut drawn: BTreeSet<Id> = BTreeSet::new();
                    let around = tiles.iter().flat_map(|id| plan.grid.around(*id));
                    let mut wanted: Vec<Id> = around.map(|window| window.id).collect();
                    while let Some(id) = wanted.pop() {
                        if drawn.insert(id) {
                            wanted.extend(plan.grid.seen(id).map(|window| window.id));
                        }
                    }
                    assert_eq!(
                        plan.windows(),
                        (tiles.len(), drawn.len() - tiles.len()),
                        "{canvas:?} {wrap:?} {x} {y} {side}"
                    );
                    assert!(drawn.len() <= (rows.len() + 4) * (columns.len() + 4));
                }
            }
        }
        assert_eq!(plan([1024, 1024], [false; 2], None).windows(), (21 * 21, 0));
        assert_eq!(plan([960, 480], [true; 2], None).windows(), (20 * 10, 0));
        // A world is as large a number.
        let world =
            plan([1_999_999_968, 1_000_000_000], [true, false], Some([1_000_000, 5, 64, 64]));
        assert!(world.windows().0 <= 9, "{:?}", world.windows());
    }
}
