//! What a tensor remembers of how it was made, so that gradients find their way back.
//!
//! A tensor that [`Tensor::variable`] made, and every result of an operation on one, holds a [`Node`]: which
//! nodes it was made from, and how its gradient becomes theirs. A node is made after all those it was made
//! from, so nodes in falling order of their numbers are an order in which gradients can be passed back.
//! Nodes keep what their gradients need; they live as long as a tensor, or a younger node, refers to them.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// `None`: a variable, where gradients end.
    backward: Option<Box<dyn Backward>>,
}

impl Node {
    pub(crate) fn new(
        inputs: Vec<Option<Arc<Node>>>,
        backward: Option<Box<dyn Backward>>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { number: NEXT.fetch_add(1, Ordering::Relaxed), inputs, backward })
    }

    /// Larger than that of every node it was made from.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn inputs(&self) -> &[Option<Arc<Node>>] {
        &self.inputs
    }

    pub(crate) fn backward(&self) -> Option<&dyn Backward> {
        self.backward.as_deref()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.backward().map_or("variable", Backward::name), self.number)
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
}

/// Whether this thread's operations on variables are recorded.
pub(crate) fn is_recording() -> bool {
    RECORDING.get()
}

/// Runs `f` without recording: its results have no gradient, and nothing is kept for one.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDING.set(self.0);
        }
    }
    let _restore = Restore(RECORDING.replace(false));
    f()
}

// Gradients.
impl Tensor {
    /// The same elements as a variable: gradients of what is made from it are passed back to it.
    pub fn variable(&self) -> Self {
        self.detach().with_node(Node::new(Vec::new(), None))
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
