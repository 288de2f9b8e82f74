//! The Frechet distance between two sets of features, taken to be normal: Heusel et al. 2017, "GANs Trained by a Two
//! Time-Scale Update Rule Converge to a Local Nash Equilibrium"; on features of InceptionV3 it is the Frechet Inception
//! distance. Reference: `torch_fidelity/metric_fid.py`.

use nalgebra::DMatrix;

use super::Features;
use super::features::require;
use crate::error::{Error, Result};
use crate::ops::matmul::matmul;
use crate::tensor::{DType, Tensor};

/// Rows that are centred and multiplied at a time.
const BLOCK: usize = 4096;

/// Mean and covariance of a set, in f64.
///
/// The covariance is kept as a factor A [R, D], AᵀA = covariance: that has as many rows as it has rank, and what depends
/// on small eigenvalues keeps its digits.
pub struct Statistics {
    count: usize,
    mean: Vec<f64>,
    factor: Tensor,
}

impl Statistics {
    /// Those of a set; the covariance is the unbiased one, by N - 1.
    ///
    /// # Errors
    /// `Argument` for a single picture, which has no covariance.
    pub fn of(features: &Features) -> Result<Self> {
        let (n, width) = (features.count(), features.width());
        require(n, 2)?;
        let mut mean = vec![0.0; width];
        for i in 0..n {
            mean.iter_mut().zip(features.row(i)).for_each(|(m, &x)| *m += f64::from(x));
        }
        mean.iter_mut().for_each(|m| *m /= n as f64);
        let scale = 1.0 / ((n - 1) as f64).sqrt();
        let centred = |rows: std::ops::Range<usize>| {
            let of = |i| {
                features.row(i).iter().zip(&mean).map(move |(&x, m)| (f64::from(x) - m) * scale)
            };
            let count = rows.len();
            Tensor::from_vec(rows.flat_map(of).collect(), [count, width])
        };
        let factor = if n <= width {
            centred(0..n)?
        } else {
            let mut covariance = vec![0.0; width * width];
            for start in (0..n).step_by(BLOCK) {
                let rows = centred(start..n.min(start + BLOCK))?;
                let part = matmul(&rows.transpose(0, 1)?, &rows)?; // [D, D]
                let part = part.as_slice::<f64>()?;
                covariance.iter_mut().zip(part).for_each(|(c, p)| *c += p);
            }
            cholesky(covariance, width)?
        };
        Ok(Self { count: n, mean, factor })
    }

    /// Pictures that they are of.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Trace of the covariance.
    fn trace(&self) -> Result<f64> {
        Ok(self.factor.as_slice::<f64>()?.iter().map(|x| x * x).sum())
    }

    /// |m - m'|² + tr(C + C' - 2 (C C')^½).
    ///
    /// With C = AᵀA and C' = BᵀB the trace of the root is the sum of the singular values of ABᵀ, which no root of a
    /// number near zero enters: it is as exact for covariances without full rank.
    ///
    /// # Errors
    /// `Shape` for features of different widths.
    pub fn distance(&self, other: &Self) -> Result<f64> {
        if self.mean.len() != other.mean.len() {
            let message = format!("features of {} and {}", self.mean.len(), other.mean.len());
            return Err(Error::shape("frechet distance", message));
        }
        let means: f64 = self.mean.iter().zip(&other.mean).map(|(a, b)| (a - b) * (a - b)).sum();
        let product = matmul(&self.factor, &other.factor.transpose(0, 1)?)?; // [R, R']
        let [rows, columns] = [product.dim(0), product.dim(1)];
        let product = DMatrix::from_row_slice(rows, columns, product.as_slice::<f64>()?);
        let Some(svd) = product.try_svd(false, false, f64::EPSILON, 0) else {
            return Err(Error::NotFinite("the covariances' product has no roots".into()));
        };
        let roots: f64 = svd.singular_values.iter().sum();
        let distance = means + self.trace()? + other.trace()? - 2.0 * roots;
        // It is not negative; differences of rounding are.
        Ok(distance.max(0.0))
    }
}

/// The Frechet distance between two sets.
///
/// # Errors
/// As [`Statistics`].
pub fn distance(a: &Features, b: &Features) -> Result<f64> {
    a.check(b, 2)?;
    Statistics::of(a)?.distance(&Statistics::of(b)?)
}

/// The factor [R, D] of a semidefinite `matrix` [D, D], by Cholesky's algorithm with the largest pivot first (Higham
/// 1990, "Analysis of the Cholesky decomposition of a semi-definite matrix"); it ends where what is left is rounding.
fn cholesky(matrix: Vec<f64>, n: usize) -> Result<Tensor> {
    let mut rows: Vec<f64> = Vec::new(); // [R, D]
    let mut left: Vec<f64> = (0..n).map(|i| matrix[i * n + i]).collect();
    let largest = |left: &[f64]| (0..n).max_by(|&a, &b| left[a].total_cmp(&left[b]));
    let least = largest(&left).map_or(0.0, |i| left[i]) * n as f64 * f64::EPSILON;
    let mut row = vec![0.0; n];
    while let Some(pivot) = largest(&left).filter(|&i| left[i] > least) {
        row.copy_from_slice(&matrix[pivot * n..][..n]);
        for before in rows.chunks_exact(n) {
            let factor = before[pivot];
            row.iter_mut().zip(before).for_each(|(x, b)| *x -= factor * b);
        }
        let root = row[pivot].max(least).sqrt();
        row.iter_mut().for_each(|x| *x /= root);
        left.iter_mut().zip(&row).for_each(|(left, x)| *left -= x * x);
        left[pivot] = 0.0;
        rows.extend_from_slice(&row);
    }
    let rank = rows.len() / n;
    if rank == 0 {
        return Tensor::zeros([1, n], DType::F64, crate::tensor::Device::Cpu);
    }
    Tensor::from_vec(rows, [rank, n])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Mt19937;

    fn features(n: usize, width: usize, seed: u64) -> Features {
        let rows = Tensor::from_vec(Mt19937::new(seed).randn(n * width), [n, width]).unwrap();
        Features::new(&rows).unwrap()
    }

    #[test]
    fn a_set_is_at_no_distance_from_itself() {
        // Fewer pictures than numbers, more, and more that lie in a plane.
        let flat: Vec<f32> = features(50, 2, 3)
            .values()
            .chunks(2)
            .flat_map(|x| [x[0], x[1], x[0] + x[1], 0.0, 7.0])
            .collect();
        let flat = Features::new(&Tensor::from_vec(flat, [50, 5]).unwrap()).unwrap();
        for set in [features(9, 33, 1), features(90, 33, 2), flat] {
            let found = distance(&set, &set).unwrap();
            assert!((0.0..=1e-6).contains(&found), "{found}");
        }
    }

    #[test]
    fn a_shift_is_its_square_and_a_scale_that_of_deviations() {
        let set = features(400, 3, 4);
        let moved = |f: fn(f32) -> f32| {
            let values: Vec<f32> = set.values().iter().map(|&x| f(x)).collect();
            Features::new(&Tensor::from_vec(values, [400, 3]).unwrap()).unwrap()
        };
        let found = distance(&set, &moved(|x| x + 2.0)).unwrap();
        assert!((found - 12.0).abs() <= 1e-5, "{found}");
        // tr(C + 9 C - 2 * 3 C) = 4 tr(C), and the means' part.
        let statistics = Statistics::of(&set).unwrap();
        let expected = 4.0 * statistics.trace().unwrap()
            + 4.0 * statistics.mean.iter().map(|m| m * m).sum::<f64>();
        let found = distance(&set, &moved(|x| 3.0 * x)).unwrap();
        assert!((found - expected).abs() <= 1e-5 * expected, "{found} {expected}");
    }

    #[test]
    fn pictures_beyond_a_block_count_as_those_within() {
        // All that is not 0 stands behind the first block; the other set is at 0 alone.
        let (n, rest) = (BLOCK + 904, 904u32);
        let at = |i: usize| if i < BLOCK { 0.0 } else { 1.0 - 2.0 * (i % 2) as f32 };
        let set = Tensor::from_vec((0..n).map(at).collect(), [n, 1]).unwrap();
        let none = Tensor::from_vec(vec![0f32; 3], [3, 1]).unwrap();
        let [set, none] = [set, none].map(|rows| Features::new(&rows).unwrap());
        let found = distance(&set, &none).unwrap();
        let expected = f64::from(rest) / (n - 1) as f64;
        assert!((found - expected).abs() <= 1e-12, "{found}, not {expected}");
    }

    #[test]
    fn a_factor_has_the_rank_of_its_matrix() {
        let rows = features(3, 7, 5).tensor().to_dtype(DType::F64).unwrap();
        let matrix = matmul(&rows.transpose(0, 1).unwrap(), &rows).unwrap();
        let factor = cholesky(matrix.to_vec().unwrap(), 7).unwrap();
        assert_eq!(factor.dims(), [3, 7]);
        let again = matmul(&factor.transpose(0, 1).unwrap(), &factor).unwrap();
        let values = |t: &Tensor| t.to_vec::<f64>().unwrap();
        let error = values(&again).into_iter().zip(values(&matrix)).map(|(a, b)| (a - b).abs());
        let error = error.fold(0.0, f64::max);
        assert!(error <= 1e-13, "{error}");
        assert_eq!(cholesky(vec![0.0; 4], 2).unwrap().to_vec::<f64>().unwrap(), [0.0; 2]);
    }

    #[test]
    fn one_picture_and_features_of_two_networks_are_refused() {
        let set = features(4, 3, 6);
        let error = distance(&features(1, 3, 7), &set).err().unwrap();
        assert!(error.to_string().contains("needs 2"), "{error}");
        assert!(matches!(distance(&set, &features(4, 5, 8)), Err(Error::Shape { .. })));
    }
}
