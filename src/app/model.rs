//! Which model is meant, and what it suggests when nothing else is asked for.

use std::env;
use std::path::{Path, PathBuf};

use nadir::io::checkpoint::Supplement;
use nadir::io::folder::PipelineFolder;
use nadir::io::hub;
use nadir::pipeline::check_classes;
use nadir::pipeline::sampler::SamplerConfig;
use nadir::{Error, Result};

use super::args::Original;

/// The model that ships and that is used when none is named.
pub const DEFAULT: &str = "eurosat-64";

/// A model that was found on this machine.
#[derive(Debug)]
pub struct Model {
    /// What to call it so that it is found again.
    pub name: String,
    /// Its diffusers folder, or its original checkpoint.
    pub folder: PathBuf,
    /// What a checkpoint does not say of itself.
    pub supplement: Supplement,
}

/// The tokenizer of Stable Diffusion 1.x and 2.x, which ships for checkpoints that have none.
const TOKENIZER: &str = "clip-tokenizer";

impl Model {
    /// A folder or a checkpoint, a model that ships, or `org/name` in the hub cache; nothing stands for [`DEFAULT`].
    ///
    /// # Errors
    /// There is no such model; the error says where it was looked for.
    pub fn find(reference: Option<&str>) -> Result<Self> {
        let name = reference.unwrap_or(DEFAULT);
        let given = reference.is_some() && Path::new(name).exists();
        let own = if given || name.is_empty() || name.contains(['/', '\\']) {
            None
        } else {
            shipped(name)
        };
        let folder = match own {
            Some(folder) => folder,
            None if reference.is_none() => return Err(no_default()),
            None => hub::locate(name)?,
        };
        let tokenizer = if folder.is_file() { shipped(TOKENIZER) } else { None };
        let supplement = Supplement { tokenizer, prediction: None };
        Ok(Self { name: name.to_owned(), folder, supplement })
    }

    /// The same model, of which this is known besides.
    pub fn with(mut self, original: &Original) -> Self {
        let Original { tokenizer, prediction } = original.clone();
        self.supplement.tokenizer = tokenizer.or(self.supplement.tokenizer);
        self.supplement.prediction = prediction;
        self
    }

    /// The name that other programs know a sampler by: the one asked for, or else the model's own.
    ///
    /// # Errors
    /// There is no such sampler, or the model's cannot be understood.
    pub fn sampler_name(&self, scheduler: Option<&str>) -> Result<String> {
        let folder = PipelineFolder::open_with(&self.folder, None, &self.supplement)?;
        check_classes(&folder)?;
        let own = SamplerConfig::of(&folder)?;
        Ok(match scheduler {
            Some(name) => own.with_sampler(name)?.display_name(),
            None => own.display_name(),
        })
    }
}

/// Folders that may hold models that ship: `NADIR_WEIGHTS`, the source tree of this build, and `weights` beside
/// the executable.
pub fn shelves() -> Vec<PathBuf> {
    let named = env::var_os("NADIR_WEIGHTS").filter(|v| !v.is_empty()).map(PathBuf::from);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights");
    let installed = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("weights")));
    named.into_iter().chain([source]).chain(installed).collect()
}

fn shipped(name: &str) -> Option<PathBuf> {
    shelves().into_iter().map(|shelf| shelf.join(name)).find(|model| model.is_dir())
}

/// The classifier that ships, which knows EuroSAT's ten classes.
///
/// # Errors
/// It is on none of the shelves.
pub fn shipped_judge() -> Result<PathBuf> {
    const JUDGE: &str = "eurosat-judge";
    shipped(JUDGE).ok_or_else(|| {
        let places: Vec<_> = shelves().iter().map(|shelf| shelf.display().to_string()).collect();
        let advice =
            "Set NADIR_WEIGHTS to the repository's weights folder, or name a classifier's folder.";
        Error::file(
            JUDGE,
            "classifier",
            "a folder of this name in the weights folder",
            format!("none in {}", places.join(", ")),
            advice,
        )
    })
}

fn no_default() -> Error {
    let places: Vec<_> = shelves().iter().map(|shelf| shelf.display().to_string()).collect();
    Error::file(
        DEFAULT,
        "default model",
        "a folder of this name in the weights folder",
        format!("none in {}", places.join(", ")),
        "Set NADIR_WEIGHTS to the repository's weights folder, or name a model with -m.",
    )
}

#[cfg(test)]
mod tests {
    use nadir::pipeline::Suggestions;

    use super::*;

    #[test]
    fn the_default_ships_and_suggests() {
        let model = Model::find(None).unwrap();
        assert_eq!(model.name, DEFAULT);
        let suggestions = Suggestions { steps: 20, guidance_scale: 4.0 };
        assert_eq!(Suggestions::open(&model.folder).unwrap(), suggestions);
        assert_eq!(Model::find(Some(DEFAULT)).unwrap().folder, model.folder);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        for missing in ["no/such/folder/at/all", "nobody/no-such-model", "no-such-model", ""] {
            let error = Model::find(Some(missing)).err().unwrap();
            assert!(
                matches!(error, Error::Argument { name: "model", .. } | Error::File { .. }),
                "{missing}: {error}"
            );
        }
    }
}
