//! Which of diffusers' pipelines a model is drawn by, and what they differ in.

use crate::pipeline::load::Suggestions;

/// A kind of pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `StableDiffusionPipeline` and what is like it.
    StableDiffusion,
    /// `LatentConsistencyModelPipeline`: from a picture, strength shortens the schedule and not the steps.
    Consistency,
}

impl Family {
    /// That of a pipeline's class.
    pub(super) fn of(class: &str) -> Self {
        match class {
            class if class.starts_with("LatentConsistencyModel") => Self::Consistency,
            _ => Self::StableDiffusion,
        }
    }

    /// What its pipeline does where it is told nothing else.
    pub(super) fn suggestions(self) -> Suggestions {
        match self {
            Self::StableDiffusion => Suggestions::default(),
            Self::Consistency => Suggestions { steps: 4, guidance_scale: 8.5 },
        }
    }
}
