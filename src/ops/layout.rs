//! Putting tensors together and taking them apart. Views (`narrow`, `permute`, `reshape`) are methods of
//! [`Tensor`]; here is what needs a copy.

use super::gradient::Call;
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::cpu::parallel::for_each_row;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Element, Tensor};

/// Tensors one after the other along dimension `dim`; all other dimensions and the dtype are equal.
///
/// # Errors
/// `Shape` when there is no tensor, no such dimension, or another dimension differs; `DType` when the
/// dtypes differ.
pub fn concat(tensors: &[&Tensor], dim: usize) -> Result<Tensor> {
    match tensors {
        [one] if dim < one.rank() => Ok((*one).clone()),
        _ => apply(Concat { dim }, &super::tensors(tensors)),
    }
}

/// Consecutive parts of dimension `dim` with the given lengths, as views.
///
/// # Errors
/// `Shape` when there is no such dimension or the lengths do not add up to it.
pub fn split(x: &Tensor, dim: usize, lengths: &[usize]) -> Result<Vec<Tensor>> {
    let total = lengths.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    if dim >= x.rank() || total != Some(x.dim(dim)) {
        return Err(Error::shape(
            "split",
            format!("dimension {dim} of {} into parts of {lengths:?}", x.shape()),
        ));
    }
    let mut start = 0;
    lengths
        .iter()
        .map(|&len| {
            start += len;
            x.narrow(dim, start - len, len)
        })
        .collect()
}

impl Tensor {
    /// The same elements in row-major order without gaps; itself when it is so already.
    ///
    /// # Errors
    /// `OutOfMemory` when there is no room for the copy.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() { Ok(self.clone()) } else { apply(Contiguous, &tensors(&[self])) }
    }
}

/// [`Tensor::contiguous`]
#[derive(Clone, Copy, Debug)]
struct Contiguous;

impl Op for Contiguous {
    fn name(&self) -> &'static str {
        "contiguous"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        inputs[0].copy_into(&mut outputs[0])
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        // A strided copy on the device is a kernel of its own; until it is there the host arranges it.
        let x = &inputs[0];
        outputs[0] = x.to_device(Device::Cpu)?.contiguous()?.to_device(x.device())?;
        Ok(())
    }

    fn backward(&self, _: &Call, grad: &Tensor) -> Result<Grads> {
        Ok(vec![Some(grad.clone())])
    }
}

/// [`concat()`].
#[derive(Clone, Copy, Debug)]
struct Concat {
    /// The dimension along which the tensors are put together.
    pub dim: usize,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let mut inputs = inputs.tensors();
        let first = inputs.next().ok_or_else(|| Error::shape("concat", "no tensor was given"))?;
        let mut meta = Meta::like(first);
        if self.dim >= first.rank() {
            return Err(Error::shape(
                "concat",
                format!("dimension {} of {}", self.dim, first.shape()),
            ));
        }
        for t in inputs {
            let fits = t.rank() == first.rank()
                && t.shape().with(self.dim, first.dim(self.dim)) == *first.shape();
            if !fits {
                return Err(Error::shape(
                    "concat",
                    format!("{} and {} along dimension {}", first.shape(), t.shape(), self.dim),
                ));
            }
            if t.dtype() != first.dtype() {
                return Err(Error::DType {
                    op: "concat",
                    expected: first.dtype().name(),
                    found: t.dtype(),
                });
            }
            meta.shape[self.dim] += t.dim(self.dim);
        }
        Ok(vec![meta])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        match out.dtype() {
            DType::F32 => self.copy::<f32>(inputs, out),
            DType::F16 => self.copy::<half::f16>(inputs, out),
            DType::BF16 => self.copy::<half::bf16>(inputs, out),
            DType::F64 => self.copy::<f64>(inputs, out),
            DType::I64 => self.copy::<i64>(inputs, out),
            DType::U32 => self.copy::<u32>(inputs, out),
            DType::U8 => self.copy::<u8>(inputs, out),
        }
    }

    fn cuda(&self, _: &Inputs, _: &mut [Tensor]) -> Result<()> {
        Err(Error::no_kernel(self.name()))
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let mut start = 0;
        let part = |i| {
            let length = call.meta(i).map_or(0, |meta| meta.shape[self.dim]);
            start += length;
            let part = || grad.narrow(self.dim, start - length, length);
            call.wants(i).then(part).transpose()
        };
        (0..call.places()).map(part).collect()
    }
}

impl Concat {
    fn copy<T: Element>(&self, inputs: &Inputs, out: &mut Tensor) -> Result<()> {
        let inputs: Vec<Tensor> =
            inputs.tensors().map(Tensor::contiguous).collect::<Result<_>>()?;
        // A tensor is a matrix here: what lies before `dim` are rows, the rest is columns.
        let columns = |t: &Tensor| t.dims()[self.dim..].iter().product::<usize>();
        let width = columns(out);
        let parts: Vec<(&[T], usize)> =
            inputs.iter().map(|t| Ok((t.as_slice::<T>()?, columns(t)))).collect::<Result<_>>()?;
        for_each_row(out.as_mut_slice::<T>()?, width, |i, row| {
            let mut at = 0;
            for &(part, n) in &parts {
                row[at..at + n].copy_from_slice(&part[i * n..(i + 1) * n]);
                at += n;
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, random, strided};
    use crate::tensor::Shape;

    #[test]
    fn parts_of_a_tensor_make_it_again() {
        let x = random([3, 5, 7, 2], 1);
        for (dim, lengths) in [(0, vec![1, 2]), (1, vec![2, 0, 3]), (2, vec![7]), (3, vec![1, 1])] {
            let parts = split(&x, dim, &lengths).unwrap();
            let again = concat(&parts.iter().collect::<Vec<_>>(), dim).unwrap();
            assert_eq!(again.to_vec::<f32>().unwrap(), x.to_vec::<f32>().unwrap(), "dim {dim}");
            let views: Vec<Tensor> =
                parts.iter().map(|p| if p.is_empty() { p.clone() } else { strided(p) }).collect();
            let again = concat(&views.iter().collect::<Vec<_>>(), dim).unwrap();
            assert_eq!(
                again.to_vec::<f32>().unwrap(),
                x.to_vec::<f32>().unwrap(),
                "dim {dim}, views"
            );
        }
    }

    #[test]
    fn every_dtype_is_copied() {
        let a = Tensor::from_vec(vec![1i64, 2], [1, 2]).unwrap();
        let b = Tensor::from_vec(vec![3i64], [1, 1]).unwrap();
        assert_eq!(concat(&[&a, &b], 1).unwrap().to_vec::<i64>().unwrap(), [1, 2, 3]);
        let a = Tensor::from_vec(vec![1u8, 2], [2, 1]).unwrap();
        assert_eq!(concat(&[&a, &a], 0).unwrap().to_vec::<u8>().unwrap(), [1, 2, 1, 2]);
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for dim in 0..3 {
            let part = |length, seed| random(Shape::from([2, 3, 5]).with(dim, length), seed);
            let parts = [part(1, 51), part(4, 52), part(2, 53)];
            check_gradient("concat", &parts, |x| concat(x, dim));
            check_gradient("concat with itself", &parts[..1], |x| concat(&[x[0], x[0]], dim));
            check_gradient("split", &parts[1..2], |x| {
                let parts = split(x[0], dim, &[1, 3])?;
                concat(&[&parts[1], &parts[0]], dim)
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (a, b) = (random([2, 3], 1), random([2, 4], 2));
        assert!(concat(&[&a, &b], 0).is_err());
        assert!(concat(&[&a, &b], 2).is_err());
        assert!(concat(&[&a], 2).is_err());
        assert!(concat(&[], 0).is_err());
        assert!(concat(&[&a, &b.to_dtype(DType::F16).unwrap()], 1).is_err());
        assert!(concat(&[&a, &random([2], 1)], 1).is_err());
        assert!(split(&a, 1, &[1, 1]).is_err());
        assert!(split(&a, 2, &[3]).is_err());
        assert!(split(&a, 1, &[usize::MAX, 4]).is_err());
    }
}
