//! Training: the loop around batch, loss, gradient and step, and what it keeps so that it can go on.
//!
//! ```text
//! batch -> loss (a Task) -> gradient::backward -> clip -> AdamW with EMA -> metrics, checkpoints
//! ```
//!
//! A run is a function of its settings: batches, noise and dropped prompts are drawn by step (see [`random`]), so that
//! a run that is stopped, or killed, and resumed from a checkpoint ends with the bits of one that never stopped.

pub mod checkpoint;
pub mod classify;
pub mod diffusion;
mod initial;
pub mod lm;
mod network;
mod optimizer;
mod precision;
pub mod random;
mod records;
mod run;
mod samples;
mod schedule;
pub mod segment;
mod settings;
pub mod vae;
mod watch;

pub use crate::ops::adamw::length as norm;
pub use optimizer::{Optimizer, in_order};
pub use precision::{Compute, LossScaler, MixedPrecision};
pub use records::{Content, Sample};
pub use run::{Event, Loss, Measured, Outcome, Progress, Run, Task};
pub use samples::SampleSettings;
pub use schedule::Schedule;
pub use settings::Settings;
pub use watch::Watch;
