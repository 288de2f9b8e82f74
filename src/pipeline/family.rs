//! Which of diffusers' pipelines a model is drawn by, and what they differ in.

use crate::pipeline::load::Suggestions;

/// A kind of pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `StableDiffusionPipeline` and what is like it.
    StableDiffusion,
    /// `LatentConsistencyModelPipeline`: from a picture, strength shortens the schedule and not the steps.
    Consistency,
    /// `StableDiffusionXLPipeline`: two text encoders, and sizes that the UNet is told.
    Xl,
}

impl Family {
    /// That of a pipeline's class.
    pub(super) fn of(class: &str) -> Self {
        match class {
            class if class.starts_with("StableDiffusionXL") => Self::Xl,
            class if class.starts_with("LatentConsistencyModel") => Self::Consistency,
            _ => Self::StableDiffusion,
        }
    }

    /// What its pipeline does where it is told nothing else.
    pub(super) fn suggestions(self) -> Suggestions {
        match self {
            Self::StableDiffusion => Suggestions::default(),
            Self::Consistency => Suggestions { steps: 4, guidance_scale: 8.5 },
            Self::Xl => Suggestions { steps: 50, guidance_scale: 5.0 },
        }
    }

    /// How much of a picture to start from its pipeline draws anew, where it paints a part of it, or follows ControlNets.
    pub(super) fn strength(self, masked: bool, follows: bool) -> f64 {
        match self {
            // A step less than all, over noise that has a trace of the picture.
            Self::Xl if masked => 0.9999,
            Self::Xl if !follows => 0.3,
            _ if masked => 1.0,
            _ => 0.8,
        }
    }
}
