//! How far one set of pictures is from another, and a picture from another; a metric a file.
//!
//! Most of them compare [`Features`], what a network sees in pictures: the network decides what a distance means, and
//! distances by different networks do not compare.

mod extractor;
mod features;
pub mod frechet;
pub mod inception_score;
pub mod kernel;
mod permutation;
mod pictures;
pub mod prdc;
mod resize;
pub mod similarity;

pub use extractor::{Extractor, Seen, cache};
pub use features::Features;
pub use pictures::{Pictures, Survey};
pub use resize::Resize;
