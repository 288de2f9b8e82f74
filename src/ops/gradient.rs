//! Gradients of a recorded computation (reverse-mode differentiation).
//!
//! ```
//! use nadir::ops::{elementwise::mul, gradient::backward, reduce::sum};
//! use nadir::tensor::Tensor;
//!
//! let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0], [3])?.variable();
//! let loss = sum(&mul(&x, &x)?, &[0])?;
//! let gradients = backward(loss)?;
//! assert_eq!(gradients.get(&x).unwrap().to_vec::<f32>()?, [2.0, 4.0, 6.0]);
//! # Ok::<(), nadir::Error>(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::elementwise::add;
use super::weight::Weight;
use super::{Grads, Meta, Op, Slot};
use crate::error::{Error, Result};
use crate::tensor::tape::{Backward, Node, Rule, no_grad};
use crate::tensor::{Device, Tensor};

/// What one recorded call kept, as the operation's `backward` sees it. Nothing in it is recorded itself.
pub(crate) struct Call {
    name: &'static str,
    inputs: Vec<Saved>,
    /// The result only if it was to be kept.
    outputs: Vec<Option<Tensor>>,
}

/// An input of a recorded call.
struct Saved {
    wanted: bool,
    /// `None`: the place was empty.
    meta: Option<Meta>,
    value: Value,
}

enum Value {
    Absent,
    Tensor(Tensor),
    Weight(Weight),
}

impl Call {
    /// Whether a gradient of input `i` is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.inputs[i].wanted
    }

    /// Shape and dtype of input `i`; `None`: the place was empty.
    pub fn meta(&self, i: usize) -> Option<Meta> {
        self.inputs[i].meta
    }

    /// The number of places.
    pub fn places(&self) -> usize {
        self.inputs.len()
    }

    /// Input `i`, a tensor that the operation [saves](Op::saves).
    ///
    /// # Errors
    /// `Value` when it was not saved.
    pub fn tensor(&self, i: usize) -> Result<&Tensor> {
        match &self.inputs[i].value {
            Value::Tensor(tensor) => Ok(tensor),
            _ => Err(self.not_kept("input", i)),
        }
    }

    /// Input `i`, a weight that the operation [saves](Op::saves).
    ///
    /// # Errors
    /// `Value` when it was not saved.
    pub fn weight(&self, i: usize) -> Result<&Weight> {
        match &self.inputs[i].value {
            Value::Weight(weight) => Ok(weight),
            _ => Err(self.not_kept("input", i)),
        }
    }

    /// Input `i`, a tensor that the operation saves, if the place was not empty.
    pub fn optional(&self, i: usize) -> Option<&Tensor> {
        self.tensor(i).ok()
    }

    /// Output `i`; the result, 0, only if the operation [saves](Op::saves) it.
    ///
    /// # Errors
    /// `Value` when it was not kept.
    pub fn output(&self, i: usize) -> Result<&Tensor> {
        self.outputs.get(i).and_then(Option::as_ref).ok_or_else(|| self.not_kept("output", i))
    }

    fn not_kept(&self, what: &str, i: usize) -> Error {
        Error::value(self.name, format!("its gradient reads {what} {i}, which it does not keep"))
    }
}

/// An operation together with its call.
struct Record<O> {
    op: O,
    call: Call,
}

impl<O: Op> Backward for Record<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn backward(&self, grad: &Tensor) -> Result<Grads> {
        self.op.backward(&self.call, grad)
    }
}

/// The node of a call that has just run.
pub(super) fn record<O: Op>(op: O, slots: &[Slot], outputs: &[Tensor]) -> Arc<Node> {
    let saves = op.saves();
    let save = |(i, slot): (usize, &Slot)| {
        let kept = saves.inputs.contains(&i);
        let (meta, value) = match slot {
            Slot::Empty => (None, Value::Absent),
            Slot::Tensor(t) if kept => (Some(Meta::like(t)), Value::Tensor(t.detach())),
            Slot::Tensor(t) => (Some(Meta::like(t)), Value::Absent),
            Slot::Weight(w) if kept => (Some(w.meta()), Value::Weight((*w).clone())),
            Slot::Weight(w) => (Some(w.meta()), Value::Absent),
        };
        Saved { wanted: slot.node().is_some(), meta, value }
    };
    let call = Call {
        name: op.name(),
        inputs: slots.iter().enumerate().map(save).collect(),
        outputs: outputs
            .iter()
            .enumerate()
            .map(|(i, t)| (i > 0 || saves.result).then(|| t.detach()))
            .collect(),
    };
    let nodes = slots.iter().map(|slot| slot.node().cloned()).collect();
    Node::new(nodes, Rule::Call(Box::new(Record { op, call })))
}

/// Gradients of the variables of a computation.
#[derive(Default)]
pub struct Gradients(HashMap<u64, Tensor>);

impl Gradients {
    /// That of `variable`: a tensor made by [`Tensor::variable`], or its clone. `None` when the computation did not
    /// use it.
    pub fn get(&self, variable: &Tensor) -> Option<&Tensor> {
        self.0.get(&variable.node()?.number())
    }

    /// As [`Self::get`], giving it away.
    pub fn take(&mut self, variable: &Tensor) -> Option<Tensor> {
        self.0.remove(&variable.node()?.number())
    }
}

/// Gradients of a single number, such as a loss, by every variable that it was computed from.
///
/// What the computation kept is let go of on the way, as far as no other tensor holds it: hence by value.
///
/// # Errors
/// `Shape` unless `output` has one element, `Value` when no variable is behind it, `NoGradient` when an operation
/// on the way has none.
pub fn backward(output: Tensor) -> Result<Gradients> {
    let one = one_like(&output)?;
    backward_from(output, one)
}

/// The gradient of a single number by itself.
fn one_like(output: &Tensor) -> Result<Tensor> {
    if output.len() != 1 {
        return Err(Error::expected_shape("backward", "output", "one element", output.shape()));
    }
    Tensor::full(*output.shape(), 1.0, output.dtype(), output.device())
}

/// As [`backward`], adding to gradients that are there already.
///
/// # Errors
/// As [`backward`].
pub fn backward_into(output: Tensor, gradients: &mut Gradients) -> Result<()> {
    let one = one_like(&output)?;
    start(output, one, gradients)
}

/// As [`backward`], given the gradient `grad` of `output`, of its shape, dtype and device.
///
/// # Errors
/// `Shape`, `DType` or `Device` when `grad` does not fit, and as [`backward`].
pub fn backward_from(output: Tensor, grad: Tensor) -> Result<Gradients> {
    let mut gradients = Gradients::default();
    start(output, grad, &mut gradients)?;
    Ok(gradients)
}

fn start(output: Tensor, grad: Tensor, gradients: &mut Gradients) -> Result<()> {
    const OP: &str = "backward";
    if grad.shape() != output.shape() {
        return Err(Error::expected_shape(OP, "grad", &output.shape().to_string(), grad.shape()));
    }
    if grad.dtype() != output.dtype() {
        return Err(Error::DType { op: OP, expected: output.dtype().name(), found: grad.dtype() });
    }
    if grad.device() != output.device() {
        return Err(Error::Device { op: OP, a: output.device(), b: grad.device() });
    }
    let Some(root) = output.node().cloned() else {
        return Err(Error::value(OP, "no variable is behind this tensor"));
    };
    drop(output);
    // Nobody differentiates a gradient.
    no_grad(|| walk(root, grad.detach(), gradients))
}

/// Nodes by number, each with what is known of its gradient.
type Pending = BTreeMap<u64, (Arc<Node>, Tensor)>;

fn walk(root: Arc<Node>, grad: Tensor, gradients: &mut Gradients) -> Result<()> {
    let mut pending = Pending::new();
    give(&mut pending, gradients, &root, grad)?;
    drop(root);
    // A node comes after all that were made from it, so its gradient is complete.
    while let Some((_, (node, grad))) = pending.pop_last() {
        match node.rule() {
            Rule::Variable => {}
            Rule::Call(call) => {
                let grads = call.backward(&grad)?;
                drop(grad);
                for (input, grad) in node.inputs().iter().zip(grads) {
                    if let (Some(input), Some(grad)) = (input, grad) {
                        give(&mut pending, gradients, input, grad)?;
                    }
                }
            }
            // Its calls are younger than all that is pending: they come next, in the order in which they would have
            // come had they been recorded at once, so that no sum is taken in another.
            Rule::Segment(segment) => {
                let output = node.record(segment)?;
                if let Some(node) = output.node().cloned() {
                    drop(output);
                    give(&mut pending, gradients, &node, grad)?;
                }
            }
        }
    }
    Ok(())
}

/// Adds to the gradient of a node. Those of variables, which are the oldest nodes, do not wait until all others are done:
/// where gradients are there already, they would be held twice.
fn give(
    pending: &mut Pending,
    gradients: &mut Gradients,
    node: &Arc<Node>,
    grad: Tensor,
) -> Result<()> {
    let number = node.number();
    let is_variable = matches!(node.rule(), Rule::Variable);
    let before = match is_variable {
        true => gradients.0.remove(&number),
        false => pending.remove(&number).map(|(_, before)| before),
    };
    let sum = match before {
        Some(before) => add(&before, &grad)?,
        None => grad,
    };
    match is_variable {
        true => gradients.0.insert(number, sum).map(drop),
        false => pending.insert(number, (node.clone(), sum)).map(drop),
    };
    Ok(())
}

/// A tensor of zeros of this shape and dtype.
pub(super) fn zeros(meta: Meta, device: Device) -> Result<Tensor> {
    Tensor::zeros(meta.shape, meta.dtype, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::{mul, scale, silu};
    use crate::ops::reduce::sum;
    use crate::ops::testing::random;
    use crate::tensor::{DType, in_use};

    fn total(t: &Tensor) -> Tensor {
        sum(t, &(0..t.rank()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn paths_add_up_and_unused_variables_have_no_gradient() {
        let (x, unused) = (random([3, 4], 1).variable(), random([3, 4], 2).variable());
        // x + x^2 + 2 x, each path of another length.
        let y = add(&add(&x, &mul(&x, &x).unwrap()).unwrap(), &scale(&x, 2.0).unwrap()).unwrap();
        let mut gradients = backward(total(&y)).unwrap();
        let expected: Vec<f32> = x.to_vec::<f32>().unwrap().iter().map(|x| 3.0 + 2.0 * x).collect();
        let gradient = gradients.take(&x).unwrap().to_vec::<f32>().unwrap();
        for (got, expected) in gradient.iter().zip(expected) {
            // Three roundings of numbers below 8.
            assert!((got - expected).abs() <= 3.0 * 4.0 * f32::EPSILON, "{got} {expected}");
        }
        assert!(gradients.get(&x).is_none() && gradients.get(&unused).is_none());
    }

    /// Gradients that are there already are added to one by one.
    #[test]
    fn gradients_that_are_added_up_are_held_once() {
        let len = 1 << 16;
        let all: Vec<Tensor> = (0..16).map(|seed| random([len], seed).variable()).collect();
        let squares = || {
            let parts = all.iter().map(|x| total(&mul(x, x).unwrap()));
            parts.reduce(|a, b| add(&a, &b).unwrap()).unwrap()
        };
        let mut gradients = backward(squares()).unwrap();
        let before = in_use::now();
        let (most, ()) = in_use::most(|| backward_into(squares(), &mut gradients).unwrap());
        // A few vectors on the way, not sixteen.
        assert!(most - before < 8 * 4 * len as isize, "{}", most - before);
        for x in &all {
            let expected: Vec<f32> = x.to_vec::<f32>().unwrap().iter().map(|x| 4.0 * x).collect();
            assert_eq!(gradients.get(x).unwrap().to_vec::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn nothing_is_recorded_where_nobody_asks() {
        let (x, y) = (random([3], 1), random([3], 2).variable());
        assert!(!silu(&x).unwrap().requires_grad());
        assert!(silu(&y).unwrap().requires_grad());
        assert!(!silu(&y.detach()).unwrap().requires_grad());
        let inside = no_grad(|| (silu(&y).unwrap(), y.narrow(0, 0, 2).unwrap()));
        assert!(!inside.0.requires_grad() && !inside.1.requires_grad());
        assert!(y.narrow(0, 0, 2).unwrap().requires_grad());
        // A panic inside leaves recording on.
        let caught = std::panic::catch_unwind(|| no_grad(|| panic!("inside")));
        assert!(caught.is_err() && silu(&y).unwrap().requires_grad());
        // Gradients are not recorded themselves.
        let gradients = backward(total(&mul(&y, &y).unwrap())).unwrap();
        assert!(!gradients.get(&y).unwrap().requires_grad());
    }

    #[test]
    fn a_long_chain_fits_the_stack() {
        // Dropped inside each other, so many nodes would need some 20 MiB of it.
        let x = random([1], 1).variable();
        let chain = |n| (0..n).fold(x.clone(), |y, _| scale(&y, 1.0).unwrap());
        drop(chain(200_000));
        let gradients = backward(total(&chain(200_000))).unwrap();
        assert_eq!(gradients.get(&x).unwrap().to_vec::<f32>().unwrap(), [1.0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random([2], 1).variable();
        assert!(matches!(backward(x.clone()), Err(Error::Shape { .. })));
        let constant = backward(random([1], 1)).err().unwrap();
        assert!(matches!(&constant, Error::Value { .. }), "{constant}");
        let grad = |shape: &[usize], dtype| random(shape, 2).to_dtype(dtype).unwrap();
        let refused = backward_from(x.clone(), grad(&[3], DType::F32));
        assert!(matches!(refused, Err(Error::Shape { .. })));
        let refused = backward_from(x, grad(&[2], DType::F64));
        assert!(matches!(refused, Err(Error::DType { found: DType::F64, .. })));
    }
}
