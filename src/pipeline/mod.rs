//! What users ask for, made of models: from a prompt to an image, or to a text.

pub mod classifier;
pub mod clip_score;
mod control;
mod evaluation;
pub(crate) mod guidance;
pub mod language;
mod load;
pub mod manifest;
mod memory;
pub mod pace;
pub mod pixel_classifier;
pub mod plan;
mod prompt;
mod recent;
mod request;
mod resolve;
mod run;
pub mod sampler;
mod save;
pub mod scene;
mod settings;
mod slot;
mod start;
mod stepping;
pub mod synthesis;
mod text_to_image;
mod told;

pub use control::{Control, Preprocessor, canny};
pub use load::{LoadOptions, Suggestions};
pub use memory::MemoryEstimate;
pub use prompt::Warning;
pub use request::{Cancel, InitImage, Request};
pub use run::{Event, Run, SlotId};
pub use settings::{SIZE_STEP, Settings};
pub use text_to_image::TextToImage;
pub use told::{Date, LEVELS, Metres, Place};
