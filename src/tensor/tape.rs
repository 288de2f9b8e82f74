//! What a tensor remembers of how it was made, so that gradients find their way back.
//!
//! A tensor that [`Tensor::variable`] made, and every result of an operation on one, holds a [`Node`]: which
//! nodes it was made from, and how its gradient becomes theirs. A node is made after all those it was made
//! from, so nodes in falling order of their numbers are an order in which gradients can be passed back.
//! Nodes keep what their gradients need; they live as long as a tensor, or a younger node, refers to them.
//!
//! A [segment](checkpoint) of a computation is one node that keeps nothing but its inputs: it is computed again, and
//! recorded then, when its gradient is asked for (Chen et al. 2016).

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::LocalKey;

use super::Tensor;
use crate::error::Result;

/// Turns the gradient of an operation's result into those of its inputs.
pub trait Backward: Send + Sync {
    /// The name that errors and profiles show.
    fn name(&self) -> &'static str;

    /// The gradient of each input, given that of the result. `None`: the input has none.
    ///
    /// # Errors
    /// `NoGradient` where it is not written yet, and whatever its own operations answer.
    fn backward(&self, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// How a tensor was made.
pub struct Node {
    number: u64,
    /// Of the operation's inputs: `None` for those that no gradient is wanted of.
    inputs: Vec<Option<Arc<Node>>>,
    rule: Rule,
}

/// Where the gradient of a node goes.
pub(crate) enum Rule {
    /// To a variable: gradients end here.
    Variable,
    /// To the inputs of an operation.
    Call(Box<dyn Backward>),
    /// To what a segment is made of, once it is recorded.
    Segment(Segment),
}

/// Makes the result of a segment from its inputs.
type Compute = dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync;

/// A part of a computation that was not recorded, and its inputs without their nodes.
pub(crate) struct Segment {
    compute: Box<Compute>,
    inputs: Vec<Tensor>,
}

impl Node {
    pub(crate) fn new(inputs: Vec<Option<Arc<Node>>>, rule: Rule) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { number: NEXT.fetch_add(1, Ordering::Relaxed), inputs, rule })
    }

    /// Larger than that of every node it was made from.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn inputs(&self) -> &[Option<Arc<Node>>] {
        &self.inputs
    }

    pub(crate) fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The result of `segment`, which this node stands for, recorded. Its calls are younger than any before them.
    pub(crate) fn record(&self, segment: &Segment) -> Result<Tensor> {
        let inputs = segment.inputs.iter().zip(&self.inputs);
        let inputs: Vec<Tensor> = inputs
            .map(|(input, node)| match node {
                Some(node) => input.clone().with_node(node.clone()),
                None => input.clone(),
            })
            .collect();
        with(&RECORDING, true, || (segment.compute)(&inputs))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.rule {
            Rule::Variable => "variable",
            Rule::Call(call) => call.name(),
            Rule::Segment(_) => "segment",
        };
        write!(f, "{name} {}", self.number)
    }
}

impl Drop for Node {
    /// A chain of nodes goes one by one: dropped inside each other, a long one would overflow the stack.
    fn drop(&mut self) {
        let mut rest = std::mem::take(&mut self.inputs);
        while let Some(node) = rest.pop() {
            if let Some(mut last) = node.and_then(Arc::into_inner) {
                rest.append(&mut last.inputs);
            }
        }
    }
}

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
    static CHECKPOINTING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` while a setting of this thread has another value.
fn with<R>(setting: &'static LocalKey<Cell<bool>>, value: bool, f: impl FnOnce() -> R) -> R {
    struct Restore(&'static LocalKey<Cell<bool>>, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(setting, setting.replace(value));
    f()
}

/// Whether this thread's operations on variables are recorded.
pub(crate) fn is_recording() -> bool {
    RECORDING.get()
}

/// Runs `f` without recording: its results have no gradient, and nothing is kept for one.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    with(&RECORDING, false, f)
}

/// Runs `f`, in which every [`checkpoint`] of this thread keeps its inputs alone.
pub fn checkpointing<R>(f: impl FnOnce() -> R) -> R {
    with(&CHECKPOINTING, true, f)
}

/// Whether this thread keeps nothing but inputs of segments.
pub(crate) fn is_checkpointing() -> bool {
    is_recording() && CHECKPOINTING.get()
}

/// `compute(inputs)`, a segment of a computation. Within [`checkpointing`] it is not recorded: it keeps its inputs, and
/// is computed again for its gradients, which have the bits of those of a segment that was recorded.
///
/// `compute` answers the same whenever it is called: it draws no random numbers, and what it reads besides its inputs
/// (weights) stays as it is until the gradient has been taken. Gradients reach that too.
///
/// # Errors
/// What `compute` answers.
pub fn checkpoint(
    inputs: &[&Tensor],
    compute: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
    if !is_checkpointing() {
        return compute(&inputs);
    }
    let output = no_grad(|| compute(&inputs))?;
    let nodes = inputs.iter().map(|input| input.node().cloned()).collect();
    let inputs = inputs.iter().map(Tensor::detach).collect();
    let segment = Segment { compute: Box::new(compute), inputs };
    Ok(output.with_node(Node::new(nodes, Rule::Segment(segment))))
}

// Gradients.
impl Tensor {
    /// The same elements as a variable: gradients of what is made from it are passed back to it.
    pub fn variable(&self) -> Self {
        self.detach().with_node(Node::new(Vec::new(), Rule::Variable))
    }

    /// The same elements without memory of how they were made.
    pub fn detach(&self) -> Self {
        Self { node: None, ..self.clone() }
    }

    /// Whether this is a variable, or was made from one.
    pub fn requires_grad(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    pub(crate) fn with_node(self, node: Arc<Node>) -> Self {
        Self { node: Some(node), ..self }
    }
}
