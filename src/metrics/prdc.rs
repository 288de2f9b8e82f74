//! How much of one set lies where the other does.
//!
//! Precision and recall: Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative
//! Models"; reference `torch_fidelity/metric_prc.py`. Density and coverage: Naeem et al. 2020, "Reliable Fidelity and
//! Diversity Metrics for Generative Models"; reference `prdc/prdc.py`.

use super::Features;
use crate::error::{Error, Result};

/// Rows whose distances are held at a time.
const BLOCK: usize = 512;

/// The neighbour that a ball reaches to, as both papers have it.
pub const NEIGHBOR_OF_PRECISION: usize = 3;
/// As [`NEIGHBOR_OF_PRECISION`], of density and coverage.
pub const NEIGHBOR_OF_DENSITY: usize = 5;

/// Shares from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Of the generated pictures, those within a ball around a real one.
    pub precision: f64,
    /// Of the real pictures, those within a ball around a generated one.
    pub recall: f64,
}

/// Density and coverage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DensityCoverage {
    /// Balls around real pictures that a generated one lies in, by the neighbour's number: 1 for sets of one kind.
    pub density: f64,
    /// Share of the real pictures whose ball has a generated one in it.
    pub coverage: f64,
}

/// Precision and recall of `generated` against `real`; a ball reaches to the `neighbor`-th of its own set.
///
/// # Errors
/// `Argument` when a set has no such neighbour; `Shape` for features of different widths.
pub fn precision_recall(
    generated: &Features,
    real: &Features,
    neighbor: usize,
) -> Result<PrecisionRecall> {
    check(generated, real, neighbor)?;
    let (of_generated, of_real) = (radii(generated, neighbor)?, radii(real, neighbor)?);
    let mut in_a_ball = vec![false; generated.count()];
    let mut recalled = 0;
    squared_distances(real, generated, |i, distances| {
        let mut is_recalled = false;
        for (j, &distance) in distances.iter().enumerate() {
            in_a_ball[j] |= distance <= of_real[i];
            is_recalled |= distance <= of_generated[j];
        }
        recalled += usize::from(is_recalled);
    })?;
    let precise = in_a_ball.iter().filter(|&&inside| inside).count();
    Ok(PrecisionRecall {
        precision: precise as f64 / generated.count() as f64,
        recall: recalled as f64 / real.count() as f64,
    })
}

/// Density and coverage of `generated` against `real`; a ball reaches to the `neighbor`-th of its own set.
///
/// # Errors
/// As [`precision_recall`].
pub fn density_coverage(
    generated: &Features,
    real: &Features,
    neighbor: usize,
) -> Result<DensityCoverage> {
    check(generated, real, neighbor)?;
    let radii = radii(real, neighbor)?;
    let (mut inside, mut covered) = (0, 0);
    squared_distances(real, generated, |i, distances| {
        let here = distances.iter().filter(|&&distance| distance < radii[i]).count();
        inside += here;
        covered += usize::from(here > 0);
    })?;
    Ok(DensityCoverage {
        density: inside as f64 / (neighbor * generated.count()) as f64,
        coverage: covered as f64 / real.count() as f64,
    })
}

fn check(generated: &Features, real: &Features, neighbor: usize) -> Result<()> {
    generated.check(real, 2)?;
    let most = generated.count().min(real.count()) - 1;
    if neighbor == 0 || neighbor > most {
        let expected = format!("1 to {most}, one less than the smaller set has pictures");
        return Err(Error::argument("neighbor", neighbor, expected));
    }
    Ok(())
}

/// The squared distance of each picture to the `neighbor`-th nearest other of its set.
fn radii(set: &Features, neighbor: usize) -> Result<Vec<f64>> {
    let mut radii = Vec::with_capacity(set.count());
    squared_distances(set, set, |i, distances| {
        distances[i] = 0.0; // of itself, without rounding
        radii.push(*distances.select_nth_unstable_by(neighbor, f64::total_cmp).1);
    })?;
    Ok(radii)
}

/// Calls `row` with the number of each picture of `from` and its squared distances to all of `to`, in f64.
fn squared_distances(
    from: &Features,
    to: &Features,
    mut row: impl FnMut(usize, &mut [f64]),
) -> Result<()> {
    let square = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let of_to: Vec<f64> = (0..to.count()).map(|j| square(to.row(j))).collect();
    for start in (0..from.count()).step_by(BLOCK) {
        let end = from.count().min(start + BLOCK);
        let mut products = from.products(start..end, to)?;
        let rows = products.as_mut_slice::<f64>()?.chunks_exact_mut(to.count());
        for (i, products) in (start..end).zip(rows) {
            let own = square(from.row(i));
            for (x, other) in products.iter_mut().zip(&of_to) {
                *x = (own + other - 2.0 * *x).max(0.0);
            }
            row(i, products);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    /// Points on a line.
    fn line(points: &[f32]) -> Features {
        Features::new(&Tensor::from_vec(points.to_vec(), [points.len(), 1]).unwrap()).unwrap()
    }

    #[test]
    fn balls_are_those_of_the_definition() {
        let real = line(&[0.0, 1.0, 2.0, 10.0]); // reach 1, 1, 1, 8 to the nearest other
        let generated = line(&[0.5, 1.5, 30.0]); // reach 1, 1, 28.5
        let found = precision_recall(&generated, &real, 1).unwrap();
        // 30 lies in no ball; 0, 1, 2 lie in the first two's, 10 in the last one's.
        assert_eq!(found, PrecisionRecall { precision: 2.0 / 3.0, recall: 1.0 });
        let found = density_coverage(&generated, &real, 1).unwrap();
        // 0.5 in the balls of 0 and 1, 1.5 in those of 1 and 2; at 2 the ball of 10 ends.
        assert_eq!(found, DensityCoverage { density: 4.0 / 3.0, coverage: 0.75 });
    }

    #[test]
    fn a_set_covers_itself() {
        let set = line(&[0.0, 1.0, 3.0, 7.0, 7.5, 9.0]);
        let found = precision_recall(&set, &set, 3).unwrap();
        assert_eq!(found, PrecisionRecall { precision: 1.0, recall: 1.0 });
        assert_eq!(density_coverage(&set, &set, 5).unwrap().coverage, 1.0);
    }

    #[test]
    fn an_edge_is_of_the_ball_for_precision_and_not_for_density() {
        let real = line(&[0.0, 1.0, 2.0]); // each reaches 1
        let generated = line(&[-1.0, 3.0, 9.0]);
        assert_eq!(precision_recall(&generated, &real, 1).unwrap().precision, 2.0 / 3.0);
        let found = density_coverage(&generated, &real, 1).unwrap();
        assert_eq!(found, DensityCoverage { density: 0.0, coverage: 0.0 });
    }

    #[test]
    fn pictures_beyond_a_block_are_compared_as_those_within() {
        let n = BLOCK + 88;
        let points = |by: f32| line(&(0..n).map(|i| i as f32 + by).collect::<Vec<_>>());
        let (real, generated) = (points(0.0), points(0.25));
        let found = precision_recall(&generated, &real, 1).unwrap();
        assert_eq!(found, PrecisionRecall { precision: 1.0, recall: 1.0 });
        // Each lies in the balls of its neighbours to both sides, the last in one.
        let found = density_coverage(&generated, &real, 1).unwrap();
        let density = (2 * n - 1) as f64 / n as f64;
        assert_eq!(found, DensityCoverage { density, coverage: 1.0 });
    }

    #[test]
    fn a_neighbour_that_is_not_there_is_refused() {
        let set = line(&[0.0, 1.0, 3.0]);
        for neighbor in [0, 3] {
            let message = precision_recall(&set, &set, neighbor).err().unwrap().to_string();
            assert!(message.contains("1 to 2"), "{message}");
        }
    }
}
