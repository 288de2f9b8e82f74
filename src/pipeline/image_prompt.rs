//! Pictures as prompts: an IP-Adapter, and the CLIP that looks at them for it.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;

use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::config::Config;
use crate::io::folder::{PipelineFolder, Weights};
use crate::io::safetensors::SafeTensors;
use crate::models::clip::{ClipVision, ClipVisionConfig};
use crate::models::unet::{IpAdapter, Unet};
use crate::nn::{Linear, Params, lora};
use crate::pipeline::clip_score::Preparation;
use crate::pipeline::load::LoadOptions;
use crate::tensor::{DType, Device, Tensor};

/// A picture as a prompt.
#[derive(Clone, Debug)]
pub struct ImagePrompt {
    /// The picture, of any size.
    pub picture: Arc<RgbImage>,
    /// How much it counts: 1 as the adapter was trained, 0 not at all.
    pub scale: f32,
}

impl ImagePrompt {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// `Argument` for a scale that is not finite.
    pub fn check(&self) -> Result<()> {
        match self.scale.is_finite() {
            true => Ok(()),
            false => Err(Error::argument("ip_scale", self.scale, "a finite number")),
        }
    }
}

/// An adapter and its encoder.
pub(super) struct Sight {
    pub(super) adapter: IpAdapter,
    vision: ClipVision,
    projection: Option<Linear>,
    preparation: Preparation,
    dtype: DType,
    device: Device,
}

impl Sight {
    /// Opens what `options` ask for: the adapter of `unet`, and the encoder beside it or that of the pipeline. And what tells both
    /// apart from others.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another model.
    pub(super) fn open(
        file: &Path,
        folder: &PipelineFolder,
        options: &LoadOptions,
        unet: &Unet,
    ) -> Result<(Self, String)> {
        let (dtype, device) = (options.dtype, options.device);
        let adapter = IpAdapter::load(SafeTensors::open(file)?, unet, dtype, device)?;
        let own = folder.component("image_encoder")?;
        let at = match &options.image_encoder {
            Some(encoder) => encoder.clone(),
            None if own.is_some() && !folder.is_checkpoint() => folder.folder("image_encoder")?,
            None => {
                let expected =
                    "a folder with a CLIPVisionModelWithProjection: the model has no image_encoder";
                return Err(Error::argument("image_encoder", "none", expected));
            }
        };
        let weights = Weights::open(&at, None)?;
        let checksums = weights.checksums();
        let projected = weights.info("visual_projection.weight").map(|info| info.shape[0]);
        let config = Config::open(at.join("config.json"))?.bounded_by(&weights);
        let config = ClipVisionConfig::read(&config)?;
        let (width, side) = (config.hidden_size, config.image_size);
        let params = Params::new(weights, dtype, device).of_model("image_encoder");
        let vision = ClipVision::load(config, &params)?;
        let load = |outputs| Linear::load(&params.pp("visual_projection"), width, outputs, false);
        let projection = projected.map(load).transpose()?;
        params.finish()?;
        // transformers' own settings where nobody has others: an adapter's encoder comes without.
        let beside = at.join("preprocessor_config.json").is_file();
        let preparation = match folder.component("feature_extractor")? {
            _ if beside => Preparation::open(&at)?,
            Some(_) if options.image_encoder.is_none() && own.is_some() => {
                Preparation::open(&folder.folder("feature_extractor")?)?
            }
            _ => Preparation::of_side(side),
        };
        let given = match adapter.takes_patches() {
            true => width,
            false => projected.unwrap_or_default(),
        };
        if given != adapter.inputs() {
            let advice = "The image encoder is another than the adapter was trained with: IP-Adapter's of SD 1.5 take CLIP ViT-H.";
            let (expected, found) = (adapter.inputs().to_string(), given.to_string());
            return Err(Error::file(
                at,
                "width of what it makes of a picture",
                expected,
                found,
                advice,
            ));
        }
        preparation.check(side, &at)?;
        let fingerprint = format!("{}{:08x}", lora::checksum(file)?, checksums.combined());
        Ok((Self { adapter, vision, projection, preparation, dtype, device }, fingerprint))
    }

    /// Tokens [1, N, D] of nothing, and of a picture.
    ///
    /// # Errors
    /// A picture without pixels.
    pub(super) fn tokens(&self, picture: &RgbImage) -> Result<[Tensor; 2]> {
        let image = self.preparation.batch(std::slice::from_ref(picture))?; // [1, S, S, 3]
        let image = image.to_dtype(self.dtype)?.to_device(self.device)?;
        let nothing = |like: &Tensor| Tensor::zeros(like.shape(), like.dtype(), like.device());
        let [unseen, seen] = match &self.projection {
            // Patches of a black picture, as diffusers has it; of the whole picture zeros.
            _ if self.adapter.takes_patches() => {
                let states = |image: &Tensor| self.vision.states_before(image, 1);
                [states(&nothing(&image)?)?, states(&image)?]
            }
            Some(projection) => {
                let seen = projection.forward(&self.vision.forward(&image)?)?; // [1, P]
                [nothing(&seen)?, seen]
            }
            None => return Err(Error::value("image_encoder", "it has no visual_projection")),
        };
        Ok([self.adapter.tokens(&unseen)?, self.adapter.tokens(&seen)?])
    }
}
