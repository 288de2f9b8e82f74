//! Adapters that are trained: their matrices are, the weights that they are added to are not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::json;

use super::file::{AdapterFile, CONFIG, NAMES};
use super::names::Layer;
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::atomic;
use crate::io::safetensors::save;
use crate::nn::{Module, Parameter, parameters};
use crate::ops::elementwise::{linear_combination, scale};
use crate::ops::matmul::matmul;
use crate::tensor::{DType, Shape, Tensor};

/// Which layers are adapted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// The four projections of every attention, as diffusers' scripts do.
    #[default]
    Attention,
    /// Every linear layer, but what gives the scores of a language model's tokens.
    Linear,
    /// Those, and every convolution.
    Conv,
}

impl FromStr for Targets {
    type Err = Error;

    /// # Errors
    /// `Argument` for another name.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "attention" => Ok(Self::Attention),
            "linear" => Ok(Self::Linear),
            "conv" => Ok(Self::Conv),
            _ => Err(Error::argument("lora_targets", text, "attention, linear or conv")),
        }
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attention => "attention",
            Self::Linear => "linear",
            Self::Conv => "conv",
        })
    }
}

impl Targets {
    fn include(self, layer: &str, shape: &Shape) -> bool {
        let named = |names: &[&str]| {
            let mut fronts = names.iter().filter_map(|name| layer.strip_suffix(name));
            fronts.any(|front| front.is_empty() || front.ends_with('.'))
        };
        // Tables that are multiplied by too.
        if named(&["wte", "embed_tokens", "lm_head"]) {
            return false;
        }
        match self {
            Self::Attention => named(&[
                // diffusers, CLIP
                "to_q",
                "to_k",
                "to_v",
                "to_out.0",
                "q_proj",
                "k_proj",
                "v_proj",
                "out_proj",
                // GPT-2, Phi, Llama
                "attn.c_attn",
                "attn.c_proj",
                "self_attn.dense",
                "o_proj",
            ]),
            Self::Linear => shape.len() == 2,
            Self::Conv => true,
        }
    }
}

/// The adapters of a module's layers.
pub struct LowRank {
    layers: Vec<AdaptedLayer>,
    /// alpha / rank
    scale: f32,
}

/// W, which stays as it is, with its matrices.
struct AdaptedLayer {
    /// Without `.weight`.
    name: String,
    /// [outputs, inputs] or [outputs, inputs, height, width]
    base: Tensor,
    /// A [rank, inputs] or [rank, inputs, height, width]
    down: Parameter,
    /// B [outputs, rank]
    up: Parameter,
}

impl LowRank {
    /// Adapters for the layers of `module` among `targets`, which have no effect yet: B is 0, and `initial` gives A by name
    /// and shape. From here on no gradient reaches the module's own weights.
    ///
    /// # Errors
    /// `Value` for a module that was not loaded with plain weights; `Argument` for a rank of 0, or one that no layer has.
    pub fn new(
        module: &dyn Module,
        targets: Targets,
        rank: usize,
        alpha: f64,
        mut initial: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut bases = Vec::new();
        for (name, parameter) in parameters(module) {
            if parameter.is_trainable() {
                parameter.set_trainable(false)?;
            }
            let Some(layer) = name.strip_suffix(".weight") else { continue };
            if parameter.is_multiplied_by() && targets.include(layer, &parameter.shape()) {
                let base = parameter.tensor().ok_or_else(|| {
                    let message = format!("{name} is frozen: load the model with plain weights");
                    Error::value("lora", message)
                })?;
                bases.push((layer.to_owned(), base));
            }
        }
        let widths = |base: &Tensor| [base.dim(0), base.shape().elements() / base.dim(0)];
        let widest = bases.iter().flat_map(|(_, base)| widths(base)).max().unwrap_or(0);
        if rank == 0 || rank > widest {
            let expected = format!("1 to {widest}, the width of the widest layer that is adapted");
            return Err(Error::argument("lora_rank", rank, expected));
        }
        let adapted = |(name, base): (String, Tensor)| {
            let (device, dtype) = (base.device(), base.dtype());
            let up = Tensor::zeros([base.dim(0), rank], dtype, device)?;
            let shape = base.shape().with(0, rank);
            let down = initial(&format!("{name}.lora_A.weight"), &shape)?;
            let down = down.to_dtype(dtype)?.to_device(device)?;
            let [down, up] = [down, up].map(|matrix| Parameter::plain(matrix.variable()));
            Ok(AdaptedLayer { name, base, down, up })
        };
        let layers = bases.into_iter().map(adapted).collect::<Result<_>>()?;
        Ok(Self { layers, scale: (alpha / rank as f64) as f32 })
    }

    /// What is trained, under diffusers' names.
    pub fn parameters(&self) -> impl Iterator<Item = (String, &Parameter)> {
        self.layers.iter().flat_map(|layer| {
            let name = &layer.name;
            [
                (format!("{name}.lora_A.weight"), &layer.down),
                (format!("{name}.lora_B.weight"), &layer.up),
            ]
        })
    }

    /// Puts W + alpha / rank * B A, as the matrices are now, into the layers of `module`, which it was made for. Gradients
    /// of what is computed from them reach A and B.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn apply(&self, module: &dyn Module) -> Result<()> {
        let all: BTreeMap<String, &Parameter> = parameters(module).into_iter().collect();
        for AdaptedLayer { name, base, down, up } in &self.layers {
            let name = format!("{name}.weight");
            let parameter = all.get(&name);
            let parameter =
                parameter.ok_or_else(|| Error::Weights(format!("{name} is not of this model")))?;
            let (down, up) = (down.value(), up.value());
            let (rank, inputs) = (down.dim(0), base.shape().elements() / base.dim(0));
            let product = matmul(&up, &down.reshape([rank, inputs])?)?; // [outputs, inputs * height * width]
            let product = product.reshape(base.shape())?;
            parameter.hold(linear_combination(&[(1.0, base), (self.scale, &product)])?)?;
        }
        Ok(())
    }

    /// Begins with the matrices that `path`, a file or a folder of peft's, has of the same layers and rank.
    ///
    /// # Errors
    /// It cannot be read, or is of other layers or of another rank.
    pub fn take_up(&self, path: &Path) -> Result<()> {
        let file = AdapterFile::open(path)?;
        let misfit = |what: &str, expected: String, found: String| {
            let advice = "Begin with an adapter of these layers and this rank.";
            Error::file(&file.path, what, expected, found, advice)
        };
        for AdaptedLayer { name, down, up, .. } in &self.layers {
            let own = file
                .pairs
                .iter()
                .find(|(_, layer, _)| matches!(layer, Layer::Dotted(layer) if layer == name));
            let Some((_, _, pair)) = own else {
                return Err(misfit("layers", format!("{name} among them"), "none".into()));
            };
            let factor = (pair.scale / f64::from(self.scale)) as f32;
            for (key, parameter, factor) in [(&pair.down, down, 1.0), (&pair.up, up, factor)] {
                let value = file.tensors.read(key)?.to_dtype(parameter.dtype())?;
                if *value.shape() != parameter.shape() {
                    let (expected, found) =
                        (parameter.shape().to_string(), value.shape().to_string());
                    return Err(misfit(key, expected, found));
                }
                let value = if factor == 1.0 { value } else { scale(&value, factor)? };
                parameter.set(&value.to_device(parameter.value().device())?)?;
            }
        }
        match file.pairs.len() > self.layers.len() {
            true => Err(misfit(
                "layers",
                format!("the {} that are adapted", self.layers.len()),
                file.pairs.len().to_string(),
            )),
            false => Ok(()),
        }
    }

    /// Writes the matrices as peft does: `adapter_model.safetensors` and `adapter_config.json`. `base` names the model that
    /// they are added to; rank and alpha are those that the adapters were made with.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn export_peft(
        &self,
        folder: &Path,
        base: Option<&str>,
        (rank, alpha): (usize, f64),
        dtype: DType,
    ) -> Result<()> {
        // Behind the number of the block: what all blocks have.
        let within = |name: &str| {
            let parts: Vec<&str> = name.split('.').collect();
            let number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
            let from = parts.iter().rposition(number).map_or(0, |at| at + 1);
            parts[from..].join(".")
        };
        let targets: BTreeSet<String> =
            self.layers.iter().map(|layer| within(&layer.name)).collect();
        // GPT-2's are stored as [inputs, outputs].
        let turned = targets.iter().any(|name| name.ends_with("c_attn") || name.ends_with("c_fc"));
        let config = json!({
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": turned,
            "inference_mode": true,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
        });
        atomic::write(&folder.join(CONFIG), |out| writeln!(out, "{config:#}"))?;
        let mut tensors = Vec::new();
        for (name, parameter) in self.parameters() {
            let value = parameter.value().detach().to_dtype(dtype)?;
            tensors.push((format!("base_model.model.{name}"), value));
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        save(&folder.join(NAMES[1]), &tensors, &metadata)
    }

    /// The matrices as diffusers saves them, with `prefix` before each name and alpha / rank within B, so that the file
    /// means the same to who thinks that alpha is the rank. `source` is what the module was loaded from: a projection may
    /// be stored as a 1x1 convolution, and its matrices then are.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn tensors(
        &self,
        prefix: &str,
        source: Option<&dyn TensorSource>,
        dtype: DType,
    ) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for AdaptedLayer { name, base, down, up } in &self.layers {
            let stored = source.and_then(|source| source.info(&format!("{name}.weight")));
            let is_convolution = stored.map_or(base.rank(), |info| info.shape.len()) == 4;
            let mut down = down.value().detach();
            let mut up = scale(&up.value().detach(), self.scale)?;
            if is_convolution {
                let &[rank, inputs] = &down.dims()[..2] else { unreachable!("it has two or four") };
                let kernel = base.dims().get(2..4).map_or([1, 1], |kernel| [kernel[0], kernel[1]]);
                down = down.reshape([rank, inputs, kernel[0], kernel[1]])?;
                up = up.reshape([up.dim(0), rank, 1, 1])?;
            }
            tensors.push((format!("{prefix}{name}.lora_A.weight"), down.to_dtype(dtype)?));
            tensors.push((format!("{prefix}{name}.lora_B.weight"), up.to_dtype(dtype)?));
        }
        Ok(tensors)
    }
}

/// Writes adapters where and as diffusers' `load_lora_weights` looks for them.
///
/// # Errors
/// The file cannot be written.
pub fn export(folder: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    save(&folder.join(NAMES[0]), tensors, &metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::TensorInfo;
    use crate::nn::lora::{Adapter, Adapters};
    use crate::nn::{Conv2d, Keep, Linear, Params, module};
    use crate::ops::elementwise::mul;
    use crate::ops::gradient::backward;
    use crate::ops::reduce::sum;
    use crate::ops::testing::{assert_close, bits, devices, random, values};
    use crate::tensor::Device;

    struct Two {
        conv: Conv2d,
        linear: Linear,
    }

    module!(Two { "conv": conv, "linear": linear });

    impl Two {
        fn load(p: &Params) -> Self {
            Self {
                conv: Conv2d::load_3x3(&p.pp("conv"), 8, 6).unwrap(),
                linear: Linear::load(&p.pp("linear"), 6, 10, true).unwrap(),
            }
        }

        /// `x` [B, H, W, 8] -> [B, H, W, 10]
        fn forward(&self, x: &Tensor) -> Tensor {
            self.linear.forward(&self.conv.forward(x).unwrap()).unwrap()
        }
    }

    /// The weights of [`Two`].
    struct Weights;

    impl TensorSource for Weights {
        fn names(&self) -> Vec<String> {
            ["conv.weight", "conv.bias", "linear.weight", "linear.bias"].map(str::to_owned).into()
        }
        fn info(&self, name: &str) -> Option<TensorInfo> {
            let shape = match name {
                "conv.weight" => vec![6, 8, 3, 3],
                "conv.bias" => vec![6],
                "linear.weight" => vec![10, 6],
                "linear.bias" => vec![10],
                _ => return None,
            };
            Some(TensorInfo { shape, dtype: DType::F32 })
        }
        fn read(&self, name: &str) -> Result<Tensor> {
            Ok(random(&self.info(name).unwrap().shape, name.len() as u64))
        }
        fn origin(&self, _: &str) -> String {
            "two.safetensors".into()
        }
    }

    fn new(module: &Two, rank: usize) -> Result<LowRank> {
        LowRank::new(module, Targets::Conv, rank, 5.0, |name, shape| {
            Ok(random(shape, name.len() as u64 + 20))
        })
    }

    fn total(x: &Tensor) -> Tensor {
        sum(&mul(x, x).unwrap(), &[0, 1, 2, 3]).unwrap()
    }

    #[test]
    fn an_adapter_does_in_training_what_it_does_merged_on_every_device() {
        let folder = tempfile::tempdir().unwrap();
        let mut of_cpu = Vec::new();
        for device in devices() {
            let params = |keep| Params::new(Weights, DType::F32, device).keeping(keep);
            let x = random([2, 3, 5, 8], 1).to_device(device).unwrap();
            let module = Two::load(&params(Keep::Trainable));
            let plain = bits(&module.forward(&x));
            // 1. a new one has no effect, and the rest stands still
            let adapters = new(&module, 3).unwrap();
            adapters.apply(&module).unwrap();
            assert_eq!(bits(&module.forward(&x)), plain);
            for (name, parameter) in parameters(&module) {
                assert_eq!(parameter.is_trainable(), name.ends_with("weight"), "{name}");
            }
            // 2. gradients go to its matrices alone
            for (name, parameter) in adapters.parameters() {
                let value = random(parameter.shape(), name.len() as u64 + 50);
                parameter.set(&value.to_device(device).unwrap()).unwrap();
            }
            adapters.apply(&module).unwrap();
            let y = module.forward(&x);
            let gradients = backward(total(&y)).unwrap();
            assert_eq!(adapters.parameters().count(), 4);
            for (i, (name, parameter)) in adapters.parameters().enumerate() {
                let gradient = gradients.get(&parameter.tensor().unwrap()).unwrap();
                if device == Device::Cpu {
                    of_cpu.push(values(gradient));
                }
                // Sums of 30 x 10 products of sums of 72 in another order.
                assert_close(gradient, &of_cpu[i], 100.0, &format!("{name} on {device}"));
            }
            // 3. the same from its file, merged
            let tensors = adapters.tensors("unet.", None, DType::F32).unwrap();
            export(folder.path(), &tensors).unwrap();
            let adapter = Adapter { path: folder.path().into(), weight: 1.0 };
            let merged = Adapters::open(&[adapter], &[("unet", &Weights)]).unwrap();
            let merged = Params::new(merged.merged("unet", Weights), DType::F32, device);
            let merged = Two::load(&merged).forward(&x);
            assert_close(&merged, &values(&y), 20.0, &format!("merged on {device}"));
            assert_ne!(bits(&merged), plain);
        }
    }

    #[test]
    fn what_cannot_be_adapted_is_an_error() {
        let params = |keep| Params::new(Weights, DType::F32, Device::Cpu).keeping(keep);
        let frozen = Two::load(&params(Keep::Frozen));
        let error = new(&frozen, 3).err().unwrap().to_string();
        assert!(error.contains("conv.weight") && error.contains("frozen"), "{error}");
        let plain = Two::load(&params(Keep::Plain));
        for rank in [0, 73] {
            let error = new(&plain, rank).err().unwrap().to_string();
            assert!(error.contains("1 to 72"), "{error}");
        }
        new(&plain, 72).unwrap();
    }
}
