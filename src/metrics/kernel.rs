//! The squared maximum mean discrepancy with a cubic kernel: Binkowski et al. 2018, "Demystifying MMD GANs"; on features
//! of InceptionV3 it is the kernel Inception distance. Reference: `torch_fidelity/metric_kid.py`.

use super::Features;
use super::permutation::Draws;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Pictures of each set whose kernels are all held at once, three matrices of f64; of more, those of a subset are.
const HELD: usize = 4096;

/// Pictures of each set that an interval is computed of, at most.
const RESAMPLED: usize = 2048;

/// How it is estimated. The defaults are torch-fidelity's.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelSettings {
    /// Subsets that estimates are averaged over.
    pub subsets: usize,
    /// Pictures of a subset.
    pub subset_size: usize,
    /// Of the draws.
    pub seed: u32,
    /// Sets that are drawn with replacement for the interval; none without.
    pub resamples: usize,
}

impl Default for KernelSettings {
    fn default() -> Self {
        Self { subsets: 100, subset_size: 1000, seed: 2020, resamples: 1000 }
    }
}

/// The distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelDistance {
    /// Over the subsets. Unbiased, and so below zero at times.
    pub mean: f64,
    /// Over the subsets.
    pub deviation: f64,
    /// Where 95 % of the estimates lie that are made of pictures drawn with replacement, of at most 2,048 of each set.
    pub interval: Option<[f64; 2]>,
}

/// The distance between two sets.
///
/// # Errors
/// `Argument` when a set has fewer pictures than a subset, or a subset fewer than two; `Shape` for features of different
/// widths.
pub fn distance(a: &Features, b: &Features, settings: &KernelSettings) -> Result<KernelDistance> {
    let &KernelSettings { subsets, subset_size: size, seed, resamples } = settings;
    a.check(b, 2)?;
    if subsets == 0 {
        return Err(Error::argument("kid_subsets", subsets, "at least one"));
    }
    let least = a.count().min(b.count());
    if size < 2 || size > least {
        let expected = format!("2 to {least}, the pictures of the smaller set");
        return Err(Error::argument("kid_subset_size", size, expected));
    }
    let held = (a.count().max(b.count()) <= HELD).then(|| Kernels::of(a, b)).transpose()?;
    let mut draws = Draws::new(seed);
    let mut estimates = Vec::with_capacity(subsets);
    for _ in 0..subsets {
        let mut places = |n| {
            let mut order = draws.permutation(n);
            order.truncate(size);
            order
        };
        let (i, j) = (places(a.count()), places(b.count()));
        estimates.push(match &held {
            Some(kernels) => kernels.estimate(&i, &j),
            None => Kernels::of(&a.take(&i)?, &b.take(&j)?)?.whole(),
        });
    }
    let mean = estimates.iter().sum::<f64>() / subsets as f64;
    let variance = estimates.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / subsets as f64;
    let interval =
        (resamples > 0).then(|| interval(a, b, held, &mut draws, resamples)).transpose()?;
    Ok(KernelDistance { mean, deviation: variance.sqrt(), interval })
}

/// Where 95 % of `resamples` estimates lie (Efron 1979). A picture that is drawn twice is not compared with itself: the
/// estimate would grow by that.
fn interval(
    a: &Features,
    b: &Features,
    held: Option<Kernels>,
    draws: &mut Draws,
    resamples: usize,
) -> Result<[f64; 2]> {
    let kernels = match held.filter(|_| a.count().max(b.count()) <= RESAMPLED) {
        Some(kernels) => kernels,
        None => {
            let mut some = |set: &Features| {
                let mut order = draws.permutation(set.count());
                order.truncate(RESAMPLED);
                set.take(&order)
            };
            Kernels::of(&some(a)?, &some(b)?)?
        }
    };
    let mut estimates: Vec<f64> = (0..resamples)
        .map(|_| {
            let mut times = |n: usize| {
                let mut times = vec![0.0; n];
                (0..n).for_each(|_| times[draws.up_to(n as u32 - 1) as usize] += 1.0);
                times
            };
            let (of_a, of_b) = (times(kernels.a), times(kernels.b));
            kernels.weighted(&of_a, &of_b)
        })
        .collect();
    estimates.sort_by(f64::total_cmp);
    let at = |share: f64| estimates[((resamples - 1) as f64 * share).round() as usize];
    Ok([at(0.025), at(0.975)])
}

/// (x·y / D + 1)³ of all pairs within and between two sets.
struct Kernels {
    a: usize,
    b: usize,
    within_a: Vec<f64>,
    within_b: Vec<f64>,
    between: Vec<f64>,
}

impl Kernels {
    fn of(a: &Features, b: &Features) -> Result<Self> {
        let width = a.width() as f64;
        let of = |x: &Features, y: &Features| -> Result<Vec<f64>> {
            let products: Tensor = x.products(0..x.count(), y)?;
            let cube = |p: &f64| (p / width + 1.0).powi(3);
            Ok(products.as_slice::<f64>()?.iter().map(cube).collect())
        };
        let (within_a, within_b, between) = (of(a, a)?, of(b, b)?, of(a, b)?);
        Ok(Self { a: a.count(), b: b.count(), within_a, within_b, between })
    }

    /// The unbiased estimate of the subsets `i` and `j`.
    fn estimate(&self, i: &[usize], j: &[usize]) -> f64 {
        let sum = |matrix: &[f64], width: usize, rows: &[usize], columns: &[usize]| -> f64 {
            let of = |&r: &usize| columns.iter().map(|&c| matrix[r * width + c]).sum::<f64>();
            rows.iter().map(of).sum()
        };
        let diagonal = |matrix: &[f64], width: usize, places: &[usize]| -> f64 {
            places.iter().map(|&p| matrix[p * width + p]).sum()
        };
        let (m, n) = (i.len() as f64, j.len() as f64);
        let a = sum(&self.within_a, self.a, i, i) - diagonal(&self.within_a, self.a, i);
        let b = sum(&self.within_b, self.b, j, j) - diagonal(&self.within_b, self.b, j);
        let between = sum(&self.between, self.b, i, j);
        a / (m * (m - 1.0)) + b / (n * (n - 1.0)) - 2.0 * between / (m * n)
    }

    /// That of both sets.
    fn whole(&self) -> f64 {
        self.weighted(&vec![1.0; self.a], &vec![1.0; self.b])
    }

    /// That of sets that have each picture so many times, pairs of a picture with itself left out.
    fn weighted(&self, a: &[f64], b: &[f64]) -> f64 {
        let sum = |matrix: &[f64], rows: &[f64], columns: &[f64]| -> f64 {
            let of = |row: &[f64]| row.iter().zip(columns).map(|(k, w)| k * w).sum::<f64>();
            let rows = matrix.chunks_exact(columns.len()).zip(rows);
            rows.filter(|(_, w)| **w > 0.0).map(|(row, &w)| w * of(row)).sum()
        };
        let within = |matrix: &[f64], weights: &[f64]| {
            let itself = |(i, w): (usize, &f64)| w * w * matrix[i * weights.len() + i];
            let own: f64 = weights.iter().enumerate().map(itself).sum();
            let (once, squared): (f64, f64) =
                (weights.iter().sum(), weights.iter().map(|w| w * w).sum());
            (sum(matrix, weights, weights) - own) / (once * once - squared)
        };
        let (m, n): (f64, f64) = (a.iter().sum(), b.iter().sum());
        within(&self.within_a, a) + within(&self.within_b, b)
            - 2.0 * sum(&self.between, a, b) / (m * n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Mt19937;

    fn features(n: usize, shift: f32, seed: u64) -> Features {
        let values = Mt19937::new(seed).randn(n * 6).iter().map(|x| x + shift).collect();
        Features::new(&Tensor::from_vec(values, [n, 6]).unwrap()).unwrap()
    }

    fn settings(subset_size: usize) -> KernelSettings {
        KernelSettings { subsets: 3, subset_size, resamples: 200, ..KernelSettings::default() }
    }

    #[test]
    fn an_interval_holds_the_estimate_and_narrows_with_more_pictures() {
        let width = |n| {
            let (a, b) = (features(n, 0.0, 1), features(n + 9, 0.7, 2));
            let found = distance(&a, &b, &settings(n)).unwrap();
            let [low, high] = found.interval.unwrap();
            assert!(low < found.mean && found.mean < high, "{found:?}");
            assert!(low > 0.0, "these sets differ: {found:?}");
            high - low
        };
        assert!(width(400) < 0.75 * width(100), "{} {}", width(400), width(100));
    }

    #[test]
    fn sets_of_one_kind_are_at_about_no_distance() {
        let (a, b) = (features(150, 0.0, 3), features(140, 0.0, 4));
        let [low, high] = distance(&a, &b, &settings(140)).unwrap().interval.unwrap();
        assert!(low < 0.0 && 0.0 < high, "{low} {high}");
    }

    #[test]
    fn kernels_of_a_subset_are_those_of_all() {
        let (a, b) = (features(30, 0.0, 5), features(40, 0.3, 6));
        let (i, j) = ([3, 29, 7, 0], [39, 2, 11, 5]);
        let some = Kernels::of(&a.take(&i).unwrap(), &b.take(&j).unwrap()).unwrap().whole();
        let all = Kernels::of(&a, &b).unwrap().estimate(&i, &j);
        assert!((some - all).abs() <= 1e-12 * all.abs(), "{some} {all}");
    }

    #[test]
    fn an_interval_leaves_out_as_much_on_either_side() {
        let (a, b) = (features(100, 0.0, 1), features(109, 0.7, 2));
        let found = distance(&a, &b, &settings(100)).unwrap();
        let estimate = Kernels::of(&a, &b).unwrap().whole();
        let [low, high] = found.interval.unwrap();
        let sides = (high - estimate) / (estimate - low);
        assert!((0.5..2.0).contains(&sides), "{found:?}: {sides}");
    }

    #[test]
    fn sets_that_are_not_held_whole_are_seen_subset_by_subset() {
        let set = |n: usize, seed| {
            let values = Mt19937::new(seed).randn(n);
            Features::new(&Tensor::from_vec(values, [n, 1]).unwrap()).unwrap()
        };
        let (a, b) = (set(HELD + 1, 9), set(50, 10));
        let settings = KernelSettings { subsets: 1, resamples: 0, ..settings(40) };
        let found = distance(&a, &b, &settings).unwrap().mean;
        let mut draws = Draws::new(settings.seed);
        let (i, j) = (draws.permutation(HELD + 1), draws.permutation(50));
        let some = Kernels::of(&a.take(&i[..40]).unwrap(), &b.take(&j[..40]).unwrap()).unwrap();
        assert_eq!(found, some.whole());
        let expected = some.estimate(&(0..40).collect::<Vec<_>>(), &(0..40).collect::<Vec<_>>());
        assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} {expected}");
    }

    #[test]
    fn subsets_larger_than_a_set_are_refused() {
        let error = distance(&features(30, 0.0, 7), &features(40, 0.0, 8), &settings(31));
        let message = error.err().unwrap().to_string();
        assert!(message.contains("2 to 30"), "{message}");
    }
}
