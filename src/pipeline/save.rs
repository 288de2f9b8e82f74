//! From a pipeline back to a diffusers folder.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::folder::PipelineFolder;
use crate::nn::{self, Module};
use crate::pipeline::text_to_image::TextToImage;
use crate::tensor::DType;

impl TextToImage {
    /// Writes the model as the diffusers folder `to`, which must not be there yet: its weights ([`nn::save`]), and
    /// everything else (configurations, tokenizer, scheduler, further components) as `from`, the folder that it was
    /// loaded from, has it. `variant` is that of the loading.
    ///
    /// The folder is complete or absent: it is made under another name beside `to`, and renamed.
    ///
    /// # Errors
    /// `to` is there; `from` holds other weights than were loaded; a file cannot be read or written.
    pub fn save(
        &self,
        from: impl AsRef<Path>,
        variant: Option<&str>,
        to: impl AsRef<Path>,
        dtype: Option<DType>,
    ) -> Result<()> {
        if from.as_ref().is_file() {
            let advice = "Make a folder of it first: nadir convert FILE --out FOLDER.";
            return Err(Error::file(
                from.as_ref(),
                "model",
                "a diffusers folder",
                "a file",
                advice,
            ));
        }
        let (from, to) = (PipelineFolder::open(from, variant)?, to.as_ref());
        let mut models: Vec<(&str, &str, &dyn Module)> = vec![
            ("text_encoder", "model.safetensors", &self.text_encoder),
            ("unet", "diffusion_pytorch_model.safetensors", &self.unet),
            ("vae", "diffusion_pytorch_model.safetensors", &self.vae),
        ];
        if let Some(second) = &self.second {
            models.push(("text_encoder_2", "model.safetensors", &second.text_encoder));
        }
        atomic::create_folder(to, |scratch| {
            copy_folder(from.root(), scratch, &|path| {
                let component = path.parent().and_then(Path::file_name);
                let of_model = models.iter().any(|(name, ..)| component == Some(name.as_ref()));
                !(of_model && holds_weights(path))
            })?;
            for &(name, file, module) in &models {
                nn::save(module, &from.weights(name)?, &scratch.join(name).join(file), dtype)?;
            }
            Ok(())
        })
    }
}

/// Whether a file is one of those that hold a model's weights, or lists them.
fn holds_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let endings = [".safetensors", ".bin", ".index.json", ".msgpack", ".ckpt", ".h5", ".onnx"];
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Copies the regular files below `from` that are `wanted` (links are followed).
fn copy_folder(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    for entry in fs::read_dir(from).map_err(|e| Error::io(from, e))? {
        let path = entry.map_err(|e| Error::io(from, e))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        let kind = fs::metadata(&path).map_err(|e| Error::io(&path, e))?;
        if kind.is_dir() {
            copy_folder(&path, &target, wanted)?;
        } else if kind.is_file() && wanted(&path) {
            fs::copy(&path, &target).map_err(|e| Error::io(&path, e))?;
            fs::File::open(&target)
                .and_then(|f| f.sync_all())
                .map_err(|e| Error::io(&target, e))?;
        }
    }
    Ok(())
}
