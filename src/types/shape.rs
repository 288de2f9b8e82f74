//! Shapes of up to six dimensions, held without an allocation.

use std::fmt;
use std::ops::Deref;

/// The most dimensions a tensor has.
pub const MAX_RANK: usize = 6;

/// Lengths (or strides) of a tensor's dimensions, outermost first. Dereferences to `[usize]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// A shape from its dimensions.
    ///
    /// # Panics
    /// With more than [`MAX_RANK`] dimensions: no operation of nadir makes such a shape, and files are
    /// checked before they come here.
    pub fn new(dims: &[usize]) -> Self {
        assert!(
            dims.len() <= MAX_RANK,
            "a tensor has at most {MAX_RANK} dimensions, not {}",
            dims.len()
        );
        let mut held = [0; MAX_RANK];
        held[..dims.len()].copy_from_slice(dims);
        Self { rank: dims.len() as u8, dims: held }
    }

    /// The number of elements; 1 for a scalar. `usize::MAX` when it is larger.
    pub fn elements(&self) -> usize {
        let product = |n: usize, &d: &usize| n.saturating_mul(d);
        if self.contains(&0) { 0 } else { self.iter().fold(1, product) }
    }

    /// Strides in elements of a contiguous tensor of this shape.
    pub fn contiguous_strides(&self) -> Self {
        let mut strides = *self;
        let mut step = 1;
        for i in (0..self.len()).rev() {
            strides.dims[i] = step;
            step = usize::saturating_mul(step, self.dims[i]);
        }
        strides
    }

    /// This shape with dimension `i` set to `n`.
    pub fn with(mut self, i: usize, n: usize) -> Self {
        self[i] = n;
        self
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }
}

impl std::ops::DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.dims[..self.rank as usize]
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self::new(dims)
    }
}

impl From<&Vec<usize>> for Shape {
    fn from(dims: &Vec<usize>) -> Self {
        Self::new(dims)
    }
}

impl From<&Shape> for Shape {
    fn from(s: &Shape) -> Self {
        *s
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(&dims)
    }
}

impl<const N: usize> From<&[usize; N]> for Shape {
    fn from(dims: &[usize; N]) -> Self {
        Self::new(dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_the_address_space_saturate() {
        let huge = usize::MAX / 2;
        assert_eq!(Shape::from([huge, 3]).elements(), usize::MAX);
        assert_eq!(Shape::from([huge, 3, 0]).elements(), 0);
        assert_eq!(*Shape::from([2, huge, 3]).contiguous_strides(), [usize::MAX, 3, 1]);
        assert_eq!(Shape::from([]).elements(), 1);
    }
}
