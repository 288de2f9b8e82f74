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

    /// The number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// Strides in elements of a contiguous tensor of this shape.
    pub fn contiguous_strides(&self) -> Self {
        let mut strides = *self;
        let mut step = 1;
        for i in (0..self.len()).rev() {
            strides.dims[i] = step;
            step *= self.dims[i];
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
