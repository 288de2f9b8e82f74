//! What a network sees in pictures.

use crate::error::{Error, Result};
use crate::ops::matmul::matmul;
use crate::tensor::{DType, Device, Tensor};

/// Rows [N, D], one a picture.
#[derive(Clone)]
pub struct Features {
    rows: Tensor,
}

impl Features {
    /// Takes `rows` [N, D] of floats, which come to the CPU in f32.
    ///
    /// # Errors
    /// `Shape` when it is no matrix or has no element, `NotFinite` with the first row that holds NaN or infinity.
    pub fn new(rows: &Tensor) -> Result<Self> {
        if rows.rank() != 2 || rows.is_empty() {
            let expected = "[N, D], N and D above 0";
            return Err(Error::expected_shape("features", "rows", expected, rows.shape()));
        }
        let rows = rows.to_device(Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let features = Self { rows };
        let broken = |i: &usize| features.row(*i).iter().any(|x| !x.is_finite());
        match (0..features.count()).find(broken) {
            Some(i) => Err(Error::NotFinite(format!(
                "the features of picture {} are not finite: are the network's weights whole?",
                i + 1
            ))),
            None => Ok(features),
        }
    }

    /// Number of pictures.
    pub fn count(&self) -> usize {
        self.rows.dim(0)
    }

    /// Numbers that a picture is described by.
    pub fn width(&self) -> usize {
        self.rows.dim(1)
    }

    /// [N, D], f32.
    pub fn tensor(&self) -> &Tensor {
        &self.rows
    }

    /// A picture's numbers.
    pub fn row(&self, i: usize) -> &[f32] {
        let width = self.width();
        &self.values()[i * width..][..width]
    }

    /// All numbers, row by row.
    pub fn values(&self) -> &[f32] {
        self.rows.as_slice().unwrap_or_default()
    }

    /// The rows `places`, in that order.
    pub(super) fn take(&self, places: &[usize]) -> Result<Self> {
        let values: Vec<f32> = places.iter().flat_map(|&i| self.row(i)).copied().collect();
        Ok(Self { rows: Tensor::from_vec(values, [places.len(), self.width()])? })
    }

    /// Checks that both are by one network, as far as that shows, and have `least` pictures each.
    pub(super) fn check(&self, other: &Self, least: usize) -> Result<()> {
        if self.width() != other.width() {
            let expected = format!("[N, {}] as the others", self.width());
            return Err(Error::expected_shape("metric", "features", &expected, other.rows.shape()));
        }
        require(self.count(), least)?;
        require(other.count(), least)
    }

    /// The products of rows `range` with all rows of `other`, in f64: [rows, N'].
    pub(super) fn products(&self, range: std::ops::Range<usize>, other: &Self) -> Result<Tensor> {
        let part = self.rows.narrow(0, range.start, range.len())?.to_dtype(DType::F64)?;
        matmul(&part, &other.rows.to_dtype(DType::F64)?.transpose(0, 1)?)
    }
}

/// Checks that there are `least` pictures.
pub(super) fn require(count: usize, least: usize) -> Result<()> {
    if count < least {
        let expected = format!("this metric needs {least} at least");
        return Err(Error::argument("pictures", count, expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_matrix_of_finite_numbers_is_refused() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Device::Cpu).unwrap();
        assert!(matches!(Features::new(&zeros(&[3])), Err(Error::Shape { .. })));
        assert!(matches!(Features::new(&zeros(&[0, 3])), Err(Error::Shape { .. })));
        let rows = Tensor::from_vec(vec![0f32, 1.0, 2.0, f32::NAN], [2, 2]).unwrap();
        let message = Features::new(&rows).err().unwrap().to_string();
        assert!(message.contains("picture 2"), "{message}");
    }
}
