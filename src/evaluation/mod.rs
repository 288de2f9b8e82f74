//! What models and data sets are worth: scores of what is seen, and what a data set of drawn pictures teaches.

pub mod downstream;
pub mod leak;
mod page;
pub mod published;
pub mod scores;
pub mod segmentation;
