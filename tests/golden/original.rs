//! The models of `golden/checkpoint/` (`checkpoint.py` beside this file): the same tensors as a folder of diffusers and under the
//! names of an original checkpoint, drawn here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nadir::io::safetensors::save;
use nadir::noise::Mt19937;
use nadir::ops::layout::concat;
use nadir::tensor::Tensor;
use serde_json::Value;

/// A model, both ways.
pub struct Original {
    /// What `golden/checkpoint/` has of it.
    pub golden: PathBuf,
    pub case: Value,
    /// Original name -> component, names there, shape of each there.
    pub names: BTreeMap<String, (String, Vec<String>, Vec<usize>)>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The weight that `draw` of `golden/checkpoint.py` makes.
fn draw(component: &str, name: &str, shape: &[usize]) -> Tensor {
    let seed = crc32fast::hash(format!("{component}.{name}").as_bytes());
    let mut generator = Mt19937::new(u64::from(seed));
    let fan: usize = shape.iter().skip(1).product();
    let values = (0..shape.iter().product()).map(|_| {
        let uniform = f64::from(generator.next_u32() % (1 << 24)) / f64::from(1 << 23) - 1.0;
        let value = match (shape.len(), name.ends_with("weight")) {
            (1, true) => 1.0 + 0.3 * uniform,
            (1, false) => 0.1 * uniform,
            _ if name.contains("embeddings") => 0.5 * uniform,
            _ => uniform * (3.0 / fan as f64).sqrt(),
        };
        value as f32
    });
    Tensor::from_vec(values.collect(), shape).unwrap()
}

impl Original {
    pub fn open(name: &str) -> Self {
        let golden = golden("checkpoint").join(name);
        let json = |file: &str| fs::read(golden.join(file)).unwrap();
        let case = serde_json::from_slice(&json("case.json")).unwrap();
        let names =
            flate2::read::GzDecoder::new(fs::File::open(golden.join("names.json.gz")).unwrap());
        Self { case, names: serde_json::from_reader(names).unwrap(), golden }
    }

    /// Folder of the model's tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        golden("pipelines").join(self.case["tokenizer"].as_str().unwrap())
    }

    /// The model's networks, but for its ControlNet.
    pub fn networks(&self) -> &'static [&'static str] {
        match self.case["tokenizer_2"].is_string() {
            true => &["unet", "vae", "text_encoder", "text_encoder_2"],
            false => &["unet", "vae", "text_encoder"],
        }
    }

    /// The tensors of a component under today's names.
    pub fn component(&self, component: &str) -> Vec<(String, Tensor)> {
        let of = self.names.values().filter(|(part, ..)| part == component);
        let drawn = of.flat_map(|(part, names, shape)| {
            names.iter().map(move |name| (name.clone(), draw(part, name, shape)))
        });
        drawn.collect()
    }

    /// The tensors of an original file.
    pub fn tensors(&self, of_controlnet: bool) -> Vec<(String, Tensor)> {
        let kept =
            self.names.iter().filter(|(_, (part, ..))| (part == "controlnet") == of_controlnet);
        let stored = kept.map(|(key, (part, names, shape))| {
            let parts: Vec<_> = names.iter().map(|name| draw(part, name, shape)).collect();
            let mut tensor = concat(&parts.iter().collect::<Vec<_>>(), 0).unwrap();
            if key.contains(".attn_1.") && shape.len() == 2 {
                tensor = tensor.reshape([shape[0], shape[1], 1, 1]).unwrap();
            }
            if key.ends_with(".text_projection") {
                tensor = tensor.permute(&[1, 0]).unwrap().contiguous().unwrap();
            }
            (key.clone(), tensor)
        });
        stored.collect()
    }

    /// Writes the checkpoint.
    pub fn write_file(&self, path: &Path) {
        save(path, &self.tensors(false), &BTreeMap::new()).unwrap();
    }

    /// Writes the folder.
    pub fn write_folder(&self, folder: &Path) {
        let copy = |from: &Path, to: &Path| {
            fs::create_dir_all(to).unwrap();
            for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
                let wanted = entry.path().extension().is_some_and(|e| e == "json");
                if wanted {
                    fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
                }
            }
        };
        for part in ["", "scheduler"].iter().chain(self.networks()) {
            copy(&self.golden.join(part), &folder.join(part));
        }
        copy(&self.tokenizer(), &folder.join("tokenizer"));
        if let Some(second) = self.case["tokenizer_2"].as_str() {
            copy(&golden("pipelines").join(second), &folder.join("tokenizer_2"));
        }
        for part in self.networks() {
            let file = match part.starts_with("text_encoder") {
                true => "model.safetensors",
                false => "diffusion_pytorch_model.safetensors",
            };
            save(&folder.join(part).join(file), &self.component(part), &BTreeMap::new()).unwrap();
        }
    }
}
