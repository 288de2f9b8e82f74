//! Other shapes of the same memory: [`Tensor::reshape`], [`Tensor::permute`], [`Tensor::transpose`] and
//! [`Tensor::narrow`]; and [`Tensor::to_device`], which moves it.
//!
//! A view computes nothing, so it is no `Op`; the tape records it all the same.

use super::gradient::zeros;
use super::layout::concat;
use super::{Grads, Meta};
use crate::error::{Error, Result};
use crate::tensor::tape::{self, Backward, Node, Rule};
use crate::tensor::{Device, MAX_RANK, Shape, Tensor};

/// How a tensor was seen anew.
enum View {
    Reshape,
    /// Dimension `i` of the view is dimension `order[i]` of the tensor.
    Permute(Shape),
    Narrow {
        dim: usize,
        start: usize,
    },
    ToDevice,
}

/// A view that was recorded: of what.
struct Record {
    view: View,
    of: Meta,
    device: Device,
}

impl Backward for Record {
    fn name(&self) -> &'static str {
        match self.view {
            View::Reshape => "reshape",
            View::Permute(_) => "permute",
            View::Narrow { .. } => "narrow",
            View::ToDevice => "to_device",
        }
    }

    fn backward(&self, grad: &Tensor) -> Result<Grads> {
        let grad = match &self.view {
            View::Reshape => grad.reshape(self.of.shape)?,
            View::Permute(order) => {
                let mut back = *order;
                order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
                grad.permute(&back)?
            }
            &View::Narrow { dim, start } => {
                let end = start + grad.dim(dim);
                let part = |length| {
                    let shape = self.of.shape.with(dim, length);
                    zeros(Meta { shape, dtype: grad.dtype() }, self.device)
                };
                concat(&[&part(start)?, grad, &part(self.of.shape[dim] - end)?], dim)?
            }
            View::ToDevice => grad.to_device(self.device)?,
        };
        Ok(vec![Some(grad)])
    }
}

// Views.
impl Tensor {
    /// `seen`, recorded as a view of this tensor where a gradient is wanted.
    fn seen_as(&self, seen: Self, view: View) -> Self {
        match self.node() {
            Some(node) if tape::is_recording() => {
                let record = Record { view, of: Meta::like(self), device: self.device() };
                seen.with_node(Node::new(vec![Some(node.clone())], Rule::Call(Box::new(record))))
            }
            _ => seen,
        }
    }

    /// The same elements in another shape; copies only when the view is not contiguous.
    ///
    /// # Errors
    /// `Shape` when the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.elements() != self.len() {
            return Err(Error::shape("reshape", format!("{} into {shape}", self.shape())));
        }
        let t = self.contiguous()?;
        Ok(t.seen_as(t.with_layout(shape, shape.contiguous_strides(), t.offset()), View::Reshape))
    }

    /// The dimensions in another order: dimension `i` of the result is dimension `order[i]` of this.
    ///
    /// # Errors
    /// `Shape` when `order` is not a permutation.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut seen = [false; MAX_RANK];
        let valid = order.len() == self.rank()
            && order.iter().all(|&i| i < self.rank() && !std::mem::replace(&mut seen[i], true));
        if !valid {
            return Err(Error::shape("permute", format!("{order:?} of {}", self.shape())));
        }
        let (mut shape, mut strides) = (*self.shape(), *self.shape());
        for (to, &from) in order.iter().enumerate() {
            shape[to] = self.dim(from);
            strides[to] = self.strides()[from];
        }
        let seen = self.with_layout(shape, strides, self.offset());
        Ok(self.seen_as(seen, View::Permute(order.into())))
    }

    /// Two dimensions swapped.
    ///
    /// # Errors
    /// `Shape` when there are no such dimensions.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        if a.max(b) >= self.rank() {
            return Err(Error::shape(
                "transpose",
                format!("dimensions {a} and {b} of {}", self.shape()),
            ));
        }
        let mut order: Vec<usize> = (0..self.rank()).collect();
        order.swap(a, b);
        self.permute(&order)
    }

    /// The part `start..start + len` of dimension `dim`.
    ///
    /// # Errors
    /// `Shape` when it reaches past the end.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        let length = self.dims().get(dim).copied();
        let fits = |length| start.checked_add(len).is_some_and(|end| end <= length);
        if !length.is_some_and(fits) {
            return Err(Error::shape(
                "narrow",
                format!("{start} + {len} of dimension {dim} of {}", self.shape()),
            ));
        }
        let offset = self.offset() + start * self.strides()[dim];
        let seen = self.with_layout(self.shape().with(dim, len), self.strides().into(), offset);
        Ok(self.seen_as(seen, View::Narrow { dim, start }))
    }

    /// A copy on another device; itself when it is there already.
    ///
    /// # Errors
    /// `Cuda` when the device is not there or out of memory.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        if self.device() == device {
            return Ok(self.clone());
        }
        Ok(self.seen_as(self.copied_to(device)?, View::ToDevice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::add;
    use crate::ops::testing::{check_gradient, random, shapes};

    fn iota(shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        Tensor::from_vec((0..shape.elements()).map(|i| i as f32).collect(), shape).unwrap()
    }

    #[test]
    fn views_address_the_right_elements() {
        let t = iota([2, 3, 5]);
        let v = t.permute(&[2, 0, 1]).unwrap().narrow(0, 1, 3).unwrap().narrow(2, 1, 2).unwrap(); // [3, 2, 2]
        assert!(!v.is_contiguous());
        let expected: Vec<f32> = (1..4)
            .flat_map(|k| {
                (0..2).flat_map(move |i| (1..3).map(move |j| (i * 15 + j * 5 + k) as f32))
            })
            .collect();
        assert_eq!(v.to_vec::<f32>().unwrap(), expected);
        assert_eq!(v.reshape([12]).unwrap().as_slice::<f32>().unwrap(), expected);
    }

    #[test]
    fn large_strided_copies_equal_small_ones() {
        let t = iota([7, 65, 131]);
        let v = t.transpose(1, 2).unwrap().to_vec::<f32>().unwrap(); // [7, 131, 65]
        for (i, &x) in v.iter().enumerate() {
            let (b, rest) = (i / (131 * 65), i % (131 * 65));
            assert_eq!(x, (b * 131 * 65 + rest % 65 * 131 + rest / 65) as f32);
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for shape in [[1, 1, 1], [2, 3, 5], [7, 4, 33]].into_iter().chain(shapes()) {
            let x = [random(shape, 41)];
            let all: usize = shape.iter().product();
            check_gradient("reshape", &x, |x| x[0].reshape([all]));
            check_gradient("reshape of a view", &x, |x| x[0].transpose(0, 2)?.reshape([all]));
            check_gradient("permute", &x, |x| x[0].permute(&[2, 0, 1]));
            check_gradient("transpose", &x, |x| x[0].transpose(1, 2)?.contiguous());
            for (dim, length) in shape.into_iter().enumerate() {
                let (start, len) = (length / 3, length - length / 3);
                check_gradient("narrow", &x, |x| x[0].narrow(dim, start, len));
                // Parts that overlap: what is seen twice counts twice.
                check_gradient("narrow twice", &x, |x| {
                    add(&x[0].narrow(dim, 0, len)?, &x[0].narrow(dim, start, len)?)
                });
            }
        }
    }

    #[test]
    fn wrong_requests_are_errors() {
        let t = iota([2, 3]);
        for result in [
            t.reshape([7]),
            t.permute(&[0, 0]),
            t.permute(&[0]),
            t.permute(&[0, 2]),
            t.transpose(0, 2),
            t.narrow(1, 2, 2),
            t.narrow(2, 0, 1),
            t.narrow(1, usize::MAX, 2),
        ] {
            let error = result.err().unwrap();
            assert!(
                matches!(error, Error::Shape { .. }) && error.to_string().contains("[2, 3]"),
                "{error}"
            );
        }
    }
}
